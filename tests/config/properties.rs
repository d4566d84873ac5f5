//! Nothing that somebody can write brings the program down, and what is written is what is read.

use std::fmt::{Debug, Display};
use std::fs;
use std::str::FromStr;

use enmesh::config::value::*;
use enmesh::config::{
    Capture, Check, Config, Inbound, Locality, Mode, OnProxyFailure, ProxyConfig, ServiceConfig, Upstream,
    Weights, load_path,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

fn load_text(file: &str, bytes: &[u8]) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    fs::write(&path, bytes).unwrap();
    load_path(&path)
}

/// A value that parses prints as text that parses to the same.
fn stable<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>().ok();
        assert_eq!(again, Some(value), "{text:?}");
    }
}

fn every_type(text: &str) {
    stable::<ServiceName>(text);
    stable::<ServiceId>(text);
    stable::<Port>(text);
    stable::<PortRange>(text);
    stable::<PortSpec>(text);
    stable::<UserSpec>(text);
    stable::<Cidr>(text);
    stable::<InterfaceName>(text);
    stable::<AddressSpec>(text);
    stable::<Scope>(text);
    stable::<Span>(text);
}

/// Pieces of real files, in any order.
fn shreds() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("name = 'a'\n"),
        Just("[capture]\n"),
        Just("[[check]]\n"),
        Just("[[upstream]]\n"),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("\"annotations\""),
        Just("\"consul.hashicorp.com/connect-service\""),
        Just(":"),
        Just(","),
        Just("="),
        Just("\"name\""),
        Just("\"web\""),
        Just("80"),
        Just("-1"),
        Just("1e400"),
        Just("'''"),
        Just("\"\\u0000\""),
        Just("\n"),
        Just("."),
        Just("\"\\ud800\""),
        Just("true"),
        Just("null"),
        Just("é"),
        Just("1979-05-27"),
        Just("#"),
        Just("\r"),
        Just("\"a,b:1:2\""),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn name() -> impl Strategy<Value = ServiceName> {
    "[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
}

fn port() -> impl Strategy<Value = Port> {
    (1..=u16::MAX).prop_map(|number| Port::new(number).unwrap())
}

fn port_spec() -> impl Strategy<Value = PortSpec> {
    prop_oneof![
        port().prop_map(|p| PortSpec::Range(PortRange::single(p))),
        (port(), port()).prop_map(|(a, b)| PortSpec::Range(PortRange { first: a.min(b), last: a.max(b) })),
        "[a-z][a-z0-9-]{0,14}".prop_map(|text| text.parse().unwrap()),
    ]
}

fn user() -> impl Strategy<Value = UserSpec> {
    prop_oneof![(0..u32::MAX).prop_map(UserSpec::Uid), "[a-z_][a-z0-9_-]{0,30}".prop_map(UserSpec::Name)]
}

fn span() -> impl Strategy<Value = Span> {
    (1..86_400_000_000u64).prop_map(|micros| Span(std::time::Duration::from_micros(micros)))
}

fn check() -> impl Strategy<Value = Check> {
    (0..5usize, span(), option::of(span()), option::of("[A-Za-z ]{1,10}x")).prop_map(
        |(kind, span, timeout, name)| {
            let text = |wanted: usize, text: &str| (kind == wanted).then(|| text.to_owned());
            Check {
                id: None,
                name,
                http: text(0, "http://127.0.0.1:80/x"),
                tcp: text(1, "[::1]:80"),
                grpc: text(2, "h:80/s"),
                exec: (kind == 3).then(|| vec!["/bin/x".to_owned(), "a\nb\"\\".to_owned()]),
                ttl: (kind == 4).then_some(span),
                interval: (kind != 4).then_some(span),
                timeout: timeout.filter(|_| kind != 4),
                header: (kind == 0).then(|| ("x-a".to_owned(), vec!["b".to_owned()])).into_iter().collect(),
                tls_skip_verify: kind == 2,
                failures_before_critical: (kind == 1).then_some(3),
                ..Check::default()
            }
        },
    )
}

