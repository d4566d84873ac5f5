//! Pages with commands in them: what a page tells its reader to type is run, and what it shows comes out of it. Of each
//! page every block is run, or left out by name with the reason.

use std::collections::VecDeque;
use std::fs;

use enmesh::base::exec::Output;

use super::seed::repository;
use crate::machine::Machine;

/// A page, from the first block that was not run yet.
pub struct Page {
    path: String,
    blocks: VecDeque<Block>,
}

/// A fenced block of commands.
#[derive(Debug)]
pub struct Block {
    /// Where it is, for whoever has to mend it.
    place: String,
    steps: Vec<Step>,
}

/// One command, and what the page shows of its output; nothing where it shows none.
#[derive(Debug)]
pub struct Step {
    place: String,
    /// As the reader types it.
    pub command: String,
    /// Whether the page has it typed by root.
    pub root: bool,
    shown: Vec<String>,
}

impl Page {
    pub fn read(path: &str) -> Page {
        let text = fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let blocks = blocks(path, &text);
        assert!(!blocks.is_empty(), "{path} has no commands");
        Page { path: path.to_owned(), blocks }
    }

    /// The next block, whose first command begins like this.
    pub fn next(&mut self, first: &str) -> Block {
        let block = self.blocks.pop_front().unwrap_or_else(|| panic!("{} has no more commands", self.path));
        let command = &block.steps[0].command;
        assert!(command.starts_with(first), "{}: {command:?}, and not {first:?}", block.place);
        block
    }

    /// The next block, as long as there is one.
    pub fn next_if_any(&mut self) -> Option<Block> {
        self.blocks.pop_front()
    }

    /// Runs the block whose first command begins like this, as root; the others somebody else runs.
    pub fn run_only(mut self, first: &str, machine: &Machine) {
        let place = self.blocks.iter().position(|block| block.begins(first));
        let place = place.unwrap_or_else(|| panic!("{} has no {first:?}", self.path));
        let block = self.blocks.swap_remove_front(place).expect("it was found there");
        self.blocks.clear();
        block.run(machine, "root");
    }

    /// Passes over the next block, which nobody can run here.
    pub fn leave_out(&mut self, first: &str, reason: &str) {
        let block = self.next(first);
        println!("{}: not run: {reason}", block.place);
    }
}

/// Nothing may be left that was not run.
impl Drop for Page {
    fn drop(&mut self) {
        let left: Vec<&Block> = self.blocks.iter().filter(|_| !std::thread::panicking()).collect();
        assert!(left.is_empty(), "nobody has run {left:#?}");
    }
}

impl Block {
    /// Whether this is how its first command begins.
    pub fn begins(&self, first: &str) -> bool {
        self.steps[0].command.starts_with(first)
    }

    /// Runs the whole block on a machine, as root; what is not root's to run, as this user.
    pub fn run(self, machine: &Machine, user: &str) {
        for step in self.steps {
            step.run(machine, if step.root { "root" } else { user });
        }
    }

    /// Its commands, for who runs them elsewhere or does something in between.
    pub fn steps(self) -> Vec<Step> {
        self.steps
    }
}

impl Step {
    /// Runs it on a machine and holds what it says against the page.
    pub fn run(&self, machine: &Machine, user: &str) -> String {
        self.run_as(machine, user, &self.command)
    }

    /// The same with another command, which is what becomes of the page's on this machine.
    pub fn run_as(&self, machine: &Machine, user: &str, command: &str) -> String {
        // One stream, as on a terminal.
        let script = format!("exec 2>&1\n{command}");
        let become_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
        let become_user = if user == "root" { &[][..] } else { &become_user[..] };
        let home = if user == "root" { "/root" } else { "/" };
        let (chdir, home) = (format!("--chdir={home}"), format!("HOME={home}"));
        let shell = ["env", &chdir, &home, "LC_ALL=C.UTF-8", "TERM=dumb", "bash", "-e", "-c", &script];
        self.hold(&machine.run(&[become_user, &shell].concat()))
    }

    /// Whether the page shows this, for who looks again until it does.
    pub fn shows(&self, said: &str) -> bool {
        let shown: Vec<String> = self.shown.iter().map(|line| normal(line)).collect();
        fits(&shown, &said.lines().map(normal).collect::<Vec<_>>())
    }

    /// Holds an output against the page's.
    pub fn hold(&self, output: &Output) -> String {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), output.stderr);
        let may_fail = self.shown.iter().any(|line| line.contains("error") || line.starts_with("WRONG"));
        let place = &self.place;
        assert!(output.status.success() || may_fail, "{place}: {}: {}\n{said}", self.command, output.status);
        if !self.shown.is_empty() {
            let lines: Vec<String> = said.lines().map(normal).collect();
            let shown: Vec<String> = self.shown.iter().map(|line| normal(line)).collect();
            assert!(
                fits(&shown, &lines),
                "{place}: {}\nThe page shows\n{shown:#?}\nand it is\n{said}\nor\n{lines:#?}",
                self.command
            );
        }
        println!("{place}: ran {}", self.command.lines().next().unwrap_or_default());
        said
    }
}

