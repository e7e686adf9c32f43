//! Authority and path to a route, at 10, 1 000 and 10 000 virtual hosts, and at as many routes of one
//! virtual host. It must not slow down with their number.

mod fixture;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrigger::config::compile::diagnostic::Diagnostics;
use outrigger::config::compile::route::{RouteContext, compile_route_table};
use outrigger::config::pb::envoy::config::route::v3 as pb;
use outrigger::config::route::RouteTable;

fn forward(matches: pb::route_match::PathSpecifier, cluster: &str) -> pb::Route {
    let cluster = pb::route_action::ClusterSpecifier::Cluster(cluster.to_owned());
    pb::Route {
        r#match: Some(pb::RouteMatch { path_specifier: Some(matches), ..Default::default() }),
        action: Some(pb::route::Action::Route(pb::RouteAction {
            cluster_specifier: Some(cluster),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn compile(virtual_hosts: Vec<pb::VirtualHost>) -> RouteTable {
    let config =
        pb::RouteConfiguration { name: "bench".into(), virtual_hosts, ..Default::default() };
    let diagnostics = Diagnostics::new("bench");
    let table =
        compile_route_table(&config, RouteContext { per_route: &|_| None }, &diagnostics.root());
    assert!(!diagnostics.has_errors(), "{:?}", diagnostics.into_vec());
    table
}

/// So many virtual hosts with the four domains that istiod gives a service, one route each.
fn many_virtual_hosts(count: usize) -> RouteTable {
    let virtual_host = |i: usize| {
        let service = format!("service-{i}");
        let cluster = format!("outbound|8080||{service}.shop.svc.cluster.local");
        pb::VirtualHost {
            name: format!("{service}.shop.svc.cluster.local:8080"),
            domains: [".shop.svc.cluster.local", ".shop.svc", ".shop", ""]
                .iter()
                .flat_map(|suffix| {
                    [format!("{service}{suffix}"), format!("{service}{suffix}:8080")]
                })
                .collect(),
            routes: vec![forward(pb::route_match::PathSpecifier::Prefix("/".into()), &cluster)],
            ..Default::default()
        }
    };
    compile((0..count).map(virtual_host).collect())
}

/// One virtual host with so many routes, exact paths and prefixes by turns.
fn many_routes(count: usize) -> RouteTable {
    let route = |i: usize| {
        let path = format!("/api/v1/resource-{i}");
        forward(
            if i.is_multiple_of(2) {
                pb::route_match::PathSpecifier::Path(path)
            } else {
                pb::route_match::PathSpecifier::Prefix(path + "/")
            },
            "backend",
        )
    };
    compile(vec![pb::VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: (0..count).map(route).collect(),
        ..Default::default()
    }])
}

fn route_lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("route_lookup/virtual_hosts");
    for count in [10, 1_000, 10_000] {
        let table = many_virtual_hosts(count);
        let mut heads = Vec::new();
        // A few hundred different hosts, so that not one cache line answers all.
        for i in 0..256 {
            let mut head = fixture::request();
            let service = i * count / 256;
            let host = format!("service-{service}.shop.svc.cluster.local:8080");
            head.set_authority(host.as_bytes());
            assert!(table.route(&head, 0).is_some(), "{host}");
            heads.push(head);
        }
        let mut next = 0_usize;
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                next = (next + 1) % heads.len();
                table.route(black_box(&heads[next]), 0)
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("route_lookup/routes");
    for count in [10, 1_000, 10_000] {
        let table = many_routes(count);
        let mut head = fixture::request();
        head.set_path(format!("/api/v1/resource-{}/lines?q=1", (count / 2) | 1).as_bytes());
        assert!(table.route(&head, 0).is_some());
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| table.route(black_box(&head), 0));
        });
    }
    group.finish();
}

criterion_group!(benches, route_lookup);
criterion_main!(benches);
