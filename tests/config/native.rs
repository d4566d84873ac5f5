//! Native service files.

use enmesh::config::value::{PortSpec, Scope, UserSpec};
use enmesh::config::{Inbound, load_path};

use super::{Tree, only, service_errors};

#[test]
fn two_lines_are_a_service() {
    let tree = Tree::new();
    let config = tree.service("api.toml", "name = \"api\"\nport = 8080\n").load();
    assert_eq!(config.errors, []);
    assert_eq!(config.warnings, []);
    let api = &config.services[0];
    assert_eq!((api.id().as_str(), api.port.unwrap().get(), api.enabled), ("api", 8080, true));
    assert_eq!(api.capture.inbound, Inbound::Service);
    assert_eq!(api.capture.bypass.inbound_ports, ["22".parse().unwrap()]);
    assert_eq!(api.source, tree.path("etc/enmesh/services/api.toml"));
    assert_eq!(config.sources, [tree.path("etc/enmesh/services/api.toml")]);
}

#[test]
fn both_formats_say_the_same() {
    let tree = Tree::new();
    let toml = "name = 'web'\n[capture]\nscope = 'user:1000'\n[capture.bypass]\nuids = ['ops', 7]\noutbound_ports = [25, '8000-8100', 'ldap']\n";
    let json = r#"{"name": "web", "capture": {"scope": "user:1000", "bypass": {"uids": ["ops", 7], "outbound_ports": [25, "8000-8100", "ldap"]}}}"#;
    tree.write("a/web.toml", toml).write("b/web.json", json);
    let mut left = load_path(&tree.path("a/web.toml"));
    let mut right = load_path(&tree.path("b/web.json"));
    assert_eq!((&left.errors, &right.errors), (&vec![], &vec![]));
    left.services[0].source = right.services[0].source.clone();
    assert_eq!(left.services, right.services);
    let service = right.services.remove(0);
    assert_eq!(service.capture.scope, Scope::User(UserSpec::Uid(1000)));
    assert_eq!(service.capture.bypass.outbound_ports[2], PortSpec::Name("ldap".into()));
}

#[test]
fn an_error_names_line_and_column_in_both_formats() {
    let cases: [(&str, &str, &str, usize, usize); 14] = [
        ("a.toml", "name = 'a'\nprot = 80\n", "ENM-C010", 2, 1),
        ("a.json", "{\n \"name\": \"a\",\n \"prot\": 80}", "ENM-C010", 3, 2),
        ("a.toml", "name = 'a'\nport = 'eighty'\n", "ENM-C011", 2, 8),
        ("a.json", "{\"name\": \"a\",\n\"port\": \"80\"}", "ENM-C011", 2, 9),
        ("a.toml", "name = 'a'\nport = 70000\n", "ENM-C011", 2, 8),
        ("a.toml", "name = 'a'\n[capture]\nscope = 'usr:x'\n", "ENM-C011", 3, 9),
        ("a.toml", "name = 'a'\n[capture]\ninbound = 'any'\n", "ENM-C011", 3, 11),
        ("a.toml", "name = 'a'\n[capture.bypass]\nuids = ['ok', '-x']\n", "ENM-C011", 3, 15),
        ("a.toml", "name = 'ä'\n", "ENM-C011", 1, 8),
        ("a.toml", "meta = { 'ä' = '', name = 'a' }\n", "ENM-C012", 0, 0),
        ("a.toml", "name = 'a'\n[[upstream]]\nname = 'b'\n", "ENM-C012", 2, 1),
        ("a.json", "{\"name\": \"a\",\n \"upstream\": [{\"name\": \"b\"}]}", "ENM-C012", 2, 15),
        ("a.toml", "name = 'a\n", "ENM-C005", 1, 10),
        ("a.json", "{\"name\": \"ä\",\n \"port\": }", "ENM-C005", 2, 10),
    ];
    for (file, text, code, line, column) in cases {
        assert_eq!(only(&service_errors(file, text)), (code, line, column), "{text}");
    }
}

