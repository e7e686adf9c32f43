//! Stage 1: one accepted socket: listener filters, then the filter chain that fits.

pub mod by_address;
pub mod filters;
pub mod http_inspector;
pub mod limits;
mod original;
pub mod proxy_protocol;
pub mod sockets;
pub mod tls_inspector;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use self::filters::{ListenerFilters, Outcome};
use self::limits::OpenConnections;
use self::sockets::{BoundSocket, SocketHandle};
use crate::access_log::AccessLogs;
use crate::config::listener::Listener;
use crate::filter_chain::{self, WorkerChains};
use crate::io::Io;
use crate::stats::Block;
use crate::stats::names::{ListenerConfigStat, ListenerStat, ListenerWorkerStat};
use crate::stream_info::{Address, Metadata, TlsInspection};
use crate::tls::stats::SslStats;
use crate::upstream::OriginalSource;
use crate::worker::WorkerContext;
use crate::worker::connections::ConnectionHandle;

/// Longest wait after an accept that failed for want of resources (FAULTS F2).
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// One version of a listener on one worker. `!Send`.
pub struct WorkerListener {
    pub config: Arc<Listener>,
    pub chains: WorkerChains,
    /// What its connections keep of it.
    pub scope: Rc<ListenerScope>,
    filters: ListenerFilters,
    open: OpenConnections,
    /// Where its newer versions are found.
    slot: Weak<ListenerSlot>,
}

/// What a connection needs of its listener until its end: nothing of the filter chains, which may be many and hold
/// certificates, and go when the configuration does, however old their neighbours' connections are.
pub struct ListenerScope {
    pub name: Arc<str>,
    /// Position in the process's list; drains are by number.
    pub number: usize,
    pub worker: Rc<WorkerContext>,
    /// `per_connection_buffer_limit_bytes`.
    pub buffer_limit: usize,
    pub stats: Block<ListenerStat>,
    pub config_stats: Block<ListenerConfigStat>,
    pub worker_stats: Block<ListenerWorkerStat>,
    pub logs: AccessLogs,
    /// Where a filter chain's transport socket is TLS.
    pub ssl: Option<Rc<SslStats>>,
}

impl fmt::Debug for ListenerScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerScope").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Deref for WorkerListener {
    type Target = ListenerScope;

    fn deref(&self) -> &ListenerScope {
        &self.scope
    }
}

impl fmt::Debug for WorkerListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerListener").field("name", &self.config.name).finish_non_exhaustive()
    }
}

enum Acceptor {
    Tcp {
        listener: TcpListener,
        /// What every connection's own end is, where the socket is bound to one address; a wildcard's connections
        /// are asked one by one.
        local: Option<Address>,
    },
    Unix(UnixListener),
}

