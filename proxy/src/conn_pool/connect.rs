//! Opening a connection within the cluster's `connect_timeout`.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::PoolFailure;
use super::record::CxRecord;
use crate::cluster::HostContext;
use crate::io::Io;
use crate::upstream;

/// Connects to the host and counts the outcome in `record`. Cancel-safe: dropping it closes the socket.
pub(super) async fn connect(
    host: &Rc<HostContext>,
    record: &mut CxRecord,
) -> Result<Io, PoolFailure> {
    let cluster = &host.cluster;
    let mut timeout = cluster.timers.timer();
    timeout.arm(Instant::now() + cluster.config.connect_timeout);
    let mut connecting = pin!(upstream::connect(&host.host.address, &cluster.config.socket));
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(PoolFailure::from));
        }
        timeout.poll(cx).map(|()| Err(PoolFailure::Timeout))
    })
    .await;
    match &outcome {
        Ok(io) => record.connected(io),
        Err(PoolFailure::Connect(error)) => record.connect_failed(false, error.local),
        Err(failure) => record.connect_failed(matches!(failure, PoolFailure::Timeout), true),
    }
    outcome
}