fn capture() -> impl Strategy<Value = Capture> {
    let scope = prop_oneof![
        Just(Scope::Host),
        user().prop_map(Scope::User),
        "[a-z]{1,9}@?[a-z]{1,5}\\.service".prop_map(Scope::Unit),
        "[a-z][a-z0-9_.-]{0,20}".prop_map(Scope::Netns),
    ];
    let failure =
        prop_oneof![Just(OnProxyFailure::Closed), Just(OnProxyFailure::Sealed), Just(OnProxyFailure::Open)];
    let cidr = (any::<std::net::IpAddr>(), 0..=32u8)
        .prop_map(|(ip, prefix)| format!("{ip}/{prefix}").parse::<Cidr>().unwrap());
    let lists = (vec(user(), 0..4), vec(port_spec(), 0..4), vec(cidr, 0..4), vec(port_spec(), 0..4));
    (scope, any::<bool>(), any::<bool>(), failure, lists).prop_map(
        |(scope, inbound, direct, failure, lists)| {
            let mut capture = Capture { scope, on_proxy_failure: failure, ..Capture::default() };
            capture.inbound = if inbound { Inbound::Service } else { Inbound::None };
            capture.mode = if direct { Mode::Direct } else { Mode::Transparent };
            let bypass = &mut capture.bypass;
            (bypass.uids, bypass.outbound_ports, bypass.outbound_cidrs, bypass.inbound_ports) = lists;
            capture
        },
    )
}