/// The blocks of a page that are commands: `console` with prompts and output, `sh` without either.
fn blocks(path: &str, text: &str) -> VecDeque<Block> {
    let mut blocks = VecDeque::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```").filter(|word| !word.is_empty()) else {
            if line.trim_start().starts_with("```") {
                lines.by_ref().take_while(|(_, line)| !line.trim_start().starts_with("```")).for_each(drop);
            }
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let body =
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.trim_start().starts_with("```"));
        let body: Vec<&str> = body.map(|line| line.get(indent..).unwrap_or_default()).collect();
        let place = format!("{path}:{}", number + 1);
        let steps = match language {
            "console" => steps(&place, &body),
            "sh" => {
                vec![Step { place: place.clone(), command: body.join("\n"), root: true, shown: Vec::new() }]
            }
            _ => continue,
        };
        assert!(!steps.is_empty(), "{place}: a block without a command");
        blocks.push_back(Block { place, steps });
    }
    blocks
}

/// The commands of a session. A command goes on behind a backslash, and up to the end of a here-document.
fn steps(place: &str, body: &[&str]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = body.iter();
    while let Some(line) = lines.next() {
        let prompt = ["# ", "$ "].into_iter().find(|prompt| line.starts_with(prompt));
        match (prompt, steps.last_mut()) {
            (Some(prompt), _) => {
                let mut command = line[prompt.len()..].to_owned();
                let until = command.split_once("<<").map(|(_, word)| word.trim_matches('\'').to_owned());
                while command.ends_with('\\')
                    || until.as_ref().is_some_and(|end| !command.ends_with(&format!("\n{end}")))
                {
                    let next = lines.next().unwrap_or_else(|| panic!("{place}: {command} does not end"));
                    command = format!("{command}\n{next}");
                }
                steps.push(Step {
                    place: place.to_owned(),
                    command,
                    root: prompt == "# ",
                    shown: Vec::new(),
                });
            }
            (None, Some(step)) => step.shown.push((*line).to_owned()),
            (None, None) => panic!("{place}: output of nothing: {line}"),
        }
    }
    for step in &mut steps {
        while step.shown.last().is_some_and(|line| line.trim().is_empty()) {
            step.shown.pop();
        }
    }
    steps
}

/// Whether the lines are those that are shown, where `…` stands for anything: alone on a line for any lines.
fn fits(shown: &[String], lines: &[String]) -> bool {
    match shown.split_first() {
        None => lines.iter().all(String::is_empty),
        Some((first, rest)) if first == "…" => (0..=lines.len()).any(|from| fits(rest, &lines[from..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, lines)| line_fits(first, line) && fits(rest, lines))
        }
    }
}

fn line_fits(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|start| line.strip_prefix(start)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(end) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(end)
}

/// A line without what differs from one run to the next: widths of columns, processes, times, generations, numbers of users.
fn normal(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let phases = ["live", "starting", "failed", "closed"];
    let normal = words.iter().enumerate().map(|(at, word)| {
        let before = at.checked_sub(1).map_or("", |at| words[at]);
        let bare = word.trim_end_matches([',', ';', ')']);
        let process = at == 2 && phases.contains(&before) && is_number(word);
        let varies = match before {
            "uid" | "Linux" | "\"served\":" => bare.starts_with(|c: char| c.is_ascii_digit()),
            _ => process || is_time(bare) || is_generation(bare),
        };
        if varies { format!("~{}", &word[bare.len()..]) } else { (*word).to_owned() }
    });
    normal.collect::<Vec<_>>().join(" ")
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// As in `71h58m`, `7s`, `0.03s` and `120ms`.
fn is_time(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['d', 'h', 'm', 's'])
        && word.chars().all(|c| c.is_ascii_digit() || "dhms.".contains(c))
}

/// As in `2:c5eda5aa2549`.
fn is_generation(word: &str) -> bool {
    word.split_once(':').is_some_and(|(count, hash)| {
        is_number(count) && hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[test]
fn a_page_is_read_as_its_reader_does() {
    let text = "# A page\n```toml\nname = \"x\"\n```\n```console\n# cat >f <<END\na\nEND\n# two \\\n  lines\nshown\n…\n$ third\n```\n```\n$ no\n```\n```sh\nx=1\necho $x\n```\n";
    let blocks = blocks("page", text);
    let commands: Vec<(bool, &str, usize)> = blocks
        .iter()
        .flat_map(|block| &block.steps)
        .map(|step| (step.root, step.command.as_str(), step.shown.len()))
        .collect();
    let expected = [
        (true, "cat >f <<END\na\nEND", 0),
        (true, "two \\\n  lines", 2),
        (false, "third", 0),
        (true, "x=1\necho $x", 0),
    ];
    assert_eq!(commands, expected);
}

#[test]
fn what_is_shown_has_to_come_out() {
    let holds = |shown: &str, said: &str| {
        let lines = |text: &str| text.lines().map(normal).collect::<Vec<_>>();
        fits(&lines(shown), &lines(said))
    };
    assert!(holds("api  live  175  15001  71h59m left", "api   live    12 15001 3h1m left"));
    assert!(holds("generation 2:560fefa04258", "generation 7:0123456789ab"));
    assert!(holds("a\n…\nd", "a\nb\nc\nd"));
    assert!(holds("a … d", "a b c d"));
    for (shown, said) in [
        ("api live 175 15001", "api live 175 15002"),
        ("api live 175", "api failed 175"),
        ("a\nb", "a"),
        ("a", "a\nb"),
        ("a … d", "a b c"),
        ("1 file(s)", "2 file(s)"),
    ] {
        assert!(!holds(shown, said), "{shown:?} and {said:?}");
    }
}
