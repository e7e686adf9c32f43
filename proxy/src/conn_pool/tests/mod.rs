//! Pools against peers on the loopback interface.

mod auto;
mod http2;

use super::*;
use crate::cluster::circuit_breaker::Resource;
use crate::cluster::host::HostSet;
use crate::cluster::{ClusterMap, SharedCluster, WorkerCluster, WorkerClusters, WorkerHost};
use crate::codec::head::RequestHead;
use crate::config::cluster::{CircuitBreakers, Cluster, LbPolicy, Thresholds};
use crate::config::core::ConfigAddress;
use crate::config::endpoint::HealthStatus;
use crate::config::protocol_options::UpstreamHttpOptions;
use crate::load_balancer::PickContext;
use crate::stats::{Registry, StatSet};
use crate::upstream::OriginalSource;
use crate::worker::timers::Timers;
use http::Method;
use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

const DEFAULT: RoutingPriority = RoutingPriority::Default;

/// Answers every request on every connection; `close_idle` closes connections that wait for one.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) accepted: Rc<Cell<usize>>,
    close_idle: Rc<Notify>,
}

impl Peer {
    async fn start(response: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Self {
            address: listener.local_addr().unwrap(),
            accepted: Rc::default(),
            close_idle: Rc::default(),
        };
        let (accepted, close_idle) = (peer.accepted.clone(), peer.close_idle.clone());
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.set(accepted.get() + 1);
                spawn_local(serve(stream, response, close_idle.clone()));
            }
        });
        peer
    }
}

async fn serve(mut stream: TcpStream, response: &'static str, close_idle: Rc<Notify>) {
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            read = stream.read_buf(&mut seen) => {
                if matches!(read, Ok(0) | Err(_)) {
                    return;
                }
            }
            () = close_idle.notified() => return,
        }
        while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            seen.drain(..end + 4);
            if stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A worker with one cluster of one host.
pub(super) struct Bench {
    pub(super) shared: Arc<SharedCluster>,
    cluster: Rc<WorkerCluster>,
}

impl Bench {
    pub(super) fn new(address: SocketAddr, change: impl FnOnce(&mut Cluster)) -> Self {
        let healthy: &[HealthStatus] = &[HealthStatus::Healthy];
        let mut config = crate::cluster::tests::cluster(&[healthy], LbPolicy::RoundRobin);
        config.load_assignment.localities[0].endpoints[0].address =
            ConfigAddress::Ip { addr: address, ipv4_compat: false };
        change(&mut config);
        let shared = Arc::new(SharedCluster::new(Arc::new(config), &Registry::default()));
        let timers = Timers::new(Instant::now());
        let driver = timers.clone();
        spawn_local(async move { driver.drive().await });
        let clusters =
            WorkerClusters::new(Arc::new(ClusterMap::new([shared.clone()])), 0, timers, 1);
        Self { shared, cluster: clusters.get("c").unwrap() }
    }

    pub(super) fn host(&self) -> Rc<WorkerHost> {
        self.cluster.pick(&PickContext::default()).unwrap()
    }

    pub(super) async fn acquire(&self, protocol: Protocol) -> Result<Lease, PoolFailure> {
        self.host().pools.acquire(protocol, DEFAULT, None).await
    }

    async fn h1(&self) -> Lease {
        self.acquire(Protocol::Http11).await.unwrap()
    }

    pub(super) fn value<S: StatSet>(&self, stat: S) -> u64 {
        self.shared.scope.value(stat)
    }
}

pub(super) fn get() -> RequestHead {
    let mut head = RequestHead::new(Method::GET, Protocol::Http11);
    head.set_authority(b"a.test");
    head.set_path(b"/");
    head
}

