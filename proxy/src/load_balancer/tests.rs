use super::*;
use crate::cluster::host::{Health, HostSpec};
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::core::RuntimeDouble;
use crate::config::endpoint::HealthStatus;
use crate::config::json::from_yaml;
use crate::config::pb::envoy::config::bootstrap::v3::LayeredRuntime;
use crate::config::runtime::{self, Runtime};
use crate::stream_info::Address;
use proptest::prelude::*;

fn host_set(weights: &[u32]) -> HostSet {
    let cluster = crate::cluster::tests::cluster(&[], LbPolicy::RoundRobin);
    let specs = weights.iter().enumerate().map(|(i, weight)| HostSpec {
        address: Address::Ip(([10, 0, 0, 1], i as u16 + 1).into()),
        hostname: None,
        locality: Default::default(),
        metadata: None,
        priority: 0,
        weight: *weight,
        health: HealthStatus::Healthy,
    });
    HostSet::build(&cluster, &cluster.load_assignment, None, specs.collect()).0
}

fn counts(policy: &LbPolicy, set: &HostSet, picks: usize, seed: u64) -> Vec<usize> {
    let mut balancer = LoadBalancer::new(seed);
    let mut counts = vec![0; set.hosts.len()];
    for _ in 0..picks {
        let pick = balancer.pick(policy, false, set, &PickContext::default());
        counts[pick.host.unwrap() as usize] += 1;
    }
    counts
}

fn least_request() -> LbPolicy {
    LbPolicy::LeastRequest(LeastRequestOptions::default())
}

#[test]
fn round_robin_rotates_from_a_seeded_start() {
    let set = host_set(&[1; 4]);
    assert_eq!(counts(&LbPolicy::RoundRobin, &set, 40, 1), [10; 4]);
    let first = |seed| {
        let mut balancer = LoadBalancer::new(seed);
        balancer.pick(&LbPolicy::RoundRobin, false, &set, &PickContext::default()).host
    };
    assert!((0..20).any(|seed| first(seed) != first(0)));
}

#[test]
fn least_request_avoids_the_busy_host() {
    let set = host_set(&[1, 1]);
    set.hosts[0].stats.rq_active.store(5, Ordering::Relaxed);
    let counts = counts(&least_request(), &set, 4000, 7);
    // Host 0 wins only when it is sampled twice.
    assert!((800..1200).contains(&counts[0]), "{counts:?}");
}

#[test]
fn a_full_scan_always_finds_the_least_loaded() {
    let set = host_set(&[1; 8]);
    for (i, host) in set.hosts.iter().enumerate() {
        host.stats.rq_active.store(u32::from(i != 5), Ordering::Relaxed);
    }
    let options = LeastRequestOptions { full_scan: true, ..Default::default() };
    assert_eq!(counts(&LbPolicy::LeastRequest(options), &set, 50, 3)[5], 50);
}

#[test]
fn weighted_least_request_shrinks_with_load() {
    let set = host_set(&[2, 1]);
    assert_eq!(counts(&least_request(), &set, 300, 1), [200, 100]);
    set.hosts[0].stats.rq_active.store(3, Ordering::Relaxed);
    // 2/(3+1) against 1/(0+1).
    let counts = counts(&least_request(), &set, 300, 1);
    assert!((95..=105).contains(&counts[0]), "{counts:?}");
}

/// Nobody else asks for the key, and no other test publishes any.
#[test]
fn the_runtime_may_change_the_bias() {
    let key = "test.active_request_bias";
    let set = host_set(&[2, 1]);
    set.hosts[0].stats.rq_active.store(3, Ordering::Relaxed);
    let bias = RuntimeDouble { default: 1.0, runtime_key: Some(key.into()) };
    let options = LeastRequestOptions {
        active_request_bias: Some(Box::new(bias)),
        ..LeastRequestOptions::default()
    };
    let policy = LbPolicy::LeastRequest(options);
    assert!((95..=105).contains(&counts(&policy, &set, 300, 1)[0]));
    let found = Diagnostics::default();
    let values = format!("{{layers: [{{name: a, static_layer: {{{key}: 0}}}}]}}");
    let layers: LayeredRuntime = from_yaml(&values).unwrap();
    runtime::publish(Runtime::compile(Some(&layers), &found.root()));
    assert_eq!(counts(&policy, &set, 300, 1), [200, 100], "requests do not matter");
    runtime::publish(Runtime::default());
}

#[test]
fn random_reaches_all() {
    let counts = counts(&LbPolicy::Random, &host_set(&[1; 5]), 5000, 9);
    assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
}

#[test]
fn a_rejected_host_is_picked_again_up_to_the_limit() {
    let set = host_set(&[1; 2]);
    let mut balancer = LoadBalancer::new(1);
    let tried = set.hosts[0].address.clone();
    let reject = |host: &Host| host.address == tried;
    let context = PickContext { reject: Some(&reject), max_attempts: 1, ..PickContext::default() };
    for _ in 0..10 {
        let pick = balancer.pick(&LbPolicy::RoundRobin, false, &set, &context);
        assert_eq!(pick.host, Some(1));
    }
    let all = |_: &Host| true;
    let context = PickContext { reject: Some(&all), max_attempts: 3, ..PickContext::default() };
    assert!(balancer.pick(&LbPolicy::RoundRobin, false, &set, &context).host.is_some());
}

#[test]
fn health_is_read_from_the_status() {
    assert_eq!(Health::from(HealthStatus::Draining), Health::Unhealthy);
    assert_eq!(Health::from(HealthStatus::Unknown), Health::Healthy);
}

proptest! {
    #[test]
    fn weighted_picks_are_in_proportion(weights in prop::collection::vec(1_u32..20, 2..8), seed: u64) {
        let set = host_set(&weights);
        let total: u32 = weights.iter().sum();
        let counts = counts(&LbPolicy::RoundRobin, &set, total as usize * 20, seed);
        for (count, weight) in counts.iter().zip(&weights) {
            let wanted = *weight as usize * 20;
            prop_assert!(count.abs_diff(wanted) <= 2, "{counts:?} for {weights:?}");
        }
    }
}
