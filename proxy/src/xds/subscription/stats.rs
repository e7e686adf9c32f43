//! What is counted of a stream: `control_plane.*`, at the root for ADS.

use std::cell::Cell;

use crate::metrics;
use crate::stats::{Scope, SharedBlock, TextReadout};

metrics! {
    /// A stream to a control plane (`control_plane`).
    pub enum ControlPlaneStat {
        ConnectedState: gauge "connected_state",
        PendingRequests: gauge "pending_requests",
        RateLimitEnforced: counter "rate_limit_enforced",
    }
}

#[derive(Debug)]
pub(super) struct ControlPlaneStats {
    block: SharedBlock<ControlPlaneStat>,
    identifier: TextReadout,
    enforced: Cell<u64>,
    was_pending: Cell<bool>,
}

impl ControlPlaneStats {
    pub(super) fn new(scope: &Scope) -> Self {
        let scope = scope.scope("control_plane");
        let identifier = scope.text_readout("identifier");
        identifier.set("");
        Self {
            block: scope.shared(),
            identifier,
            enforced: Cell::new(0),
            was_pending: Cell::new(false),
        }
    }

    pub(super) fn connected(&self, is_connected: bool) {
        self.block.gauge_set(ControlPlaneStat::ConnectedState, u64::from(is_connected));
    }

    pub(super) fn identifier(&self, identifier: &str) {
        self.identifier.set(identifier);
    }

    /// `enforced`: how often a request has had to wait so far; `pending`: how many types wait.
    pub(super) fn requests(&self, enforced: u64, pending: usize) {
        let more = enforced - self.enforced.replace(enforced);
        self.block.add(ControlPlaneStat::RateLimitEnforced, more);
        // Not in use until something has had to wait, as in Envoy.
        if pending > 0 || self.was_pending.get() {
            self.was_pending.set(true);
            self.block.gauge_set(ControlPlaneStat::PendingRequests, pending as u64);
        }
    }
}
