//! pb HttpConnectionManager to its compiled form.

use std::sync::Arc;
use std::time::Duration;

use super::core::{any_type, compile_optional_duration, unpack_any};
use super::diagnostic::FieldPath;
use super::listener::compile_cidrs;
use super::protocol_options::{
    compile_common_http_options, compile_http1_options, compile_http2_options,
};
use super::source::compile_config_source;
use super::tcp_proxy::compile_flush_interval;
use super::{CompileContext, access_log, filters, local_reply, route};
use crate::codec::head::Scheme;
use crate::config::hcm::{
    ClientCertDetails, CodecType, EscapedSlashes, ForwardClientCert, HttpConnectionManager,
    InternalAddresses, ProxyName, ProxyStatus, RequestIdConfig, RouterConfig, ServerHeader,
    StripPort, Tracing,
};
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::filters::http::router::v3::Router;
use crate::config::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use crate::config::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use crate::config::pb::google::protobuf as pb_google;
use crate::config::protocol_options::Http2Options;
use crate::config::route::slot::Routes;
use crate::http_filters::chain::FilterConfig;

type Pb = pb::HttpConnectionManager;

/// pb `stream_idle_timeout`, default.
const DEFAULT_STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// pb `drain_timeout`, default.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// pb `delayed_close_timeout`, default.
const DEFAULT_DELAYED_CLOSE: Duration = Duration::from_secs(1);
/// pb `max_request_headers_kb`, default and upper bound.
const DEFAULT_MAX_HEADERS_KB: u32 = 60;
const HIGHEST_MAX_HEADERS_KB: u32 = 8192;

/// The HTTP/2 options, and where they are silent the connection manager's word on invalid messages.
fn compile_http2(pb: &Pb, path: &FieldPath<'_>) -> Http2Options {
    let own = pb.http2_protocol_options.as_ref();
    let mut http2 = compile_http2_options(own, &path.field("http2_protocol_options"));
    if let Some(general) = &pb.stream_error_on_invalid_http_message
        && own.is_none_or(|own| own.override_stream_error_on_invalid_http_message.is_none())
    {
        http2.override_stream_error_on_invalid_http_message = general.value;
    }
    http2
}

