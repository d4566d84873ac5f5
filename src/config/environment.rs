//! Configuration by `ENMESH_*` variables, for containers without a mounted file.
//!
//! Every key of the host and of the service file has one variable; the list of them follows from the
//! types. What the variables say becomes the same tree that a file becomes, whose values know the
//! variable that they come from, so everything after that is one way for both.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::error::{ConfigError, Problem, nearest};
use super::legacy;
use super::node::{At, Document, Entry, Item, Node, Table};
use super::parse::{self, Format};
use super::{schema_host, schema_service};
use crate::base::{Fault, Place};

/// What all of them begin with.
const PREFIX: &str = "ENMESH_";
/// What those of the service begin with.
const SERVICE: &str = "ENMESH_SERVICE_";
/// The variable without which there is no service.
pub(super) const NAME: &str = "ENMESH_SERVICE_NAME";
/// Others that the program reads, and what for.
const OTHERS: [(&str, &str); 2] = [
    ("ENMESH_LOG", "How it logs: `auto`, `json` or `text`."),
    ("ENMESH_ENVOY", "Envoy's program, for `enmesh demo`."),
];
/// How often a check runs that is written in short.
const INTERVAL: &str = "10s";

/// A variable, and the key that it stands for.
#[derive(Debug)]
struct Variable {
    name: String,
    path: Vec<String>,
    form: Form,
    /// What the key is for, in the words of its type.
    about: String,
}

/// A variable as it is described to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// The key of the host or the service file, with tables; none where no file says it.
    pub key: Option<String>,
    /// What it is for.
    pub about: &'static str,
}

/// Every variable that the program reads by this prefix, those of files' keys first.
pub(super) fn described() -> Vec<Described> {
    let of_keys = variables().iter().map(|(_, variable)| Described {
        name: &variable.name,
        key: Some(variable.path.join(".")),
        about: &variable.about,
    });
    of_keys.chain(OTHERS.map(|(name, about)| Described { name, key: None, about })).collect()
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    Flag,
    List,
    Map,
    Upstreams,
    Checks,
    Json,
}

/// What the environment says, as files would.
#[derive(Default)]
pub(super) struct Environment {
    /// As one more drop-in of the host file.
    pub host: Option<Node>,
    /// As one more service file.
    pub service: Option<Node>,
    /// What of it cannot be read.
    pub errors: Vec<ConfigError>,
}

impl Environment {
    /// What the variables say that `env` answers for. One that is set to nothing is not set.
    pub fn read(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut found = Environment::default();
        let set = |name: &str| env(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let mut first = None;
        for (of_service, variable) in variables() {
            let Some(text) = set(&variable.name) else { continue };
            match value(variable, &text) {
                Ok(node) => {
                    let tree = if *of_service { &mut found.service } else { &mut found.host };
                    put(tree, variable, node);
                }
                Err(error) => found.errors.push(error),
            }
            if *of_service {
                first.get_or_insert(&variable.name);
            }
        }
        if let Some(other) = first.filter(|_| set(NAME).is_none()) {
            found.service = None;
            let problem = Problem::NoServiceName { other: other.clone() };
            found.errors.push(ConfigError { problem, place: Place::whole(&PathBuf::from(NAME)) });
        }
        found
    }
}

/// Warnings about those of `names` that look like ours and are not.
pub(super) fn unknown(names: impl Iterator<Item = String>) -> Vec<Fault> {
    let known =
        || variables().iter().map(|(_, variable)| variable.name.as_str()).chain(OTHERS.map(|(name, _)| name));
    let mut unknown: Vec<String> =
        names.filter(|name| name.starts_with(PREFIX) && !known().any(|it| it == name)).collect();
    unknown.sort_unstable();
    let warn = |name: String| {
        let problem = Problem::UnknownVariable { nearest: nearest(&name, known()), name };
        ConfigError { problem, place: Place::whole(&PathBuf::new()) }.into()
    };
    unknown.into_iter().map(warn).collect()
}

/// Whether `fault` is about a variable. Nothing but another start of the process takes it back.
pub(super) fn is_of_environment(fault: &Fault) -> bool {
    let file = fault.place.as_ref().and_then(|place| place.file.to_str());
    file.is_some_and(|file| variables().iter().any(|(_, variable)| variable.name == file))
}

/// Every variable, and whether it is the service's: made once from the types' schemas, so that a new key has one.
fn variables() -> &'static [(bool, Variable)] {
    static ALL: OnceLock<Vec<(bool, Variable)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Vec::new();
        for (of_service, prefix, schema) in
            [(false, PREFIX, schema_host()), (true, SERVICE, schema_service())]
        {
            let mut found = Vec::new();
            walk(&schema, &schema, &mut Vec::new(), prefix, &mut found);
            all.extend(found.into_iter().map(|variable| (of_service, variable)));
        }
        all
    })
}

