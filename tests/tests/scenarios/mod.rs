//! What a control plane serves, change by change, and what a client sees after each.

use serde_json::{Value, json};

/// Changes that follow each other.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub steps: Vec<Step>,
    /// For the incremental protocol only.
    pub delta: bool,
}

/// What is served from now on, by what this file calls it; `None` takes one away.
type Changes = Vec<(&'static str, Option<Value>)>;

/// Which listener's port answers what; `refused`: a type of which the control plane was told that something is wrong.
type Answers = Vec<(&'static str, &'static str)>;

/// One change, and what is answered on which listener's port after it.
#[derive(Debug, Clone)]
pub struct Step {
    pub put: Changes,
    pub expected: Answers,
}

impl Scenario {
    /// All that is served after each step.
    pub fn states(&self) -> Vec<Vec<Value>> {
        let mut served: Vec<(&str, Value)> = Vec::new();
        let mut states = Vec::new();
        for step in &self.steps {
            for (key, value) in &step.put {
                served.retain(|(known, _)| known != key);
                served.extend(value.clone().map(|value| (*key, value)));
            }
            states.push(served.iter().map(|(_, value)| value.clone()).collect());
        }
        states
    }
}

const OK: &str = "200 a";
const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";

const MUTATION: &str =
    "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";

/// Hosts of a name: `(priority, backend, health)`.
fn endpoints(name: &str, hosts: &[(u32, &str, &str)]) -> Value {
    let locality = |(priority, backend, health): &(u32, &str, &str)| {
        json!({"priority": priority, "lb_endpoints": [{"health_status": health, "endpoint": {"address":
            {"socket_address": {"address": "127.0.0.1", "port_value": format!("${backend}")}}}}]})
    };
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": hosts.iter().map(locality).collect::<Value>(),
    })
}

fn at(name: &str, backend: &str) -> Value {
    endpoints(name, &[(0, backend, "UNKNOWN")])
}

/// A cluster whose endpoints are asked for.
fn eds(name: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": "$source"},
    })
}

/// A cluster with one host.
fn fixed(name: &str, backend: &str) -> Value {
    let mut assignment = at(name, backend);
    assignment.as_object_mut().into_iter().for_each(|map| drop(map.remove("@type")));
    json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "load_assignment": assignment,
    })
}

fn routes(name: &str, cluster: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": cluster}},
        ]}],
    })
}

fn listener(name: &str, port: &str, routes: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("${port}")}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
            "@type": HCM,
            "stat_prefix": name,
            "rds": {"route_config_name": routes, "config_source": "$source"},
            "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
        }}]}],
    })
}

/// A listener whose first filter is the discovered `f`.
fn discovering(more: Value) -> Value {
    let mut listener = listener("l", "main", "r");
    let mut source = json!({"config_source": "$source", "type_urls": [FAULT]});
    if let (Some(source), Value::Object(more)) = (source.as_object_mut(), more) {
        source.extend(more);
    }
    let filters = &mut listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
    if let Some(filters) = filters.as_array_mut() {
        filters.insert(0, json!({"name": "f", "config_discovery": source}));
    }
    listener
}

fn abort(status: u32) -> Value {
    json!({"@type": FAULT, "abort": {"http_status": status, "percentage": {"numerator": 100}}})
}

fn extension(status: u32) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "f",
        "typed_config": abort(status),
    })
}

fn with(mut value: Value, path: &[&str], new: Value) -> Value {
    let mut at = &mut value;
    for key in path {
        at = match key.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[*key],
        };
    }
    *at = new;
    value
}

