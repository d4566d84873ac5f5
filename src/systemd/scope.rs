//! Which user a unit runs as, for `scope = "unit:NAME.service"`.

use super::{Systemd, call_failed, manager};
use crate::base::{Fault, process};

/// systemd's "no user" (the `UID` property of a service that does not run).
const NO_UID: u32 = u32::MAX;

/// The user of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitUser {
    /// It runs as this user right now, which for `DynamicUser=` is the only way to know.
    Running(u32),
    /// Its file names this user; empty means root.
    Named(String),
    /// It does not run, and a user of this name is made when it starts, unless there is one
    /// (`DynamicUser=`).
    Dynamic(String),
}

impl Systemd {
    /// Waits until a unit that [`Systemd::user_of`] was asked about may have another user. Safe to
    /// interrupt.
    pub async fn user_moved(&self) {
        self.shared.moved.notified().await;
    }

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
        self.shared.scopes.borrow_mut().insert(path.as_str().to_owned());
        let read = async {
            let (of_unit, of_service) = manager::faces(&connection, &path).await?;
            if of_unit.load_state().await? != "loaded" {
                return zbus::Result::Ok(None);
            }
            let uid = of_service.uid().await?;
            Ok(Some(match uid {
                NO_UID if of_service.dynamic_user().await? => UnitUser::Dynamic(of_service.user().await?),
                NO_UID => UnitUser::Named(of_service.user().await?),
                uid => UnitUser::Running(uid),
            }))
        };
        Ok(read.await.map_err(|e| call_failed("Get", unit, e))?)
    }

    /// Whose the sockets are that `unit` opens now: those of its main process, which may have given up the user that
    /// its file names; of [`Systemd::user_of`] while there is no such process.
    ///
    /// # Errors
    /// `ENM-S…` the bus does not answer.
    pub async fn socket_user_of(&self, unit: &str) -> Result<Option<UnitUser>, Fault> {
        let Some(user) = self.user_of(unit).await? else { return Ok(None) };
        let pid = self.main_pid_of(unit).await?;
        // Its number is 0 while it does not run.
        let now = (pid > 0).then(|| process::socket_user_of(pid)).flatten();
        Ok(Some(now.map_or(user, UnitUser::Running)))
    }

    async fn main_pid_of(&self, unit: &str) -> Result<u32, Fault> {
        let connection = self.shared.connection();
        let path = self.shared.manager().await?.load_unit(unit).await;
        let path = path.map_err(|e| call_failed("LoadUnit", unit, e))?;
        let read = async { manager::faces(&connection, &path).await?.1.main_pid().await };
        Ok(read.await.map_err(|e| call_failed("Get", unit, e))?)
    }
}
