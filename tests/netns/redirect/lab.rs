//! A host and its peer, two network namespaces with a cable between them, each owned by a thread
//! that does things in it. When the lab is dropped the threads end, and the namespaces with them.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use enmesh::base::exec;
use enmesh::plan::RESOLVER_MARK;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::unistd::{Uid, gettid, setfsuid};

/// Refusals must come faster than this, answers too.
pub const SOON: Duration = Duration::from_millis(800);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace.
pub struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    owner: Option<JoinHandle<()>>,
    tid: i32,
}

impl Space {
    pub fn new() -> Space {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (born, tid) = mpsc::channel();
        let owner = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: these tests need root");
            born.send(gettid().as_raw()).unwrap();
            for job in inbox {
                job();
            }
        });
        let tid = tid.recv().expect("these tests need root");
        let space = Space { jobs: Some(jobs), owner: Some(owner), tid };
        space.ip("link set lo up");
        space
    }

    /// The thread that owns it, by which `ip` finds it.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Runs `work` in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(done.send(work())));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the work in the namespace panicked")
    }

    /// Runs `work` in the namespace on a thread of its own, whose sockets belong to `uid`.
    pub fn run_as<T: Send + 'static>(&self, uid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.run(move || {
            thread::spawn(move || {
                setfsuid(Uid::from_raw(uid));
                work()
            })
        })
        .join()
        .expect("the client panicked")
    }

    /// Runs a program in the namespace; it must succeed.
    pub fn tool(&self, program: &'static str, arguments: &str, stdin: &str) -> String {
        let (arguments, stdin) = (arguments.to_owned(), stdin.to_owned());
        self.run(move || {
            let path = exec::find(program).unwrap_or_else(|fault| panic!("{fault}: {}", fault.hint));
            let words: Vec<&str> = arguments.split_whitespace().collect();
            let out = exec::run(&path, &words, stdin.as_bytes(), Duration::from_secs(20)).unwrap();
            assert!(out.status.success(), "{program} {arguments}: {}", out.stderr);
            String::from_utf8(out.stdout).unwrap()
        })
    }

    pub fn ip(&self, arguments: &str) {
        self.tool("ip", arguments, "");
    }

    /// The rules of everybody in the namespace: as nft lists them, and those of iptables-legacy, which nft does not
    /// see.
    pub fn rules(&self) -> String {
        let mut rules = self.tool("nft", "list ruleset", "");
        for family in ["iptables-legacy-save", "ip6tables-legacy-save"] {
            let saved = self.tool(family, "", "");
            for line in saved.lines().filter(|line| !line.starts_with('#')) {
                // Without the counters of the kernel's own chains.
                rules.push_str(line.split(" [").next().unwrap_or_default());
                rules.push('\n');
            }
        }
        rules
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}

/// The host under test and the world outside of it.
pub struct Lab {
    pub host: Space,
    pub peer: Space,
}

impl Lab {
    /// Two namespaces with a cable, addresses and routes, the virtual networks routed to loopback,
    /// and no rules.
    pub fn new() -> Lab {
        let lab = Lab { host: Space::new(), peer: Space::new() };
        let (host, peer) = (&lab.host, &lab.peer);
        host.ip(&format!("link add eth0 type veth peer name eth0 netns {}", peer.tid));
        for address in ["10.9.0.2/24", "10.9.0.22/24", "fd09::2/64 nodad", "fe80::2/64 nodad"] {
            host.ip(&format!("addr add {address} dev eth0"));
        }
        for address in ["10.9.0.1/24", "10.9.0.11/24", "fd09::1/64 nodad", "fe80::1/64 nodad"] {
            peer.ip(&format!("addr add {address} dev eth0"));
        }
        for address in ["10.50.0.1/32", "10.60.0.1/32", "169.254.169.254/32", "168.63.129.16/32"] {
            peer.ip(&format!("addr add {address} dev lo"));
        }
        host.ip("link set eth0 up");
        peer.ip("link set eth0 up");
        host.ip("route add default via 10.9.0.1");
        lab.virtual_routes("add");
        host.ip("-6 route add fd00:240::/32 dev lo");
        peer.tool("nft", "-f -", WIRE);
        lab.services();
        lab.settle();
        lab
    }

    /// Adds or deletes the routes of virtual IPs.
    pub fn virtual_routes(&self, deed: &str) {
        for net in enmesh::plan::routed("240.0.0.0/4".parse().unwrap()) {
            self.host.ip(&format!("route {deed} {net} dev lo"));
        }
    }

