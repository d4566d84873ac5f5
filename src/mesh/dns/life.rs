//! The sign of life for which DNS is redirected (see `RESOLVER_LAPSE`).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::sleep;

use super::forward::mark;

/// How often; well within the lapse, so that one that is late does no harm.
const EVERY: Duration = Duration::from_secs(2);

/// A socket that gives it, at the resolver's own address and so in its family.
pub(super) fn socket(resolver: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((resolver.ip(), 0))?;
    mark(&socket)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Gives it again and again, by a packet to the resolver that has nothing in it.
pub(super) async fn give(socket: UdpSocket, resolver: SocketAddr) {
    loop {
        if let Err(error) = socket.send_to(&[], resolver) {
            tracing::debug!(%error, "cannot give a sign of life");
        }
        sleep(EVERY).await;
    }
}
