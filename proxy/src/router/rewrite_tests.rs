//! Every expectation here was seen in Envoy 1.40.

use http::Method;

use super::*;
use crate::codec::head::Protocol;
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::route::{RouteContext, compile_route_table};
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use pb::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use pb::route_action::HostRewriteSpecifier;
use pb::route_match::PathSpecifier as PbPath;

fn regex(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher { regex: pattern.into(), engine_type: None }),
        substitution: substitution.into(),
    }
}

fn table(path: PbPath, case_sensitive: bool, action: pb::route::Action) -> RouteTable {
    let route = pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(path),
            case_sensitive: Some(crate::config::pb::google::protobuf::BoolValue {
                value: case_sensitive,
            }),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    };
    let host = pb::VirtualHost {
        name: "v".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..Default::default()
    };
    let config = pb::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
    let found = Diagnostics::new("t");
    let table = compile_route_table(&config, RouteContext { per_route: &|_| None }, &found.root());
    assert_eq!(found.into_vec(), []);
    table
}

fn forward(action: pb::RouteAction) -> pb::route::Action {
    let cluster = pb::route_action::ClusterSpecifier::Cluster("c".into());
    pb::route::Action::Route(pb::RouteAction { cluster_specifier: Some(cluster), ..action })
}

fn head(host: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, Protocol::Http11);
    head.set_authority(host.as_bytes());
    head.set_path(path.as_bytes());
    head.headers.push_raw(b"x-forwarded-proto", b"http");
    head
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn paths() {
    let prefix = |path, to: &str| {
        table(
            path,
            true,
            forward(pb::RouteAction { prefix_rewrite: to.into(), ..Default::default() }),
        )
    };
    let rewritten = |table: &RouteTable, path: &str| {
        let route = &table.virtual_hosts[0].routes[0];
        text(&rewritten_path(route, path.as_bytes()).unwrap()).to_owned()
    };
    let pr = prefix(PbPath::Prefix("/pr/".into()), "/");
    assert_eq!(rewritten(&pr, "/pr/a?q=1"), "/a?q=1");
    assert_eq!(rewritten(&prefix(PbPath::Path("/exact".into()), "/new"), "/exact?x"), "/new?x");
    let sep = prefix(PbPath::PathSeparatedPrefix("/sep".into()), "/");
    assert_eq!(rewritten(&sep, "/sep/a"), "//a");
    assert_eq!(rewritten(&sep, "/sep?x"), "/?x");
    let re = RegexMatcher { regex: "/re/.*".into(), engine_type: None };
    assert_eq!(rewritten(&prefix(PbPath::SafeRegex(re), "/whole"), "/re/abc?q"), "/whole?q");
    let replace = pb::RouteAction {
        regex_rewrite: Some(regex("/([a-z]+)/([0-9]+)", r"/\2/\1\\")),
        ..Default::default()
    };
    let table = table(PbPath::Prefix("/".into()), true, forward(replace));
    assert_eq!(rewritten(&table, "/rr/12/ab/34?k"), r"/12/rr\/34/ab\?k");
}

#[test]
fn hosts() {
    let of = |specifier, path: &str| {
        let action = pb::RouteAction {
            host_rewrite_specifier: Some(specifier),
            append_x_forwarded_host: true,
            ..Default::default()
        };
        let table = table(PbPath::Prefix("/".into()), true, forward(action));
        let Action::Route(action) = &table.virtual_hosts[0].routes[0].action else { panic!() };
        let mut head = head("h", path);
        head.headers.push_raw(b"x-h", b"hdr");
        head.headers.push_raw(b"x-h", b"second");
        rewritten_host(action, &head).map(|host| text(&host).to_owned())
    };
    let by_path = HostRewriteSpecifier::HostRewritePathRegex(regex("^/hp/(.+)/.*$", r"\1.com"));
    assert_eq!(of(by_path.clone(), "/hp/foo/bar?x/y").as_deref(), Some("foo.com"));
    assert_eq!(of(by_path, "/hpx").as_deref(), Some("/hpx"));
    let by_header = |name: &str| HostRewriteSpecifier::HostRewriteHeader(name.into());
    assert_eq!(of(by_header("x-h"), "/").as_deref(), Some("hdr"));
    assert_eq!(of(by_header("x-none"), "/"), None);
}

#[test]
fn the_old_host_is_remembered() {
    for (lines, expected) in [
        (&[][..], "h"),
        (&["a", "h,"], "a,h,"),
        (&["h, b"], "h, b,h"),
        (&["b, h"], "b, h,h"),
        (&["h"], "h"),
    ] {
        let mut head = head("h", "/");
        for line in lines {
            head.headers.push_raw(b"x-forwarded-host", line.as_bytes());
        }
        update_authority(&mut head, b"new", true, true);
        let value: Vec<_> = head.headers.get_all(&names::X_FORWARDED_HOST).map(text).collect();
        assert_eq!(value.join(","), expected, "{lines:?}");
        assert_eq!(head.headers.get_str(&names::X_ENVOY_ORIGINAL_HOST), Some("h"));
        assert_eq!(head.authority_str(), "new");
    }
}

