use http::Method;
use proptest::prelude::*;

use super::*;
use crate::codec::head::Protocol;
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::route::{RouteContext, compile_route_table};
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::envoy::r#type::matcher::v3::RegexMatcher;
use crate::config::pb::google::protobuf::{BoolValue, UInt32Value};
use pb::route_match::PathSpecifier as PbPath;

fn compile(config: &pb::RouteConfiguration) -> RouteTable {
    let found = Diagnostics::new("t");
    let table = compile_route_table(config, RouteContext { per_route: &|_| None }, &found.root());
    assert_eq!(found.into_vec(), []);
    table
}

fn head(host: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, Protocol::Http11);
    head.set_authority(host.as_bytes());
    head.set_path(path.as_bytes());
    head
}

fn respond(name: String, path: PbPath) -> pb::Route {
    pb::Route {
        name,
        r#match: Some(pb::RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(pb::route::Action::DirectResponse(pb::DirectResponseAction {
            status: 200,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn host(name: &str, domains: &[&str], routes: Vec<pb::Route>) -> pb::VirtualHost {
    pb::VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        routes,
        ..Default::default()
    }
}

fn name_of<'a>(table: &'a RouteTable, head: &RequestHead) -> Option<&'a str> {
    let matched = table.route(head, 0)?;
    table.matched_route(matched).map(|route| &*route.name)
}

fn segment() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "ab", "A", "a;x", "", "ba"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(segment(), 0..4).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn pb_match() -> impl Strategy<Value = pb::RouteMatch> {
    let separated =
        path().prop_filter("as the proto wants it", |p| p.len() > 1 && !p.ends_with('/'));
    let specifier = prop_oneof![
        4 => path().prop_map(PbPath::Prefix),
        4 => path().prop_map(PbPath::Path),
        2 => separated.prop_map(PbPath::PathSeparatedPrefix),
        1 => path().prop_map(|p| {
            PbPath::SafeRegex(RegexMatcher { regex: format!("{p}.*"), engine_type: None })
        }),
        1 => Just(PbPath::ConnectMatcher(pb::route_match::ConnectMatcher {})),
    ];
    (specifier, prop::bool::weighted(0.8), prop::option::weighted(0.3, 0..2_u8)).prop_map(
        |(specifier, case_sensitive, header)| pb::RouteMatch {
            path_specifier: Some(specifier),
            case_sensitive: Some(BoolValue { value: case_sensitive }),
            headers: header
                .map(|n| pb::HeaderMatcher { name: format!("x-{n}"), ..Default::default() })
                .into_iter()
                .collect(),
            ..Default::default()
        },
    )
}

