//! Envoy: the bootstrap and the file-xDS resources that drive it, their publication with a look at
//! what Envoy made of them, and the client of its admin socket.
//!
//! Rendering is pure: [`bootstrap()`], [`resources()`] and [`secrets()`] turn one service of the plan and
//! the view of the mesh into JSON, byte for byte the same for the same input. [`Publisher`] writes
//! that to the sidecar's folder:
//!
//! | below `/run/enmesh/<id>/` | what | who reads it |
//! |---|---|---|
//! | `bootstrap.json` | node, admin socket, where the rest is | Envoy, at start |
//! | `lds.json`, `cds.json` | listeners; clusters with their endpoints | Envoy, whenever renamed into place |
//! | `secrets/connect-leaf.json`, `secrets/connect-root.json` | one secret a file, as Envoy wants it | the same |
//! | `admin/envoy.sock` | the admin socket; Envoy makes it, so the folder is its group's | enmesh |
//! | `last-good/` | the last set of files that Envoy was seen to run | enmesh, to roll back |

mod admin;
mod bootstrap;
mod clusters;
mod destinations;
mod error;
mod http;
mod intentions;
mod layout;
mod listeners;
mod names;
mod options;
mod program;
mod publish;
mod reason;
mod resources;
mod secrets;
mod stats_tags;
mod typed;
mod verify;

pub use admin::{Admin, CertificateInfo, Decisions, Readiness, ServerInfo};
pub use bootstrap::bootstrap;
pub use destinations::{Lead, lead};
pub use error::EnvoyError;
pub use layout::Layout;
pub use options::ProxyOptions;
pub use program::{INOTIFY_INSTANCES, Programs, unit_spec};
pub use publish::{Published, Publisher};
pub use resources::{FileSet, Resources, resources, validate_document};
pub use secrets::secrets;
