//! pb Route: its match, and what every kind of action shares.

use std::sync::Arc;

use super::{Scope, action, answer, body_buffer_limit, per_filter, request_ops, response_ops};
use crate::config::compile::core::{compile_metadata, compile_runtime_fraction};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::{
    compile_cookie_matchers, compile_header_matchers, compile_query_parameter_matchers,
    compile_regex,
};
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::route::action::Action;
use crate::config::route::stats::RouteStats;
use crate::config::route::{
    Conditions, Decorator, PathSpecifier, Route, RouteMatcher, TlsContextMatch,
};

/// `None` after an error that leaves no route to speak of.
pub(super) fn compile_route(
    route: &pb::Route,
    virtual_host: &str,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Option<Route> {
    if !route.route_specifiers.is_empty() {
        path.field("route_specifiers").error("not supported");
    }
    if route.tracing.is_some() {
        path.field("tracing").ignored("tracing is not supported");
    }
    let matcher = match &route.r#match {
        Some(matched) => compile_match(matched, &path.field("match")),
        None => {
            path.field("match").error("value is required");
            None
        }
    };
    let action = compile_action(route, scope, path);
    Some(Route {
        name: Arc::from(route.name.as_str()),
        action: action?,
        matcher: matcher?,
        request_headers: request_ops(
            &route.request_headers_to_add,
            &route.request_headers_to_remove,
            path,
        ),
        response_headers: response_ops(
            &route.response_headers_to_add,
            &route.response_headers_to_remove,
            path,
        ),
        decorator: compile_decorator(route.decorator.as_ref(), path),
        stats: (!route.stat_prefix.is_empty()).then(|| {
            let prefix = format!("vhost.{virtual_host}.route.{}", route.stat_prefix);
            Arc::new(RouteStats::new(prefix))
        }),
        request_body_buffer_limit: body_buffer_limit(
            route.request_body_buffer_limit.as_ref().map(|v| v.value),
            per_request_limit(route),
        )
        .or(scope.body_buffer_limit),
        per_filter: per_filter::compile(&route.typed_per_filter_config, scope.cx, path),
        metadata: compile_metadata(route.metadata.as_ref(), &path.field("metadata")),
    })
}

#[expect(deprecated, reason = "configurations still have it")]
fn per_request_limit(route: &pb::Route) -> Option<u32> {
    route.per_request_buffer_limit_bytes.as_ref().map(|v| v.value)
}

fn compile_action(route: &pb::Route, scope: &Scope<'_>, path: &FieldPath<'_>) -> Option<Action> {
    use pb::route::Action as PbAction;
    match &route.action {
        Some(PbAction::Route(action)) => {
            let path = path.field("route");
            action::compile_route_action(action, &route.name, scope, &path)
                .map(|action| Action::Route(Box::new(action)))
        }
        Some(PbAction::Redirect(redirect)) => {
            answer::compile_redirect(redirect, &path.field("redirect"))
                .map(|redirect| Action::Redirect(Box::new(redirect)))
        }
        Some(PbAction::DirectResponse(response)) => {
            let path = path.field("direct_response");
            answer::compile_direct_response(response, scope.max_direct_response_body, &path)
                .map(|response| Action::DirectResponse(Box::new(response)))
        }
        Some(PbAction::NonForwardingAction(_)) => Some(Action::NonForwarding),
        Some(PbAction::FilterAction(_)) => {
            path.field("filter_action").error("not supported");
            None
        }
        None => {
            path.field("action").error("value is required");
            None
        }
    }
}

fn compile_decorator(decorator: Option<&pb::Decorator>, path: &FieldPath<'_>) -> Option<Decorator> {
    let decorator = decorator?;
    if decorator.operation.is_empty() {
        let path = path.field("decorator");
        path.field("operation").error("value length must be at least 1 characters");
    }
    Some(Decorator {
        operation: Arc::from(decorator.operation.as_str()),
        propagate: decorator.propagate.as_ref().is_none_or(|v| v.value),
    })
}

fn compile_match(matched: &pb::RouteMatch, path: &FieldPath<'_>) -> Option<RouteMatcher> {
    if !matched.dynamic_metadata.is_empty() {
        path.field("dynamic_metadata").error("metadata matchers are not supported");
    }
    if !matched.filter_state.is_empty() {
        path.field("filter_state").error("filter state matchers are not supported");
    }
    let specifier = compile_path(matched, path);
    let conditions = compile_conditions(matched, path);
    Some(RouteMatcher {
        path: specifier?,
        case_sensitive: matched.case_sensitive.as_ref().is_none_or(|v| v.value),
        conditions: conditions?.map(Box::new),
    })
}

fn compile_path(matched: &pb::RouteMatch, path: &FieldPath<'_>) -> Option<PathSpecifier> {
    use pb::route_match::PathSpecifier as Specifier;
    let bytes = |text: &str| Box::from(text.as_bytes());
    match &matched.path_specifier {
        Some(Specifier::Prefix(prefix)) => Some(PathSpecifier::Prefix(bytes(prefix))),
        Some(Specifier::Path(text)) => Some(PathSpecifier::Path(bytes(text))),
        Some(Specifier::PathSeparatedPrefix(prefix)) => {
            let valid = prefix.len() >= 2 && !prefix.contains(['?', '#']) && !prefix.ends_with('/');
            if !valid {
                path.field("path_separated_prefix")
                    .error("value does not match regex pattern \"^[^?#]+[^?#/]$\"");
                return None;
            }
            Some(PathSpecifier::PathSeparatedPrefix(bytes(prefix)))
        }
        Some(Specifier::SafeRegex(regex)) => {
            compile_regex(regex, &path.field("safe_regex")).map(PathSpecifier::Regex)
        }
        Some(Specifier::ConnectMatcher(_)) => Some(PathSpecifier::Connect),
        Some(Specifier::PathMatchPolicy(_)) => {
            path.field("path_match_policy").error("path match policies are not supported");
            None
        }
        None => {
            path.field("path_specifier").error("value is required");
            None
        }
    }
}

/// `Some(None)`: there are none.
fn compile_conditions(
    matched: &pb::RouteMatch,
    path: &FieldPath<'_>,
) -> Option<Option<Conditions>> {
    let headers = compile_header_matchers(&matched.headers, "headers", path);
    let query =
        compile_query_parameter_matchers(&matched.query_parameters, "query_parameters", path);
    let cookies = compile_cookie_matchers(&matched.cookies, "cookies", path);
    let runtime_fraction = match &matched.runtime_fraction {
        Some(fraction) => {
            Some(compile_runtime_fraction(fraction, &path.field("runtime_fraction"))?)
        }
        None => None,
    };
    let conditions = Conditions {
        runtime_fraction,
        grpc: matched.grpc.is_some(),
        headers: headers?,
        query_parameters: query?,
        cookies: cookies?,
        tls_context: matched.tls_context.as_ref().map_or_else(TlsContextMatch::default, |tls| {
            TlsContextMatch {
                presented: tls.presented.map(|v| v.value),
                validated: tls.validated.map(|v| v.value),
            }
        }),
    };
    let none = conditions.runtime_fraction.is_none()
        && !conditions.grpc
        && conditions.headers.is_empty()
        && conditions.query_parameters.is_empty()
        && conditions.cookies.is_empty()
        && conditions.tls_context == TlsContextMatch::default();
    Some((!none).then_some(conditions))
}
