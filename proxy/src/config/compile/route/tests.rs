use super::*;
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::pb::envoy::config::core::v3::DataSource;
use crate::config::pb::envoy::config::core::v3::data_source::Specifier as Source;
use crate::config::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use crate::config::pb::google::protobuf::{Any, Duration, UInt32Value};
use crate::config::route::action::{Action, ClusterName, ClusterSpecifier, RouteTimeouts};
use crate::config::route::retry::RetryOn;
use pb::route::Action as PbAction;
use pb::route_action::ClusterSpecifier as PbCluster;
use pb::route_match::PathSpecifier;
use pb::weighted_cluster::ClusterWeight;

fn compile(config: &pb::RouteConfiguration) -> (RouteTable, Vec<(String, String)>) {
    let found = Diagnostics::new("t");
    let cx = RouteContext { per_route: &|_| None };
    let table = compile_route_table(config, cx, &found.root());
    (table, found.into_vec().into_iter().map(|d| (d.path, d.reason)).collect())
}

fn route(prefix: &str, action: PbAction) -> pb::Route {
    pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.into())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

fn to(cluster: &str) -> pb::RouteAction {
    pb::RouteAction {
        cluster_specifier: Some(PbCluster::Cluster(cluster.into())),
        ..Default::default()
    }
}

fn table(routes: Vec<pb::Route>) -> pb::RouteConfiguration {
    let host = pb::VirtualHost {
        name: "v".into(),
        domains: vec!["*".into()],
        routes,
        ..Default::default()
    };
    pb::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() }
}

fn weighted(weights: &[u32]) -> pb::RouteAction {
    let clusters = weights.iter().enumerate().map(|(i, weight)| ClusterWeight {
        name: format!("c{i}"),
        weight: Some(UInt32Value { value: *weight }),
        ..Default::default()
    });
    let weighted = pb::WeightedCluster { clusters: clusters.collect(), ..Default::default() };
    pb::RouteAction {
        cluster_specifier: Some(PbCluster::WeightedClusters(weighted)),
        ..Default::default()
    }
}

#[test]
fn defaults_are_envoys() {
    let (table, found) = compile(&table(vec![route("/", PbAction::Route(to("c")))]));
    assert_eq!(found, []);
    let Action::Route(action) = &table.virtual_hosts[0].routes[0].action else { panic!() };
    assert_eq!(action.timeouts.timeout, RouteTimeouts::DEFAULT_TIMEOUT);
    assert_eq!(action.cluster_not_found_response_code, 503);
    assert!(action.retry_policy.is_none() && action.mirrors.is_empty());
    assert_eq!(table.clusters.iter().map(|c| &**c).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn routes_inherit_what_they_do_not_say() {
    let policy = |on: &str| Some(pb::RetryPolicy { retry_on: on.into(), ..Default::default() });
    let mirror = |cluster: &str| pb::route_action::RequestMirrorPolicy {
        cluster: cluster.into(),
        ..Default::default()
    };
    let own = pb::RouteAction {
        retry_policy: policy("5xx"),
        request_mirror_policies: vec![mirror("own")],
        ..to("c")
    };
    let mut config =
        table(vec![route("/own", PbAction::Route(own)), route("/", PbAction::Route(to("c")))]);
    config.request_mirror_policies = vec![mirror("table")];
    config.virtual_hosts[0].retry_policy = policy("reset");
    let (table, found) = compile(&config);
    assert_eq!(found, []);
    let facts: Vec<_> = table.virtual_hosts[0]
        .routes
        .iter()
        .map(|route| {
            let Action::Route(action) = &route.action else { panic!() };
            let retry_on = action.retry_policy.as_ref().unwrap().retry_on;
            let ClusterName::Name(mirror) = &action.mirrors[0].cluster else { panic!() };
            (retry_on, mirror.to_string())
        })
        .collect();
    assert_eq!(facts, [(RetryOn::FIVE_XX, "own".into()), (RetryOn::RESET, "table".into())]);
    assert_eq!(table.clusters.len(), 3);
}

#[test]
fn weights_must_have_a_sum_that_fits() {
    let (table_, found) = compile(&table(vec![route("/", PbAction::Route(weighted(&[1, 0, 3])))]));
    assert_eq!(found, []);
    let Action::Route(action) = &table_.virtual_hosts[0].routes[0].action else { panic!() };
    let ClusterSpecifier::Weighted(weighted_) = &action.cluster else { panic!() };
    assert_eq!(weighted_.total, 4);
    assert_eq!(weighted_.clusters.iter().map(|c| c.upto).collect::<Vec<_>>(), [1, 1, 4]);
    for weights in [&[0, 0][..], &[u32::MAX, 1], &[]] {
        let (_, found) = compile(&table(vec![route("/", PbAction::Route(weighted(weights)))]));
        assert_eq!(found.len(), 1, "{weights:?}");
        assert!(found[0].0.starts_with("virtual_hosts[0].routes[0].route.weighted_clusters"));
    }
}

#[test]
fn all_problems_are_found_with_their_paths() {
    let regex = |text: &str| RegexMatcher { regex: text.into(), engine_type: None };
    let bad_match = pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(PathSpecifier::SafeRegex(regex("("))),
            ..Default::default()
        }),
        ..route("/", PbAction::Route(to("")))
    };
    let both = pb::RouteAction {
        prefix_rewrite: "/a".into(),
        regex_rewrite: Some(RegexMatchAndSubstitute {
            pattern: Some(regex("a")),
            substitution: "b".into(),
        }),
        timeout: Some(Duration { seconds: -1, nanos: 0 }),
        ..to("c")
    };
    let big = pb::DirectResponseAction {
        status: 200,
        body: Some(DataSource {
            specifier: Some(Source::InlineString("x".repeat(4097))),
            ..Default::default()
        }),
        ..Default::default()
    };
    let internal = pb::RouteAction {
        internal_redirect_policy: Some(pb::InternalRedirectPolicy::default()),
        ..to("c")
    };
    let mut config = table(vec![
        bad_match,
        route("/", PbAction::Route(both)),
        route("/", PbAction::DirectResponse(big)),
        route("/", PbAction::Route(internal)),
        pb::Route::default(),
    ]);
    config.virtual_hosts.push(pb::VirtualHost {
        name: "w".into(),
        domains: vec!["*".into(), "a".into(), "A".into()],
        ..Default::default()
    });
    let (_, found) = compile(&config);
    let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
    let expected = [
        "virtual_hosts[0].routes[0].match.safe_regex.regex",
        "virtual_hosts[0].routes[0].route.cluster",
        "virtual_hosts[0].routes[1].route",
        "virtual_hosts[0].routes[1].route.timeout",
        "virtual_hosts[0].routes[2].direct_response.body",
        "virtual_hosts[0].routes[3].route.internal_redirect_policy",
        "virtual_hosts[0].routes[4].match",
        "virtual_hosts[0].routes[4].action",
        "virtual_hosts[1].domains[0]",
        "virtual_hosts[1].domains[2]",
    ];
    for path in expected {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
}

