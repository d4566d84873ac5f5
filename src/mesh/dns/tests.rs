use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;
use tokio::task::LocalSet;

use super::*;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub(super) fn names() -> BTreeMap<String, Vec<IpAddr>> {
    BTreeMap::from([
        ("api.virtual.consul".to_owned(), vec!["240.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]),
        ("web.virtual.consul".to_owned(), vec!["240.0.0.6".parse().unwrap()]),
        ("many.virtual.consul".to_owned(), (1..=200).map(|n| IpAddr::from([240, 0, 1, n])).collect()),
        ("v1.api.virtual.consul".to_owned(), vec!["240.0.0.7".parse().unwrap()]),
        ("a.b.virtual.consul".to_owned(), vec!["240.0.0.8".parse().unwrap()]),
    ])
}

/// Runs a test as the daemon runs: one thread, one `LocalSet`.
pub(super) fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(Duration::from_secs(20), test).await.unwrap() })
}

fn started() -> Resolver {
    let resolver = Resolver::start(LOOPBACK).unwrap();
    resolver.update(names());
    resolver
}

pub(super) fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub(super) async fn udp(resolver: &Resolver, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    socket.send_to(query, resolver.address()).await.unwrap();
    let mut buffer = vec![0; 65535];
    let (length, from) =
        timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(from, resolver.address());
    buffer.truncate(length);
    buffer
}

