//! The cable between a service's namespace and the host: a veth pair with an address at each end, and the
//! way out.

use ipnet::IpNet;

use super::link::{add_address, link_addresses, links, lo_up, remove_link, set_up, veth_pair};
use super::namespace::Namespace;
use super::route::add_default_route;
use crate::base::Fault;

/// What a cable shall be.
#[derive(Debug, Clone, Copy)]
pub struct Cable<'a> {
    /// The namespace at its other end.
    pub namespace: &'a Namespace,
    /// The name of the end in the calling thread's namespace.
    pub outer: &'a str,
    /// The name of the end in the other one.
    pub inner: &'a str,
    /// The address here; from there it is the way to everywhere.
    pub outside: IpNet,
    /// The address there.
    pub inside: IpNet,
}

impl Cable<'_> {
    /// Makes the cable be as described. Returns what had to be done for that, a line each. Safe to be
    /// killed at any line: the next run goes on from there.
    ///
    /// # Errors
    /// `ENM-N001` no privilege, `ENM-N011` the kernel refused.
    pub fn lay(&self) -> Result<Vec<String>, Fault> {
        let own = Namespace::own()?;
        let mut done = Vec::new();
        self.take_away_halves(&own)?;
        if veth_pair((&own, self.outer), (self.namespace, self.inner))? {
            done.push(format!("+ link {} to {}", self.outer, self.namespace));
        }
        let outer = own.run_async(|| ends(self.outer, self.outside))??;
        done.extend(outer);
        let inner = self.namespace.run_async(|| async {
            let mut done = Vec::new();
            if lo_up().await? {
                done.push("+ link lo is up".to_owned());
            }
            done.extend(ends(self.inner, self.inside).await?);
            if add_default_route(self.outside.addr()).await? {
                done.push(format!("+ route default via {}", self.outside.addr()));
            }
            Ok::<_, Fault>(done)
        })??;
        done.extend(inner.into_iter().map(|line| format!("{line} (in {})", self.namespace)));
        Ok(done)
    }

    /// An end without its other end is one of a namespace that is gone, or somebody renamed or moved it.
    fn take_away_halves(&self, own: &Namespace) -> Result<(), Fault> {
        let is_there = |namespace: &Namespace, name: &str| -> Result<bool, Fault> {
            let links = namespace.run_async(links)??;
            Ok(links.iter().any(|link| link.name == name))
        };
        match (is_there(own, self.outer)?, is_there(self.namespace, self.inner)?) {
            (true, false) => own.run_async(|| remove_link(self.outer))??,
            (false, true) => self.namespace.run_async(|| remove_link(self.inner))??,
            _ => false,
        };
        Ok(())
    }
}

async fn ends(name: &str, address: IpNet) -> Result<Vec<String>, Fault> {
    let mut done = Vec::new();
    let there = link_addresses().await?;
    // Looked at first: adding one that is there already is an error of the kernel's for some families.
    let has = there.iter().any(|(link, own)| link.name == name && *own == address);
    if !has && add_address(name, address).await? {
        done.push(format!("+ address {address} on {name}"));
    }
    if set_up(name).await? {
        done.push(format!("+ link {name} is up"));
    }
    Ok(done)
}
