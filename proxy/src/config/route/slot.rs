//! The place of a route configuration that comes by its name (RDS): one for all connection managers that name it.
//!
//! A stream pins the table that is in it when the stream begins.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use super::RouteTable;
use crate::config::source::ConfigSource;

/// See the module. Shared by all workers, filled by the control thread.
pub struct RouteSlot {
    /// `route_config_name`
    pub name: Arc<str>,
    pub source: ConfigSource,
    /// Of the connection manager that named it first: its statistics are `http.<stat_prefix>.rds.<name>`.
    pub stat_prefix: Arc<str>,
    table: ArcSwap<RouteTable>,
    answered: AtomicBool,
}

impl fmt::Debug for RouteSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteSlot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RouteSlot {
    /// `empty` answers until a table is there: no route (404, `NR`).
    pub fn new(
        name: Arc<str>,
        source: ConfigSource,
        stat_prefix: Arc<str>,
        empty: Arc<RouteTable>,
    ) -> Self {
        let (table, answered) = (ArcSwap::new(empty), AtomicBool::new(false));
        Self { name, source, stat_prefix, table, answered }
    }

    /// The newest table.
    pub fn load(&self) -> arc_swap::Guard<Arc<RouteTable>> {
        self.table.load()
    }

    /// Puts a table in force for new streams; gives the one before.
    pub fn fill(&self, table: Arc<RouteTable>) -> Arc<RouteTable> {
        let before = self.table.swap(table);
        self.refuse();
        before
    }

    /// What has come cannot be used: nobody is to wait for it.
    pub fn refuse(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// Nobody asks for it any more. Its streams keep the table; who names it again waits for a new answer.
    pub fn forget(&self) {
        self.answered.store(false, Ordering::Release);
    }

    /// Whether something has come, good or bad: what warming waits for.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }
}

/// Where a connection manager's routes are.
#[derive(Debug, Clone)]
pub enum Routes {
    /// `route_config`
    Inline(Arc<RouteTable>),
    /// `rds`
    Discovered(Arc<RouteSlot>),
}

impl Routes {
    /// The newest table.
    pub fn load(&self) -> Arc<RouteTable> {
        match self {
            Self::Inline(table) => table.clone(),
            Self::Discovered(slot) => slot.load().clone(),
        }
    }
}
