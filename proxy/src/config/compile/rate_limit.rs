//! `envoy.config.route.v3.RateLimit` to `config::rate_limit`: of a local rate limit filter, a route or a virtual host.

use super::diagnostic::FieldPath;
use super::matcher::compile_header_matchers;
use crate::codec::name::HeaderName;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use crate::config::rate_limit::{Action, RateLimit};

/// Compiles the rate limits of a filter: what is not implemented is an error.
pub fn compile_rate_limits(pb: &[pb::RateLimit], path: &FieldPath<'_>) -> Option<Box<[RateLimit]>> {
    let all: Vec<Option<RateLimit>> = pb
        .iter()
        .enumerate()
        .map(|(i, limit)| compile_rate_limit(limit, true, &path.index("rate_limits", i)))
        .collect();
    all.into_iter().collect()
}

/// Compiles those of a route or virtual host, which other filters may be for: what is not implemented is left out.
pub fn compile_rate_limits_of_route(
    pb: &[pb::RateLimit],
    path: &FieldPath<'_>,
) -> Box<[RateLimit]> {
    pb.iter()
        .enumerate()
        .filter_map(|(i, limit)| compile_rate_limit(limit, false, &path.index("rate_limits", i)))
        .collect()
}

fn compile_rate_limit(pb: &pb::RateLimit, strict: bool, path: &FieldPath<'_>) -> Option<RateLimit> {
    for (set, field) in [
        (!pb.disable_key.is_empty(), "disable_key"),
        (pb.limit.is_some(), "limit"),
        (pb.hits_addend.is_some(), "hits_addend"),
    ] {
        if set {
            path.field(field).ignored("has no effect in local rate limits");
        }
    }
    let actions: Vec<Option<Action>> = pb
        .actions
        .iter()
        .enumerate()
        .map(|(i, action)| compile_action(action, strict, &path.index("actions", i)))
        .collect();
    let actions: Box<[Action]> = actions.into_iter().collect::<Option<_>>()?;
    if actions.is_empty() {
        path.field("actions").error("needs at least one");
        return None;
    }
    let stage = pb.stage.as_ref().map_or(0, |stage| stage.value);
    if stage > 10 {
        path.field("stage").error("must be at most 10");
        return None;
    }
    Some(RateLimit { stage, actions })
}

fn compile_action(
    pb: &pb::rate_limit::Action,
    strict: bool,
    path: &FieldPath<'_>,
) -> Option<Action> {
    let or = |given: &str, default: &str| -> Box<str> {
        if given.is_empty() { default.into() } else { given.into() }
    };
    let required = |text: &str, field: &str| {
        if text.is_empty() {
            path.field(field).error("is empty");
        }
        !text.is_empty()
    };
    match &pb.action_specifier {
        Some(ActionSpecifier::DestinationCluster(_)) => Some(Action::DestinationCluster),
        Some(ActionSpecifier::RemoteAddress(_)) => Some(Action::RemoteAddress),
        Some(ActionSpecifier::RequestHeaders(header)) => {
            let name =
                path.field("header_name").ok_or_error(HeaderName::parse(&header.header_name))?;
            required(&header.descriptor_key, "descriptor_key").then(|| Action::RequestHeader {
                name,
                key: header.descriptor_key.as_str().into(),
                skip_if_absent: header.skip_if_absent,
            })
        }
        Some(ActionSpecifier::QueryParameters(query)) => {
            let complete = required(&query.query_parameter_name, "query_parameter_name")
                && required(&query.descriptor_key, "descriptor_key");
            complete.then(|| Action::QueryParameter {
                name: query.query_parameter_name.as_bytes().into(),
                key: query.descriptor_key.as_str().into(),
                skip_if_absent: query.skip_if_absent,
            })
        }
        Some(ActionSpecifier::GenericKey(generic)) => {
            required(&generic.descriptor_value, "descriptor_value").then(|| Action::GenericKey {
                key: or(&generic.descriptor_key, "generic_key"),
                value: generic.descriptor_value.as_bytes().into(),
            })
        }
        Some(ActionSpecifier::HeaderValueMatch(header)) => {
            let headers = compile_header_matchers(&header.headers, "headers", path)?;
            required(&header.descriptor_value, "descriptor_value").then(|| {
                Action::HeaderValueMatch {
                    key: or(&header.descriptor_key, "header_match"),
                    value: header.descriptor_value.as_bytes().into(),
                    headers,
                    expect: header.expect_match.as_ref().is_none_or(|expect| expect.value),
                }
            })
        }
        other => {
            let name = format!("{other:?}");
            let name = name.trim_start_matches("Some(").split('(').next().unwrap_or("");
            if strict {
                path.error(format_args!("action {name} is not implemented"));
            } else {
                path.ignored(format_args!("action {name} is not implemented: no descriptor"));
            }
            None
        }
    }
}
