//! Asking others, against a nameserver that does as it is told.

use std::cell::{Cell, RefCell};

use super::tests::{local, names, query, tcp, udp};
use super::*;
use crate::plan::ConsulDns;
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};

/// What the fake nameserver does with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Answers with one address, and over UDP without a big EDNS as cut off.
    Right,
    /// The same in lower case.
    LowerCase,
    /// First with another number, another name, and from another port.
    AfterForgeries,
    /// Says nothing.
    Silent,
    /// Says that it cannot.
    Fails,
    /// Has more than fits into anything over UDP.
    Long,
}

/// A query, and how it came.
type Asked = (Transport, Vec<u8>);

struct FakeServer {
    address: SocketAddr,
    manner: Rc<Cell<Manner>>,
    asked: Rc<RefCell<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

fn answer_in(manner: Manner, query: &[u8], transport: Transport) -> Vec<u8> {
    let request = Message::from_vec(query).unwrap();
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    let mut question = request.queries[0].clone();
    if manner == Manner::LowerCase {
        question.set_name(question.name().to_lowercase());
    }
    message.add_query(question.clone());
    match (manner, transport) {
        (Manner::Fails, _) => message.metadata.response_code = ResponseCode::ServFail,
        (Manner::Long, Transport::Udp) => message.metadata.truncation = true,
        (Manner::Long, Transport::Tcp) => {
            for number in 0..100 {
                let text = TXT::new(vec![format!("{number:>80}")]);
                message.add_answer(Record::from_rdata(question.name().clone(), 1, RData::TXT(text)));
            }
        }
        _ => {
            let address = RData::A(A::new(192, 0, 2, 1));
            message.add_answer(Record::from_rdata(question.name().clone(), 1, address));
        }
    }
    message.to_vec().unwrap()
}

impl FakeServer {
    fn start(manner: Manner) -> FakeServer {
        let (udp, tcp) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = udp.local_addr().unwrap();
        let manner = Rc::new(Cell::new(manner));
        let asked = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (how, log) = (Rc::clone(&manner), Rc::clone(&asked));
        tasks.spawn_local(async move {
            let mut buffer = [0; 2000];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                log.borrow_mut().push((Transport::Udp, query.to_vec()));
                let answer = answer_in(how.get(), query, Transport::Udp);
                if how.get() == Manner::AfterForgeries {
                    let (mut number, mut name, stranger) =
                        (answer.clone(), answer.clone(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    number[1] ^= 1;
                    name[13] = b'#';
                    udp.send_to(&number, from).await.unwrap();
                    udp.send_to(&name, from).await.unwrap();
                    let _ = stranger.send_to(&answer_in(Manner::Fails, query, Transport::Udp), from).await;
                }
                if how.get() != Manner::Silent {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let (how, log) = (Rc::clone(&manner), Rc::clone(&asked));
        tasks.spawn_local(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut query).await.unwrap();
                log.borrow_mut().push((Transport::Tcp, query.clone()));
                let answer = answer_in(how.get(), &query, Transport::Tcp);
                let length = u16::try_from(answer.len()).unwrap();
                stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await.unwrap();
            }
        });
        FakeServer { address, manner, asked, _tasks: tasks }
    }

    /// A resolver that asks it for the rest of `consul`.
    fn resolver(&self) -> Resolver {
        asking(self.address, true)
    }

    fn transports(&self) -> Vec<Transport> {
        self.asked.borrow_mut().drain(..).map(|(transport, _)| transport).collect()
    }
}

fn asking(address: SocketAddr, expected: bool) -> Resolver {
    let resolver = Resolver::start(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    resolver.update(names());
    resolver.ask(Others { consul: Some(ConsulDns { address, expected }), ..Others::default() });
    resolver
}

async fn both(resolver: &Resolver, name: &str, kind: RecordType) -> [Message; 2] {
    let asked = query(name, kind);
    let bytes = asked.to_vec().unwrap();
    let over_udp = udp(resolver, &bytes).await;
    let mut stream = TcpStream::connect(resolver.address()).await.unwrap();
    let over_tcp = tcp(&mut stream, &bytes).await.unwrap();
    [over_udp, over_tcp].map(|bytes| {
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, asked.metadata.id);
        assert_eq!(message.queries, asked.queries);
        assert_eq!(message.queries[0].name().to_ascii(), name, "in the client's own writing");
        message
    })
}

#[test]
fn what_is_not_in_the_zone_is_asked_of_consul() {
    local(async {
        let server = FakeServer::start(Manner::Right);
        let resolver = server.resolver();
        for name in ["Db.service.CONSUL.", "vm.node.dc1.consul.", "nobody.virtual.consul."] {
            for answer in both(&resolver, name, RecordType::A).await {
                assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 1)), "{name}");
            }
            let asked: Vec<Vec<u8>> = server.asked.borrow_mut().drain(..).map(|(_, query)| query).collect();
            assert_eq!(asked.len(), 2);
            assert_ne!(asked[0][..2], asked[1][..2], "each has a number of its own");
        }
        for name in ["api.virtual.consul.", "virtual.consul.", "example.com."] {
            both(&resolver, name, RecordType::A).await;
        }
        assert_eq!(server.transports(), [], "what is ours, and what is not Consul's, is not asked of it");
    });
}

