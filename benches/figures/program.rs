//! Other programs, started as a script would: no polling helper in between that could slow them.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use enmesh::base::exec;

/// Runs `name` and waits for it; an error when it says no.
pub fn run(name: &str, arguments: &[&str], stdin: &str) -> Result<(), Box<dyn Error>> {
    checked(name, arguments, &collect(&find(name)?, arguments, stdin)?)
}

/// The same with a program that is where it is told.
pub fn at(path: &Path, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    checked(&path.display().to_string(), arguments, &collect(path, arguments, "")?)
}

/// What `name` prints.
pub fn answer(name: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    Ok(String::from_utf8_lossy(&collect(&find(name)?, arguments, "")?.stdout).trim().to_owned())
}

fn checked(name: &str, arguments: &[&str], output: &Output) -> Result<(), Box<dyn Error>> {
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{name} {}: {} ({words})", arguments.join(" "), output.status).into())
}

fn find(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    Ok(exec::find(name).map_err(|fault| fault.to_string())?)
}

fn collect(path: &Path, arguments: &[&str], stdin: &str) -> Result<Output, Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "a blocking wait, as today's scripts do it")]
    let mut child = Command::new(path)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}
