//! Output forms, against what real Envoy 1.40 prints. `testdata` holds its names in order, values cut off, for a
//! listener with a connection manager, two clusters (one used) and the admin listener.

use super::{HistogramBuckets, StatsFormat, StatsParams, StatsRender, StatsType};
use crate::config::matcher::{ListStringMatcher, StringMatcher, StringPattern};
use crate::config::stats::{Pattern, StatsConfig, StatsMatcher, TagRule, TagValue};
use crate::stats::names::{
    CircuitBreakerStat, ClusterEndpointStat, ClusterLbStat, ClusterManagerStat, ClusterStat,
    ClusterSubsetStat, ClusterUpdateStat, DnsStat, FilesystemStat, Http1Stat, Http2Stat, HttpStat,
    HttpTracingStat, ListenerConfigStat, ListenerHttpStat, ListenerManagerStat, ListenerStat,
    ListenerWorkerStat, OverloadStat, RouterStat, RuntimeStat, ServerStat, ThreadClusterStat,
    WatchdogStat,
};
use crate::stats::{Registry, ResponseCodes, Scope, Unit};

fn render(registry: &Registry, params: StatsParams, format: StatsFormat) -> String {
    StatsRender::new(registry, params, format).into_string()
}

fn text(registry: &Registry, params: StatsParams) -> String {
    render(registry, params, StatsFormat::Text)
}

fn prometheus(registry: &Registry) -> String {
    render(registry, StatsParams::default(), StatsFormat::Prometheus)
}

fn filter(pattern: &str) -> StatsParams {
    StatsParams { filter: Some(regex::Regex::new(pattern).unwrap()), ..StatsParams::default() }
}

fn cluster(registry: &Registry, name: &str) -> Scope {
    let scope = registry.scope(&format!("cluster.{name}"));
    scope.declare::<ClusterStat>();
    scope.declare::<ClusterLbStat>();
    scope.declare::<ClusterSubsetStat>();
    scope.declare::<ClusterEndpointStat>();
    scope.declare::<ClusterUpdateStat>();
    scope.declare::<CircuitBreakerStat>();
    scope
}

/// Declares what Envoy has with the configuration behind `testdata`.
fn envoy_like(registry: &Registry) -> Vec<Scope> {
    let foo = cluster(registry, "foo");
    foo.block::<ClusterStat>(0).record(ClusterStat::UpstreamRqTime, 1);
    foo.histogram(0, "external.upstream_rq_time", Unit::Milliseconds).record(1);
    ResponseCodes::new(foo.clone(), 0, "").charge(200);
    ResponseCodes::new(foo.clone(), 0, "external.").charge(200);
    let mut scopes = vec![cluster(registry, "foo-bar")];
    let mut add = |prefix: &str, declare: &dyn Fn(&Scope)| {
        let scope = registry.scope(prefix);
        declare(&scope);
        scopes.push(scope);
    };
    add("cluster.foo.http1", &Scope::declare::<Http1Stat>);
    add("http.ingress", &|s| {
        s.declare::<HttpStat>();
        s.declare::<RouterStat>();
        s.declare::<HttpTracingStat>();
    });
    add("http.admin", &Scope::declare::<HttpStat>);
    add("http1", &Scope::declare::<Http1Stat>);
    add("http2", &Scope::declare::<Http2Stat>);
    for (listener, thread) in
        [("listener.127.0.0.1:39080", "worker_0"), ("listener.admin", "main_thread")]
    {
        add(listener, &Scope::declare::<ListenerStat>);
        add(&format!("{listener}.{thread}"), &Scope::declare::<ListenerWorkerStat>);
    }
    add("listener.127.0.0.1:39080.worker_1", &Scope::declare::<ListenerWorkerStat>);
    add("listener.127.0.0.1:39080", &Scope::declare::<ListenerConfigStat>);
    add("listener.127.0.0.1_39080.http.ingress", &Scope::declare::<ListenerHttpStat>);
    add("listener.admin.http.admin", &Scope::declare::<ListenerHttpStat>);
    add("listener_manager", &Scope::declare::<ListenerManagerStat>);
    add("cluster_manager", &Scope::declare::<ClusterManagerStat>);
    add("server", &Scope::declare::<ServerStat>);
    add("runtime", &Scope::declare::<RuntimeStat>);
    add("filesystem", &Scope::declare::<FilesystemStat>);
    add("dns.cares", &Scope::declare::<DnsStat>);
    add("overload", &Scope::declare::<OverloadStat>);
    for watched in ["", "server."] {
        add(&format!("{watched}main_thread"), &Scope::declare::<WatchdogStat>);
    }
    for watched in ["workers", "server.worker_0", "server.worker_1"] {
        add(watched, &Scope::declare::<WatchdogStat>);
    }
    for thread in ["main_thread", "worker_0", "worker_1"] {
        let prefix = format!("thread_local_cluster_manager.{thread}");
        add(&prefix, &Scope::declare::<ThreadClusterStat>);
    }
    scopes.push(foo);
    scopes
}

