use super::*;
use crate::base::Explain;

fn names() -> Names<'static> {
    Names {
        users: [("envoy".to_owned(), 5995), ("consul".to_owned(), 102)].into(),
        ports: [("ssh".to_owned(), 22), ("postgresql".to_owned(), 5432)].into(),
        answers: &|_| false,
    }
}

fn flags() -> Flags {
    Flags { proxy_uid: Some("envoy".to_owned()), inbound_port: Some("20000".to_owned()), ..Flags::default() }
}

fn code(flags: &Flags) -> &'static str {
    flags.parse(&names()).map_or_else(|error| error.code(), |_| "fine")
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn which_flags_are_needed_and_which_exclude_each_other() {
    assert_eq!(code(&Flags::default()), "ENM-R030");
    assert_eq!(code(&Flags { inbound_port: None, ..flags() }), "ENM-R030");
    assert_eq!(code(&Flags { inbound_port: Some("0".to_owned()), ..flags() }), "ENM-R030");
    assert_eq!(code(&Flags { node_name: Some("n".to_owned()), ..flags() }), "ENM-R030");
    let id = || Some("web-sidecar-proxy".to_owned());
    assert_eq!(code(&Flags { proxy_id: id(), ..flags() }), "ENM-R031");
    let other = Some("15002".to_owned());
    assert_eq!(
        code(&Flags { proxy_id: id(), inbound_port: None, outbound_port: other, ..flags() }),
        "ENM-R031"
    );
    // The default, said aloud, is no contradiction; as in Consul.
    let same = Some("15001".to_owned());
    assert_eq!(code(&Flags { proxy_id: id(), inbound_port: None, outbound_port: same, ..flags() }), "fine");
    assert_eq!(code(&flags()), "fine");
}

#[test]
fn names_numbers_and_ranges() {
    let flags = Flags {
        exclude_inbound_ports: texts(&["ssh", "9100-9110", "9105:9120", "9100-9110"]),
        exclude_outbound_ports: texts(&["postgresql", "3306"]),
        exclude_outbound_cidrs: texts(&["10.50.1.7/16", "10.50.0.0/17", "fd00::7/8", "192.0.2.7"]),
        exclude_uids: texts(&["consul", "0", "1001"]),
        ..flags()
    };
    let desired = flags.parse(&names()).unwrap().desired().unwrap();
    let policy = desired.policy;
    assert_eq!(policy.bypass_uids, [0, 102, 1001, 5995].into());
    assert_eq!(policy.proxy_uids, [5995].into());
    let out = policy.outbound.values().next().unwrap();
    let cidrs: Vec<String> = out.bypass.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.50.0.0/16", "192.0.2.7/32", "fd00::/8"]);
    assert_eq!((out.port, out.who), (15001, Who::Everyone));
    let inn = policy.inbound.values().next().unwrap();
    assert_eq!((inn.to, inn.ports), (20000, InboundPorts::All));
    assert!(inn.bypass_ports.contains(&"22".parse().unwrap()));
    assert_eq!(desired.live, policy.inbound.keys().cloned().collect());
}

#[test]
fn what_is_none_is_an_error_with_a_code() {
    for bad in [
        "",
        "0",
        "70000",
        "22;id",
        "22,80",
        "9110-9100",
        "'22'",
        "\"22\"",
        "$(id)",
        "2\n2",
        "2\u{0}2",
        "no-such",
    ] {
        let port = Flags { exclude_inbound_ports: texts(&[bad]), ..flags() };
        let expected = if bad == "no-such" { "ENM-R034" } else { "ENM-R032" };
        assert_eq!(code(&port), expected, "{bad:?}");
        let port = Flags { exclude_outbound_ports: texts(&[bad]), ..flags() };
        assert_eq!(code(&port), expected, "{bad:?}");
    }
    for bad in ["", "10.0.0.0/33", "10.0.0", "10.0.0.0/8;drop", "::/129", "10.0.0.0/8\n", "$(id)"] {
        let cidr = Flags { exclude_outbound_cidrs: texts(&[bad]), ..flags() };
        assert_eq!(code(&cidr), "ENM-R032", "{bad:?}");
    }
    for (bad, expected) in [
        ("nobody-here", "ENM-R033"),
        ("4294967295", "ENM-R032"),
        ("a b", "ENM-R032"),
        ("$(id)", "ENM-R032"),
        ("-1", "ENM-R032"),
    ] {
        assert_eq!(code(&Flags { exclude_uids: texts(&[bad]), ..flags() }), expected, "{bad:?}");
        assert_eq!(code(&Flags { proxy_uid: Some(bad.to_owned()), ..flags() }), expected, "{bad:?}");
    }
    for bad in ["0.0.0.0", "::", "224.0.0.1", "name", "127.0.0.1:53"] {
        assert_eq!(code(&Flags { dns_ip: Some(bad.to_owned()), ..flags() }), "ENM-R032", "{bad:?}");
    }
    assert_eq!(code(&Flags { ipv6: Some("maybe".to_owned()), ..flags() }), "ENM-R032");
    let id = Some("a\nb".to_owned());
    assert_eq!(code(&Flags { proxy_id: id, inbound_port: None, ..flags() }), "ENM-R032");
}