/// Collects the keys of the table that `schema` describes, and of the tables in it.
fn walk(root: &Value, schema: &Value, path: &mut Vec<String>, prefix: &str, found: &mut Vec<Variable>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, told) in properties.into_iter().flatten() {
        let schema = resolved(root, told);
        path.push(key.clone());
        if schema.get("properties").is_some() {
            walk(root, schema, path, prefix, found);
        } else {
            let name = format!("{prefix}{}", path.join("_").to_uppercase());
            let about =
                told.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
            found.push(Variable { name, path: path.clone(), form: form(root, key, schema), about });
        }
        path.pop();
    }
}

/// The schema itself, where `schema` refers to it or allows its absence.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let of_reference = || {
        let pointer = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
        Some(resolved(root, root.pointer(pointer)?))
    };
    let of_choice = || {
        let some = |one: &&Value| one.get("type").and_then(Value::as_str) != Some("null");
        Some(resolved(root, schema.get("anyOf")?.as_array()?.iter().find(some)?))
    };
    of_reference().or_else(of_choice).unwrap_or(schema)
}

fn form(root: &Value, key: &str, schema: &Value) -> Form {
    let is = |wanted: &str| match schema.get("type") {
        Some(Value::String(kind)) => kind == wanted,
        Some(Value::Array(kinds)) => {
            kinds.iter().any(|kind| kind == wanted) && !kinds.iter().any(|kind| kind == "string")
        }
        _ => false,
    };
    let texts =
        |inner: Option<&Value>| inner.is_some_and(|inner| resolved(root, inner).get("properties").is_none());
    match key {
        "upstream" => Form::Upstreams,
        "check" => Form::Checks,
        _ if is("boolean") => Form::Flag,
        _ if is("integer") => Form::Number,
        _ if is("array") && texts(schema.get("items")) => Form::List,
        _ if is("object")
            && schema.get("additionalProperties").is_some_and(|one| one.get("type").is_some()) =>
        {
            Form::Map
        }
        _ if is("array") || is("object") => Form::Json,
        _ => Form::Text,
    }
}

/// What `text` means as the value of `variable`.
fn value(variable: &'static Variable, text: &str) -> Result<Node, ConfigError> {
    // Values that are JSON have lines; of the others the variable's name says enough.
    let is_json =
        text.starts_with(['{', '[']) && !matches!(variable.form, Form::Text | Form::Number | Form::Flag);
    let inner = if is_json { text.to_owned() } else { String::new() };
    let document = Rc::new(Document { path: PathBuf::from(&variable.name), text: inner });
    if is_json {
        return parse::parse(&document, Format::Json).map_err(|broken| broken.error);
    }
    let wrong = |why: String| {
        let problem = Problem::Value { path: variable.path.join("."), why };
        ConfigError { problem, place: Place::whole(&document.path) }
    };
    let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let value = match variable.form {
        Form::Text => json!(text),
        // What is none is said by the type that wants one.
        Form::Number => text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number)),
        Form::Flag => match text {
            "true" => json!(true),
            "false" => json!(false),
            _ => json!(text),
        },
        Form::List => items().collect(),
        Form::Map => Value::Object(items().map(pair).collect::<Result<Map<_, _>, _>>().map_err(wrong)?),
        Form::Upstreams => items().map(upstream).collect::<Result<Value, _>>().map_err(wrong)?,
        Form::Checks => items().map(check).collect::<Result<Value, _>>().map_err(wrong)?,
        Form::Json => return Err(wrong("it takes JSON, which begins with `{` or `[`".to_owned())),
    };
    let node = Node::from_json(&value, &At::new(&document, 0));
    match node.control_character() {
        Some(at) => Err(ConfigError::at(Problem::ControlCharacter, at)),
        None => Ok(node),
    }
}