fn assert_lines(ours: &[String], theirs: &str) {
    let theirs: Vec<&str> = theirs.lines().collect();
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn names_and_their_order_are_envoys() {
    let registry = Registry::default();
    let _scopes = envoy_like(&registry);
    let ours = text(&registry, StatsParams::default());
    let ours: Vec<String> =
        ours.lines().map(|line| line.split_once(": ").unwrap().0.to_owned()).collect();
    assert_lines(&ours, include_str!("../testdata/names.txt"));
}

#[test]
fn prometheus_lines_are_envoys() {
    let registry = Registry::default();
    let _scopes = envoy_like(&registry);
    let ours = prometheus(&registry);
    let ours: Vec<String> = ours
        .lines()
        .filter(|l| !l.contains("_bucket{") || l.contains("\"0.5\"") || l.contains("\"+Inf\""))
        .map(|l| if l.starts_with('#') { l } else { l.rsplit_once(' ').unwrap().0 }.to_owned())
        .collect();
    assert_lines(&ours, include_str!("../testdata/prometheus.txt"));
}

#[test]
fn workers_are_summed_and_used_is_kept() {
    let registry = Registry::default();
    let scope = registry.scope("listener.a");
    let (one, two) = (scope.block::<ListenerWorkerStat>(0), scope.block::<ListenerWorkerStat>(1));
    one.inc(ListenerWorkerStat::DownstreamCxTotal);
    two.add(ListenerWorkerStat::DownstreamCxTotal, 2);
    one.gauge_inc(ListenerWorkerStat::DownstreamCxActive);
    two.gauge_dec(ListenerWorkerStat::DownstreamCxActive);
    let _unused = registry.scope("listener.b").block::<ListenerWorkerStat>(0);
    let used = StatsParams { used_only: true, ..StatsParams::default() };
    assert_eq!(
        text(&registry, used),
        "listener.a.downstream_cx_active: 0\nlistener.a.downstream_cx_total: 3\n"
    );
    registry.reset_counters();
    one.inc(ListenerWorkerStat::DownstreamCxTotal);
    assert_eq!(scope.value(ListenerWorkerStat::DownstreamCxTotal), 1);
}

#[test]
fn a_scope_goes_with_its_last_user() {
    let registry = Registry::default();
    let scope = registry.scope("cluster.gone");
    scope.declare::<ClusterStat>();
    assert!(text(&registry, filter("gone.upstream_cx_total")).starts_with("cluster.gone."));
    drop(scope);
    assert_eq!(text(&registry, StatsParams::default()), "");
}

fn three_samples() -> (Registry, Scope) {
    let registry = Registry::default();
    let scope = registry.scope("cluster.foo");
    let block = scope.block::<ClusterStat>(0);
    for value in [1, 1, 2] {
        block.record(ClusterStat::UpstreamCxLengthMs, value);
    }
    (registry, scope)
}

#[test]
fn histograms_have_envoys_text_forms() {
    let (registry, _scope) = three_samples();
    let form = |buckets| text(&registry, StatsParams { buckets, ..filter("length_ms$") });
    let p = "P0(1.0333333333333334,1.0333333333333334) P25(1.0333333333333334,1.0333333333333334) \
             P50(1.0666666666666667,1.0666666666666667) P75(2.05,2.05) P90(2.05,2.05) P95(2.05,2.05) \
             P99(2.05,2.05) P99.5(2.05,2.05) P99.9(2.05,2.05) P100(2.05,2.05)";
    assert_eq!(form(HistogramBuckets::Unset), format!("cluster.foo.upstream_cx_length_ms: {p}\n"));
    assert_eq!(
        form(HistogramBuckets::Detailed),
        format!(
            "cluster.foo.upstream_cx_length_ms:\n  totals=1,0.1:2, 2,0.1:1\n  \
             intervals=1,0.1:2, 2,0.1:1\n  summary={p}\n"
        )
    );
    let cumulative = form(HistogramBuckets::Cumulative);
    assert!(
        cumulative.starts_with("cluster.foo.upstream_cx_length_ms: B0.5(0,0) B1(2,2) B5(3,3) "),
        "{cumulative}"
    );
    assert!(cumulative.ends_with(" B600000(3,3) B1.8e+06(3,3) B3.6e+06(3,3)\n"), "{cumulative}");
    let disjoint = form(HistogramBuckets::Disjoint);
    assert!(disjoint.contains(": B0.5(0,0) B1(2,2) B5(1,1) B10(0,0) "), "{disjoint}");
    assert_eq!(
        text(&registry, filter("rq_per_cx")),
        "cluster.foo.upstream_rq_per_cx: No recorded values\n"
    );
}

#[test]
fn histograms_have_envoys_json_forms() {
    let (registry, _scope) = three_samples();
    let form = |buckets| {
        let params = StatsParams { buckets, ..filter("(length_ms|cx_total)$") };
        render(&registry, params, StatsFormat::Json)
    };
    let head =
        "{\"stats\":[{\"name\":\"cluster.foo.upstream_cx_total\",\"value\":0},{\"histograms\":";
    let summary = form(HistogramBuckets::Unset);
    let expected = format!(
        "{head}{{\"supported_quantiles\":[0,25,50,75,90,95,99,99.5,99.9,100],\
         \"computed_quantiles\":[{{\"name\":\"cluster.foo.upstream_cx_length_ms\",\"values\":[\
         {{\"cumulative\":1.0333333333333334,\"interval\":1.0333333333333334}},"
    );
    assert!(summary.starts_with(&expected), "{summary}");
    assert!(summary.ends_with("{\"cumulative\":2.05,\"interval\":2.05}]}]}}]}"), "{summary}");
    let buckets = form(HistogramBuckets::Cumulative);
    let expected = format!(
        "{head}[{{\"name\":\"cluster.foo.upstream_cx_length_ms\",\"buckets\":[\
         {{\"upper_bound\":0.5,\"interval\":0,\"cumulative\":0}},"
    );
    assert!(buckets.starts_with(&expected), "{buckets}");
    assert!(buckets.contains("{\"upper_bound\":3e+05,\"interval\":3,\"cumulative\":3}"));
    assert!(buckets.ends_with("{\"upper_bound\":3600000,\"interval\":3,\"cumulative\":3}]}]}]}"));
    let details = form(HistogramBuckets::Detailed);
    assert!(details.contains(
        "\"totals\":[{\"lower_bound\":1,\"width\":0.1,\"count\":2},{\"lower_bound\":2,\"width\":0.1,\
         \"count\":1}],\"intervals\":["
    ));
    for form in [summary, buckets, details] {
        serde_json::from_str::<serde_json::Value>(&form).unwrap();
    }
    assert_eq!(render(&registry, filter("zzz"), StatsFormat::Json), "{\"stats\":[]}");
}

#[test]
fn prometheus_histograms_are_envoys() {
    let (registry, _scope) = three_samples();
    let out = prometheus(&registry);
    let name = "envoy_cluster_upstream_cx_length_ms";
    assert!(out.contains(&format!(
        "# TYPE {name} histogram\n{name}_bucket{{envoy_cluster_name=\"foo\",le=\"0.5\"}} 0\n\
         {name}_bucket{{envoy_cluster_name=\"foo\",le=\"1\"}} 2\n"
    )));
    assert!(out.contains(&format!(
        "{name}_bucket{{envoy_cluster_name=\"foo\",le=\"+Inf\"}} 3\n\
         {name}_sum{{envoy_cluster_name=\"foo\"}} 4.1440185830429729918478187755682\n\
         {name}_count{{envoy_cluster_name=\"foo\"}} 3\n"
    )));
}

#[test]
fn text_readouts_are_quoted_and_optional_in_prometheus() {
    let registry = Registry::default();
    let scope = registry.scope("control_plane");
    scope.text_readout("identifier").set("a \"b\"");
    assert_eq!(
        text(&registry, StatsParams::default()),
        "control_plane.identifier: \"a &quot;b&quot;\"\n"
    );
    assert_eq!(prometheus(&registry), "");
    let params = StatsParams { text_readouts: true, ..StatsParams::default() };
    assert_eq!(
        render(&registry, params, StatsFormat::Prometheus),
        "# TYPE envoy_control_plane_identifier gauge\n\
         envoy_control_plane_identifier{text_value=\"a \\\"b\\\"\"} 0\n"
    );
}

#[test]
fn rejected_statistics_do_not_exist() {
    let suffix = StringMatcher::new(StringPattern::Suffix(Box::from(*b"cx_total")), false);
    let matcher = StatsMatcher::Inclusion(ListStringMatcher { patterns: Box::new([suffix]) });
    let registry = Registry::new(StatsConfig { matcher, ..StatsConfig::default() });
    let scope = cluster(&registry, "foo");
    scope.block::<ClusterStat>(0).inc(ClusterStat::UpstreamCxTotal);
    ResponseCodes::new(scope.clone(), 0, "").charge(200);
    let unseen = scope.block::<ClusterLbStat>(0);
    unseen.inc(ClusterLbStat::LbHealthyPanic);
    assert_eq!(scope.value(ClusterLbStat::LbHealthyPanic), 0);
    assert_eq!(text(&registry, StatsParams::default()), "cluster.foo.upstream_cx_total: 1\n");
    assert_eq!(
        prometheus(&registry),
        "# TYPE envoy_cluster_upstream_cx_total counter\n\
         envoy_cluster_upstream_cx_total{envoy_cluster_name=\"foo\"} 1\n"
    );
}

#[test]
fn configured_tags_are_cut_and_shown() {
    let regex = |pattern: &str| TagValue::Regex(Pattern::new(pattern).unwrap());
    let tags = vec![
        TagRule { name: "cluster_name".into(), value: regex(r"^cluster\.((.+?(\..+?\.svc)?)\.)") },
        TagRule { name: "zone".into(), value: TagValue::Fixed("z1".into()) },
        TagRule { name: "look".into(), value: regex(r"(?<=upstream_)(cx_)(?=total)") },
    ];
    let config = StatsConfig { use_all_default_tags: false, tags, ..StatsConfig::default() };
    let registry = Registry::new(config);
    let scopes = [cluster(&registry, "a.b.svc"), cluster(&registry, "b")];
    let params = filter("upstream_cx_total");
    assert_eq!(
        render(&registry, params, StatsFormat::Prometheus),
        "# TYPE envoy_cluster_upstream_total counter\n\
         envoy_cluster_upstream_total{zone=\"z1\",look=\"cx_\",cluster_name=\"a.b.svc\"} 0\n\
         envoy_cluster_upstream_total{zone=\"z1\",look=\"cx_\",cluster_name=\"b\"} 0\n"
    );
    drop(scopes);
}

#[test]
fn types_filter() {
    let registry = Registry::default();
    let _scopes = envoy_like(&registry);
    let params = StatsParams { kinds: StatsType::Histograms, ..filter("server") };
    assert_eq!(text(&registry, params), "server.initialization_time_ms: No recorded values\n");
    let params = StatsParams { invert_filter: true, kinds: StatsType::Gauges, ..filter("^[^w]") };
    assert_eq!(text(&registry, params), "");
}

#[test]
fn a_large_scrape_comes_in_pieces() {
    let registry = Registry::default();
    let scopes: Vec<Scope> = (0..200).map(|n| cluster(&registry, &format!("c{n}"))).collect();
    for format in [StatsFormat::Text, StatsFormat::Json, StatsFormat::Prometheus] {
        let render = StatsRender::new(&registry, StatsParams::default(), format);
        let sizes: Vec<usize> = render.map(|piece| piece.len()).collect();
        assert!(sizes.len() > 50, "{format:?}");
        assert!(sizes.iter().all(|size| *size < 20 * 1024), "{format:?}");
    }
    drop(scopes);
}

#[test]
fn deferred_traffic_statistics_appear_with_their_first_block() {
    let config = StatsConfig { deferred_creation: true, ..StatsConfig::default() };
    let registry = Registry::new(config);
    let scope = cluster(&registry, "foo");
    let out = text(&registry, StatsParams::default());
    assert!(out.contains("cluster.foo.membership_total: 0\n") && !out.contains("upstream_cx"));
    let _block = scope.block::<ClusterStat>(0);
    assert!(text(&registry, filter("upstream_cx_total")).starts_with("cluster.foo.upstream_cx"));
}

#[test]
fn what_belongs_to_the_process_stays() {
    let registry = Registry::default();
    registry.scope("http2").shared::<Http2Stat>().inc(Http2Stat::GoawaySent);
    registry.scope("cluster.a").shared::<ClusterStat>().inc(ClusterStat::UpstreamCxTotal);
    let used = StatsParams { used_only: true, ..StatsParams::default() };
    assert_eq!(text(&registry, used), "http2.goaway_sent: 1\n");
}
