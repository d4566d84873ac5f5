//! Connections that are kept for the next read.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

/// How many are kept: as many as there are reads at a time.
const KEPT_MAX: usize = 8;
/// How long one may lie unused. What stands between, such as a load balancer, gives up on a silent
/// connection after a minute or so, and some without saying so.
const AGE_MAX: Duration = Duration::from_secs(15);

/// A connection over which one call at a time is made.
pub(super) struct Line {
    pub sender: SendRequest<Full<Bytes>>,
    /// Does the work of the connection while it is polled, and ends with it. May be polled after that.
    pub driver: Pin<Box<dyn Future<Output = ()>>>,
}

/// The lines that nobody uses now. Nobody drives them either, so they cost nothing; whether the other
/// side has closed one shows when it is used.
#[derive(Default)]
pub(super) struct Pool(RefCell<Vec<(Line, Instant)>>);

impl Pool {
    /// The line that was used last.
    pub fn take(&self) -> Option<Line> {
        let mut lines = self.0.borrow_mut();
        lines.retain(|(_, since)| since.elapsed() < AGE_MAX);
        lines.pop().map(|(line, _)| line)
    }

    /// Keeps a line on which all has been said.
    pub fn give(&self, line: Line) {
        let mut lines = self.0.borrow_mut();
        if lines.len() < KEPT_MAX {
            lines.push((line, Instant::now()));
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.0.borrow().len())
    }
}
