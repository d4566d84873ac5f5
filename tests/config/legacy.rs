//! `/srv/consul/service-config.json`, both forms.

use enmesh::base::Fault;
use enmesh::config::value::{Scope, UserSpec};
use enmesh::config::{Config, Inbound, LegacyForm, Mode};
use serde_json::{Value, json};

use super::{Tree, only};

fn load(file: &Value) -> Config {
    let tree = Tree::new();
    tree.write("srv/consul/service-config.json", serde_json::to_string_pretty(file).unwrap()).load()
}

/// A file with the annotation `connect-service` and these; keys without a prefix get the usual one.
fn annotations(more: Value) -> Config {
    let mut all = json!({"consul.hashicorp.com/connect-service": "web"});
    for (key, value) in more.as_object().unwrap() {
        let key = if key.contains('/') { key.clone() } else { format!("consul.hashicorp.com/{key}") };
        all[key] = value.clone();
    }
    load(&json!({ "annotations": all }))
}

fn codes(faults: &[Fault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.code).collect()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

#[test]
fn the_smallest_annotation_is_transparent_and_leaves_ssh_alone() {
    let config = annotations(json!({}));
    assert_eq!((codes(&config.errors), codes(&config.warnings)), (vec![], vec![]));
    let web = &config.services[0];
    assert_eq!((web.id().as_str(), web.port), ("web", None));
    assert_eq!(web.capture.mode, Mode::Transparent);
    assert_eq!(web.capture.inbound, Inbound::All);
    assert_eq!(web.capture.scope, Scope::Host);
    assert_eq!(texts(&web.capture.bypass.inbound_ports), ["22"]);
    assert_eq!(web.legacy.as_ref().unwrap().form, LegacyForm::Annotations);
}

#[test]
fn every_annotation_has_its_place() {
    let config = annotations(json!({
        "connect-service-port": " 8080 ",
        "connect-service-upstreams": "api:9001, db.ns1:9002:dc2,prepared_query:geo:9003",
        "service-tags": "a, b",
        "service-meta-team": "core",
        "transparent-proxy": true,
        "transparent-proxy-exclude-inbound-ports": "22, 9100",
        "transparent-proxy-exclude-outbound-ports": "25,8000:9000",
        "transparent-proxy-exclude-outbound-cidrs": "10.0.0.1, 192.168.0.0/16",
        "transparent-proxy-exclude-uids": "1000,ops",
        "alpha.consul.hashicorp.com/virtual-ip": "203.0.113.20"
    }));
    assert_eq!((codes(&config.errors), codes(&config.warnings)), (vec![], vec![]));
    let web = &config.services[0];
    assert_eq!(web.port.unwrap().get(), 8080);
    assert_eq!(web.tags, ["a", "b"]);
    assert_eq!(web.meta["team"], "core");
    let bypass = &web.capture.bypass;
    assert_eq!(texts(&bypass.inbound_ports), ["22", "9100"]);
    assert_eq!(texts(&bypass.outbound_ports), ["25", "8000-9000"]);
    assert_eq!(texts(&bypass.outbound_cidrs), ["10.0.0.1/32", "192.168.0.0/16"]);
    assert_eq!(bypass.uids, [UserSpec::Uid(1000), UserSpec::Name("ops".into())]);
    assert_eq!(web.legacy.as_ref().unwrap().virtual_ip, Some("203.0.113.20".parse().unwrap()));
    let [api, db, geo] = web.upstreams.as_slice() else { panic!("{:?}", web.upstreams) };
    assert_eq!((api.name.as_str(), api.local_port.get(), api.prepared_query), ("api", 9001, false));
    assert_eq!(db.namespace.as_ref().unwrap().as_str(), "ns1");
    assert_eq!(db.datacenter.as_ref().unwrap().as_str(), "dc2");
    assert_eq!((geo.name.as_str(), geo.local_port.get(), geo.prepared_query), ("geo", 9003, true));
}

#[test]
fn text_that_says_false_is_false() {
    for (value, mode, warned) in [
        (json!(true), Mode::Transparent, false),
        (json!(false), Mode::Direct, false),
        (json!("true"), Mode::Transparent, true),
        (json!("false"), Mode::Direct, true),
        (json!(" False "), Mode::Direct, true),
    ] {
        let config = annotations(json!({ "transparent-proxy": value }));
        assert_eq!(config.services[0].capture.mode, mode, "{value}");
        assert_eq!(codes(&config.warnings), if warned { vec!["ENM-C082"] } else { vec![] }, "{value}");
    }
    for value in [json!("no"), json!(""), json!(0), json!(null), json!(["true"])] {
        assert_eq!(
            codes(&annotations(json!({ "transparent-proxy": value })).errors),
            ["ENM-C061"],
            "{value}"
        );
    }
}

#[test]
fn a_value_that_cannot_be_read_is_an_error_and_never_dropped() {
    let cases = [
        ("connect-service-port", json!(70000)),
        ("connect-service-port", json!(0)),
        ("connect-service-port", json!("http")),
        ("connect-service-port", json!(80.5)),
        ("connect-service-port", json!([80])),
        ("service-tags", json!("a,,b")),
        ("service-tags", json!("a,")),
        ("service-tags", json!({"a": 1})),
        ("service-meta-team", json!(7)),
        ("transparent-proxy-exclude-inbound-ports", json!("22;reboot")),
        ("transparent-proxy-exclude-inbound-ports", json!("$(reboot)")),
        ("transparent-proxy-exclude-inbound-ports", json!("22,70000")),
        ("transparent-proxy-exclude-inbound-ports", json!(-1)),
        ("transparent-proxy-exclude-outbound-ports", json!("9000:8000")),
        ("transparent-proxy-exclude-outbound-cidrs", json!("10.0.0.0/33")),
        ("transparent-proxy-exclude-outbound-cidrs", json!("example.com")),
        ("transparent-proxy-exclude-uids", json!("0 -j ACCEPT")),
        ("transparent-proxy-exclude-uids", json!("4294967295")),
        ("alpha.consul.hashicorp.com/virtual-ip", json!("0.0.0.0")),
        ("alpha.consul.hashicorp.com/virtual-ip", json!("vip")),
        ("connect-service", json!("web/../../x")),
        ("connect-service", json!(1)),
    ];
    for (key, value) in cases {
        let config = annotations(json!({ key: value }));
        assert_eq!(codes(&config.errors), ["ENM-C061"], "{key} = {value}");
        assert!(config.services.is_empty());
        assert!(config.errors[0].place.as_ref().unwrap().line > 1, "{key}");
        if key != "connect-service" {
            assert_eq!(config.errors[0].service.as_deref(), Some("web"));
        }
    }
    for value in [
        "a:b:c:d",
        "api",
        "api:9001,",
        "a.b.c:80",
        "prepared_query:geo",
        "api:0",
        ":80",
        "api:80:",
        "a:1;b:2",
    ] {
        let config = annotations(json!({ "connect-service-upstreams": value }));
        assert_eq!(config.errors.len(), 1, "{value}");
        assert!(matches!(config.errors[0].code, "ENM-C061" | "ENM-C062"), "{value}");
    }
}

#[test]
fn several_slips_are_said_at_once() {
    let config =
        annotations(json!({ "connect-service-port": "x", "service-tags": "a,,b", "transparent-proxy": 3 }));
    assert_eq!(codes(&config.errors), ["ENM-C061"; 3]);
}

#[test]
fn annotations_that_do_nothing_are_said() {
    let config = annotations(json!({
        "connect-servce-port": 80,
        "prometheus-scrape-path": "/metrics",
        "envoy-extra-args": "-l debug",
        "service-meta-": "x",
        "consul.hashicorp.com/virtual-ip": "10.0.0.1",
        "zzz": 1
    }));
    assert_eq!(config.services.len(), 1);
    let said: Vec<_> = config.warnings.iter().map(|w| (w.code, w.hint.as_str())).collect();
    let hint = |key: &str| format!("did you mean `{key}`?");
    assert!(said.contains(&("ENM-C080", &hint("consul.hashicorp.com/connect-service-port"))), "{said:?}");
    assert!(said.contains(&("ENM-C080", &hint("alpha.consul.hashicorp.com/virtual-ip"))), "{said:?}");
    assert_eq!(said.iter().filter(|(code, _)| *code == "ENM-C081").count(), 2);
    assert_eq!(said.len(), 6);
}

#[test]
fn a_virtual_ip_without_a_port_is_said_to_do_nothing() {
    let config = annotations(json!({ "alpha.consul.hashicorp.com/virtual-ip": "203.0.113.20" }));
    assert_eq!(codes(&config.warnings), ["ENM-C081"]);
    assert_eq!(config.services[0].legacy.as_ref().unwrap().virtual_ip, None);
}

#[test]
fn the_name_is_required_in_both_forms() {
    for file in [json!({"annotations": {}}), json!({"annotations": {"x": 1}}), json!({"port": 80}), json!({})]
    {
        assert_eq!(only(&load(&file).errors), ("ENM-C012", 0, 0), "{file}");
    }
    for file in [json!([]), json!("x"), json!({"annotations": []}), json!({"service": {"name": "x"}})] {
        assert_eq!(only(&load(&file).errors).0, "ENM-C060", "{file}");
    }
}

#[test]
fn rules_between_fields_hold_here_too() {
    let config =
        annotations(json!({ "connect-service-port": 80, "connect-service-upstreams": "a:80,b:81,c:81" }));
    assert_eq!(codes(&config.errors), ["ENM-C024", "ENM-C023"]);
    assert!(config.errors.iter().all(|e| e.place.as_ref().unwrap().line == 5), "{:?}", config.errors);
    let config = annotations(json!({ "service-meta-consul-x": "1" }));
    assert_eq!(codes(&config.errors), ["ENM-C027"]);
}

#[test]
fn plain_fields_pass_through() {
    let config = load(&json!({
        "name": "pay", "id": "pay-1", "port": 9090, "tags": ["v1"], "meta": {"team": "core"}, "address": "10.0.0.9",
        "check": {"http": "http://127.0.0.1:9090/", "interval": "5s"}, "enable_tag_override": true
    }));
    assert_eq!((codes(&config.errors), codes(&config.warnings)), (vec![], vec![]));
    let pay = &config.services[0];
    assert_eq!((pay.id().as_str(), pay.port.unwrap().get()), ("pay-1", 9090));
    assert_eq!((pay.tags.as_slice(), pay.meta["team"].as_str()), (["v1".to_owned()].as_slice(), "core"));
    assert_eq!(pay.address.to_string(), "10.0.0.9");
    assert_eq!((pay.capture.mode, pay.capture.inbound), (Mode::Transparent, Inbound::All));
    let legacy = pay.legacy.as_ref().unwrap();
    assert_eq!(legacy.form, LegacyForm::Plain);
    assert_eq!(legacy.fields["check"]["interval"], "5s");
    assert_eq!(legacy.fields["enable_tag_override"], true);
}

#[test]
fn plain_slips() {
    let warned = |more: Value| {
        let mut file = json!({"name": "pay"});
        file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = load(&file);
        assert_eq!(codes(&config.errors), Vec::<&str>::new(), "{file}");
        let fields = config.services[0].legacy.as_ref().unwrap().fields.clone();
        (codes(&config.warnings).join(","), fields)
    };
    let (codes_said, fields) = warned(json!({"connect": {"native": true}}));
    assert_eq!((codes_said.as_str(), fields.contains_key("connect")), ("ENM-C083", false));
    let (codes_said, fields) = warned(json!({"port": "80"}));
    assert_eq!((codes_said.as_str(), &fields["port"]), ("ENM-C082", &json!(80)));
    let (codes_said, fields) = warned(json!({"tgas": ["x"]}));
    assert_eq!((codes_said.as_str(), &fields["tgas"]), ("ENM-C080", &json!(["x"])));
    let (codes_said, fields) = warned(json!({"address": "db.example.com"}));
    assert_eq!((codes_said.as_str(), &fields["address"]), ("ENM-C081", &json!("db.example.com")));
    assert_eq!(warned(json!({"port": 0, "address": ""})).0, "");

    for (key, value) in [
        ("port", json!(70000)),
        ("port", json!("eighty")),
        ("id", json!("a/b")),
        ("tags", json!("a")),
        ("tags", json!([1])),
        ("meta", json!({"k": 1})),
        ("address", json!("0.0.0.0")),
        ("name", json!(7)),
        ("name", json!("")),
    ] {
        let mut file = json!({"name": "pay"});
        file[key] = value.clone();
        assert_eq!(only(&load(&file).errors).0, "ENM-C011", "{key} = {value}");
    }
}

#[test]
fn a_legacy_service_stands_beside_native_ones() {
    let tree = Tree::new();
    tree.service("web.toml", "name = 'web'\ncapture.scope = 'user:web'\n");
    tree.write("srv/consul/service-config.json", r#"{"name": "pay", "port": 80}"#);
    assert_eq!(tree.load().services.len(), 2);
    tree.service("host.toml", "name = 'h'\n");
    assert_eq!(codes(&tree.load().errors), ["ENM-C041"]);
    tree.service("host.toml", "name = 'pay'\ncapture.scope = 'user:pay'\n");
    assert_eq!(only(&tree.load().errors), ("ENM-C040", 1, 2));
}

#[test]
fn checks_of_the_plain_form_are_read_where_they_can_be() {
    let checks = json!([
        { "id": "own", "name": "app", "http": "http://127.0.0.1:80/", "interval": "10s", "status": "critical" },
        { "check_id": "service:web:2", "args": ["/bin/true", "x"], "interval": "1m", "timeout": "5s" },
        { "args": ["true"], "interval": "10s" },
        { "tcp": "127.0.0.1:80" },
        { "http": "http://x/", "something": 1, "interval": "1s" },
    ]);
    let file = json!({ "name": "web", "port": 80, "check": { "ttl": "30s" }, "checks": checks });
    let config = load(&file);
    assert_eq!(codes(&config.errors), Vec::<&str>::new());
    let service = &config.services[0];
    let kinds: Vec<_> = service.checks.iter().flat_map(enmesh::config::Check::kinds).collect();
    assert_eq!(kinds, ["ttl", "http", "exec"]);
    assert_eq!(service.checks[1].id.as_ref().unwrap().as_str(), "own");
    assert_eq!(service.checks[2].id, None);
    // To Consul goes what stands in the file.
    assert_eq!(enmesh::plan::registration(service)["service"]["checks"], checks);
}