/// Compiles a connection manager.
#[expect(deprecated, reason = "the older fields of access_log_options are read too")]
pub fn compile_hcm(
    pb: &Pb,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<HttpConnectionManager> {
    if pb.stat_prefix.is_empty() {
        path.field("stat_prefix").error("value length must be at least 1 characters");
    }
    reject_unsupported(pb, path);
    let http_filters = filters::compile_http_filters(&pb.http_filters, &pb.stat_prefix, cx, path);
    let routes = compile_routes(pb, cx, path);
    let common = compile_common_http_options(
        pb.common_http_protocol_options.as_ref(),
        &path.field("common_http_protocol_options"),
    );
    let http1 = compile_http1_options(
        pb.http_protocol_options.as_ref(),
        &path.field("http_protocol_options"),
    );
    let http2 = compile_http2(pb, path);
    let timeout =
        |value: &Option<_>, name, default| compile_timeout(value, default, &path.field(name));
    let max_request_headers_kb =
        pb.max_request_headers_kb.map_or(DEFAULT_MAX_HEADERS_KB, |v| v.value);
    if !(1..=HIGHEST_MAX_HEADERS_KB).contains(&max_request_headers_kb) {
        path.field("max_request_headers_kb").error("value must be inside range (0, 8192]");
    }
    let log_options = pb.access_log_options.as_ref();
    let stream_error = pb.stream_error_on_invalid_http_message.is_some_and(|v| v.value);
    Some(HttpConnectionManager {
        stat_prefix: pb.stat_prefix.as_str().into(),
        codec: compile_codec_type(pb, path),
        routes: routes?,
        filters: http_filters.filters.into(),
        router: compile_router(&http_filters.router?, &path.field("http_filters")),
        common,
        max_request_headers_kb,
        stream_idle_timeout: positive(timeout(
            &pb.stream_idle_timeout,
            "stream_idle_timeout",
            DEFAULT_STREAM_IDLE_TIMEOUT,
        )),
        request_timeout: positive(timeout(&pb.request_timeout, "request_timeout", Duration::ZERO)),
        request_headers_timeout: positive(timeout(
            &pb.request_headers_timeout,
            "request_headers_timeout",
            Duration::ZERO,
        )),
        drain_timeout: timeout(&pb.drain_timeout, "drain_timeout", DEFAULT_DRAIN_TIMEOUT),
        delayed_close_timeout: timeout(
            &pb.delayed_close_timeout,
            "delayed_close_timeout",
            DEFAULT_DELAYED_CLOSE,
        ),
        stream_error_on_invalid_message: stream_error
            || http1.override_stream_error_on_invalid_http_message,
        http1,
        http2,
        server_name: match pb.server_name.as_str() {
            "" => "envoy".into(),
            name => name.into(),
        },
        server_header: compile_server_header(pb),
        scheme_overwrite: compile_scheme(pb, path),
        scheme_of_upstream: pb
            .scheme_header_transformation
            .as_ref()
            .is_some_and(|t| t.transformation.is_none() && t.match_upstream),
        via: Some(pb.via.as_str()).filter(|v| !v.is_empty()).map(Arc::from),
        add_user_agent: pb.add_user_agent.is_some_and(|v| v.value),
        forward_client_cert: compile_forward_client_cert(pb, path),
        client_cert_details: compile_client_cert_details(pb),
        request_id: compile_request_id(pb, path),
        use_remote_address: pb.use_remote_address.is_some_and(|v| v.value),
        xff_num_trusted_hops: pb.xff_num_trusted_hops as usize,
        skip_xff_append: pb.skip_xff_append,
        internal_addresses: compile_internal_addresses(pb, path),
        represent_ipv4_as_mapped: pb.represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        append_x_forwarded_port: pb.append_x_forwarded_port,
        proxy_100_continue: pb.proxy_100_continue,
        proxy_status: pb.proxy_status_config.as_ref().map(compile_proxy_status),
        normalize_path: pb.normalize_path.is_some_and(|v| v.value),
        merge_slashes: pb.merge_slashes,
        escaped_slashes: compile_escaped_slashes(pb),
        strip_port: compile_strip_port(pb),
        strip_trailing_host_dot: pb.strip_trailing_host_dot,
        upgrades: compile_upgrades(pb, path),
        access_log: access_log::compile_access_logs(&pb.access_log, "access_log", path),
        flush_log_on_new_request: pb.flush_access_log_on_new_request
            || log_options.is_some_and(|o| o.flush_access_log_on_new_request),
        flush_log_on_tunnel: log_options
            .is_some_and(|o| o.flush_log_on_tunnel_successfully_established),
        access_log_flush_interval: compile_flush_interval(
            log_options
                .and_then(|o| o.access_log_flush_interval.as_ref())
                .or(pb.access_log_flush_interval.as_ref()),
            &path.field("access_log_flush_interval"),
        ),
        local_reply: pb
            .local_reply_config
            .as_ref()
            .map(|c| local_reply::compile_local_reply_config(c, &path.field("local_reply_config")))
            .unwrap_or_default(),
        tracing: pb.tracing.as_ref().map(|t| compile_tracing(t, &path.field("tracing"))),
    })
}

/// The default where unset; zero, with a diagnostic, where it is no duration.
fn compile_timeout(
    value: &Option<pb_google::Duration>,
    default: Duration,
    path: &FieldPath<'_>,
) -> Duration {
    match value {
        None => default,
        some => compile_optional_duration(some.as_ref(), path).unwrap_or_default(),
    }
}

fn compile_codec_type(pb: &Pb, path: &FieldPath<'_>) -> CodecType {
    match pb.codec_type {
        0 => CodecType::Auto,
        1 => CodecType::Http1,
        2 => CodecType::Http2,
        _ => {
            path.field("codec_type").error("only AUTO, HTTP1 and HTTP2 are supported");
            CodecType::Auto
        }
    }
}

fn compile_forward_client_cert(pb: &Pb, path: &FieldPath<'_>) -> ForwardClientCert {
    use pb::http_connection_manager::ForwardClientCertDetails as Details;
    match Details::try_from(pb.forward_client_cert_details) {
        Ok(Details::Sanitize) => ForwardClientCert::Sanitize,
        Ok(Details::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(Details::AppendForward) => ForwardClientCert::AppendForward,
        Ok(Details::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(Details::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        Err(_) => {
            path.field("forward_client_cert_details").error("unknown enum value");
            ForwardClientCert::Sanitize
        }
    }
}

fn compile_client_cert_details(pb: &Pb) -> ClientCertDetails {
    pb.set_current_client_cert_details.as_ref().map_or_else(ClientCertDetails::default, |set| {
        ClientCertDetails {
            subject: set.subject.is_some_and(|v| v.value),
            cert: set.cert,
            chain: set.chain,
            dns: set.dns,
            uri: set.uri,
        }
    })
}

fn compile_server_header(pb: &Pb) -> ServerHeader {
    match pb.server_header_transformation {
        1 => ServerHeader::AppendIfAbsent,
        2 => ServerHeader::PassThrough,
        _ => ServerHeader::Overwrite,
    }
}

fn compile_escaped_slashes(pb: &Pb) -> EscapedSlashes {
    match pb.path_with_escaped_slashes_action {
        2 => EscapedSlashes::RejectRequest,
        3 => EscapedSlashes::UnescapeAndRedirect,
        4 => EscapedSlashes::UnescapeAndForward,
        // IMPLEMENTATION_SPECIFIC_DEFAULT is KEEP_UNCHANGED.
        _ => EscapedSlashes::KeepUnchanged,
    }
}

fn compile_strip_port(pb: &Pb) -> StripPort {
    use pb::http_connection_manager::StripPortMode;
    match &pb.strip_port_mode {
        Some(StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
        _ if pb.strip_matching_host_port => StripPort::Matching,
        _ => StripPort::No,
    }
}

fn positive(d: Duration) -> Option<Duration> {
    Some(d).filter(|d| !d.is_zero())
}

/// Fields that decide who a request is from or whether it passes, and that are not built.
fn reject_unsupported(pb: &Pb, path: &FieldPath<'_>) {
    let reject = |set: bool, name: &str| {
        if set {
            path.field(name).error("is not supported");
        }
    };
    reject(!pb.original_ip_detection_extensions.is_empty(), "original_ip_detection_extensions");
    reject(!pb.early_header_mutation_extensions.is_empty(), "early_header_mutation_extensions");
    reject(pb.path_normalization_options.is_some(), "path_normalization_options");
    reject(pb.typed_header_validation_config.is_some(), "typed_header_validation_config");
    reject(pb.forward_client_cert_matcher.is_some(), "forward_client_cert_matcher");
    reject(pb.forward_proto_config.is_some(), "forward_proto_config");
}

fn compile_routes(pb: &Pb, cx: &CompileContext<'_>, path: &FieldPath<'_>) -> Option<Routes> {
    use pb::http_connection_manager::RouteSpecifier;
    match &pb.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            let context = route::RouteContext { per_route: &FilterConfig::per_route };
            let path = path.field("route_config");
            Some(Routes::Inline(Arc::new(route::compile_route_table(config, context, &path))))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let path = path.field("rds");
            if rds.route_config_name.is_empty() {
                path.field("route_config_name").error("value length must be at least 1 characters");
            }
            let Some(source) = &rds.config_source else {
                path.field("config_source").error("value is required");
                return None;
            };
            let source = compile_config_source(source, &path.field("config_source"))?;
            let name = &rds.route_config_name;
            Some(Routes::Discovered(cx.slots.routes(name, &source, &pb.stat_prefix)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            path.field("scoped_routes").error("is not supported");
            None
        }
        None => {
            path.field("route_specifier").error("is required");
            None
        }
    }
}

#[expect(deprecated, reason = "start_child_span is read too")]
fn compile_router(pb: &Router, path: &FieldPath<'_>) -> RouterConfig {
    if !pb.upstream_http_filters.is_empty() {
        path.field("upstream_http_filters").error("is not supported");
    }
    RouterConfig {
        suppress_envoy_headers: pb.suppress_envoy_headers,
        strict_check_headers: pb.strict_check_headers.iter().map(|h| h.as_str().into()).collect(),
        respect_expected_rq_timeout: pb.respect_expected_rq_timeout,
        upstream_log: access_log::compile_access_logs(&pb.upstream_log, "upstream_log", path),
        dynamic_stats: pb.dynamic_stats.is_none_or(|v| v.value),
        start_child_span: pb.start_child_span,
        suppress_grpc_request_failure_code_stats: pb.suppress_grpc_request_failure_code_stats,
    }
}

fn compile_scheme(pb: &Pb, path: &FieldPath<'_>) -> Option<Scheme> {
    use pb_core::scheme_header_transformation::Transformation;
    let transformation = pb.scheme_header_transformation.as_ref()?.transformation.as_ref()?;
    let Transformation::SchemeToOverwrite(scheme) = transformation;
    match scheme.as_str() {
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => {
            path.field("scheme_header_transformation")
                .field("scheme_to_overwrite")
                .error("value must be in list [http, https]");
            None
        }
    }
}

fn compile_request_id(pb: &Pb, path: &FieldPath<'_>) -> RequestIdConfig {
    let mut out = RequestIdConfig {
        generate: pb.generate_request_id.is_none_or(|v| v.value),
        preserve_external: pb.preserve_external_request_id,
        always_in_response: pb.always_set_request_id_in_response,
        pack_trace_reason: true,
        use_for_trace_sampling: true,
    };
    let any = pb.request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref());
    let Some(any) = any else { return out };
    let at = path.field("request_id_extension");
    let at = at.field("typed_config");
    if any_type(any) != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
        at.error(format_args!("request id extension {:?} is not supported", any_type(any)));
    } else if let Some(uuid) = unpack_any::<UuidRequestIdConfig>(any, &at) {
        out.pack_trace_reason = uuid.pack_trace_reason.is_none_or(|v| v.value);
        out.use_for_trace_sampling = uuid.use_request_id_for_trace_sampling.is_none_or(|v| v.value);
    }
    out
}

fn compile_internal_addresses(pb: &Pb, path: &FieldPath<'_>) -> InternalAddresses {
    match &pb.internal_address_config {
        Some(config) => InternalAddresses {
            unix_sockets: config.unix_sockets,
            ranges: if config.cidr_ranges.is_empty() {
                InternalAddresses::private()
            } else {
                let path = path.field("internal_address_config");
                compile_cidrs(&config.cidr_ranges, "cidr_ranges", &path)
            },
        },
        None => InternalAddresses::default(),
    }
}

fn compile_upgrades(pb: &Pb, path: &FieldPath<'_>) -> Vec<(Arc<str>, bool)> {
    let mut out: Vec<(Arc<str>, bool)> = Vec::new();
    for (i, upgrade) in pb.upgrade_configs.iter().enumerate() {
        let at = path.index("upgrade_configs", i);
        if !upgrade.filters.is_empty() {
            at.field("filters").error("a filter chain of its own for an upgrade is not supported");
        }
        let name: Arc<str> = upgrade.upgrade_type.to_ascii_lowercase().into();
        if out.iter().any(|(have, _)| *have == name) {
            at.field("upgrade_type").error(format_args!("multiple upgrade configs for {name:?}"));
        }
        out.push((name, upgrade.enabled.is_none_or(|v| v.value)));
    }
    out
}

fn compile_proxy_status(pb: &pb::http_connection_manager::ProxyStatusConfig) -> ProxyStatus {
    use pb::http_connection_manager::proxy_status_config::ProxyName as PbName;
    ProxyStatus {
        name: match &pb.proxy_name {
            Some(PbName::LiteralProxyName(name)) => ProxyName::Literal(name.as_str().into()),
            Some(PbName::UseNodeId(true)) => ProxyName::NodeId,
            _ => ProxyName::ServerName,
        },
        remove_details: pb.remove_details,
        remove_connection_termination_details: pb.remove_connection_termination_details,
        remove_response_flags: pb.remove_response_flags,
        set_recommended_response_code: pb.set_recommended_response_code,
    }
}

fn compile_tracing(pb: &pb::http_connection_manager::Tracing, path: &FieldPath<'_>) -> Tracing {
    if pb.provider.is_some() {
        path.field("provider").ignored("no tracer is built: spans are not reported");
    }
    let hundredths = |percent: &Option<crate::config::pb::envoy::r#type::v3::Percent>| {
        percent.as_ref().map_or(10_000, |p| (p.value.clamp(0.0, 100.0) * 100.0) as u32)
    };
    Tracing {
        client_sampling: hundredths(&pb.client_sampling),
        random_sampling: hundredths(&pb.random_sampling),
        overall_sampling: hundredths(&pb.overall_sampling),
    }
}
