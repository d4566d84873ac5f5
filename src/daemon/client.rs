//! Asking the daemon, for the commands that do.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::control::{Hold, Names, SOCKET};
use crate::base::http::{self, HttpError};
use crate::base::{Fault, Root};
use crate::converge::{ConvergeError, Report};

/// Reading the status is answered at once.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// A deed may drain connections for minutes.
const DEED_LIMIT: Duration = Duration::from_secs(600);

/// A unit that starts has 90 s for everything unless its file says otherwise.
const HOLD_LIMIT: Duration = Duration::from_secs(75);

/// A report goes on to an agent, after what the daemon is at.
const REPORT_LIMIT: Duration = Duration::from_secs(30);

/// The daemon's status as JSON; `None` when no daemon runs.
///
/// # Errors
/// `ENM-D006` something else than a status came back.
pub async fn status(root: &Root) -> Result<Option<Value>, Fault> {
    ask(root, Method::GET, "/v1/status", Vec::new(), ASK_LIMIT).await
}

/// Has the daemon converge; `None` when no daemon runs.
///
/// # Errors
/// As [`status`].
pub async fn apply(root: &Root, names: Names) -> Result<Option<Value>, Fault> {
    deed(root, "/v1/apply", names).await
}

/// Has the daemon keep the change that is pending; `None` when no daemon runs.
///
/// # Errors
/// As [`status`].
pub async fn confirm(root: &Root) -> Result<Option<Value>, Fault> {
    deed(root, "/v1/confirm", Names::default()).await
}

/// Has the daemon take services down; `None` when no daemon runs.
///
/// # Errors
/// As [`status`].
pub async fn down(root: &Root, services: &[String]) -> Result<Option<Value>, Fault> {
    deed(root, "/v1/down", Names { services: services.to_vec(), ..Names::default() }).await
}

/// Has the daemon take an app's report; `None` when no daemon runs.
///
/// # Errors
/// As [`status`].
pub async fn report(root: &Root, report: &Report) -> Result<Option<Value>, Fault> {
    let body = serde_json::to_vec(report).unwrap_or_default();
    ask(root, Method::POST, "/v1/report", body, REPORT_LIMIT).await
}

/// Asks the daemon whether `unit` may start; `None` when no daemon runs.
///
/// # Errors
/// Why it may not, or as [`status`].
pub async fn hold(root: &Root, unit: &str) -> Result<Option<Value>, Fault> {
    let body = serde_json::to_vec(&Hold { unit: unit.to_owned() }).unwrap_or_default();
    ask(root, Method::POST, "/v1/hold", body, HOLD_LIMIT).await
}

async fn deed(root: &Root, target: &str, names: Names) -> Result<Option<Value>, Fault> {
    let body = serde_json::to_vec(&names).unwrap_or_default();
    ask(root, Method::POST, target, body, DEED_LIMIT).await
}

async fn ask(
    root: &Root,
    method: Method,
    target: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<Option<Value>, Fault> {
    let socket = root.join(SOCKET);
    let bad = |detail: String| Fault::from(ConvergeError::BadAnswer { socket: socket.clone(), detail });
    match http::request(&socket, method, target, body, limit).await {
        Ok(answer) => serde_json::from_slice(&answer.body).map(Some).map_err(|error| bad(error.to_string())),
        Err(HttpError::Refused) => Ok(None),
        Err(error) => {
            // One that was killed just now: the question may have been taken all the same, by it or by a child of it that
            // was about to become another program and had the socket until then. Whether one runs is asked once more.
            match http::request(&socket, Method::GET, "/v1/status", Vec::new(), ASK_LIMIT).await {
                Err(HttpError::Refused) => Ok(None),
                _ => Err(bad(error.to_string())),
            }
        }
    }
}