impl Acceptor {
    /// Must be called on the worker's runtime.
    fn new(socket: BoundSocket) -> io::Result<Self> {
        Ok(match socket {
            BoundSocket::Tcp(listener) => {
                let bound = canonical(listener.local_addr()?);
                // IP_TRANSPARENT lets in connections to any address.
                let transparent =
                    socket2::SockRef::from(&listener).ip_transparent_v4().unwrap_or(true);
                let one = !bound.ip().is_unspecified() && !transparent;
                let local = one.then_some(Address::Ip(bound));
                Self::Tcp { listener: TcpListener::from_std(listener)?, local }
            }
            BoundSocket::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }

    /// The address of our end, where it is known without asking the kernel.
    fn local(&self) -> Option<&Address> {
        match self {
            Self::Tcp { local, .. } => local.as_ref(),
            Self::Unix(_) => None,
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Io, Address)>> {
        match self {
            Self::Tcp { listener, .. } => listener
                .poll_accept(cx)
                .map_ok(|(stream, peer)| (Io::from(stream), Address::Ip(canonical(peer)))),
            Self::Unix(listener) => listener.poll_accept(cx).map_ok(|(stream, peer)| {
                let io = Io::from(stream);
                let peer = unix_peer(peer.as_pathname(), &io);
                (io, peer)
            }),
        }
    }
}

impl Acceptor {
    /// Takes who waits in the queue, without asking the reactor, whose word may be old: closing then refuses nobody who
    /// was let in. Those who go on coming are not waited for.
    fn take_rest(self, listener: &Rc<WorkerListener>) {
        let queue = listener.config.backlog.max(1);
        match self {
            Self::Tcp { listener: socket, local } => {
                let Ok(socket) = socket.into_std() else { return };
                for (io, peer) in rest(queue, || socket.accept()) {
                    let Ok(()) = io.set_nonblocking(true) else { continue };
                    if let Ok(io) = TcpStream::from_std(io) {
                        listener.admit(Io::from(io), Address::Ip(canonical(peer)), local.as_ref());
                    }
                }
            }
            Self::Unix(socket) => {
                let Ok(socket) = socket.into_std() else { return };
                for (io, peer) in rest(queue, || socket.accept()) {
                    let Ok(()) = io.set_nonblocking(true) else { continue };
                    if let Ok(io) = UnixStream::from_std(io) {
                        let io = Io::from(io);
                        let peer = unix_peer(peer.as_pathname(), &io);
                        listener.admit(io, peer, None);
                    }
                }
            }
        }
    }
}

/// What a socket that does not block still gives: `limit` at most.
fn rest<T>(limit: i32, mut accept: impl FnMut() -> io::Result<T>) -> impl Iterator<Item = T> {
    (0..limit)
        .map_while(move |_| match accept() {
            Ok(accepted) => Some(Some(accepted)),
            Err(error) if is_transient(&error) => Some(None),
            Err(_) => None,
        })
        .flatten()
}

/// A peer without a name goes by ours, as in Envoy.
fn unix_peer(path: Option<&Path>, io: &Io) -> Address {
    let path = path.and_then(Path::to_str).map(|path| Address::Pipe(path.into()));
    path.or_else(|| io.local_address().ok()).unwrap_or_else(|| Address::Pipe("".into()))
}

impl WorkerListener {
    /// `before`: its earlier version, of which the filter chains that stay are kept.
    fn new(
        config: Arc<Listener>,
        number: usize,
        worker: Rc<WorkerContext>,
        before: Option<&Self>,
        slot: Weak<ListenerSlot>,
    ) -> Rc<Self> {
        let scope = worker.registry.scope(&format!("listener.{}", config.stat_prefix));
        let worker_scope = scope.scope(&format!("worker_{}", worker.index));
        let is_tls = config.filter_chains.iter().any(|chain| chain.transport.is_some());
        for context in config.filter_chains.iter().filter_map(|chain| chain.transport.as_ref()) {
            context.count_in(&scope);
        }
        Rc::new(Self {
            chains: WorkerChains::new(&config, &worker, before.map(|before| &before.chains)),
            filters: ListenerFilters::new(&config, &worker),
            open: OpenConnections::of(&config.name),
            scope: Rc::new(ListenerScope {
                name: config.name.clone(),
                number,
                buffer_limit: config.per_connection_buffer_limit,
                ssl: is_tls.then(|| Rc::new(SslStats::new(&scope, true, worker.index))),
                stats: scope.block(worker.index),
                config_stats: scope.block(worker.index),
                worker_stats: worker_scope.block(worker.index),
                logs: worker.access_logs.bind(&config.access_log),
                worker,
            }),
            config,
            slot,
        })
    }

    /// The version that is in force by now; of a listener that has gone, its last.
    fn newest(self: Rc<Self>) -> Rc<Self> {
        self.slot.upgrade().map_or(self, |slot| slot.current())
    }

    fn count_accepted(&self, accepted: usize) {
        self.stats.record(ListenerStat::ConnectionsAcceptedPerSocketEvent, accepted as u64);
    }

    /// Serves a connection from `peer`, however it came, or closes it where there are too many; `local` is where it
    /// went, unless the socket says.
    pub fn admit(self: &Rc<Self>, io: Io, peer: Address, local: Option<&Address>) {
        if let Some(overflow) = self.open.refusal(&self.config) {
            return self.stats.inc(overflow);
        }
        let started = Instant::now();
        let local = match local.cloned().map_or_else(|| io.local_address(), Ok) {
            Ok(Address::Ip(addr)) => Address::Ip(canonical(addr)),
            Ok(other) => other,
            Err(_) => return,
        };
        let arrival =
            Arrival { io, read: BytesMut::new(), found: Found::new(local, peer), started };
        self.receive(arrival, self.config.use_original_dst);
    }

    /// Runs the listener filters. `hand_off`: a connection that they find to be redirected may go to another listener.
    fn receive(self: &Rc<Self>, mut arrival: Arrival, hand_off: bool) {
        let handle = self.worker.connections.enter(
            self.number,
            self.config.drain_type,
            Some(self.open.enter()),
        );
        let listener = self.clone();
        if self.filters.are_immediate() {
            // Nobody sees it move, but a gauge that was written is shown.
            self.stats.gauge_add(ListenerStat::DownstreamPreCxActive, 0);
            if !self.config.listener_filters.is_empty() {
                filters::run_immediate(&self.config, &mut arrival);
            }
            return listener.pass(arrival, handle, hand_off);
        }
        let key = handle.key();
        let task = tokio::task::spawn_local(async move {
            let entered = PreCx::enter(&listener);
            let outcome = listener.filters.run(&listener, &mut arrival, &handle).await;
            drop(entered);
            match outcome {
                Outcome::Passed => listener.newest().pass(arrival, handle, hand_off),
                Outcome::Refused => {
                    let Arrival { io, read, found, started } = arrival;
                    filter_chain::refuse(&listener, &io, &read, found, started);
                }
            }
        });
        self.worker.connections.set_task(key, task.abort_handle());
    }

    /// Every listener filter is content. A redirected connection goes to the listener of its destination, once; what
    /// its own listener filters find there counts.
    ///
    /// The version that is in force when a filter waits no longer is the one that serves it, as in Envoy: what has been
    /// forbidden meanwhile is.
    fn pass(self: Rc<Self>, mut arrival: Arrival, handle: ConnectionHandle, hand_off: bool) {
        let restored =
            arrival.found.local.ip().filter(|_| hand_off && arrival.found.local_restored);
        if let Some(target) = restored.and_then(|to| self.worker.listeners.find(to)) {
            arrival.found.metadata = Metadata::new();
            arrival.started = Instant::now();
            // It is on the target's list before it leaves this one's.
            return target.receive(arrival, false);
        }
        let Arrival { io, read, found, started } = arrival;
        filter_chain::start(&self, io, read, found, handle, started);
    }
}

impl ListenerScope {
    /// A connection that has found its filter chain.
    pub(crate) fn count_start(&self) {
        self.stats.inc(ListenerStat::DownstreamCxTotal);
        self.stats.gauge_inc(ListenerStat::DownstreamCxActive);
        self.worker_stats.inc(ListenerWorkerStat::DownstreamCxTotal);
        self.worker_stats.gauge_inc(ListenerWorkerStat::DownstreamCxActive);
    }

    /// Its end.
    pub(crate) fn count_end(&self, started: Instant) {
        self.stats.gauge_dec(ListenerStat::DownstreamCxActive);
        self.stats.inc(ListenerStat::DownstreamCxDestroy);
        self.stats.record(ListenerStat::DownstreamCxLengthMs, started.elapsed().as_millis() as u64);
        self.worker_stats.gauge_dec(ListenerWorkerStat::DownstreamCxActive);
    }
}

/// A connection that waits in listener filters, however that ends.
struct PreCx(Rc<ListenerScope>);

impl PreCx {
    fn enter(listener: &WorkerListener) -> Self {
        listener.stats.gauge_inc(ListenerStat::DownstreamPreCxActive);
        Self(listener.scope.clone())
    }
}

impl Drop for PreCx {
    fn drop(&mut self) {
        self.0.stats.gauge_dec(ListenerStat::DownstreamPreCxActive);
    }
}

/// A connection before its filter chain.
pub(super) struct Arrival {
    io: Io,
    /// What listener filters have read and left.
    read: BytesMut,
    found: Found,
    started: Instant,
}

/// A listener's place on one worker: its newest version, which the accept loops of its sockets serve.
#[derive(Debug)]
pub struct ListenerSlot(RefCell<Rc<WorkerListener>>);

impl ListenerSlot {
    /// The place of a new listener.
    pub fn new(config: Arc<Listener>, number: usize, worker: Rc<WorkerContext>) -> Rc<Self> {
        Rc::new_cyclic(|slot| {
            let listener = WorkerListener::new(config, number, worker, None, slot.clone());
            Self(RefCell::new(listener))
        })
    }

    /// The newest version.
    pub fn current(&self) -> Rc<WorkerListener> {
        self.0.borrow().clone()
    }

    /// New connections go to a new version; gives the one before.
    pub fn update(self: &Rc<Self>, config: Arc<Listener>) -> Rc<WorkerListener> {
        let before = self.current();
        let (number, worker, slot) = (before.number, before.worker.clone(), Rc::downgrade(self));
        let listener = WorkerListener::new(config, number, worker, Some(&before), slot);
        self.0.replace(listener)
    }

    /// Accepts until `stop`; then takes what is left in the queue and closes the socket. Each connection goes to the
    /// listener's newest version.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime.
    pub async fn accept_loop(
        self: Rc<Self>,
        socket: SocketHandle,
        stop: StopSignal,
    ) -> io::Result<()> {
        let socket = CloseAtEnd(socket);
        let own = loop {
            match socket.0.open() {
                Ok(Some(own)) => break own,
                Ok(None) => return Ok(()),
                Err(error) if stop.is_stopped() => return Err(error),
                // No descriptors left: there may be some later.
                Err(error) => self.back_off(&error).await,
            }
        };
        let acceptor = Acceptor::new(own)?;
        loop {
            let failed = poll_fn(|cx| {
                let mut accepted = 0;
                let listener = self.current();
                loop {
                    match acceptor.poll_accept(cx) {
                        Poll::Ready(Ok((io, peer))) => {
                            listener.admit(io, peer, acceptor.local());
                            accepted += 1;
                            if accepted >= listener.config.max_accepts_per_event {
                                listener.count_accepted(accepted);
                                cx.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
                        Poll::Pending => break,
                    }
                }
                if accepted > 0 {
                    listener.count_accepted(accepted);
                }
                if stop.poll(cx).is_ready() { Poll::Ready(None) } else { Poll::Pending }
            })
            .await;
            let Some(error) = failed else {
                acceptor.take_rest(&self.current());
                return Ok(());
            };
            if is_transient(&error) {
                continue;
            }
            if stop.is_stopped() {
                return Err(error);
            }
            self.back_off(&error).await;
        }
    }

    async fn back_off(&self, error: &io::Error) {
        let listener = self.current();
        tracing::warn!(listener = %listener.config.name, %error, "accept failed");
        listener.worker.timers.sleep_until(Instant::now() + ACCEPT_BACK_OFF).await;
    }
}

/// Closes a socket when its accept loop ends, however it ends.
struct CloseAtEnd(SocketHandle);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What listener filters found out.
#[derive(Debug)]
pub struct Found {
    pub local: Address,
    /// `local` is where the client dialled, as a filter has found out; not where the socket is.
    pub local_restored: bool,
    /// Upstream connections are to come from the client's address.
    pub source: Option<OriginalSource>,
    pub direct_local: Address,
    pub remote: Address,
    pub direct_remote: Address,
    /// Lower case.
    pub server_name: Option<Arc<str>>,
    /// Whether a ClientHello was looked for and what came of it.
    pub tls: TlsInspection,
    pub application_protocols: ApplicationProtocols,
    /// Dynamic metadata: namespace, then a struct.
    pub metadata: Metadata,
}

impl Found {
    fn new(local: Address, peer: Address) -> Self {
        Self {
            direct_local: local.clone(),
            local,
            local_restored: false,
            source: None,
            direct_remote: peer.clone(),
            remote: peer,
            server_name: None,
            tls: TlsInspection::None,
            application_protocols: ApplicationProtocols::None,
            metadata: Metadata::new(),
        }
    }
}

/// The protocols that a client wants to speak, for the choice of the filter chain.
#[derive(Debug, PartialEq, Eq)]
pub enum ApplicationProtocols {
    None,
    /// What plain bytes have shown.
    Seen(&'static str),
    /// The protocol name list of a ClientHello's ALPN.
    Offered(Box<[u8]>),
}

impl ApplicationProtocols {
    /// In the client's order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let (seen, offered): (_, &[u8]) = match self {
            Self::None => (None, &[]),
            Self::Seen(protocol) => (Some(*protocol), &[]),
            Self::Offered(list) => (None, list),
        };
        seen.into_iter().chain(tls_inspector::protocols(offered))
    }
}

/// A dual-stack socket's IPv4 peers are IPv4 peers.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Errors of one connection that was gone before it was accepted.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Tells an accept loop to end.
#[derive(Clone, Default)]
pub struct StopSignal(Rc<Stop>);

#[derive(Default)]
struct Stop {
    stopped: Cell<bool>,
    waker: RefCell<Vec<std::task::Waker>>,
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopSignal({})", self.0.stopped.get())
    }
}

impl StopSignal {
    pub fn stop(&self) {
        self.0.stopped.set(true);
        for waker in self.0.waker.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_stopped() {
            return Poll::Ready(());
        }
        let mut wakers = self.0.waker.borrow_mut();
        if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
