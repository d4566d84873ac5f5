//! One run of one check.

use std::time::Duration;

use super::connect::{Target, Tls};
use super::exec::program;
use super::state::Finding;
use super::{CheckStatus, grpc, http};
use crate::base::exec::User;
use crate::config::Check;

/// How long a run may take unless the check says otherwise; both are Consul's.
const TIMEOUT: Duration = Duration::from_secs(10);
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// A check that can be run.
pub(super) struct Probe {
    check: Check,
    exec_as: Option<User>,
    tls: Tls,
    limit: Duration,
}

impl Probe {
    /// The kinds of check that are run here.
    pub const KINDS: [&'static str; 4] = ["http", "tcp", "grpc", "exec"];

    pub fn new(check: Check, exec_as: Option<User>) -> Self {
        let usual = if check.exec.is_some() { EXEC_TIMEOUT } else { TIMEOUT };
        let limit = check.timeout.map_or(usual, |timeout| timeout.0);
        let tls = Tls::new(check.tls_skip_verify, check.tls_server_name.clone());
        Probe { check, exec_as, tls, limit }
    }

    /// Never fails: what goes wrong is what was found.
    pub async fn run(&self) -> Finding {
        if let Some(command) = &self.check.exec {
            return program(command, self.exec_as, self.limit).await;
        }
        let limit = humantime::format_duration(self.limit);
        tokio::time::timeout(self.limit, self.ask())
            .await
            .unwrap_or_else(|_| Finding::critical(format!("no answer within {limit}")))
    }

    async fn ask(&self) -> Finding {
        let Check { http, tcp, grpc, .. } = &self.check;
        if let Some(url) = http {
            return http::ask(url, &self.check, &self.tls).await;
        }
        if let Some(target) = grpc {
            return grpc::ask(target, self.check.grpc_use_tls.then_some(&self.tls)).await;
        }
        let Some(target) = tcp else { return Finding::critical("the check has no kind") };
        match self.connect(target).await {
            Ok(()) => Finding::new(CheckStatus::Passing, &format!("TCP connect {target}: success")),
            Err(why) => Finding::critical(format!("TCP connect {target}: {why}")),
        }
    }

    async fn connect(&self, target: &str) -> Result<(), String> {
        let target = Target::parse(target)?;
        let stream = target.dial().await?;
        if self.check.tcp_use_tls {
            self.tls.wrap(stream, &target.host, &[]).await?;
        }
        Ok(())
    }
}
