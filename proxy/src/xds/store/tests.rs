//! The store against updates as a control plane sends them: what it asks for, in which order, and what it refuses.

use std::ffi::OsString;

use prost::Message as _;
use tokio::task::LocalSet;

use super::*;
use crate::config::json::from_yaml;
use crate::config::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use crate::config::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::config::pb::envoy::config::listener::v3::Listener as PbListener;
use crate::config::pb::envoy::config::route::v3::RouteConfiguration;
use crate::server::args;
use crate::xds::resource::RawResource;

struct Bench {
    store: Store,
    wants: Wants,
}

impl Bench {
    /// Everything over ADS.
    fn start() -> Self {
        let line = ["outrigger", "--config-yaml", "{}"].map(OsString::from);
        let Ok(args::Command::Run(options)) = args::Command::parse(line) else {
            unreachable!("the line is right")
        };
        let ads = |timeout| ConfigSource { source: Source::Ads, initial_fetch_timeout: timeout };
        let (store, wants) = Store::new(Setup {
            registry: Registry::default(),
            upstream_bind: None,
            extra_filters: ExtraFilters::default(),
            slots: Slots::default(),
            secrets: Secrets::default(),
            map: Arc::new(ClusterMap::default()),
            lifecycle: Lifecycle::new(&options).0,
            workers: 1,
            drain_gradually: true,
            clusters: Some(ads(None)),
            listeners: Some(ads(None)),
        });
        store.start();
        Self { store, wants }
    }

    /// What is wanted since the last time: `+endpoints a b`, `-routes c`.
    fn wanted(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(told) = self.wants.streams.try_recv() {
            let wanted = match told {
                Told::Wanted(wanted) => wanted,
                Told::HoldClusters(held) => {
                    all.push(if held { "hold" } else { "let go" }.to_owned());
                    continue;
                }
            };
            let kind = wanted.resource_type;
            if wanted.add.is_empty() && wanted.remove.is_empty() {
                all.push(format!("+{kind}"));
            }
            for (sign, names) in [('+', wanted.add), ('-', wanted.remove)] {
                if !names.is_empty() {
                    all.push(format!("{sign}{kind} {}", names.join(" ")));
                }
            }
        }
        all
    }

    fn apply<M: prost::Message + prost::Name + Default>(
        &self,
        kind: ResourceType,
        resources: &[&str],
        removed: &[&str],
    ) -> Vec<String> {
        let raw = |yaml: &&str| {
            let bytes = from_yaml::<M>(yaml).unwrap().encode_to_vec();
            let name = kind.name_of(&bytes).to_owned();
            RawResource { name, version: "1".into(), bytes: bytes.into() }
        };
        let update = TypeUpdate {
            source: Source::Ads,
            resource_type: kind,
            version: "1".into(),
            resources: resources.iter().map(raw).collect(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            full_state: false,
        };
        // Its pauses are the only thing that it waits for.
        let mut apply = std::pin::pin!(self.store.apply(&update));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let rejected = loop {
            if let std::task::Poll::Ready(rejected) = apply.as_mut().poll(&mut cx) {
                break rejected;
            }
        };
        rejected.into_iter().map(|one| format!("{}: {}", one.name, one.error)).collect()
    }

    fn clusters(&self, resources: &[&str], removed: &[&str]) -> Vec<String> {
        self.apply::<PbCluster>(ResourceType::Cluster, resources, removed)
    }

    fn endpoints(&self, resources: &[&str]) -> Vec<String> {
        self.apply::<ClusterLoadAssignment>(ResourceType::Endpoints, resources, &[])
    }

    fn hosts(&self, cluster: &str) -> usize {
        self.store.setup().map.get(cluster).map_or(0, |shared| shared.hosts().hosts.len())
    }
}

const EDS: &str =
    "type: EDS, eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 0s}}";

fn eds(name: &str) -> String {
    format!("{{name: {name}, {EDS}}}")
}

fn assignment(name: &str, port: u16) -> String {
    format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    )
}

