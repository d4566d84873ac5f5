//! A network namespace with a thread in it: a way to do something that has rules of its own, beside others.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use crate::{program, space};

/// Where the stand-in for a sidecar listens, and what it says.
pub const SIDECAR: ([u8; 4], u16) = ([127, 0, 0, 1], 15001);
pub const FROM_SIDECAR: u8 = b's';
/// A virtual IP.
pub const VIRTUAL: ([u8; 4], u16) = ([240, 0, 0, 5], 80);

type Job = Box<dyn FnOnce() + Send>;

/// The namespace. Its thread ends with it.
pub struct Lane(mpsc::Sender<Job>);

impl Lane {
    /// With loopback, an address, the route of virtual IPs, and somebody who listens as a sidecar would.
    pub fn new() -> Result<Lane, String> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let lane = Lane(jobs);
        thread::spawn(move || inbox.into_iter().for_each(|job| job()));
        lane.run(|| {
            let set_up = || {
                space::enter_own_namespace()?;
                program::run("ip", &["address", "add", "10.9.0.2/32", "dev", "lo"], "")?;
                program::run("ip", &["route", "add", "240.0.0.0/4", "dev", "lo"], "")
            };
            set_up().map_err(|error| error.to_string())?;
            listen(SIDECAR.into(), FROM_SIDECAR)
        })?;
        Ok(lane)
    }

    /// Does `work` in the namespace and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(done.send(work())));
        self.0.send(job).map_err(|_| "the thread of a namespace ended")?;
        result.recv().map_err(|_| "the work in a namespace panicked".to_owned())?
    }
}

/// Takes calls at `address` in the namespace of this thread, for as long as the program runs, and says `word` to
/// each.
pub fn listen(address: SocketAddr, word: u8) -> Result<(), String> {
    let listener = TcpListener::bind(address).map_err(|error| format!("{address}: {error}"))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Who has called and gone is no matter.
            let _ = stream.write_all(&[word]);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.read(&mut [0]);
        }
    });
    Ok(())
}

/// Calls, and hangs up in a way that leaves nothing behind in the kernel.
pub fn call(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    let at_once = linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &at_once)?;
    Ok(stream)
}
