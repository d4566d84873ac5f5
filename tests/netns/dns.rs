//! `dns = "redirect"` on a host: the real daemon, kernel and Consul; the host's own nameserver is a fake
//! that has one address for every name. Needs root: `cargo test --features netns-tests --test netns_dns`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

#[path = "../support/consul_bed.rs"]
mod consul_bed;
#[path = "../support/host_bed.rs"]
mod host_bed;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use consul_bed::Agent;
use enmesh::base::exec;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use host_bed::{API_FILE, API_USER, Bed, HOST_FILE, LIMIT};
use nix::unistd::{Uid, setfsuid};
use serde_json::json;

/// A user of whom no service captures anything.
const OTHER_USER: u32 = 10_002;
/// The host's nameserver.
const NAMESERVER: &str = "127.0.0.2:53";
/// Generously more than the five seconds for which DNS stays redirected to nobody.
const LAPSED: Duration = Duration::from_secs(20);
/// What it has for every name.
const OUTSIDE: &str = "192.0.2.1";
/// Where the instance of `plain` is, which is in Consul and not in the mesh.
const PLAIN: &str = "10.99.0.8";

/// The answer of the fake nameserver: for names that begin with `long`, one that needs TCP.
fn fake_answer(query: &[u8], over_udp: bool) -> Vec<u8> {
    let request = Message::from_vec(query).unwrap();
    let question = &request.queries[0];
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.add_query(question.clone());
    let name = question.name().clone();
    if !name.to_ascii().to_lowercase().starts_with("long") {
        message.add_answer(Record::from_rdata(name, 1, RData::A(A(OUTSIDE.parse().unwrap()))));
    } else if over_udp {
        message.metadata.truncation = true;
    } else {
        for number in 0..100 {
            let text = RData::TXT(TXT::new(vec![format!("{number:>80}")]));
            message.add_answer(Record::from_rdata(name.clone(), 1, text));
        }
    }
    message.to_vec().unwrap()
}

/// Starts the fake nameserver; it ends with the process.
fn fake_nameserver() {
    let (udp, tcp) = (UdpSocket::bind(NAMESERVER).unwrap(), TcpListener::bind(NAMESERVER).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(&fake_answer(&buffer[..length], true), from).unwrap();
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let query = framed(&mut stream).unwrap();
            write_framed(&mut stream, &fake_answer(&query, false)).unwrap();
        }
    });
}

fn framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    stream.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat())
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// What a user is answered.
#[derive(Clone, Copy)]
struct Client<'a> {
    bed: &'a Bed,
    user: u32,
    to: &'a str,
}

impl Client<'_> {
    fn of<T: Send>(self, work: impl FnOnce(SocketAddr) -> T + Send) -> T {
        let to = self.to.parse().unwrap();
        let as_user = || {
            thread::scope(|scope| {
                let job = scope.spawn(|| {
                    setfsuid(Uid::from_raw(self.user));
                    work(to)
                });
                job.join().unwrap()
            })
        };
        self.bed.namespace.run(as_user).unwrap()
    }

    fn udp(self, name: &str, kind: RecordType) -> std::io::Result<Message> {
        let asked = query(name, kind);
        let bytes = asked.to_vec().unwrap();
        let answer = self.of(|to| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.connect(to)?;
            socket.send(&bytes)?;
            let mut answer = [0; 4096];
            let length = socket.recv(&mut answer)?;
            Ok::<_, std::io::Error>(answer[..length].to_vec())
        })?;
        Ok(checked(&asked, &answer))
    }

    fn tcp(self, name: &str, kind: RecordType) -> std::io::Result<Message> {
        let asked = query(name, kind);
        let bytes = asked.to_vec().unwrap();
        let answer = self.of(|to| {
            let mut stream = TcpStream::connect(to)?;
            stream.set_read_timeout(Some(LIMIT))?;
            write_framed(&mut stream, &bytes)?;
            framed(&mut stream)
        })?;
        Ok(checked(&asked, &answer))
    }

    /// The address of a name, over UDP and over TCP; else what there is instead.
    fn addresses(self, name: &str) -> [String; 2] {
        [self.udp(name, RecordType::A), self.tcp(name, RecordType::A)].map(|answer| match answer {
            Ok(message) => match message.answers.first().map(|record| &record.data) {
                Some(RData::A(address)) => address.to_string(),
                _ => format!("{:?}", message.metadata.response_code),
            },
            Err(error) => error.kind().to_string(),
        })
    }

    /// The one address, the same over both.
    fn address(self, name: &str) -> String {
        let [udp, tcp] = self.addresses(name);
        assert_eq!(udp, tcp, "{name}");
        udp
    }

    /// Waits until it is this one over both; between the two something may change.
    fn until_it_is(self, name: &str, address: &str, limit: Duration) {
        let started = Instant::now();
        loop {
            let found = self.addresses(name);
            if found == [address; 2] {
                return;
            }
            assert!(started.elapsed() < limit, "{name} is {found:?}, not {address}: {}", self.bed.log());
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn checked(asked: &Message, answer: &[u8]) -> Message {
    let answer = Message::from_vec(answer).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries), (asked.metadata.id, &asked.queries));
    answer
}

