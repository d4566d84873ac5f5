//! The stage with the play on it: applications, daemons, the meter on the cable.

use std::path::PathBuf;
use std::time::Duration;

use rand::distr::{Alphanumeric, SampleString};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::app::{Hammered, Outcome};
use super::error::DemoError;
use super::patience::until;
use super::process::Process;
use super::snapshot::{Snapshot, own_rules};
use super::stage::{APP_PORT, Host, INTERFACE, Stage, await_listener};
use super::wire::{Tally, Tap};
use super::{Cast, setting};
use crate::base::Fault;
use crate::daemon::client;
use crate::netns;

/// How long a daemon may take until all it keeps is live.
const READY_LIMIT: Duration = Duration::from_secs(15);
/// How long one request of a client may take, its process included.
const GET_LIMIT: Duration = Duration::from_secs(10);
/// How many of a log's last lines are worth saying.
const LOG_LINES: usize = 8;

/// The play.
pub(super) struct Scene {
    /// Stands in every request and every answer, and must never be readable on the wire.
    pub secret: String,
    /// Listens on web's end of the cable.
    pub tap: Tap,
    /// What passed the cable for one request before enmesh was there.
    pub bare: Tally,
    /// What had passed when enmesh was started.
    pub with_bare: Tally,
    /// How the hosts were before enmesh was there: web's, then api's.
    pub before: [Snapshot; 2],
    envoy: PathBuf,
    daemons: Vec<Process>,
    app: Process,
    /// The last field, so that it goes last.
    pub stage: Stage,
}

impl Scene {
    /// Sets everything up, up to the moment before enmesh starts.
    pub(super) fn set(stage: Stage, cast: &Cast<'_>) -> Result<Scene, Fault> {
        setting::write(&stage, cast.capture)?;
        let envoy = cast.envoy.clone();
        own_rules(&stage.web.namespace)?;
        own_rules(&stage.api.namespace)?;
        let secret = Alphanumeric.sample_string(&mut rand::rng(), 32);
        let everywhere = format!("0.0.0.0:{APP_PORT}");
        let app = stage.api.start_app(&["serve", "--name", "api", "--listen", &everywhere], false)?;
        await_listener(&stage.api, ([127, 0, 0, 1], APP_PORT).into())?;
        let tap = Tap::start(&stage.web.namespace, INTERFACE, vec![secret.clone().into_bytes()])?;
        let before = [snapshot(&stage.web)?, snapshot(&stage.api)?];
        let (bare, with_bare) = Default::default();
        let mut scene =
            Scene { secret, tap, bare, with_bare, before, envoy, daemons: Vec::new(), app, stage };
        scene.bare = scene.try_bare_cable()?;
        scene.with_bare = scene.tap.tally();
        Ok(scene)
    }

    /// Starts enmesh on both hosts and waits until it is ready.
    pub(super) fn start_daemons(&mut self) -> Result<(), Fault> {
        for host in [&self.stage.web, &self.stage.api] {
            self.daemons.push(host.start_daemon(&self.envoy)?);
        }
        for (host, daemon) in [&self.stage.web, &self.stage.api].into_iter().zip(&mut self.daemons) {
            until(&format!("readiness of enmesh on {}", host.name), READY_LIMIT, || {
                if let Some(status) = daemon.ended() {
                    return Err(format!("it ended with {status}\n{}", end_of_log(host)));
                }
                match status(host) {
                    Some(status) if status.get("ready") == Some(&Value::Bool(true)) => Ok(()),
                    Some(status) => {
                        let faults = status.get("faults").map(Value::to_string).unwrap_or_default();
                        Err(format!("{faults}\n{}", end_of_log(host)))
                    }
                    None => Err(end_of_log(host)),
                }
            })?;
        }
        Ok(())
    }

