//! The two applications of the lab, `counting` and `dashboard`. They know HTTP and names, and nothing of
//! a mesh. They are started inside the machines by units of their own, as this same program.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use enmesh::demo::app::{self, Outcome, Url};
use serde_json::{Value, json};

use crate::inner::INSIDE;

/// Where `counting` listens, on every address. As its service file says.
pub const COUNTING_PORT: u16 = 80;
/// Where `dashboard` listens, on loopback.
pub const DASHBOARD_PORT: u16 = 9002;
/// What `dashboard` asks, as it stands in its settings.
pub const COUNTING_URL: &str = "http://counting.virtual.consul/";
/// Where its settings are: one line, the URL.
pub const DASHBOARD_SETTINGS: &str = "/etc/dashboard";
/// Stands in each request and each answer between the two, so that it can be looked for on the wire.
pub const MARK: &str = "the-mark-of-the-lab-7d1f";

/// The unit file of an application.
pub fn unit(name: &str) -> String {
    format!(
        "[Unit]\nDescription=The application {name}\n\n\
         [Service]\nUser=app\nEnvironment={INSIDE}=1\n\
         ExecStart={} --exact lab::apps::{name} --ignored --nocapture\n\
         AmbientCapabilities=CAP_NET_BIND_SERVICE\nRestart=always\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        crate::machine::ITSELF
    )
}

#[test]
#[ignore = "runs inside a machine"]
fn counting() {
    let count = AtomicU64::new(0);
    let answer = move || (200, json!({ "count": count.fetch_add(1, Ordering::Relaxed) + 1, "mark": MARK }));
    serve((Ipv4Addr::UNSPECIFIED, COUNTING_PORT), answer);
}

#[test]
#[ignore = "runs inside a machine"]
fn dashboard() {
    let settings = std::fs::read_to_string(DASHBOARD_SETTINGS).expect("the dashboard has settings");
    let url: Url = settings.trim().parse().expect("a URL");
    let answer = move || match app::get(&url, MARK) {
        Outcome::Answered { status: 200, body, .. } => {
            let said: Value = serde_json::from_str(&body).unwrap_or_default();
            (200, json!({ "count": said["count"] }))
        }
        other => (502, json!({ "error": other.describe() })),
    };
    serve((Ipv4Addr::LOCALHOST, DASHBOARD_PORT), answer);
}

/// Answers every connection's one request, for ever.
fn serve(address: (Ipv4Addr, u16), answer: impl Fn() -> (u16, Value) + Send + Sync + 'static) {
    assert!(std::env::var_os(INSIDE).is_some(), "this application runs inside a machine only");
    let listener = TcpListener::bind(address).expect("a free port");
    let answer = Arc::new(answer);
    loop {
        let Ok((connection, _)) = listener.accept() else { continue };
        let answer = Arc::clone(&answer);
        thread::spawn(move || respond(connection, &*answer));
    }
}

fn respond(mut connection: TcpStream, answer: &dyn Fn() -> (u16, Value)) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    // The head is over with an empty line; whoever goes away before has asked nothing.
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let (status, body) = answer();
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    connection.write_all(format!("{head}{body}").as_bytes())
}