/// One request and its answer, to the end.
pub(super) async fn exchange(lease: &mut Lease) -> http::StatusCode {
    lease.send_head(&get(), true);
    poll_fn(|cx| lease.poll_flush(cx)).await.unwrap();
    let (head, mut end) = poll_fn(|cx| lease.poll_head(cx)).await.unwrap();
    while !end {
        end = poll_fn(|cx| lease.poll_frame(cx)).await.unwrap().is_none();
    }
    head.status
}

async fn exchange_and_release(mut lease: Lease) {
    assert_eq!(exchange(&mut lease).await, 200);
    lease.release(true, Instant::now());
}

/// Polls once.
async fn is_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// Lets the runtime run until `done`.
pub(super) async fn eventually(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "it never happened");
        tokio::task::yield_now().await;
    }
}

pub(super) async fn on_local<F: Future<Output = ()>>(test: F) {
    LocalSet::new().run_until(test).await;
}

fn with_http(config: &mut Cluster, change: impl FnOnce(&mut UpstreamHttpOptions)) {
    let mut http = (*config.http).clone();
    change(&mut http);
    config.http = Arc::new(http);
}

fn with_thresholds(config: &mut Cluster, thresholds: Thresholds) {
    config.circuit_breakers =
        Arc::new(CircuitBreakers { default: thresholds, ..CircuitBreakers::default() });
}

#[tokio::test]
async fn a_connection_is_used_again() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        let first = bench.h1().await;
        assert!(!first.is_reused());
        assert!(first.local_address().is_some() && first.connect_duration().is_some());
        let id = first.connection_id();
        exchange_and_release(first).await;
        let second = bench.h1().await;
        assert!(second.is_reused());
        assert_eq!(second.connection_id(), id);
        exchange_and_release(second).await;
        assert_eq!(peer.accepted.get(), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxHttp1Total), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamRqTotal), 2);
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingTotal), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamRqActive), 0);
        assert_eq!(bench.value(ClusterStat::UpstreamCxRxBytesTotal), 2 * OK.len() as u64);
        let host = bench.host();
        let rq_total = host.stats.rq_total.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(rq_total, 2);
    })
    .await;
}

#[tokio::test]
async fn the_most_recently_used_comes_first() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        let (a, b) = (bench.h1().await, bench.h1().await);
        let newest = a.connection_id();
        exchange_and_release(b).await;
        exchange_and_release(a).await;
        assert_eq!(bench.h1().await.connection_id(), newest);
        assert_eq!(peer.accepted.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn connections_the_peer_closes_are_dropped_at_once() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        let (a, b) = (bench.h1().await, bench.h1().await);
        exchange_and_release(a).await;
        exchange_and_release(b).await;
        peer.close_idle.notify_waiters();
        eventually(|| bench.value(ClusterStat::UpstreamCxDestroyRemote) == 2).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);
        assert_eq!(bench.value(ClusterStat::UpstreamCxDestroyWithActiveRq), 0);
        assert!(!bench.h1().await.is_reused());
    })
    .await;
}

