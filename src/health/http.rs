//! Checks over HTTP/1.1.

use std::convert::Infallible;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{HOST, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::CheckStatus;
use super::connect::{Target, Tls};
use super::state::Finding;
use crate::config::Check;

/// How many redirections are followed.
const REDIRECTIONS: usize = 10;
/// How much of an answer is read, in bytes; what comes after is left.
const BODY_LIMIT: usize = 4096;

/// Asks `url`: 2xx passes, 429 warns, anything else is critical.
pub(super) async fn ask(url: &str, check: &Check, tls: &Tls) -> Finding {
    match follow(url, check, tls).await {
        Err(why) => Finding::critical(format!("HTTP {url}: {why}")),
        Ok((status, body)) => {
            let kind = match status {
                _ if status.is_success() => CheckStatus::Passing,
                StatusCode::TOO_MANY_REQUESTS => CheckStatus::Warning,
                _ => CheckStatus::Critical,
            };
            Finding::new(kind, &format!("HTTP {url}: {status}: {body}"))
        }
    }
}

async fn follow(url: &str, check: &Check, tls: &Tls) -> Result<(StatusCode, String), String> {
    let mut uri: Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
    let method = check.method.as_deref().unwrap_or("GET");
    let method = Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())?;
    // What changes something is not sent to somebody else.
    let follows = !check.disable_redirects && matches!(method, Method::GET | Method::HEAD);
    for _ in 0..=REDIRECTIONS {
        let (status, location, body) = exchange(&uri, &method, check, tls).await?;
        match location.filter(|_| follows && status.is_redirection()) {
            None => return Ok((status, body)),
            Some(location) => uri = resolve(&uri, &location)?,
        }
    }
    Err(format!("more than {REDIRECTIONS} redirections"))
}

/// Where `location` leads from `base` (RFC 3986, 5.2, for the forms that servers send).
fn resolve(base: &Uri, location: &str) -> Result<Uri, String> {
    let wrong = |_| format!("it is redirected to {location:?}, which is no URL");
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") {
        return location.parse().map_err(wrong);
    }
    let (scheme, authority) = (base.scheme_str().unwrap_or("http"), base.authority());
    let authority = authority.map_or("", hyper::http::uri::Authority::as_str);
    let text = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    text.parse().map_err(wrong)
}

type Exchanged = (StatusCode, Option<String>, String);

async fn exchange(uri: &Uri, method: &Method, check: &Check, tls: &Tls) -> Result<Exchanged, String> {
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(format!("{uri} is neither http nor https")),
    };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let target = Target { host, port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }) };
    let request = request(uri, method, check)?;
    let stream = target.dial().await?;
    if secure {
        talk(tls.wrap(stream, &target.host, &["http/1.1"]).await?, request).await
    } else {
        talk(stream, request).await
    }
}

fn request(uri: &Uri, method: &Method, check: &Check) -> Result<Request<Full<Bytes>>, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", hyper::http::uri::Authority::as_str);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("user-agent", concat!("enmesh/", env!("CARGO_PKG_VERSION")))
        .header("accept", "text/plain, text/*, */*")
        .header("connection", "close");
    let own_host = check.header.keys().any(|name| name.eq_ignore_ascii_case(HOST.as_str()));
    if !own_host {
        request = request.header(HOST, authority);
    }
    for (name, values) in &check.header {
        for value in values {
            request = request.header(name, value);
        }
    }
    let body = check.body.clone().unwrap_or_default();
    request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())
}

async fn talk<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Exchanged, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error: hyper::Error| format!("the connection broke: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok(read(response).await)
    };
    // The connection is driven by the same future, so that nothing outlives a timeout.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = answer => answer,
        never = drive => match never {},
    }
}

/// The status decides; of the body as much is read as is shown.
async fn read(response: Response<Incoming>) -> Exchanged {
    let location = response.headers().get(LOCATION).and_then(|it| it.to_str().ok()).map(str::to_owned);
    let status = response.status();
    let mut text = Vec::new();
    let mut body = Limited::new(response.into_body(), BODY_LIMIT);
    while !body.is_end_stream()
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Ok(bytes) = frame.into_data() {
            text.extend_from_slice(&bytes);
        }
    }
    (status, location, String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_leads_where_a_browser_would_go() {
        let base: Uri = "http://h:1/a/b?c=d".parse().unwrap();
        for (location, expected) in [
            ("https://x/y", "https://x/y"),
            ("//x/y", "http://x/y"),
            ("/y?z=1#part", "http://h:1/y?z=1"),
            ("y", "http://h:1/a/y"),
            ("?e", "http://h:1/a/b?e"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), expected);
        }
        assert!(resolve(&base, "http://[").is_err());
    }
}
