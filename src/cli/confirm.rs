//! `enmesh confirm`

use clap::Args;

use super::Global;
use super::apply::{answer, once};
use super::output::Answer;
use crate::base::Fault;
use crate::converge::{Engine, Lock, Purpose};
use crate::daemon::client;

/// Keep the change that `enmesh apply --confirm` began
#[derive(Debug, Args)]
#[command(
    after_help = "After the time is over there is nothing to keep: the change was taken back, and this command says so\nwith exit status 1.\n\nExamples:\n  enmesh apply --confirm 60s && ssh -p 22 this-host true && enmesh confirm"
)]
pub struct Confirm {}

impl Confirm {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        if let Some(done) = client::confirm(&root).await? {
            return Ok(answer(done));
        }
        let _lock = Lock::take(&root)?;
        let (mut engine, unreadable) = Engine::open(root, Purpose::Converge).await?;
        engine.confirm().await?;
        once(&mut engine, unreadable).await
    }
}