fn listener(name: &str, routes: &str) -> String {
    let hcm = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "envoy.extensions.filters.http.router.v3.Router";
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': t/{hcm}, stat_prefix: s, \
         rds: {{route_config_name: {routes}, config_source: {{ads: {{}}, initial_fetch_timeout: 0s}}}}, \
         http_filters: [{{name: router, typed_config: {{'@type': t/{router}}}}}]}}}}]}}]}}"
    )
}

/// On a paused clock: a sleep ends as soon as nothing else is to be done.
fn run(test: impl AsyncFnOnce()) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test());
}

#[test]
fn each_stage_waits_for_the_one_before() {
    run(async || {
        let mut bench = Bench::start();
        assert_eq!(bench.wanted(), ["+cluster"]);
        assert!(bench.clusters(&[&eds("b"), &eds("a")], &[]).is_empty());
        assert_eq!(bench.wanted(), ["+endpoints a b"]);
        bench.endpoints(&[&assignment("a", 1)]);
        assert_eq!((bench.wanted(), bench.store.stage()), (vec![], Stage::Clusters));
        bench.endpoints(&[&assignment("b", 2)]);
        assert_eq!(
            (bench.wanted(), bench.store.stage()),
            (vec!["+listener".into()], Stage::Listeners)
        );
        let kind = ResourceType::Listener;
        assert!(bench.apply::<PbListener>(kind, &[&listener("l", "web")], &[]).is_empty());
        assert_eq!(
            (bench.wanted(), bench.store.stage()),
            (vec!["+routes web".into()], Stage::Listeners)
        );
        bench.apply::<RouteConfiguration>(ResourceType::Routes, &["{name: web}"], &[]);
        assert_eq!(bench.store.stage(), Stage::Live);
        assert_eq!(bench.store.listener_status().len(), 1);
        // The listener goes, and with it what it named.
        bench.apply::<PbListener>(kind, &[], &["l"]);
        assert_eq!(bench.wanted(), ["-routes web"]);
    });
}

#[test]
fn an_update_warms_while_the_old_one_serves() {
    run(async || {
        let mut bench = Bench::start();
        bench.clusters(&[&eds("a")], &[]);
        bench.endpoints(&[&assignment("a", 1)]);
        bench.wanted();
        assert_eq!(bench.hosts("a"), 1);
        let other = EDS.replace("eds_config", "service_name: other, eds_config");
        bench.clusters(&[&format!("{{name: a, {other}}}")], &[]);
        let waits = vec!["+endpoints other".into(), "hold".into()];
        assert_eq!((bench.wanted(), bench.hosts("a")), (waits, 1));
        let two = assignment("other", 1).replace(
            "lb_endpoints: [",
            "lb_endpoints: [{endpoint: \
            {address: {socket_address: {address: 127.0.0.2, port_value: 1}}}}, ",
        );
        bench.endpoints(&[&two]);
        let warm = vec!["-endpoints a".into(), "let go".into()];
        assert_eq!((bench.wanted(), bench.hosts("a")), (warm, 2));
        // A version with the same endpoints has them at once.
        bench.clusters(&[&format!("{{name: a, connect_timeout: 1s, {other}}}")], &[]);
        assert_eq!((bench.wanted(), bench.hosts("a")), (vec![], 2));
        bench.clusters(&[], &["a"]);
        assert_eq!(bench.wanted(), ["-endpoints other"]);
        assert!(bench.store.setup().map.get("a").is_none());
    });
}

#[test]
fn of_a_hundred_three_bad_ones_are_named() {
    run(async || {
        let bench = Bench::start();
        let one = |i: usize| match i {
            7 | 50 | 99 => format!("{{name: c{i}, lb_policy: MAGLEV}}"),
            _ => format!("{{name: c{i}}}"),
        };
        let all: Vec<String> = (0..100).map(one).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let rejected = bench.clusters(&all, &[]);
        let expected: Vec<_> = [7, 50, 99]
            .iter()
            .map(|i| format!("c{i}: lb_policy: MAGLEV is not supported"))
            .collect();
        assert_eq!(rejected, expected);
        assert_eq!(bench.store.cluster_names().len(), 97);
        assert_eq!(bench.store.rejected().len(), 3);
        // The same bytes are refused again, and a good version is the end of it.
        assert_eq!(bench.clusters(&all[7..8], &[]).len(), 1);
        assert!(bench.clusters(&["{name: c7}"], &[]).is_empty());
        assert_eq!(bench.store.rejected().len(), 2);
        let twice = bench.clusters(&["{name: d}", "{name: d, connect_timeout: 1s}"], &[]);
        assert_eq!(twice, ["d: duplicate cluster d found"]);
    });
}

