//! Connections that enmesh makes in its own name, to Consul and to platforms.
//!
//! They carry a mark by which the rules of this host know them: where everything is refused while no sidecar is live, a
//! sidecar could never become so otherwise, because that takes Consul.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};

/// The mark.
pub const OWN_MARK: u32 = 0x656e_6d63;

/// What is refused may have been refused for want of the mark.
#[derive(Debug, thiserror::Error)]
#[error("the connection was refused, and enmesh may not mark it")]
pub struct Unmarked;

/// Connects to `to`, with the mark where enmesh may give it.
///
/// # Errors
/// As the system says it; [`Unmarked`] inside of `PermissionDenied` where root has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`. A user who is not
/// root is captured like everybody, and is told what everybody is.
pub async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let marked = setsockopt(&socket, sockopt::Mark, &OWN_MARK).is_ok();
    socket.connect(to).await.map_err(|error| {
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        // Nothing on loopback is ever refused by rules of ours.
        let by_rules = !marked && nix::unistd::geteuid().is_root() && !to.ip().to_canonical().is_loopback();
        if refused && by_rules { io::Error::new(io::ErrorKind::PermissionDenied, Unmarked) } else { error }
    })
}

/// Tries every address of a name in turn; the outer error is the name's.
///
/// # Errors
/// The name has no address; inside, as [`connect`].
pub async fn dial(host: &str, port: u16) -> io::Result<io::Result<TcpStream>> {
    let mut last = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for address in tokio::net::lookup_host((host, port)).await? {
        last = connect(address).await;
        if last.is_ok() {
            break;
        }
    }
    Ok(last)
}
