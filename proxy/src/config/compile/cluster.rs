//! pb Cluster to its compiled form (`config::cluster`).
//!
//! What changes where traffic goes and is not implemented rejects the cluster (types, policies, transport
//! sockets); fields that are ignored are listed, and reported, by `config::support`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::config::cluster::{
    CircuitBreakers, Cluster, Discovery, EdsOptions, RetryBudget, SocketOptions, Thresholds,
    TransportMatch, UpstreamTransport,
};
use crate::config::compile::CompileContext;
use crate::config::compile::core::{
    compile_bind_config, compile_keepalive, compile_metadata, compile_percent,
    compile_positive_duration, some_str, struct_to_json,
};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::dns::{compile_dns_cluster, compile_dns_options};
use crate::config::compile::endpoint::compile_load_assignment;
use crate::config::compile::load_balancing::{compile_lb_policy, compile_panic};
use crate::config::compile::original_dst::compile_original_dst;
use crate::config::compile::protocol_options::{
    compile_common_http_options, compile_http1_options, compile_http2_options,
};
use crate::config::compile::source::compile_config_source;
use crate::config::compile::tls::compile_upstream;
use crate::config::compile::upstream_http::{
    HTTP_PROTOCOL_OPTIONS, compile_auto_sni, compile_upstream_http_options,
};
use crate::config::core::BindConfig;
use crate::config::pb::envoy::config::cluster::v3 as pb;
use crate::config::pb::envoy::config::cluster::v3::cluster as pb_cluster;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::protocol_options::{UpstreamHttpOptions, UpstreamProtocolChoice};

/// `Cluster.connect_timeout` where it is not set.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// `Cluster.per_connection_buffer_limit_bytes` where it is not set.
const BUFFER_LIMIT: u32 = 1 << 20;

/// What most clusters leave at its default, kept once.
static DEFAULT_BREAKERS: LazyLock<Arc<CircuitBreakers>> = LazyLock::new(Arc::default);
static DEFAULT_HTTP: LazyLock<Arc<UpstreamHttpOptions>> = LazyLock::new(Arc::default);
static DEFAULT_SOCKET: LazyLock<Arc<SocketOptions>> = LazyLock::new(Arc::default);

fn shared<T: PartialEq>(value: T, default: &LazyLock<Arc<T>>) -> Arc<T> {
    if value == ***default { Arc::clone(default) } else { Arc::new(value) }
}