#[tokio::test]
async fn connection_close_and_the_request_limit_end_a_connection() {
    on_local(async {
        let close = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let peer = Peer::start(close).await;
        let bench = Bench::new(peer.address, |_| {});
        exchange_and_release(bench.h1().await).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxCloseNotify), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxDestroyLocal), 1);

        let peer = Peer::start(OK).await;
        let limit = |config: &mut Cluster| {
            with_http(config, |http| http.common.max_requests_per_connection = Some(2));
        };
        let bench = Bench::new(peer.address, limit);
        for _ in 0..4 {
            exchange_and_release(bench.h1().await).await;
        }
        assert_eq!(bench.value(ClusterStat::UpstreamCxMaxRequests), 2);
        assert_eq!(peer.accepted.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn idle_and_old_connections_end() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let short = Some(Duration::from_millis(3));
        let idle = |config: &mut Cluster| with_http(config, |h| h.common.idle_timeout = short);
        let bench = Bench::new(peer.address, idle);
        exchange_and_release(bench.h1().await).await;
        eventually(|| bench.value(ClusterStat::UpstreamCxIdleTimeout) == 1).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);

        let old =
            |config: &mut Cluster| with_http(config, |h| h.common.max_connection_duration = short);
        let bench = Bench::new(peer.address, old);
        exchange_and_release(bench.h1().await).await;
        eventually(|| bench.value(ClusterStat::UpstreamCxMaxDurationReached) == 1).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_place_up_to_the_limit() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let thresholds =
            Thresholds { max_connections: 1, max_pending_requests: 1, ..Thresholds::default() };
        let bench = Bench::new(peer.address, |config| with_thresholds(config, thresholds));
        let first = bench.h1().await;
        let id = first.connection_id();
        let host = bench.host();
        let waiting = host.pools.acquire(Protocol::Http11, DEFAULT, None);
        let mut waiting = std::pin::pin!(waiting);
        assert!(is_pending(waiting.as_mut()).await);
        assert_eq!(bench.value(ClusterStat::UpstreamCxOverflow), 1);
        let refused = bench.acquire(Protocol::Http11).await.unwrap_err();
        assert_eq!(refused.reset_reason(), "overflow");
        assert!(matches!(
            refused,
            PoolFailure::Overflow(Overflow { resource: Resource::PendingRequests, .. })
        ));
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingOverflow), 1);
        exchange_and_release(first).await;
        let second = waiting.await.unwrap();
        assert!(second.is_reused());
        assert_eq!(second.connection_id(), id);
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingActive), 0);
    })
    .await;
}

#[tokio::test]
async fn a_place_that_comes_free_by_closing_opens_a_connection() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let thresholds = Thresholds { max_connections: 1, ..Thresholds::default() };
        let bench = Bench::new(peer.address, |config| with_thresholds(config, thresholds));
        let first = bench.h1().await;
        let host = bench.host();
        let waiting = host.pools.acquire(Protocol::Http11, DEFAULT, None);
        let mut waiting = std::pin::pin!(waiting);
        assert!(is_pending(waiting.as_mut()).await);
        first.close(true);
        assert!(!waiting.await.unwrap().is_reused());
        assert_eq!(bench.value(ClusterStat::UpstreamCxDestroyRemoteWithActiveRq), 1);
    })
    .await;
}

#[tokio::test]
async fn a_host_has_a_limit_of_connections_by_priority() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |config| {
            let per_host_max_connections = [Some(1), None];
            config.circuit_breakers = Arc::new(CircuitBreakers {
                per_host_max_connections,
                ..CircuitBreakers::default()
            });
        });
        let host = bench.host();
        let _first = bench.h1().await;
        let mut second = Box::pin(host.pools.acquire(Protocol::Http11, DEFAULT, None));
        assert!(is_pending(second.as_mut()).await);
        let high = || host.pools.acquire(Protocol::Http11, RoutingPriority::High, None);
        let _high = [high().await.unwrap(), high().await.unwrap()];
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 3);
    })
    .await;
}

#[tokio::test]
async fn active_requests_are_limited() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let thresholds = Thresholds { max_requests: 1, ..Thresholds::default() };
        let bench = Bench::new(peer.address, |config| with_thresholds(config, thresholds));
        let first = bench.h1().await;
        assert!(bench.acquire(Protocol::Http11).await.is_err());
        assert_eq!(bench.value(ClusterStat::UpstreamRqActiveOverflow), 1);
        drop(first);
        // The connection that opened for the refused one is there.
        assert!(bench.acquire(Protocol::Http11).await.is_ok());
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 2);
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_fails_all_who_wait() {
    on_local(async {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let bench = Bench::new(address, |_| {});
        let failure = bench.acquire(Protocol::Http11).await.unwrap_err();
        assert_eq!(failure.reset_reason(), "remote connection failure");
        assert_eq!(
            failure.transport_failure().map(|r| &**r),
            Some("delayed connect error: Connection refused")
        );
        eventually(|| bench.value(ClusterStat::UpstreamCxDestroyRemote) == 1).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxConnectFail), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingFailureEject), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);
        assert_eq!(bench.shared.breakers.count(Resource::Connections, DEFAULT), 0);
    })
    .await;
}

