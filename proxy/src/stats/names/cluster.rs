//! Statistics below `cluster.<name>`. One table per writer: workers count traffic, control threads keep
//! endpoints and updates. `upstream_rq_<code>` and its kin have run-time names: see `ResponseCodes`.

use crate::metrics;

metrics! {
    /// Traffic of a cluster (`cluster.<name>`), counted by workers.
    pub enum ClusterStat {
        BindErrors: counter "bind_errors",
        OriginalDstHostInvalid: counter "original_dst_host_invalid",
        RetryOrShadowAbandoned: counter "retry_or_shadow_abandoned",
        UpstreamCxActive: gauge "upstream_cx_active",
        UpstreamCxCloseNotify: counter "upstream_cx_close_notify",
        UpstreamCxConnectAttemptsExceeded: counter "upstream_cx_connect_attempts_exceeded",
        UpstreamCxConnectFail: counter "upstream_cx_connect_fail",
        UpstreamCxConnectMs: histogram "upstream_cx_connect_ms" ms,
        UpstreamCxConnectTimeout: counter "upstream_cx_connect_timeout",
        UpstreamCxConnectWith0Rtt: counter "upstream_cx_connect_with_0_rtt",
        UpstreamCxDestroy: counter "upstream_cx_destroy",
        UpstreamCxDestroyLocal: counter "upstream_cx_destroy_local",
        UpstreamCxDestroyLocalWithActiveRq: counter "upstream_cx_destroy_local_with_active_rq",
        UpstreamCxDestroyRemote: counter "upstream_cx_destroy_remote",
        UpstreamCxDestroyRemoteWithActiveRq: counter "upstream_cx_destroy_remote_with_active_rq",
        UpstreamCxDestroyWithActiveRq: counter "upstream_cx_destroy_with_active_rq",
        UpstreamCxHttp1Total: counter "upstream_cx_http1_total",
        UpstreamCxHttp2Total: counter "upstream_cx_http2_total",
        UpstreamCxHttp3Total: counter "upstream_cx_http3_total",
        UpstreamCxIdleTimeout: counter "upstream_cx_idle_timeout",
        UpstreamCxLengthMs: histogram "upstream_cx_length_ms" ms,
        UpstreamCxMaxDurationReached: counter "upstream_cx_max_duration_reached",
        UpstreamCxMaxRequests: counter "upstream_cx_max_requests",
        UpstreamCxNoneHealthy: counter "upstream_cx_none_healthy",
        UpstreamCxOverflow: counter "upstream_cx_overflow",
        UpstreamCxPoolOverflow: counter "upstream_cx_pool_overflow",
        UpstreamCxPreconnectSkipped: counter "upstream_cx_preconnect_skipped",
        UpstreamCxProtocolError: counter "upstream_cx_protocol_error",
        UpstreamCxRxBytesBuffered: gauge "upstream_cx_rx_bytes_buffered",
        UpstreamCxRxBytesTotal: counter "upstream_cx_rx_bytes_total",
        UpstreamCxTotal: counter "upstream_cx_total",
        UpstreamCxTxBytesBuffered: gauge "upstream_cx_tx_bytes_buffered",
        UpstreamCxTxBytesTotal: counter "upstream_cx_tx_bytes_total",
        UpstreamFlowControlBackedUpTotal: counter "upstream_flow_control_backed_up_total",
        UpstreamFlowControlDrainedTotal: counter "upstream_flow_control_drained_total",
        UpstreamFlowControlPausedReadingTotal: counter "upstream_flow_control_paused_reading_total",
        UpstreamFlowControlResumedReadingTotal: counter "upstream_flow_control_resumed_reading_total",
        UpstreamHttp3Broken: counter "upstream_http3_broken",
        UpstreamInternalRedirectFailedTotal: counter "upstream_internal_redirect_failed_total",
        UpstreamInternalRedirectSucceededTotal: counter "upstream_internal_redirect_succeeded_total",
        UpstreamQueueOverloaded: gauge "upstream_queue_overloaded",
        UpstreamRq0rtt: counter "upstream_rq_0rtt",
        UpstreamRqActive: gauge "upstream_rq_active",
        UpstreamRqActiveOverflow: counter "upstream_rq_active_overflow",
        UpstreamRqCancelled: counter "upstream_rq_cancelled",
        UpstreamRqCompleted: counter "upstream_rq_completed",
        UpstreamRqMaintenanceMode: counter "upstream_rq_maintenance_mode",
        UpstreamRqMaxDurationReached: counter "upstream_rq_max_duration_reached",
        UpstreamRqPendingActive: gauge "upstream_rq_pending_active",
        UpstreamRqPendingFailureEject: counter "upstream_rq_pending_failure_eject",
        UpstreamRqPendingOverflow: counter "upstream_rq_pending_overflow",
        UpstreamRqPendingTotal: counter "upstream_rq_pending_total",
        UpstreamRqPerCx: histogram "upstream_rq_per_cx",
        UpstreamRqPerTryIdleTimeout: counter "upstream_rq_per_try_idle_timeout",
        UpstreamRqPerTryTimeout: counter "upstream_rq_per_try_timeout",
        UpstreamRqRetry: counter "upstream_rq_retry",
        UpstreamRqRetryBackoffExponential: counter "upstream_rq_retry_backoff_exponential",
        UpstreamRqRetryBackoffRatelimited: counter "upstream_rq_retry_backoff_ratelimited",
        UpstreamRqRetryLimitExceeded: counter "upstream_rq_retry_limit_exceeded",
        UpstreamRqRetryOverflow: counter "upstream_rq_retry_overflow",
        UpstreamRqRetrySuccess: counter "upstream_rq_retry_success",
        UpstreamRqRxReset: counter "upstream_rq_rx_reset",
        UpstreamRqRxResetNoError: counter "upstream_rq_rx_reset_no_error",
        UpstreamRqTimeout: counter "upstream_rq_timeout",
        UpstreamRqTotal: counter "upstream_rq_total",
        UpstreamRqTxReset: counter "upstream_rq_tx_reset",
        UpstreamRqTime: histogram "upstream_rq_time" ms lazy,
        UpstreamRqReplayed: counter "upstream_rq_replayed" lazy,
    }
}

