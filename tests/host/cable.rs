//! A machine's cable: its network namespace, a second one that stands for everybody outside, and a
//! pair of links between the two. And people who talk over it: listeners that say hello in the clear,
//! and clients of any user.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use enmesh::base::exec;
use enmesh::netns::Namespace;
use nix::unistd::{Uid, setfsuid};

use crate::machine::{must, tool};

/// The machine's end of the cable.
pub const INTERFACE: &str = "eth0";
/// The machine's address.
pub const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// The address of everybody else.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The bridge of a switch.
pub const BRIDGE: &str = "switch";
/// What every listener says first.
const HELLO: &[u8] = b"hello in the clear";
/// How long a connection and an answer may take; on one machine it is a matter of milliseconds.
const ANSWER: Duration = Duration::from_secs(2);
/// How long `ip` may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Where a machine's cable goes.
#[derive(Clone, Default)]
pub enum Outlet {
    /// To a namespace of its own.
    #[default]
    Stranger,
    /// To a switch, with other machines.
    Switch(Port),
}

/// A port of a switch, and who is to be plugged in there.
#[derive(Clone)]
pub struct Port {
    /// The switch's namespace.
    pub switch: String,
    /// The port's interface there.
    pub interface: String,
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The address of everybody else.
    pub outside: IpAddr,
}

/// The two ends.
pub struct Cable {
    name: String,
    /// The machine's network.
    pub inside: Namespace,
    /// Everybody else's.
    pub outside: Namespace,
}

impl Cable {
    /// Makes the namespace `NAME`, the machine's, and what is between it and the outlet.
    pub fn lay(name: &str, outlet: &Outlet) -> Cable {
        let (outside, interface, address, gateway) = match outlet {
            Outlet::Stranger => (format!("{name}-out"), INTERFACE, INSIDE, OUTSIDE),
            Outlet::Switch(port) => {
                (port.switch.clone(), port.interface.as_str(), port.address.into(), port.outside)
            }
        };
        ip(&format!("netns add {name}"));
        match outlet {
            Outlet::Stranger => {
                ip(&format!("netns add {outside}"));
                ip(&format!("-n {outside} link set lo up"));
                connect_cable(name, &outside, interface);
                ip(&format!("-n {outside} address add {OUTSIDE}/24 dev {interface}"));
            }
            Outlet::Switch(_) => {
                connect_cable(name, &outside, interface);
                ip(&format!("-n {outside} link set {interface} master {BRIDGE}"));
            }
        }
        ip(&format!("-n {outside} link set {interface} up"));
        ip(&format!("-n {name} address add {address}/24 dev {INTERFACE}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set {INTERFACE} up"));
        ip(&format!("-n {name} route add default via {gateway}"));
        let open = |name: &str| Namespace::by_name(name).expect("it was made");
        Cable { name: name.to_owned(), inside: open(name), outside: open(&outside) }
    }

    /// Takes both names away; the namespaces go with their last process.
    pub fn clear_away(name: &str) {
        for name in [name, &format!("{name}-out")] {
            if Path::new("/run/netns").join(name).exists() {
                let _ = exec::run(&tool("ip"), &["netns", "delete", name], b"", LIMIT);
            }
        }
    }

    /// Whether somebody outside who dials this port of the machine gets a hello in the clear.
    pub fn clear_from_outside(&self, port: u16) -> bool {
        hears_hello(&self.outside, 0, SocketAddr::new(INSIDE, port))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        Cable::clear_away(&self.name);
    }
}

fn connect_cable(inside: &str, outside: &str, interface: &str) {
    ip(&format!("-n {inside} link add {INTERFACE} type veth peer name {interface} netns {outside}"));
}

/// Runs `ip`, which must not fail.
pub fn ip(arguments: &str) {
    must(tool("ip"), &arguments.split(' ').collect::<Vec<_>>());
}

/// Whether a connection of the user `uid` from `namespace` to `address` gets a listener's hello.
pub fn hears_hello(namespace: &Namespace, uid: u32, address: SocketAddr) -> bool {
    connect(namespace, uid, address).is_some()
}

/// A connection of the user `uid` over which a listener has said hello.
pub fn connect(namespace: &Namespace, uid: u32, address: SocketAddr) -> Option<TcpStream> {
    let dial = || {
        // A socket belongs to whom the thread is at that moment, and the kernel's rules go by that. The thread
        // ends with this work.
        setfsuid(Uid::from_raw(uid));
        let mut stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        let mut heard = [0; HELLO.len()];
        stream.read_exact(&mut heard).ok()?;
        (heard == HELLO).then_some(stream)
    };
    namespace.run(dial).expect("the namespace is there")
}

/// Whether what is said over the connection comes back.
pub fn answers(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut back).is_ok() && &back == b"ping"
}

/// Says hello to whoever connects, then sends back what it gets. Ends with the value.
pub struct Listener {
    met: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listener {
    /// Listens on a port of every address in `namespace`.
    pub fn start(namespace: &Namespace, port: u16) -> Listener {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let bound = namespace.run(|| TcpListener::bind(address)).expect("the namespace is there");
        let bound = bound.expect("a free port");
        bound.set_nonblocking(true).expect("a socket can be told");
        let mut listener = Listener { met: Arc::default(), end: Arc::default(), thread: None };
        let (met, end) = (Arc::clone(&listener.met), Arc::clone(&listener.end));
        let accept = move || {
            while !end.load(Ordering::Relaxed) {
                match bound.accept() {
                    Ok((stream, _)) => {
                        met.fetch_add(1, Ordering::Relaxed);
                        thread::spawn(move || echo(stream));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        };
        listener.thread = Some(thread::spawn(accept));
        listener
    }

    /// How many have connected.
    pub fn met(&self) -> usize {
        self.met.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // The port is free when this returns.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let mut reader = stream.try_clone().expect("a descriptor can be doubled");
    if stream.write_all(HELLO).is_ok() {
        let _ = std::io::copy(&mut reader, &mut stream);
    }
}