    /// Waits until neighbours find each other in both families; IPv6 takes its time.
    fn settle(&self) {
        let started = Instant::now();
        for (space, to) in
            [(&self.host, "10.9.0.1:80"), (&self.host, "[fd09::1]:80"), (&self.peer, "[fd09::2]:22")]
        {
            while !matches!(space.dial(0, to.parse().unwrap()), Outcome::Reached { .. }) {
                assert!(started.elapsed() < Duration::from_secs(10), "{to} cannot be reached");
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Everybody who listens. Each says who it is and what it knows of the connection.
    fn services(&self) {
        let host: [(&str, &[&str]); 9] = [
            ("out", &["127.0.0.1:15001", "[::1]:15001"]),
            ("out2", &["127.0.0.1:15002", "[::1]:15002"]),
            ("in", &["[::]:21000"]),
            ("in2", &["[::]:21001"]),
            ("app", &["[::]:8080", "127.0.0.53:5353"]),
            ("app2", &["[::]:8081"]),
            ("ssh", &["[::]:22"]),
            ("metrics", &["[::]:9100", "[::]:9105", "[::]:9110"]),
            ("agent", &["[::]:8301", "[::]:8502"]),
        ];
        for (name, addresses) in host {
            addresses.iter().for_each(|address| self.host.listen(name, address));
        }
        for port in [22, 53, 80, 443, 3306, 5432, 8300, 9000] {
            self.peer.listen("peer", &format!("[::]:{port}"));
        }
        for address in ["127.0.0.1:8600", "[::1]:8600"] {
            self.host.listen("resolver", address);
            self.host.answer("resolver", address);
        }
        self.host.listen("stub", "127.0.0.53:53");
        self.host.answer("stub", "127.0.0.53:53");
        self.host.answer("host", "[::]:9999");
        self.peer.answer("peer", "[::]:53");
        self.peer.answer("peer", "[::]:443");
        self.peer.answer("peer", "[::]:9999");
    }

    /// How many packets for virtual IPs and for port 9000 (a mesh instance) the peer has seen.
    pub fn on_the_wire(&self) -> (u64, u64) {
        let listing = self.peer.tool("nft", "list table inet wire", "");
        let count = |name: &str| {
            let line = listing.lines().find(|line| line.contains(name)).unwrap();
            line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        };
        (count("virtual"), count("instance"))
    }
}

/// Counts at the far end of the cable.
const WIRE: &str = r#"
table inet wire {
  chain seen {
    type filter hook prerouting priority -300;
    ip daddr 240.0.0.0/4 counter comment "virtual"
    tcp dport 9000 counter comment "instance"
  }
}"#;

/// What became of a connection or a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody answered.
    Reached { who: String, original: String, from: IpAddr },
    /// An error at once.
    Refused,
    /// Nothing within [`SOON`].
    Silence,
}

impl Space {
    /// Listens for TCP at `address`, telling each caller who this is, the destination before
    /// redirection, and where the call seems to come from; then echoes lines.
    pub fn listen(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{name} {address}: {e}"));
            // Ends with the process: a thread that waits in accept() cannot be told otherwise.
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || serve(name, stream));
                }
            });
        });
    }

    /// Answers UDP at `address` with who this is.
    pub fn answer(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{name} {address}: {e}"));
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            });
        });
    }

    /// Says that the resolver lives, as the resolver does.
    pub fn beat(&self) {
        self.run(|| {
            for to in ["127.0.0.1:9", "[::1]:9"] {
                let to: SocketAddr = to.parse().unwrap();
                let socket = UdpSocket::bind((to.ip(), 0)).unwrap();
                setsockopt(&socket, sockopt::Mark, &RESOLVER_MARK).unwrap();
                socket.send_to(&[], to).unwrap();
            }
        });
    }

    /// Connects to `to` as `uid`.
    pub fn dial(&self, uid: u32, to: SocketAddr) -> Outcome {
        self.run_as(uid, move || Call::to(to).map_or_else(|outcome| outcome, |call| call.greeting))
    }

    /// Connects and stays connected.
    pub fn call(&self, uid: u32, to: SocketAddr) -> Result<Call, Outcome> {
        self.run_as(uid, move || Call::to(to))
    }

    /// Whether `to` echoes an ICMP request.
    pub fn ping(&self, to: IpAddr) -> bool {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        self.run(move || {
            // Type, code, checksum, identifier, sequence; the kernel sums up ICMPv6 itself.
            let (family, protocol, request, answer) = match to {
                IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, [8, 0, 0xf7, 0xfd, 0, 1, 0, 1], 0),
                IpAddr::V6(_) => {
                    (AddressFamily::Inet6, SockProtocol::IcmpV6, [128, 0, 0, 0, 0, 1, 0, 1], 129)
                }
            };
            let raw = socket(family, SockType::Raw, SockFlag::empty(), protocol).unwrap();
            // std's socket type brings timeouts and addresses; what it carries is not its business.
            let socket = UdpSocket::from(raw);
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket.connect((to, 0)).unwrap();
            socket.send(&request).unwrap();
            let mut buffer = [0; 128];
            let header = if to.is_ipv4() { 20 } else { 0 };
            while let Ok(length) = socket.recv(&mut buffer) {
                if length > header && buffer[header] == answer {
                    return true;
                }
            }
            false
        })
    }

    /// Asks `to` over UDP as `uid`. The answer must come from where the question went.
    pub fn ask(&self, uid: u32, to: SocketAddr) -> Outcome {
        self.run_as(uid, move || {
            let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(local).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            // Connected, so that the kernel drops answers from elsewhere and reports ICMP errors.
            socket.connect(to).unwrap();
            let mut buffer = [0; 64];
            match socket.send(b"?").and_then(|_| socket.recv(&mut buffer)) {
                Ok(length) => Outcome::Reached {
                    who: String::from_utf8_lossy(&buffer[..length]).into_owned(),
                    original: to.to_string(),
                    from: to.ip(),
                },
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    Outcome::Silence
                }
                Err(_) => Outcome::Refused,
            }
        })
    }
}

