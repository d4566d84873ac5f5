//! Looks after one sidecar: starts it again when it ends, with pauses that grow, until told to end
//! it.

use std::rc::Weak;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::process::Process;
use super::{Past, Shared, Timing, leftover};
use crate::base::units::{UnitSpec, UnitState};
use crate::base::{Fault, Root};

/// The keeper of one sidecar. It ends with its order, or when the supervisor is gone; then the
/// process runs on.
pub(super) struct Keeper {
    shared: Weak<Shared>,
    spec: UnitSpec,
    orders: mpsc::Receiver<oneshot::Sender<()>>,
    past: Past,
}

/// What happened while the keeper waited.
enum Turn {
    /// What it waited for.
    Come,
    /// An order to end, and whom to tell.
    Ordered(oneshot::Sender<()>),
    /// The supervisor is gone.
    Orphaned,
}

impl Keeper {
    pub(super) fn new(
        shared: Weak<Shared>,
        spec: UnitSpec,
        orders: mpsc::Receiver<oneshot::Sender<()>>,
        past: Past,
    ) -> Self {
        Keeper { shared, spec, orders, past }
    }

    /// Keeps `process` and its successors.
    pub(super) async fn run(mut self, mut process: Process) {
        let Some(timing) = self.shared.upgrade().map(|shared| shared.timing) else { return };
        loop {
            let since = Instant::now();
            let mut ending = String::new();
            let turn = self.meanwhile(async { ending = process.wait().await }).await;
            match turn {
                Turn::Come => {}
                Turn::Ordered(done) => return self.end(process, &timing, done).await,
                Turn::Orphaned => return,
            }
            if since.elapsed() >= timing.calm {
                self.past.pause = timing.first_pause;
            }
            tracing::warn!(
                service = %self.spec.instance, ending, retry_in = ?self.past.pause, ENMESH_CODE = "ENM-V002",
                "the sidecar ended; starting it again"
            );
            self.tell(UnitState::Failed, None);
            match self.again(&timing).await {
                Some(next) => process = next,
                None => return,
            }
        }
    }

    /// Waits and starts until one start works; `None` when there is nothing more to do.
    async fn again(&mut self, timing: &Timing) -> Option<Process> {
        loop {
            match self.meanwhile(tokio::time::sleep(self.past.pause)).await {
                Turn::Come => {}
                Turn::Ordered(done) => {
                    self.tell(UnitState::Inactive, None);
                    let _ = done.send(());
                    return None;
                }
                Turn::Orphaned => return None,
            }
            self.past = self.past.again(timing);
            self.note(leftover::announce);
            match Process::spawn(&self.spec) {
                Ok(process) => {
                    self.note(|root, spec| leftover::record(root, &spec.instance, &process));
                    self.tell(UnitState::Active, Some(process.pid()));
                    return Some(process);
                }
                Err(error) => tracing::error!(
                    service = %self.spec.instance, %error, retry_in = ?self.past.pause, ENMESH_CODE = "ENM-V001",
                    "the sidecar cannot be started again"
                ),
            }
        }
    }

    async fn meanwhile(&mut self, event: impl Future<Output = ()>) -> Turn {
        tokio::select! {
            () = event => Turn::Come,
            order = self.orders.recv() => order.map_or(Turn::Orphaned, Turn::Ordered),
        }
    }

    async fn end(&self, mut process: Process, timing: &Timing, done: oneshot::Sender<()>) {
        self.tell(UnitState::Deactivating, Some(process.pid()));
        match process.end(timing.grace).await {
            Ok(()) => {
                self.tell(UnitState::Inactive, None);
                let _ = done.send(());
            }
            // Not answering is how the caller learns of it.
            Err(error) => tracing::error!(service = %self.spec.instance, %error, "cannot end the sidecar"),
        }
    }

    /// Writes down what is about to run or runs. A sidecar that nobody can write down is better than
    /// none.
    fn note(&self, write: impl FnOnce(&Root, &UnitSpec) -> Result<(), Fault>) {
        let Some(shared) = self.shared.upgrade() else { return };
        if let Err(fault) = write(&shared.root, &self.spec) {
            tracing::warn!(service = %self.spec.instance, %fault, "a later enmesh will not know this process");
        }
    }

    fn tell(&self, state: UnitState, pid: Option<u32>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.tell(&self.spec.instance, state, pid, self.past);
        }
    }
}
