//! pb Listener to its compiled form.

use std::sync::Arc;
use std::time::Duration;

use super::chain_identity::identity;
use super::core::{
    compile_address, compile_keepalive, compile_optional_duration, compile_socket_options,
    compile_u32_at_least, unpack_any,
};
use super::diagnostic::FieldPath;
use super::matcher::compile_cidr;
use super::{CompileContext, access_log, filters, tls};
use crate::config::cidr::Cidr;
use crate::config::core::ConfigAddress;
use crate::config::filter_chain::{ChainMatch, FilterChain, FilterChains, SourceType};
use crate::config::listener::{
    Bind, Direction, DrainType, Listener, ListenerFilter, ListenerFilterKind, OriginalSrc,
    Predicate, ProxyProtocol, TlsInspector, TlvRule,
};
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::config::listener::v3 as pb;
use crate::config::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use crate::config::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use crate::config::pb::envoy::extensions::filters::listener::original_src::v3 as pb_src;
use crate::config::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as pb_proxy;
use crate::config::pb::envoy::extensions::filters::listener::tls_inspector::v3 as pb_tls;
use crate::hcm::request_id::uuid;
use crate::listener::tls_inspector::MAX_CLIENT_HELLO;

/// pb `per_connection_buffer_limit_bytes`, default.
const DEFAULT_BUFFER_LIMIT: u32 = 1024 * 1024;
/// pb `listener_filters_timeout`, default.
const DEFAULT_LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
/// pb `tcp_backlog_size`, default: the kernel cuts it to `net.core.somaxconn`.
const DEFAULT_BACKLOG: u32 = 4096;
/// Accepts per event where `max_connections_to_accept_per_socket_event` is not set; Envoy has no limit there. A
/// burst is taken in turns of this size, so that accepted connections are served in between.
const DEFAULT_ACCEPTS: u32 = 128;

