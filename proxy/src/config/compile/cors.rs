//! pb CorsPolicy: the cors filter's own, and the deprecated one of virtual hosts and routes.

use super::core::compile_runtime_fraction;
use super::diagnostic::FieldPath;
use super::matcher::compile_string_matchers;
use crate::config::core::RuntimeFraction;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as route_pb;
use crate::config::pb::envoy::extensions::filters::http::cors::v3 as filter_pb;
use crate::config::route::CorsPolicy;

/// `envoy.extensions.filters.http.cors.v3.CorsPolicy`.
pub fn compile_cors(policy: &filter_pb::CorsPolicy, path: &FieldPath<'_>) -> Option<CorsPolicy> {
    let patterns = &policy.allow_origin_string_match;
    Some(CorsPolicy {
        allow_origin: compile_string_matchers(patterns, "allow_origin_string_match", path)?,
        allow_methods: policy.allow_methods.as_bytes().into(),
        allow_headers: policy.allow_headers.as_bytes().into(),
        expose_headers: policy.expose_headers.as_bytes().into(),
        max_age: policy.max_age.as_bytes().into(),
        allow_credentials: policy.allow_credentials.as_ref().map(|v| v.value),
        allow_private_network_access: policy.allow_private_network_access.as_ref().map(|v| v.value),
        forward_not_matching_preflights: policy
            .forward_not_matching_preflights
            .as_ref()
            .map(|v| v.value),
        enabled: fraction(policy.filter_enabled.as_ref(), "filter_enabled", path),
        shadow_enabled: fraction(policy.shadow_enabled.as_ref(), "shadow_enabled", path),
    })
}

/// `envoy.config.route.v3.CorsPolicy`: the same fields under another name.
pub fn compile_deprecated_cors(
    policy: &route_pb::CorsPolicy,
    path: &FieldPath<'_>,
) -> Option<CorsPolicy> {
    use route_pb::cors_policy::EnabledSpecifier;
    let filter_enabled = policy.enabled_specifier.clone().map(|enabled| match enabled {
        EnabledSpecifier::FilterEnabled(enabled) => enabled,
    });
    let policy = filter_pb::CorsPolicy {
        allow_origin_string_match: policy.allow_origin_string_match.clone(),
        allow_methods: policy.allow_methods.clone(),
        allow_headers: policy.allow_headers.clone(),
        expose_headers: policy.expose_headers.clone(),
        max_age: policy.max_age.clone(),
        allow_credentials: policy.allow_credentials,
        filter_enabled,
        shadow_enabled: policy.shadow_enabled.clone(),
        allow_private_network_access: policy.allow_private_network_access,
        forward_not_matching_preflights: policy.forward_not_matching_preflights,
    };
    compile_cors(&policy, path)
}

fn fraction(
    fraction: Option<&core_pb::RuntimeFractionalPercent>,
    field: &str,
    path: &FieldPath<'_>,
) -> Option<RuntimeFraction> {
    compile_runtime_fraction(fraction?, &path.field(field))
}
