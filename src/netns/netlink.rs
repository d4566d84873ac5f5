//! One conversation with the kernel over rtnetlink.

use std::future::Future;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt, pin_mut};
use rtnetlink::{Error as NetlinkError, Handle, new_connection};

use super::error::NetnsError;
use crate::base::Fault;

/// The kernel answers within microseconds; this only keeps a broken sandbox from hanging us.
const LIMIT: Duration = Duration::from_secs(5);

/// Opens a connection in the calling thread's namespace, does `work` over it, and closes it.
///
/// The connection is driven beside the work in the same task: nothing is left behind, and no
/// particular kind of runtime is needed.
pub(super) async fn talk<T, W>(what: &str, work: impl FnOnce(Handle) -> W) -> Result<T, Fault>
where
    W: Future<Output = Result<T, Fault>>,
{
    let (connection, handle, _messages) =
        new_connection().map_err(|source| NetnsError::Connect { source })?;
    let answer = async {
        tokio::select! {
            biased;
            result = work(handle) => result,
            () = connection => {
                Err(NetnsError::netlink(what, &NetlinkError::RequestFailed).into())
            }
        }
    };
    match tokio::time::timeout(LIMIT, answer).await {
        Ok(result) => result,
        Err(_) => Err(NetnsError::Silent { what: what.to_owned() }.into()),
    }
}

/// All messages of a dump.
pub(super) async fn collect<T>(
    what: &str,
    messages: impl Stream<Item = Result<T, NetlinkError>>,
) -> Result<Vec<T>, Fault> {
    pin_mut!(messages);
    messages.try_collect().await.map_err(|e| NetnsError::netlink(what, &e).into())
}
