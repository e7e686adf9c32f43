//! One pick of each balancer, over ten and a thousand hosts, with equal and with different weights.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrigger::cluster::host::HostSet;
use outrigger::config::cluster::{Cluster, LbPolicy};
use outrigger::config::compile::CompileContext;
use outrigger::config::compile::cluster::compile_cluster;
use outrigger::config::compile::diagnostic::Diagnostics;
use outrigger::config::compile::slots::Slots;
use outrigger::config::json::from_yaml;
use outrigger::config::pb::envoy::config::cluster::v3 as pb;
use outrigger::http_filters::ExtraFilters;
use outrigger::load_balancer::{LoadBalancer, PickContext};
use outrigger::tls::Secrets;

fn cluster(policy: &str, hosts: usize, weighted: bool) -> Cluster {
    let endpoints: String = (0..hosts)
        .map(|i| {
            let address = format!("10.0.{}.{}", i / 256, i % 256);
            let weight = if weighted { i % 3 + 1 } else { 1 };
            format!(
                "    - endpoint: {{address: {{socket_address: {{address: {address}, port_value: 80}}}}}}\n      \
                   load_balancing_weight: {weight}\n"
            )
        })
        .collect();
    let yaml = format!(
        "name: c\ntype: STATIC\nlb_policy: {policy}\nload_assignment:\n  cluster_name: c\n  endpoints:\n  \
         - lb_endpoints:\n{endpoints}"
    );
    let pb: pb::Cluster = from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems:?}"));
    let diagnostics = Diagnostics::new("bench");
    let extra_filters = &ExtraFilters::default();
    let cx =
        CompileContext { extra_filters, secrets: &Secrets::default(), slots: &Slots::default() };
    let cluster = compile_cluster(&pb, None, &cx, &diagnostics.root());
    cluster.unwrap_or_else(|| panic!("{:?}", diagnostics.into_vec()))
}

fn load_balancer(c: &mut Criterion) {
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"] {
        for weighted in [false, true] {
            let suffix = if weighted { "/weighted" } else { "" };
            let name = format!("load_balancer/{}{suffix}", policy.to_lowercase());
            let mut group = c.benchmark_group(name);
            for hosts in [10, 1_000] {
                let cluster = cluster(policy, hosts, weighted);
                let set = HostSet::of_static(&cluster, None);
                let policy: &LbPolicy = &cluster.lb_policy;
                let mut balancer = LoadBalancer::new(1);
                group.bench_function(BenchmarkId::from_parameter(hosts), |b| {
                    let context = PickContext::default();
                    b.iter(|| balancer.pick(policy, false, black_box(&set), &context));
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, load_balancer);
criterion_main!(benches);