/// A host with the service `api`, whose user's DNS is redirected by `driver`.
fn host(driver: &str) -> Bed {
    let bed = Bed::bare();
    bed.write(
        HOST_FILE,
        format!("driver = \"{driver}\"\n{}", bed.host_file("\n[consul]\ndns = \"127.0.0.1:8600\"\n")),
    );
    bed.write(
        API_FILE,
        "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"user:api-app\"\ndns = \"redirect\"\n",
    );
    bed.write("/etc/resolv.conf", format!("nameserver {}\n", NAMESERVER.trim_end_matches(":53")));
    bed.namespace.run(fake_nameserver).unwrap();
    bed
}

fn consul(bed: &Bed) -> Agent {
    let settings = json!({ "services": [{ "name": "plain", "address": PLAIN, "port": 80 }] });
    let start = async || {
        let mut agent = Agent::new(settings);
        agent.start().await;
        agent
    };
    bed.namespace.run_async(start).unwrap()
}

/// The names that docs/dns.md asks for, and the answers that it gives.
fn examples() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/dns.md")).unwrap();
    let lines: Vec<&str> = page.lines().collect();
    let asked = lines.windows(2).filter_map(|pair| Some((pair[0].strip_prefix("$ dig +short ")?, pair[1])));
    let examples: Vec<_> = asked.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect();
    assert_eq!(examples.len(), 3);
    examples
}

/// The virtual IP of `db`.
fn record(bed: &Bed) -> String {
    let records = bed.run(&["render", "dns", "--json"]).json();
    records["records"]["db.virtual.consul"][0].as_str().unwrap().to_owned()
}

fn redirected_while_the_daemon_lives(mut bed: Bed) {
    let mut agent = consul(&bed);
    bed.start().await_ready();
    let db = record(&bed);
    let app = Client { bed: &bed, user: API_USER, to: NAMESERVER };
    app.until_it_is("db.virtual.consul.", &db, LIMIT);

    // Whichever server is asked, there or not, and in either family.
    for to in [NAMESERVER, "127.0.0.53:53", "127.0.0.1:53", "[::1]:53"] {
        let app = Client { to, ..app };
        assert_eq!(app.address("DB.virtual.consul."), db, "{to}");
        assert_eq!(app.address("plain.service.consul."), PLAIN, "{to}: Consul's own");
        assert_eq!(app.address("www.example.com."), OUTSIDE, "{to}: the host's nameserver's");
        assert_eq!(app.address("nobody.virtual.consul."), "NXDomain", "{to}");
    }
    let other = Client { user: OTHER_USER, ..app };
    assert_eq!(other.address("db.virtual.consul."), OUTSIDE, "others' DNS is theirs");
    assert_eq!(Client { to: "127.0.0.1:53", ..other }.address("db.virtual.consul."), "connection refused");
    let said = bed.run(&["explain", "--udp", "--uid", "10001", "127.0.0.53:53"]);
    assert!(said.out.contains("redirected to the resolver at 127.0.0.1:8653"), "{}", said.out);
    let said = bed.run(&["explain", "--uid", "10002", "192.0.2.53:53"]);
    assert!(said.out.contains(": direct"), "{}", said.out);

    for (name, address) in examples() {
        assert_eq!(app.address(&format!("{name}.")), address, "docs/dns.md");
    }

    // What does not fit comes over TCP.
    let over_udp = app.udp("long.example.com.", RecordType::TXT).unwrap();
    assert!(over_udp.metadata.truncation && over_udp.answers.is_empty());
    assert_eq!(app.tcp("long.example.com.", RecordType::TXT).unwrap().answers.len(), 100);
    many_at_once(app, &db);

    assert!(!bed.log().contains("ENM-R01"), "a sign of life is no change of the rules: {}", bed.log());

    agent.kill();
    assert_eq!(app.address("plain.service.consul."), "ServFail", "its name is not known to be none");
    assert_eq!(app.address("db.virtual.consul."), db);

    bed.kill_daemon();
    let app = Client { bed: &bed, user: API_USER, to: NAMESERVER };
    app.until_it_is("db.virtual.consul.", OUTSIDE, LAPSED);
    bed.start();
    let app = Client { bed: &bed, user: API_USER, to: NAMESERVER };
    app.until_it_is("db.virtual.consul.", &db, LIMIT);
}

