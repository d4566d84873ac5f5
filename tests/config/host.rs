//! The host file, its drop-ins, and the environment.

use std::collections::BTreeMap;

use enmesh::base::Root;
use enmesh::config::{Config, ControlPlane, Driver, HostConfig, load};

use super::{Tree, only};

#[test]
fn no_file_means_the_defaults() {
    let config = Tree::new().load();
    assert!(config.host_ok && config.errors.is_empty() && config.sources.is_empty());
    assert_eq!(config.host, HostConfig::default());
}

#[test]
fn drop_ins_merge_table_by_table_in_the_order_of_their_names() {
    let tree = Tree::new();
    tree.write("etc/enmesh/enmesh.toml", "driver = 'nftables'\n[ports]\noutbound = '16000-16010'\n");
    tree.write("etc/enmesh/enmesh.d/20.toml", "driver = 'iptables'\n[ports]\ninbound = '22000-22010'\n");
    tree.write("etc/enmesh/enmesh.d/10.toml", "driver = 'auto'\ncontrol_plane = 'catalog'\n");
    let config = tree.load();
    assert_eq!(config.errors, []);
    assert_eq!(config.host.driver, Driver::Iptables);
    assert_eq!(config.host.control_plane, ControlPlane::Catalog);
    assert_eq!(config.host.ports.outbound.to_string(), "16000-16010");
    assert_eq!(config.host.ports.inbound.to_string(), "22000-22010");
}

#[test]
fn a_drop_in_alone_is_enough() {
    let tree = Tree::new();
    let config = tree.write("etc/enmesh/enmesh.d/10.toml", "driver = 'iptables'\n").load();
    assert_eq!((config.host.driver, config.host_ok), (Driver::Iptables, true));
}

#[test]
fn a_bad_host_file_is_never_taken_for_the_defaults() {
    let cases = [
        ("drvier = 'auto'", "ENM-C010", 1, 1),
        ("driver = 'nft'", "ENM-C011", 1, 10),
        ("driver = ", "ENM-C005", 1, 10),
        ("virtual_ips = '240.0.0.1/4'", "ENM-C050", 1, 1),
        ("virtual_ips = 'fd00::/8'", "ENM-C011", 1, 15),
        ("[ports]\ninbound = '15050-15060'", "ENM-C050", 2, 1),
        ("[ports]\ninbound = '9-1'", "ENM-C011", 2, 11),
        ("[dns]\nlisten = '0.0.0.0:53'", "ENM-C050", 2, 1),
        ("[dns]\nlisten = '127.0.0.1:0'", "ENM-C050", 2, 1),
        ("[namespaces]\npool = '198.18.0.1/16'", "ENM-C050", 2, 1),
        ("[namespaces]\npool = '10.0.0.0/31'", "ENM-C050", 2, 1),
        ("[namespaces]\npool = '240.1.0.0/16'", "ENM-C050", 2, 1),
        ("[envoy]\nuser = 'root'", "ENM-C050", 2, 1),
        ("[envoy]\nuser = 0", "ENM-C050", 2, 1),
        ("[envoy]\npath = 'bin/envoy'", "ENM-C050", 2, 1),
        ("[static]\npeers = 'peers.toml'", "ENM-C050", 2, 1),
        ("[static]\nleaf_ttl = '1s'", "ENM-C050", 2, 1),
        ("[consul]\naddress = '127.0.0.1:8500'", "ENM-C050", 2, 1),
        ("[consul]\naddress = 'unix://'", "ENM-C050", 2, 1),
        ("[consul]\ntoken_file = 'token'", "ENM-C050", 2, 1),
        ("[consul]\ncert_file = '/a.pem'", "ENM-C050", 2, 1),
        ("[consul]\nca_path = 'cas'", "ENM-C050", 2, 1),
        ("[consul]\nca_file = '/a.pem'\nca_path = '/cas'", "ENM-C050", 3, 1),
        ("[consul]\ngrpc_address = '127.0.0.1:8502'", "ENM-C050", 2, 1),
        ("[consul]\ngrpc_ca_file = 'ca.pem'", "ENM-C050", 2, 1),
        ("[consul]\ntls_server_name = 'a b'", "ENM-C050", 2, 1),
        ("[consul]\ndns = '127.0.0.1:0'", "ENM-C050", 2, 1),
        ("[consul]\ndns = '0.0.0.0:53'", "ENM-C050", 2, 1),
        ("[consul]\nnode = 'a/b'", "ENM-C050", 2, 1),
        ("[consul]\nnode = '-a'", "ENM-C050", 2, 1),
        ("[consul]\nnamespace = 'a/b'", "ENM-C011", 2, 13),
        ("[consul]\nconfig_entries = 'entries'", "ENM-C050", 2, 1),
        ("[consul.login]\nmethod = 'a b'\nbearer_token_file = '/j'", "ENM-C050", 2, 1),
        ("[consul.login]\nmethod = 'm'\nbearer_token_file = 'j'", "ENM-C050", 3, 1),
        ("[consul.login]\nmethod = 'm'", "ENM-C050", 1, 9),
        ("[consul.login]\nbearer_token_file = '/j'", "ENM-C012", 1, 1),
        (
            "[consul]\nlogin = { method = 'm', bearer_token_file = '/j', identity = { resource = 'r' } }",
            "ENM-C050",
            2,
            1,
        ),
        ("[consul.login]\nmethod = 'm'\nidentity = { resource = '' }", "ENM-C050", 3, 14),
        ("[platform]\ngroup = 'api'", "ENM-C050", 2, 1),
        ("[platform]\nlease = '1s'", "ENM-C050", 2, 1),
        ("[platform]\nmanagement_url = 'management'", "ENM-C050", 2, 1),
        ("[reap]\nscopes = ['/x']", "ENM-C050", 2, 1),
        ("[reap]\nmax_share = 101", "ENM-C050", 2, 1),
        ("[address]\nip = '127.0.0.1'", "ENM-C050", 2, 1),
        ("[address]\nname = 'a b'", "ENM-C050", 2, 1),
        ("[address]\nsources = ['guess']", "ENM-C011", 2, 12),
        ("[address]\nrecheck = '0s'", "ENM-C050", 2, 1),
        ("[consul]\ntoken_file = '/t'\nlogin = { method = 'm', bearer_token_file = '/j' }", "ENM-C050", 3, 1),
    ];
    for (text, code, line, column) in cases {
        let tree = Tree::new();
        tree.service("a.toml", "name = 'a'\n");
        let config = tree.write("etc/enmesh/enmesh.toml", text).load();
        assert_eq!(only(&config.errors), (code, line, column), "{text}");
        assert!(!config.host_ok, "{text}");
        assert_eq!(config.services.len(), 1, "services are unaffected");
    }
}

