//! Network namespaces, links, addresses and routes, over rtnetlink; no program is called.
//!
//! Functions that have no [`Namespace`] in their arguments act on the calling thread's. Everything
//! that makes something is idempotent and says whether it changed anything.

mod cable;
mod claim;
mod error;
mod facts;
mod forward;
mod link;
mod namespace;
mod netlink;
mod route;
mod sockets;
mod tables;
mod watch;

pub use cable::Cable;
pub use claim::{Known, claim, give_up};
pub use facts::{addresses, default_source, ipv6_available};
pub use forward::{forwards, lead_to_loopback, set_forwarding, tune_alike};
pub use link::{
    LOOPBACK, Link, add_address, link, link_addresses, links, lo_up, remove_link, set_up, veth_pair,
};
pub use namespace::{FOLDER, Identity, Namespace, block_on, mount_privately};
pub use route::source_towards;
pub use route::{
    ROUTE_PROTOCOL, VirtualRoute, add_default_route, add_route, ensure_virtual_route, our_virtual_routes,
    remove_virtual_route, virtual_route_state,
};
pub use sockets::{Socket, Sockets, sockets};
pub use tables::{describe_routes, describe_rules};
pub use watch::{LinkWatch, RouteWatch};
