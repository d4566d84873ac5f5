//! The drop-in that says how one sidecar runs. It lies in `/run`, because a boot starts from the
//! configuration again, and an administrator's own drop-in below `/etc` (any name that sorts after
//! `50-enmesh.conf`) has the last word.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::escape;
use crate::base::files::{self, Access};
use crate::base::units::UnitSpec;
use crate::base::{Fault, Root};

/// The systemd version from which pauses between restarts can grow (`RestartSteps=`); an older one
/// would log a complaint about it.
const GROWING_PAUSES: u32 = 254;

fn folder(root: &Root, instance: &str) -> PathBuf {
    root.join(format!("/run/systemd/system/{}.d", escape::unit(instance)))
}

/// The drop-in's text for a systemd of this version (0 when unknown).
pub fn render(spec: &UnitSpec, version: u32) -> String {
    let mut text = format!(
        "# Written by enmesh for the service {}, and again whenever something in it changes.\n[Service]\n",
        spec.instance
    );
    let _ = writeln!(text, "User={}\nGroup={}", spec.uid, spec.gid);
    if let Some(network) = &spec.network {
        // A file that is not there fails the start: it never runs in the host's namespace instead.
        let _ = writeln!(text, "NetworkNamespacePath={}", network.path.display());
    }
    if version >= GROWING_PAUSES {
        text.push_str("RestartSteps=6\nRestartMaxDelaySec=10s\n");
    }
    // `@`: the word after the program is the name the process runs under, see UnitSpec.
    let program = format!("@{}", spec.program.display());
    let _ =
        write!(text, "ExecStart=\nExecStart={} {}", word(&program, false), word(&spec.process_name(), true));
    for argument in &spec.arguments {
        let _ = write!(text, " {}", word(argument, true));
    }
    text.push('\n');
    text
}

/// One word of a command line (systemd.service(5), "Command Lines"). Variables are not expanded in
/// the program's own path, so a `$` is not doubled there.
fn word(text: &str, variables: bool) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(letter);
            }
            '%' => quoted.push_str("%%"),
            '$' if variables => quoted.push_str("$$"),
            '\n' => quoted.push_str("\\n"),
            letter if letter.is_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// Writes the drop-in; whether that changed anything.
///
/// # Errors
/// `ENM-X…` as [`files::write`].
pub fn write(root: &Root, spec: &UnitSpec, version: u32) -> Result<bool, Fault> {
    let folder = folder(root, &spec.instance);
    if !folder.is_dir() {
        files::folder(&folder, Access::mode(0o755))?;
    }
    files::write(&folder.join("50-enmesh.conf"), render(spec, version).as_bytes(), Access::mode(0o644))
}

/// Takes the drop-in back, and its folder unless somebody else has something in it.
///
/// # Errors
/// `ENM-X…` as [`files::remove`].
pub fn remove(root: &Root, instance: &str) -> Result<bool, Fault> {
    let folder = folder(root, instance);
    let changed = files::remove(&folder.join("50-enmesh.conf"))?;
    let _ = std::fs::remove_dir(&folder);
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> UnitSpec {
        UnitSpec {
            instance: "my-api".to_owned(),
            program: PathBuf::from("/opt/my envoy/100%/envoy"),
            arguments: vec!["-c".to_owned(), r#"/run/a"b\c$HOME %i"#.to_owned(), "tab\there".to_owned()],
            uid: 995,
            gid: 994,
            revision: "r1".to_owned(),
            network: None,
        }
    }

    #[test]
    fn the_command_line_is_quoted_for_systemd() {
        let text = render(&spec(), 252);
        let name = spec().process_name();
        assert!(name.starts_with("envoy:my-api:"));
        let expected = format!(
            r#"ExecStart="@/opt/my envoy/100%%/envoy" "{name}" "-c" "/run/a\"b\\c$$HOME %%i" "tab\x09here""#
        );
        assert_eq!(text.lines().last(), Some(expected.as_str()));
        assert!(text.contains("\nUser=995\nGroup=994\nExecStart=\nExecStart="));
        assert!(!text.contains("RestartSteps"));
        assert!(render(&spec(), 257).contains("RestartSteps=6\nRestartMaxDelaySec=10s\n"));
    }

    #[test]
    fn it_is_written_once_and_removed_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert!(write(&root, &spec(), 252).unwrap());
        assert!(!write(&root, &spec(), 252).unwrap());
        let folder = dir.path().join(r"run/systemd/system/envoy@my\x2dapi.service.d");
        assert!(folder.join("50-enmesh.conf").is_file());
        std::fs::write(folder.join("60-mine.conf"), "").unwrap();
        assert!(remove(&root, "my-api").unwrap());
        assert!(folder.join("60-mine.conf").is_file(), "a stranger's drop-in stays");
        std::fs::remove_file(folder.join("60-mine.conf")).unwrap();
        assert!(!remove(&root, "my-api").unwrap());
        assert!(!folder.exists());
    }

    #[test]
    fn every_part_of_the_specification_changes_the_name() {
        let base = spec();
        let mut names = vec![base.process_name()];
        for change in [
            |s: &mut UnitSpec| s.program = PathBuf::from("/usr/bin/envoy"),
            |s: &mut UnitSpec| s.arguments.push("x".to_owned()),
            |s: &mut UnitSpec| s.uid += 1,
            |s: &mut UnitSpec| s.gid += 1,
            |s: &mut UnitSpec| s.revision.push('x'),
        ] {
            let mut other = base.clone();
            change(&mut other);
            names.push(other.process_name());
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6);
    }
}