#[test]
fn dns_in_both_of_its_modes() {
    let dns = |ip: Option<&str>, port: Option<&str>, answers: bool| {
        let flags = Flags { dns_ip: ip.map(str::to_owned), dns_port: port.map(str::to_owned), ..flags() };
        let names = Names { answers: &|_| answers, ..names() };
        let dns = flags.parse(&names).unwrap().dns?;
        let DnsServer::Other { also, asked } = dns.server else { panic!() };
        let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
        Some((dns.to.to_string(), also.map(|at| at.to_string()), asked.join(" ")))
    };
    let is = |to: &str, also: Option<&str>, asked: &str| {
        Some((to.to_owned(), also.map(str::to_owned), asked.to_owned()))
    };
    assert_eq!(dns(None, None, true), None);
    assert_eq!(dns(Some("10.0.0.53"), None, true), is("10.0.0.53:53", None, ""));
    assert_eq!(dns(Some("127.0.0.1"), None, false), is("127.0.0.1:53", None, ""));
    assert_eq!(dns(Some("127.0.0.1"), None, true), is("127.0.0.1:53", Some("[::1]:53"), ""));
    assert_eq!(dns(None, Some("8600"), false), is("127.0.0.1:8600", None, "127.0.0.1"));
    assert_eq!(dns(None, Some("8600"), true), is("127.0.0.1:8600", Some("[::1]:8600"), "127.0.0.1 ::1"));
    assert_eq!(dns(Some("10.0.0.5"), Some("8600"), true), is("10.0.0.5:8600", None, "10.0.0.5"));
}

#[test]
fn a_registration_brings_the_ports() {
    let id = Some("web-sidecar-proxy".to_owned());
    let mut request = Flags { proxy_id: id, inbound_port: None, ..flags() }.parse(&names()).unwrap();
    assert!(request.desired().is_none());
    let registration = serde_json::json!({"Port": 21000, "Proxy": {
        "Config": {"bind_port": 21500, "envoy_prometheus_bind_addr": "0.0.0.0:9102", "envoy_stats_bind_addr": "127.0.0.1:9103"},
        "TransparentProxy": {"OutboundListenerPort": 15007},
        "Expose": {"Paths": [{"ListenerPort": 21501}]},
    }});
    request.take(&RegisteredPorts::of(&registration));
    let desired = request.desired().unwrap();
    let inn = desired.policy.inbound.values().next().unwrap();
    let open: Vec<String> = inn.bypass_ports.iter().map(ToString::to_string).collect();
    assert_eq!(open, ["22", "9102", "9103", "21501"]);
    assert_eq!((inn.to, desired.policy.outbound.values().next().unwrap().port), (21500, 15007));
}

#[test]
fn the_mark_tells_the_ports_and_changes_with_the_flags() {
    let mark = |flags: &Flags| flags.parse(&names()).unwrap().desired().unwrap().policy.generation;
    let one = mark(&flags());
    assert_eq!(ports_of(&one), Some((15001, 20000)));
    assert_eq!(one, mark(&flags()));
    assert_ne!(one, mark(&Flags { exclude_uids: texts(&["consul"]), ..flags() }));
    assert_eq!(ports_of(&Generation { number: 3, hash: "15001x20000x1".to_owned() }), None);
}