    /// `enmesh down` on both hosts, as a person types it; waits until the daemons have ended.
    pub(super) fn down(&mut self) -> Result<(), Fault> {
        for host in [&self.stage.web, &self.stage.api] {
            host.enmesh(&["down"], &self.envoy)?.output(GET_LIMIT)?;
        }
        until("the end of both daemons", GET_LIMIT, || {
            let running = self.daemons.iter_mut().filter_map(|d| d.ended().is_none().then(|| d.pid()));
            let running: Vec<u32> = running.collect();
            if running.is_empty() { Ok(()) } else { Err(format!("{running:?} are still there")) }
        })
    }

    /// How the hosts are now: web's, then api's.
    pub(super) fn snapshots(&self) -> Result<[Snapshot; 2], Fault> {
        Ok([snapshot(&self.stage.web)?, snapshot(&self.stage.api)?])
    }

    /// One request of web's application.
    pub(super) fn get(&self, url: &str) -> Result<Outcome, Fault> {
        self.ask(&["get", url, "--secret", &self.secret], GET_LIMIT)
    }

    /// Starts many requests of web's application, `rate` a second for `length`: one by the service's
    /// name, one to its own address and port, and so on.
    pub(super) fn hammer(&self, url: &str, rate: u32, length: Duration) -> Result<Process, Fault> {
        let (rate, length, direct) = (rate.to_string(), length.as_millis().to_string(), self.direct_url());
        let arguments =
            ["hammer", url, &direct, "--secret", &self.secret, "--rate", &rate, "--milliseconds", &length];
        self.stage.web.start_app(&arguments, true)
    }

    /// The service as somebody dials it who knows where it runs, and nothing of a mesh. Without enmesh
    /// this goes in the clear.
    pub(super) fn direct_url(&self) -> String {
        format!("http://{}:{APP_PORT}/", self.stage.api.address)
    }

    /// What came of it.
    pub(super) fn hammered(process: Process) -> Result<Hammered, Fault> {
        read(&process.output(GET_LIMIT * 2)?)
    }

    /// The process of `host`'s sidecar, when it is live.
    pub(super) fn sidecar(host: &Host) -> Option<u32> {
        let status = status(host)?;
        let service = status.get("services")?.get(host.name)?;
        let live = service.get("phase")?.as_str()? == "live";
        let pid = service.get("pid")?.as_u64()?;
        u32::try_from(pid).ok().filter(|_| live)
    }

    /// Leaves everything running when this value goes.
    pub(super) fn keep(&mut self) -> Result<(), Fault> {
        for host in [&self.stage.web, &self.stage.api] {
            host.offer_to_ip_netns()?;
        }
        self.daemons.iter_mut().chain([&mut self.app]).for_each(Process::let_go);
        self.stage.keep();
        Ok(())
    }

    /// The same request without enmesh: what the meter says to that is what it is worth.
    fn try_bare_cable(&self) -> Result<Tally, Fault> {
        let url = self.direct_url();
        let earlier = self.tap.tally();
        let outcome = self.get(&url)?;
        if !outcome.is_success() {
            let what = format!("without enmesh, {url} is not answered: {}", outcome.describe());
            return Err(DemoError::Nonsense { who: "the service".to_owned(), what }.into());
        }
        Ok(self.tap.tally().since(&earlier))
    }

    fn ask<T: DeserializeOwned>(&self, arguments: &[&str], limit: Duration) -> Result<T, Fault> {
        read(&self.stage.web.start_app(arguments, true)?.output(limit)?)
    }
}

/// What the daemon of `host` says about itself; `None` while there is none.
pub(super) fn status(host: &Host) -> Option<Value> {
    netns::block_on(client::status(&host.root())).ok()?.ok()?
}

fn snapshot(host: &Host) -> Result<Snapshot, Fault> {
    Snapshot::take(&host.namespace, &[&host.root().join("/run")])
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let nonsense = |e: serde_json::Error| DemoError::Nonsense {
        who: "the client".to_owned(),
        what: format!("{e}: {}", text.lines().next().unwrap_or_default()),
    };
    Ok(serde_json::from_str(text).map_err(nonsense)?)
}

/// The last lines of what `host`'s daemon and sidecar have said.
pub(super) fn end_of_log(host: &Host) -> String {
    let text = std::fs::read_to_string(host.log()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
}
