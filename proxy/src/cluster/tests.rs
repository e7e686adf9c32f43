use super::*;
use crate::config::cluster::{CircuitBreakers, Discovery, LbPolicy, UpstreamTransport};
use crate::config::core::ConfigAddress;
use crate::config::endpoint::{Endpoint, HealthStatus, LoadAssignment, LocalityEndpoints};
use crate::stats::Registry;
use std::time::{Duration, Instant};

/// A static cluster of hosts 127.0.0.1:1, :2, … with these states of health, by priority.
pub(crate) fn cluster(priorities: &[&[HealthStatus]], lb_policy: LbPolicy) -> Cluster {
    let mut port = 0;
    let localities = priorities.iter().enumerate().map(|(priority, hosts)| LocalityEndpoints {
        locality: Arc::default(),
        priority: priority as u32,
        weight: None,
        endpoints: hosts
            .iter()
            .map(|health| {
                port += 1;
                Endpoint {
                    address: ConfigAddress::Ip {
                        addr: ([127, 0, 0, 1], port).into(),
                        ipv4_compat: false,
                    },
                    hostname: None,
                    metadata: None,
                    weight: 1,
                    health: *health,
                }
            })
            .collect(),
    });
    Cluster {
        transport: UpstreamTransport::default(),
        name: "c".into(),
        alt_stat_name: None,
        discovery: Discovery::Static,
        lb_policy,
        healthy_panic_threshold: 50,
        fail_traffic_on_panic: false,
        close_connections_on_host_set_change: false,
        connect_timeout: Duration::from_secs(5),
        per_connection_buffer_limit: 1 << 20,
        circuit_breakers: Arc::new(CircuitBreakers::default()),
        http: Arc::default(),
        socket: Arc::default(),
        load_assignment: LoadAssignment {
            localities: localities.collect(),
            ..LoadAssignment::default()
        },
        metadata: None,
        track_timeout_budgets: false,
        track_request_response_sizes: false,
    }
}

fn worker(config: Cluster) -> (WorkerClusters, Arc<SharedCluster>) {
    let shared = Arc::new(SharedCluster::new(Arc::new(config), &Registry::default()));
    let map = Arc::new(ClusterMap::new([shared.clone()]));
    (WorkerClusters::new(map, 0, Timers::new(Instant::now()), 1), shared)
}

const HEALTHY: HealthStatus = HealthStatus::Healthy;
const UNHEALTHY: HealthStatus = HealthStatus::Unhealthy;

#[test]
fn a_cluster_is_made_once_and_hosts_are_lazy() {
    let (clusters, shared) = worker(cluster(&[&[HEALTHY; 3]], LbPolicy::RoundRobin));
    assert!(shared.hosts_if_made().is_none());
    assert_eq!(shared.scope.value(crate::stats::names::ClusterEndpointStat::MembershipTotal), 3);
    let first = clusters.get("c").unwrap();
    assert!(Rc::ptr_eq(&first, &clusters.get("c").unwrap()));
    assert!(clusters.get("d").is_none());
    assert_eq!(clusters.inflated(), 1);
}

#[test]
fn an_empty_cluster_has_no_healthy_host() {
    let (clusters, shared) = worker(cluster(&[], LbPolicy::RoundRobin));
    let cluster = clusters.get("c").unwrap();
    assert_eq!(cluster.pick(&PickContext::default()).unwrap_err(), NoHealthyHost);
    assert_eq!(shared.scope.value(ClusterStat::UpstreamCxNoneHealthy), 1);
    assert_eq!(shared.scope.value(ClusterLbStat::LbHealthyPanic), 1);
}

#[test]
fn panic_uses_all_hosts_and_is_counted() {
    let (clusters, shared) =
        worker(cluster(&[&[HEALTHY, UNHEALTHY, UNHEALTHY]], LbPolicy::RoundRobin));
    let cluster = clusters.get("c").unwrap();
    let picked: std::collections::HashSet<_> = (0..3)
        .map(|_| cluster.pick(&PickContext::default()).unwrap().address.to_string())
        .collect();
    assert_eq!(picked.len(), 3);
    assert_eq!(shared.scope.value(ClusterLbStat::LbHealthyPanic), 3);
}

#[test]
fn a_new_host_set_keeps_what_stays() {
    let (clusters, shared) = worker(cluster(&[&[HEALTHY; 2]], LbPolicy::RoundRobin));
    let on_worker = clusters.get("c").unwrap();
    let (a, b) = (
        on_worker.pick(&PickContext::default()).unwrap(),
        on_worker.pick(&PickContext::default()).unwrap(),
    );
    let old = shared.hosts();
    let smaller = cluster(&[&[HEALTHY; 1]], LbPolicy::RoundRobin);
    shared.publish(HostSet::of_static(&smaller, Some(&old)));
    let now = on_worker.pick(&PickContext::default()).unwrap();
    assert!(Rc::ptr_eq(&now, &a) || Rc::ptr_eq(&now, &b));
    assert_ne!(a.is_removed(), b.is_removed());
    assert!(!now.is_removed());
}

#[test]
fn retries_are_limited_and_given_back() {
    let (clusters, shared) = worker(cluster(&[&[HEALTHY]], LbPolicy::RoundRobin));
    let cluster = clusters.get("c").unwrap();
    let retries: Vec<_> = (0..3).map(|_| cluster.try_retry(RoutingPriority::Default)).collect();
    assert!(cluster.try_retry(RoutingPriority::Default).is_err());
    assert_eq!(shared.scope.value(ClusterStat::UpstreamRqRetryOverflow), 1);
    shared.write_breaker_gauges();
    assert_eq!(shared.scope.value(crate::stats::names::CircuitBreakerStat::DefaultRqRetryOpen), 1);
    drop(retries);
    assert!(cluster.try_retry(RoutingPriority::Default).is_ok());
}