/// An address whose accept queue is full: connections to it hang.
fn black_hole() -> (socket2::Socket, Vec<socket2::Socket>, SocketAddr) {
    use socket2::{Domain, SockAddr, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = socket.connect(&address);
        socket
    });
    let fill = fill.collect();
    (listener, fill, address.as_socket().unwrap())
}

#[tokio::test]
async fn connecting_has_a_deadline() {
    on_local(async {
        let (_listener, _fill, address) = black_hole();
        let timeout = |config: &mut Cluster| config.connect_timeout = Duration::from_millis(20);
        let bench = Bench::new(address, timeout);
        let failure = bench.acquire(Protocol::Http11).await.unwrap_err();
        assert_eq!(failure, PoolFailure::Timeout);
        eventually(|| bench.value(ClusterStat::UpstreamCxDestroyLocal) == 1).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxConnectTimeout), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxConnectFail), 1);
    })
    .await;
}

#[tokio::test]
async fn a_request_given_up_leaves_its_connection_to_the_pool() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        {
            let host = bench.host();
            let mut waiting = Box::pin(host.pools.acquire(Protocol::Http11, DEFAULT, None));
            assert!(is_pending(waiting.as_mut()).await);
        }
        assert_eq!(bench.value(ClusterStat::UpstreamRqCancelled), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingActive), 0);
        eventually(|| peer.accepted.get() == 1).await;
        let lease = bench.h1().await;
        assert!(!lease.is_reused(), "it has served no request");
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 1);
    })
    .await;
}

/// Requests name the pools of a cluster with `auto_sni`.
#[tokio::test]
async fn pools_that_nobody_uses_go() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        let host = bench.host();
        for i in 0..50 {
            let server_name = Some(format!("{i}.test").into());
            let options = TransportSocketOptions { server_name, ..Default::default() };
            let options = Arc::new(options);
            let acquired = host.pools.acquire(Protocol::Http11, DEFAULT, Some(&options)).await;
            let mut lease = acquired.unwrap();
            exchange(&mut lease).await;
            // Not to be used again: its pool is left with nothing.
            drop(lease);
        }
        let left = host.pools.http.borrow().iter().count();
        assert!(left <= pools::KEPT, "{left}");
    })
    .await;
}

fn named(name: &str) -> Arc<TransportSocketOptions> {
    Arc::new(TransportSocketOptions { server_name: Some(name.into()), ..Default::default() })
}

fn one_pool(config: &mut Cluster) {
    with_thresholds(config, Thresholds { max_connection_pools: 1, ..Thresholds::default() });
}

/// What a name has left behind does not keep the next name from a pool; requests in flight do.
async fn an_idle_pool_makes_room(address: SocketAddr, protocol: Protocol) {
    let bench = Bench::new(address, one_pool);
    let (host, first, second) = (bench.host(), named("a.test"), named("b.test"));
    let lease = host.pools.acquire(protocol, DEFAULT, Some(&first)).await.unwrap();
    assert!(host.pools.acquire(protocol, DEFAULT, Some(&second)).await.unwrap_err().is_of_pools());
    assert_eq!(bench.value(ClusterStat::UpstreamCxPoolOverflow), 1);
    exchange_and_release(lease).await;
    for name in [&second, &first, &second] {
        let lease = host.pools.acquire(protocol, DEFAULT, Some(name)).await.unwrap();
        assert!(!lease.is_reused());
        exchange_and_release(lease).await;
    }
    assert_eq!(bench.value(ClusterStat::UpstreamCxPoolOverflow), 1);
    eventually(|| bench.value(ClusterStat::UpstreamCxActive) == 1).await;
    assert_eq!(bench.shared.breakers.count(Resource::ConnectionPools, DEFAULT), 1);
    host.pools.drain();
    eventually(|| bench.shared.breakers.count(Resource::ConnectionPools, DEFAULT) == 0).await;
}

