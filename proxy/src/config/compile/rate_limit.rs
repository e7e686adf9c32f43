//! `envoy.config.route.v3.RateLimit` to `config::rate_limit`: of a local rate limit filter, a route or a virtual host.

use super::diagnostic::FieldPath;
use super::matcher::compile_header_matchers;
use crate::codec::name::HeaderName;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::envoy::config::route::v3::rate_limit::XRateLimitOption;
use crate::config::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use crate::config::rate_limit::{Action, Hits, MAX_HITS, RateLimit};
use crate::format::{Formatter, Options};

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
    for (set, field, refused) in [
        (!pb.disable_key.is_empty(), "disable_key", strict),
        (pb.stage.is_some(), "stage", strict),
        (pb.limit.is_some(), "limit", strict),
        (pb.hits_addend.is_some() && !strict, "hits_addend", false),
        (pb.apply_on_stream_done && !strict, "apply_on_stream_done", false),
    ] {
        let path = path.field(field);
        match (set, refused) {
            (true, true) => path.error("is not supported in a filter's own rate limits"),
            (true, false) if field == "hits_addend" || field == "apply_on_stream_done" => {
                path.ignored("holds in a filter's own rate limits only");
            }
            _ => {}
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
    let hits = match &pb.hits_addend {
        Some(hits) if strict => compile_hits(hits, &path.field("hits_addend"))?,
        _ => Hits::Number(1),
    };
    let headers = match pb.x_ratelimit_option() {
        XRateLimitOption::Off => Some(false),
        XRateLimitOption::DraftVersion03 => Some(true),
        XRateLimitOption::Unspecified => None,
    };
    let gives = strict && pb.hits_addend.as_ref().is_some_and(|hits| hits.is_negative_hits);
    Some(RateLimit {
        late: strict && pb.apply_on_stream_done,
        stage,
        actions,
        hits,
        gives,
        headers,
    })
}

fn compile_hits(pb: &pb::rate_limit::HitsAddend, path: &FieldPath<'_>) -> Option<Hits> {
    match (&pb.number, pb.format.as_str()) {
        (Some(number), "") if number.value <= MAX_HITS => Some(Hits::Number(number.value)),
        (Some(_), "") => {
            path.field("number").error(format_args!("must be at most {MAX_HITS}"));
            None
        }
        (None, format) if !format.is_empty() => {
            let path = path.field("format");
            let format = Formatter::compile(format, Options::default(), &path)?;
            if !format.is_one_operator() {
                path.error("must contain exactly one substitution");
                return None;
            }
            Some(Hits::Format(format))
        }
        _ => {
            path.error("must contain either a format or a number");
            None
        }
    }
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
