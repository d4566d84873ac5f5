//! `enmesh package-files`: what a package carries that is made from the command line itself, so that neither can
//! say something else than the program does.

use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use serde_json::json;

use super::output::Answer;
use super::{Cli, Global};
use crate::base::{Fault, files};

/// The section of the manual for what administrators run.
const SECTION: &str = "8";
/// Each shell, and the path from `/usr/share` on where it looks for completions.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/enmesh"),
    (Shell::Fish, "fish/vendor_completions.d/enmesh.fish"),
    (Shell::Zsh, "zsh/vendor-completions/_enmesh"),
];

/// Write man pages and shell completions, as a package has them below /usr/share
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  enmesh package-files ./share      what `make packages` packs\n  enmesh package-files /usr/local/share    for a program that came without a package"
)]
pub struct PackageFiles {
    /// The folder that stands for /usr/share
    folder: PathBuf,
}

impl PackageFiles {
    pub fn run(self, global: &Global) -> Result<Answer, Fault> {
        let folder = std::path::absolute(&self.folder).unwrap_or(self.folder);
        let folder = global.root().join(folder);
        let mut written = Vec::new();
        let mut command = Cli::command();
        command.build();
        pages(&command, &mut |name, page| keep(&folder.join("man/man8").join(name), &page, &mut written))?;
        for (shell, path) in SHELLS {
            let mut script = Vec::new();
            generate(shell, &mut Cli::command(), "enmesh", &mut script);
            keep(&folder.join(path), &script, &mut written)?;
        }
        let text = format!("{} files below {}", written.len(), folder.display());
        Ok(Answer::new(text, &json!({ "files": written })))
    }
}

/// A page for the command and for each verb below it that is meant for people.
fn pages(
    command: &Command,
    keep: &mut impl FnMut(String, Vec<u8>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(SECTION)
        // The same bytes whenever it is made.
        .date("")
        .source(format!("enmesh {}", env!("CARGO_PKG_VERSION")))
        .manual("System administration");
    let mut page = Vec::new();
    // Nothing is in the way of writing to memory.
    let _ = man.render(&mut page);
    keep(format!("{name}.{SECTION}"), page)?;
    let mut verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help");
    verbs.try_for_each(|verb| pages(verb, keep))
}

fn keep(path: &Path, contents: &[u8], written: &mut Vec<PathBuf>) -> Result<(), Fault> {
    if let Some(folder) = path.parent() {
        files::folder(folder, files::Access::mode(0o755))?;
    }
    files::write(path, contents, files::Access::mode(0o644))?;
    written.push(path.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_for_people_has_a_page_with_examples() {
        let mut command = Cli::command();
        command.build();
        let mut seen = Vec::new();
        pages(&command, &mut |name, page| {
            let page = String::from_utf8(page).expect("a page is text");
            seen.push((name, page));
            Ok(())
        })
        .expect("pages");
        let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["enmesh.8", "enmesh-apply.8", "enmesh-redirect-traffic.8"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("demo-app") || name.contains("package-files")));
        let without: Vec<&str> = seen
            .iter()
            .filter(|(_, page)| !page.contains("Examples:"))
            .map(|(name, _)| name.as_str())
            .collect();
        assert!(without.iter().all(|name| name.matches('-').count() > 1), "without examples: {without:?}");
    }
}
