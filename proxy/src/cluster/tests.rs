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
        locality_weighted: false,
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
    let (set, change) = HostSet::of_assignment(&smaller, &smaller.load_assignment, Some(&old));
    shared.publish(set, change);
    let now = on_worker.pick(&PickContext::default()).unwrap();
    assert!(Rc::ptr_eq(&now, &a) || Rc::ptr_eq(&now, &b));
    assert_ne!(a.is_removed(), b.is_removed());
    assert!(!now.is_removed());
}

/// What a control plane says anew of a host that stays closes no connection and forgets no request.
#[test]
fn what_is_said_anew_of_a_host_is_taken_in_place() {
    let (clusters, shared) = worker(cluster(&[&[HEALTHY], &[HEALTHY]], LbPolicy::RoundRobin));
    let on_worker = clusters.get("c").unwrap();
    let host = on_worker.pick(&PickContext::default()).unwrap();
    let old = shared.hosts();
    let mut changed = cluster(&[&[HealthStatus::Degraded], &[HEALTHY]], LbPolicy::RoundRobin);
    let localities = &mut changed.load_assignment.localities;
    localities[0].priority = 1;
    localities[1].priority = 0;
    let endpoint = &mut localities[0].endpoints[0];
    endpoint.weight = 7;
    let lb = serde_json::json!({"envoy.lb": {"canary": true}});
    endpoint.metadata = lb.as_object().cloned().map(Arc::new);
    let (set, change) = HostSet::of_assignment(&changed, &changed.load_assignment, Some(&old));
    assert_eq!(change, membership::Change { priorities: 2, is_seen: true });
    assert_eq!((host.weight(), host.priority(), host.is_canary()), (7, 1, true));
    assert!(Arc::ptr_eq(&set.hosts[1], &host.context.host) && !host.is_removed());
    shared.publish(set, change);
    let mut seen = (0..20).map(|_| on_worker.pick(&PickContext::default()).unwrap());
    assert!(seen.all(|picked| !Rc::ptr_eq(&picked, &host)), "its priority is another");
    // The same again is nothing to look at; another locality is another host.
    let set = shared.hosts();
    let (set, change) = HostSet::of_assignment(&changed, &changed.load_assignment, Some(&set));
    assert_eq!(change, membership::Change::default());
    changed.load_assignment.localities[0].locality =
        Arc::new(crate::config::core::Locality { region: "r".into(), ..Default::default() });
    let (set, change) = HostSet::of_assignment(&changed, &changed.load_assignment, Some(&set));
    assert_eq!(change, membership::Change { priorities: 1, is_seen: true });
    assert!(!Arc::ptr_eq(&set.hosts[1], &host.context.host) && host.is_removed());
}

#[test]
fn of_an_address_given_twice_the_first_counts() {
    let mut twice = cluster(&[&[HEALTHY; 2], &[HEALTHY; 2]], LbPolicy::RoundRobin).load_assignment;
    twice.localities[1].endpoints[0].address = twice.localities[0].endpoints[1].address.clone();
    twice.remove_duplicates();
    let left: Vec<_> =
        twice.endpoints().map(|(l, e)| (l.priority, e.address.to_string())).collect();
    let expected = [(0, "127.0.0.1:1"), (0, "127.0.0.1:2"), (1, "127.0.0.1:4")];
    assert_eq!(left, expected.map(|(priority, address)| (priority, address.to_owned())));
}

/// Weights 3 and 1; then a third of the first one's hosts is left, of which 1.4 times as much counts.
#[test]
fn localities_share_the_traffic_by_weight_and_health() {
    let shares = |health: &[HealthStatus], policy: LbPolicy| {
        let mut config = cluster(&[health, &[HEALTHY]], policy);
        config.locality_weighted = true;
        for (i, (name, weight)) in [("a", 3), ("b", 1)].into_iter().enumerate() {
            let locality = &mut config.load_assignment.localities[i];
            locality.priority = 0;
            locality.weight = Some(weight);
            locality.locality = Arc::new(crate::config::core::Locality {
                region: name.into(),
                ..Default::default()
            });
        }
        let (clusters, _shared) = worker(config);
        let on_worker = clusters.get("c").unwrap();
        let picks = (0..1000).map(|_| on_worker.pick(&PickContext::default()).unwrap());
        picks.filter(|host| &*host.locality.region == "b").count()
    };
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random] {
        assert_eq!(shares(&[HEALTHY; 3], policy.clone()), 250);
        // 3 × 1.4 / 3 to 1, and panic is far.
        let shared = shares(&[HEALTHY, HEALTHY, UNHEALTHY], policy);
        assert!((255..=275).contains(&shared), "{shared}");
    }
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
