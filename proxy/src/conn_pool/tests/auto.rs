//! Connections that leave their protocol to ALPN; without TLS that is HTTP/1.

use super::*;
use crate::config::protocol_options::UpstreamProtocolChoice;

impl Bench {
    fn new_auto(peer: &Peer, change: impl FnOnce(&mut Cluster)) -> Self {
        Self::new(peer.address, |config| {
            with_http(config, |http| http.choice = UpstreamProtocolChoice::Auto);
            change(config);
        })
    }

    async fn auto(&self) -> Result<Lease, PoolFailure> {
        match self.host().pools.try_acquire_negotiated(DEFAULT, None)? {
            Acquire::Ready(lease) => Ok(lease),
            Acquire::Wait(wait) => wait.await,
        }
    }
}

fn one_connection(config: &mut Cluster) {
    with_thresholds(config, Thresholds { max_connections: 1, ..Thresholds::default() });
}

#[tokio::test]
async fn requests_wait_where_no_more_connections_may_be_opened() {
    let test = async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new_auto(&peer, one_connection);
        let mut first = Box::pin(bench.auto());
        let mut second = Box::pin(bench.auto());
        let mut third = Box::pin(bench.auto());
        assert!(is_pending(first.as_mut()).await);
        assert!(is_pending(second.as_mut()).await);
        assert!(is_pending(third.as_mut()).await);
        let lease = first.await.unwrap();
        // Once for each of the others as it came, and once when the connection had served the first.
        assert_eq!(bench.value(ClusterStat::UpstreamCxOverflow), 3);
        assert!(is_pending(second.as_mut()).await);
        // One that comes free serves who waits longest.
        exchange_and_release(lease).await;
        let lease = second.await.unwrap();
        assert!(lease.is_reused());
        assert_eq!(peer.accepted.get(), 1);
        // One that ends leaves its place.
        lease.close(false);
        let lease = third.await.unwrap();
        assert!(!lease.is_reused());
        exchange_and_release(lease).await;
        assert_eq!(peer.accepted.get(), 2);
        exchange_and_release(bench.auto().await.unwrap()).await;
        assert_eq!(peer.accepted.get(), 2);
        assert_eq!(bench.value(ClusterStat::UpstreamCxHttp1Total), 2);
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingTotal), 3);
        assert_eq!(bench.value(ClusterStat::UpstreamRqPendingActive), 0);
        assert_eq!(bench.value(ClusterStat::UpstreamCxActive), 1);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn who_gives_up_leaves_the_connection_to_the_next() {
    let test = async {
        let peer = Peer::start(OK).await;
        let bench = Bench::new_auto(&peer, one_connection);
        let mut first = Box::pin(bench.auto());
        assert!(is_pending(first.as_mut()).await);
        drop(first);
        assert_eq!(bench.value(ClusterStat::UpstreamRqCancelled), 1);
        exchange_and_release(bench.auto().await.unwrap()).await;
        assert_eq!(peer.accepted.get(), 1);
    };
    LocalSet::new().run_until(test).await;
}
