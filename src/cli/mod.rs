//! One file a verb: what it takes, and its run. Nothing here that a user of the library would miss.

mod apply;
mod ca;
mod check;
mod confirm;
mod demo;
mod doctor;
mod down;
mod early;
mod explain;
mod hold;
mod init;
mod migrate;
mod output;
mod package_files;
mod plan;
mod probe;
mod reap;
mod redirect_traffic;
mod render;
mod report;
mod run;
mod status;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::base::{Class, Fault, Root};
use crate::daemon::log;
use crate::netns;
use output::Answer;

/// Puts the services of this host into a Consul service mesh, without touching the applications.
#[derive(Debug, Parser)]
#[command(
    name = "enmesh",
    version,
    max_term_width = 100,
    propagate_version = true,
    after_help = "Examples:\n  enmesh check                 is the configuration right?\n  enmesh plan                  what would change on this host?\n  enmesh apply                 make it so, once\n  enmesh status                how are the sidecars?\n  enmesh doctor                what is wrong, and what to do?\n\nExit status: 0 done, 1 failed, 2 `plan --exit-code` found changes or `doctor` something wrong, 64 usage, 65 bad configuration,\n69 something needed is not there, 77 missing privilege."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Read and write every path below DIR instead of /
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Answer with one JSON document on standard output
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    fn root(&self) -> Root {
        // Envoy and the service manager need absolute paths, wherever they run.
        Root::new(std::path::absolute(&self.root).unwrap_or_else(|_| self.root.clone()))
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon: converge now and whenever something changes
    Run(run::Run),
    /// Converge once and exit
    Apply(apply::Apply),
    /// Keep the change that `apply --confirm` began
    Confirm(confirm::Confirm),
    /// Load the last rules with no sidecar live, before the network is up
    Early(early::Early),
    /// Set the rules with no sidecar live, and exit: for an init container
    Init(init::Init),
    /// Show what `apply` would change, touching nothing
    Plan(plan::Plan),
    /// Print an artefact to standard output, touching nothing
    Render(render::Render),
    /// Say what happens to a connection, and which rule decides
    Explain(explain::Explain),
    /// Take services out of the mesh; without names, all of them, leaving nothing behind
    Down(down::Down),
    /// Show services, sidecars, rules and the last errors
    Status(status::Status),
    /// Redirect traffic to an Envoy that somebody else runs, by the flags of Consul's own command
    RedirectTraffic(Box<redirect_traffic::RedirectTraffic>),
    /// Take over from the scripts and redirectors that have set the rules so far
    Migrate(migrate::Migrate),
    /// Say what is wrong with this host, and what to do about it
    Doctor(doctor::Doctor),
    /// Find out what this kernel and its tools can do, and what is lost without the rest
    Probe(probe::Probe),
    /// Validate configuration, offline
    Check(check::Check),
    /// Wait until a service's sidecar is live, as in ExecStartPre=
    Wait(wait::Wait),
    /// Say whether a unit may start, as systemd asks before it does
    Hold(hold::Hold),
    /// Say how a `ttl` check is: the app's own word about itself
    Report(report::Report),
    /// Take out of Consul what hosts have left behind that are gone
    Reap(Box<reap::Reap>),
    /// Make a local certificate authority, or a certificate from it
    Ca(ca::Ca),
    /// Two hosts on this machine, with proof line by line
    Demo(demo::Demo),
    /// The applications of the demo's hosts
    #[command(hide = true)]
    DemoApp(demo::DemoApp),
    /// Write man pages and completions
    #[command(hide = true)]
    PackageFiles(package_files::PackageFiles),
}

/// Parses the command line, does what it says, and returns the exit status.
pub fn main() -> ExitCode {
    if let Some(done) = hold::generator(std::env::args_os()) {
        return done;
    }
    let cli = match Cli::try_parse_from(redirect_traffic::two_dashes(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(Class::Usage.exit_code()),
            };
        }
    };
    let json = cli.global.json || std::env::args_os().any(|argument| argument == "--json");
    match dispatch(cli) {
        Ok(answer) => answer.print(json),
        Err(fault) => output::print_fault(&fault, json),
    }
}

fn dispatch(cli: Cli) -> Result<Answer, Fault> {
    let Cli { global, verb } = cli;
    match verb {
        Verb::Run(verb) => {
            log::start(verb.log()?, global.json);
            local(verb.run(&global))
        }
        Verb::Apply(verb) => local(verb.run(&global)),
        Verb::Confirm(verb) => local(verb.run(&global)),
        Verb::Early(verb) => local(verb.run(&global)),
        Verb::Init(verb) => local(verb.run(&global)),
        Verb::Plan(verb) => local(verb.run(&global)),
        Verb::Render(verb) => local(verb.run(&global)),
        Verb::Explain(verb) => local(verb.run(&global)),
        Verb::Down(verb) => local(verb.run(&global)),
        Verb::Status(verb) => local(verb.run(&global)),
        Verb::RedirectTraffic(verb) => local(verb.run(&global)),
        Verb::Migrate(verb) => local(verb.run(&global)),
        Verb::Doctor(verb) => local(verb.run(&global)),
        Verb::Probe(verb) => local(verb.run(&global)),
        Verb::Check(verb) => verb.run(&global),
        Verb::Wait(verb) => local(verb.run(&global)),
        Verb::Hold(verb) => local(verb.run(&global)),
        Verb::Report(verb) => local(verb.run(&global)),
        Verb::Reap(verb) => local(verb.run(&global)),
        Verb::Ca(verb) => verb.run(&global),
        Verb::Demo(verb) => verb.run(&global),
        Verb::DemoApp(verb) => verb.run(),
        Verb::PackageFiles(verb) => verb.run(&global),
    }
}

/// Everything asynchronous runs on this one thread.
fn local<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    netns::block_on(work)?
}