#[test]
fn a_slip_in_a_drop_in_is_said_of_the_drop_in() {
    let tree = Tree::new();
    tree.write("etc/enmesh/enmesh.toml", "driver = 'auto'\n")
        .write("etc/enmesh/enmesh.d/x.toml", "\ndriver = 3\n");
    let config = tree.load();
    assert_eq!(only(&config.errors), ("ENM-C011", 2, 10));
    assert!(config.errors[0].place.as_ref().unwrap().file.ends_with("enmesh.d/x.toml"));
    assert!(!config.host_ok);
}

fn with_environment(file: &str, variables: &[(&str, &str)]) -> Config {
    let tree = Tree::new();
    tree.write("etc/enmesh/enmesh.toml", file);
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    load(&Root::new(tree.path("")), &|name| variables.get(name).map(|value| (*value).to_owned()))
}

#[test]
fn the_environment_fills_what_is_not_set() {
    let variables = [
        ("CONSUL_HTTP_ADDR", "10.0.0.1:8501"),
        ("CONSUL_HTTP_SSL", "true"),
        ("CONSUL_HTTP_TOKEN_FILE", "/token"),
        ("CONSUL_CACERT", "/ca.pem"),
        ("CONSUL_CLIENT_CERT", "/cert.pem"),
        ("CONSUL_CLIENT_KEY", "/key.pem"),
        ("CONSUL_PARTITION", "p1"),
        ("CONSUL_NAMESPACE", "n1"),
        ("CONSUL_TLS_SERVER_NAME", "server.dc1.consul"),
        ("CONSUL_HTTP_SSL_VERIFY", "true"),
        ("CONSUL_GRPC_ADDR", "10.0.0.1:8503"),
        ("CONSUL_GRPC_CACERT", "/grpc.pem"),
        ("CONSUL_CAPATH", "/cas"),
    ];
    let config = with_environment("[consul]\nca_file = '/own.pem'\n", &variables);
    assert_eq!(config.errors, []);
    let consul = &config.host.consul;
    assert_eq!(consul.address.as_deref(), Some("https://10.0.0.1:8501"));
    assert_eq!(consul.token_file.as_deref(), Some("/token".as_ref()));
    assert_eq!(consul.ca_file.as_deref(), Some("/own.pem".as_ref()), "the file wins");
    assert_eq!(consul.key_file.as_deref(), Some("/key.pem".as_ref()));
    assert_eq!(consul.partition.as_ref().unwrap().as_str(), "p1");
    assert_eq!(consul.namespace.as_ref().unwrap().as_str(), "n1");
    assert_eq!(consul.tls_server_name.as_deref(), Some("server.dc1.consul"));
    assert_eq!(consul.grpc_address.as_deref(), Some("https://10.0.0.1:8503"), "as the API");
    assert_eq!(consul.grpc_ca_file.as_deref(), Some("/grpc.pem".as_ref()));
    assert_eq!(consul.ca_path, None, "a file wins over a folder");
    for (value, address) in
        [("127.0.0.1:8500", "http://127.0.0.1:8500"), ("unix:///run/c.sock", "unix:///run/c.sock")]
    {
        let config = with_environment("", &[("CONSUL_HTTP_ADDR", value)]);
        assert_eq!(config.host.consul.address.as_deref(), Some(address));
    }
    let own = "[consul]\ncert_file = '/a'\nkey_file = '/b'\n";
    let config = with_environment(own, &[("CONSUL_CLIENT_KEY", "/key.pem")]);
    assert_eq!(config.host.consul.key_file.as_deref(), Some("/b".as_ref()));
}

