//! `ORIGINAL_DST` clusters: a host for each destination that connections ask for, made when it is first asked for.
//!
//! Hosts are shared by all workers, so that there is one for an address, with one set of counts. One that nobody has
//! picked for `cleanup_interval`, and that has no connection, goes. The worker that adds the first host starts the
//! task that looks after them; it ends when none is left.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::host::{Host, HostSpec};
use super::shared::SharedCluster;
use crate::codec::head::RequestHead;
use crate::config::cluster::OriginalDst;
use crate::config::endpoint::HealthStatus;
use crate::stats::Block;
use crate::stats::names::ClusterStat;
use crate::stream_info::{Address, Metadata, StreamInfo};
use crate::worker::timers::Timers;

/// Filter state that names a destination.
const FILTER_STATE: &str = "envoy.network.transport_socket.original_dst_address";
/// Hosts of one cluster at most; Envoy has no limit. Past it, hosts without connections make room, so that a client
/// that tries every address there is fills no memory.
const MAX_HOSTS: usize = 16_384;

/// For how long a cluster whose hosts are all in use is taken to be full.
const FULL: Duration = Duration::from_millis(100);

/// Who asks for a host.
#[derive(Clone, Copy, Default)]
pub struct Asking<'a> {
    pub stream: Option<&'a StreamInfo>,
    pub head: Option<&'a RequestHead>,
}

/// Where the one who asks wants to go; `None` where nothing says.
pub(super) fn destination(
    config: &OriginalDst,
    asking: Asking<'_>,
    stats: &Block<ClusterStat>,
) -> Option<SocketAddr> {
    let parse = |text: &str| {
        let address = text.parse().ok();
        if address.is_none() {
            stats.inc(ClusterStat::OriginalDstHostInvalid);
        }
        address
    };
    let state = || asking.stream?.filter_state_string(FILTER_STATE)?.parse().ok();
    let metadata = || {
        let (key, stream) = (config.metadata_key.as_deref()?, asking.stream?);
        let value = [&stream.metadata, stream.connection.metadata()]
            .into_iter()
            .find_map(|metadata| text_at(metadata, key));
        parse(value?)
    };
    let header = || {
        let value = asking.head?.headers.get_str(config.http_header.as_ref()?)?;
        parse(value)
    };
    let connection = || {
        let connection = &asking.stream?.connection;
        connection.local.ip().filter(|_| connection.local_restored)
    };
    let mut to = state().or_else(metadata).or_else(header).or_else(connection)?;
    if let Some(port) = config.port_override {
        to.set_port(port);
    }
    Some(to)
}

/// The string at a path in metadata, or the first of a list of them.
fn text_at<'a>(metadata: &'a Metadata, key: &[Box<str>]) -> Option<&'a str> {
    let (namespace, path) = key.split_first()?;
    let (_, first) = metadata.iter().find(|(name, _)| **name == **namespace)?;
    let (start, rest) = path.split_first()?;
    let mut value = first.get(&**start)?;
    for segment in rest {
        value = value.get(&**segment)?;
    }
    value.as_array().and_then(|list| list.first()).unwrap_or(value).as_str()
}

/// The hosts of a cluster so far.
#[derive(Debug, Default)]
pub(super) struct Destinations(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// With the number of its coming: the admin interface lists them in that order.
    hosts: FxHashMap<SocketAddr, (u64, Arc<Host>)>,
    added: u64,
    /// A task removes what is no longer used.
    is_cleaned: bool,
    /// There was nothing to make room with, when it was last looked.
    full_since: Option<Instant>,
}

impl Destinations {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Box<[Arc<Host>]> {
        let inner = self.lock();
        let mut hosts: Vec<_> = inner.hosts.values().cloned().collect();
        hosts.sort_unstable_by_key(|(number, _)| *number);
        hosts.into_iter().map(|(_, host)| host).collect()
    }
}

impl Inner {
    /// Removes the hosts that are not to be kept; true where there were any.
    fn sweep(&mut self, keep: impl Fn(&Host) -> bool) -> bool {
        let before = self.hosts.len();
        self.hosts.retain(|_, (_, host)| {
            let kept = keep(host);
            if !kept {
                host.mark_removed();
            }
            kept
        });
        self.hosts.len() < before
    }
}

fn is_connected(host: &Host) -> bool {
    host.stats.cx_active.load(Ordering::Relaxed) > 0
        || host.stats.rq_pending_active.load(Ordering::Relaxed) > 0
}

impl SharedCluster {
    /// The host of a destination; `None` where there are too many already, all of them in use.
    pub(super) fn destination(
        self: &Arc<Self>,
        config: &OriginalDst,
        to: SocketAddr,
        timers: &Timers,
    ) -> Option<Arc<Host>> {
        let mut inner = self.destinations.lock();
        if let Some((_, host)) = inner.hosts.get(&to) {
            return Some(host.clone());
        }
        if inner.hosts.len() >= MAX_HOSTS && !self.make_room(&mut inner) {
            return None;
        }
        let host = Arc::new(Host::new(
            &self.config,
            HostSpec {
                address: Address::Ip(to),
                hostname: Some(format!("{}{to}", self.config.name).into()),
                locality: Arc::default(),
                metadata: None,
                priority: 0,
                weight: 1,
                health: HealthStatus::Unknown,
            },
        ));
        inner.added += 1;
        let number = inner.added;
        inner.hosts.insert(to, (number, host.clone()));
        self.write_membership(1, inner.hosts.len(), inner.hosts.len(), 0);
        if !std::mem::replace(&mut inner.is_cleaned, true) {
            let cluster = Arc::downgrade(self);
            tokio::task::spawn_local(clean(cluster, config.cleanup_interval, timers.clone()));
        }
        Some(host)
    }

    /// Removes hosts without connections. Every worker waits for it: where all are in use it is not tried again at once.
    fn make_room(&self, inner: &mut Inner) -> bool {
        if inner.full_since.is_some_and(|since| since.elapsed() < FULL) {
            return false;
        }
        let made = inner.sweep(is_connected);
        inner.full_since = (!made).then(Instant::now);
        if made {
            self.bump_generation();
        }
        made
    }

    /// Removes what was not picked since the last call and has no connection; false when none is left.
    fn clean_destinations(&self) -> bool {
        let mut inner = self.destinations.lock();
        if inner.sweep(|host| host.take_picked() || is_connected(host)) {
            let left = inner.hosts.len();
            self.write_membership(1, left, left, 0);
            self.bump_generation();
        }
        inner.is_cleaned = !inner.hosts.is_empty();
        inner.is_cleaned
    }
}

async fn clean(cluster: Weak<SharedCluster>, interval: Duration, timers: Timers) {
    loop {
        timers.sleep_until(Instant::now() + interval).await;
        match cluster.upgrade() {
            Some(cluster) if cluster.clean_destinations() => {}
            _ => return,
        }
    }
}
