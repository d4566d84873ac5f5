//! Which iptables this host uses, running it, and understanding how it says no.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::compile::PREFIX;
use super::line::Family;
use super::shape::{Shapes, saved};
use crate::base::exec::{self, Output};
use crate::redirect::{RedirectError, kernel_tables};

/// What takes longer than this hangs; ten thousand rules take about a second.
const LIMIT: Duration = Duration::from_secs(20);

/// How long `iptables-legacy` waits for others to be done; the other flavour has no lock.
const WAIT: &str = "--wait=5";

/// Which of its two rulesets the kernel is spoken to about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// Into nf_tables: `iptables-nft`.
    Nft,
    /// Into ip_tables: `iptables-legacy`.
    Legacy,
}

/// A flavour and what its programs are called here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::redirect) struct Tool {
    pub flavour: Flavour,
    /// What stands between `iptables-` and `save`.
    infix: &'static str,
}

impl Tool {
    /// The program of `flavour`, under its own name or as plain `iptables`.
    pub fn of(flavour: Flavour) -> Option<Tool> {
        let infix = match flavour {
            Flavour::Nft => "nft-",
            Flavour::Legacy => "legacy-",
        };
        let own = Tool { flavour, infix };
        if own.program(Family::V4, "restore").is_ok() {
            return Some(own);
        }
        let plain = Tool { flavour, infix: "" };
        plain.program(Family::V4, "restore").ok()?;
        let version = exec::run(&exec::find("iptables").ok()?, &["--version"], b"", LIMIT).ok()?;
        let speaks_nft = String::from_utf8_lossy(&version.stdout).contains("nf_tables");
        (speaks_nft == (flavour == Flavour::Nft)).then_some(plain)
    }

    /// Every flavour that is installed, the preferred one first.
    pub fn installed() -> Vec<Tool> {
        [Flavour::Nft, Flavour::Legacy].into_iter().filter_map(Tool::of).collect()
    }

    /// The flavour to use: the one that has rules of ours; else Docker's, which would not see ours in the other
    /// one; else the one that somebody uses at all; else `iptables-nft`.
    ///
    /// # Errors
    /// `ENM-R014` there is none.
    pub fn choose() -> Result<Tool, RedirectError> {
        let installed = Tool::installed();
        let none = || RedirectError::NoIptables { program: "iptables".to_owned() };
        if let [] | [_] = installed.as_slice() {
            return installed.first().copied().ok_or_else(none);
        }
        // What cannot be read has nothing to say here; setting rules will tell why.
        let weigh = |tool: &Tool| tool.save(Family::V4).map_or(0, |text| weight(&text));
        let mut best = None;
        for tool in installed {
            let weight = weigh(&tool);
            if best.is_none_or(|(most, _)| weight > most) {
                best = Some((weight, tool));
            }
        }
        best.map(|(_, tool)| tool).ok_or_else(none)
    }

    fn program(self, family: Family, what: &str) -> Result<PathBuf, RedirectError> {
        let name = self.name(family, what);
        exec::find(&name).map_err(|_| RedirectError::NoIptables { program: name })
    }

    /// What the program is called that does `what`: `save` or `restore`.
    pub fn name(self, family: Family, what: &str) -> String {
        let family = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        format!("{family}tables-{}{what}", self.infix)
    }

