//! The token that a reaper calls Consul with. A login of its own, beside that of a daemon on the same
//! host, is kept in a file from one run to the next.

use std::rc::Rc;

use super::Asked;
use crate::base::{Fault, Root};
use crate::config::HostConfig;
use crate::consul::{Client, Login, Settings, TokenSource, whoami};
use crate::platform::ManagedIdentity;

/// Where its login is kept.
const FILE: &str = "/run/enmesh/reap-token.json";

/// A reaper's way to Consul.
pub struct Session {
    client: Client,
    login: Option<Login>,
}

impl Session {
    /// As `host` says; `env` answers for the environment. Talks to nobody.
    ///
    /// # Errors
    /// `ENM-K001`, `ENM-K010`: the address or a file for TLS cannot be used.
    pub fn new(root: &Root, host: &HostConfig, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let client = Client::new(Settings::new(&host.consul, root, env)?)?;
        let login = host.consul.login.as_ref().map(|config| {
            let login = Login::new(&client, config.clone(), root).kept_at(root.join(FILE));
            match &config.identity {
                Some(identity) => {
                    login.with_bearer(Rc::new(ManagedIdentity::new(&host.platform, identity, env)))
                }
                None => login,
            }
        });
        Ok(Session { client, login })
    }

    /// The client, which has the token once [`Session::keep`] was called.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Sees to it that there is a token that can be used.
    ///
    /// # Errors
    /// Those of a login, where none stands.
    pub async fn keep(&self) -> Result<(), Fault> {
        let Some(login) = &self.login else { return Ok(()) };
        login.login().await?;
        if login.is_due() || !login.stands() {
            let renewed = login.renew().await.map(drop);
            if !login.stands() {
                renewed?;
            }
        }
        // Nobody else has the token of before.
        let _ = login.retire_old().await;
        Ok(())
    }

    /// Logs out.
    pub async fn end(&self) {
        if let Some(login) = &self.login {
            let _ = login.logout().await;
        }
    }
}

/// The accessor of the token that is called with, where there is one.
pub(super) async fn own_accessor(consul: &Asked) -> Option<String> {
    if matches!(consul.client.settings().token, TokenSource::Anonymous) {
        return None;
    }
    whoami(&consul.client).await.ok().map(|owner| owner.accessor)
}
