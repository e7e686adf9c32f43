//! Upstream connections of TCP proxies: one per downstream connection, never shared.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::PoolFailure;
use super::connect::{Transport, connect as open};
use super::record::{CxKind, CxRecord, PendingGuard, RqGuard};
use crate::cluster::HostContext;
use crate::cluster::host::Host;
use crate::config::cluster::RoutingPriority;
use crate::io::Io;
use crate::stats::names::ClusterStat;
use crate::stream_info::{Address, ByteMeter};

/// An upstream connection. Its places in the breakers and gauges are given back when it is dropped.
#[derive(Debug)]
pub struct TcpLease {
    pub io: Io,
    record: CxRecord,
    rq: RqGuard,
}

impl TcpLease {
    pub fn host(&self) -> &Arc<Host> {
        &self.rq.host().host
    }

    /// Unique in the process.
    pub fn connection_id(&self) -> u64 {
        self.record.id
    }

    /// Our end's address.
    pub fn local_address(&self) -> Option<&Address> {
        self.record.local.as_ref()
    }

    pub fn connect_duration(&self) -> Option<Duration> {
        self.record.connect_duration
    }

    pub(super) fn into_parts(self) -> (Io, CxRecord, RqGuard) {
        (self.io, self.record, self.rq)
    }

    /// Closes. `remote`: the peer reset the connection. `received` and `sent` are its bytes.
    pub fn close(mut self, remote: bool, received: u64, sent: u64) {
        self.rq.count_bytes(ByteMeter {
            wire_received: received,
            wire_sent: sent,
            ..ByteMeter::default()
        });
        self.record.end_with_request(remote);
    }
}

/// Opens a connection. A TCP proxy does not queue for one that may come free: at the limit it fails.
pub(super) async fn connect(
    host: &Rc<HostContext>,
    priority: RoutingPriority,
    transport: &Transport,
) -> Result<TcpLease, PoolFailure> {
    let mut record =
        CxRecord::new(host.clone(), priority, CxKind::Tcp, false).map_err(PoolFailure::Overflow)?;
    let pending = PendingGuard::new(host, priority).map_err(PoolFailure::Overflow)?;
    let io = match open(host, transport, &mut record).await {
        Ok(io) => io,
        Err(failure) => {
            host.cluster.stats.inc(ClusterStat::UpstreamRqPendingFailureEject);
            return Err(failure);
        }
    };
    drop(pending);
    let rq = RqGuard::unlimited(host, priority);
    record.requests = 1;
    record.end_with_request(false);
    Ok(TcpLease { io, record, rq })
}