/// Compiles a cluster. `bind` is `cluster_manager.upstream_bind_config` of the bootstrap. `None` only where the
/// cluster is too broken to go on; look at the diagnostics for errors either way.
pub fn compile_cluster(
    pb: &pb::Cluster,
    bind: Option<&BindConfig>,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Cluster> {
    if pb.name.is_empty() {
        path.field("name").error("value length must be at least 1 characters");
    }
    refuse_unsupported(pb, path);
    let discovery = compile_discovery(pb, path);
    let names = matches!(discovery, Some(Discovery::Dns(_)));
    let load_assignment = pb.load_assignment.as_ref();
    let load_assignment =
        load_assignment.map(|a| compile_load_assignment(a, names, &path.field("load_assignment")));
    let mut load_assignment = load_assignment.unwrap_or_default();
    if matches!(&discovery, Some(Discovery::Dns(dns)) if dns.single_endpoint) {
        // As in Envoy, the one endpoint has the first priority, whatever is written.
        load_assignment.localities.iter_mut().for_each(|locality| locality.priority = 0);
    }
    let lb_policy = compile_lb_policy(pb, path);
    let (panic_threshold, fail_traffic_on_panic) =
        compile_panic(pb.common_lb_config.as_ref(), &path.field("common_lb_config"));
    let connect_timeout = pb.connect_timeout.as_ref().map_or(Some(CONNECT_TIMEOUT), |timeout| {
        compile_positive_duration(timeout, &path.field("connect_timeout"))
    });
    let track = pb.track_cluster_stats.as_ref();
    let transport = compile_transport(pb, cx, path);
    let (lb_policy, locality_weighted) = lb_policy?;
    Some(Cluster {
        name: Arc::from(pb.name.as_str()),
        alt_stat_name: some_str(&pb.alt_stat_name),
        discovery: discovery?,
        lb_policy,
        locality_weighted,
        healthy_panic_threshold: panic_threshold,
        fail_traffic_on_panic,
        close_connections_on_host_set_change: pb
            .common_lb_config
            .as_ref()
            .is_some_and(|c| c.close_connections_on_host_set_change),
        connect_timeout: connect_timeout?,
        // Zero is no limit, as in Envoy.
        per_connection_buffer_limit: match &pb.per_connection_buffer_limit_bytes {
            Some(limit) if limit.value == 0 => usize::MAX,
            limit => limit.as_ref().map_or(BUFFER_LIMIT, |v| v.value) as usize,
        },
        circuit_breakers: shared(
            compile_circuit_breakers(pb.circuit_breakers.as_ref(), path),
            &DEFAULT_BREAKERS,
        ),
        http: shared(compile_http(pb, transport.is_tls(), path), &DEFAULT_HTTP),
        transport,
        socket: shared(compile_socket(pb, bind, path), &DEFAULT_SOCKET),
        load_assignment,
        metadata: compile_metadata(pb.metadata.as_ref(), &path.field("metadata")),
        track_timeout_budgets: track_timeout_budgets(pb),
        track_request_response_sizes: track.is_some_and(|t| t.request_response_sizes),
    })
}

#[expect(deprecated, reason = "track_timeout_budgets is still read, as Envoy does")]
fn track_timeout_budgets(pb: &pb::Cluster) -> bool {
    pb.track_timeout_budgets || pb.track_cluster_stats.as_ref().is_some_and(|t| t.timeout_budgets)
}

fn refuse_unsupported(pb: &pb::Cluster, path: &FieldPath<'_>) {
    let refused = [
        (pb.transport_socket_matcher.is_some(), "transport_socket_matcher"),
        (!pb.filters.is_empty(), "filters"),
        (pb.upstream_config.is_some(), "upstream_config"),
        (pb.queuing_policies.is_some(), "queuing_policies"),
    ];
    for (_, field) in refused.iter().filter(|(set, _)| *set) {
        path.field(field).error("not supported");
    }
}

/// The transport sockets of a cluster: those that endpoints choose by metadata, and that of the rest.
fn compile_transport(
    pb: &pb::Cluster,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> UpstreamTransport {
    let mut out = UpstreamTransport {
        default: pb
            .transport_socket
            .as_ref()
            .and_then(|socket| compile_upstream(socket, cx, &path.field("transport_socket"))),
        matches: Vec::new(),
    };
    for (i, entry) in pb.transport_socket_matches.iter().enumerate() {
        let path = path.index("transport_socket_matches", i);
        if entry.name.is_empty() {
            path.field("name").error("value length must be at least 1 characters");
        }
        let socket = entry.transport_socket.as_ref();
        out.matches.push(TransportMatch {
            name: entry.name.as_str().into(),
            criteria: entry.r#match.as_ref().map(struct_to_json).unwrap_or_default(),
            socket: socket.and_then(|s| compile_upstream(s, cx, &path.field("transport_socket"))),
        });
    }
    out
}

fn compile_discovery(pb: &pb::Cluster, path: &FieldPath<'_>) -> Option<Discovery> {
    use pb_cluster::{ClusterDiscoveryType, DiscoveryType};
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if pb.eds_cluster_config.is_some() && pb.cluster_discovery_type != Some(eds) {
        path.field("eds_cluster_config").error("set in a cluster that is not of type EDS");
    }
    let kind = match &pb.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(value)) => {
            let Ok(kind) = DiscoveryType::try_from(*value) else {
                path.field("type").error("unknown enum value");
                return None;
            };
            kind
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let options = compile_dns_cluster(pb, custom, path)?;
            return Some(Discovery::Dns(Box::new(options)));
        }
    };
    match kind {
        DiscoveryType::Static => Some(Discovery::Static),
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            let single = kind == DiscoveryType::LogicalDns;
            Some(Discovery::Dns(Box::new(compile_dns_options(pb, single, path)?)))
        }
        DiscoveryType::Eds => compile_eds(pb, path),
        DiscoveryType::OriginalDst => compile_original_dst(pb, path),
    }
}

