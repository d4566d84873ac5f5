//! What several machines are plugged into: a bridge in a namespace of its own, where all that they say
//! to each other can be listened to.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use enmesh::netns::Namespace;

use crate::cable::{BRIDGE, OUTSIDE, Port, ip};
use crate::machine::{claim, clear_away};

/// A switch; ends with the value.
pub struct Switch {
    /// Its namespace's name.
    pub name: String,
    folder: PathBuf,
    outside: IpAddr,
    /// Where its bridge and its ports are.
    pub namespace: Namespace,
}

impl Switch {
    /// Makes one. It has the address of everybody else.
    pub fn make() -> Switch {
        Switch::make_at(OUTSIDE)
    }

    /// The same in another network.
    pub fn make_at(outside: IpAddr) -> Switch {
        let (name, folder) = claim("switch");
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link add {BRIDGE} type bridge"));
        ip(&format!("-n {name} address add {outside}/24 dev {BRIDGE}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set {BRIDGE} up"));
        let namespace = Namespace::by_name(&name).expect("it was made");
        Switch { name, folder, outside, namespace }
    }

    /// A port for a machine with `address`.
    pub fn port(&self, interface: &str, address: Ipv4Addr) -> Port {
        Port { switch: self.name.clone(), interface: interface.to_owned(), address, outside: self.outside }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        clear_away(&self.name, &self.folder);
    }
}
