//! A control plane that sends invalid resources among valid ones, with Outrigger in all pods of the mesh: the valid ones
//! apply, the last good versions of the others serve on, and the NACK names each with field and reason.
//!
//! istiod sends what an EnvoyFilter tells it to, without a look. Needs what `mesh.rs` needs.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};
use tests::mesh::request::Request;
use tests::mesh::{Mesh, Setup};

/// How many clusters and how many listeners [`set`] has.
const SIZE: u16 = 100;

/// Which of them are broken, how, and what the NACK has to say of it: field and reason.
const BROKEN_CLUSTERS: [(u16, &str); 3] =
    [(13, "connect_timeout"), (50, "address"), (99, "load_balancing_weight")];
const BROKEN_LISTENERS: [(u16, &str); 3] = [(7, "stat_prefix"), (42, "regex"), (77, "domain")];

fn name(number: u16) -> String {
    format!("set-{number:03}")
}

/// A cluster of client-v1's proxy, and a listener that answers by itself, for each number: their second version leads to
/// another pod and answers something else. Three of each are broken if wanted.
fn set(version: u16, broken: bool) -> String {
    let is = |number: u16, which: u16| broken && number == which;
    let clusters = (1..=SIZE).map(|number| {
        let address = if version == 1 { "10.77.0.30" } else { "10.77.0.11" };
        let address = if is(number, 50) { "nobody.mesh" } else { address };
        let socket = json!({"socket_address": {"address": address, "port_value": 9080}});
        let mut endpoint = json!({"endpoint": {"address": socket}});
        if is(number, 99) {
            endpoint["load_balancing_weight"] = 0.into();
        }
        let timeout = if is(number, 13) { "-1s" } else { "5s" };
        json!({
            "name": name(number), "type": "STATIC", "connect_timeout": timeout,
            "load_assignment": {"cluster_name": name(number), "endpoints": [{"lb_endpoints": [endpoint]}]},
        })
    });
    let answers = |number: u16| {
        let mut route = json!({
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": format!("v{version}")}},
        });
        if is(number, 42) {
            route["match"] = json!({"safe_regex": {"regex": "/("}});
        }
        let host = json!({"name": "all", "domains": ["*"], "routes": [route]});
        let mut hosts = vec![host.clone()];
        if is(number, 77) {
            hosts.push(host);
            hosts[1]["name"] = "again".into();
        }
        listener(&name(number), 20000 + number, hosts, !is(number, 7))
    };
    let by_header = json!({"match": {"prefix": "/"}, "route": {"cluster_header": "x-cluster"}});
    let asked = json!({"name": "all", "domains": ["*"], "routes": [by_header]});
    let listeners = (1..=SIZE).map(answers).chain([listener("ask", 20000, vec![asked], true)]);
    let patch = |kind: &str, value: Value| json!({"applyTo": kind, "match": {"context": "SIDECAR_OUTBOUND"}, "patch": {"operation": "ADD", "value": value}});
    let patches: Vec<_> = clusters
        .map(|one| patch("CLUSTER", one))
        .chain(listeners.map(|one| patch("LISTENER", one)))
        .collect();
    json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
        "metadata": {"name": "set", "namespace": "default"},
        "spec": {"workloadSelector": {"labels": {"app": "client"}}, "configPatches": patches},
    })
    .to_string()
}

fn listener(name: &str, port: u16, hosts: Vec<Value>, named: bool) -> Value {
    let types = "type.googleapis.com/envoy.extensions.filters";
    let router = json!({"name": "router", "typed_config": {"@type": format!("{types}.http.router.v3.Router")}});
    let manager = json!({
        "@type": format!("{types}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": if named { "set" } else { "" },
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [router],
    });
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    })
}

/// Which numbers answer with another version than `version`, of clusters and of listeners.
fn stale(mesh: &Mesh, version: u16) -> Result<[Vec<u16>; 2]> {
    let pod = if version == 1 { "legacy-v1" } else { "reviews-v1" };
    let mut stale = [Vec::new(), Vec::new()];
    for number in 1..=SIZE {
        let mut request = Request::get("client-v1", "http://127.0.0.1:20000/");
        request.headers.insert("x-cluster".to_owned(), name(number));
        if mesh.ask(&request)?.pod().as_deref() != Some(pod) {
            stale[0].push(number);
        }
        let request = Request::get("client-v1", &format!("http://127.0.0.1:{}/", 20000 + number));
        if mesh.ask(&request)?.body != format!("v{version}") {
            stale[1].push(number);
        }
    }
    Ok(stale)
}

