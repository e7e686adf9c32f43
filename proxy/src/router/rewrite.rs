//! What a route changes of a request's path and host, and where it redirects to.
//!
//! Sources: `RouteAction.{prefix_rewrite,regex_rewrite,host_rewrite_*}`, `RedirectAction`; the details
//! are Envoy's (`RouteEntryImplBase`, `Http::Utility::newUri`), checked against it.

use crate::codec::head::RequestHead;
use crate::codec::name::names;
use crate::config::matcher::without_query;
use crate::config::route::action::{
    Action, HostRewrite, PathRedirect, PathRewrite, RedirectAction, RouteAction, SchemeRedirect,
};
use crate::config::route::{PathSpecifier, Route, RouteTable};
use crate::router::route_table::{RouteMatch, without_port};
use crate::stream_info::StreamInfo;

/// The request's path after the route's rewrite (also that of a redirect); `None` when it has none.
/// The query is kept.
pub fn rewritten_path(route: &Route, path: &[u8]) -> Option<Vec<u8>> {
    let rewrite = match &route.action {
        Action::Route(action) => action.path_rewrite.as_ref()?,
        Action::Redirect(redirect) => match redirect.path.as_ref()? {
            PathRedirect::Rewrite(rewrite) => rewrite,
            PathRedirect::Path(_) => return None,
        },
        Action::DirectResponse(_) | Action::NonForwarding => return None,
    };
    let plain = without_query(path);
    let mut out = Vec::with_capacity(path.len() + 32);
    match rewrite {
        PathRewrite::Prefix(text) => {
            let matched = match &route.matcher.path {
                PathSpecifier::Prefix(prefix) | PathSpecifier::PathSeparatedPrefix(prefix) => {
                    prefix.len()
                }
                PathSpecifier::Path(path) => path.len(),
                PathSpecifier::Regex(_) | PathSpecifier::Connect => plain.len(),
            };
            out.extend_from_slice(text);
            // A filter may have made the path shorter than what was matched.
            out.extend_from_slice(path.get(matched..).unwrap_or_default());
        }
        PathRewrite::Regex(replace) => {
            replace.replace_all(plain, &mut out);
            out.extend_from_slice(&path[plain.len()..]);
        }
    }
    Some(out)
}

/// Rewrites the path of a request; `keep_original` puts the old one into `x-envoy-original-path`.
pub fn rewrite_path(route: &Route, head: &mut RequestHead, keep_original: bool) {
    let Some(old) = head.path() else { return };
    let Some(new) = rewritten_path(route, old) else { return };
    if keep_original {
        let old = old.to_vec();
        head.headers.set(&names::X_ENVOY_ORIGINAL_PATH, &old);
    }
    head.set_path(&new);
}

/// The host that the route gives its requests, other than by the upstream host picked later; `None`
/// leaves it as it is.
pub fn rewritten_host(action: &RouteAction, head: &RequestHead) -> Option<Vec<u8>> {
    let host = match action.host_rewrite.as_ref()? {
        HostRewrite::Literal(host) => host.to_vec(),
        HostRewrite::Header(name) => head.get(name)?.to_vec(),
        HostRewrite::PathRegex(replace) => {
            let mut out = Vec::new();
            replace.replace_all(without_query(head.path()?), &mut out);
            out
        }
        HostRewrite::Auto => return None,
    };
    (!host.is_empty()).then_some(host)
}

/// Gives the request another host. `append_x_forwarded_host` adds the old one to `x-forwarded-host`
/// unless it is the last one there; `keep_original` puts it into `x-envoy-original-host`.
pub fn update_authority(
    head: &mut RequestHead,
    host: &[u8],
    append_x_forwarded_host: bool,
    keep_original: bool,
) {
    let old = head.authority().unwrap_or_default().to_vec();
    if append_x_forwarded_host && !old.is_empty() {
        append_forwarded_host(head, &old);
    }
    if keep_original {
        head.headers.set(&names::X_ENVOY_ORIGINAL_HOST, &old);
    }
    head.set_authority(host);
}

fn append_forwarded_host(head: &mut RequestHead, host: &[u8]) {
    let mut value = Vec::new();
    for line in head.headers.get_all(&names::X_FORWARDED_HOST) {
        if !value.is_empty() {
            value.push(b',');
        }
        value.extend_from_slice(line);
    }
    // Envoy's own comparison: blanks around a name are part of it.
    if value.rsplit(|b| *b == b',').find(|part| !part.is_empty()) == Some(host) {
        return;
    }
    if !value.is_empty() {
        value.push(b',');
    }
    value.extend_from_slice(host);
    head.headers.set(&names::X_FORWARDED_HOST, &value);
}

