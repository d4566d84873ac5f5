//! A fake of the two endpoints of Azure's that enmesh asks: the metadata endpoint's tokens (and the form
//! that the environment names), and the management API's container groups. Shapes, errors and paging as
//! in the public reference; nothing of it was recorded from the real one.
#![allow(dead_code, reason = "each test target uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The token for the management API.
pub const MANAGEMENT_TOKEN: &str = "management.token.secret";
/// What `IDENTITY_HEADER` has to be.
pub const PROOF: &str = "proof-of-this-host";

/// What the fake knows and does.
#[derive(Default)]
pub struct State {
    /// Groups by id, as they were spelled: state, provisioning state, restart policy, address, public.
    pub groups: BTreeMap<String, FakeGroup>,
    /// Tokens by resource, or by resource and client id with a blank between them.
    pub tokens: BTreeMap<String, String>,
    /// Answers that come before any other, to whatever is asked next.
    pub next: Vec<Canned>,
    /// Groups on a page.
    pub page: usize,
    /// Every question: its target.
    pub asked: Vec<String>,
    /// The keys that tokens are signed with, as a key set (RFC 7517).
    pub keys: Option<Value>,
    /// The list says that it goes on here.
    pub leads_to: Option<String>,
}

#[derive(Clone)]
pub struct FakeGroup {
    pub state: &'static str,
    pub provisioning: &'static str,
    pub policy: &'static str,
    pub address: Option<(String, bool)>,
}

impl FakeGroup {
    pub fn running() -> Self {
        FakeGroup { state: "Running", provisioning: "Succeeded", policy: "Always", address: None }
    }
}

/// A made-up answer.
#[derive(Clone)]
pub enum Canned {
    /// Status, more headers, and body.
    Says(u16, &'static str, String),
    /// A head, and less of a body than it promises.
    Truncated,
    /// Nothing, for so long.
    Slow(Duration),
}

pub struct FakeAzure {
    pub url: String,
    pub state: Arc<Mutex<State>>,
}

impl FakeAzure {
    /// Listens on `address` of the calling thread's namespace, for as long as the process lives.
    pub fn listen(address: &str) -> FakeAzure {
        let listener = TcpListener::bind(address).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { page: 100, ..State::default() }));
        let (shared, own) = (Arc::clone(&state), url.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, own) = (Arc::clone(&shared), own.clone());
                thread::spawn(move || drop(answer(stream, &state, &own)));
            }
        });
        let fake = FakeAzure { url, state };
        let resource = format!("{}/", fake.url);
        fake.with(|state| drop(state.tokens.insert(resource, MANAGEMENT_TOKEN.to_owned())));
        fake
    }

    pub fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap())
    }

    /// How often something with `part` in it was asked.
    pub fn count(&self, part: &str) -> usize {
        self.with(|state| state.asked.iter().filter(|target| target.contains(part)).count())
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>, own: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let target = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| {
        let find = |line: &String| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        head.iter().find_map(find)
    };
    let canned = {
        let mut state = state.lock().unwrap();
        state.asked.push(target.clone());
        if state.next.is_empty() { None } else { Some(state.next.remove(0)) }
    };
    let mut stream = stream;
    match canned {
        Some(Canned::Says(status, headers, body)) => say(&mut stream, status, headers, &body),
        Some(Canned::Truncated) => stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"access_token\":\"half-of-a-sec"),
        Some(Canned::Slow(time)) => {
            thread::sleep(time);
            Ok(())
        }
        None => {
            let (status, body) = known(&target, &header, &mut state.lock().unwrap(), own);
            say(&mut stream, status, "", &body.to_string())
        }
    }
}

fn say(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes())
}

