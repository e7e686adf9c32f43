//! Signals that do not end the process.

use std::io;
use std::rc::Rc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::admin_state::ServerAdmin;
use crate::admin::AdminState as _;

/// The task that answers signals which do not end the process; it ends with this.
pub(super) struct Signals(JoinHandle<()>);

impl Signals {
    /// SIGUSR1 opens the logs anew, as after a rotation; SIGHUP is noted and nothing else, as in Envoy.
    pub(super) fn heed(state: &Rc<ServerAdmin>) -> io::Result<Self> {
        let mut usr1 = signal(SignalKind::user_defined1())?;
        let mut hup = signal(SignalKind::hangup())?;
        let state = state.clone();
        Ok(Self(tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    _ = usr1.recv() => {
                        tracing::info!("SIGUSR1: logs are opened anew");
                        state.reopen_logs();
                    }
                    _ = hup.recv() => tracing::warn!("SIGHUP is ignored"),
                }
            }
        })))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.0.abort();
    }
}
