//! `enmesh doctor`

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::output::Answer;
use super::status::{at, faults_of};
use crate::base::{Fault, Root};
use crate::converge::ConvergeError;
use crate::converge::doctor::{self, Examined, Heard};
use crate::daemon::{client, control};

/// The exit status for "something is wrong".
const WRONG: u8 = 2;

/// Say what is wrong with this host, and what to do about it
#[derive(Debug, Args)]
#[command(
    after_help = "Looks at configuration, users, units, Envoy, the control plane, the kernel and the rules in it, names, the clock and\nSSH, in this order: what is wrong further up is often the cause of what is wrong below it. Touches nothing.\nExit status 0 when nothing is wrong, 2 when something is. Run it as root, or it sees less.\n\nExamples:\n  enmesh doctor\n  enmesh doctor --json       each finding with its code, for programs"
)]
pub struct Doctor {}

impl Doctor {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let examined = doctor::examine(&root, heard(&root).await).await;
        let wrong = examined.iter().map(|one| one.faults.len()).sum::<usize>();
        let json = json!({ "ok": wrong == 0, "examined": examined });
        let mut answer = Answer::new(text(&examined, wrong), &json);
        answer.exit = if wrong == 0 { 0 } else { WRONG };
        Ok(answer)
    }
}

async fn heard(root: &Root) -> Result<Heard, Fault> {
    let no_daemon = || ConvergeError::NoDaemon { socket: root.join(control::SOCKET) };
    let status = client::status(root).await?.ok_or_else(no_daemon)?;
    let services = at(&status, "/services").as_object().into_iter().flatten();
    let live = services.filter(|(_, service)| at(service, "/phase") == &Value::from("live"));
    Ok(Heard {
        live: live.filter_map(|(id, _)| id.parse().ok()).collect(),
        faults: faults_of(at(&status, "/faults")),
        warnings: faults_of(at(&status, "/warnings")),
    })
}

fn text(examined: &[Examined], wrong: usize) -> String {
    let mut text = String::new();
    for Examined { area, note, faults, warnings } in examined {
        let word = if faults.is_empty() { "ok" } else { "WRONG" };
        let _ = writeln!(text, "{word:<6} {:<14} {note}", area.word());
        let said = faults.iter().map(|fault| ("", fault));
        for (kind, fault) in said.chain(warnings.iter().map(|fault| ("warning: ", fault))) {
            let _ = writeln!(text, "       {kind}{fault}\n         do: {}", fault.hint);
        }
    }
    let _ = match wrong {
        0 => writeln!(text, "nothing is wrong"),
        1 => writeln!(text, "1 thing is wrong"),
        more => writeln!(text, "{more} things are wrong; begin with the first"),
    };
    text
}