/// First match in order, by the words of the proto file and nothing else.
fn naive(routes: &[pb::Route], head: &RequestHead, cut_parameters: bool) -> Option<String> {
    let path = head.path_str().split('?').next().unwrap();
    let bare: Vec<_> = path.split('/').map(|segment| segment.split(';').next().unwrap()).collect();
    let path = if cut_parameters { bare.join("/") } else { path.to_owned() };
    let path = path.as_str();
    let found = routes.iter().find(|route| {
        let matcher = route.r#match.as_ref().unwrap();
        let fold = |text: &str| match matcher.case_sensitive.as_ref().unwrap().value {
            true => text.to_owned(),
            false => text.to_ascii_lowercase(),
        };
        let path_matches = match matcher.path_specifier.as_ref().unwrap() {
            PbPath::Prefix(prefix) => fold(path).starts_with(&fold(prefix)),
            PbPath::Path(text) => fold(path) == fold(text),
            PbPath::PathSeparatedPrefix(prefix) => {
                fold(path) == fold(prefix) || fold(path).starts_with(&format!("{}/", fold(prefix)))
            }
            PbPath::SafeRegex(regex) => path.starts_with(regex.regex.trim_end_matches(".*")),
            PbPath::ConnectMatcher(_) => head.method == Method::CONNECT,
            PbPath::PathMatchPolicy(_) => unreachable!(),
        };
        let headers_match = matcher
            .headers
            .iter()
            .all(|header| head.headers.contains(&HeaderName::parse(&header.name).unwrap()));
        path_matches && headers_match
    });
    found.map(|route| route.name.clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_index_gives_the_first_match_in_order(
        matches in prop::collection::vec(pb_match(), 0..40),
        paths in prop::collection::vec((path(), 0..3_u8, any::<bool>(), any::<bool>()), 1..20),
        cut_parameters in any::<bool>(),
    ) {
        let routes: Vec<_> = matches.into_iter().enumerate().map(|(i, matcher)| pb::Route {
            r#match: Some(matcher),
            ..respond(i.to_string(), PbPath::Prefix(String::new()))
        }).collect();
        let table = compile(&pb::RouteConfiguration {
            virtual_hosts: vec![host("v", &["*"], routes.clone())],
            ignore_path_parameters_in_path_matching: cut_parameters,
            ..Default::default()
        });
        for (path, header, connect, query) in paths {
            let query = if query { "?/a;b" } else { "" };
            let mut head = head("h", &format!("{path}{query}"));
            head.headers.push_raw(format!("X-{header}").as_bytes(), b"1");
            if connect {
                head.method = Method::CONNECT;
            }
            let expected = naive(&routes, &head, cut_parameters);
            prop_assert_eq!(name_of(&table, &head), expected.as_deref());
        }
    }
}

#[test]
fn a_request_without_path_meets_connect_routes_only() {
    let mut routes = vec![respond("p".into(), PbPath::Prefix(String::new()))];
    let connect = || PbPath::ConnectMatcher(pb::route_match::ConnectMatcher {});
    routes.push(respond("c".into(), connect()));
    let table = compile(&pb::RouteConfiguration {
        virtual_hosts: vec![host("v", &["*"], routes)],
        ..Default::default()
    });
    let mut request = RequestHead::new(Method::CONNECT, Protocol::Http11);
    request.set_authority(b"h:1");
    assert_eq!(name_of(&table, &request), Some("c"));
    request.set_path(b"/");
    assert_eq!(name_of(&table, &request), Some("p"), "extended CONNECT has a path");
}

#[test]
fn ports_of_hosts() {
    let all = || vec![respond("r".into(), PbPath::Prefix("/".into()))];
    let mut config = pb::RouteConfiguration {
        virtual_hosts: vec![host("v", &["a.b", "[::1]"], all())],
        ..Default::default()
    };
    let strict = compile(&config);
    config.ignore_port_in_host_matching = true;
    let lenient = compile(&config);
    for (authority, with_port) in
        [("a.b", false), ("A.b:80", true), ("[::1]", false), ("[::1]:8", true)]
    {
        let head = head(authority, "/");
        assert_eq!(name_of(&strict, &head).is_some(), !with_port, "{authority}");
        assert!(name_of(&lenient, &head).is_some(), "{authority}");
    }
}

#[test]
fn shares_of_weighted_clusters() {
    let weight = |name: &str, weight| pb::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    };
    let weighted = pb::WeightedCluster {
        clusters: vec![weight("a", 0), weight("b", 3), weight("c", 0), weight("d", 1)],
        random_value_specifier: Some(pb::weighted_cluster::RandomValueSpecifier::HeaderName(
            "x-random".into(),
        )),
        ..Default::default()
    };
    let route = pb::Route {
        action: Some(pb::route::Action::Route(pb::RouteAction {
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::WeightedClusters(weighted)),
            ..Default::default()
        })),
        ..respond("r".into(), PbPath::Prefix("/".into()))
    };
    let table = compile(&pb::RouteConfiguration {
        virtual_hosts: vec![host("v", &["*"], vec![route])],
        ..Default::default()
    });
    let cluster = |head: &RequestHead, random| {
        let matched = table.route(head, random).unwrap();
        table.cluster_name(matched, head).unwrap().to_owned()
    };
    let mut request = head("h", "/");
    let picked: String = (0..8).map(|random| cluster(&request, random)).collect();
    assert_eq!(picked, "bbbdbbbd");
    request.headers.push_raw(b"x-random", b"7");
    assert_eq!(cluster(&request, 0), "d");
    request.headers.push_raw(b"x-random", b"7");
    assert_eq!(cluster(&request, 0), "b", "two values are none");
}

#[test]
fn who_must_use_tls() {
    let all = || vec![respond("r".into(), PbPath::Prefix("/".into()))];
    let mut config = pb::RouteConfiguration {
        virtual_hosts: vec![host("v", &["*"], all())],
        ..Default::default()
    };
    let redirected = |table: &RouteTable, proto: &str, internal: bool| {
        let mut head = head("h", "/");
        head.headers.push_raw(b"x-forwarded-proto", proto.as_bytes());
        if internal {
            head.headers.push_raw(b"x-envoy-internal", b"true");
        }
        table.route(&head, 0).unwrap().is_tls_redirect()
    };
    config.virtual_hosts[0].require_tls = pb::virtual_host::TlsRequirementType::All as i32;
    let table = compile(&config);
    assert!(redirected(&table, "http", true) && !redirected(&table, "https", false));
    config.virtual_hosts[0].require_tls = pb::virtual_host::TlsRequirementType::ExternalOnly as i32;
    let table = compile(&config);
    assert!(redirected(&table, "http", false) && !redirected(&table, "http", true));
}

#[test]
fn virtual_clusters_have_a_rest() {
    let header = pb::HeaderMatcher { name: "x-a".into(), ..Default::default() };
    let mut config = pb::RouteConfiguration {
        virtual_hosts: vec![host("v", &["*"], Vec::new())],
        ..Default::default()
    };
    assert!(compile(&config).virtual_hosts[0].virtual_cluster(&head("h", "/")).is_none());
    config.virtual_hosts[0].virtual_clusters =
        vec![pb::VirtualCluster { name: "a".into(), headers: vec![header] }];
    let table = compile(&config);
    let mut request = head("h", "/");
    let name = |request: &_| &*table.virtual_hosts[0].virtual_cluster(request).unwrap().name;
    assert_eq!(name(&request), "other");
    request.headers.push_raw(b"x-a", b"");
    assert_eq!(name(&request), "a");
}