/// Many questions from one port, all out at the same time: each has its own answer.
fn many_at_once(client: Client<'_>, db: &str) {
    let names: Vec<String> = (0..50)
        .map(|number| match number % 3 {
            0 => "db.virtual.consul.".to_owned(),
            1 => "plain.service.consul.".to_owned(),
            _ => format!("n{number}.example.com."),
        })
        .collect();
    let answers = client.of(|to| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect(to).unwrap();
        for (id, name) in (0..).zip(&names) {
            let mut asked = query(name, RecordType::A);
            asked.metadata.id = id;
            socket.send(&asked.to_vec().unwrap()).unwrap();
        }
        let mut buffer = [0; 4096];
        let answers = names.iter().map(|_| {
            let length = socket.recv(&mut buffer).unwrap();
            Message::from_vec(&buffer[..length]).unwrap()
        });
        answers.collect::<Vec<_>>()
    });
    for answer in answers {
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        let name = &names[usize::from(answer.metadata.id)];
        assert_eq!(answer.queries[0].name().to_ascii(), *name);
        let expected = match name.as_str() {
            "db.virtual.consul." => db,
            "plain.service.consul." => PLAIN,
            _ => OUTSIDE,
        };
        assert_eq!(answer.answers[0].data.to_string(), expected, "{name}");
    }
}

#[test]
fn by_nftables() {
    redirected_while_the_daemon_lives(host("nftables"));
}

#[test]
fn by_iptables_nft() {
    redirected_while_the_daemon_lives(host("iptables"));
}

#[test]
fn by_iptables_legacy() {
    let bed = host("iptables");
    // The flavour in which others have rules is the one that is taken.
    let others = || {
        let legacy = exec::find("iptables-legacy").unwrap();
        exec::run(&legacy, &["-t", "nat", "-N", "DOCKER"], b"", LIMIT).unwrap()
    };
    let made = bed.namespace.run(others).unwrap();
    assert!(made.status.success(), "{}", made.stderr);
    redirected_while_the_daemon_lives(bed);
}

/// The modes that redirect nothing, and what `off` leaves out.
#[test]
fn without_redirection_queries_go_where_they_go() {
    let mut bed = host("nftables");
    let service =
        |dns: &str| format!("name = \"api\"\n\n[capture]\nscope = \"user:api-app\"\ndns = \"{dns}\"\n");
    bed.write(API_FILE, service("resolved"));
    bed.start().await_ready();
    fn ours(bed: &Bed) -> Client<'_> {
        Client { bed, user: API_USER, to: "127.0.0.1:8653" }
    }
    let at_theirs = |bed: &Bed| Client { bed, user: API_USER, to: NAMESERVER }.address("db.virtual.consul.");
    ours(&bed).until_it_is("db.virtual.consul.", &record(&bed), LIMIT);
    assert_eq!(ours(&bed).address("www.example.com."), "Refused", "who has other resolvers may ask those");
    assert_eq!(at_theirs(&bed), OUTSIDE);
    bed.write(API_FILE, service("off"));
    ours(&bed).until_it_is("db.virtual.consul.", "connection refused", LIMIT);
    assert_eq!(at_theirs(&bed), OUTSIDE);
    assert!(!bed.rules().contains("dns_alive"));
}
