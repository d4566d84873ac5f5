//! The mesh's names on this host: our resolver, and systemd-resolved told of it.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;

use crate::base::{Fault, Root};
use crate::mesh::{HostServers, Others, Resolver};
use crate::plan::DnsPlan;
use crate::systemd::{Systemd, resolved};

/// Where systemd-resolved writes whom it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// The resolver while it runs.
pub(super) struct Names {
    root: Root,
    resolver: Option<Resolver>,
    /// Where it was told to listen, and whether to redirected queries as well.
    runs_at: Option<(SocketAddr, bool)>,
    /// For which namespaces it listens, too.
    inside: BTreeSet<SocketAddr>,
}

impl Names {
    /// No resolver yet; `root` is the tree in which the host's nameservers are written down.
    pub fn new(root: Root) -> Self {
        Names { root, resolver: None, runs_at: None, inside: BTreeSet::new() }
    }

    /// Answers the names of `dns`, and has systemd-resolved ask.
    ///
    /// # Errors
    /// The address cannot be listened on, packets cannot be marked, or systemd-resolved does not take it up.
    pub async fn serve(&mut self, dns: &DnsPlan, systemd: Option<&Rc<Systemd>>) -> Result<(), Fault> {
        let Some(listen) = dns.listen else { return self.end(systemd).await };
        if self.runs_at != Some((listen, dns.redirect)) || !self.inside.is_subset(&dns.inside) {
            // The old one ends first: it may hold the port that the new one wants.
            self.stop().await;
            self.resolver = Some(start(listen, dns.redirect)?);
            self.runs_at = Some((listen, dns.redirect));
        }
        if let Some(resolver) = &mut self.resolver {
            for outside in dns.inside.difference(&self.inside.clone()) {
                match resolver.for_namespace(*outside) {
                    Ok(()) => drop(self.inside.insert(*outside)),
                    // There the application's next nameserver answers, which knows no names of the mesh.
                    Err(fault) => tracing::warn!(error = %fault, "no names of the mesh in a namespace"),
                }
            }
            resolver.update(dns.records.clone());
            resolver.ask(others(&self.root, dns));
            resolver.live(dns.redirect)?;
        }
        if let Some(systemd) = systemd {
            if dns.resolved {
                systemd.feed_resolver(listen, resolved::DOMAIN).await?;
            } else {
                systemd.unfeed_resolver().await?;
            }
        }
        Ok(())
    }

    async fn stop(&mut self) {
        self.runs_at = None;
        self.inside.clear();
        if let Some(resolver) = self.resolver.take() {
            resolver.stop().await;
        }
    }

    /// Stops answering.
    ///
    /// # Errors
    /// systemd-resolved does not take it up.
    pub async fn end(&mut self, systemd: Option<&Rc<Systemd>>) -> Result<(), Fault> {
        self.stop().await;
        if let Some(systemd) = systemd {
            systemd.unfeed_resolver().await?;
        }
        Ok(())
    }
}

/// The resolver; for queries that are redirected it listens in IPv6 as well.
fn start(listen: SocketAddr, redirect: bool) -> Result<Resolver, Fault> {
    let mut resolver = Resolver::start(listen)?;
    if redirect && let Err(fault) = resolver.also((Ipv6Addr::LOCALHOST, listen.port()).into()) {
        // Without a sign of life in IPv6, nothing is redirected there.
        tracing::info!(error = %fault, "queries over IPv6 are not redirected");
    }
    Ok(resolver)
}

/// Whom the resolver asks. Names outside of the mesh are its business only when queries are redirected to
/// it, or come from namespaces; whoever else asks for them has other resolvers.
fn others(root: &Root, dns: &DnsPlan) -> Others {
    let host = (dns.redirect || !dns.inside.is_empty()).then(|| HostServers {
        file: root.join("/etc/resolv.conf"),
        // A systemd-resolved that asks us must not be asked by us.
        behind_stub: dns.resolved.then(|| root.join(BEHIND_STUB)),
    });
    Others { consul: dns.consul, host, marked: dns.redirect }
}
