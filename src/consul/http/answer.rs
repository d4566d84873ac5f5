//! What an answer means: Consul's statuses and sentences, turned into causes.
//!
//! Consul says much of it in text only, and with changing statuses; the sentences here were seen on
//! 1.8.7 and are those of later releases too.

use serde::de::DeserializeOwned;

use super::transport::Reply;
use crate::consul::ConsulError;

/// Longest sentence of Consul's that goes into an error, in characters.
const SENTENCE: usize = 300;

/// The body of a good answer, read from JSON (nothing is null), or why there is none.
///
/// # Errors
/// By status and text; see [`ConsulError`].
pub(super) fn judge<T: DeserializeOwned>(what: &str, server: &str, reply: &Reply) -> Result<T, ConsulError> {
    let what = what.to_owned();
    if !(200..300).contains(&reply.status) {
        return Err(refusal(what, server, reply));
    }
    let body = if reply.body.is_empty() { b"null" } else { reply.body.as_slice() };
    serde_json::from_slice(body).map_err(|error| ConsulError::Answer { what, why: error.to_string() })
}

fn refusal(what: String, server: &str, reply: &Reply) -> ConsulError {
    let why = sentence(&reply.body);
    if (300..400).contains(&reply.status) {
        let to = reply.headers.get("location").map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        return ConsulError::Redirect { what, to: to.unwrap_or_default() };
    }
    let says = |text: &str| why.contains(text);
    // The sentence decides before the status: a server's refusal comes through an agent as a 500.
    if says("HTTP request to an HTTPS server") {
        return ConsulError::WantsTls { server: server.to_owned() };
    }
    if says("ACL not found") {
        return ConsulError::UnknownToken { what };
    }
    if says("Permission denied") {
        return ConsulError::Denied { what, why };
    }
    if says("No cluster leader") || says("No known Consul servers") || says("leadership lost") {
        return ConsulError::NoLeader { what, why };
    }
    if says("No path to datacenter") {
        return ConsulError::NoDatacenter { what };
    }
    if says("Scripts are disabled") {
        return ConsulError::Scripts { what };
    }
    match reply.status {
        400 => match unknown_field(&why) {
            Some(field) => ConsulError::UnknownField { what, field },
            None => ConsulError::BadRequest { what, why },
        },
        401 | 403 => ConsulError::Denied { what, why },
        404 => ConsulError::Missing { what, why },
        429 => ConsulError::Busy { what },
        status => ConsulError::Failed { what, status, why },
    }
}

/// Go's `json: unknown field "Mode"`.
fn unknown_field(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("unknown field \"")?;
    let (field, _) = rest.split_once('"')?;
    Some(field.to_owned())
}

/// Text for one line of a log, whatever came.
fn sentence(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    match text.char_indices().nth(SENTENCE) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Explain;

    fn code(status: u16, body: &str) -> &'static str {
        let reply = Reply { status, headers: hyper::HeaderMap::new(), body: body.as_bytes().to_vec() };
        judge::<serde_json::Value>("GET /x", "http://c", &reply).unwrap_err().code()
    }

    #[test]
    fn each_refusal_has_its_code() {
        // The sentences as Consul 1.8.7 says them, where it does.
        for (status, body, expected) in [
            (200, "<html>", "ENM-K033"),
            (301, "", "ENM-K032"),
            (307, "", "ENM-K032"),
            (400, "Client sent an HTTP request to an HTTPS server.", "ENM-K017"),
            (400, "Request decode failed: json: unknown field \"Mode\"", "ENM-K025"),
            (400, "Request decode failed: unexpected EOF", "ENM-K026"),
            (401, "ACL support disabled", "ENM-K021"),
            (403, "ACL not found", "ENM-K022"),
            (403, "Permission denied", "ENM-K021"),
            (500, "rpc error making call: Permission denied: Missing service:write on web", "ENM-K021"),
            (500, "rpc error making call: ACL not found", "ENM-K022"),
            (404, "unknown service ID: web", "ENM-K024"),
            (429, "rate limit exceeded", "ENM-K029"),
            (500, "No cluster leader", "ENM-K027"),
            (500, "No known Consul servers", "ENM-K027"),
            (500, "No path to datacenter", "ENM-K028"),
            (500, "Scripts are disabled on this agent from remote calls", "ENM-K030"),
            (503, "", "ENM-K031"),
            (405, "method PUT not allowed", "ENM-K031"),
        ] {
            assert_eq!(code(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_sentence_is_short_and_of_one_line() {
        let reply =
            Reply { status: 500, headers: hyper::HeaderMap::new(), body: vec![b'\n', b'x', 27, 0xff] };
        let text = refusal("GET /x".to_owned(), "", &reply).to_string();
        assert!(!text.contains(char::is_control), "{text:?}");
        let reply = Reply { status: 500, headers: hyper::HeaderMap::new(), body: vec![b'y'; 10_000] };
        assert!(refusal("GET /x".to_owned(), "", &reply).to_string().len() < 400);
    }
}
