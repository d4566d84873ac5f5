//! Other programs, started as a script would: no polling helper in between that could slow them.

use std::error::Error;
use std::io::Write;
use std::process::{Command, Stdio};

use enmesh::base::exec;

/// Runs `name` and waits for it; an error when it says no.
pub fn run(name: &str, arguments: &[&str], stdin: &str) -> Result<(), Box<dyn Error>> {
    let output = collect(name, arguments, stdin)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{name} {}: {} ({words})", arguments.join(" "), output.status).into())
}

/// What `name` prints.
pub fn answer(name: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    Ok(String::from_utf8_lossy(&collect(name, arguments, "")?.stdout).trim().to_owned())
}

fn collect(name: &str, arguments: &[&str], stdin: &str) -> Result<std::process::Output, Box<dyn Error>> {
    let path = exec::find(name).map_err(|fault| fault.to_string())?;
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
