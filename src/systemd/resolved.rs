//! systemd-resolved is told to ask our resolver for a domain: a drop-in below `/run`, and a reload
//! when it changed.
//!
//! Such servers belong to resolved's global scope. Names outside the domain may reach our resolver
//! as well (it refuses them unless DNS is redirected to it, too), and a host whose own `resolved.conf` has a global `DNS=` shares that
//! scope with us; there `dns = "redirect"` is the way.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::job::Verb;
use super::{Systemd, call_failed};
use crate::base::files::{self, Access};
use crate::base::{Fault, Root};

/// The unit that reads the drop-in.
const UNIT: &str = "systemd-resolved.service";
/// The domain of Consul's names. The whole of it, not `virtual.consul` alone, so that
/// `NAME.service.consul` is answered as well and never asked of a public server.
pub const DOMAIN: &str = "consul";

fn path(root: &Root) -> PathBuf {
    root.join("/run/systemd/resolved.conf.d/enmesh.conf")
}

/// The drop-in's text (resolved.conf(5)); `~` makes the domain a route, not a search suffix.
pub fn render(server: SocketAddr, domain: &str) -> String {
    format!("# Written by enmesh; `enmesh down` removes it.\n[Resolve]\nDNS={server}\nDomains=~{domain}\n")
}

impl Systemd {
    /// Has systemd-resolved ask `server` for names below `domain`; whether that changed anything.
    /// Where systemd-resolved does not run, the drop-in waits for its start.
    ///
    /// # Errors
    /// `ENM-X…` the drop-in cannot be written; `ENM-S…` systemd-resolved does not take it up.
    pub async fn feed_resolver(&self, server: SocketAddr, domain: &str) -> Result<bool, Fault> {
        let path = path(&self.shared.root);
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            files::folder(folder, Access::mode(0o755))?;
        }
        let changed = files::write(&path, render(server, domain).as_bytes(), Access::mode(0o644))?;
        self.after_resolver_change(changed).await
    }

    /// Takes [`Systemd::feed_resolver`] back; whether there was anything to take back.
    ///
    /// # Errors
    /// As [`Systemd::feed_resolver`].
    pub async fn unfeed_resolver(&self) -> Result<bool, Fault> {
        let changed = files::remove(&path(&self.shared.root))?;
        self.after_resolver_change(changed).await
    }

    async fn after_resolver_change(&self, changed: bool) -> Result<bool, Fault> {
        if changed && self.resolver_runs().await? {
            self.shared.job(Verb::Reload, UNIT).await?;
        }
        Ok(changed)
    }

    async fn resolver_runs(&self) -> Result<bool, Fault> {
        let manager = self.shared.manager().await?;
        let active = manager.list_units_by_patterns(&["active", "activating", "reloading"], &[UNIT]).await;
        Ok(!active.map_err(|e| call_failed("ListUnitsByPatterns", UNIT, e))?.is_empty())
    }
}
