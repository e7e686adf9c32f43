//! HTTP/2 pools against a peer on the crate h2.

use super::*;
use bytes::Bytes;
use h2::server::{Builder, Handshake, SendResponse};
use http::Response;
use std::cell::RefCell;

/// How the peer is told to behave.
#[derive(Default)]
struct Orders {
    /// Sends GOAWAY on every connection.
    go_away: Notify,
    /// Cuts every connection.
    cut: Notify,
    /// Requests are kept in `held` instead of being answered.
    hold: Cell<bool>,
    held: RefCell<Vec<SendResponse<Bytes>>>,
}

pub(super) struct Http2Peer {
    pub(super) address: SocketAddr,
    accepted: Rc<Cell<usize>>,
    orders: Rc<Orders>,
}

impl Http2Peer {
    /// Answers every request at once with 200; admits `streams` at a time on a connection.
    pub(super) async fn start(streams: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Self {
            address: listener.local_addr().unwrap(),
            accepted: Rc::default(),
            orders: Rc::default(),
        };
        let (accepted, orders) = (peer.accepted.clone(), peer.orders.clone());
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.set(accepted.get() + 1);
                let handshake = Builder::new().max_concurrent_streams(streams).handshake(stream);
                spawn_local(serve(handshake, orders.clone()));
            }
        });
        peer
    }
}

async fn serve(handshake: Handshake<TcpStream, Bytes>, orders: Rc<Orders>) {
    let Ok(mut connection) = handshake.await else { return };
    loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(Ok((_, respond))) if orders.hold.get() => {
                    orders.held.borrow_mut().push(respond);
                }
                Some(Ok((_, mut respond))) => {
                    respond.send_response(Response::new(()), true).unwrap();
                }
                Some(Err(_)) | None => return,
            },
            () = orders.go_away.notified() => connection.graceful_shutdown(),
            () = orders.cut.notified() => return,
        }
    }
}

impl Bench {
    fn new_http2(peer: &Http2Peer, change: impl FnOnce(&mut UpstreamHttpOptions)) -> Self {
        Self::new(peer.address, |config| with_http(config, change))
    }

    async fn h2(&self) -> Lease {
        self.acquire(Protocol::Http2).await.unwrap()
    }

    /// Does one request, so that the peer's SETTINGS have come.
    async fn warm_up(&self) {
        exchange_and_release(self.h2().await).await;
    }
}

#[tokio::test]
async fn streams_share_a_connection() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench = Bench::new_http2(&peer, |_| {});
        let (mut a, mut b) = (bench.h2().await, bench.h2().await);
        assert_eq!(a.protocol(), Protocol::Http2);
        assert!(!a.is_reused() && b.is_reused());
        assert_eq!(a.connection_id(), b.connection_id());
        assert_eq!(exchange(&mut a).await, 200);
        assert_eq!(exchange(&mut b).await, 200);
        assert_eq!(bench.value(ClusterStat::UpstreamRqActive), 2);
        a.release(true, Instant::now());
        b.release(true, Instant::now());
        assert_eq!(bench.value(ClusterStat::UpstreamRqActive), 0);
        assert_eq!(bench.value(ClusterStat::UpstreamCxHttp2Total), 1);
        assert_eq!(peer.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn another_connection_opens_when_the_peers_limit_is_reached() {
    on_local(async {
        let peer = Http2Peer::start(2).await;
        let bench = Bench::new_http2(&peer, |_| {});
        bench.warm_up().await;
        let leases = [bench.h2().await, bench.h2().await, bench.h2().await];
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 2);
        assert_eq!(leases[0].connection_id(), leases[1].connection_id());
        assert_ne!(leases[0].connection_id(), leases[2].connection_id());
    })
    .await;
}

