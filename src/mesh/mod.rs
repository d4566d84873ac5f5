//! Who is out there, and as whom we speak: services, instances, virtual IPs, who may call whom,
//! names and certificates.
//!
//! A [`MeshSource`] fills the plan's mesh types: [`StaticMesh`] from a peers file and a local CA, for
//! hosts without Consul servers, [`CatalogMesh`] from Consul's HTTP API. Beside them stands the
//! [`Resolver`] that answers for the mesh's names.

pub mod ca;
pub mod catalog;
pub mod commands;
pub mod dns;
mod input;
pub mod peers;
mod source;

pub use catalog::CatalogMesh;
pub use commands::{InitReport, InitRequest, IssueReport, IssueRequest, ca_init, ca_issue};
pub use dns::Resolver;
pub use peers::TrustDomain;
pub use source::{Link, Local, MeshSource, StaticMesh, UNMADE_TRUST_DOMAIN};
