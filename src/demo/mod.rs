//! Two hosts on one machine, with proof line by line.
//!
//! The hosts are network namespaces with a file tree each; on each runs the real daemon with a real
//! Envoy. The demo only looks at them from outside, as a person could: it sends requests, listens on
//! the wire, compares before and after.

pub mod app;
mod error;
mod packet;
pub mod patience;
pub mod process;
mod proof;
pub mod report;
mod scene;
pub mod setting;
pub mod snapshot;
pub mod stage;
mod tls;
pub mod wire;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use error::DemoError;
use proof::{LAST, PROOFS, URL};
use report::{Line, Play, Printer};
use scene::Scene;
use stage::{Stage, TAG};

pub use report::Report;

use crate::base::Fault;

/// What the demo is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave the hosts up at the end, and say how to play with them.
    pub keep: bool,
    /// Only take down what an earlier demo has left.
    pub clean: bool,
    /// Print nothing while at it: the report is for a program.
    pub json: bool,
}

/// What a performance is made of.
#[derive(Debug, Clone)]
pub struct Cast<'a> {
    /// Names its namespaces and files; [`TAG`], unless in a test.
    pub tag: &'a str,
    /// The program that is enmesh.
    pub program: &'a Path,
    /// Envoy's program.
    pub envoy: PathBuf,
    /// Lines that each service's `[capture]` gets beside its scope. None in the demo; a test spoils
    /// the configuration with it, to see the claims fail.
    pub capture: &'a str,
}

/// Runs the demo. Lines are printed on standard output as they are tried, unless a program reads the
/// report. Claims that do not hold are in the report and no error.
///
/// # Errors
/// `ENM-T001` to `ENM-T010`: it could not get so far as to try anything, or was interrupted. Unless
/// the hosts are to be kept, nothing is left in any case.
pub fn run(options: &Options) -> Result<Report, Fault> {
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut out = io::stdout();
    let mut printer = Printer::new(&mut out, options.json, colour);
    stage::requirements()?;
    if options.clean {
        let any = stage::clean(TAG)?;
        printer.note(if any { "taken down" } else { "nothing was left" });
        return Ok(Report { ok: true, ..Report::default() });
    }
    let envoy = stage::find_envoy()?;
    patience::heed_signals()?;
    printer.note("Two hosts on this machine, web and api, each with enmesh and an Envoy of its own.\n");
    let cast = Cast { tag: TAG, program: Path::new(process::OURSELVES), envoy, capture: "" };
    let report = perform(&cast, options.keep, &mut |line| printer.line(line))?;
    printer.end(&report);
    Ok(report)
}

/// Builds the stage, tries every claim, tells of each line as soon as it is known, and takes the
/// stage down again, unless it is to be kept.
///
/// # Errors
/// As [`run`].
pub fn perform(cast: &Cast<'_>, keep: bool, tell: &mut dyn FnMut(&Line)) -> Result<Report, Fault> {
    let started = Instant::now();
    let stage = Stage::build(cast.tag, cast.program)?;
    let mut scene = Scene::set(stage, cast)?;
    let mut report = Report::default();
    try_all(&mut scene, keep, &mut |line| {
        tell(&line);
        report.add(line);
    })?;
    if keep {
        scene.keep()?;
        report.play = plays(&scene);
    }
    drop(scene);
    report.milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// Without readiness nothing further can be tried.
fn try_all(scene: &mut Scene, keep: bool, say: &mut dyn FnMut(Line)) -> Result<(), Fault> {
    let [bare, rest @ ..] = &PROOFS;
    say(bare.line(scene)?);
    scene.start_daemons()?;
    for proof in rest.iter().filter(|proof| !(keep && proof.name == LAST)) {
        say(proof.line(scene)?);
    }
    if patience::interrupted() { Err(DemoError::Interrupted.into()) } else { Ok(()) }
}

fn plays(scene: &Scene) -> Vec<Play> {
    let (web, api) = (&scene.stage.web, &scene.stage.api);
    let ours = std::env::current_exe().unwrap_or_default().display().to_string();
    let play = |what, command: String| Play { what, command };
    vec![
        play("Be web's application", proof::in_web(scene, &format!("curl -s {URL}"))),
        play("See web's rules", format!("ip netns exec {} nft list ruleset", web.namespace_name)),
        play(
            "Watch the wire",
            format!("ip netns exec {} tcpdump -lnAi {} tcp", web.namespace_name, stage::INTERFACE),
        ),
        play("Ask web's enmesh", format!("{ours} status --root {}", web.root().path().display())),
        play("Change who may call", format!("$EDITOR {}", api.root().join(setting::PEERS).display())),
        play("Read what api says", format!("tail -f {}", api.log().display())),
        play("End it all", format!("{ours} demo --clean")),
    ]
}
