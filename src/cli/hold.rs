//! `enmesh hold`, and the generator that has systemd call it from the first start after a boot on.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::output::Answer;
use super::status::{at, faults_of};
use crate::base::{Fault, Root};
use crate::converge::{held_at_boot, is_captured};
use crate::daemon::client;
use crate::systemd::hold;

/// The name under which systemd runs this program as a generator.
const GENERATOR: &str = "enmesh-generator";
/// Any smaller status would have systemd skip the start in silence.
const FAILED: u8 = 255;
/// How often the daemon is asked, and the pause between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Say whether a unit may start: only when the connections of its user are captured
#[derive(Debug, Args)]
#[command(
    after_help = "Called by systemd, through a drop-in that enmesh writes for every unit that a scope names. The exit status\nis 0 or 255.\n\nExamples:\n  ExecCondition=+/usr/bin/enmesh hold shop.service"
)]
pub struct Hold {
    /// The unit
    unit: String,
}

impl Hold {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let refused = match ask(&root, &self.unit).await {
            Ok(Some(answer)) if at(&answer, "/unit") == self.unit.as_str() => {
                return Ok(Answer::new("", &answer));
            }
            Ok(answer) => match answer.and_then(|answer| faults_of(at(&answer, "/error")).pop()) {
                Some(fault) => fault,
                // None runs, or one that is about to end.
                None => match is_captured(&root, &self.unit).await {
                    Ok(true) => return Ok(Answer::new("", &json!({ "unit": self.unit }))),
                    Ok(false) => hold::refusal(&self.unit, None),
                    Err(fault) => fault,
                },
            },
            Err(fault) => fault,
        };
        let mut answer = Answer::new("", &json!({ "error": refused })).with_faults(vec![refused], Vec::new());
        answer.exit = FAILED;
        Ok(answer)
    }
}

/// Asks the daemon. One that ends meanwhile breaks off, and soon none runs, or another one.
async fn ask(root: &Root, unit: &str) -> Result<Option<Value>, Fault> {
    let mut left = TRIES;
    loop {
        left -= 1;
        match client::hold(root, unit).await {
            Err(_) if left > 0 => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

/// Does a generator's work if this program runs as one: systemd.generator(7) gives three folders, of
/// which the first is for what stands behind an administrator's own files.
pub fn generator(mut arguments: std::env::ArgsOs) -> Option<ExitCode> {
    let name = arguments.next()?;
    if Path::new(&name).file_name()? != GENERATOR {
        return None;
    }
    let root = Root::default();
    let folder = arguments.next().unwrap_or_else(|| "/run/systemd/generator".into());
    Some(match hold::write(Path::new(&folder), &held_at_boot(&root)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(fault) => super::output::print_fault(&fault, false),
    })
}