/// Others have the thread while a large update is taken, and names are seen in all of it.
#[test]
fn a_large_update_takes_turns() {
    run(async || {
        let bench = Bench::start();
        let one = |i: usize| {
            let name = format!("c{}", i % 999);
            let bytes = PbCluster { name: name.clone(), ..PbCluster::default() }.encode_to_vec();
            RawResource { name, version: "1".into(), bytes: bytes.into() }
        };
        let update = TypeUpdate {
            source: Source::Ads,
            resource_type: ResourceType::Cluster,
            version: "1".into(),
            resources: (0..1000).map(one).collect(),
            removed: Vec::new(),
            full_state: true,
        };
        let (rejected, turns) = with_others(&bench, &update).await;
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].error, "duplicate cluster c0 found");
        assert_eq!(bench.store.cluster_names().len(), 999);
        assert!(turns >= 7, "{turns} turns of others");
    });
}

/// Takes an update; how many turns others have had meanwhile.
async fn with_others(bench: &Bench, update: &TypeUpdate) -> (Vec<Rejection>, usize) {
    let (turns, over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let (counted, ended) = (turns.clone(), over.clone());
    let other = tokio::task::spawn_local(async move {
        while !ended.get() {
            counted.set(counted.get() + 1);
            tokio::task::yield_now().await;
        }
    });
    let rejected = bench.store.apply(update).await;
    over.set(true);
    other.await.unwrap();
    (rejected, turns.get())
}

#[test]
fn what_goes_in_great_numbers_takes_turns_too() {
    run(async || {
        let bench = Bench::start();
        let names: Vec<String> = (0..400).map(|i| format!("c{i}")).collect();
        let clusters: Vec<String> = names.iter().map(|name| eds(name)).collect();
        let clusters: Vec<&str> = clusters.iter().map(String::as_str).collect();
        bench.clusters(&clusters, &[]);
        for resource_type in
            [ResourceType::Endpoints, ResourceType::Routes, ResourceType::Extension]
        {
            let update = TypeUpdate {
                source: Source::Ads,
                resource_type,
                version: "2".into(),
                resources: Vec::new(),
                removed: names.clone(),
                full_state: false,
            };
            let (_, turns) = with_others(&bench, &update).await;
            assert!(turns >= 3, "{turns} turns of others");
        }
        // Every one was an answer.
        assert_eq!(bench.store.stage(), Stage::Listeners);
    });
}

/// Gone and back before its source has heard of it: nobody would say it again.
#[test]
fn routes_that_another_listener_takes_over_stay() {
    run(async || {
        let mut bench = Bench::start();
        bench.clusters(&[], &[]);
        put_listener(&bench, &listener("a", "web"));
        bench.apply::<RouteConfiguration>(ResourceType::Routes, &["{name: web}"], &[]);
        assert_eq!(bench.wanted(), ["+cluster", "+listener", "+routes web"]);
        let b = listener("b", "web");
        assert!(bench.apply::<PbListener>(ResourceType::Listener, &[&b], &["a"]).is_empty());
        // In force at once.
        let active: Vec<_> =
            bench.store.listener_status().into_iter().map(|one| one.name).collect();
        assert_eq!((bench.wanted(), active), (vec![], vec!["b".to_owned()]));
        bench.apply::<PbListener>(ResourceType::Listener, &[], &["b"]);
        assert_eq!(bench.wanted(), ["-routes web"]);
    });
}

#[test]
fn what_does_not_come_in_time_is_gone_on_without() {
    run(async || {
        let bench = Bench::start();
        bench.clusters(&[&eds("a").replace("0s", "3s")], &[]);
        assert_eq!(bench.store.stage(), Stage::Clusters);
        bench.store.reached(Stage::Listeners).await;
        assert!(bench.store.setup().map.get("a").is_some());
        // What is refused was an answer, too.
        bench.clusters(&[&eds("b")], &[]);
        assert!(bench.store.setup().map.get("b").is_none());
        assert_eq!(bench.endpoints(&["{cluster_name: b, endpoints: [{priority: 999}]}"]).len(), 1);
        assert!(bench.store.setup().map.get("b").is_some());
    });
}

/// A server without an assignment says so by naming it as removed: nobody waits for another answer.
#[test]
fn an_assignment_that_does_not_exist_is_an_answer() {
    run(async || {
        let mut bench = Bench::start();
        bench.clusters(&[&eds("a")], &[]);
        assert_eq!(bench.wanted(), ["+cluster", "+endpoints a"]);
        bench.apply::<ClusterLoadAssignment>(ResourceType::Endpoints, &[], &["a"]);
        assert_eq!(bench.wanted(), ["+listener"]);
    });
}

/// A later version of the cluster does not wait for what the server has no reason to say again.
#[test]
fn an_answer_holds_for_later_versions_too() {
    run(async || {
        let bench = Bench::start();
        bench.clusters(&[&eds("a")], &[]);
        bench.apply::<ClusterLoadAssignment>(ResourceType::Endpoints, &[], &["a"]);
        let timeout = |name: &str| {
            let map = &bench.store.setup().map;
            map.get(name).map(|shared| shared.config.connect_timeout.as_secs())
        };
        assert_eq!(timeout("a"), Some(5));
        bench.clusters(&[&eds("a, connect_timeout: 7s")], &[]);
        assert_eq!(timeout("a"), Some(7));
    });
}

#[test]
fn endpoints_that_nobody_vouches_for_are_forgotten() {
    run(async || {
        let bench = Bench::start();
        bench.clusters(&[&eds("a")], &[]);
        let stale = assignment("a", 1)
            .replace(" endpoints:", " policy: {endpoint_stale_after: 10s}, endpoints:");
        bench.endpoints(&[&stale]);
        assert_eq!(bench.hosts("a"), 1);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(6)).await;
            bench.endpoints(&[&stale]);
        }
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(bench.hosts("a"), 1, "it has come again");
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(bench.hosts("a"), 0);
        bench.endpoints(&[&stale]);
        assert_eq!(bench.hosts("a"), 1);
        // A shorter time is not waited for behind the longer one.
        bench.endpoints(&[&stale.replace("10s", "2s")]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(bench.hosts("a"), 0);
    });
}