#[tokio::test]
async fn idle_pools_make_room_for_others_of_their_host() {
    on_local(async {
        let peer = Peer::start(OK).await;
        an_idle_pool_makes_room(peer.address, Protocol::Http11).await;
        let peer = http2::Http2Peer::start(100).await;
        an_idle_pool_makes_room(peer.address, Protocol::Http2).await;
    })
    .await;
}

#[tokio::test]
async fn a_removed_hosts_connections_close() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        let (idle, busy) = (bench.h1().await, bench.h1().await);
        exchange_and_release(idle).await;
        let empty = crate::cluster::tests::cluster(&[], LbPolicy::RoundRobin);
        let old = bench.shared.hosts();
        let (set, change) = HostSet::of_assignment(&empty, &empty.load_assignment, Some(&old));
        bench.shared.publish(set, change);
        bench.cluster.refresh();
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 1);
        exchange_and_release(busy).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);
        assert_eq!(bench.shared.breakers.count(Resource::ConnectionPools, DEFAULT), 0);
    })
    .await;
}

#[tokio::test]
async fn tcp_connections_count_as_connection_and_request() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let thresholds = Thresholds { max_connections: 1, ..Thresholds::default() };
        let bench = Bench::new(peer.address, |config| with_thresholds(config, thresholds));
        let host = bench.host();
        let lease = host.pools.connect_tcp(DEFAULT, None).await.unwrap();
        assert_eq!(bench.value(ClusterStat::UpstreamRqActive), 1);
        let refused = host.pools.connect_tcp(DEFAULT, None).await.unwrap_err();
        assert_eq!(refused.reset_reason(), "overflow");
        assert_eq!(bench.value(ClusterStat::UpstreamCxOverflow), 1);
        lease.close(false, 10, 20);
        assert_eq!(bench.value(ClusterStat::UpstreamCxRxBytesTotal), 10);
        assert_eq!(bench.value(ClusterStat::UpstreamCxTxBytesTotal), 20);
        assert_eq!(bench.value(ClusterStat::UpstreamCxDestroyLocalWithActiveRq), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);
        assert!(host.pools.connect_tcp(DEFAULT, None).await.is_ok());
    })
    .await;
}

// Beside this stands what tokio and the kernel keep of a socket.
const _: () = assert!(http1::IDLE_BYTES <= 350);

const fn assert_not_send() {
    trait AmbiguousIfSend<A> {
        fn some_item() {}
    }
    impl<T: ?Sized> AmbiguousIfSend<()> for T {}
    impl<T: ?Sized + Send> AmbiguousIfSend<u8> for T {}
    let _ = <HostPools as AmbiguousIfSend<_>>::some_item;
}
const _: () = assert_not_send();

/// As every other connection for a client behind `original_src`.
#[tokio::test]
async fn a_tunnel_connects_as_whom_it_is_asked_to() {
    on_local(async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new(peer.address, |_| {});
        let source = OriginalSource { address: "127.0.0.3:0".parse().unwrap(), mark: 0 };
        let options =
            Arc::new(TransportSocketOptions { source: Some(source), ..Default::default() });
        let host = bench.host();
        let Acquire::Wait(wait) = host.pools.tunnel(DEFAULT, Some(&options), Bytes::new()) else {
            unreachable!("nothing is warm")
        };
        // Not everybody may take another's address; nobody connects as himself instead.
        if let Ok(lease) = wait.await {
            let local = lease.local_address().and_then(Address::ip);
            assert_eq!(local.map(|local| local.ip()), Some(source.address.ip()));
        }
    })
    .await;
}