#[test]
fn the_message_has_the_path_and_the_hint_what_was_meant() {
    let errors = service_errors("a.toml", "name = 'a'\n[[check]]\nhttp = 'http://h/'\nintervall = '10s'\n");
    assert_eq!(errors[0].message, "unknown key `check[0].intervall`");
    assert_eq!(errors[0].hint, "did you mean `interval`?");
    let errors = service_errors("a.toml", "name = 'a'\n[capture]\ninbound = 'servce'\n");
    assert!(errors[0].message.contains("did you mean `service`?"), "{}", errors[0].message);
    let errors = service_errors("a.toml", "name = 'a'\n[proxy]\nzzz = 1\n");
    assert_eq!(errors[0].hint, "the keys known here are config");
    let errors = service_errors("a.toml", "name = 'a'\ntags = 'x'\n");
    assert!(errors[0].message.starts_with("`tags`: expected a list"), "{}", errors[0].message);
    let errors = service_errors("a.json", r#"{"name": "a", "port": "80"}"#);
    assert_eq!(errors[0].message, "`port`: expected a port: a number from 1 to 65535, found the text \"80\"");
}

#[test]
fn every_error_of_a_file_names_its_service_when_the_file_does() {
    for text in ["name = 'a'\nx = 1", "id = 'a'\nname = 'b'\nport = 0", "name = 'a'\nport = = 80"] {
        assert_eq!(service_errors("f.toml", text)[0].service.as_deref(), Some("a"), "{text}");
    }
    assert_eq!(service_errors("f.toml", "port = 80")[0].service, None);
}

#[test]
fn rules_between_fields_point_at_the_key() {
    let meta: String = (0..65).map(|i| format!("k{i} = 'v'\n")).collect();
    let cases = [
        ("tags = ['', 'ok']", "ENM-C028", 2, 9),
        ("tags = [\"a\\nb\"]", "ENM-C028", 2, 9),
        ("weights = { passing = 0, warning = 1 }", "ENM-C029", 2, 13),
        ("locality = { region = '' }", "ENM-C028", 2, 14),
        ("meta = { consul-x = 'v' }", "ENM-C027", 2, 10),
        ("meta = { 'a b' = 'v' }", "ENM-C027", 2, 10),
        (&format!("meta.long = '{}'", "x".repeat(513)), "ENM-C027", 2, 6),
        (&format!("meta.{} = ''", "k".repeat(129)), "ENM-C027", 2, 6),
        (&format!("[meta]\n{meta}"), "ENM-C027", 2, 2),
        ("capture.inbound = 'all'", "ENM-C030", 2, 9),
        ("capture.unit = 'app.service'", "ENM-C100", 2, 9),
        ("capture.unit = 'app'", "ENM-C011", 2, 16),
        ("capture.unit = '../app.service'", "ENM-C011", 2, 16),
        ("[[check]]\ninterval = '1s'", "ENM-C020", 2, 1),
        ("[[check]]\nhttp = 'http://h/'\ntcp = 'h:1'\ninterval = '1s'", "ENM-C020", 2, 1),
        ("[[check]]\nhttp = 'http://h/'", "ENM-C021", 2, 1),
        ("[[check]]\nttl = '1s'\ninterval = '1s'", "ENM-C021", 4, 1),
        ("[[check]]\nttl = '1s'\ntimeout = '1s'", "ENM-C021", 4, 1),
        ("[[check]]\nttl = '0s'", "ENM-C021", 3, 1),
        ("[[check]]\ntcp = 'h:1'\ninterval = '3 years'", "ENM-C021", 4, 1),
        ("[[check]]\nttl = '1s'\nudp = 'h:1'", "ENM-C020", 2, 1),
        ("[[check]]\nudp = 'h'\ninterval = '1s'", "ENM-C022", 3, 1),
        ("[[check]]\nalias_service = 'db'\ninterval = '1s'", "ENM-C021", 4, 1),
        ("[[check]]\nttl = '1s'\nderegister_critical_service_after = '10s'", "ENM-C021", 4, 1),
        ("[[check]]\ntcp = 'h:1'\ninterval = '1s'\nmethod = 'GET'", "ENM-C028", 5, 1),
        ("[[check]]\nhttp = 'http://h/'\ninterval = '1s'\nmethod = 'G T'", "ENM-C028", 5, 1),
        ("[[check]]\nhttp = 'http://h/'\ninterval = '1s'\nheader = { 'a b' = ['c'] }", "ENM-C028", 5, 1),
        ("[[check]]\nttl = '1s'\ntls_skip_verify = true", "ENM-C028", 4, 1),
        (
            "[[upstream]]\nname = 'b'\nlocal_port = 1\n[[upstream]]\nname = 'c'\nlocal_port = 1",
            "ENM-C023",
            7,
            1,
        ),
        ("port = 1\n[[upstream]]\nname = 'b'\nlocal_port = 1", "ENM-C024", 5, 1),
        ("[[upstream]]\nname = 'b'\nlocal_port = 1\npeer = 'p'\ndatacenter = 'd'", "ENM-C025", 5, 1),
        (
            "[[upstream]]\nname = 'b'\nlocal_port = 1\n[[upstream]]\nname = 'b'\nlocal_port = 2",
            "ENM-C026",
            6,
            1,
        ),
    ];
    for (text, code, line, column) in cases {
        let errors = service_errors("a.toml", format!("name = 'a'\n{text}\n"));
        assert_eq!(only(&errors), (code, line, column), "{text}");
        assert_eq!(errors[0].service.as_deref(), Some("a"));
    }
}

#[test]
fn a_port_that_is_bypassed_by_default_is_said() {
    let warned = |text: &str| {
        let tree = Tree::new();
        let config = tree.service("a.toml", format!("name = 'a'\n{text}\n")).load();
        assert_eq!(config.errors, []);
        config.warnings.iter().map(|w| (w.code, w.place.as_ref().unwrap().line)).collect::<Vec<_>>()
    };
    assert_eq!(warned("port = 22"), [("ENM-C087", 2)]);
    assert_eq!(warned("port = 80\ncapture.bypass.inbound_ports = ['22-90']"), [("ENM-C087", 2)]);
    assert_eq!(warned("port = 80"), []);
    assert_eq!(warned("port = 22\ncapture.inbound = 'none'"), []);
    assert_eq!(warned("port = 22\ncapture.mode = 'direct'"), []);
}

#[test]
fn check_targets() {
    let errors =
        |line: &str| service_errors("a.toml", format!("name = 'a'\n[[check]]\ninterval = '1s'\n{line}\n"));
    for good in [
        "http = 'http://127.0.0.1:8080/health?x=1'",
        "http = 'https://[::1]/'",
        "tcp = 'localhost:80'",
        "tcp = '[::1]:80'",
        "grpc = '127.0.0.1:50051/my.Service'",
        "exec = ['/usr/bin/test', '-e', '/run/ok']",
    ] {
        assert_eq!(errors(good), [], "{good}");
    }
    for bad in [
        "http = '127.0.0.1:8080/health'",
        "http = '/health'",
        "http = 'http://'",
        "http = 'http://h:99999/'",
        "http = 'http://h:/'",
        "http = 'http://user:secret@h/'",
        "http = 'ftp://h/'",
        "http = 'http://a b/'",
        "tcp = 'localhost'",
        "tcp = ':80'",
        "tcp = '::1:80'",
        "tcp = 'h:0'",
        "grpc = 'h'",
        "grpc = 'h:1/a b'",
        "exec = []",
        "exec = ['test']",
        "exec = ['/usr/bin/']",
    ] {
        assert_eq!(only(&errors(bad)).0, "ENM-C022", "{bad}");
    }
}

#[test]
fn addresses_that_cannot_be_advertised() {
    for bad in ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "10.0.0.300", "10.0.0", "a b", ""] {
        let errors = service_errors("a.toml", format!("name = 'a'\naddress = '{bad}'\n"));
        assert_eq!(only(&errors), ("ENM-C011", 2, 11), "{bad}");
    }
}