/// What was refused for want of something else is taken once that is there.
#[test]
fn a_refused_resource_is_looked_at_again() {
    run(async || {
        let bench = Bench::start();
        let hcm =
            "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 0s}}";
        let inline = "route_config: {name: r, validate_clusters: true, virtual_hosts: [{name: v, \
                      domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}";
        let wants_c = listener("l", "r").replace(hcm, inline);
        let put = || bench.apply::<PbListener>(ResourceType::Listener, &[&wants_c], &[]);
        assert_eq!(put(), ["l: route: unknown cluster 'c'"]);
        assert!(bench.clusters(&["{name: c}"], &[]).is_empty());
        assert_eq!(put(), Vec::<String>::new());
    });
}

/// A secret outlives the slot of whoever used it first: the control plane has no reason to send it twice.
#[test]
fn a_secret_that_is_known_fills_a_slot_made_anew() {
    use crate::config::pb::envoy::extensions::transport_sockets::tls::v3::Secret as PbSecret;
    run(async || {
        let bench = Bench::start();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let ca = params.self_signed(&key).unwrap().pem().replace('\n', "\\n");
        let tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let cluster = format!(
            "{{name: c, transport_socket: {{name: tls, typed_config: {{'@type': t/{tls}, \
             common_tls_context: {{validation_context_sds_secret_config: {{name: s, sds_config: \
             {{ads: {{}}, initial_fetch_timeout: 0s}}}}}}}}}}}}"
        );
        bench.clusters(&[&cluster], &[]);
        let secret =
            format!("{{name: s, validation_context: {{trusted_ca: {{inline_string: \"{ca}\"}}}}}}");
        assert!(bench.apply::<PbSecret>(ResourceType::Secret, &[&secret], &[]).is_empty());
        assert!(bench.store.setup().map.get("c").is_some());
        bench.clusters(&[], &["c"]);
        bench.clusters(&[&cluster], &[]);
        assert!(bench.store.setup().map.get("c").is_some(), "it waits for a secret that is there");
    });
}

