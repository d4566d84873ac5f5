//! ACLs: a token by a login and for as long as the login lives, whose token it is, and whether it
//! may do what enmesh needs. `docs/acl.md` has the policies that give just that.

mod bearer;
mod login;
mod refusal;
mod rights;
mod session;
mod whoami;

pub use login::Login;
pub use rights::{Access, Right, check_rights, missing_rights, needed_rights};
pub use session::Session;
pub use whoami::{Whoami, whoami};

pub(super) use rights::needed_for;