fn put<const N: usize>(all: [(&'static str, Value); N]) -> Changes {
    all.into_iter().map(|(key, value)| (key, Some(value))).collect()
}

fn gone<const N: usize>(all: [&'static str; N]) -> Changes {
    all.into_iter().map(|key| (key, None)).collect()
}

/// `main` to `a` through every type.
fn spine() -> Changes {
    put([
        ("c", eds("c")),
        ("e", at("c", "a")),
        ("r", routes("r", "c")),
        ("l", listener("l", "main", "r")),
    ])
}

fn scenario(
    name: &'static str,
    steps: Vec<(Changes, &[(&'static str, &'static str)])>,
) -> Scenario {
    let step = |(put, expected): (Vec<_>, &[_])| Step { put, expected: expected.to_vec() };
    Scenario { name, steps: steps.into_iter().map(step).collect(), delta: false }
}

pub fn all() -> Vec<Scenario> {
    let mut all = of_clusters();
    all.push(of_warming());
    all.extend(of_listeners());
    all.extend(of_filters());
    all
}

/// What warms is not acknowledged before it is warm: a control plane may wait for that.
fn of_warming() -> Scenario {
    let late = with(eds("late"), &["eds_cluster_config", "eds_config"], json!("$patient"));
    let later = with(late.clone(), &["name"], json!("later"));
    scenario(
        "clusters: acknowledged when they are warm",
        vec![
            (spine(), &[("main", OK)]),
            (put([("late", late)]), &[("main", OK)]),
            (put([("later", later)]), &[("main", OK)]),
            (put([("late e", at("late", "b"))]), &[("main", OK)]),
            (put([("later e", at("later", "b"))]), &[("main", OK)]),
            (put([("r", routes("r", "late"))]), &[("main", "200 b")]),
        ],
    )
}

fn of_clusters() -> Vec<Scenario> {
    let named = with(eds("c"), &["eds_cluster_config", "service_name"], json!("s"));
    let renamed = with(eds("c"), &["eds_cluster_config", "service_name"], json!("s2"));
    let no_address = "endpoints/0/lb_endpoints/0/endpoint/address/socket_address/address";
    let no_address: Vec<_> = no_address.split('/').collect();
    let bad = with(at("c", "a"), &no_address, json!("example.com"));
    vec![
        scenario(
            "resources come, change and go",
            vec![
                (spine(), &[("main", OK)]),
                (put([("e", at("c", "b"))]), &[("main", "200 b")]),
                (put([("r", routes("r", "d"))]), &[("main", "503")]),
                (put([("d", fixed("d", "c"))]), &[("main", "200 c")]),
                (
                    put([("l", listener("l", "main", "r2")), ("r2", routes("r2", "c"))]),
                    &[("main", "200 b")],
                ),
                (gone(["l", "r", "r2"]), &[("main", "refused")]),
                (gone(["c", "e"]), &[("main", "refused")]),
            ],
        ),
        scenario(
            "endpoints: none, more, gone",
            vec![
                (spine(), &[("main", OK)]),
                (put([("e", endpoints("c", &[]))]), &[("main", "503")]),
                (put([("e", at("c", "b"))]), &[("main", "200 b")]),
                (gone(["e"]), &[("main", "200 b")]),
            ],
        ),
        scenario(
            "endpoints: priorities and health",
            vec![
                (spine(), &[("main", OK)]),
                (
                    put([("e", endpoints("c", &[(0, "a", "HEALTHY"), (1, "b", "HEALTHY")]))]),
                    &[("main", OK)],
                ),
                (
                    put([("e", endpoints("c", &[(0, "a", "UNHEALTHY"), (1, "b", "HEALTHY")]))]),
                    &[("main", "200 b")],
                ),
                (
                    put([("e", endpoints("c", &[(0, "a", "DRAINING"), (1, "b", "DEGRADED")]))]),
                    &[("main", "200 b")],
                ),
            ],
        ),
        scenario(
            "endpoints: refused",
            vec![
                (spine(), &[("main", OK)]),
                (put([("e", bad)]), &[("main", OK), ("refused", "ClusterLoadAssignment")]),
                (put([("e", at("c", "b"))]), &[("main", "200 b")]),
            ],
        ),
        scenario(
            "clusters: another kind",
            vec![
                (spine(), &[("main", OK)]),
                (put([("c", fixed("c", "b"))]), &[("main", "200 b")]),
                (put([("c", eds("c"))]), &[("main", OK)]),
                (
                    put([("c", with(fixed("c", "c"), &["connect_timeout"], json!("3s")))]),
                    &[("main", "200 c")],
                ),
            ],
        ),
        scenario(
            "clusters: names of endpoints",
            vec![
                (spine(), &[("main", OK)]),
                (put([("c", named), ("e", at("s", "b"))]), &[("main", "200 b")]),
                (put([("c", renamed), ("e2", at("s2", "c"))]), &[("main", "200 c")]),
            ],
        ),
        scenario(
            "names with odd characters",
            vec![(
                put([
                    ("c", eds("outbound|80||a.b.c")),
                    ("e", at("outbound|80||a.b.c", "a")),
                    ("r", routes("80", "outbound|80||a.b.c")),
                    ("l", listener("0.0.0.0_80", "main", "80")),
                ]),
                &[("main", OK)],
            )],
        ),
    ]
}

fn of_listeners() -> Vec<Scenario> {
    let freebind = |listener| with(listener, &["freebind"], json!(true));
    let alone = || with(listener("l2", "other", "r"), &["enable_reuse_port"], json!(false));
    let twice = || {
        let one = listener("l2", "other", "r");
        let chain = one["filter_chains"][0].clone();
        with(one, &["filter_chains"], json!([chain, chain]))
    };
    let elsewhere = ["address", "socket_address", "address"];
    let unbound = with(listener("l2", "other", "r"), &elsewhere, json!("192.0.2.1"));
    let two_hosts = json!([
        {"name": "v", "domains": ["*"], "routes": []},
        {"name": "w", "domains": ["*"], "routes": []},
    ]);
    let checked = with(routes("r", "none"), &["validate_clusters"], json!(true));
    vec![
        scenario(
            "listeners: another address",
            vec![
                (spine(), &[("main", OK)]),
                (put([("l", listener("l", "other", "r"))]), &[("main", "refused"), ("other", OK)]),
                (put([("l", listener("l", "main", "r"))]), &[("main", OK), ("other", "refused")]),
            ],
        ),
        scenario(
            "listeners: one address twice",
            vec![
                (spine(), &[("main", OK)]),
                (
                    put([("l2", listener("l2", "main", "r"))]),
                    &[("main", OK), ("refused", "Listener")],
                ),
                (put([("l2", listener("l2", "other", "r"))]), &[("main", OK), ("other", OK)]),
            ],
        ),
        scenario(
            "listeners: refused among good ones",
            vec![
                (spine(), &[("main", OK)]),
                (
                    put([("l2", twice()), ("l3", listener("l3", "third", "r"))]),
                    &[("main", OK), ("other", "refused"), ("third", OK), ("refused", "Listener")],
                ),
                (put([("l2", listener("l2", "other", "r"))]), &[("other", OK), ("third", OK)]),
                (put([("l2", twice())]), &[("other", OK), ("third", OK), ("refused", "Listener")]),
                (gone(["l2"]), &[("other", "refused"), ("third", OK)]),
            ],
        ),
        scenario(
            "listeners: an address that is not here",
            vec![
                (spine(), &[("main", OK)]),
                (put([("l2", unbound)]), &[("main", OK), ("refused", "Listener")]),
                (put([("l2", listener("l2", "other", "r"))]), &[("main", OK), ("other", OK)]),
            ],
        ),
        scenario(
            "routes: late",
            vec![
                (spine(), &[("main", OK)]),
                (
                    put([("l2", listener("l2", "other", "r2"))]),
                    &[("main", OK), ("other", "refused")],
                ),
                (put([("r2", routes("r2", "c"))]), &[("main", OK), ("other", OK)]),
            ],
        ),
        scenario(
            "routes: refused",
            vec![
                (spine(), &[("main", OK)]),
                (
                    put([("r", with(routes("r", "c"), &["virtual_hosts"], two_hosts))]),
                    &[("main", OK), ("refused", "RouteConfiguration")],
                ),
                (put([("r", checked)]), &[("main", OK), ("refused", "RouteConfiguration")]),
                (put([("r", routes("r", "none"))]), &[("main", "503")]),
            ],
        ),
        scenario(
            "listeners: other socket options",
            vec![
                (spine(), &[("main", OK)]),
                (put([("l", freebind(listener("l", "main", "r")))]), &[("main", OK)]),
                (put([("l2", alone())]), &[("main", OK), ("other", OK)]),
                (put([("l2", freebind(alone()))]), &[("other", OK), ("refused", "Listener")]),
            ],
        ),
    ]
}

fn of_filters() -> Vec<Scenario> {
    let early = json!({"default_config": abort(444), "apply_default_config_without_warming": true});
    let discovered = || {
        let mut all = spine();
        all.extend(put([("l", discovering(json!({}))), ("f", extension(418))]));
        all
    };
    let mut all = vec![
        scenario(
            "filters: come, change and go",
            vec![
                (discovered(), &[("main", "418")]),
                (put([("f", extension(419))]), &[("main", "419")]),
                (gone(["f"]), &[("main", "500")]),
                (put([("f", extension(420))]), &[("main", "420")]),
                (put([("l", listener("l", "main", "r"))]), &[("main", OK)]),
            ],
        ),
        scenario(
            "filters: a default",
            vec![
                (
                    spine().into_iter().chain(put([("l", discovering(early))])).collect(),
                    &[("main", "444")],
                ),
                (put([("f", extension(418))]), &[("main", "418")]),
                (gone(["f"]), &[("main", "444")]),
            ],
        ),
    ];
    all.iter_mut().for_each(|one| one.delta = true);
    all.push(scenario(
        "filters: another type",
        vec![
            (discovered(), &[("main", "418")]),
            (put([("l", discovering(json!({"type_urls": [MUTATION]})))]), &[("main", "500")]),
        ],
    ));
    all.push(scenario(
        "filters: refused",
        vec![
            (discovered(), &[("main", "418")]),
            (
                put([("f", with(extension(418), &["typed_config"], json!({"@type": ROUTER})))]),
                &[("main", "418"), ("refused", "TypedExtensionConfig")],
            ),
            (put([("f", extension(419))]), &[("main", "419")]),
        ],
    ));
    all
}
