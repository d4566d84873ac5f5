//! What is on the host and has to be reached from within: names, and Consul's xDS on loopback. Without a daemon: the
//! plan, the border and the cable alone.

use std::io::Read;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use enmesh::base::exec;
use enmesh::netns::{self, Cable, Namespace};
use enmesh::plan::{self, Ads, AdsServer, HostFacts, INNER_LINK, MeshView, Xds, facts};
use enmesh::redirect::{Border, Crossings};
use ipnet::IpNet;

use crate::bed::{Bed, LIMIT};

/// A query for the IPv4 addresses of `name`.
fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

#[test]
fn names_are_answered_within() {
    let mut bed = Bed::build("ns-names", &["api", "billing"], "");
    bed.start("near");
    bed.await_ready("near");
    let expected = bed.virtual_ip("billing");
    let file = bed.near().root().join(format!("/run/enmesh/.namespaces/{}/resolv.conf", bed.names["api"]));
    let text = std::fs::read_to_string(file).unwrap();
    let server = text.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap();
    let server = SocketAddr::new(server.parse().unwrap(), 53);
    let answer = bed.place("api").run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(server).unwrap();
        socket.send(&query("billing.virtual.consul")).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap();
        answer[..length].to_vec()
    });
    let answer = answer.unwrap();
    let std::net::IpAddr::V4(expected) = expected else { panic!("{expected}") };
    assert!(answer.ends_with(&expected.octets()), "{answer:?}");
}

#[test]
fn the_agent_is_reached_and_nothing_else_of_loopback() {
    let bed = Bed::build("ns-agent", &["api"], "");
    let host = Namespace::open(bed.near().namespace.path()).unwrap();
    let service =
        serde_json::json!({ "name": "api", "capture": { "scope": format!("netns:{}", bed.names["api"]) } });
    let config = enmesh::config::Config {
        services: vec![serde_json::from_value(service).unwrap()],
        ..Default::default()
    };
    let ads = Ads {
        server: AdsServer::Tcp("127.0.0.1:8502".parse().unwrap()),
        ca_pem: None,
        token: false,
        node_name: None,
    };
    let facts = HostFacts {
        users: [("envoy".to_owned(), facts::User { uid: 5995, gid: 5995 })].into(),
        mesh: MeshView { trust_domain: "1.consul".to_owned(), ..MeshView::default() },
        xds: Xds::Ads(ads),
        ..HostFacts::default()
    };
    let plan = plan::plan(&config, &facts);
    let own = plan.namespaces.values().next().unwrap();
    let namespace = Namespace::create(&own.name).unwrap();
    let (link, crossings) = (own.link(), Crossings::of(&plan));
    let end = |address: std::net::Ipv4Addr| IpNet::new_assert(address.into(), 30);
    let said = host
        .run(|| {
            Border::new().apply(&crossings).unwrap();
            netns::set_forwarding(true).unwrap();
            let (outside, inside) = (end(own.outside()), end(own.inside()));
            let cable = Cable { namespace: &namespace, outer: &link, inner: INNER_LINK, outside, inside };
            cable.lay().unwrap();
            netns::lead_to_loopback(&link).unwrap();
            // Text and JSON come to the same table.
            let nft = |arguments: &[&str], stdin: &str| {
                crate::bed::nft(&Namespace::own().unwrap(), arguments, stdin).unwrap()
            };
            let list = ["-s", "list", "table", "inet", "enmesh_border"];
            let by_json = nft(&list, "");
            nft(&["-f", "-"], &crossings.text());
            (by_json, nft(&list, ""))
        })
        .unwrap();
    assert_eq!(said.0, said.1);
    for port in [8502, 8500] {
        let listener = host.run(|| TcpListener::bind(("127.0.0.1", port)).unwrap()).unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"agent");
            }
        });
    }
    let hears = |to: SocketAddr| {
        namespace
            .run(|| {
                let mut heard = String::new();
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                stream.read_to_string(&mut heard).map(|_| heard)
            })
            .unwrap()
    };
    assert_eq!(hears((own.outside(), 8502).into()).unwrap(), "agent");
    hears((own.outside(), 8500).into()).expect_err("another port of loopback");
    // Who gives himself a route to the host's loopback is not let in either.
    namespace.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap()).unwrap();
    let gateway = own.outside().to_string();
    for line in [
        &["route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local"][..],
        &["route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local"],
        &["route", "add", "127.0.0.1", "via", &gateway],
    ] {
        let ip = || exec::run(&exec::find("ip").unwrap(), line, b"", LIMIT).unwrap();
        let output = namespace.run(ip).unwrap();
        assert!(output.status.success(), "{line:?}: {}", output.stderr);
    }
    let probe = "table inet probe {
        chain p {
            type filter hook prerouting priority -299
            iifname \"enm-*\" ip daddr 127.0.0.0/8 counter
        }
    }";
    let nft = |arguments: &[&str], stdin: &str| crate::bed::nft(&host, arguments, stdin).unwrap();
    nft(&["-f", "-"], probe);
    let loopback: SocketAddr = "127.0.0.1:8500".parse().unwrap();
    hears(loopback).expect_err("loopback itself");
    assert!(nft(&["list", "table", "inet", "probe"], "").contains("packets 0 "));
    nft(&["flush", "chain", "inet", "enmesh_border", "raw"], "");
    let _ = hears(loopback);
    assert!(
        !nft(&["list", "table", "inet", "probe"], "").contains("packets 0 "),
        "it is the rule that stops them"
    );
    Namespace::delete(&own.name).unwrap();
}