fn compile_eds(pb: &pb::Cluster, path: &FieldPath<'_>) -> Option<Discovery> {
    let path_config = path.field("eds_cluster_config");
    let Some(config) = &pb.eds_cluster_config else {
        path_config.error("is required in a cluster of type EDS");
        return None;
    };
    if pb.load_assignment.is_some() {
        path.field("load_assignment").error("set in a cluster of type EDS");
    }
    let Some(source) = &config.eds_config else {
        path_config.field("eds_config").error("value is required");
        return None;
    };
    let source = compile_config_source(source, &path_config.field("eds_config"))?;
    let name = if config.service_name.is_empty() { &pb.name } else { &config.service_name };
    Some(Discovery::Eds(Box::new(EdsOptions {
        source,
        service_name: name.as_str().into(),
        written_name: config.service_name.as_str().into(),
    })))
}

fn compile_circuit_breakers(
    pb: Option<&pb::CircuitBreakers>,
    path: &FieldPath<'_>,
) -> CircuitBreakers {
    use pb_core::RoutingPriority;
    let mut breakers = CircuitBreakers::default();
    let Some(pb) = pb else { return breakers };
    let path = path.field("circuit_breakers");
    let mut seen = [false; 2];
    for (i, thresholds) in pb.thresholds.iter().enumerate() {
        let path = path.index("thresholds", i);
        let (slot, priority) = match RoutingPriority::try_from(thresholds.priority) {
            Ok(RoutingPriority::Default) => (&mut breakers.default, 0),
            Ok(RoutingPriority::High) => (&mut breakers.high, 1),
            Err(_) => {
                path.field("priority").error("unknown enum value");
                continue;
            }
        };
        let compiled = compile_thresholds(thresholds, &path);
        // The first of a priority counts, as in Envoy.
        if !std::mem::replace(&mut seen[priority], true) {
            *slot = compiled;
        }
    }
    for (slot, priority) in [RoutingPriority::Default, RoutingPriority::High].iter().enumerate() {
        let mut all = pb.per_host_thresholds.iter().enumerate();
        if let Some((i, first)) = all.find(|(_, one)| one.priority == *priority as i32) {
            refuse_beside_connections(first, &path.index("per_host_thresholds", i));
            breakers.per_host_max_connections[slot] =
                first.max_connections.as_ref().map(|v| v.value);
        }
    }
    breakers
}

/// A host has a limit of connections only, as in Envoy.
fn refuse_beside_connections(pb: &pb::circuit_breakers::Thresholds, path: &FieldPath<'_>) {
    for (set, field) in [
        (pb.max_pending_requests.is_some(), "max_pending_requests"),
        (pb.max_requests.is_some(), "max_requests"),
        (pb.max_retries.is_some(), "max_retries"),
        (pb.max_connection_pools.is_some(), "max_connection_pools"),
        (pb.retry_budget.is_some(), "retry_budget"),
    ] {
        if set {
            path.field(field).error("unsupported field in per_host_thresholds");
        }
    }
}