/// Two that name one secret wait for it each as long as it says itself.
#[test]
fn who_names_a_secret_waits_as_long_as_it_says() {
    run(async || {
        let bench = Bench::start();
        let tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let cluster = |name: &str, timeout: &str| {
            format!(
                "{{name: {name}, transport_socket: {{name: tls, typed_config: {{'@type': t/{tls}, \
                 common_tls_context: {{validation_context_sds_secret_config: {{name: s, sds_config: \
                 {{ads: {{}}, initial_fetch_timeout: {timeout}}}}}}}}}}}}}"
            )
        };
        bench
            .clusters(&[&cluster("patient", "0s"), &cluster("a", "15s"), &cluster("b", "0s")], &[]);
        let is_there = |name: &str| bench.store.setup().map.get(name).is_some();
        assert!(!is_there("a") && !is_there("b"));
        tokio::time::sleep(Duration::from_secs(16)).await;
        assert!(is_there("a") && !is_there("b") && !is_there("patient"));
    });
}

/// A slot that an old connection holds has a table still; that is no answer to who names it anew.
#[test]
fn routes_that_are_named_again_are_waited_for_again() {
    run(async || {
        let bench = Bench::start();
        bench.clusters(&[], &[]);
        let routes = |name: &str| {
            let yaml = format!("{{name: {name}, virtual_hosts: []}}");
            bench.apply::<RouteConfiguration>(ResourceType::Routes, &[&yaml], &[]);
        };
        let updates = || stat(&bench, ListenerManagerStat::ListenerInPlaceUpdated);
        put_listener(&bench, &listener("l", "r"));
        routes("r");
        let held = bench.store.setup().slots.known_routes("r", &Source::Ads).unwrap();
        assert!(held.is_answered());
        put_listener(&bench, &listener("l", "s"));
        assert_eq!(updates(), 0);
        routes("s");
        assert_eq!(updates(), 1);
        put_listener(&bench, &listener("l", "r"));
        assert_eq!(updates(), 1, "in force before its routes have come");
        routes("r");
        assert_eq!(updates(), 2);
        assert!(held.is_answered());
    });
}

/// Where nobody else listens: a port that is free elsewhere is free here.
const HOST: &str = "127.77.0.1";

fn put_listener(bench: &Bench, yaml: &str) -> Vec<String> {
    bench.apply::<PbListener>(ResourceType::Listener, &[yaml], &[])
}