fn opaque() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (-1e9..1e9f64).prop_map(Into::into),
        "[ -~\n\té€]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
            btree_map("[ -~é]{0,8}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn service() -> impl Strategy<Value = ServiceConfig> {
    let identity =
        (name(), option::of("[a-z0-9][a-z0-9._-]{0,30}"), option::of(1000..u16::MAX), option::of(name()));
    let words = (vec("[!-~é]{1,12}", 0..4), btree_map("[a-bd-zA-Z0-9_-]{1,20}", "[ -~é]{0,30}", 0..4));
    let extras = (option::of((1..100u32, 0..100u32)), option::of(("[a-z]{1,8}", option::of("[a-z]{1,8}"))));
    let upstreams = btree_map(1..1000u16, (name(), option::of(name()), any::<bool>()), 0..4);
    let config = btree_map("[ -~é]{0,12}", opaque(), 0..4);
    (identity, words, extras, capture(), vec(check(), 0..3), upstreams, config, any::<bool>()).prop_map(
        |(
            (name, id, port, namespace),
            (tags, meta),
            (weights, locality),
            capture,
            checks,
            upstreams,
            config,
            enabled,
        )| {
            ServiceConfig {
                id: id.map(|id| id.parse().unwrap()),
                port: port.and_then(Port::new),
                address: "10.1.2.3".parse().unwrap(),
                tags,
                meta,
                weights: weights.map(|(passing, warning)| Weights { passing, warning }),
                locality: locality.map(|(region, zone)| Locality { region, zone }),
                namespace,
                partition: None,
                datacenter: None,
                enabled,
                capture,
                checks,
                upstreams: upstreams
                    .into_iter()
                    .map(|(port, (name, other, peer))| Upstream {
                        // A name of its own for each, so that no two are the same.
                        name: format!("u{port}-{name}").parse().unwrap(),
                        local_port: Port::new(port).unwrap(),
                        datacenter: other.clone().filter(|_| !peer),
                        peer: other.filter(|_| peer),
                        namespace: None,
                        partition: None,
                        prepared_query: false,
                    })
                    .collect(),
                proxy: ProxyConfig { config: config.into_iter().collect() },
                legacy: None,
                source: std::path::PathBuf::new(),
                name,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_of_any_text(text in any::<String>(), near in "(user:|unit:|netns:|)[0-9a-z./:@-]{0,12}(s|ms|h|-80|.service|)") {
        every_type(&text);
        every_type(&near);
    }

    #[test]
    fn spans_round_trip(nanos in 0..=100 * 365 * 24 * 3600 * 1_000_000_000u128) {
        let span = Span(std::time::Duration::from_nanos(u64::try_from(nanos).unwrap()));
        prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
    }

    #[test]
    fn files_of_any_bytes(bytes in vec(any::<u8>(), 0..300), text in any::<String>(), shreds in shreds()) {
        for file in ["x.toml", "x.json", "enmesh.toml", "service-config.json"] {
            for content in [bytes.as_slice(), text.as_bytes(), shreds.as_bytes()] {
                let config = load_text(file, content);
                prop_assert!(config.errors.iter().all(|e| e.code.starts_with("ENM-C") && !e.hint.is_empty()));
            }
        }
    }

    #[test]
    fn our_json_is_serde_json(value in opaque(), pretty in any::<bool>()) {
        let file = serde_json::json!({ "name": "a", "proxy": { "config": { "x": value } } });
        let text = if pretty { serde_json::to_string_pretty(&file) } else { serde_json::to_string(&file) }.unwrap();
        let config = load_text("a.json", text.as_bytes());
        prop_assert_eq!(&config.errors, &vec![]);
        prop_assert_eq!(&config.services[0].proxy.config["x"], &file["proxy"]["config"]["x"]);
    }

    #[test]
    fn what_is_written_is_what_is_read(service in service()) {
        let toml = toml::to_string(&service).unwrap();
        let json = serde_json::to_string(&service).unwrap();
        for (file, text) in [("a.toml", toml), ("a.json", json)] {
            let mut config = load_text(file, text.as_bytes());
            prop_assert!(config.errors.is_empty(), "{:?}\n{}", config.errors, text);
            let mut read = config.services.remove(0);
            read.source = std::path::PathBuf::new();
            prop_assert_eq!(&read, &service, "{}", text);
        }
    }
}

/// Service files of each form, with places for text of anybody's.
const FORMS: [(&str, &str); 3] = [
    (
        "a.toml",
        "name = \"NAME\"\nport = 8080\n[capture]\nscope = \"user:USER\"\nbypass.uids = [\"USER\"]\n\
         bypass.outbound_ports = [\"PORT\"]\nbypass.inbound_ports = [\"PORT\"]\nbypass.outbound_cidrs = [\"CIDR\"]\n\
         bypass.interfaces = [\"LINK\"]\n",
    ),
    (
        "a.json",
        r#"{"name": "NAME", "port": 8080, "capture": {"scope": "user:USER", "bypass": {"uids": ["USER"], "outbound_ports": ["PORT"], "inbound_ports": ["PORT"], "outbound_cidrs": ["CIDR"], "interfaces": ["LINK"]}}}"#,
    ),
    (
        "service-config.json",
        r#"{"annotations": {"consul.hashicorp.com/connect-service": "NAME", "consul.hashicorp.com/connect-service-port": "8080", "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports": "PORT", "consul.hashicorp.com/transparent-proxy-exclude-outbound-ports": "PORT", "consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs": "CIDR", "consul.hashicorp.com/transparent-proxy-exclude-uids": "USER"}}"#,
    ),
];

/// What a place holds when nothing is bent.
const GOOD: [(&str, &str); 5] =
    [("NAME", "api"), ("USER", "1000"), ("PORT", "3306"), ("CIDR", "10.50.0.0/16"), ("LINK", "br0")];

/// Text that would be something else in a shell, a ruleset or a document, if it were let through.
const COMMANDS: [&str; 20] = [
    "a'b",
    "a\\\"b",
    "a\\nb",
    "a;reboot",
    "$(id)",
    "`id`",
    "a b",
    "a|b",
    "a&b",
    "a>b",
    "a\\u0000b",
    "a}b",
    "a#b",
    "a,accept",
    "-j",
    "--help",
    "../../x",
    "a\\tb",
    "\u{202e}a",
    "1000\\n}\\nflush ruleset",
];

/// What is wrong with a file, and the rules of what it says, all of which a reader of rules takes for one rule each.
fn rules_of(file: &str, text: &str) -> (Config, String) {
    let mut config = load_text(file, text.as_bytes());
    let mut facts = enmesh::plan::HostFacts::default();
    let envoy = enmesh::plan::facts::User { uid: 5995, gid: 5995 };
    facts.users.insert("envoy".to_owned(), envoy);
    let plan = enmesh::plan::plan(&config, &facts);
    config.errors.extend(plan.errors.iter().cloned());
    let live = plan.services.keys().cloned().collect();
    let [v4, v6] = enmesh::redirect::render_iptables(&plan.redirect, &live);
    let all = [enmesh::redirect::render_text(&plan.redirect, &live), v4, v6].concat();
    (config, all)
}

#[test]
fn text_that_would_be_a_command_is_refused_everywhere() {
    for (file, form) in FORMS {
        let filled = |bad: &str, text: &str| {
            GOOD.iter().fold(form.to_owned(), |form, (place, good)| {
                form.replace(place, if *place == bad { text } else { good })
            })
        };
        let (config, rules) = rules_of(file, &filled("", ""));
        assert!(config.errors.is_empty() && rules.contains("3306"), "{:?}\n{rules}", config.errors);
        for (place, _) in GOOD.iter().filter(|(place, _)| form.contains(place)) {
            for text in COMMANDS {
                // A comma parts the lists of annotations, so what is behind it is an item of its own.
                let (config, rules) = rules_of(file, &filled(place, text));
                assert!(!config.errors.is_empty(), "{file}: {text:?} as {place} is let through");
                assert!(
                    config.errors.iter().all(|error| !error.message.contains(char::is_control)),
                    "{:?}",
                    config.errors
                );
                let piece = text.split("\\n").last().unwrap();
                assert!(piece.len() < 6 || !rules.contains(piece), "{file}: {text:?} as {place}\n{rules}");
            }
        }
    }
}

#[test]
fn networks_are_brought_into_one_form() {
    for (text, form) in [
        ("10.50.7.9/16", "10.50.0.0/16"),
        ("::ffff:10.50.7.9/112", "10.50.0.0/16"),
        ("::ffff:10.50.7.9", "10.50.7.9/32"),
        ("fd00::7/8", "fd00::/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ] {
        assert_eq!(text.parse::<Cidr>().unwrap().to_string(), form, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A good file with anything in its places: errors with codes, or rules without a letter that rules do not have.
    #[test]
    fn rules_are_made_of_plain_letters(
        form in 0..FORMS.len(),
        texts in vec(prop_oneof![Just(None), any::<String>().prop_map(Some), "[ -~]{0,12}".prop_map(Some)], GOOD.len()),
    ) {
        let (file, text) = FORMS[form];
        let filled = GOOD.iter().zip(&texts).fold(text.to_owned(), |text, ((place, good), instead)| {
            text.replace(place, instead.as_deref().unwrap_or(good))
        });
        let (config, rules) = rules_of(file, &filled);
        prop_assert!(config.errors.iter().all(|error| error.code.starts_with("ENM-") && !error.hint.is_empty()));
        let plain = |letter: char| letter.is_ascii_graphic() || " \t\n".contains(letter);
        prop_assert!(rules.chars().all(plain), "{}", rules);
        // Nothing ends a rule, a quote or a comment but what is ours.
        prop_assert!(!rules.contains(['`', '$']), "{}", rules);
        prop_assert!(rules.lines().all(|line| line.matches('"').count() % 2 == 0), "{}", rules);
    }
}
