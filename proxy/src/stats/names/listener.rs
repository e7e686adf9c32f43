//! Statistics of listeners and of the TCP proxy.

use crate::metrics;

metrics! {
    /// A listener (`listener.<address>`).
    pub enum ListenerStat {
        ConnectionsAcceptedPerSocketEvent: histogram "connections_accepted_per_socket_event",
        DownstreamCxActive: gauge "downstream_cx_active",
        DownstreamCxDestroy: counter "downstream_cx_destroy",
        DownstreamCxLengthMs: histogram "downstream_cx_length_ms" ms,
        DownstreamCxOverflow: counter "downstream_cx_overflow",
        DownstreamCxOverloadReject: counter "downstream_cx_overload_reject",
        DownstreamCxTotal: counter "downstream_cx_total",
        DownstreamCxTransportSocketConnectTimeout: counter "downstream_cx_transport_socket_connect_timeout",
        DownstreamGlobalCxOverflow: counter "downstream_global_cx_overflow",
        DownstreamListenerFilterError: counter "downstream_listener_filter_error",
        DownstreamListenerFilterRemoteClose: counter "downstream_listener_filter_remote_close",
        DownstreamPreCxActive: gauge "downstream_pre_cx_active",
        DownstreamPreCxTimeout: counter "downstream_pre_cx_timeout",
        NoFilterChainMatch: counter "no_filter_chain_match",
    }
}

metrics! {
    /// Extension configuration of a listener (not of the admin listener).
    pub enum ListenerConfigStat {
        ExtensionConfigMissing: counter "extension_config_missing",
        NetworkExtensionConfigMissing: counter "network_extension_config_missing",
    }
}

metrics! {
    /// One worker's share of a listener (`listener.<address>.worker_<n>`).
    pub enum ListenerWorkerStat {
        DownstreamCxActive: gauge "downstream_cx_active",
        DownstreamCxTotal: counter "downstream_cx_total",
    }
}

metrics! {
    /// Responses of a connection manager by listener (`listener.<address>.http.<stat_prefix>`).
    pub enum ListenerHttpStat {
        DownstreamRq1xx: counter "downstream_rq_1xx",
        DownstreamRq2xx: counter "downstream_rq_2xx",
        DownstreamRq3xx: counter "downstream_rq_3xx",
        DownstreamRq4xx: counter "downstream_rq_4xx",
        DownstreamRq5xx: counter "downstream_rq_5xx",
        DownstreamRqCompleted: counter "downstream_rq_completed",
    }
}

metrics! {
    /// All listeners (`listener_manager`).
    pub enum ListenerManagerStat {
        ListenerAdded: counter "listener_added",
        ListenerCreateFailure: counter "listener_create_failure",
        ListenerCreateSuccess: counter "listener_create_success",
        ListenerInPlaceUpdated: counter "listener_in_place_updated",
        ListenerModified: counter "listener_modified",
        ListenerRemoved: counter "listener_removed",
        ListenerStopped: counter "listener_stopped",
        TotalFilterChainsDraining: gauge "total_filter_chains_draining",
        TotalListenersActive: gauge "total_listeners_active",
        TotalListenersDraining: gauge "total_listeners_draining",
        TotalListenersWarming: gauge "total_listeners_warming",
        WorkersPinned: gauge "workers_pinned",
        WorkersStarted: gauge "workers_started",
    }
}

metrics! {
    /// The TCP proxy (`tcp.<stat_prefix>`).
    pub enum TcpProxyStat {
        DownstreamCxDrainClose: counter "downstream_cx_drain_close",
        DownstreamCxNoRoute: counter "downstream_cx_no_route",
        DownstreamCxOverloadClose: counter "downstream_cx_overload_close",
        DownstreamCxRxBytesBuffered: gauge "downstream_cx_rx_bytes_buffered",
        DownstreamCxRxBytesTotal: counter "downstream_cx_rx_bytes_total",
        DownstreamCxTotal: counter "downstream_cx_total",
        DownstreamCxTxBytesBuffered: gauge "downstream_cx_tx_bytes_buffered",
        DownstreamCxTxBytesTotal: counter "downstream_cx_tx_bytes_total",
        DownstreamFlowControlPausedReadingTotal: counter "downstream_flow_control_paused_reading_total",
        DownstreamFlowControlResumedReadingTotal: counter "downstream_flow_control_resumed_reading_total",
        EarlyDataReceivedCountTotal: counter "early_data_received_count_total",
        IdleTimeout: counter "idle_timeout",
        MaxDownstreamConnectionDuration: counter "max_downstream_connection_duration",
        RouteDelayedTotal: counter "route_delayed_total",
        UpstreamFlushActive: gauge "upstream_flush_active",
        UpstreamFlushTotal: counter "upstream_flush_total",
    }
}

metrics! {
    /// The HTTP inspector of all listeners (`http_inspector`).
    pub enum HttpInspectorStat {
        Http10Found: counter "http10_found",
        Http11Found: counter "http11_found",
        Http2Found: counter "http2_found",
        HttpNotFound: counter "http_not_found",
        ReadError: counter "read_error",
    }
}

metrics! {
    /// The TLS inspector of all listeners (`tls_inspector`).
    pub enum TlsInspectorStat {
        AlpnFound: counter "alpn_found",
        AlpnNotFound: counter "alpn_not_found",
        BytesProcessed: histogram "bytes_processed" bytes,
        ClientHelloTooLarge: counter "client_hello_too_large",
        SniFound: counter "sni_found",
        SniNotFound: counter "sni_not_found",
        TlsFound: counter "tls_found",
        TlsNotFound: counter "tls_not_found",
    }
}

metrics! {
    /// PROXY headers (`proxy_proto`, or `proxy_proto.<stat_prefix>`).
    pub enum ProxyProtocolStat {
        NotFoundAllowed: counter "not_found_allowed",
        NotFoundDisallowed: counter "not_found_disallowed",
        V1Disallowed: counter "versions.v1.disallowed",
        V1Error: counter "versions.v1.error",
        V1Found: counter "versions.v1.found",
        V2Disallowed: counter "versions.v2.disallowed",
        V2Error: counter "versions.v2.error",
        V2Found: counter "versions.v2.found",
    }
}

metrics! {
    /// Connections closed for their PROXY header, of all listeners (no prefix).
    pub enum ProxyProtocolErrorStat {
        DownstreamCxProxyProtoError: counter "downstream_cx_proxy_proto_error",
    }
}