fn known(
    target: &str,
    header: &dyn Fn(&str) -> Option<String>,
    state: &mut State,
    own: &str,
) -> (u16, Value) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| {
        let pair =
            |pair: &str| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| plain(value));
        query.split('&').find_map(pair)
    };
    let identity = |version: &str| {
        if parameter("api-version").as_deref() != Some(version) {
            return (400, json!({ "error": "invalid_request", "error_description": "api-version" }));
        }
        let resource = parameter("resource").unwrap_or_default();
        let key = parameter("client_id").map_or(resource.clone(), |client| format!("{resource} {client}"));
        match state.tokens.get(&key) {
            Some(token) => (
                200,
                json!({
                    "access_token": token, "client_id": "c", "expires_in": "86399", "expires_on": "4000000000",
                    "ext_expires_in": "86399", "not_before": "1", "resource": resource, "token_type": "Bearer",
                }),
            ),
            None => (400, json!({ "error": "invalid_request", "error_description": "Identity not found" })),
        }
    };
    if path == "/metadata/identity/oauth2/token" {
        if header("metadata").as_deref() != Some("true") || header("x-forwarded-for").is_some() {
            return (
                400,
                json!({ "error": "bad_request_102", "error_description": "Required metadata header not specified" }),
            );
        }
        return identity("2018-02-01");
    }
    if path.ends_with("/discovery/v2.0/keys") {
        return (200, state.keys.clone().unwrap_or_default());
    }
    if path == "/msi/token" {
        if header("x-identity-header").as_deref() != Some(PROOF) {
            return (401, json!({ "error": { "code": "Unauthorized", "message": "no X-IDENTITY-HEADER" } }));
        }
        return identity("2019-08-01");
    }
    if header("authorization").as_deref() != Some(&format!("Bearer {MANAGEMENT_TOKEN}")) {
        return (
            401,
            json!({ "error": { "code": "InvalidAuthenticationToken", "message": "The access token is invalid." } }),
        );
    }
    if parameter("api-version").is_none() {
        return (400, json!({ "error": { "code": "MissingApiVersionParameter", "message": "api-version" } }));
    }
    let list = "/providers/Microsoft.ContainerInstance/containerGroups";
    match path.strip_suffix(list) {
        Some(scope) => page(state, scope, parameter("skip").and_then(|it| it.parse().ok()).unwrap_or(0), own),
        None => match state.groups.iter().find(|(id, _)| id.eq_ignore_ascii_case(path)) {
            Some((id, group)) => (200, shape(id, group, true)),
            None => (
                404,
                json!({ "error": { "code": "ResourceNotFound", "message": format!("{path} was not found.") } }),
            ),
        },
    }
}

/// A page of the groups in `scope`, which tells nothing of how they are now.
fn page(state: &State, scope: &str, skip: usize, own: &str) -> (u16, Value) {
    let within =
        |id: &&String| id.to_ascii_lowercase().starts_with(&format!("{}/", scope.to_ascii_lowercase()));
    let all: Vec<&String> = state.groups.keys().filter(within).collect();
    let some = all.iter().skip(skip).take(state.page);
    let value: Vec<Value> = some.map(|id| shape(id, &state.groups[*id], false)).collect();
    let mut body = json!({ "value": value });
    if skip + state.page < all.len() {
        let next = skip + state.page;
        let list = "providers/Microsoft.ContainerInstance/containerGroups?api-version=2023-05-01";
        body["nextLink"] = json!(format!("{own}{scope}/{list}&skip={next}"));
    }
    if let Some(link) = &state.leads_to {
        body["nextLink"] = json!(link);
    }
    (200, body)
}

fn shape(id: &str, group: &FakeGroup, whole: bool) -> Value {
    let name = id.rsplit('/').next().unwrap();
    let mut properties = json!({
        "provisioningState": group.provisioning, "restartPolicy": group.policy, "osType": "Linux",
        "containers": [{ "name": "app", "properties": { "image": "app:1", "resources": { "requests": { "cpu": 1.0, "memoryInGB": 1.0 } } } }],
    });
    if let Some((ip, public)) = &group.address {
        let kind = if *public { "Public" } else { "Private" };
        properties["ipAddress"] =
            json!({ "ip": ip, "type": kind, "ports": [{ "port": 15000, "protocol": "TCP" }] });
    }
    if whole {
        properties["instanceView"] = json!({ "events": [], "state": group.state });
    }
    json!({
        "id": id, "name": name, "type": "Microsoft.ContainerInstance/containerGroups", "location": "westeurope",
        "properties": properties,
    })
}

fn plain(text: &str) -> String {
    let (mut plain, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits: String = bytes.by_ref().take(2).map(char::from).collect();
            plain.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The id of a group of the tests'.
pub fn group_id(name: &str) -> String {
    format!("{SCOPE}/providers/Microsoft.ContainerInstance/containerGroups/{name}")
}

/// The resource group of the tests'.
pub const SCOPE: &str = "/subscriptions/1111-2222/resourceGroups/Mesh";
