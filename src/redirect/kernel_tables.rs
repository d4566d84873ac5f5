//! Which families have tables of nf_tables, asked of the kernel itself: programs that would find nothing need not run.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::base::netlink::messages;

/// `NFPROTO_IPV4`.
pub(super) const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub(super) const IPV6: u8 = 10;
/// `NFT_MSG_GETTABLE` and the answer, `NFT_MSG_NEWTABLE`, of the subsystem nf_tables.
const GET_TABLE: u16 = (10 << 8) | 1;
const NEW_TABLE: u16 = 10 << 8;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel answers at once.
const PATIENCE: i64 = 2;

/// Whether a table of this family (`NFPROTO_…`) is there.
///
/// # Errors
/// The kernel's answer: no nf_tables, no privilege.
pub(super) fn any(family: u8) -> io::Result<bool> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    // struct nlmsghdr, then struct nfgenmsg.
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(GET_TABLE.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, 0, 0, 0]);
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(netlink.as_raw_fd(), &[IoSlice::new(&request)], &[], MsgFlags::empty(), Some(&kernel))?;
    let (mut buffer, mut found) = (vec![0; 32 * 1024], false);
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in messages(buffer.get(..length).unwrap_or_default()) {
            match message.kind {
                NEW_TABLE => found |= message.body.first() == Some(&family),
                DONE => return Ok(found),
                ERROR => return Err(io::Error::other("nf_tables lists no tables")),
                _ => {}
            }
        }
    }
}
