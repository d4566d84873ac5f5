//! Hearing what the kernel announces over netlink(7): joining groups and taking messages apart. Asking
//! and changing is the business of others.
//!
//! What arrives is bytes of other people's making, so reading it never panics and never runs on: what is
//! cut off or does not add up ends the message, and what came before it counts.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel puts no more than a page or two into one datagram (`NLMSG_GOODSIZE`).
const DATAGRAM: usize = 64 * 1024;

/// Room for announcements that nobody has read yet: thousands of them, as a firewall's reload makes.
const BACKLOG: usize = 4 << 20;

/// Length of `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;

/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

/// The kind of an attribute without its two flags (`NLA_TYPE_MASK`).
const ATTRIBUTE_KIND: u16 = 0x3fff;

/// A socket that hears announcements in the network namespace of the thread that opened it.
pub struct Announcements {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Messages of the kernel; see [`messages`].
    Datagram(&'a [u8]),
    /// Announcements were lost: there were more than there was room for.
    Gap,
}

impl Announcements {
    /// Joins the groups of the bit mask `groups` (bit 0 is group 1).
    ///
    /// # Errors
    /// The kernel's answer.
    #[expect(
        deprecated,
        reason = "sound for OwnedFd, whose number never changes; the other form is `unsafe`"
    )]
    pub fn join(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // Beyond the system's limit where that is permitted; less room only means more gaps.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Announcements { socket, buffer: vec![0; DATAGRAM] })
    }

    /// Waits until there may be something to take.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn ready(&self) -> io::Result<()> {
        self.socket.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Takes what has arrived, without waiting; `None` when there is nothing more.
    ///
    /// # Errors
    /// The socket broke.
    pub fn take(&mut self) -> io::Result<Option<Heard<'_>>> {
        loop {
            let buffer = &mut self.buffer;
            let receive = |socket: &OwnedFd| Ok(recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer)?);
            let (length, from) = match self.socket.try_io(Interest::READABLE, receive) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(Some(Heard::Gap));
                }
                Err(error) => return Err(error),
            };
            // A datagram that fills the buffer may have been cut.
            if length >= self.buffer.len() {
                return Ok(Some(Heard::Gap));
            }
            // Other programs may send to groups as well; the kernel has the address 0.
            if from.is_some_and(|from| from.pid() == 0) {
                return Ok(Some(Heard::Datagram(self.buffer.get(..length).unwrap_or_default())));
            }
        }
    }
}

/// One message (`struct nlmsghdr` and what follows it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_pid`: the address of the socket that had asked for what is announced, which for most
    /// programs is their process number.
    pub port: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages of a datagram, as far as they are whole.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(native_u32(datagram, 0)?).ok()?;
        let message = Message {
            kind: native_u16(datagram, 4)?,
            port: native_u32(datagram, 12)?,
            body: datagram.get(MESSAGE_HEADER..length)?,
        };
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes (`struct nlattr`) of `bytes`, kind and value, as far as they are whole.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(native_u16(bytes, 0)?);
        let kind = native_u16(bytes, 2)? & ATTRIBUTE_KIND;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn native_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn native_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    #[test]
    fn messages_and_attributes_are_told_apart() {
        let body = [attribute(1, b"a\0"), attribute(0x8002, b"bcde")].concat();
        let mut one = [&[0; 4], &[3, 0, 0, 0][..], &[0; 4], &7_u32.to_ne_bytes(), &body].concat();
        let length = u32::try_from(one.len()).unwrap();
        one[..4].copy_from_slice(&length.to_ne_bytes());
        let two = [one.clone(), one.clone()].concat();
        let found: Vec<_> = messages(&two).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].port, found[1].body), (7, body.as_slice()));
        let found: Vec<_> = attributes(found[0].body).collect();
        assert_eq!(found, [(1, &b"a\0"[..]), (2, b"bcde")]);
        assert_eq!(messages(&two[..two.len() - 1]).count(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / MESSAGE_HEADER);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER);
        }

        /// Lengths that lie are what breaks readers, so they get more than chance would give them.
        #[test]
        fn lengths_that_lie_come_to_an_end(parts in proptest::collection::vec((0_u16..40, any::<u16>()), 0..60)) {
            let bytes: Vec<u8> =
                parts.iter().flat_map(|(a, b)| [a.to_ne_bytes(), b.to_ne_bytes()]).flatten().collect();
            prop_assert!(messages(&bytes).count() <= bytes.len() / MESSAGE_HEADER);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER);
        }
    }
}
