//! The cloud platform that runs container groups: who this host is there (a managed identity's token),
//! which groups there are, how each is, and which address one is reached at. Reads only.
//!
//! What a service or a Consul is, it does not know. The shapes are those of the platform's public
//! reference; `docs/identity.md` and `docs/reap.md` say what is asked, and which rights that takes.

mod error;
mod groups;
mod http;
mod identity;

pub use error::PlatformError;
pub use groups::{Group, Life, Management};
pub use identity::ManagedIdentity;
