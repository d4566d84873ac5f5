//! The endpoint that platforms ask whether to send anybody here: HTTP over TCP, since that is all they can ask.
//!
//! It says less than the control socket, because anybody may reach it: `/ready` with 200 or 503 and the reasons, and
//! `/live` with 200 as long as the daemon answers at all.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::base::Fault;
use crate::base::http::{self, Question};
use crate::converge::{ConvergeError, Status};

/// Starts answering at `listen`, for as long as the daemon runs.
///
/// # Errors
/// `ENM-D112` the address is not to be had.
pub async fn start(listen: SocketAddr, status: Rc<RefCell<Status>>) -> Result<(), Fault> {
    let listener =
        TcpListener::bind(listen).await.map_err(|source| ConvergeError::Readiness { listen, source })?;
    tracing::info!("answers at http://{listen}/ready");
    tokio::task::spawn_local(http::serve(listener, move |question: Question| {
        let (status, body) = answer(&question, &status);
        async move { (status, "application/json", serde_json::to_vec(&body).unwrap_or_default()) }
    }));
    Ok(())
}

fn answer(question: &Question, status: &RefCell<Status>) -> (StatusCode, Value) {
    match (&question.method, question.path.as_str()) {
        (&Method::GET | &Method::HEAD, "/ready") => {
            let mut status = status.borrow_mut();
            status.look_at_checks();
            let reasons = status.unready();
            let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (code, json!({ "ready": reasons.is_empty(), "reasons": reasons }))
        }
        (&Method::GET | &Method::HEAD, "/live") => (StatusCode::OK, json!({ "live": true })),
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, json!({ "error": "ask for /ready or /live" }))
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, json!({ "error": "only GET is answered" })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, path: &str, status: Status) -> (u16, Value) {
        let question = Question { method, path: path.to_owned(), query: String::new(), body: Vec::new() };
        let (code, body) = answer(&question, &RefCell::new(status));
        (code.as_u16(), body)
    }

    #[test]
    fn nobody_is_sent_to_a_host_that_has_no_live_service() {
        let reason = |status: Status| {
            let (code, body) = asked(Method::GET, "/ready", status);
            assert_eq!((code, &body["ready"]), (503, &json!(false)), "{body}");
            body["reasons"][0]["reason"].as_str().unwrap().to_owned()
        };
        assert!(reason(Status::default()).contains("just started"));
        let mut idle = Status::default();
        idle.converged(Vec::new(), Vec::new());
        assert!(reason(idle.clone()).contains("no service"));
        idle.leaving = true;
        assert!(reason(idle).contains("ending"));
    }

    #[test]
    fn only_readiness_and_life_are_told() {
        assert_eq!(asked(Method::GET, "/live", Status::default()).0, 200);
        assert_eq!(asked(Method::GET, "/v1/status", Status::default()).0, 404);
        assert_eq!(asked(Method::POST, "/ready", Status::default()).0, 405);
    }
}