#[test]
fn the_later_file_is_the_one_in_error() {
    let tree = Tree::new();
    tree.service("1.toml", "name = 'a'\n").service("2.json", r#"{"name": "b", "id": "a"}"#);
    tree.service("3.toml", "name = 'c'\ncapture.scope = 'user:app'");
    tree.service("4.toml", "name = 'd'\ncapture.scope = 'host'\n");
    tree.service("5.toml", "name = 'e'\ncapture.scope = 'user:app'\n");
    tree.service("6.toml", "name = 'f'\nenabled = false\n");
    tree.service("7.toml", "name = 'g'\ncapture.mode = 'direct'\n");
    tree.service("8.toml", "name = 'h'\n");
    let config = tree.load();
    let said: Vec<_> = config
        .errors
        .iter()
        .map(|fault| {
            let place = fault.place.as_ref().unwrap();
            let file = place.file.file_name().unwrap().to_str().unwrap();
            (file, place.line, place.column, fault.code, fault.service.as_deref().unwrap())
        })
        .collect();
    let expected = [
        ("2.json", 1, 15, "ENM-C040", "a"),
        ("4.toml", 2, 9, "ENM-C041", "d"),
        ("5.toml", 2, 9, "ENM-C041", "e"),
        ("8.toml", 1, 1, "ENM-C041", "h"),
    ];
    assert_eq!(said, expected);
    assert!(config.errors[0].message.contains("1.toml") && config.errors[1].message.contains("service a"));
    let ids: Vec<String> = config.services.iter().map(|service| service.id().to_string()).collect();
    assert_eq!(ids, ["a", "c", "f", "g"]);
}

#[test]
fn one_bad_file_takes_nothing_from_the_others() {
    let tree = Tree::new();
    tree.service("a.toml", "name = ").service("b.toml", "name = 'b'\n").service("c.json", "[]");
    let config = tree.load();
    assert_eq!(config.services.len(), 1);
    assert_eq!(config.errors.len(), 2);
    assert_eq!(config.sources.len(), 3);
    assert!(config.host_ok);
}

#[test]
fn files_with_other_endings_are_not_read_and_that_is_said() {
    let tree = Tree::new();
    tree.service("a.yaml", "x").service("b.toml~", "x").service(".c.toml", "x").service("README", "x");
    let config = tree.load();
    assert_eq!(config.errors, []);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert_eq!(config.warnings[0].code, "ENM-C084");
}

#[test]
fn check_takes_files_folders_and_trees() {
    let tree = Tree::new();
    tree.service("a.toml", "name = 'a'\n").write("etc/enmesh/enmesh.toml", "driver = 'iptables'\n");
    tree.write("loose/x.toml", "name = 'x'\n")
        .write("loose/y.json", r#"{"name": "y", "capture": {"scope": "user:y"}}"#);
    tree.write("loose-host.toml", "driver = 'nftables'\n").write("empty/.keep", "").write("what.txt", "x");
    let seen = |path: &str| {
        let config = load_path(&tree.path(path));
        let codes: Vec<_> = config.errors.iter().map(|e| e.code).collect();
        (config.services.len(), format!("{:?}", config.host.driver), codes)
    };
    assert_eq!(seen(""), (1, "Iptables".into(), vec![]));
    assert_eq!(seen("etc/enmesh"), (1, "Iptables".into(), vec![]));
    assert_eq!(seen("etc/enmesh/enmesh.toml"), (0, "Iptables".into(), vec![]));
    assert_eq!(seen("loose-host.toml"), (0, "Nftables".into(), vec![]));
    assert_eq!(seen("loose"), (2, "Auto".into(), vec![]));
    assert_eq!(seen("loose/x.toml"), (1, "Auto".into(), vec![]));
    assert_eq!(seen("empty"), (0, "Auto".into(), vec!["ENM-C008"]));
    assert_eq!(seen("none"), (0, "Auto".into(), vec!["ENM-C008"]));
    assert_eq!(seen("what.txt"), (0, "Auto".into(), vec!["ENM-C084"]));
}
