//! A host, a Consul on it, and an app that can die.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::consul_bed::Agent;
use crate::host_bed::{Bed, HOST_FILE, PEERS_FILE, until};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Scene {
    pub bed: Bed,
    pub agent: Agent,
}

impl Scene {
    /// A host whose services get to Consul by `registration`; nothing runs but Consul.
    pub fn new(registration: &str) -> Scene {
        let bed = Bed::bare();
        bed.remove(PEERS_FILE);
        let host = bed.host_file("").replace("\"static\"", "\"catalog\"");
        bed.write(HOST_FILE, format!("registration = \"{registration}\"\n{host}"));
        let mut scene = Scene { bed, agent: Agent::new(json!({})) };
        scene.start_consul();
        scene
    }

    /// Starts Consul, without any data.
    pub fn start_consul(&mut self) {
        let agent = &mut self.agent;
        self.bed.namespace.run_async(async move || agent.start().await).unwrap();
    }

    /// Asks Consul: the body, and the index of the last change of what was asked for.
    pub fn consul(&self, method: &str, path: &str, body: &Value) -> (Value, u64) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let text = format!(
            "{method} {path} HTTP/1.0\r\nhost: consul\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.exchange(8500, &text).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.0 404"), "{path}: {answer}");
        let index = head.lines().find_map(|line| line.strip_prefix("X-Consul-Index: "));
        (serde_json::from_str(body).unwrap_or_default(), index.map_or(0, |it| it.parse().unwrap()))
    }

    pub fn get(&self, path: &str) -> Value {
        self.consul("GET", path, &Value::Null).0
    }

    fn exchange(&self, port: u16, text: &str) -> std::io::Result<String> {
        let work = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(text.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        self.bed.namespace.run(work).unwrap()
    }

    /// Whether an app answers on the port of loopback.
    pub fn answers(&self, port: u16) -> bool {
        let answer = self.exchange(port, "GET / HTTP/1.0\r\n\r\n");
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Status and output of one check that the catalog has; nothing where it has none.
    pub fn check(&self, id: &str) -> Option<(String, String)> {
        let checks = self.get("/v1/health/node/bed-enmesh");
        let check = checks.as_array()?.iter().find(|check| check["CheckID"] == id)?;
        let text = |name: &str| check[name].as_str().unwrap().to_owned();
        Some((text("Status"), text("Output")))
    }

    /// The index of the last write to this host's checks.
    pub fn index(&self) -> u64 {
        self.consul("GET", "/v1/health/node/bed-enmesh", &Value::Null).1
    }

    /// Waits until Consul has the check so.
    pub fn await_check(&self, id: &str, wanted: Option<&str>) {
        self.wait(&format!("{id} is {wanted:?}"), || {
            let check = self.check(id);
            if check.as_ref().map(|(status, _)| status.as_str()) == wanted {
                Ok(())
            } else {
                Err(format!("{check:?}"))
            }
        });
    }

    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        until(what, PATIENCE, look)
            .unwrap_or_else(|e| panic!("{e}\n{:#}\n{}", self.bed.status(), self.bed.log()))
    }

    /// Reports a check, and holds that it was taken.
    pub fn report(&self, arguments: &[&str]) {
        let said = self.bed.run(&[&["report"], arguments].concat());
        assert_eq!(said.code, Some(0), "{said:?}\n{}", self.bed.log());
    }

    /// An app on the port, which answers every request with 200.
    pub fn app(&self, port: u16) -> App {
        let listener = self.bed.namespace.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => answer(stream),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        App { stop, thread: Some(thread) }
    }
}

fn answer(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut request = [0; 1024];
    let _ = stream.read(&mut request);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
}

/// An app. It dies with this.
pub struct App {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