/// All that a route does to a request before it goes upstream, in Envoy's order: header operations of
/// all levels, host, path. `keep_original` is false where the router suppresses Envoy's headers.
pub fn finalize_request(
    table: &RouteTable,
    matched: RouteMatch,
    head: &mut RequestHead,
    info: &StreamInfo,
    keep_original: bool,
) {
    if let Some(weight) = table.cluster_weight(matched) {
        weight.request_headers.apply_request(head, info);
        if let Some(host) = &weight.host_rewrite_literal {
            head.set_authority(host);
        }
    }
    for ops in table.request_header_ops(matched) {
        ops.apply_request(head, info);
    }
    let Some(route) = table.matched_route(matched) else { return };
    if let Action::Route(action) = &route.action
        && let Some(host) = rewritten_host(action, head)
    {
        update_authority(head, &host, action.append_x_forwarded_host, keep_original);
    }
    rewrite_path(route, head, keep_original);
}

/// `Location` of a virtual host that requires TLS: host and path as they are.
pub fn tls_redirect_location(head: &RequestHead) -> Vec<u8> {
    let mut location = b"https://".to_vec();
    location.extend_from_slice(head.authority().unwrap_or_default());
    location.extend_from_slice(head.path().unwrap_or_default());
    location
}

/// `Location` of a redirecting route, for a head whose path `rewrite_path` has seen already.
pub fn redirect_location(redirect: &RedirectAction, head: &RequestHead) -> Vec<u8> {
    let scheme: &[u8] = match &redirect.scheme {
        SchemeRedirect::Keep => head.scheme.map_or("http", |scheme| scheme.as_str()).as_bytes(),
        SchemeRedirect::Https => b"https",
        SchemeRedirect::To(scheme) => scheme,
    };
    let mut location = Vec::with_capacity(128);
    location.extend_from_slice(scheme);
    location.extend_from_slice(b"://");
    location.extend_from_slice(match &redirect.host {
        Some(host) => host,
        None => redirect_host(head, scheme, redirect.port.is_some()),
    });
    if let Some(port) = redirect.port {
        location.push(b':');
        location.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    push_redirect_path(redirect, head.path().unwrap_or_default(), &mut location);
    location
}

/// The request's own address, as a direct response names it.
pub fn request_location(head: &RequestHead) -> Vec<u8> {
    let own = RedirectAction {
        response_code: http::StatusCode::FOUND,
        scheme: SchemeRedirect::Keep,
        host: None,
        port: None,
        path: None,
        strip_query: false,
    };
    redirect_location(&own, head)
}

fn push_redirect_path(redirect: &RedirectAction, path: &[u8], location: &mut Vec<u8>) {
    let query = memchr::memchr(b'?', path).map_or(&b""[..], |at| &path[at..]);
    let (text, query) = match &redirect.path {
        // A query of its own is neither added to nor stripped.
        Some(PathRedirect::Path(text)) if text.contains(&b'?') => (&**text, None),
        Some(PathRedirect::Path(text)) => (&**text, Some(query)),
        _ => (&path[..path.len() - query.len()], Some(query)),
    };
    if !text.starts_with(b"/") {
        location.push(b'/');
    }
    location.extend_from_slice(text);
    if let Some(query) = query
        && !redirect.strip_query
    {
        location.extend_from_slice(query);
    }
}

/// The request's host without a port that the redirect makes wrong: any where it has its own; where
/// the scheme changes, the old scheme's default one. The old scheme is what the client used
/// (`x-forwarded-proto`), not what the request says.
fn redirect_host<'a>(head: &'a RequestHead, scheme: &[u8], has_port: bool) -> &'a [u8] {
    let host = head.authority().unwrap_or_default();
    let bare = without_port(host);
    let used = head.headers.get(&names::X_FORWARDED_PROTO).unwrap_or_default();
    let default_port: &[u8] = match used {
        b"https" => b":443",
        b"http" => b":80",
        _ => b"",
    };
    let remove = has_port || scheme != used && host[bare.len()..] == *default_port;
    if remove { bare } else { host }
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
