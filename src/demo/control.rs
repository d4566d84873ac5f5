//! What a daemon says about itself on its control socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 4 * 1024 * 1024;

/// The daemon's status.
///
/// # Errors
/// Why there is none, in words: it may not be up yet.
pub(super) fn status(socket: &Path) -> Result<Value, String> {
    let answer = ask(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the control socket's answer is cut short")?;
    let line = head.lines().next().unwrap_or_default();
    if !line.contains(" 200 ") {
        return Err(format!("the control socket says {line}"));
    }
    serde_json::from_str(body).map_err(|e| format!("the control socket's answer is no JSON: {e}"))
}

/// The process id of a service's sidecar, from a status.
pub(super) fn sidecar_pid(status: &Value, service: &str) -> Option<u32> {
    let pid = status.get("services")?.get(service)?.get("sidecar")?.get("pid")?;
    u32::try_from(pid.as_u64()?).ok()
}

fn ask(socket: &Path) -> std::io::Result<String> {
    let mut connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.set_write_timeout(Some(LIMIT))?;
    // HTTP/1.0: the answer ends with the connection, and is not in chunks.
    connection.write_all(b"GET /v1/status HTTP/1.0\r\nhost: enmesh\r\n\r\n")?;
    let mut answer = String::new();
    connection.take(LONGEST).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answered_with(answer: &'static str) -> Result<Value, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = connection.read(&mut request).unwrap();
            connection.write_all(answer.as_bytes()).unwrap();
        });
        let status = status(&path);
        thread.join().unwrap();
        status
    }

    #[test]
    fn a_status_is_read_and_a_refusal_is_told() {
        let good = answered_with("HTTP/1.0 200 OK\r\n\r\n{\"services\":{\"web\":{\"sidecar\":{\"pid\":7}}}}")
            .unwrap();
        assert_eq!(sidecar_pid(&good, "web"), Some(7));
        assert_eq!(sidecar_pid(&good, "api"), None);
        assert!(answered_with("HTTP/1.0 503 Busy\r\n\r\n").unwrap_err().contains("503"));
        assert!(answered_with("HTTP/1.0 200 OK\r\n\r\nhello").unwrap_err().contains("JSON"));
        assert!(status(Path::new("/no/such/socket")).is_err());
    }
}
