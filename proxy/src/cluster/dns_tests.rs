use super::*;
use crate::config::cluster::LbPolicy;
use crate::config::endpoint::HealthStatus;
use crate::stats::Registry;
use hickory_resolver::Name;
use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::{RData, Record, RecordType, rdata};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;
use tokio::net::UdpSocket;

/// What the test's name server says for `name.test.`.
#[derive(Clone)]
enum Say {
    Addresses(Vec<IpAddr>),
    Alias(Ipv4Addr, u32, u32),
    NoSuchName,
    Fail,
}

type Script = Rc<RefCell<Say>>;

async fn name_server(say: Say) -> (SocketAddr, Script) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let script: Script = Rc::new(RefCell::new(say));
    let shared = script.clone();
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 1500];
        loop {
            let (len, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let reply = answer(&query, &shared.borrow());
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    (address, script)
}

fn answer(query: &Message, say: &Say) -> Message {
    let mut reply = Message::new();
    reply.set_id(query.id()).set_message_type(MessageType::Response).set_recursion_available(true);
    let question = query.queries()[0].clone();
    let (name, kind) = (question.name().clone(), question.query_type());
    reply.add_query(question);
    let record = |ip: &IpAddr, ttl: u32, name: Name| match ip {
        IpAddr::V4(ip) => Record::from_rdata(name, ttl, RData::A(rdata::A(*ip))),
        IpAddr::V6(ip) => Record::from_rdata(name, ttl, RData::AAAA(rdata::AAAA(*ip))),
    };
    match say {
        Say::Addresses(addresses) => {
            for ip in addresses.iter().filter(|ip| ip.is_ipv4() == (kind == RecordType::A)) {
                reply.add_answer(record(ip, 300, name.clone()));
            }
        }
        Say::Alias(ip, alias_ttl, ttl) => {
            let target = Name::from_ascii("target.test.").unwrap();
            let cname = RData::CNAME(rdata::CNAME(target.clone()));
            reply.add_answer(Record::from_rdata(name, *alias_ttl, cname));
            reply.add_answer(record(&IpAddr::V4(*ip), *ttl, target));
        }
        Say::NoSuchName => {
            reply.set_response_code(ResponseCode::NXDomain);
        }
        Say::Fail => {
            reply.set_response_code(ResponseCode::ServFail);
        }
    }
    reply
}

fn cluster(server: SocketAddr, family: DnsLookupFamily) -> Arc<SharedCluster> {
    cluster_of(server, family, false)
}

fn cluster_of(server: SocketAddr, family: DnsLookupFamily, single: bool) -> Arc<SharedCluster> {
    let healthy: &[HealthStatus] = &[HealthStatus::Healthy];
    let mut config = crate::cluster::tests::cluster(&[healthy], LbPolicy::RoundRobin);
    config.load_assignment.localities[0].endpoints[0].address =
        ConfigAddress::Dns { host: "name.test.".into(), port: 80 };
    let rate = Duration::from_millis(5);
    config.discovery = Discovery::Dns(Box::new(DnsOptions {
        refresh_rate: rate,
        failure_refresh_rate: (rate, rate),
        jitter: Duration::from_millis(2),
        respect_ttl: false,
        min_refresh_rate: Duration::ZERO,
        single_endpoint: single,
        lookup_family: family,
        use_tcp: false,
        resolvers: Box::new([server]),
    }));
    Arc::new(SharedCluster::new(Arc::new(config), &Registry::default()))
}

fn addresses(cluster: &SharedCluster) -> Vec<String> {
    let mut all: Vec<_> = cluster.hosts().hosts.iter().map(|h| h.address.to_string()).collect();
    all.sort();
    all
}

/// Lets the runtime run until `done`.
async fn eventually(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "it never happened");
        tokio::task::yield_now().await;
    }
}

async fn on_local<F: Future<Output = ()>>(test: F) {
    tokio::task::LocalSet::new().run_until(test).await;
}

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

fn ips(list: &[&str]) -> Say {
    Say::Addresses(list.iter().map(|ip| ip.parse().unwrap()).collect())
}

#[tokio::test]
async fn follows_changes_and_keeps_hosts_that_stay() {
    on_local(async {
        let (server, script) = name_server(ips(&[A])).await;
        let cluster = cluster(server, DnsLookupFamily::V4Only);
        let told = Rc::new(Cell::new(0));
        let tell = told.clone();
        let changed = move || tell.set(tell.get() + 1);
        let mut discovery =
            DnsDiscovery::start(&cluster, &Resolvers::default(), 1, changed).unwrap();
        discovery.initialised().await;
        assert_eq!((addresses(&cluster), told.get()), (vec!["10.0.0.1:80".to_owned()], 1));
        let first = cluster.hosts().hosts[0].clone();
        assert_eq!(first.hostname.as_deref(), Some("name.test."));
        *script.borrow_mut() = ips(&[B, A]);
        eventually(|| cluster.hosts().hosts.len() == 2).await;
        assert!(cluster.hosts().hosts.iter().any(|host| Arc::ptr_eq(host, &first)));
        *script.borrow_mut() = ips(&[B]);
        eventually(|| addresses(&cluster) == ["10.0.0.2:80"]).await;
        assert!(first.is_removed());
        // Workers hear of each change, so that connections to hosts that are gone end without traffic.
        assert_eq!(told.get(), 3);
        assert!(cluster.scope.value(ClusterUpdateStat::UpdateSuccess) >= 3);
    })
    .await;
}

