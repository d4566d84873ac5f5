//! Nobody is locked out: the port over which somebody is logged in is not captured unasked.

use std::net::IpAddr;

use super::facts::SshSession;
use super::problem::PlanError;
use super::{HostFacts, InboundCapture, InboundPorts};
use crate::base::Fault;
use crate::config::value::Scope;
use crate::config::{Ipv6Policy, ServiceConfig};

/// Whether `capture` would take the port of a session, so that nobody else could log in there. A service
/// that is in force as it is goes on: who is logged in got in beside it.
///
/// # Errors
/// `ENM-P030`, unless that is forced; then it is a warning.
pub(super) fn check(
    service: &ServiceConfig,
    capture: &InboundCapture,
    facts: &HostFacts,
    warnings: &mut Vec<Fault>,
) -> Result<(), PlanError> {
    let id = service.id();
    // Nobody is logged in where nothing has ever run.
    if matches!(service.capture.scope, Scope::Netns(_)) {
        return Ok(());
    }
    if facts.last_good.get(&id) == Some(service) {
        return Ok(());
    }
    let Some(session) = facts.ssh_sessions.iter().find(|session| takes(capture, session, facts)) else {
        return Ok(());
    };
    let SshSession { peer, local, server } = session.clone();
    if !facts.force {
        return Err(PlanError::CapturesSsh { id, port: local.port(), peer, server });
    }
    let warning = PlanError::SshForced { id: id.clone(), port: local.port(), peer, server };
    warnings.push(Fault::from(warning).of_service(id));
    Ok(())
}

/// Whether a second connection like this one would be captured.
fn takes(capture: &InboundCapture, session: &SshSession, facts: &HostFacts) -> bool {
    let (port, address) = (session.local.port(), session.local.ip().to_canonical());
    // From this host to itself.
    if address.is_loopback() || session.peer.ip().to_canonical() == address {
        return false;
    }
    let bypassed = capture.bypass_ports.iter().any(|range| range.contains(port));
    let captured = match capture.ports {
        InboundPorts::One(own) => own == port,
        InboundPorts::All => true,
    };
    let allowed = address.is_ipv6() && capture.ipv6 == Ipv6Policy::Allow;
    captured && !bypassed && !allowed && !by_interface(capture, address, facts)
}

/// Whether it came in by an interface that is left alone.
fn by_interface(capture: &InboundCapture, address: IpAddr, facts: &HostFacts) -> bool {
    let mut interfaces = facts.addresses.iter().filter(|one| one.address == address);
    interfaces.any(|one| capture.bypass_interfaces.contains(&one.interface))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::OnProxyFailure;
    use crate::plan::facts::HostAddress;

    fn capture(ports: InboundPorts) -> InboundCapture {
        InboundCapture {
            ports,
            to: 21000,
            ipv6: Ipv6Policy::Redirect,
            on_failure: OnProxyFailure::Closed,
            bypass_ports: vec!["22".parse().unwrap()],
            bypass_interfaces: BTreeSet::from(["wg0".to_owned()]),
        }
    }

    #[test]
    fn what_a_second_session_would_meet() {
        let address = |interface: &str, ip: &str| HostAddress {
            interface: interface.to_owned(),
            address: ip.parse().unwrap(),
        };
        let addresses = vec![address("eth0", "10.0.0.2"), address("wg0", "10.1.0.2")];
        let facts = HostFacts { addresses, ..HostFacts::default() };
        let taken = |capture: &InboundCapture, local: &str, peer: &str| {
            let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
            takes(capture, &SshSession { peer, local, server: String::new() }, &facts)
        };
        let (all, one) = (capture(InboundPorts::All), capture(InboundPorts::One(2222)));
        for capture in [&all, &one] {
            assert!(taken(capture, "10.0.0.2:2222", "10.0.0.9:5000"));
            assert!(taken(capture, "[::ffff:10.0.0.2]:2222", "[::ffff:10.0.0.9]:5000"));
            assert!(taken(capture, "[fd00::2]:2222", "[fd00::9]:5000"));
            assert!(!taken(capture, "10.0.0.2:22", "10.0.0.9:5000"), "port 22 is bypassed");
            assert!(!taken(capture, "10.1.0.2:2222", "10.1.0.9:5000"), "its interface is");
            assert!(!taken(capture, "127.0.0.1:2222", "127.0.0.1:5000"), "from this host");
            assert!(!taken(capture, "10.0.0.2:2222", "10.0.0.2:5000"), "from this host");
        }
        assert!(!taken(&one, "10.0.0.2:2223", "10.0.0.9:5000"));
        assert!(taken(&all, "10.0.0.2:2223", "10.0.0.9:5000"));
        let allowed = InboundCapture { ipv6: Ipv6Policy::Allow, ..all };
        assert!(!taken(&allowed, "[fd00::2]:2222", "[fd00::9]:5000"));
    }
}
