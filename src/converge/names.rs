//! The mesh's names on this host: our resolver, and systemd-resolved told of it.

use std::rc::Rc;

use crate::base::Fault;
use crate::mesh::Resolver;
use crate::plan::DnsPlan;
use crate::systemd::{Systemd, resolved};

/// The resolver while it runs.
#[derive(Default)]
pub(super) struct Names {
    resolver: Option<Resolver>,
}

impl Names {
    /// Answers the names of `dns`, and has systemd-resolved ask.
    ///
    /// # Errors
    /// The address cannot be listened on, or systemd-resolved does not take it up.
    pub async fn serve(&mut self, dns: &DnsPlan, systemd: Option<&Rc<Systemd>>) -> Result<(), Fault> {
        let Some(listen) = dns.listen else { return self.end(systemd).await };
        if self.resolver.as_ref().is_none_or(|resolver| resolver.address() != listen) {
            // The old one ends first: it may hold the port that the new one wants.
            self.stop().await;
            self.resolver = Some(Resolver::start(listen)?);
        }
        if let Some(resolver) = &self.resolver {
            resolver.update(dns.records.clone());
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