/// Compiles a listener.
#[expect(deprecated, reason = "deprecated_v1 is read too")]
pub fn compile_listener(
    pb: &pb::Listener,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Listener> {
    let binds = compile_binds(pb, path);
    let chains = compile_chains(pb, cx, path);
    reject_unsupported(pb, path);
    let mut listener_filters: Vec<_> = pb
        .listener_filters
        .iter()
        .enumerate()
        .filter_map(|(i, f)| compile_listener_filter(f, &path.index("listener_filters", i)))
        .collect();
    let use_original_dst = pb.use_original_dst.is_some_and(|v| v.value);
    if use_original_dst {
        let kind = ListenerFilterKind::OriginalDst;
        listener_filters.push(ListenerFilter { kind, disabled: None });
    }
    let timeout = match &pb.listener_filters_timeout {
        None => Some(DEFAULT_LISTENER_FILTERS_TIMEOUT),
        some => compile_optional_duration(some.as_ref(), &path.field("listener_filters_timeout"))
            .filter(|d| !d.is_zero()),
    };
    let binds = binds?;
    let stat_prefix = match pb.stat_prefix.as_str() {
        "" => stat_name(&binds[0].address),
        prefix => prefix.to_owned(),
    };
    let name = match pb.name.as_str() {
        "" => random_name(),
        name => Arc::from(name),
    };
    Some(Listener {
        name,
        stat_prefix: stat_prefix.into(),
        bind_to_port: pb.bind_to_port.is_none_or(|b| b.value)
            && pb.deprecated_v1.as_ref().and_then(|d| d.bind_to_port).is_none_or(|b| b.value),
        use_original_dst,
        reuse_port: pb.enable_reuse_port.is_none_or(|b| b.value),
        backlog: pb.tcp_backlog_size.map_or(DEFAULT_BACKLOG, |v| v.value) as i32,
        // Zero is no limit, as in Envoy.
        per_connection_buffer_limit: match pb.per_connection_buffer_limit_bytes {
            Some(limit) if limit.value == 0 => usize::MAX,
            limit => limit.map_or(DEFAULT_BUFFER_LIMIT, |v| v.value) as usize,
        },
        listener_filters,
        listener_filters_timeout: timeout,
        continue_on_listener_filters_timeout: pb.continue_on_listener_filters_timeout,
        max_accepts_per_event: compile_u32_at_least(
            pb.max_connections_to_accept_per_socket_event.as_ref(),
            1,
            &path.field("max_connections_to_accept_per_socket_event"),
        )
        .unwrap_or(DEFAULT_ACCEPTS) as usize,
        filter_chains: chains?,
        access_log: access_log::compile_access_logs(&pb.access_log, "access_log", path),
        ignore_global_conn_limit: pb.ignore_global_conn_limit,
        direction: pb.traffic_direction().into(),
        drain_type: match pb.drain_type() {
            pb::listener::DrainType::Default => DrainType::Default,
            pb::listener::DrainType::ModifyOnly => DrainType::ModifyOnly,
        },
        binds,
    })
}

impl From<pb_core::TrafficDirection> for Direction {
    fn from(pb: pb_core::TrafficDirection) -> Self {
        match pb {
            pb_core::TrafficDirection::Unspecified => Self::Unspecified,
            pb_core::TrafficDirection::Inbound => Self::Inbound,
            pb_core::TrafficDirection::Outbound => Self::Outbound,
        }
    }
}

/// The name of a listener that has none: a UUID, as in Envoy.
pub fn random_name() -> Arc<str> {
    String::from_utf8_lossy(&uuid((rand::random(), rand::random()))).into()
}

/// `0.0.0.0:80` as statistics name it: `0.0.0.0_80`, IPv6 `[__]_80`.
fn stat_name(address: &ConfigAddress) -> String {
    match address {
        ConfigAddress::Ip { addr, .. } => addr.to_string().replace(':', "_"),
        ConfigAddress::Dns { host, port } => format!("{host}_{port}"),
        ConfigAddress::Pipe { path, .. } => path.replace(':', "_"),
    }
}

fn compile_binds(pb: &pb::Listener, path: &FieldPath<'_>) -> Option<Vec<Bind>> {
    let Some(address) = &pb.address else {
        path.field("address").error("is required");
        return None;
    };
    let first = compile_bind(
        address,
        &pb.socket_options,
        pb.tcp_keepalive.as_ref(),
        pb,
        &path.field("address"),
    );
    let mut binds = vec![first?];
    for (i, additional) in pb.additional_addresses.iter().enumerate() {
        let at = path.index("additional_addresses", i);
        let Some(address) = &additional.address else {
            at.field("address").error("is required");
            continue;
        };
        let options =
            additional.socket_options.as_ref().map_or(&pb.socket_options, |o| &o.socket_options);
        let keepalive = additional.tcp_keepalive.as_ref().or(pb.tcp_keepalive.as_ref());
        binds.extend(compile_bind(address, options, keepalive, pb, &at.field("address")));
    }
    Some(binds)
}

fn compile_bind(
    address: &pb_core::Address,
    options: &[pb_core::SocketOption],
    keepalive: Option<&pb_core::TcpKeepalive>,
    pb: &pb::Listener,
    path: &FieldPath<'_>,
) -> Option<Bind> {
    let compiled = compile_address(Some(address), path)?;
    if matches!(compiled, ConfigAddress::Dns { .. }) {
        path.error("a listener's address must be an IP address or a pipe");
        return None;
    }
    Some(Bind {
        address: compiled,
        keepalive: keepalive.map(compile_keepalive),
        socket_options: compile_socket_options(options, "socket_options", path),
        freebind: pb.freebind.is_some_and(|v| v.value),
        transparent: pb.transparent.is_some_and(|v| v.value),
        fast_open: pb.tcp_fast_open_queue_length.map(|v| v.value),
    })
}

/// Fields that change who is served or how, and that are not built.
fn reject_unsupported(pb: &pb::Listener, path: &FieldPath<'_>) {
    let reject = |set: bool, name: &str, reason: &str| {
        if set {
            path.field(name).error(reason);
        }
    };
    reject(pb.udp_listener_config.is_some(), "udp_listener_config", "UDP is not supported");
    reject(pb.api_listener.is_some(), "api_listener", "API listeners are not supported");
    reject(pb.listener_specifier.is_some(), "internal_listener", "is not supported");
    reject(pb.filter_chain_matcher.is_some(), "filter_chain_matcher", "is not supported");
    reject(pb.fcds_config.is_some(), "fcds_config", "is not supported");
}

fn compile_chains(
    pb: &pb::Listener,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<FilterChains> {
    let mut chains = FilterChains::default();
    if pb.filter_chains.is_empty() && pb.default_filter_chain.is_none() {
        path.field("filter_chains").error("no filter chains specified");
        return None;
    }
    for (i, chain) in pb.filter_chains.iter().enumerate() {
        let at = path.index("filter_chains", i);
        let criteria = match &chain.filter_chain_match {
            Some(m) => compile_match(m, &at.field("filter_chain_match")),
            None => Some(ChainMatch::default()),
        };
        let compiled = compile_chain(chain, false, cx, &at);
        if let (Some(criteria), Some(compiled)) = (criteria, compiled) {
            at.ok_or_error(chains.add(&criteria, Arc::new(compiled)));
        }
    }
    if let Some(chain) = &pb.default_filter_chain {
        let at = path.field("default_filter_chain");
        if let Some(compiled) = compile_chain(chain, true, cx, &at) {
            chains.set_default(Arc::new(compiled));
        }
    }
    Some(chains)
}

#[expect(deprecated, reason = "use_proxy_proto is reported")]
fn compile_chain(
    pb: &pb::FilterChain,
    is_default: bool,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<FilterChain> {
    let transport = pb
        .transport_socket
        .as_ref()
        .and_then(|socket| tls::compile_downstream(socket, cx, &path.field("transport_socket")));
    if pb.use_proxy_proto.is_some_and(|v| v.value) {
        path.field("use_proxy_proto")
            .error("is deprecated: use the listener filter envoy.filters.listener.proxy_protocol");
    }
    let (filters, terminal) = filters::compile_network_filters(&pb.filters, cx, path)?;
    Some(FilterChain {
        id: FilterChain::next_id(),
        identity: identity(pb, is_default),
        name: pb.name.as_str().into(),
        transport,
        filters,
        terminal,
        transport_socket_connect_timeout: compile_optional_duration(
            pb.transport_socket_connect_timeout.as_ref(),
            &path.field("transport_socket_connect_timeout"),
        ),
    })
}

fn compile_match(pb: &pb::FilterChainMatch, path: &FieldPath<'_>) -> Option<ChainMatch> {
    if !pb.address_suffix.is_empty() || pb.suffix_len.is_some() {
        path.field("address_suffix").error("is not implemented, as in Envoy");
    }
    let mut server_names = Vec::new();
    for (i, name) in pb.server_names.iter().enumerate() {
        let at = path.index("server_names", i);
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.contains('*') {
            at.error("partial wildcards are not supported in server_names");
        } else {
            server_names.push(name.to_ascii_lowercase());
        }
    }
    let ports = pb.source_ports.iter().enumerate().filter_map(|(i, p)| {
        let port = u16::try_from(*p).ok().filter(|p| *p > 0);
        if port.is_none() {
            path.index("source_ports", i).error("value must be inside range [1, 65535]");
        }
        port
    });
    let source_ports = ports.collect();
    let destination_port = match pb.destination_port {
        None => None,
        Some(p) => match u16::try_from(p.value) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                path.field("destination_port").error("value must be inside range [1, 65535]");
                None
            }
        },
    };
    Some(ChainMatch {
        destination_port,
        destination: compile_cidrs(&pb.prefix_ranges, "prefix_ranges", path),
        server_names,
        transport_protocol: pb.transport_protocol.clone(),
        application_protocols: pb.application_protocols.clone(),
        direct_source: compile_cidrs(
            &pb.direct_source_prefix_ranges,
            "direct_source_prefix_ranges",
            path,
        ),
        source_type: match pb.source_type {
            1 => SourceType::SameIpOrLoopback,
            2 => SourceType::External,
            _ => SourceType::Any,
        },
        source: compile_cidrs(&pb.source_prefix_ranges, "source_prefix_ranges", path),
        source_ports,
    })
}

/// Compiles `CidrRange`s.
pub fn compile_cidrs(ranges: &[pb_core::CidrRange], name: &str, path: &FieldPath<'_>) -> Vec<Cidr> {
    ranges
        .iter()
        .enumerate()
        .filter_map(|(i, range)| compile_cidr(range, &path.index(name, i)))
        .collect()
}

fn compile_listener_filter(
    pb: &pb::ListenerFilter,
    path: &FieldPath<'_>,
) -> Option<ListenerFilter> {
    use pb::listener_filter::ConfigType;
    let kind = match &pb.config_type {
        Some(ConfigType::TypedConfig(any)) => {
            let at = path.field("typed_config");
            match super::core::any_type(any) {
                "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
                    unpack_any::<HttpInspector>(any, &at)?;
                    ListenerFilterKind::HttpInspector
                }
                "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                    let pb = unpack_any::<pb_tls::TlsInspector>(any, &at)?;
                    ListenerFilterKind::TlsInspector(compile_tls_inspector(&pb, &at))
                }
                "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                    let pb = unpack_any::<pb_proxy::ProxyProtocol>(any, &at)?;
                    ListenerFilterKind::ProxyProtocol(compile_proxy_protocol(&pb, &at))
                }
                "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
                    let pb = unpack_any::<pb_src::OriginalSrc>(any, &at)?;
                    let (bind_port, mark) = (pb.bind_port, pb.mark);
                    ListenerFilterKind::OriginalSrc(OriginalSrc { bind_port, mark })
                }
                "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
                    unpack_any::<OriginalDst>(any, &at)?;
                    ListenerFilterKind::OriginalDst
                }
                other => {
                    at.error(format_args!("listener filter {other:?} is not supported"));
                    return None;
                }
            }
        }
        _ => {
            path.field("typed_config")
                .error(format_args!("listener filter {:?} has no typed_config", pb.name));
            return None;
        }
    };
    let disabled = match &pb.filter_disabled {
        Some(predicate) => Some(compile_predicate(predicate, &path.field("filter_disabled"))?),
        None => None,
    };
    Some(ListenerFilter { kind, disabled })
}

