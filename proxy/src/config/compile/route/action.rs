//! pb RouteAction: where requests go, how they are changed, which limits they have.

use std::sync::Arc;

use http::StatusCode;

use super::cluster_specifier::{compile_cluster_name, compile_cluster_specifier};
use super::{Scope, retry};
use crate::codec::name::HeaderName;
use crate::config::compile::core::{compile_optional_duration, compile_runtime_fraction};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::header_ops::compile_header_mutations;
use crate::config::compile::matcher::compile_regex_replace;
use crate::config::compile::rate_limit::compile_rate_limits_of_route;
use crate::config::core::{Fraction, RuntimeFraction};
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::google::protobuf::Duration as PbDuration;
use crate::config::route::action::{
    ConnectConfig, HostRewrite, MirrorPolicy, PathRewrite, Priority, RouteAction, RouteTimeouts,
    UpgradeConfig,
};

pub(super) fn compile_route_action(
    action: &pb::RouteAction,
    route_name: &str,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Option<RouteAction> {
    use pb::route_action::ClusterNotFoundResponseCode as NotFound;
    report_unsupported(action, path);
    let cluster = compile_cluster_specifier(action, route_name, scope, path);
    let path_rewrite = compile_path_rewrite(action, path);
    let host_rewrite = compile_host_rewrite(action, path);
    let timeouts = compile_timeouts(action, path);
    let upgrades = compile_upgrades(&action.upgrade_configs, path);
    let not_found = match NotFound::try_from(action.cluster_not_found_response_code) {
        Ok(NotFound::ServiceUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Ok(NotFound::NotFound) => StatusCode::NOT_FOUND,
        Ok(NotFound::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
        Err(_) => {
            path.field("cluster_not_found_response_code").error("unknown enum value");
            return None;
        }
    };
    Some(RouteAction {
        cluster: cluster?,
        cluster_not_found_response_code: not_found,
        path_rewrite: path_rewrite?,
        host_rewrite: host_rewrite?,
        append_x_forwarded_host: action.append_x_forwarded_host,
        timeouts,
        retry_policy: match &action.retry_policy {
            Some(policy) => {
                let path = path.field("retry_policy");
                Some(Arc::new(retry::compile_retry_policy(policy, &path)?))
            }
            None => scope.retry_policy.clone(),
        },
        mirrors: if action.request_mirror_policies.is_empty() {
            scope.mirrors.clone()
        } else {
            compile_mirrors(&action.request_mirror_policies, scope, path)
        },
        priority: match core_pb::RoutingPriority::try_from(action.priority) {
            Ok(core_pb::RoutingPriority::Default) => Priority::Default,
            Ok(core_pb::RoutingPriority::High) => Priority::High,
            Err(_) => {
                path.field("priority").error("unknown enum value");
                return None;
            }
        },
        upgrades,
        cors: deprecated_cors(action, path),
        rate_limits: compile_rate_limits_of_route(&action.rate_limits, path),
        include_vh_rate_limits: includes_rate_limits_of_host(action),
    })
}

#[expect(deprecated, reason = "configurations still have it")]
fn includes_rate_limits_of_host(action: &pb::RouteAction) -> bool {
    action.include_vh_rate_limits.as_ref().is_some_and(|include| include.value)
}

#[expect(deprecated, reason = "configurations still have them")]
fn report_unsupported(action: &pb::RouteAction, path: &FieldPath<'_>) {
    if action.internal_redirect_policy.is_some() {
        path.field("internal_redirect_policy").error("internal redirects are not supported");
    }
    if action.internal_redirect_action != 0 {
        path.field("internal_redirect_action").error("internal redirects are not supported");
    }
    if action.retry_policy_typed_config.is_some() {
        path.field("retry_policy_typed_config").error("not supported");
    }
    let ignored = [
        (action.metadata_match.is_some(), "metadata_match", "subsets are not supported"),
        (!action.hash_policy.is_empty(), "hash_policy", "hashing balancers are not supported"),
        (action.hedge_policy.is_some(), "hedge_policy", "hedging is not supported"),
        (action.early_data_policy.is_some(), "early_data_policy", "there is no early data"),
        (
            action.max_internal_redirects.is_some(),
            "max_internal_redirects",
            "internal redirects are not supported",
        ),
    ];
    for (set, field, reason) in ignored {
        if set {
            path.field(field).ignored(reason);
        }
    }
}

#[expect(deprecated, reason = "configurations still have it")]
fn deprecated_cors(
    action: &pb::RouteAction,
    path: &FieldPath<'_>,
) -> Option<Arc<crate::config::route::CorsPolicy>> {
    let policy = action.cors.as_ref()?;
    crate::config::compile::cors::compile_deprecated_cors(policy, &path.field("cors")).map(Arc::new)
}

/// `Some(None)`: the path stays as it is.
fn compile_path_rewrite(
    action: &pb::RouteAction,
    path: &FieldPath<'_>,
) -> Option<Option<PathRewrite>> {
    if action.path_rewrite_policy.is_some() {
        path.field("path_rewrite_policy").error("path rewrite policies are not supported");
        return None;
    }
    if !action.path_rewrite.is_empty() {
        path.field("path_rewrite").error("not supported");
        return None;
    }
    check_line(&action.prefix_rewrite, "prefix_rewrite", path);
    match (&action.regex_rewrite, action.prefix_rewrite.is_empty()) {
        (None, true) => Some(None),
        (None, false) => Some(Some(PathRewrite::Prefix(action.prefix_rewrite.as_bytes().into()))),
        (Some(replace), true) => {
            let replace = compile_regex_replace(replace, &path.field("regex_rewrite"))?;
            Some(Some(PathRewrite::Regex(replace)))
        }
        (Some(_), false) => {
            path.error("Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy");
            None
        }
    }
}

/// What goes into a request line or a header ends neither.
pub(super) fn check_line(text: &str, field: &str, path: &FieldPath<'_>) {
    if text.contains(['\r', '\n', '\0']) {
        path.field(field).error("must not contain line ends or null characters");
    }
}

/// `Some(None)`: the host stays as it is.
fn compile_host_rewrite(
    action: &pb::RouteAction,
    path: &FieldPath<'_>,
) -> Option<Option<HostRewrite>> {
    use pb::route_action::HostRewriteSpecifier as Specifier;
    Some(match &action.host_rewrite_specifier {
        None => None,
        Some(Specifier::HostRewriteLiteral(host)) => {
            check_line(host, "host_rewrite_literal", path);
            (!host.is_empty()).then(|| HostRewrite::Literal(host.as_bytes().into()))
        }
        Some(Specifier::AutoHostRewrite(auto)) => auto.value.then_some(HostRewrite::Auto),
        Some(Specifier::HostRewriteHeader(name)) if name.is_empty() => None,
        Some(Specifier::HostRewriteHeader(name)) => {
            let path = path.field("host_rewrite_header");
            Some(HostRewrite::Header(path.ok_or_error(HeaderName::parse(name))?))
        }
        Some(Specifier::HostRewritePathRegex(replace)) => {
            let path = path.field("host_rewrite_path_regex");
            Some(HostRewrite::PathRegex(compile_regex_replace(replace, &path)?))
        }
        Some(Specifier::HostRewrite(_)) => {
            path.field("host_rewrite").error("not supported");
            return None;
        }
    })
}

#[expect(deprecated, reason = "the older gRPC fields still count")]
fn compile_timeouts(action: &pb::RouteAction, path: &FieldPath<'_>) -> RouteTimeouts {
    let duration = |value: &Option<PbDuration>, field: &str| {
        compile_optional_duration(value.as_ref(), &path.field(field))
    };
    let mut timeouts = RouteTimeouts {
        timeout: duration(&action.timeout, "timeout").unwrap_or(RouteTimeouts::DEFAULT_TIMEOUT),
        idle: duration(&action.idle_timeout, "idle_timeout"),
        max_stream_duration: None,
        uses_max_stream_duration: false,
        grpc_timeout_max: duration(&action.max_grpc_timeout, "max_grpc_timeout"),
        grpc_timeout_offset: duration(&action.grpc_timeout_offset, "grpc_timeout_offset"),
    };
    if let Some(max) = &action.max_stream_duration {
        let path = path.field("max_stream_duration");
        let duration = |value: &Option<PbDuration>, field: &str| {
            compile_optional_duration(value.as_ref(), &path.field(field))
        };
        timeouts.uses_max_stream_duration = true;
        timeouts.max_stream_duration = duration(&max.max_stream_duration, "max_stream_duration");
        timeouts.grpc_timeout_max =
            duration(&max.grpc_timeout_header_max, "grpc_timeout_header_max");
        timeouts.grpc_timeout_offset =
            duration(&max.grpc_timeout_header_offset, "grpc_timeout_header_offset");
    }
    timeouts
}

/// The `request_mirror_policies` of `path`'s message.
pub(super) fn compile_mirrors(
    mirrors: &[pb::route_action::RequestMirrorPolicy],
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Arc<[MirrorPolicy]> {
    let compile = |(i, mirror): (usize, &pb::route_action::RequestMirrorPolicy)| {
        let path = path.index("request_mirror_policies", i);
        if mirror.trace_sampled.is_some() {
            path.field("trace_sampled").ignored("tracing is not supported");
        }
        let cluster = compile_cluster_name(
            &mirror.cluster,
            "cluster",
            &mirror.cluster_header,
            "Exactly one of cluster or cluster_header in request mirror policy need to be specified",
            "Only one of cluster or cluster_header in request mirror policy can be specified",
            scope,
            &path,
        )?;
        let fraction = match &mirror.runtime_fraction {
            Some(fraction) => compile_runtime_fraction(fraction, &path.field("runtime_fraction"))?,
            None => RuntimeFraction::fixed(Fraction::ALWAYS),
        };
        let host = &mirror.host_rewrite_literal;
        Some(MirrorPolicy {
            cluster,
            fraction,
            disable_shadow_host_suffix_append: mirror.disable_shadow_host_suffix_append,
            request_headers: compile_header_mutations(
                &mirror.request_headers_mutations,
                "request_headers_mutations",
                &path,
            ),
            host_rewrite_literal: (!host.is_empty()).then(|| host.as_bytes().into()),
        })
    };
    mirrors.iter().enumerate().filter_map(compile).collect()
}

fn compile_upgrades(
    upgrades: &[pb::route_action::UpgradeConfig],
    path: &FieldPath<'_>,
) -> Box<[UpgradeConfig]> {
    let mut compiled: Vec<UpgradeConfig> = Vec::with_capacity(upgrades.len());
    for (i, upgrade) in upgrades.iter().enumerate() {
        let path = path.index("upgrade_configs", i);
        if upgrade.upgrade_type.is_empty() {
            path.field("upgrade_type").error("value length must be at least 1 characters");
        }
        let upgrade_type = upgrade.upgrade_type.to_ascii_lowercase().into_boxed_str();
        if compiled.iter().any(|other| other.upgrade_type == upgrade_type) {
            path.error(format_args!("Duplicate upgrade {}", upgrade.upgrade_type));
            continue;
        }
        let connect = upgrade.connect_config.as_ref().map(|connect| {
            if !matches!(&*upgrade_type, "connect" | "connect-udp") {
                path.field("connect_config").error(format_args!(
                    "Non-CONNECT upgrade type {} has ConnectConfig",
                    upgrade.upgrade_type
                ));
            }
            ConnectConfig {
                // The enum's V1 is 0.
                proxy_protocol: connect
                    .proxy_protocol_config
                    .as_ref()
                    .map(|config| if config.version == 0 { 1 } else { 2 }),
                allow_post: connect.allow_post,
            }
        });
        let enabled = upgrade.enabled.as_ref().is_none_or(|v| v.value);
        compiled.push(UpgradeConfig { upgrade_type, enabled, connect });
    }
    compiled.into()
}