fn compile_thresholds(pb: &pb::circuit_breakers::Thresholds, path: &FieldPath<'_>) -> Thresholds {
    let default = Thresholds::default();
    let limit = |value: &Option<crate::config::pb::google::protobuf::UInt32Value>, or: u32| {
        value.as_ref().map_or(or, |v| v.value)
    };
    let path = path.field("retry_budget");
    Thresholds {
        max_connections: limit(&pb.max_connections, default.max_connections),
        max_pending_requests: limit(&pb.max_pending_requests, default.max_pending_requests),
        max_requests: limit(&pb.max_requests, default.max_requests),
        max_retries: limit(&pb.max_retries, default.max_retries),
        max_connection_pools: limit(&pb.max_connection_pools, default.max_connection_pools),
        retry_budget: pb.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: compile_percent(budget.budget_percent.as_ref(), &path.field("budget_percent"))
                .unwrap_or(20.0),
            min_retry_concurrency: limit(&budget.min_retry_concurrency, 3),
        }),
        track_remaining: pb.track_remaining,
    }
}

/// HTTP options from `typed_extension_protocol_options`, or from the deprecated fields where it has none.
#[expect(deprecated, reason = "the older HTTP fields are still read, as Envoy does")]
fn compile_http(pb: &pb::Cluster, is_tls: bool, path: &FieldPath<'_>) -> UpstreamHttpOptions {
    use pb_cluster::ClusterProtocolSelection;
    let cluster_limit = pb.max_requests_per_connection.as_ref().map(|v| v.value).filter(|v| *v > 0);
    for key in pb.typed_extension_protocol_options.keys().filter(|k| *k != HTTP_PROTOCOL_OPTIONS) {
        path.key("typed_extension_protocol_options", key).error("not supported");
    }
    let mut options = match pb.typed_extension_protocol_options.get(HTTP_PROTOCOL_OPTIONS) {
        Some(any) => {
            let path = path.key("typed_extension_protocol_options", HTTP_PROTOCOL_OPTIONS);
            compile_upstream_http_options(any, &path)
        }
        None => {
            let common = pb.common_http_protocol_options.as_ref();
            let http1 = pb.http_protocol_options.as_ref();
            let http2 = pb.http2_protocol_options.as_ref();
            let downstream = ClusterProtocolSelection::UseDownstreamProtocol as i32;
            UpstreamHttpOptions {
                choice: if pb.protocol_selection == downstream {
                    UpstreamProtocolChoice::Downstream
                } else if http2.is_some() {
                    UpstreamProtocolChoice::Http2
                } else {
                    UpstreamProtocolChoice::Http1
                },
                common: compile_common_http_options(
                    common,
                    &path.field("common_http_protocol_options"),
                ),
                http1: compile_http1_options(http1, &path.field("http_protocol_options")),
                http2: compile_http2_options(http2, &path.field("http2_protocol_options")),
                auto_sni: compile_auto_sni(
                    pb.upstream_http_protocol_options.as_ref(),
                    &path.field("upstream_http_protocol_options"),
                ),
            }
        }
    };
    if options.choice == UpstreamProtocolChoice::Auto && !is_tls {
        // Only TLS negotiates a protocol.
        path.field("typed_extension_protocol_options").error(format_args!(
            "ALPN configured for cluster {} which has a non-ALPN transport socket",
            pb.name
        ));
    }
    if cluster_limit.is_some() && options.common.max_requests_per_connection.is_some() {
        path.field("max_requests_per_connection").error(
            "only one of max_requests_per_connection from Cluster or HttpProtocolOptions can be specified",
        );
    }
    options.common.max_requests_per_connection =
        options.common.max_requests_per_connection.or(cluster_limit);
    options
}

fn compile_socket(
    pb: &pb::Cluster,
    bootstrap: Option<&BindConfig>,
    path: &FieldPath<'_>,
) -> SocketOptions {
    let options = pb.upstream_connection_options.as_ref();
    let bind = match &pb.upstream_bind_config {
        Some(bind) => compile_bind_config(bind, &path.field("upstream_bind_config")),
        None => bootstrap.cloned(),
    };
    SocketOptions {
        keepalive: options.and_then(|o| o.tcp_keepalive.as_ref()).map(compile_keepalive),
        bind,
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