#[test]
fn per_filter_slots() {
    use crate::config::name::intern;
    use prost::Message;
    fn one(any: &Any, _: &FieldPath<'_>) -> Option<crate::http_filters::PerRouteConfig> {
        Some(Arc::new(any.value.len()))
    }
    let any = |url: &str, value: Vec<u8>| Any { type_url: format!("t/{url}"), value };
    let wrapped = |config: Option<Any>, disabled| {
        let wrapper = pb::FilterConfig { config, disabled, ..Default::default() };
        any("envoy.config.route.v3.FilterConfig", wrapper.encode_to_vec())
    };
    let mut config = table(Vec::new());
    config.typed_per_filter_config = [
        ("plain".to_owned(), any("known", vec![0; 3])),
        ("wrapped".to_owned(), wrapped(Some(any("known", vec![0; 5])), false)),
        ("off".to_owned(), wrapped(None, true)),
        ("on".to_owned(), wrapped(Some(Any::default()), false)),
        ("empty".to_owned(), wrapped(None, false)),
        ("strange".to_owned(), any("unknown", Vec::new())),
    ]
    .into();
    let found = Diagnostics::new("t");
    let cx =
        RouteContext { per_route: &|name| (name == "known").then_some(one as CompilePerRoute) };
    let table = compile_route_table(&config, cx, &found.root());
    let slot = |name: &str| {
        table.per_filter.slot(intern(name)).map(|slot| {
            let config = slot.config.as_ref().and_then(|c| c.downcast_ref::<usize>().copied());
            (slot.disabled, config)
        })
    };
    assert_eq!(slot("plain"), Some((false, Some(3))));
    assert_eq!(slot("wrapped"), Some((false, Some(5))));
    assert_eq!(slot("off"), Some((true, None)));
    assert_eq!(slot("on"), Some((false, None)));
    assert_eq!(slot("empty"), None);
    assert_eq!(slot("strange"), None);
    let paths: Vec<_> = found.into_vec().into_iter().map(|d| d.path).collect();
    assert_eq!(
        paths,
        ["typed_per_filter_config[\"empty\"]", "typed_per_filter_config[\"strange\"]"]
    );
}