fn pair(item: &str) -> Result<(String, Value), String> {
    let (key, value) = item.split_once('=').ok_or_else(|| format!("{item:?} is not `key=value`"))?;
    Ok((key.trim().to_owned(), json!(value.trim())))
}

fn upstream(item: &str) -> Result<Value, String> {
    let upstream = legacy::upstream(item).map_err(|why| format!("{item:?} is not an upstream: {why}"))?;
    serde_json::to_value(upstream).map_err(|error| error.to_string())
}

/// A check in short: its address says which kind it is.
fn check(item: &str) -> Result<Value, String> {
    let (kind, target) = match item.split_once("://") {
        Some(("http" | "https", _)) => ("http", item),
        Some(("tcp", rest)) => ("tcp", rest),
        Some(("grpc", rest)) => ("grpc", rest),
        _ => {
            return Err(format!(
                "{item:?} is not a check: http://…, https://…, tcp://HOST:PORT or grpc://HOST:PORT[/SERVICE]"
            ));
        }
    };
    Ok(json!({ kind: target, "interval": INTERVAL }))
}

/// Puts `node` where `variable` says, into a tree that grows with it.
fn put(tree: &mut Option<Node>, variable: &Variable, node: Node) {
    let at = node.at.clone();
    let nested = variable.path.iter().rev().fold(node, |node, key| {
        let entry = Entry { key: at.clone(), node };
        Node { at: at.clone(), item: Item::Table(Table::from([(key.clone(), entry)])) }
    });
    match tree {
        Some(tree) => tree.merge(nested),
        None => *tree = Some(nested),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::{Config, ControlPlane, Mode, load, load_path};
    use super::*;
    use crate::base::Root;

    /// What a tree of `files` and these variables say together.
    fn config(files: &[(&str, &str)], variables: &[(&str, &str)]) -> Config {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        load(&Root::new(dir.path()), &|name| variables.get(name).map(|text| (*text).to_owned()))
    }

    fn only_error(variables: &[(&str, &str)]) -> (String, &'static str) {
        let config = config(&[], variables);
        let [error] = config.errors.as_slice() else { panic!("{:?}", config.errors) };
        (error.to_string(), error.code)
    }

    #[test]
    fn every_key_has_one_variable_and_no_two_have_the_same() {
        let names: Vec<&str> = variables().iter().map(|(_, variable)| variable.name.as_str()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        for name in
            ["ENMESH_CONSUL_LOGIN_METHOD", "ENMESH_SERVICE_CAPTURE_BYPASS_OUTBOUND_CIDRS", "ENMESH_STATIC_CA"]
        {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(!OTHERS.iter().any(|(other, _)| names.contains(other)));
    }

    #[test]
    fn variables_say_what_files_say() {
        let config = config(
            &[],
            &[
                ("ENMESH_CONTROL_PLANE", "catalog"),
                ("ENMESH_CONSUL_ADDRESS", "http://10.0.0.1:8500"),
                ("ENMESH_CONSUL_LOGIN_METHOD", "entra"),
                ("ENMESH_CONSUL_LOGIN_BEARER_TOKEN_FILE", "/run/secrets/jwt"),
                ("ENMESH_CONSUL_LOGIN_META", "group=shop, zone = 1"),
                ("ENMESH_ENVOY_USER", "5995"),
                ("ENMESH_ENVOY_DRAIN", "3s"),
                ("ENMESH_PORTS_INBOUND", "15100-15199"),
                ("ENMESH_SERVICE_NAME", "api"),
                ("ENMESH_SERVICE_PORT", " 8080 "),
                ("ENMESH_SERVICE_ID", ""),
                ("ENMESH_SERVICE_TAGS", "v1, blue"),
                ("ENMESH_SERVICE_ENABLED", "true"),
                ("ENMESH_SERVICE_WEIGHTS_PASSING", "2"),
                ("ENMESH_SERVICE_WEIGHTS_WARNING", "1"),
                ("ENMESH_SERVICE_CAPTURE_MODE", "direct"),
                ("ENMESH_SERVICE_CAPTURE_BYPASS_OUTBOUND_PORTS", "25,8000-8100"),
                ("ENMESH_SERVICE_UPSTREAM", "db:5432, cache:6379:dc2"),
                (
                    "ENMESH_SERVICE_CHECK",
                    "http://127.0.0.1:8080/health,tcp://127.0.0.1:8080,grpc://127.0.0.1:9/x",
                ),
                ("ENMESH_SERVICE_PROXY_CONFIG", r#"{"protocol": "http"}"#),
            ],
        );
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc/enmesh");
        std::fs::create_dir_all(etc.join("services")).unwrap();
        let host = "control_plane = \"catalog\"\n[consul]\naddress = \"http://10.0.0.1:8500\"\n[consul.login]\n\
            method = \"entra\"\nbearer_token_file = \"/run/secrets/jwt\"\nmeta = { group = \"shop\", zone = \"1\" }\n\
            [envoy]\nuser = 5995\ndrain = \"3s\"\n[ports]\ninbound = \"15100-15199\"\n";
        let service = "name = \"api\"\nport = 8080\ntags = [\"v1\", \"blue\"]\nweights = { passing = 2, warning = 1 }\n\
            [capture]\nmode = \"direct\"\nbypass.outbound_ports = [25, \"8000-8100\"]\n\
            [[upstream]]\nname = \"db\"\nlocal_port = 5432\n[[upstream]]\nname = \"cache\"\nlocal_port = 6379\n\
            datacenter = \"dc2\"\n[[check]]\nhttp = \"http://127.0.0.1:8080/health\"\ninterval = \"10s\"\n\
            [[check]]\ntcp = \"127.0.0.1:8080\"\ninterval = \"10s\"\n[[check]]\ngrpc = \"127.0.0.1:9/x\"\ninterval = \"10s\"\n\
            [proxy]\nconfig = { protocol = \"http\" }\n";
        std::fs::write(etc.join("enmesh.toml"), host).unwrap();
        std::fs::write(etc.join("services/api.toml"), service).unwrap();
        let mut by_files = load_path(dir.path());
        assert_eq!(config.errors, by_files.errors);
        assert_eq!(config.host, by_files.host);
        by_files.services[0].source = PathBuf::from(NAME);
        assert_eq!(config.services, by_files.services);
    }

    #[test]
    fn the_environment_wins_over_files_and_keeps_the_rest_of_them() {
        let host = "control_plane = \"static\"\n[envoy]\npath = \"/opt/envoy\"\ndrain = \"9s\"\n";
        let files = [
            ("etc/enmesh/enmesh.toml", host),
            ("etc/enmesh/services/web.toml", "name = \"web\"\n[capture]\nscope = \"user:1\"\n"),
        ];
        let config = config(
            &files,
            &[
                ("ENMESH_CONTROL_PLANE", "catalog"),
                ("ENMESH_ENVOY_DRAIN", "1s"),
                ("ENMESH_SERVICE_NAME", "api"),
            ],
        );
        assert!(config.host_ok && config.errors.is_empty(), "{:?}", config.errors);
        assert_eq!(config.host.control_plane, ControlPlane::Catalog);
        assert_eq!(
            (config.host.envoy.path.to_str(), config.host.envoy.drain.0.as_secs()),
            (Some("/opt/envoy"), 1)
        );
        let ids: Vec<String> = config.services.iter().map(|service| service.id().to_string()).collect();
        assert_eq!(ids, ["api", "web"]);
        assert_eq!(config.services[0].capture.mode, Mode::Transparent);
    }

    #[test]
    fn an_error_names_the_variable() {
        let name = ("ENMESH_SERVICE_NAME", "api");
        let cases: [(&str, &str, &str, &str); 9] = [
            ("ENMESH_SERVICE_PORT", "0", "ENM-C011", "ENMESH_SERVICE_PORT: ENM-C011: `port`: "),
            ("ENMESH_SERVICE_PORT", "http", "ENM-C011", "ENMESH_SERVICE_PORT: ENM-C011: `port`: "),
            ("ENMESH_SERVICE_ENABLED", "yes", "ENM-C011", "ENMESH_SERVICE_ENABLED: ENM-C011: `enabled`: "),
            ("ENMESH_SERVICE_UPSTREAM", "db", "ENM-C011", "ENMESH_SERVICE_UPSTREAM: ENM-C011: `upstream`: "),
            ("ENMESH_SERVICE_META", "x", "ENM-C011", "ENMESH_SERVICE_META: ENM-C011: `meta`: "),
            ("ENMESH_SERVICE_CHECK", "127.0.0.1:80", "ENM-C011", "ENMESH_SERVICE_CHECK: ENM-C011: `check`: "),
            (
                "ENMESH_SERVICE_CHECK",
                "[{\"http\": 3}]",
                "ENM-C011",
                "ENMESH_SERVICE_CHECK:1:11: ENM-C011: `check[0].http`: ",
            ),
            ("ENMESH_SERVICE_CHECK", "[{", "ENM-C005", "ENMESH_SERVICE_CHECK:1:2: ENM-C005: "),
            ("ENMESH_DRIVER", "nft", "ENM-C011", "ENMESH_DRIVER: ENM-C011: `driver`: "),
        ];
        for (variable, text, code, words) in cases {
            let (said, was) = only_error(&[name, (variable, text)]);
            assert!(was == code && said.starts_with(words), "{variable}={text}: {said}");
        }
        let rule = config(&[], &[name, ("ENMESH_ENVOY_USER", "root")]);
        assert!(!rule.host_ok);
        assert_eq!(rule.errors[0].place.as_ref().unwrap().file, PathBuf::from("ENMESH_ENVOY_USER"));
    }

    #[test]
    fn a_half_of_the_outbound_ports_can_be_given_to_inbound_ones() {
        let ports = |inbound: &str| {
            let config = config(&[], &[("ENMESH_PORTS_INBOUND", inbound)]);
            assert_eq!(config.errors, [], "{inbound}");
            config.host.ports.outbound.to_string()
        };
        assert_eq!(ports("15050-15099"), "15001-15049");
        assert_eq!(ports("15001-15010"), "15050-15099");
        assert_eq!(ports("16000-16010"), "15001-15099");
        let (said, code) = only_error(&[("ENMESH_PORTS_INBOUND", "15040-15060")]);
        assert!(code == "ENM-C050" && said.contains("overlap"), "{said}");
    }

    #[test]
    fn a_service_without_a_name_is_none() {
        let (said, code) = only_error(&[("ENMESH_SERVICE_PORT", "8080")]);
        assert_eq!(code, "ENM-C110");
        assert!(said.contains("ENMESH_SERVICE_PORT"), "{said}");
        assert!(config(&[], &[]).errors.is_empty());
    }

    #[test]
    fn a_variable_that_is_none_is_warned_of_with_the_one_that_was_meant() {
        let names = ["ENMESH_SERVCE_PORT", "ENMESH_LOG", "PATH", "ENMESH_SERVICE_PORT"].map(str::to_owned);
        let [warning] = unknown(names.into_iter()).try_into().unwrap();
        assert_eq!(warning.code, "ENM-C111");
        assert!(
            warning.message.contains("ENMESH_SERVCE_PORT") && warning.hint.contains("ENMESH_SERVICE_PORT")
        );
    }
}
