//! The HTTP API, as far as it is asked: fixed answers behind a token.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Record, State};

/// Answers until the task ends.
pub async fn serve(listener: TcpListener, state: Arc<watch::Sender<State>>, record: Arc<Mutex<Record>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (state, record) = (state.clone(), record.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(&request, &state.borrow(), &record);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The sentences and statuses are Consul's.
fn answer(request: &Request<Incoming>, state: &State, record: &Mutex<Record>) -> Response<Full<Bytes>> {
    let token = request.headers().get("x-consul-token").map(|it| it.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    record.lock().unwrap().calls.push((path.clone(), token.clone()));
    let (status, text) = if state.token.is_some() && token.is_some() && state.token != token {
        (403, "ACL not found".to_owned())
    } else if state.token != token && state.token.is_some() {
        (403, "Permission denied: anonymous token lacks permission".to_owned())
    } else if let Some(answer) = state.answers.get(&path) {
        (200, answer.to_string())
    } else {
        (404, format!("unknown service ID: {path}"))
    };
    Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap()
}
