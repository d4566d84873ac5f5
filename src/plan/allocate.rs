//! Ports and virtual IPs, given out so that one service's coming or going never moves another's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::value::{ServiceId, ServiceName};

/// What has been given out. It only ever grows, until a range is used up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// Outbound listener ports.
    pub outbound: BTreeMap<ServiceId, u16>,
    /// Public listener ports.
    pub inbound: BTreeMap<ServiceId, u16>,
    /// Virtual IPs of the mesh's services.
    pub virtual_ips: BTreeMap<ServiceName, Ipv4Addr>,
}