#[tokio::test]
async fn stale_answers_stay_on_failure_and_go_with_the_name() {
    on_local(async {
        let (server, script) = name_server(ips(&[A])).await;
        let cluster = cluster(server, DnsLookupFamily::V4Only);
        let mut discovery = DnsDiscovery::start(&cluster, &Resolvers::default(), 1, || ()).unwrap();
        discovery.initialised().await;
        *script.borrow_mut() = Say::Fail;
        eventually(|| cluster.scope.value(ClusterUpdateStat::UpdateFailure) >= 2).await;
        assert_eq!(addresses(&cluster), ["10.0.0.1:80"]);
        *script.borrow_mut() = Say::NoSuchName;
        eventually(|| cluster.hosts().hosts.is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn a_single_endpoint_is_at_the_first_address_and_outlives_its_name() {
    on_local(async {
        let (server, script) = name_server(ips(&[A, B])).await;
        let cluster = cluster_of(server, DnsLookupFamily::V4Only, true);
        let mut discovery = DnsDiscovery::start(&cluster, &Resolvers::default(), 1, || ()).unwrap();
        discovery.initialised().await;
        assert_eq!(addresses(&cluster), ["10.0.0.1:80"]);
        let first = cluster.hosts().hosts[0].clone();
        *script.borrow_mut() = ips(&[B, A]);
        eventually(|| addresses(&cluster) == ["10.0.0.2:80"]).await;
        // As in Envoy since it resolves both types in one way: another address is another host.
        assert!(first.is_removed());
        *script.borrow_mut() = Say::NoSuchName;
        eventually(|| cluster.scope.value(ClusterUpdateStat::UpdateFailure) >= 2).await;
        assert_eq!(addresses(&cluster), ["10.0.0.2:80"]);
    })
    .await;
}

#[tokio::test]
async fn a_failure_initialises_too() {
    on_local(async {
        let (server, _script) = name_server(Say::Fail).await;
        let cluster = cluster(server, DnsLookupFamily::V4Only);
        let mut discovery = DnsDiscovery::start(&cluster, &Resolvers::default(), 1, || ()).unwrap();
        discovery.initialised().await;
        assert!(addresses(&cluster).is_empty());
        assert!(cluster.scope.value(ClusterUpdateStat::UpdateFailure) >= 1);
    })
    .await;
}

#[tokio::test]
async fn families_are_asked_for_as_configured() {
    let cases: [(DnsLookupFamily, &[&str], &[&str]); 5] = [
        (DnsLookupFamily::Auto, &[A, "::2"], &["[::2]:80"]),
        (DnsLookupFamily::Auto, &[A], &["10.0.0.1:80"]),
        (DnsLookupFamily::V4Preferred, &[A, "::2"], &["10.0.0.1:80"]),
        (DnsLookupFamily::V6Only, &[A, "::2"], &["[::2]:80"]),
        (DnsLookupFamily::All, &[A, "::2"], &["10.0.0.1:80", "[::2]:80"]),
    ];
    let all = cases.map(|(family, records, wanted)| (family, records, wanted, false));
    let one = cases.map(|(family, records, wanted)| (family, records, &wanted[..1], true));
    for (family, records, wanted, single) in all.into_iter().chain(one) {
        on_local(async {
            let (server, _script) = name_server(ips(records)).await;
            let cluster = cluster_of(server, family, single);
            let mut discovery =
                DnsDiscovery::start(&cluster, &Resolvers::default(), 1, || ()).unwrap();
            discovery.initialised().await;
            assert_eq!(addresses(&cluster), wanted, "{family:?}, one alone: {single}");
        })
        .await;
    }
}

#[tokio::test]
async fn the_least_ttl_of_the_chain_counts() {
    on_local(async {
        let (server, _script) = name_server(Say::Alias(Ipv4Addr::LOCALHOST, 7, 300)).await;
        let cluster = cluster(server, DnsLookupFamily::V4Only);
        let Discovery::Dns(options) = &cluster.config.discovery else { panic!("not DNS") };
        let state = State {
            changed: Box::new(|| ()),
            resolver: Resolvers::default().get(options),
            cluster: cluster.clone(),
            found: RefCell::default(),
            rng: RefCell::new(Rng::new(1)),
            failure_interval: Cell::default(),
            done: watch::channel(false).0,
        };
        let answer = state.resolve("name.test.", 80).await.unwrap();
        assert_eq!(answer.ttl, Duration::from_secs(7));
    })
    .await;
}
