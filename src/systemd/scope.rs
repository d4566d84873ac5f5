//! Which user a unit runs as, for `scope = "unit:NAME.service"`.

use super::{Systemd, call_failed, manager};
use crate::base::Fault;

/// systemd's "no user" (the `UID` property of a service that does not run).
const NO_UID: u32 = u32::MAX;

/// The user of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitUser {
    /// It runs as this user right now, which for `DynamicUser=` is the only way to know.
    Running(u32),
    /// Its file names this user; empty means root.
    Named(String),
}

impl Systemd {
    /// The user of `unit`; `None` when systemd knows no such unit.
    ///
    /// # Errors
    /// `ENM-S…` the bus does not answer.
    pub async fn user_of(&self, unit: &str) -> Result<Option<UnitUser>, Fault> {
        let connection = self.shared.connection();
        let path = self
            .shared
            .manager()
            .await?
            .load_unit(unit)
            .await
            .map_err(|e| call_failed("LoadUnit", unit, e))?;
        let read = async {
            let (of_unit, of_service) = manager::faces(&connection, &path).await?;
            if of_unit.load_state().await? != "loaded" {
                return zbus::Result::Ok(None);
            }
            let uid = of_service.uid().await?;
            Ok(Some(match uid {
                NO_UID => UnitUser::Named(of_service.user().await?),
                uid => UnitUser::Running(uid),
            }))
        };
        Ok(read.await.map_err(|e| call_failed("Get", unit, e))?)
    }
}