#[test]
fn only_the_answer_to_the_question_is_taken() {
    local(async {
        let server = FakeServer::start(Manner::AfterForgeries);
        let resolver = server.resolver();
        for answer in both(&resolver, "db.service.consul.", RecordType::A).await {
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert_eq!(answer.answers.len(), 1);
        }
        assert_eq!(server.transports(), [Transport::Udp; 2]);
        // A server that does not keep the case is believed over TCP, where nobody can meddle.
        server.manner.set(Manner::LowerCase);
        for answer in both(&resolver, "A-Name-Of-Many-Letters.service.consul.", RecordType::A).await {
            assert_eq!(answer.answers.len(), 1);
        }
        use Transport::{Tcp, Udp};
        assert_eq!(server.transports(), [Udp, Tcp, Udp, Tcp]);
    });
}

#[test]
fn a_long_answer_comes_over_tcp() {
    local(async {
        let server = FakeServer::start(Manner::Long);
        let resolver = server.resolver();
        let [over_udp, over_tcp] = both(&resolver, "db.service.consul.", RecordType::TXT).await;
        assert!(over_udp.metadata.truncation && over_udp.answers.is_empty());
        assert!(!over_tcp.metadata.truncation);
        assert_eq!(over_tcp.answers.len(), 100);
        use Transport::{Tcp, Udp};
        assert_eq!(server.transports(), [Udp, Udp, Tcp]);
    });
}

#[test]
fn options_of_a_query_reach_the_other_server() {
    local(async {
        let server = FakeServer::start(Manner::Right);
        let resolver = server.resolver();
        let mut asked = query("db.service.consul.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4000).set_dnssec_ok(true);
        asked.set_edns(edns);
        udp(&resolver, &asked.to_vec().unwrap()).await;
        let (_, seen) = server.asked.borrow_mut().remove(0);
        let seen = Message::from_vec(&seen).unwrap();
        assert_eq!(seen.edns, asked.edns);
        assert!(seen.metadata.recursion_desired);
    });
}

#[test]
fn whoever_does_not_answer_is_said_to_have_failed() {
    local(async {
        let code = async |resolver: &Resolver| {
            let [over_udp, over_tcp] = both(resolver, "db.service.consul.", RecordType::A).await;
            assert_eq!(over_udp, over_tcp);
            over_udp.metadata.response_code
        };
        let server = FakeServer::start(Manner::Fails);
        let resolver = server.resolver();
        assert_eq!(code(&resolver).await, ResponseCode::ServFail);
        server.manner.set(Manner::Silent);
        assert_eq!(code(&resolver).await, ResponseCode::ServFail);
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(code(&asking(nobody, true)).await, ResponseCode::ServFail);
        assert_eq!(code(&asking(nobody, false)).await, ResponseCode::NXDomain, "there need not be a Consul");
        // The mesh's own names do not depend on it.
        let [answer, _] = both(&asking(nobody, true), "api.virtual.consul.", RecordType::A).await;
        assert_eq!(answer.answers.len(), 1);
        // Whoever is told to ask itself asks nobody.
        let itself = asking(nobody, true);
        let consul = Some(ConsulDns { address: itself.address(), expected: true });
        itself.ask(Others { consul, ..Others::default() });
        assert_eq!(code(&itself).await, ResponseCode::NXDomain);
    });
}

#[test]
fn a_silent_server_keeps_nobody_else_waiting_and_not_too_many_wait() {
    local(async {
        let server = FakeServer::start(Manner::Silent);
        let resolver = server.resolver();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(resolver.address()).await.unwrap();
        let mut failed = 0;
        let mut buffer = [0; 512];
        for number in 0..300 {
            let name = format!("n{number}.service.consul.");
            client.send(&query(&name, RecordType::A).to_vec().unwrap()).await.unwrap();
            tokio::task::yield_now().await;
            while client.try_recv(&mut buffer).is_ok() {
                failed += 1;
            }
        }
        let mine = timeout(Duration::from_secs(1), both(&resolver, "api.virtual.consul.", RecordType::A));
        assert_eq!(mine.await.unwrap()[0].answers.len(), 1);
        while timeout(Duration::from_millis(100), client.recv(&mut buffer)).await.is_ok() {
            failed += 1;
        }
        assert!((1..=300).contains(&failed), "{failed} are told at once that there are too many");
        assert!(server.transports().len() <= 256);
    });
}
