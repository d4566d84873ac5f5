//! What can be wrong with a configuration. Codes C001–C019 are about files and single values,
//! C020–C039 about rules within one file, C040–C049 about rules between files, C050–C059 about the
//! host file and the environment, C060–C069 about legacy files; from C080 they are warnings.

use std::path::PathBuf;

use super::node::At;
use crate::base::{Class, Explain, Place};

/// Something wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}", presentable(&problem.to_string()))]
pub(super) struct ConfigError {
    pub problem: Problem,
    pub place: Place,
}

impl ConfigError {
    /// `problem`, at a position in a file.
    pub fn at(problem: Problem, at: &At) -> Self {
        ConfigError { problem, place: at.place() }
    }
}

/// Things found in one file. After the first [`Findings::MAX`] the rest is only counted: nobody
/// reads ten thousand, and each costs a look through the file for its line.
#[derive(Debug, Default)]
pub(super) struct Findings {
    said: Vec<ConfigError>,
    more: usize,
}

impl Findings {
    /// How many are said one by one.
    pub const MAX: usize = 50;

    /// Notes `problem` at `at`.
    pub fn add(&mut self, problem: Problem, at: &At) {
        if self.said.len() < Self::MAX {
            self.said.push(ConfigError::at(problem, at));
        } else {
            self.more += 1;
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// All of them, with the number of those left out of `file` at the end.
    pub fn into_errors(mut self, file: Place) -> Vec<ConfigError> {
        if self.more > 0 {
            self.said.push(ConfigError { problem: Problem::More { more: self.more }, place: file });
        }
        self.said
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("the file cannot be read: {why}")]
    Unreadable { why: String, denied: bool },
    #[error("is {kind}, not a file")]
    NotAFile { kind: &'static str },
    #[error("the file is larger than 1 MiB")]
    TooLarge,
    #[error("the file {what}")]
    Encoding { what: &'static str },
    #[error("not {format}: {message}")]
    Syntax { format: &'static str, message: String },
    #[error("the file is empty")]
    Empty,
    #[error("the key {key:?} stands here for the second time")]
    DuplicateKey { key: String },
    #[error("there is no configuration here")]
    Nothing,
    #[error("unknown key `{key}`")]
    UnknownKey { key: String, nearest: Option<String>, known: Vec<String> },
    #[error("{}{why}", prefix(path))]
    Value { path: String, why: String },
    #[error("the key `{key}` is missing")]
    Missing { key: String },
    #[error("the text holds a control character")]
    ControlCharacter,

    #[error("a check has exactly one of `http`, `tcp`, `grpc`, `exec` and `ttl`; this one has {count}")]
    CheckKinds { count: usize },
    #[error("{why}")]
    CheckTiming { why: &'static str },
    #[error("{target:?} is not {expected}")]
    CheckTarget { target: String, expected: &'static str },
    #[error("local port {port} is used by two upstreams")]
    UpstreamPortTwice { port: u16 },
    #[error("local port {port} is the service's own port")]
    UpstreamPortOwn { port: u16 },
    #[error("an upstream has a `peer` or a `datacenter`, not both")]
    UpstreamPeerAndDatacenter,
    #[error("the upstream {name} with the same destination stands here for the second time")]
    UpstreamTwice { name: String },
    #[error("{why}")]
    Meta { why: String },
    #[error("{why}")]
    Text { why: String },
    #[error("`weights.passing` is 0; Consul needs at least 1")]
    WeightZero,
    #[error("`inbound = \"all\"` without a `port` would refuse every connection to this host")]
    InboundAllWithoutPort,

    #[error("the service id {id} is taken by {}", other.display())]
    DuplicateId { id: String, other: PathBuf },
    #[error("the scope `{scope}` is taken by the service {other} ({})", file.display())]
    ScopeTwice { scope: String, other: String, file: PathBuf },
    #[error("`unit` is placed in a network namespace, and this service has none for itself")]
    UnitWithoutNamespace,

    #[error("{why}")]
    Host { why: String },
    #[error("the environment variable {name} has a value that does not fit: {why}")]
    Environment { name: &'static str, why: String },
    #[error("{other} describes a service, and ENMESH_SERVICE_NAME is not set")]
    NoServiceName { other: String },
    #[error("there is no variable {name}; it has no effect")]
    UnknownVariable { name: String, nearest: Option<String> },

    #[error("{why}")]
    LegacyForm { why: &'static str },
    #[error("the annotation `{key}` does not fit: {why}")]
    Annotation { key: String, why: String },
    #[error("the annotation `{key}` has an item that is not an upstream: {why}")]
    AnnotationUpstream { key: String, why: String },

    #[error("unknown key `{key}`; it has no effect")]
    Ignored { key: String, nearest: Option<String> },
    #[error("Consul's documentation has no field `{key}`; it is passed on")]
    PassedOn { key: String, nearest: Option<String> },
    #[error("`{key}` has no effect: {why}")]
    NoEffect { key: String, why: &'static str },
    #[error("`{key}` is text; it is read as {meaning}")]
    TextValue { key: String, meaning: String },
    #[error("`connect` is replaced by what enmesh writes itself")]
    ConnectReplaced,
    #[error("the file is not read: its ending is none of {endings}")]
    Ending { endings: &'static str },
    #[error("{more} more like these")]
    More { more: usize },
    #[error("inbound connections to port {port} are not captured: it is among `bypass.inbound_ports`")]
    PortBypassed { port: u16 },
    #[error("CONSUL_HTTP_TOKEN is set: a token in the environment is seen by too many")]
    TokenVariable,
}

/// A sentence that quotes from a file, fit for a terminal and a log: without control characters,
/// and of bounded length. The middle goes, since quotes stand at the front and reasons at the end.
fn presentable(sentence: &str) -> String {
    const HEAD: usize = 160;
    const TAIL: usize = 200;
    let visible = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let length = sentence.chars().count();
    if length <= HEAD + TAIL {
        return sentence.chars().map(visible).collect();
    }
    let head = sentence.chars().take(HEAD);
    let tail = sentence.chars().skip(length - TAIL);
    head.chain(" … ".chars()).chain(tail).map(visible).collect()
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("`{path}`: ") }
}

impl Problem {
    /// What the system said about a file or folder.
    pub fn unreadable(error: &std::io::Error) -> Self {
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        Problem::Unreadable { why: error.to_string(), denied }
    }

    /// A key that `known` does not have, in the table at `path`.
    pub fn unknown_key(path: &str, key: &str, known: &[&str]) -> Self {
        let whole = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        Problem::UnknownKey {
            key: whole,
            nearest: nearest(key, known.iter().copied()),
            known: known.iter().map(|k| (*k).to_owned()).collect(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Problem::Unreadable { .. } => "ENM-C001",
            Problem::NotAFile { .. } => "ENM-C002",
            Problem::TooLarge => "ENM-C003",
            Problem::Encoding { .. } => "ENM-C004",
            Problem::Syntax { .. } => "ENM-C005",
            Problem::Empty => "ENM-C006",
            Problem::DuplicateKey { .. } => "ENM-C007",
            Problem::Nothing => "ENM-C008",
            Problem::UnknownKey { .. } => "ENM-C010",
            Problem::Value { .. } => "ENM-C011",
            Problem::Missing { .. } => "ENM-C012",
            Problem::ControlCharacter => "ENM-C013",
            Problem::CheckKinds { .. } => "ENM-C020",
            Problem::CheckTiming { .. } => "ENM-C021",
            Problem::CheckTarget { .. } => "ENM-C022",
            Problem::UpstreamPortTwice { .. } => "ENM-C023",
            Problem::UpstreamPortOwn { .. } => "ENM-C024",
            Problem::UpstreamPeerAndDatacenter => "ENM-C025",
            Problem::UpstreamTwice { .. } => "ENM-C026",
            Problem::Meta { .. } => "ENM-C027",
            Problem::Text { .. } => "ENM-C028",
            Problem::WeightZero => "ENM-C029",
            Problem::InboundAllWithoutPort => "ENM-C030",
            Problem::DuplicateId { .. } => "ENM-C040",
            Problem::ScopeTwice { .. } => "ENM-C041",
            Problem::UnitWithoutNamespace => "ENM-C100",
            Problem::Host { .. } => "ENM-C050",
            Problem::Environment { .. } => "ENM-C051",
            Problem::NoServiceName { .. } => "ENM-C110",
            Problem::UnknownVariable { .. } => "ENM-C111",
            Problem::LegacyForm { .. } => "ENM-C060",
            Problem::Annotation { .. } => "ENM-C061",
            Problem::AnnotationUpstream { .. } => "ENM-C062",
            Problem::Ignored { .. } | Problem::PassedOn { .. } => "ENM-C080",
            Problem::NoEffect { .. } => "ENM-C081",
            Problem::TextValue { .. } => "ENM-C082",
            Problem::ConnectReplaced => "ENM-C083",
            Problem::Ending { .. } => "ENM-C084",
            Problem::More { .. } => "ENM-C085",
            Problem::TokenVariable => "ENM-C086",
            Problem::PortBypassed { .. } => "ENM-C087",
        }
    }

    fn hint(&self) -> String {
        match self {
            Problem::UnknownKey { nearest: Some(nearest), .. }
            | Problem::Ignored { nearest: Some(nearest), .. }
            | Problem::UnknownVariable { nearest: Some(nearest), .. }
            | Problem::PassedOn { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Problem::UnknownKey { known, .. } if known.is_empty() => "remove the key".to_owned(),
            Problem::UnknownKey { known, .. } => format!("the keys known here are {}", known.join(", ")),
            Problem::Missing { key } => format!("add `{key}`"),
            Problem::UpstreamPortTwice { .. } => "give each upstream a local port of its own".to_owned(),
            Problem::DuplicateId { other, .. } => {
                format!("give one of the two an `id` of its own, or remove this file or {}", other.display())
            }
            Problem::ScopeTwice { scope, .. } if scope == "host" => {
                "one service of a host can have the scope `host`; give the others `user:NAME` or `netns:NAME`"
                    .to_owned()
            }
            other => other.fixed_hint().to_owned(),
        }
    }

    fn fixed_hint(&self) -> &'static str {
        match self {
            Problem::Unreadable { denied: true, .. } => "run as root, or make the file readable",
            Problem::Unreadable { .. } => "check the file and the folders above it with `ls -lL`",
            Problem::NotAFile { .. } => "put a regular file there, or remove it",
            Problem::TooLarge => "is it the right file? a service or host file has some kilobytes",
            Problem::Encoding { .. } => "save the file as UTF-8 without a byte order mark",
            Problem::Syntax { .. } => {
                "mend the file at this position; often a quote, comma or bracket is missing"
            }
            Problem::Empty => "write a configuration into it, or remove it",
            Problem::DuplicateKey { .. } => "keep one of the two",
            Problem::Nothing => "name a service or host file, a folder of them, or a tree with etc/enmesh",
            Problem::ControlCharacter => "remove it, here or as an escape such as \\u0007",
            Problem::CheckKinds { .. } => "split it into several [[check]] tables, one kind each",
            Problem::CheckTiming { .. } => "`interval = \"10s\"` is usual; `ttl` stands alone",
            Problem::CheckTarget { .. } => {
                "write it as, for example, http = \"http://127.0.0.1:8080/health\", tcp = \"127.0.0.1:8080\", grpc = \"127.0.0.1:8080/name\" or exec = [\"/usr/bin/true\"]"
            }
            Problem::UpstreamPortOwn { .. } => "choose another local port: the app listens on this one",
            Problem::UpstreamPeerAndDatacenter => {
                "keep `peer` for another cluster, `datacenter` for a federated one"
            }
            Problem::UpstreamTwice { .. } => "remove one of the two",
            Problem::Meta { .. } => {
                "Consul takes 64 keys of letters, digits, `-` and `_`: 128 bytes a key, 512 a value"
            }
            Problem::WeightZero => "set `passing` to 1 or more",
            Problem::InboundAllWithoutPort => {
                "add the `port` the app listens on, or use `inbound = \"none\"`"
            }
            Problem::ScopeTwice { .. } => {
                "run the services as different users, or in namespaces (`netns:NAME`)"
            }
            Problem::UnitWithoutNamespace => "leave `unit` out, or write `scope = \"netns:NAME\"`",
            Problem::Environment { .. } => "correct or unset the variable, or set the value in enmesh.toml",
            Problem::NoServiceName { .. } => "set it to the service's name in Consul, or unset the other",
            Problem::UnknownVariable { .. } => {
                "unset it; `docs/containers.md` has the rule for names of variables"
            }
            Problem::LegacyForm { .. } => {
                "the file is {\"annotations\": {…}}, or the fields of one Consul service"
            }
            Problem::AnnotationUpstream { .. } => {
                "write NAME[.NAMESPACE]:PORT[:DATACENTER] or prepared_query:NAME:PORT, with commas in between"
            }
            Problem::Ignored { .. } => "remove the key",
            Problem::PassedOn { .. } => "check that your release of Consul knows the field",
            Problem::NoEffect { .. } => "remove the key",
            Problem::TextValue { .. } => "write the value without quotes",
            Problem::ConnectReplaced => {
                "remove `connect`; a native service file can say more about the sidecar"
            }
            Problem::Ending { .. } => "rename the file, or move it elsewhere",
            Problem::More { .. } => "mend those above first",
            Problem::TokenVariable => {
                "put the token into a file, and its path into CONSUL_HTTP_TOKEN_FILE or `consul.token_file`"
            }
            _ => "correct the value; `enmesh check` tells when it fits",
        }
    }
}

impl Explain for ConfigError {
    fn code(&self) -> &'static str {
        self.problem.code()
    }

    fn hint(&self) -> String {
        self.problem.hint()
    }

    fn class(&self) -> Class {
        match self.problem {
            Problem::Unreadable { denied: true, .. } => Class::Privilege,
            _ => Class::Config,
        }
    }

    fn place(&self) -> Option<Place> {
        // A variable of the environment is in no file.
        (!self.place.file.as_os_str().is_empty()).then(|| self.place.clone())
    }
}

/// The known key that somebody who wrote `key` most likely meant.
pub(super) fn nearest<'k>(key: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    // Long input is not a slip of the pen, and its distance costs time.
    if key.len() > 128 {
        return None;
    }
    let flat = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let key = flat(key);
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&key, &flat(candidate)), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, candidate)| candidate.to_owned())
}

/// `a`, `b` and `c`, as a sentence has it.
pub(super) fn choices(known: &[&str]) -> String {
    let quoted: Vec<String> = known.iter().map(|k| format!("`{k}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