/// A listener without HTTP on a port; `more`: further fields.
fn plain(name: &str, port: u16, more: &str) -> String {
    format!(
        "{{name: {name}, {more} address: {{socket_address: {{address: {HOST}, port_value: {port}}}}}, \
         filter_chains: [{{filters: []}}]}}"
    )
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn stat(bench: &Bench, stat: ListenerManagerStat) -> u64 {
    bench.store.listener_stats().counter_value(stat)
}

#[test]
fn a_listener_that_cannot_listen_is_refused_and_the_old_one_stays() {
    run(async || {
        let bench = Bench::start();
        bench.store.workers_started();
        let port = free_port();
        assert_eq!(put_listener(&bench, &plain("l", port, "")), Vec::<String>::new());
        let taken = std::net::TcpListener::bind("127.77.0.1:0").unwrap();
        let other = taken.local_addr().unwrap().port();
        let refused = put_listener(&bench, &plain("l", other, ""));
        assert_eq!(refused, [format!("l: cannot bind '{HOST}:{other}': Address already in use")]);
        assert_eq!(stat(&bench, ListenerManagerStat::ListenerCreateFailure), 1);
        // Options of this state are set once it listens; no kernel has this one.
        let option =
            "socket_options: [{level: 6, name: 9999, int_value: 1, state: STATE_LISTENING}],";
        let refused = put_listener(&bench, &plain("l", free_port(), option));
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(stat(&bench, ListenerManagerStat::ListenerCreateFailure), 2);
        let status = bench.store.listener_status();
        assert_eq!(status[0].addresses[0].to_string(), format!("{HOST}:{port}"));
    });
}

#[test]
fn an_address_belongs_to_one_listener() {
    run(async || {
        let bench = Bench::start();
        bench.store.workers_started();
        let port = free_port();
        let refused = |name: &str, address: &str| {
            [format!(
                "{name}: error adding listener: '{name}' has duplicate address '{address}' as existing listener, to \
                 check if the listener has duplicated addresses with other listeners or 'enable_reuse_port' is set to \
                 'false' for the listener"
            )]
        };
        assert_eq!(put_listener(&bench, &plain("a", port, "")), Vec::<String>::new());
        let here = format!("{HOST}:{port}");
        assert_eq!(put_listener(&bench, &plain("b", port, "")), refused("b", &here));
        let unbound = "bind_to_port: false,";
        assert_eq!(put_listener(&bench, &plain("b", port, unbound)), refused("b", &here));
        // A port that the kernel chooses is nobody's, but for those who do not ask it.
        for name in ["c", "d"] {
            assert_eq!(put_listener(&bench, &plain(name, 0, "")), Vec::<String>::new());
        }
        assert_eq!(put_listener(&bench, &plain("e", 0, unbound)), Vec::<String>::new());
        assert_eq!(put_listener(&bench, &plain("f", 0, unbound)), refused("f", "127.77.0.1:0"));
        // One of them goes in the same update.
        let kind = ResourceType::Listener;
        let taken_over = bench.apply::<PbListener>(kind, &[&plain("b", port, "")], &["a"]);
        assert_eq!(taken_over, Vec::<String>::new());
    });
}

/// Where each name has a stream of its own, the others do not fail with it.
#[test]
fn a_failed_stream_of_one_name_is_that_names_failure() {
    use crate::stats::names::SubscriptionStat;
    run(async || {
        let bench = Bench::start();
        for (name, routes) in [("l", "a"), ("m", "b")] {
            assert_eq!(put_listener(&bench, &listener(name, routes)), Vec::<String>::new());
        }
        let failures = |name: &str| {
            let scope = bench.store.setup().registry.scope(&format!("http.s.rds.{name}"));
            scope.value(SubscriptionStat::UpdateFailure)
        };
        bench.store.failed(&Source::Ads, ResourceType::Routes, Some("a"));
        assert_eq!((failures("a"), failures("b")), (1, 0));
        bench.store.failed(&Source::Ads, ResourceType::Routes, None);
        assert_eq!((failures("a"), failures("b")), (2, 1));
    });
}

/// Without `SO_REUSEPORT` nobody could bind the address a second time.
#[test]
fn a_socket_is_carried_over_to_the_next_listener_of_its_address() {
    run(async || {
        let bench = Bench::start();
        bench.store.workers_started();
        let port = free_port();
        let one = "enable_reuse_port: false,";
        assert_eq!(put_listener(&bench, &plain("a", port, one)), Vec::<String>::new());
        let client = std::net::TcpStream::connect((HOST, port)).unwrap();
        let other = "enable_reuse_port: false, tcp_backlog_size: 7, transparent: false,";
        assert_eq!(put_listener(&bench, &plain("a", port, other)), Vec::<String>::new());
        let kind = ResourceType::Listener;
        let renamed = plain("b", port, one);
        assert_eq!(bench.apply::<PbListener>(kind, &[&renamed], &["a"]), Vec::<String>::new());
        let state = bench.store.0.state.borrow();
        let bound = &state.listeners.entries["b"].active.as_ref().unwrap().sockets[0];
        let Some(crate::listener::sockets::BoundSocket::Tcp(socket)) =
            bound.of_worker(0).unwrap().open().unwrap()
        else {
            unreachable!("it has one")
        };
        // Whoever waits in the queue is still there.
        let (_io, peer) = socket.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        drop(state);
        let changed = plain("b", port, "enable_reuse_port: true,");
        let refused = "b: Listener b: reuse port cannot be changed during an update";
        assert_eq!(put_listener(&bench, &changed), [refused]);
    });
}