#[test]
fn a_bad_variable_is_an_error_of_the_host() {
    for (name, value) in [
        ("CONSUL_HTTP_ADDR", "not an address"),
        ("CONSUL_CACERT", "relative.pem"),
        ("CONSUL_CLIENT_CERT", "/only-half.pem"),
        ("CONSUL_PARTITION", "a b"),
        ("CONSUL_NAMESPACE", "a b"),
        ("CONSUL_TLS_SERVER_NAME", "a b"),
        ("CONSUL_GRPC_ADDR", "not an address"),
        ("CONSUL_GRPC_CACERT", "relative.pem"),
        ("CONSUL_CAPATH", "relative"),
    ] {
        let config = with_environment("", &[(name, value)]);
        assert_eq!(config.errors.len(), 1, "{name}");
        assert_eq!((config.errors[0].code, &config.errors[0].place), ("ENM-C051", &None));
        assert!(!config.host_ok);
    }
    let config = with_environment("", &[("CONSUL_HTTP_TOKEN", "s.ecret")]);
    assert!(config.errors.is_empty() && config.host_ok);
    assert_eq!(config.warnings[0].code, "ENM-C086");
    assert!(!format!("{:?}", config.warnings).contains("s.ecret"));
}

#[test]
fn certificates_are_verified_whatever_the_environment_says() {
    let off = ("CONSUL_HTTP_SSL_VERIFY", "false");
    let config = with_environment("", &[off, ("CONSUL_HTTP_ADDR", "https://10.0.0.1:8501")]);
    assert_eq!((config.errors.len(), config.errors[0].code, config.host_ok), (1, "ENM-C051", false));
    assert!(config.errors[0].message.contains("CONSUL_CACERT"), "{}", config.errors[0].message);
    // Without TLS there is nothing to verify.
    assert!(with_environment("", &[off]).host_ok);
}

#[test]
fn the_file_s_login_is_not_put_aside_by_a_token_of_the_environment() {
    let login = "[consul.login]\nmethod = 'vm'\nbearer_token_file = '/jwt'\nmeta = { host = 'a' }\n";
    let variables = [("CONSUL_HTTP_TOKEN_FILE", "/token"), ("CONSUL_HTTP_TOKEN", "s.ecret")];
    let config = with_environment(login, &variables);
    assert!(config.errors.is_empty() && config.warnings.is_empty(), "{:?}", config.errors);
    assert_eq!(config.host.consul.token_file, None);
    assert_eq!(config.host.consul.login.as_ref().unwrap().meta["host"], "a");
    let config = with_environment("", &[("CONSUL_CAPATH", "/cas"), ("CONSUL_GRPC_ADDR", "unix:///x.sock")]);
    assert_eq!(config.host.consul.ca_path.as_deref(), Some("/cas".as_ref()));
    assert_eq!(config.host.consul.grpc_address.as_deref(), Some("unix:///x.sock"));
    let config = with_environment("[consul]\nca_path = '/own'\n", &[("CONSUL_CACERT", "/ca.pem")]);
    assert_eq!((config.host.consul.ca_file.is_none(), config.host_ok), (true, true));
}