pub(super) async fn tcp(stream: &mut TcpStream, query: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Asks over UDP and over TCP, and holds the two answers against each other.
async fn ask(resolver: &Resolver, query: Message) -> Message {
    let bytes = query.to_vec().unwrap();
    let over_udp = Message::from_vec(&udp(resolver, &bytes).await).unwrap();
    let mut stream = TcpStream::connect(resolver.address()).await.unwrap();
    let over_tcp = Message::from_vec(&tcp(&mut stream, &bytes).await.unwrap()).unwrap();
    assert_eq!(over_udp, over_tcp);
    assert_eq!(over_udp.metadata.id, query.metadata.id);
    assert_eq!(over_udp.metadata.message_type, MessageType::Response);
    assert_eq!(over_udp.queries, query.queries);
    assert!(!over_udp.metadata.recursion_available);
    over_udp
}

fn addresses(message: &Message) -> Vec<String> {
    let text = |data: &RData| match data {
        RData::A(address) => address.to_string(),
        RData::AAAA(address) => address.to_string(),
        other => panic!("{other}"),
    };
    message.answers.iter().map(|record| text(&record.data)).collect()
}

#[test]
fn names_of_the_mesh_have_their_addresses_whatever_their_case() {
    local(async {
        let resolver = started();
        let answer = ask(&resolver, query("api.virtual.consul.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
        assert_eq!(addresses(&answer), ["240.0.0.5"]);
        assert!(answer.answers[0].ttl <= 5);

        let answer = ask(&resolver, query("aPi.ViRtuaL.CONSUL.", RecordType::AAAA)).await;
        assert_eq!(addresses(&answer), ["fd00::5"]);
        assert_eq!(
            answer.answers[0].name.to_ascii(),
            "aPi.ViRtuaL.CONSUL.",
            "resolvers compare the case they sent"
        );
        let answer = ask(&resolver, query("api.virtual.consul.", RecordType::ANY)).await;
        assert_eq!(addresses(&answer), ["240.0.0.5", "fd00::5"]);
    });
}

#[test]
fn what_there_is_not_is_said_in_the_way_that_resolvers_understand() {
    local(async {
        let resolver = started();
        for (name, kind, code) in [
            ("web.virtual.consul.", RecordType::AAAA, ResponseCode::NoError),
            ("web.virtual.consul.", RecordType::MX, ResponseCode::NoError),
            ("virtual.consul.", RecordType::A, ResponseCode::NoError),
            ("consul.", RecordType::A, ResponseCode::NoError),
            ("b.virtual.consul.", RecordType::A, ResponseCode::NoError),
            ("nobody.virtual.consul.", RecordType::A, ResponseCode::NXDomain),
            ("x.api.virtual.consul.", RecordType::A, ResponseCode::NXDomain),
            ("api\\.virtual.consul.", RecordType::A, ResponseCode::NXDomain),
            ("api.service.consul.", RecordType::A, ResponseCode::NXDomain),
        ] {
            let answer = ask(&resolver, query(name, kind)).await;
            assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
            assert!(answer.answers.is_empty() && answer.metadata.authoritative, "{name}");
            assert_eq!(answer.authorities.len(), 1, "{name}");
            let RData::SOA(soa) = &answer.authorities[0].data else { panic!("{name}: no SOA") };
            assert_eq!(answer.authorities[0].name.to_ascii(), "consul.");
            assert!(soa.minimum == 0 && answer.authorities[0].ttl == 0, "a service may join any moment");
        }
        let answer = ask(&resolver, query("consul.", RecordType::SOA)).await;
        assert_eq!(answer.answers.len(), 1);
    });
}

#[test]
fn other_names_are_refused_so_that_the_next_resolver_is_asked() {
    local(async {
        let resolver = started();
        for name in ["example.com.", ".", "consul.example.", "notconsul.", "5.0.0.240.in-addr.arpa."] {
            let answer = ask(&resolver, query(name, RecordType::A)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name}");
            assert!(!answer.metadata.authoritative && answer.authorities.is_empty());
        }
        let transfer = ask(&resolver, query("consul.", RecordType::AXFR)).await;
        assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
        let mut chaos = query("api.virtual.consul.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(ask(&resolver, chaos).await.metadata.response_code, ResponseCode::Refused);
    });
}

#[test]
fn what_does_not_fit_into_a_datagram_is_marked_and_complete_over_tcp() {
    local(async {
        let resolver = started();
        let mut large = query("many.virtual.consul.", RecordType::A);
        let mut stream = TcpStream::connect(resolver.address()).await.unwrap();
        for (payload, limit) in [(None, 512), (Some(100), 512), (Some(800), 800), (Some(65535), 1232)] {
            large.edns = payload.map(|payload| {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                edns
            });
            let bytes = large.to_vec().unwrap();
            let short = udp(&resolver, &bytes).await;
            assert!(short.len() <= limit, "{payload:?}: {}", short.len());
            let short = Message::from_vec(&short).unwrap();
            assert!(short.metadata.truncation && !short.answers.is_empty());
            assert_eq!(short.edns.is_some(), payload.is_some());
            let whole = Message::from_vec(&tcp(&mut stream, &bytes).await.unwrap()).unwrap();
            assert!(!whole.metadata.truncation);
            assert_eq!(whole.answers.len(), 200, "and several queries share one connection");
        }
    });
}

#[test]
fn edns_of_the_future_and_other_operations_are_declined() {
    local(async {
        let resolver = started();
        let mut future = query("api.virtual.consul.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        future.set_edns(edns);
        let answer = Message::from_vec(&udp(&resolver, &future.to_vec().unwrap()).await).unwrap();
        assert_eq!(u16::from(answer.metadata.response_code), 16, "BADVERS");
        assert!(answer.answers.is_empty() && answer.version() == 0);

        let mut status = query("api.virtual.consul.", RecordType::A);
        status.metadata.op_code = OpCode::Status;
        assert_eq!(ask(&resolver, status).await.metadata.response_code, ResponseCode::NotImp);
    });
}

#[test]
fn malformed_messages_do_no_harm() {
    local(async {
        let resolver = started();
        let good = query("api.virtual.consul.", RecordType::A).to_vec().unwrap();
        let silent = UdpSocket::bind(LOOPBACK).await.unwrap();
        let mut response = good.clone();
        response[2] |= 0x80;
        for bytes in [&b""[..], b"x", &good[..11], &response] {
            silent.send_to(bytes, resolver.address()).await.unwrap();
        }
        let mut many = good.clone();
        many[4..6].copy_from_slice(&[0xff, 0xff]);
        for bytes in [&good[..12], &good[..good.len() - 1], &many] {
            let answer = Message::from_vec(&udp(&resolver, bytes).await).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
            assert_eq!(answer.metadata.id.to_be_bytes(), [good[0], good[1]]);
        }
        // All of these were handled before; a query still is.
        assert_eq!(addresses(&Message::from_vec(&udp(&resolver, &good).await).unwrap()), ["240.0.0.5"]);
        let mut nothing = [0; 16];
        assert!(silent.try_recv(&mut nothing).is_err(), "no answer to what is not a query");

        let mut stream = TcpStream::connect(resolver.address()).await.unwrap();
        assert!(tcp(&mut stream, b"not DNS").await.is_err(), "the connection is closed");
    });
}

#[test]
fn an_update_replaces_every_name_at_once() {
    local(async {
        let resolver = started();
        let serial = |message: &Message| match &message.authorities[0].data {
            RData::SOA(soa) => soa.serial,
            other => panic!("{other}"),
        };
        let before = serial(&ask(&resolver, query("new.virtual.consul.", RecordType::A)).await);
        resolver
            .update(BTreeMap::from([("new.virtual.consul".to_owned(), vec!["240.0.0.9".parse().unwrap()])]));
        assert_eq!(
            addresses(&ask(&resolver, query("new.virtual.consul.", RecordType::A)).await),
            ["240.0.0.9"]
        );
        let gone = ask(&resolver, query("api.virtual.consul.", RecordType::A)).await;
        assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
        assert!(serial(&gone) > before);
    });
}

#[test]
fn idle_connections_do_not_keep_others_out_for_good() {
    local(async {
        let resolver = started();
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(resolver.address()).await.unwrap();
            let bytes = query("api.virtual.consul.", RecordType::A).to_vec().unwrap();
            tcp(&mut stream, &bytes).await.unwrap();
            idle.push(stream);
        }
        let mut waiting = TcpStream::connect(resolver.address()).await.unwrap();
        let bytes = query("web.virtual.consul.", RecordType::A).to_vec().unwrap();
        let denied = timeout(Duration::from_millis(200), tcp(&mut waiting, &bytes)).await;
        assert!(denied.is_err(), "no more than {CONNECTIONS_MAX} at a time");
        idle.pop();
        let length = waiting.read_u16().await.unwrap();
        assert!(length > 12, "its turn came");
    });
}

#[test]
fn a_port_that_is_taken_is_named_and_free_again_after_the_stop() {
    local(async {
        let resolver = started();
        let address = resolver.address();
        let fault = Resolver::start(address).unwrap_err();
        assert_eq!((fault.code, fault.class.exit_code()), ("ENM-M041", 69));
        assert!(fault.message.contains(&address.to_string()), "{fault}");
        assert!(fault.hint.contains(&format!(":{}", address.port())), "{}", fault.hint);
        resolver.stop().await;

        let only_udp = std::net::UdpSocket::bind(address).unwrap();
        let fault = Resolver::start(address).unwrap_err();
        assert!(fault.message.contains("UDP"), "{fault}");
        drop(only_udp);
        let again = Resolver::start(address).unwrap();
        drop(again);
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        Resolver::start(address).unwrap().stop().await;

        let fault = Resolver::start("192.0.2.1:8653".parse().unwrap()).unwrap_err();
        assert_eq!(fault.code, "ENM-M040");
    });
}

proptest! {
    #[test]
    fn no_bytes_make_the_zone_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let zone = Zone::new(names(), 1);
        for transport in [Transport::Udp, Transport::Tcp] {
            let _ = zone.answer(&bytes, transport);
        }
    }

    #[test]
    fn no_damaged_query_makes_the_zone_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
        let mut message = query("many.virtual.consul.", RecordType::A);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        for (index, value) in flips {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(answer) = Zone::new(names(), 1).answer(&bytes, Transport::Udp) {
            prop_assert!(answer.len() <= 1232);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        }
    }
}