fn compile_tls_inspector(pb: &pb_tls::TlsInspector, path: &FieldPath<'_>) -> TlsInspector {
    for (set, name) in [
        (pb.enable_ja3_fingerprinting, "enable_ja3_fingerprinting"),
        (pb.enable_ja4_fingerprinting, "enable_ja4_fingerprinting"),
    ] {
        if set.is_some_and(|v| v.value) {
            path.field(name).error("fingerprints are not supported");
        }
    }
    // How much is read at once is ours to choose; the field is checked all the same.
    if pb.initial_read_buffer_size.is_some_and(|v| !(256..=65_536).contains(&v.value)) {
        path.field("initial_read_buffer_size").error("value must be inside range (255, 65537)");
    }
    let size = pb.max_client_hello_size.map_or(MAX_CLIENT_HELLO, |v| v.value);
    if !(256..=MAX_CLIENT_HELLO).contains(&size) {
        path.field("max_client_hello_size").error("value must be inside range (255, 16384]");
    }
    TlsInspector {
        max_client_hello_size: size as usize,
        close_on_parsing_errors: pb.close_connection_on_client_hello_parsing_errors,
    }
}

fn compile_proxy_protocol(pb: &pb_proxy::ProxyProtocol, path: &FieldPath<'_>) -> ProxyProtocol {
    let mut out = ProxyProtocol {
        allow_without_header: pb.allow_requests_without_proxy_protocol,
        stat_prefix: pb.stat_prefix.as_str().into(),
        ..ProxyProtocol::default()
    };
    // ProxyProtocolConfig.Version: V1 = 0, V2 = 1.
    for version in &pb.disallowed_versions {
        match version {
            0 => out.disallow_v1 = true,
            1 => out.disallow_v2 = true,
            _ => path.field("disallowed_versions").error("unknown enum value"),
        }
    }
    let mut rules: Vec<TlvRule> = Vec::new();
    for (i, rule) in pb.rules.iter().enumerate() {
        let at = path.index("rules", i);
        let Ok(tlv_type) = u8::try_from(rule.tlv_type) else {
            at.field("tlv_type").error("value must be less than 256");
            continue;
        };
        let Some(pair) = &rule.on_tlv_present else { continue };
        if pair.key.is_empty() {
            at.field("on_tlv_present.key").error("value length must be at least 1 characters");
        }
        // The last rule of a type counts, as in Envoy.
        rules.retain(|earlier| earlier.tlv_type != tlv_type);
        rules.push(TlvRule {
            tlv_type,
            namespace: match pair.metadata_namespace.as_str() {
                "" => "envoy.filters.listener.proxy_protocol".into(),
                namespace => namespace.into(),
            },
            key: pair.key.as_str().into(),
        });
    }
    out.rules = rules.into();
    out
}

