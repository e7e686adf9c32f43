//! Statistics of subscriptions to dynamic resources, written by the control thread.

use crate::metrics;

metrics! {
    /// A subscription (`cluster_manager.cds`, `listener_manager.lds`, `http.<stat_prefix>.rds.<name>`).
    pub enum SubscriptionStat {
        InitFetchTimeout: counter "init_fetch_timeout",
        UpdateAttempt: counter "update_attempt",
        UpdateDuration: histogram "update_duration" ms,
        UpdateFailure: counter "update_failure",
        UpdateRejected: counter "update_rejected",
        UpdateSuccess: counter "update_success",
        UpdateTime: gauge "update_time",
        Version: gauge "version",
    }
}

metrics! {
    /// What a cluster's subscription to its endpoints (`cluster.<name>`) has beside what every cluster has.
    pub enum EdsStat {
        InitFetchTimeout: counter "init_fetch_timeout",
        UpdateDuration: histogram "update_duration" ms,
        UpdateRejected: counter "update_rejected",
        UpdateTime: gauge "update_time",
    }
}

metrics! {
    /// Configuration that was put in force (`cluster_manager.cds`, `http.<stat_prefix>.rds.<name>`).
    pub enum ReloadStat {
        ConfigReload: counter "config_reload",
        ConfigReloadTimeMs: gauge "config_reload_time_ms",
    }
}

metrics! {
    /// A filter's discovered configuration (`extension_config_discovery.http_filter.<name>`), beside `SubscriptionStat`.
    pub enum ExtensionStat {
        ConfigConflict: counter "config_conflict",
        ConfigFail: counter "config_fail",
        ConfigReload: counter "config_reload",
    }
}

metrics! {
    /// A subscription to a route configuration, beside `SubscriptionStat`.
    pub enum RdsStat {
        UpdateEmpty: counter "update_empty",
    }
}