#[test]
fn redirects() {
    let https = Some(SchemeRewriteSpecifier::HttpsRedirect(true));
    let plain = pb::RedirectAction::default();
    let path = |to: &str| pb::RedirectAction {
        path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect(to.into())),
        ..Default::default()
    };
    let to_https = pb::RedirectAction { scheme_rewrite_specifier: https, ..Default::default() };
    let port = pb::RedirectAction { port_redirect: 8443, ..Default::default() };
    let ftp = pb::RedirectAction {
        scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::SchemeRedirect("ftp".into())),
        ..Default::default()
    };
    let rewrite = |specifier| pb::RedirectAction {
        path_rewrite_specifier: Some(specifier),
        ..Default::default()
    };
    let strip = pb::RedirectAction { strip_query: true, ..to_https.clone() };
    let cases = [
        (to_https.clone(), "h", "/d?x=1", "https://h/d?x=1"),
        (to_https.clone(), "h:80", "/d", "https://h/d"),
        (to_https.clone(), "h:8080", "/d", "https://h:8080/d"),
        (to_https.clone(), "h:443", "/d", "https://h:443/d"),
        (to_https, "[::1]:80", "/d", "https://[::1]/d"),
        (ftp, "h:80", "/d", "ftp://h/d"),
        (port.clone(), "h:80", "/d?a", "http://h:8443/d?a"),
        (port, "[::1]:1", "/d", "http://[::1]:8443/d"),
        (plain, "h:80", "/d", "http://h:80/d"),
        (
            pb::RedirectAction { host_redirect: "new.com".into(), ..Default::default() },
            "x:99",
            "/d",
            "http://new.com/d",
        ),
        (path("/p"), "h", "/d?q=2", "http://h/p?q=2"),
        (path("/p?z=1"), "h", "/d?q=2", "http://h/p?z=1"),
        (
            pb::RedirectAction { strip_query: true, ..path("/p?z=1") },
            "h",
            "/d?q=2",
            "http://h/p?z=1",
        ),
        (path("p"), "h", "/d?a", "http://h/p?a"),
        (
            rewrite(PathRewriteSpecifier::PrefixRewrite("/new/".into())),
            "h",
            "/d/foo?a",
            "http://h/new/foo?a",
        ),
        (
            rewrite(PathRewriteSpecifier::RegexRewrite(regex("^/d/(.*)$", r"/y/\1"))),
            "h",
            "/d/foo?a=1",
            "http://h/y/foo?a=1",
        ),
        (strip, "h:80", "/d?q", "https://h/d"),
    ];
    for (redirect, host, path, expected) in cases {
        let prefix = if path.starts_with("/d/") { "/d/" } else { "/d" };
        let action = pb::route::Action::Redirect(redirect.clone());
        let table = table(PbPath::Prefix(prefix.into()), true, action);
        let route = &table.virtual_hosts[0].routes[0];
        let mut head = head(host, path);
        rewrite_path(route, &mut head, true);
        let Action::Redirect(compiled) = &route.action else { panic!() };
        assert_eq!(text(&redirect_location(compiled, &head)), expected, "{redirect:?}");
    }
    assert_eq!(text(&tls_redirect_location(&head("h:80", "/a?b"))), "https://h:80/a?b");
}

#[test]
fn the_original_path_is_kept() {
    let action = pb::RouteAction { prefix_rewrite: "/x".into(), ..Default::default() };
    let table = table(PbPath::Prefix("/PI".into()), false, forward(action));
    let mut head = head("h", "/pI/z?q");
    rewrite_path(&table.virtual_hosts[0].routes[0], &mut head, true);
    assert_eq!(head.path_str(), "/x/z?q");
    assert_eq!(head.headers.get_str(&names::X_ENVOY_ORIGINAL_PATH), Some("/pI/z?q"));
}

#[test]
fn a_weighted_cluster_comes_first() {
    use crate::config::pb::google::protobuf::UInt32Value;
    use pb::weighted_cluster::ClusterWeight;
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as WeightHost;
    let share = ClusterWeight {
        name: "c".into(),
        weight: Some(UInt32Value { value: 1 }),
        host_rewrite_specifier: Some(WeightHost::HostRewriteLiteral("wl".into())),
        ..Default::default()
    };
    let weighted = pb::WeightedCluster { clusters: vec![share], ..Default::default() };
    let of = |host: Option<&str>| {
        let action = pb::RouteAction {
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::WeightedClusters(
                weighted.clone(),
            )),
            host_rewrite_specifier: host
                .map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.into())),
            ..Default::default()
        };
        let table = table(PbPath::Prefix("/".into()), true, pb::route::Action::Route(action));
        let mut head = head("h", "/");
        let matched = table.route(&head, 0).unwrap();
        finalize_request(&table, matched, &mut head, &crate::stream_info::test_info(), true);
        let original = head.headers.get_str(&names::X_ENVOY_ORIGINAL_HOST).map(str::to_owned);
        (head.authority_str().to_owned(), original)
    };
    assert_eq!(of(None), ("wl".into(), None));
    assert_eq!(of(Some("rl")), ("rl".into(), Some("wl".into())));
}