fn compile_predicate(
    pb: &pb::ListenerFilterChainMatchPredicate,
    path: &FieldPath<'_>,
) -> Option<Predicate> {
    use pb::listener_filter_chain_match_predicate::Rule;
    let all = |rules: &[pb::ListenerFilterChainMatchPredicate], name: &str| {
        let at = path.field(name);
        rules
            .iter()
            .enumerate()
            .map(|(i, rule)| compile_predicate(rule, &at.index("rules", i)))
            .collect::<Option<Vec<_>>>()
    };
    Some(match &pb.rule {
        Some(Rule::OrMatch(set)) => Predicate::Any(all(&set.rules, "or_match")?),
        Some(Rule::AndMatch(set)) => Predicate::All(all(&set.rules, "and_match")?),
        Some(Rule::NotMatch(rule)) => {
            Predicate::Not(Box::new(compile_predicate(rule, &path.field("not_match"))?))
        }
        Some(Rule::AnyMatch(value)) => Predicate::Always(*value),
        Some(Rule::DestinationPortRange(range)) => {
            let start = u16::try_from(range.start);
            let end = u32::try_from(range.end);
            match (start, end) {
                (Ok(start), Ok(end)) => Predicate::DestinationPort(start, end),
                _ => {
                    path.field("destination_port_range").error("is out of range");
                    return None;
                }
            }
        }
        None => {
            path.field("rule").error("is required");
            return None;
        }
    })
}
