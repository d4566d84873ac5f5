//! `enmesh reap`

use std::io::Write;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::Global;
use super::output::{Answer, print_fault};
use crate::base::Fault;
use crate::config::value::Span;
use crate::config::{self, Config};
use crate::converge::facts;
use crate::platform::Management;
use crate::reap::{self, Reaper, Report, Settings};

/// Take out of Consul what hosts have left behind that are gone
#[derive(Debug, Args)]
#[command(
    after_help = "Services registered without an agent (registration = \"catalog\") stay in Consul until somebody takes them out. \
A host that is told to stop does; for one that was killed, this does. Nothing goes at first sight: what is gone is \
remembered in Consul (enmesh/reap/) and goes when it was gone for --grace. Several may run; one at a time works.\n\n\
Examples:\n  enmesh reap --scope /subscriptions/ID --dry-run         what would go?\n  \
enmesh reap --scope /subscriptions/ID --interval 1m     go on, as a container\n  \
enmesh reap --leases                                    by leases alone, on any platform\n  \
enmesh reap --scope /subscriptions/ID --max-share 100   half of all are gone, and that is right\n  \
systemctl enable --now enmesh-reap.timer                every minute, by [reap] in the host file"
)]
pub struct Reap {
    /// Ask the platform for the container groups of this subscription or resource group; more than once for several
    #[arg(long, value_name = "ID")]
    scope: Vec<String>,
    /// Judge by their leases all those whose platform is not asked
    #[arg(long)]
    leases: bool,
    /// How long something has to be gone; 5m by default
    #[arg(long, value_name = "SPAN")]
    grace: Option<Span>,
    /// Take out nothing when more than this share of all would go, in percent; 50 by default
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    max_share: Option<u8>,
    /// End the logins at this auth method with their hosts; that of [consul.login] by default
    #[arg(long, value_name = "NAME")]
    auth_method: Vec<String>,
    /// Go on, with a pass every SPAN
    #[arg(long, value_name = "SPAN")]
    interval: Option<Span>,
    /// Say what would go, and do nothing
    #[arg(long)]
    dry_run: bool,
}

impl Reap {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let env = |name: &str| std::env::var(name).ok();
        let config = config::load(&root, &env);
        if let Some(fault) = config.errors.iter().find(|fault| !config.host_ok && fault.service.is_none()) {
            return Err(fault.clone());
        }
        let settings = self.settings(&config)?;
        let host = &config.host;
        let session = reap::Session::new(&root, host, &env)?;
        let management = (!settings.scopes.is_empty()).then(|| Management::new(&host.platform, &env));
        let name = format!("{} (process {})", facts::hostname(&root), std::process::id());
        let mut reaper = Reaper::new(session.client(), management, settings, name)?;
        match self.interval {
            None => {
                session.keep().await?;
                let report = reaper.pass(&say).await;
                reaper.rest().await;
                Ok(answer(report?))
            }
            Some(Span(every)) => {
                let answer =
                    go_on(&mut reaper, &session, every.max(std::time::Duration::from_secs(1)), global.json)
                        .await;
                reaper.rest().await;
                session.end().await;
                answer
            }
        }
    }

    /// What the flags say, else the host file.
    fn settings(&self, config: &Config) -> Result<Settings, Fault> {
        let (reap, login) = (&config.host.reap, &config.host.consul.login);
        let or = |flags: &[String], file: &[String]| {
            if flags.is_empty() { file.to_vec() } else { flags.to_vec() }
        };
        let scopes = or(&self.scope, &reap.scopes);
        if let Some(scope) = scopes.iter().find(|scope| !config::is_scope(scope)) {
            return Err(reap::ReapError::Scope { scope: scope.clone() }.into());
        }
        let mut auth_methods = or(&self.auth_method, &reap.auth_methods);
        if auth_methods.is_empty() {
            auth_methods.extend(login.iter().map(|login| login.method.clone()));
        }
        Ok(Settings {
            scopes,
            leases: self.leases || reap.leases,
            grace: self.grace.unwrap_or(reap.grace).0,
            max_share: self.max_share.unwrap_or(reap.max_share),
            auth_methods,
            dry_run: self.dry_run,
        })
    }
}

/// A pass every `every`, until told to end. Each says what it did; one that failed says why, and the
/// next one comes all the same.
async fn go_on(
    reaper: &mut Reaper,
    session: &reap::Session,
    every: std::time::Duration,
    json: bool,
) -> Result<Answer, Fault> {
    let ends = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(mut terminate), Ok(mut interrupt)] = ends else { return Ok(Answer::new("", &())) };
    loop {
        let next = Instant::now() + every;
        let pass = async {
            session.keep().await?;
            reaper.pass(&say).await
        };
        let outcome = tokio::select! {
            outcome = pass => outcome,
            () = told_to_end(&mut terminate, &mut interrupt) => break,
        };
        match outcome {
            Ok(report) => drop(answer(report).print(json)),
            Err(fault) if !reap::may_pass(&fault) => return Err(fault),
            Err(fault) => drop(print_fault(&fault, json)),
        }
        while Instant::now() < next {
            let look = next.min(Instant::now() + reaper.lead_lasts());
            tokio::select! {
                () = sleep_until(look) => reaper.keep_lead().await,
                () = told_to_end(&mut terminate, &mut interrupt) => return Ok(ended()),
            }
        }
    }
    Ok(ended())
}

async fn told_to_end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn ended() -> Answer {
    Answer::new("", &serde_json::json!({ "ended": true }))
}

fn answer(report: Report) -> Answer {
    let answer = Answer::new(report.to_string(), &report);
    let (faults, warnings) = (report.faults, report.warnings);
    answer.with_faults(faults, warnings)
}

/// How far it is, for whoever watches; a reader that went away is no failure.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