/// Waits until all answer with `version` but those, which answer with the first.
fn serves(mesh: &Mesh, version: u16, but: [Vec<u16>; 2]) {
    mesh.eventually(&format!("version {version}"), || {
        let stale = stale(mesh, version)?;
        Ok(if stale == but { Ok(()) } else { Err(format!("{stale:?}")) })
    })
    .unwrap();
    if version > 1 {
        let fresh = |stale: &[u16]| (1..=SIZE).filter(|n| !stale.contains(n)).collect::<Vec<_>>();
        assert_eq!(stale(mesh, 1).unwrap(), but.map(|but| fresh(&but)), "the last good version");
    }
}

/// The first entry of istiod's log with this in it, to the end of its last line.
fn entry(log: &str, with: &str) -> Option<String> {
    let rest = &log[log.find(with)?..];
    let mut lines = rest.lines();
    let first = lines.next()?;
    // Each entry begins with the time.
    let more = lines.take_while(|line| !line.starts_with("20"));
    Some(std::iter::once(first).chain(more).collect::<Vec<_>>().join("; "))
}

fn three_of_a_hundred(name_of_mesh: &str, variant: &str, delta: &str) {
    let setup = Setup { environment: &[("ISTIO_DELTA_XDS", delta)], ..Setup::default() };
    let mut mesh = Mesh::of_outriggers(name_of_mesh, &setup).unwrap();
    mesh.push(&set(1, false)).unwrap();
    serves(&mesh, 1, [vec![], vec![]]);

    mesh.write(&set(2, true)).unwrap();
    let broken = [BROKEN_CLUSTERS, BROKEN_LISTENERS];
    serves(&mesh, 2, broken.map(|some| some.map(|(number, _)| number).to_vec()));
    for (kind, some) in [("CDS", BROKEN_CLUSTERS), ("LDS", BROKEN_LISTENERS)] {
        let start = format!("ADS:{kind}: ACK ERROR client-v1.default");
        let nack = mesh.eventually("a NACK", || {
            Ok(entry(&mesh.istiod_log(), &start).ok_or_else(|| start.clone()))
        });
        let nack = nack.unwrap();
        eprintln!("{variant}: {nack}");
        for number in 1..=SIZE {
            let expected = some.iter().any(|(broken, _)| *broken == number);
            assert_eq!(nack.contains(&name(number)), expected, "{}: {nack}", name(number));
        }
        for (_, field) in some {
            assert!(nack.contains(field), "{field}: {nack}");
        }
    }
    let page: Value =
        serde_json::from_str(&mesh.admin("client-v1", "/rejected?format=json").unwrap()).unwrap();
    let listed = page["resources"].as_array().unwrap();
    let names: BTreeSet<_> = listed.iter().map(|one| one["name"].as_str().unwrap()).collect();
    let expected: BTreeSet<_> = broken.iter().flatten().map(|(number, _)| name(*number)).collect();
    assert_eq!(names, expected.iter().map(String::as_str).collect(), "{page:#}");
    for one in listed {
        assert_eq!(one["last_good_in_force"], true, "{one:#}");
        assert!(
            one["problems"][0]["path"].as_str().is_some_and(|path| !path.is_empty()),
            "{one:#}"
        );
    }

    mesh.push(&set(3, false)).unwrap();
    serves(&mesh, 3, [vec![], vec![]]);
    assert!(mesh.admin("client-v1", "/rejected").unwrap().starts_with("0 resources"));
    eprintln!(
        "{variant}: of 100 clusters and 100 listeners with 3 of each invalid, 97 and 97 applied, the last good version \
         of 3 and 3 served on, each named with field and reason in its NACK and at /rejected"
    );
}

#[test]
fn of_a_hundred_resources_three_are_refused_by_name() {
    three_of_a_hundred("mesh-nd", "delta", "true");
}

#[test]
fn of_a_hundred_resources_three_are_refused_by_name_state_of_the_world() {
    three_of_a_hundred("mesh-ns", "state of the world", "false");
}
