//! The admin port: Envoy's endpoints, answers and refusals, a file per endpoint.
//!
//! It reads the server through [`AdminState`] and writes in pieces of at most some 16 KB, giving way between them.
//! It lives on one control thread: `serve` runs inside of a `LocalSet`.

mod access_log;
mod answer;
mod bind;
mod endpoints;
mod query;
mod re2_words;
mod serve;
mod state;

use std::cell::Cell;
use std::rc::Rc;

use crate::access_log::AccessLogs;
use crate::config::admin::AdminConfig;
use crate::config::matcher::StringMatcher;
use crate::config::runtime;
use crate::stats::names::{
    HttpStat, ListenerHttpStat, ListenerStat, ListenerWorkerStat, RuntimeStat, ServerStat,
};
use crate::stats::{Registry, Scope, SharedBlock, declare_process};
pub use bind::AdminListener;
pub use state::{
    AdminAddress, AdminState, CertificateDetails, CertificateStatus, ClusterStatus, ConfigKind,
    ConfigResource, ConfigState, DrainListeners, HostHealth, HostStats, HostStatus, ListenerStatus,
    RejectedResource, RejectedUpdate, RuntimeEntry, RuntimeValues, ServerState, Thresholds,
};

/// The admin interface.
pub struct Admin {
    state: Rc<dyn AdminState>,
    registry: Registry,
    /// `admin.allow_paths`; all paths when empty.
    allow_paths: Box<[StringMatcher]>,
    /// `admin.access_log`.
    access_log: Option<AccessLogs>,
    /// Connections and requests so far: their numbers in the access log.
    connections: Cell<u64>,
    requests: Cell<u64>,
    /// What every process has.
    _process: Vec<Scope>,
    server: SharedBlock<ServerStat>,
    runtime: SharedBlock<RuntimeStat>,
    http: SharedBlock<HttpStat>,
    listener: SharedBlock<ListenerStat>,
    thread: SharedBlock<ListenerWorkerStat>,
    listener_http: SharedBlock<ListenerHttpStat>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// `access_log` is `config.access_log` bound on the control thread; requests are not logged without.
    pub fn new(
        state: Rc<dyn AdminState>,
        registry: Registry,
        config: &AdminConfig,
        access_log: Option<AccessLogs>,
    ) -> Self {
        let listener = registry.scope("listener.admin");
        let http = registry.scope("http.admin");
        let workers = state.command_line_options().concurrency as usize;
        let admin = Self {
            _process: declare_process(&registry, workers),
            server: registry.scope("server").shared(),
            runtime: registry.scope("runtime").shared(),
            http: http.shared(),
            listener: listener.shared(),
            thread: listener.scope("main_thread").shared(),
            listener_http: listener.scope("http.admin").shared(),
            state,
            registry,
            allow_paths: config.allow_paths.clone(),
            access_log: access_log.filter(|logs| !logs.is_empty()),
            connections: Cell::new(0),
            requests: Cell::new(0),
        };
        admin.update_server_stats();
        admin
    }

    /// Brings the gauges of `server.*` up to date that somebody must compute.
    fn update_server_stats(&self) {
        let memory = endpoints::Memory::now();
        let state = self.state.server_state();
        let gauge = |gauge, value| self.server.gauge_set(gauge, value);
        gauge(ServerStat::Concurrency, self.state.command_line_options().concurrency.into());
        let days = self.state.days_until_first_certificate_expires();
        gauge(ServerStat::DaysUntilFirstCertExpiring, days.unwrap_or(u32::MAX.into()));
        gauge(ServerStat::CompilationSettingsFipsMode, 0);
        if !self.state.command_line_options().disable_hot_restart {
            gauge(ServerStat::HotRestartGeneration, 1);
        }
        gauge(ServerStat::Live, u64::from(state == ServerState::Live));
        gauge(ServerStat::State, state as u64);
        gauge(ServerStat::TotalConnections, self.state.total_connections());
        gauge(ServerStat::MemoryAllocated, memory.allocated);
        gauge(ServerStat::MemoryHeapSize, memory.heap);
        gauge(ServerStat::MemoryPhysicalSize, memory.physical);
        gauge(ServerStat::StatsRecentLookups, self.registry.lookups());
        gauge(ServerStat::Uptime, self.state.uptime().as_secs());
        gauge(ServerStat::Version, version_number());
        self.update_runtime_stats();
    }
}

impl Admin {
    fn update_runtime_stats(&self) {
        let (layers, keys, overridden) = runtime::current().sizes();
        let gauge = |gauge, value| self.runtime.gauge_set(gauge, value);
        gauge(RuntimeStat::NumLayers, layers as u64);
        gauge(RuntimeStat::NumKeys, keys as u64);
        gauge(RuntimeStat::AdminOverridesActive, overridden.into());
        // Envoy loads twice at start, and looks for a directory each time.
        let loads = runtime::loads() + 1;
        for counter in [RuntimeStat::LoadSuccess, RuntimeStat::OverrideDirNotExists] {
            let counted = self.runtime.counter_value(counter);
            self.runtime.add(counter, loads.saturating_sub(counted));
        }
    }
}

/// `server.version`: the first three bytes of the revision as a number.
fn version_number() -> u64 {
    let revision = crate::server::version::revision();
    revision.get(..6).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