    /// Everything that is there, as text. Asks for no table by name, which would make it.
    ///
    /// # Errors
    /// The program is not there, or says no.
    pub fn save(self, family: Family) -> Result<String, RedirectError> {
        let program = self.program(family, "save")?;
        let has_none = match self.flavour {
            Flavour::Nft => has_no_tables(family),
            Flavour::Legacy => has_no_legacy_tables(family),
        };
        if has_none {
            return Ok(String::new());
        }
        run(&program, &[], b"").map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What of ours is there.
    ///
    /// # Errors
    /// As [`Tool::save`].
    pub(super) fn read(self, family: Family) -> Result<Shapes, RedirectError> {
        self.save(family).map(|text| saved(&text))
    }

    /// Has `document` carried out, table by table, and returns the number of the process.
    ///
    /// # Errors
    /// The program is not there, or says no; tables before the one that is refused are set then.
    pub fn load(self, family: Family, document: &str) -> Result<u32, RedirectError> {
        let program = self.program(family, "restore")?;
        run(&program, &["--noflush", WAIT], document.as_bytes()).map(|output| output.pid)
    }
}

/// Whether the kernel says that nf_tables has nothing in this family.
fn has_no_tables(family: Family) -> bool {
    let family = match family {
        Family::V4 => kernel_tables::IPV4,
        Family::V6 => kernel_tables::IPV6,
    };
    matches!(kernel_tables::any(family), Ok(false))
}

/// Whether the kernel says that ip_tables has no table in this namespace, as on most hosts; that saves a process.
fn has_no_legacy_tables(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(names) {
        Ok(names) => names.trim().is_empty(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// How much speaks for the flavour that saves this.
fn weight(saved: &str) -> u8 {
    let has_chain = |prefix: &str| {
        saved.lines().any(|line| line.strip_prefix(':').is_some_and(|chain| chain.starts_with(prefix)))
    };
    if has_chain(PREFIX) {
        3
    } else if has_chain("DOCKER") {
        2
    } else {
        u8::from(saved.lines().any(|line| line.starts_with("-A ")))
    }
}

fn run(program: &Path, arguments: &[&str], stdin: &[u8]) -> Result<Output, RedirectError> {
    let output = exec::run(program, arguments, stdin, LIMIT)
        .map_err(|fault| RedirectError::NotRun { message: fault.message })?;
    if output.status.success() { Ok(output) } else { Err(explain(&output.stderr, stdin)) }
}

/// The error behind what was written. There is only text to tell by.
fn explain(stderr: &str, document: &[u8]) -> RedirectError {
    let has = |text: &str| stderr.contains(text);
    let message = summary(stderr, document);
    if has("xtables lock") || has("Resource temporarily unavailable") {
        RedirectError::Busy { message }
    } else if has("Permission denied") || has("Operation not permitted") || has("you must be root") {
        RedirectError::NotPermitted
    } else if [
        "No such file or directory",
        "No chain/target/match",
        "Couldn't load",
        "does not exist",
        "unable to initialize",
        "not supported",
        "Extension",
    ]
    .into_iter()
    .any(has)
    {
        RedirectError::IptablesLacks { missing: message }
    } else {
        RedirectError::IptablesRefused { message }
    }
}

/// The complaint on one line, with the line of the document that it names.
fn summary(stderr: &str, document: &[u8]) -> String {
    let complaints: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Try `"))
        .take(3)
        .collect();
    if complaints.is_empty() {
        return "it gave no reason".to_owned();
    }
    let mut message = complaints.join(" | ");
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let number = stderr
        .split("line")
        .nth(1)
        .and_then(|rest| digits(rest.trim_start_matches([' ', ':'])).parse::<usize>().ok());
    let document = String::from_utf8_lossy(document);
    if let Some(line) = number.and_then(|number| document.lines().nth(number.checked_sub(1)?)) {
        message.push_str(": ");
        message.push_str(line);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Explain;

    #[test]
    fn the_flavour_in_use_weighs_most() {
        let saved = |chains: &str| weight(&format!("*nat\n:OUTPUT ACCEPT [0:0]\n{chains}COMMIT\n"));
        assert_eq!(saved(""), 0);
        assert_eq!(saved("-A OUTPUT -j ACCEPT\n"), 1);
        assert_eq!(saved(":DOCKER - [0:0]\n-A OUTPUT -j DOCKER\n"), 2);
        assert_eq!(saved(":DOCKER - [0:0]\n:ENMESH_OUT - [0:0]\n"), 3);
    }

    #[test]
    fn complaints_become_errors_that_say_what_to_do() {
        let code = |stderr: &str| explain(stderr, b"*nat\n-A X -j Y\n").code();
        assert_eq!(
            code("iptables-restore v1.8.9 (legacy): Permission denied (you must be root)"),
            "ENM-R002"
        );
        assert_eq!(code("Another app is currently holding the xtables lock; still 4s"), "ENM-R005");
        assert_eq!(code("iptables-restore: line 2 failed: No chain/target/match by that name."), "ENM-R015");
        assert_eq!(
            code("iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'"),
            "ENM-R015"
        );
        assert_eq!(code("iptables-restore: line 2 failed"), "ENM-R016");
        assert_eq!(code(""), "ENM-R016");
        let told =
            explain("Error occurred at line: 2\nTry `iptables-restore -h'", b"*nat\n-A X -j Y\n").to_string();
        assert!(told.ends_with("line: 2: -A X -j Y"), "{told}");
    }
}
