//! TCP sockets of this network namespace, as sock_diag(7) tells them.
//!
//! /proc/net/tcp has the same, and the kernel goes through every bucket of its table of connections for
//! each read of it: milliseconds where that has 262,144 of them, as on a host of 24 GB, and no connection
//! at all. It is read where there is no sock_diag.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket as Netlink, SocketAddr as Peer, protocols::NETLINK_SOCK_DIAG};

/// Which sockets are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// Those that wait for connections.
    Listening,
    /// Those that are connected.
    Established,
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Its own address.
    pub local: SocketAddr,
    /// Whom it is connected to.
    pub peer: SocketAddr,
    /// Whose it is.
    pub uid: u32,
    /// Its number, which the links of /proc/PID/fd show.
    pub inode: u64,
}

/// The TCP sockets of the calling thread's namespace; none where the kernel does not tell.
pub fn sockets(which: Sockets) -> Vec<Socket> {
    let told = [AF_INET, AF_INET6].into_iter().map(|family| ask(family, which));
    let told: io::Result<Vec<Vec<Socket>>> = told.collect();
    match told {
        Ok(found) => found.concat(),
        Err(_) => ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .flat_map(|table| in_table(&table, which))
            .collect(),
    }
}

fn ask(family: u8, which: Sockets) -> io::Result<Vec<Socket>> {
    let states = match which {
        Sockets::Listening => StateFlags::LISTEN,
        Sockets::Established => StateFlags::ESTABLISHED,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let extensions = ExtensionFlags::empty();
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    netlink.connect(&Peer::new(0, 0))?;
    netlink.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (answer, _) = netlink.recv_from_full()?;
        if take(&answer, &mut found)? {
            return Ok(found);
        }
    }
}

/// Adds the sockets of one answer; returns whether it was the last.
fn take(mut answer: &[u8], found: &mut Vec<Socket>) -> io::Result<bool> {
    while !answer.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                found.push(socket(&response.header));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        // Each message begins on a multiple of four bytes (netlink(7)).
        let length = (message.header.length as usize).next_multiple_of(4);
        answer = answer.get(length.max(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn socket(header: &InetResponseHeader) -> Socket {
    let id = &header.socket_id;
    Socket {
        local: SocketAddr::new(id.source_address, id.source_port),
        peer: SocketAddr::new(id.destination_address, id.destination_port),
        uid: header.uid,
        inode: header.inode.into(),
    }
}

/// The sockets of a table (proc_pid_net(5)).
fn in_table(table: &str, which: Sockets) -> Vec<Socket> {
    // TCP_ESTABLISHED and TCP_LISTEN of include/net/tcp_states.h.
    let wanted = match which {
        Sockets::Established => "01",
        Sockets::Listening => "0A",
    };
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, peer, state, _, _, _, uid, _, inode, ..] = fields.as_slice() else { return None };
        (*state == wanted).then_some(())?;
        let (local, peer) = (end(local)?, end(peer)?);
        Some(Socket { local, peer, uid: uid.parse().ok()?, inode: inode.parse().ok()? })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// An address in the kernel's words: 32-bit numbers as they lie in memory, then the port.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word =
        |at: usize| Some(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let mut bytes = [0; 16];
            bytes.iter_mut().zip(words.iter().flatten()).for_each(|(to, from)| *to = *from);
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn tables_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
   0: 0200090A:08AE 0100090A:1388 01 00000000:00000000 00:00000000 00000000     0        0 7 1\n\
   1: 00000000:08AE 00000000:0000 0A 00000000:00000000 00:00000000 00000000  5995        0 8 1\n\
   2: 0200090A:08AE 0100090A:1389 06 00000000:00000000 00:00000000 00000000     0        0 0 1\n\
   3: 000000000000000000000000010000FF:0016 0000000000000000FFFF00000100090A:1388 01 0:0 00:0 0     0        0 9 1\n";
        let found = in_table(table, Sockets::Established);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].local, "10.9.0.2:2222".parse().unwrap());
        assert_eq!((found[0].peer.to_string(), found[0].inode), ("10.9.0.1:5000".to_owned(), 7));
        assert_eq!(found[1].peer.ip().to_canonical(), "10.9.0.1".parse::<IpAddr>().unwrap());
        let listening = in_table(table, Sockets::Listening);
        assert_eq!(listening.len(), 1);
        assert_eq!((listening[0].local.port(), listening[0].uid), (2222, 5995));
    }

    #[test]
    fn what_the_kernel_tells_is_what_the_tables_say() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").ok();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _callee = listener.accept().unwrap();
        let mine = |found: Vec<Socket>, local: SocketAddr| -> Vec<Socket> {
            found.into_iter().filter(|socket| socket.local == local).collect()
        };
        let in_tables = |which| -> Vec<Socket> {
            ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
                .iter()
                .flat_map(|path| in_table(&fs::read_to_string(path).unwrap_or_default(), which))
                .collect()
        };
        let ends = [
            (Sockets::Listening, Some(listener.local_addr().unwrap())),
            (Sockets::Listening, v6.as_ref().map(|v6| v6.local_addr().unwrap())),
            (Sockets::Established, Some(caller.local_addr().unwrap())),
        ];
        for (which, local) in ends.into_iter().filter_map(|(which, local)| Some((which, local?))) {
            let told = mine(sockets(which), local);
            assert_eq!(told.len(), 1, "{local}");
            assert_eq!(told, mine(in_tables(which), local));
        }
    }
}