/// A connection that somebody answered.
pub struct Call {
    pub greeting: Outcome,
    stream: BufReader<TcpStream>,
}

impl Call {
    fn to(to: SocketAddr) -> Result<Call, Outcome> {
        let started = Instant::now();
        let stream = match TcpStream::connect_timeout(&to, SOON) {
            Ok(stream) => stream,
            Err(_) if started.elapsed() < SOON => return Err(Outcome::Refused),
            Err(_) => return Err(Outcome::Silence),
        };
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).map_err(|_| Outcome::Silence)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [who, original, from] = words[..] else { return Err(Outcome::Silence) };
        let greeting = Outcome::Reached {
            who: who.to_owned(),
            original: original.to_owned(),
            from: from.parse().unwrap(),
        };
        Ok(Call { greeting, stream })
    }

    /// Makes sockets of this thread belong to `uid`, and connects.
    pub fn to_as(uid: u32, to: SocketAddr) -> Outcome {
        setfsuid(Uid::from_raw(uid));
        Call::to(to).map_or_else(|outcome| outcome, |call| call.greeting)
    }

    /// Whether the other side still echoes.
    pub fn alive(&mut self) -> bool {
        let mut line = String::new();
        self.stream.get_mut().write_all(b"still there?\n").is_ok()
            && self.stream.read_line(&mut line).is_ok()
            && line == "still there?\n"
    }
}

pub fn serve(name: &str, mut stream: TcpStream) {
    let Ok(from) = stream.peer_addr() else { return };
    let greeting = format!("{name} {} {}\n", original(&stream), from.ip().to_canonical());
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    let Ok(mut writer) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if writeln!(writer, "{line}").is_err() {
            return;
        }
    }
}

/// Where the caller wanted to go. An IPv4 caller of an IPv6 socket is asked about over IPv4.
fn original(stream: &TcpStream) -> String {
    let local = stream.local_addr().map(|local| local.ip().to_canonical());
    if matches!(local, Ok(IpAddr::V4(_))) {
        return match getsockopt(stream, sockopt::OriginalDst) {
            Ok(raw) => {
                let address = std::net::Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
                SocketAddr::from((address, u16::from_be(raw.sin_port))).to_string()
            }
            Err(error) => error.to_string().replace(' ', "_"),
        };
    }
    match getsockopt(stream, sockopt::Ip6tOriginalDst) {
        Ok(raw) => {
            let address = std::net::Ipv6Addr::from(raw.sin6_addr.s6_addr);
            SocketAddr::from((address, u16::from_be(raw.sin6_port))).to_string()
        }
        Err(error) => error.to_string().replace(' ', "_"),
    }
}
