//! The control socket, `/run/enmesh/enmesh.sock`: HTTP/1.1, JSON. Who may open the socket may ask
//! for everything, so its mode is 0660 and its group `enmesh`.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::base::files::{self, Access};
use crate::base::http::{self, Question};
use crate::base::{Fault, Root};
use crate::config::value::Span;
use crate::converge::{ConvergeError, Report, Status};
use crate::plan::facts::SshSession;

/// Where the socket is.
pub const SOCKET: &str = "/run/enmesh/enmesh.sock";

/// Something that the daemon's loop is asked to do.
pub struct Request {
    /// What.
    pub deed: Deed,
    /// Where the faults go.
    pub reply: oneshot::Sender<Reply>,
}

/// What the daemon can be asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Converge now.
    Apply(Names),
    /// Keep the change that is pending.
    Confirm,
    /// Take services out of the mesh; all of them, and the daemon ends, when none is named.
    Down(Vec<String>),
    /// Capture the user of a unit that is about to run.
    Hold(String),
    /// Take an app's report about its check.
    Report(Report),
}

/// The answer to a deed.
pub type Reply = Result<Done, Fault>;

/// A deed that was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Done {
    /// What went wrong on the way.
    pub faults: Vec<Fault>,
    /// The status after it.
    pub status: Status,
}

/// Names of services, as the client sends them, and how it wants the deed done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Service ids. It has no default: to name none means all, so that has to be said.
    pub services: Vec<String>,
    /// Take it back after this time unless it is confirmed.
    #[serde(default)]
    pub confirm: Option<Span>,
    /// Capture the ports of SSH sessions as well.
    #[serde(default)]
    pub force: bool,
    /// The SSH sessions that the client has seen.
    #[serde(default)]
    pub ssh_sessions: Vec<SshSession>,
}

/// A unit that is about to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its name.
    pub unit: String,
}

/// Binds the socket. One that an earlier daemon left behind is replaced: the lock says that no
/// other daemon lives.
///
/// # Errors
/// `ENM-D010` the socket cannot be made.
pub fn listen(root: &Root, group: Option<u32>) -> Result<UnixListener, Fault> {
    let socket = root.join(SOCKET);
    files::remove(&socket)?;
    let failed = |source| ConvergeError::Listen { socket: socket.clone(), source };
    let listener = UnixListener::bind(&socket).map_err(failed)?;
    restrict(&socket, group).map_err(failed)?;
    Ok(listener)
}

fn restrict(socket: &PathBuf, group: Option<u32>) -> std::io::Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let access = Access { mode: 0o660, uid: None, gid: group };
    if access.gid.is_some() {
        chown(socket, access.uid, access.gid)?;
    }
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(access.mode))
}

/// Answers on `listener` until dropped: reads from `status` at once, deeds through `requests`.
pub async fn serve(listener: UnixListener, status: Rc<RefCell<Status>>, requests: mpsc::Sender<Request>) {
    let answer = move |question: Question| {
        let (status, requests) = (Rc::clone(&status), requests.clone());
        async move { respond(question, &status, &requests).await }
    };
    let Err(error) = http::serve(listener, answer).await;
    tracing::error!(code = "ENM-D010", "the control socket broke: {error}");
}

async fn respond(
    question: Question,
    status: &Rc<RefCell<Status>>,
    requests: &mpsc::Sender<Request>,
) -> (StatusCode, &'static str, Vec<u8>) {
    const JSON: &str = "application/json";
    let body = |value: &Value| serde_json::to_vec(value).unwrap_or_default();
    match (&question.method, question.path.as_str()) {
        (&Method::GET, "/v1/status") => {
            status.borrow_mut().look_at_checks();
            (StatusCode::OK, JSON, serde_json::to_vec(&*status.borrow()).unwrap_or_default())
        }
        (&Method::GET, "/metrics") => {
            status.borrow_mut().look_at_checks();
            (StatusCode::OK, "text/plain; version=0.0.4", status.borrow().metrics().into_bytes())
        }
        (&Method::POST, path @ ("/v1/apply" | "/v1/down" | "/v1/confirm")) => {
            let names = if question.body.is_empty() {
                Ok(Names::default())
            } else {
                serde_json::from_slice::<Names>(&question.body)
            };
            let Ok(names) = names else {
                return (
                    StatusCode::BAD_REQUEST,
                    JSON,
                    body(&json!({ "error": "expected {\"services\": [names]}" })),
                );
            };
            let deed = match path {
                "/v1/apply" => Deed::Apply(names),
                "/v1/confirm" => Deed::Confirm,
                _ => Deed::Down(names.services),
            };
            match ask(requests, deed).await {
                Some(Ok(done)) => (StatusCode::OK, JSON, serde_json::to_vec(&done).unwrap_or_default()),
                refused => refuse(refused),
            }
        }
        (&Method::POST, "/v1/hold") => {
            let Ok(hold) = serde_json::from_slice::<Hold>(&question.body) else {
                return (
                    StatusCode::BAD_REQUEST,
                    JSON,
                    body(&json!({ "error": "expected {\"unit\": name}" })),
                );
            };
            match ask(requests, Deed::Hold(hold.unit.clone())).await {
                Some(Ok(_)) => (StatusCode::OK, JSON, body(&json!(hold))),
                refused => refuse(refused),
            }
        }
        (&Method::POST, "/v1/report") => {
            let Ok(report) = serde_json::from_slice::<Report>(&question.body) else {
                let expected = "expected {\"service\": id, \"check\": id, \"status\": \"passing\", \"warning\" or \"critical\"}";
                return (StatusCode::BAD_REQUEST, JSON, body(&json!({ "error": expected })));
            };
            match ask(requests, Deed::Report(report.clone())).await {
                Some(Ok(_)) => (StatusCode::OK, JSON, body(&json!(report))),
                refused => refuse(refused),
            }
        }
        _ => (StatusCode::NOT_FOUND, JSON, body(&json!({ "error": "no such resource" }))),
    }
}

/// The answer to a deed that was not done.
fn refuse(reply: Option<Reply>) -> (StatusCode, &'static str, Vec<u8>) {
    let (status, error) = match reply {
        Some(Err(fault)) => (StatusCode::UNPROCESSABLE_ENTITY, json!(fault)),
        _ => (StatusCode::SERVICE_UNAVAILABLE, json!("stopping")),
    };
    let body = serde_json::to_vec(&json!({ "error": error })).unwrap_or_default();
    (status, "application/json", body)
}

async fn ask(requests: &mpsc::Sender<Request>, deed: Deed) -> Option<Reply> {
    let (reply, answer) = oneshot::channel();
    requests.send(Request { deed, reply }).await.ok()?;
    answer.await.ok()
}