#[tokio::test]
async fn our_own_limit_counts_too_and_streams_that_end_serve_who_waits() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let thresholds = Thresholds { max_connections: 1, ..Thresholds::default() };
        let bench = Bench::new(peer.address, |config| {
            with_thresholds(config, thresholds);
            with_http(config, |http| http.http2.max_concurrent_streams = 1);
        });
        let first = bench.h2().await;
        let id = first.connection_id();
        let host = bench.host();
        let waiting = host.pools.acquire(Protocol::Http2, DEFAULT, None);
        let mut waiting = std::pin::pin!(waiting);
        assert!(is_pending(waiting.as_mut()).await);
        exchange_and_release(first).await;
        assert_eq!(waiting.await.unwrap().connection_id(), id);
        assert_eq!(bench.value(ClusterStat::UpstreamCxOverflow), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_going_away_takes_no_new_streams() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench = Bench::new_http2(&peer, |_| {});
        peer.orders.hold.set(true);
        let mut old = bench.h2().await;
        old.send_head(&get(), true);
        poll_fn(|cx| old.poll_flush(cx)).await.unwrap();
        eventually(|| peer.orders.held.borrow().len() == 1).await;
        peer.orders.go_away.notify_waiters();
        eventually(|| bench.value(ClusterStat::UpstreamCxCloseNotify) == 1).await;
        let new = bench.h2().await;
        assert!(!new.is_reused());
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 2);
        // What was on its way is still answered; then the old connection ends.
        let mut respond = peer.orders.held.borrow_mut().pop().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        let (head, _) = poll_fn(|cx| old.poll_head(cx)).await.unwrap();
        assert_eq!(head.status, 200);
        old.release(true, Instant::now());
        eventually(|| bench.value(ClusterStat::UpstreamCxActive) == 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_cut_connection_is_the_peers_end() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench = Bench::new_http2(&peer, |_| {});
        bench.warm_up().await;
        peer.orders.cut.notify_waiters();
        eventually(|| bench.value(ClusterStat::UpstreamCxDestroyRemote) == 1).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 0);
        bench.warm_up().await;
        assert_eq!(peer.accepted.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn idle_connections_and_those_at_their_request_limit_end() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let short = Some(Duration::from_millis(3));
        let bench = Bench::new_http2(&peer, |http| http.common.idle_timeout = short);
        bench.warm_up().await;
        eventually(|| bench.value(ClusterStat::UpstreamCxDestroyLocal) == 1).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxIdleTimeout), 1);

        // A limit to their age, which is far, does not keep the driver from looking before.
        let bench = Bench::new_http2(&peer, |http| {
            http.common.idle_timeout = short;
            http.common.max_connection_duration = Some(Duration::from_secs(3600));
        });
        bench.warm_up().await;
        bench.warm_up().await;
        eventually(|| bench.value(ClusterStat::UpstreamCxIdleTimeout) > 0).await;

        let limit = |http: &mut UpstreamHttpOptions| {
            http.common.max_requests_per_connection = Some(1);
        };
        let bench = Bench::new_http2(&peer, limit);
        bench.warm_up().await;
        bench.warm_up().await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxMaxRequests), 2);
        eventually(|| bench.value(ClusterStat::UpstreamCxDestroyLocal) == 2).await;
    })
    .await;
}

#[tokio::test]
async fn a_drained_pool_lets_streams_finish() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench = Bench::new_http2(&peer, |_| {});
        let mut lease = bench.h2().await;
        bench.host().pools.drain();
        assert_eq!(exchange(&mut lease).await, 200);
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 1);
        lease.release(true, Instant::now());
        eventually(|| bench.value(ClusterStat::UpstreamCxActive) == 0).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxDestroyLocal), 1);
    })
    .await;
}

#[tokio::test]
async fn many_waiters_open_no_more_connections_than_they_need() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench = Bench::new_http2(&peer, |_| {});
        let host = bench.host();
        let mut waiting: Vec<_> =
            (0..20).map(|_| Box::pin(host.pools.acquire(Protocol::Http2, DEFAULT, None))).collect();
        for waiting in &mut waiting {
            assert!(is_pending(waiting.as_mut()).await);
        }
        let mut leases = Vec::new();
        for waiting in waiting {
            leases.push(waiting.await.unwrap());
        }
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 1);
        assert_eq!(peer.accepted.get(), 1);
    })
    .await;
}

/// One stream at a time on a connection, and so many connections.
fn narrow(
    connections: u32,
    change: impl FnOnce(&mut UpstreamHttpOptions),
) -> impl FnOnce(&mut Cluster) {
    move |config| {
        let thresholds = Thresholds { max_connections: connections, ..Thresholds::default() };
        with_thresholds(config, thresholds);
        with_http(config, |http| {
            http.http2.max_concurrent_streams = 1;
            change(http);
        });
    }
}

