//! Running `nft`, and understanding how it says no.

use std::time::Duration;

use crate::base::exec::{self, Output};
use crate::redirect::RedirectError;

/// `nft` takes about 10 ms for our table and 200 ms for one of 10 000 elements. On a slow machine whose boot
/// keeps every processor busy, and whose kernel loads its modules meanwhile, it was seen to take more than
/// 5 s for a first table; what takes longer than this hangs. Less than the daemon's watchdog has patience for.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `nft` and returns what it prints.
///
/// # Errors
/// It is not there, it hangs, or it says no.
pub(in crate::redirect) fn nft(arguments: &[&str], stdin: &[u8]) -> Result<Vec<u8>, RedirectError> {
    run(arguments, stdin).map(|output| output.stdout)
}

/// Has `nft` carry out `document` and returns the number of its process.
///
/// # Errors
/// As [`nft`].
pub(super) fn load(document: &str) -> Result<u32, RedirectError> {
    run(&["-j", "-f", "-"], document.as_bytes()).map(|output| output.pid)
}

fn run(arguments: &[&str], stdin: &[u8]) -> Result<Output, RedirectError> {
    let program = exec::find("nft").map_err(|_| RedirectError::NoNft)?;
    let output = exec::run(&program, arguments, stdin, LIMIT)
        .map_err(|fault| RedirectError::NotRun { message: fault.message })?;
    if output.status.success() { Ok(output) } else { Err(explain(&output.stderr)) }
}

/// Whether this complaint, out of listing our table, says that the table is not there. There is
/// only text to tell by: `nft` has one exit status for everything.
pub(super) fn names_no_table(message: &str) -> bool {
    message.contains("list table")
}

/// The error behind what `nft` wrote.
fn explain(stderr: &str) -> RedirectError {
    let message = summary(stderr);
    let has = |text: &str| stderr.contains(text);
    if has("JSON support not compiled") {
        RedirectError::NoJson
    } else if has("Operation not permitted") || has("you must be root") {
        RedirectError::NotPermitted
    } else if has("Device or resource busy") || has("Interrupted system call") {
        RedirectError::Busy { message }
    } else if has("No such file or directory")
        || has("not supported")
        || has("Could not process rule: No such")
    {
        RedirectError::KernelLacks { missing: message }
    } else {
        RedirectError::Refused { message }
    }
}

/// The complaint on one line, without the pointers below it and the path in front.
fn summary(stderr: &str) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.chars().all(|c| c == '^' || c == '~' || c == ' '))
        .take(3)
        .collect();
    if lines.is_empty() { "it gave no reason".to_owned() } else { lines.join(" | ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Class, Explain};

    #[test]
    fn complaints_become_errors_that_say_what_to_do() {
        let code = |stderr: &str| explain(stderr).code();
        assert_eq!(code("Error: syntax error\nJSON support not compiled-in\n"), "ENM-R003");
        let fault = explain("internal:0:0-0: Error: Could not process rule: Operation not permitted\n\n");
        assert_eq!((fault.code(), fault.class()), ("ENM-R002", Class::Privilege));
        assert_eq!(fault.class().exit_code(), 77);
        let lacks =
            explain("Error: Could not process rule: No such file or directory\nfib daddr type local\n^^^^\n");
        assert_eq!(lacks.code(), "ENM-R004");
        assert!(lacks.to_string().contains("fib daddr type local"), "{lacks}");
        assert_eq!(code("Error: Could not process rule: Device or resource busy\n"), "ENM-R005");
        let refused = explain("Error: Could not process rule: File exists\nadd set x\n");
        assert_eq!(refused.code(), "ENM-R006");
        assert!(refused.to_string().contains("File exists"));
        assert_eq!(code(""), "ENM-R006");
    }

    #[test]
    fn a_missing_table_is_not_a_missing_feature() {
        let complaint = "Error: No such file or directory\nlist table inet enmesh\n                ^^^^^^\n";
        let RedirectError::KernelLacks { missing } = explain(complaint) else { panic!() };
        assert!(names_no_table(&missing));
    }
}
