//! Statistics of the process as a whole, written by control threads.

use crate::metrics;

metrics! {
    /// The process (`server`).
    pub enum ServerStat {
        CompilationSettingsFipsMode: gauge "compilation_settings.fips_mode",
        Concurrency: gauge "concurrency",
        DaysUntilFirstCertExpiring: gauge "days_until_first_cert_expiring",
        DebugAssertionFailures: counter "debug_assertion_failures",
        DroppedStatFlushes: counter "dropped_stat_flushes",
        DynamicUnknownFields: counter "dynamic_unknown_fields",
        EnvoyBugFailures: counter "envoy_bug_failures",
        EnvoyNotifications: counter "envoy_notifications",
        HotRestartEpoch: gauge "hot_restart_epoch",
        HotRestartGeneration: gauge "hot_restart_generation",
        InitializationTimeMs: histogram "initialization_time_ms" ms,
        Live: gauge "live",
        MemoryAllocated: gauge "memory_allocated",
        MemoryHeapSize: gauge "memory_heap_size",
        MemoryPhysicalSize: gauge "memory_physical_size",
        ParentConnections: gauge "parent_connections",
        SecondsUntilFirstOcspResponseExpiring: gauge "seconds_until_first_ocsp_response_expiring",
        State: gauge "state",
        StaticUnknownFields: counter "static_unknown_fields",
        StatsRecentLookups: gauge "stats_recent_lookups",
        TotalConnections: gauge "total_connections",
        Uptime: gauge "uptime",
        Version: gauge "version",
        WipProtos: counter "wip_protos",
    }
}

metrics! {
    /// Missed watchdog touches (`main_thread`, `workers`, `server.main_thread`, `server.worker_<n>`).
    pub enum WatchdogStat {
        WatchdogMegaMiss: counter "watchdog_mega_miss",
        WatchdogMiss: counter "watchdog_miss",
    }
}

metrics! {
    /// All clusters (`cluster_manager`).
    pub enum ClusterManagerStat {
        ActiveClusters: gauge "active_clusters",
        ClusterAdded: counter "cluster_added",
        ClusterModified: counter "cluster_modified",
        ClusterRemoved: counter "cluster_removed",
        ClusterUpdated: counter "cluster_updated",
        ClusterUpdatedViaMerge: counter "cluster_updated_via_merge",
        UpdateMergeCancelled: counter "update_merge_cancelled",
        UpdateOutOfMergeWindow: counter "update_out_of_merge_window",
        WarmingClusters: gauge "warming_clusters",
    }
}

metrics! {
    /// Clusters a thread has built (`thread_local_cluster_manager.<thread>`).
    pub enum ThreadClusterStat {
        ClustersInflated: gauge "clusters_inflated",
    }
}

metrics! {
    /// Runtime layers (`runtime`).
    pub enum RuntimeStat {
        AdminOverridesActive: gauge "admin_overrides_active",
        DeprecatedFeatureSeenSinceProcessStart: gauge "deprecated_feature_seen_since_process_start",
        DeprecatedFeatureUse: counter "deprecated_feature_use",
        LoadError: counter "load_error",
        LoadSuccess: counter "load_success",
        NumKeys: gauge "num_keys",
        NumLayers: gauge "num_layers",
        OverrideDirExists: counter "override_dir_exists",
        OverrideDirNotExists: counter "override_dir_not_exists",
    }
}

metrics! {
    /// Access log files (`filesystem`).
    pub enum FilesystemStat {
        FlushedByTimer: counter "flushed_by_timer",
        ReopenFailed: counter "reopen_failed",
        WriteBuffered: counter "write_buffered",
        WriteCompleted: counter "write_completed",
        WriteFailed: counter "write_failed",
        WriteTotalBuffered: gauge "write_total_buffered",
    }
}

metrics! {
    /// Name resolution (`dns.cares`).
    pub enum DnsStat {
        GetAddrFailure: counter "get_addr_failure",
        NotFound: counter "not_found",
        PendingResolutions: gauge "pending_resolutions",
        Reinits: counter "reinits",
        ResolveTotal: counter "resolve_total",
        Timeouts: counter "timeouts",
    }
}

metrics! {
    /// Overload manager (`overload`).
    pub enum OverloadStat {
        RefreshIntervalDelay: histogram "refresh_interval_delay",
    }
}
