//! What a subscription counts.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::stats::names::{
    ClusterUpdateStat, EdsStat, ExtensionStat, RdsStat, ReloadStat, SubscriptionStat,
};
use crate::stats::{Scope, SharedBlock};
use crate::xds::xxhash::xxhash64;

/// The counters of one subscription.
#[derive(Debug)]
pub struct SubscriptionStats {
    scope: Scope,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Own(SharedBlock<SubscriptionStat>),
    /// Some of a cluster's names are those that every cluster has.
    Endpoints(SharedBlock<ClusterUpdateStat>, SharedBlock<EdsStat>),
}

/// What happened to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// Its version.
    Success(&'a str),
    Rejected,
    /// The source could not be reached.
    Failure,
    InitFetchTimeout,
}

impl SubscriptionStats {
    /// `cluster_manager.cds`, `listener_manager.lds`.
    pub fn own(scope: Scope) -> Self {
        let block = scope.shared();
        scope.text_readout("version_text").set("");
        Self { scope, target: Target::Own(block) }
    }

    /// `http.<stat_prefix>.rds.<name>`
    pub fn routes(scope: Scope) -> Self {
        scope.declare::<ReloadStat>();
        scope.declare::<RdsStat>();
        Self::own(scope)
    }

    /// `extension_config_discovery.http_filter.<name>`
    pub fn extension(scope: Scope) -> Self {
        scope.declare::<ExtensionStat>();
        Self::own(scope)
    }

    /// A filter has a new configuration.
    pub fn extension_reloaded(&self) {
        self.scope.shared::<ExtensionStat>().inc(ExtensionStat::ConfigReload);
    }

    /// Filters could not use what was known when they came.
    pub fn extension_conflicts(&self, count: u64) {
        self.scope.shared::<ExtensionStat>().add(ExtensionStat::ConfigConflict, count);
    }

    /// Nothing came for a filter, or nothing good.
    pub fn extension_failed(&self) {
        self.scope.shared::<ExtensionStat>().inc(ExtensionStat::ConfigFail);
    }

    /// `cluster.<name>`, for its endpoints.
    pub fn endpoints(scope: Scope) -> Self {
        let target = Target::Endpoints(scope.shared(), scope.shared());
        scope.text_readout("version_text").set("");
        Self { scope, target }
    }

    /// The subscription begins, which is an attempt too.
    pub fn started(&self) {
        match &self.target {
            Target::Own(stats) => stats.inc(SubscriptionStat::UpdateAttempt),
            Target::Endpoints(cluster, _) => cluster.inc(ClusterUpdateStat::UpdateAttempt),
        }
    }

    /// Every event is the end of an attempt.
    pub fn count(&self, event: Event<'_>) {
        match &self.target {
            Target::Own(stats) => {
                stats.inc(SubscriptionStat::UpdateAttempt);
                stats.inc(match event {
                    Event::Success(_) => SubscriptionStat::UpdateSuccess,
                    Event::Rejected => SubscriptionStat::UpdateRejected,
                    Event::Failure => SubscriptionStat::UpdateFailure,
                    Event::InitFetchTimeout => SubscriptionStat::InitFetchTimeout,
                });
                if let Event::Success(version) = event {
                    stats.gauge_set(SubscriptionStat::UpdateTime, now_ms());
                    stats.gauge_set(SubscriptionStat::Version, xxhash64(version.as_bytes()));
                }
            }
            Target::Endpoints(cluster, eds) => {
                cluster.inc(ClusterUpdateStat::UpdateAttempt);
                match event {
                    Event::Success(version) => {
                        cluster.inc(ClusterUpdateStat::UpdateSuccess);
                        let version = xxhash64(version.as_bytes());
                        cluster.gauge_set(ClusterUpdateStat::Version, version);
                        eds.gauge_set(EdsStat::UpdateTime, now_ms());
                    }
                    Event::Rejected => eds.inc(EdsStat::UpdateRejected),
                    Event::Failure => cluster.inc(ClusterUpdateStat::UpdateFailure),
                    Event::InitFetchTimeout => eds.inc(EdsStat::InitFetchTimeout),
                }
            }
        }
        if let Event::Success(version) = event {
            self.scope.text_readout("version_text").set(version);
        }
    }

    /// Something new is in force.
    pub fn reloaded(&self) {
        let stats = self.scope.shared::<ReloadStat>();
        stats.inc(ReloadStat::ConfigReload);
        stats.gauge_set(ReloadStat::ConfigReloadTimeMs, now_ms());
    }

    /// The source has nothing of the name.
    pub fn empty(&self) {
        match &self.target {
            Target::Own(_) => self.scope.shared::<RdsStat>().inc(RdsStat::UpdateEmpty),
            Target::Endpoints(cluster, _) => cluster.inc(ClusterUpdateStat::UpdateEmpty),
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