#[tokio::test]
async fn a_connection_that_takes_no_more_streams_counts_until_it_ends() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let once = |http: &mut UpstreamHttpOptions| {
            http.common.max_requests_per_connection = Some(1);
        };
        let bench = Bench::new(peer.address, narrow(1, once));
        let first = bench.h2().await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxMaxRequests), 1);
        let host = bench.host();
        let waiting = host.pools.acquire(Protocol::Http2, DEFAULT, None);
        let mut waiting = std::pin::pin!(waiting);
        assert!(is_pending(waiting.as_mut()).await);
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 1);
        assert_eq!(bench.value(ClusterStat::UpstreamCxOverflow), 1);
        exchange_and_release(first).await;
        assert!(!waiting.await.unwrap().is_reused());
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 2);
    })
    .await;
}

#[tokio::test]
async fn who_waits_has_the_place_of_a_connection_that_took_no_more_streams() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench = Bench::new(peer.address, narrow(2, |_| {}));
        peer.orders.hold.set(true);
        let mut unlisted = bench.h2().await;
        unlisted.send_head(&get(), true);
        poll_fn(|cx| unlisted.poll_flush(cx)).await.unwrap();
        eventually(|| peer.orders.held.borrow().len() == 1).await;
        peer.orders.go_away.notify_waiters();
        eventually(|| bench.value(ClusterStat::UpstreamCxCloseNotify) == 1).await;
        let full = bench.h2().await;
        let host = bench.host();
        let waiting = host.pools.acquire(Protocol::Http2, DEFAULT, None);
        let mut waiting = std::pin::pin!(waiting);
        assert!(is_pending(waiting.as_mut()).await);
        drop(unlisted);
        let third = waiting.await.unwrap();
        assert!(!third.is_reused());
        assert_ne!(third.connection_id(), full.connection_id());
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 3);
    })
    .await;
}

#[tokio::test]
async fn connections_open_for_as_many_as_each_may_serve() {
    on_local(async {
        let peer = Http2Peer::start(100).await;
        let bench =
            Bench::new_http2(&peer, |http| http.common.max_requests_per_connection = Some(2));
        let host = bench.host();
        let mut waiting: Vec<_> =
            (0..5).map(|_| Box::pin(host.pools.acquire(Protocol::Http2, DEFAULT, None))).collect();
        for waiting in &mut waiting {
            assert!(is_pending(waiting.as_mut()).await);
        }
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 3);
        let mut leases = Vec::new();
        for waiting in waiting {
            leases.push(waiting.await.unwrap());
        }
        assert_eq!(bench.value(ClusterStat::UpstreamCxTotal), 3);
    })
    .await;
}

/// A pool's place among pools is free when its last connection has ended, whoever asks for it.
#[tokio::test]
async fn a_pool_without_connections_leaves_its_place_to_other_hosts() {
    on_local(async {
        let (peer, other) = (Http2Peer::start(100).await, Http2Peer::start(100).await);
        let bench = Bench::new(peer.address, |config| {
            one_pool(config);
            let endpoints = &mut config.load_assignment.localities[0].endpoints;
            let mut second = endpoints[0].clone();
            second.address = ConfigAddress::Ip { addr: other.address, ipv4_compat: false };
            *endpoints = [endpoints[0].clone(), second].into();
        });
        let (first, second) = (bench.host(), bench.host());
        assert_ne!(first.address, second.address);
        let lease = first.pools.acquire(Protocol::Http2, DEFAULT, None).await.unwrap();
        exchange_and_release(lease).await;
        assert!(second.pools.acquire(Protocol::Http2, DEFAULT, None).await.is_err());
        peer.orders.cut.notify_waiters();
        other.orders.cut.notify_waiters();
        eventually(|| bench.value(ClusterStat::UpstreamCxActive) == 0).await;
        let lease = second.pools.acquire(Protocol::Http2, DEFAULT, None).await.unwrap();
        exchange_and_release(lease).await;
        assert_eq!(bench.value(ClusterStat::UpstreamCxPoolOverflow), 1);
    })
    .await;
}