metrics! {
    /// Shares of timeouts that were needed (`track_cluster_stats.timeout_budgets`), in percent.
    pub enum ClusterBudgetStat {
        PercentUsed: histogram "upstream_rq_timeout_budget_percent_used",
        PerTryPercentUsed: histogram "upstream_rq_timeout_budget_per_try_percent_used",
    }
}

metrics! {
    /// Sizes of requests and responses (`track_cluster_stats.request_response_sizes`).
    pub enum ClusterSizeStat {
        RqBodySize: histogram "upstream_rq_body_size" bytes,
        RqHeadersCount: histogram "upstream_rq_headers_count",
        RqHeadersSize: histogram "upstream_rq_headers_size" bytes,
        RsBodySize: histogram "upstream_rs_body_size" bytes,
        RsHeadersCount: histogram "upstream_rs_headers_count",
        RsHeadersSize: histogram "upstream_rs_headers_size" bytes,
    }
}

metrics! {
    /// Load balancing of a cluster, counted by workers.
    pub enum ClusterLbStat {
        LbHealthyPanic: counter "lb_healthy_panic",
        LbLocalClusterNotOk: counter "lb_local_cluster_not_ok",
        LbRecalculateZoneStructures: counter "lb_recalculate_zone_structures",
        LbZoneClusterTooSmall: counter "lb_zone_cluster_too_small",
        LbZoneNoCapacityLeft: counter "lb_zone_no_capacity_left",
        LbZoneRoutingAllDirectly: counter "lb_zone_routing_all_directly",
        LbZoneRoutingCrossZone: counter "lb_zone_routing_cross_zone",
        LbZoneRoutingSampled: counter "lb_zone_routing_sampled",
    }
}

metrics! {
    /// Subsets of a cluster (`lb_subset_config`).
    pub enum ClusterSubsetStat {
        LbSubsetsActive: gauge "lb_subsets_active",
        LbSubsetsCreated: counter "lb_subsets_created",
        LbSubsetsFallback: counter "lb_subsets_fallback",
        LbSubsetsFallbackPanic: counter "lb_subsets_fallback_panic",
        LbSubsetsRemoved: counter "lb_subsets_removed",
        LbSubsetsSelected: counter "lb_subsets_selected",
    }
}

metrics! {
    /// Host set of a cluster, written where the host set is made.
    pub enum ClusterEndpointStat {
        DefaultTotalMatchCount: counter "default.total_match_count",
        MaxHostWeight: gauge "max_host_weight",
        MembershipChange: counter "membership_change",
        MembershipDegraded: gauge "membership_degraded",
        MembershipExcluded: gauge "membership_excluded",
        MembershipHealthy: gauge "membership_healthy",
        MembershipTotal: gauge "membership_total",
    }
}

metrics! {
    /// Updates of a cluster and of its endpoints (DNS, EDS).
    pub enum ClusterUpdateStat {
        AssignmentStale: counter "assignment_stale",
        AssignmentTimeoutReceived: counter "assignment_timeout_received",
        AssignmentUseCached: counter "assignment_use_cached",
        UpdateAttempt: counter "update_attempt",
        UpdateEmpty: counter "update_empty",
        UpdateFailure: counter "update_failure",
        UpdateNoRebuild: counter "update_no_rebuild",
        UpdateSuccess: counter "update_success",
        Version: gauge "version",
        WarmingState: gauge "warming_state",
    }
}

metrics! {
    /// Open circuit breakers of a cluster: 1 while at the limit.
    pub enum CircuitBreakerStat {
        DefaultCxOpen: gauge "circuit_breakers.default.cx_open",
        DefaultCxPoolOpen: gauge "circuit_breakers.default.cx_pool_open",
        DefaultRqOpen: gauge "circuit_breakers.default.rq_open",
        DefaultRqPendingOpen: gauge "circuit_breakers.default.rq_pending_open",
        DefaultRqRetryOpen: gauge "circuit_breakers.default.rq_retry_open",
        HighCxOpen: gauge "circuit_breakers.high.cx_open",
        HighCxPoolOpen: gauge "circuit_breakers.high.cx_pool_open",
        HighRqOpen: gauge "circuit_breakers.high.rq_open",
        HighRqPendingOpen: gauge "circuit_breakers.high.rq_pending_open",
        HighRqRetryOpen: gauge "circuit_breakers.high.rq_retry_open",
        DefaultRemainingCx: gauge "circuit_breakers.default.remaining_cx" lazy,
        DefaultRemainingCxPools: gauge "circuit_breakers.default.remaining_cx_pools" lazy,
        DefaultRemainingPending: gauge "circuit_breakers.default.remaining_pending" lazy,
        DefaultRemainingRetries: gauge "circuit_breakers.default.remaining_retries" lazy,
        DefaultRemainingRq: gauge "circuit_breakers.default.remaining_rq" lazy,
        HighRemainingCx: gauge "circuit_breakers.high.remaining_cx" lazy,
        HighRemainingCxPools: gauge "circuit_breakers.high.remaining_cx_pools" lazy,
        HighRemainingPending: gauge "circuit_breakers.high.remaining_pending" lazy,
        HighRemainingRetries: gauge "circuit_breakers.high.remaining_retries" lazy,
        HighRemainingRq: gauge "circuit_breakers.high.remaining_rq" lazy,
    }
}
