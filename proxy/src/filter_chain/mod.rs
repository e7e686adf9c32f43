//! Stage 2: the filter chain of one connection: found by its facts, network filters in order, then the terminal.

pub mod copy;
pub mod network_rbac;
pub mod tcp_proxy;
pub mod tcp_relay;

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use crate::config::filter_chain::{ConnectionFacts, FilterChain, NetworkFilter, Terminal};
use crate::config::listener::Listener;
use crate::format;
use crate::hcm::connection::HttpConnection;
use crate::hcm::live::HcmSlot;
use crate::io::Io;
use crate::listener::{Found, ListenerScope, WorkerListener};
use crate::stats::names::{ListenerConfigStat, ListenerStat};
use crate::stream_info::{ConnectionInfo, FilterState, ResponseFlags, StreamInfo, TlsInspection};
use crate::tls::{ServerContext, handshake};
use crate::upstream::{OriginalSource, TransportSocketOptions};
use crate::worker::WorkerContext;
use crate::worker::connections::{ConnectionHandle, ConnectionKey};
use network_rbac::{Denial, WorkerRbac};
use tcp_proxy::WorkerTcpProxy;

/// How long a handshake may take where `transport_socket_connect_timeout` is not set: Envoy waits for ever there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A listener's chains on one worker: what their filters need, made once.
pub struct WorkerChains {
    /// By the chain's number.
    terminals: FxHashMap<u64, WorkerTerminal>,
    /// Of chains that have filters before the terminal one.
    filters: FxHashMap<u64, Rc<[Rc<WorkerRbac>]>>,
}

#[derive(Clone)]
enum WorkerTerminal {
    Http(Rc<HcmSlot>),
    Tcp(Rc<WorkerTcpProxy>),
}

impl fmt::Debug for WorkerChains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerChains({})", self.terminals.len())
    }
}

impl WorkerChains {
    /// `before`: those of the listener's earlier version, of which chains that stay are kept.
    pub fn new(listener: &Listener, worker: &WorkerContext, before: Option<&Self>) -> Self {
        let mut terminals = FxHashMap::default();
        let mut filters = FxHashMap::default();
        for chain in listener.filter_chains.iter() {
            if let Some(terminal) = before.and_then(|before| before.terminals.get(&chain.id)) {
                terminals.insert(chain.id, terminal.clone());
                let kept = before.and_then(|before| before.filters.get(&chain.id));
                filters.extend(kept.map(|kept| (chain.id, kept.clone())));
                continue;
            }
            if !chain.filters.is_empty() {
                let live = chain.filters.iter().map(|NetworkFilter::Rbac(rbac)| {
                    Rc::new(WorkerRbac::new(rbac.clone(), worker))
                });
                filters.insert(chain.id, live.collect());
            }
            let live = match &chain.terminal {
                Terminal::Http(published) => {
                    WorkerTerminal::Http(Rc::new(HcmSlot::new(published.clone(), listener, worker)))
                }
                Terminal::TcpProxy(config) => {
                    WorkerTerminal::Tcp(Rc::new(WorkerTcpProxy::new(config.clone(), worker)))
                }
                Terminal::Close => continue,
            };
            terminals.insert(chain.id, live);
        }
        Self { terminals, filters }
    }

    /// A chain with what serves it.
    fn live(&self, chain: Arc<FilterChain>) -> LiveChain {
        LiveChain {
            filters: self.filters.get(&chain.id).cloned(),
            terminal: self.terminals.get(&chain.id).cloned(),
            config: chain,
        }
    }
}

/// A connection's chain until its terminal filter takes over.
struct LiveChain {
    config: Arc<FilterChain>,
    filters: Option<Rc<[Rc<WorkerRbac>]>>,
    terminal: Option<WorkerTerminal>,
}

/// A connection that has found its chain. Its end, when this is dropped, is logged and counted.
pub struct Entered {
    listener: Rc<ListenerScope>,
    info: Rc<ConnectionInfo>,
    handle: ConnectionHandle,
    /// What the listener's log says of it, where its terminal filter knows.
    stream: Cell<Option<Box<StreamInfo>>>,
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Deref for Entered {
    type Target = ConnectionHandle;

    fn deref(&self) -> &ConnectionHandle {
        &self.handle
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if !self.listener.logs.is_empty() {
            let stream = self.stream.take().map(|stream| *stream);
            log_connection(&self.listener, stream.unwrap_or_else(|| http_stream(&self.info)));
        }
        self.listener.count_end(self.info.started);
    }
}

/// Finds the chain of a connection that the listener filters have passed, and serves it in a task of its own:
/// no connection carries the room that another kind, or its own beginning, needs.
pub fn start(
    listener: &WorkerListener,
    io: Io,
    read: BytesMut,
    found: Found,
    handle: ConnectionHandle,
    started: Instant,
) {
    let chain = find(listener, &found);
    let info = connection_info(listener, found, chain.as_deref(), handle.key(), started);
    let Some(chain) = chain else {
        listener.stats.inc(ListenerStat::NoFilterChainMatch);
        let mut stream = stream_info(&info);
        stream.flags.insert(ResponseFlags::NO_ROUTE_FOUND);
        stream.set_details("filter_chain_not_found");
        end(listener, &io, &read, stream);
        return;
    };
    listener.count_start();
    handle.set_chain(chain.id);
    let scope = listener.scope.clone();
    let entered = Entered { listener: scope, info, handle, stream: Cell::new(None) };
    let live = listener.chains.live(chain);
    match live.config.transport.clone() {
        None => entered.admit(live, io, read),
        Some(context) => {
            let (connections, key) = (entered.listener.worker.connections.clone(), entered.key());
            let task = tokio::task::spawn_local(entered.secure(live, context, io, read));
            connections.set_task(key, task.abort_handle());
        }
    }
}

/// A connection that no terminal filter has seen: counted and logged as one would have, also where its task is ended.
struct Unserved<'a> {
    entered: &'a Entered,
    terminal: Option<&'a WorkerTerminal>,
    /// Why we close it.
    details: Option<Cow<'static, str>>,
    /// It was closed by us, and did not leave before.
    by_us: bool,
    received: u64,
    /// Somebody serves it now.
    is_over: bool,
}

impl Drop for Unserved<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let info = &self.entered.info;
        let mut stream = stream_info(info);
        stream.connection_termination_details = self.details.take();
        stream.bytes_received = self.received;
        match self.terminal {
            Some(WorkerTerminal::Tcp(proxy)) => proxy.refused(&mut stream, self.received),
            Some(WorkerTerminal::Http(slot)) => slot.refused(info, self.by_us, self.received),
            None => {}
        }
        self.entered.leave(|| stream);
    }
}

impl LiveChain {
    fn unserved<'a>(&'a self, entered: &'a Entered) -> Unserved<'a> {
        let terminal = self.terminal.as_ref();
        Unserved { entered, terminal, details: None, by_us: true, received: 0, is_over: false }
    }
}

impl Entered {
    /// The connection's bytes are plain from here on: the network filters have their say.
    fn admit(self, chain: LiveChain, mut io: Io, mut read: BytesMut) {
        let filters = chain.filters.as_deref().unwrap_or_default();
        let Some(denial) = self.denial(filters) else {
            return self.run(chain.terminal, io, read);
        };
        let (connections, key) = (self.listener.worker.connections.clone(), self.handle.key());
        let task = tokio::task::spawn_local(async move {
            self.deny(&chain, denial, &mut io, &mut read).await;
        });
        connections.set_task(key, task.abort_handle());
    }

    /// Makes the handshake first. `read` is what has come of it.
    async fn secure(self, chain: LiveChain, context: Arc<ServerContext>, io: Io, read: BytesMut) {
        let mut unserved = chain.unserved(&self);
        match self.shake_hands(&mut unserved, &chain.config, context, io, read).await {
            Some(io) => {
                unserved.is_over = true;
                drop(unserved);
                self.admit(chain, io, BytesMut::new());
            }
            None => drop(unserved),
        }
    }

    async fn shake_hands(
        &self,
        unserved: &mut Unserved<'_>,
        chain: &FilterChain,
        context: Arc<ServerContext>,
        io: Io,
        read: BytesMut,
    ) -> Option<Io> {
        let listener = &self.listener;
        let mut timer = listener.worker.timers.timer();
        let timeout = chain.transport_socket_connect_timeout.filter(|timeout| !timeout.is_zero());
        timer.arm(Instant::now() + timeout.unwrap_or(HANDSHAKE_TIMEOUT));
        let mut shaking = Box::pin(handshake::accept(io, read, &context, listener.ssl.as_deref()));
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(outcome) = shaking.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            timer.poll(cx).map(|()| None)
        })
        .await;
        drop(shaking);
        unserved.by_us = outcome.is_none();
        let failure = match outcome {
            Some(Ok((mut stream, established))) => {
                stream.count_in(listener.ssl.clone());
                if let Some(ssl) = &listener.ssl {
                    ssl.established(&established);
                }
                // Nobody else sets it.
                let _ = self.info.tls.set(stream.info().clone());
                return Some(Io::from(stream));
            }
            Some(Err(failure)) => {
                if let Some(ssl) = &listener.ssl {
                    ssl.failed(&failure, true);
                }
                if let Some(info) = failure.info {
                    // For the logs; nothing else looks at it.
                    let _ = self.info.tls.set(info);
                }
                failure.reason
            }
            None => {
                listener.stats.inc(ListenerStat::DownstreamCxTransportSocketConnectTimeout);
                unserved.details = Some("transport socket timeout was reached".into());
                "connect timeout".into()
            }
        };
        if !failure.is_empty() {
            let _ = self.info.transport_failure.set(failure);
        }
        None
    }

    /// Asks the chain's network filters.
    fn denial(&self, filters: &[Rc<WorkerRbac>]) -> Option<Denial> {
        if filters.is_empty() {
            return None;
        }
        let mut metadata = self.info.found.clone();
        let denial = filters.iter().find_map(|rbac| rbac.denial(&self.info, &mut metadata));
        if !metadata.is_empty() {
            // Nobody else sets it.
            let _ = self.info.left.set(Box::new(metadata));
        }
        denial
    }

    /// Closed by a network filter.
    async fn deny(&self, chain: &LiveChain, mut denial: Denial, io: &mut Io, read: &mut BytesMut) {
        let worker = &self.listener.worker;
        let mut unserved = chain.unserved(self);
        let half_close = matches!(chain.terminal, Some(WorkerTerminal::Tcp(_)));
        let heard = denial.wait_for_a_byte(io, read, &self.handle, worker).await;
        unserved.received = read.len() as u64;
        if heard {
            denial.delay(io, read, &self.handle, worker, half_close).await;
        }
        let told = heard || half_close;
        unserved.by_us = told && !denial.client_left();
        unserved.received = read.len() as u64;
        unserved.details = denial.close(told);
    }

    /// What the listener's log is to say.
    fn leave(&self, stream: impl FnOnce() -> StreamInfo) {
        if !self.listener.logs.is_empty() {
            self.stream.set(Some(Box::new(stream())));
        }
    }

    /// The chain's terminal filter takes the connection over.
    fn run(self, terminal: Option<WorkerTerminal>, io: Io, read: BytesMut) {
        let (listener, info) = (self.listener.clone(), self.info.clone());
        let worker = listener.worker.clone();
        let (connections, key) = (worker.connections.clone(), self.handle.key());
        let task = match terminal {
            Some(WorkerTerminal::Http(slot)) => {
                let limit = listener.buffer_limit;
                let connection = HttpConnection { worker, slot, info, handle: self, limit };
                tokio::task::spawn_local(connection.serve(io, read))
            }
            Some(WorkerTerminal::Tcp(proxy)) => {
                let connection = tcp_proxy::TcpConnection { worker, proxy, info, handle: self };
                tokio::task::spawn_local(connection.serve(io, read))
            }
            // No filters: closed at once.
            None => {
                let stat = ListenerConfigStat::NetworkExtensionConfigMissing;
                listener.config_stats.inc(stat);
                return;
            }
        };
        connections.set_task(key, task.abort_handle());
    }
}

/// A connection that a listener filter has ended.
pub fn refuse(listener: &WorkerListener, io: &Io, read: &[u8], found: Found, started: Instant) {
    let info = connection_info(listener, found, None, ConnectionKey::NONE, started);
    end(listener, io, read, stream_info(&info));
}

/// The end of a connection that found no chain.
fn end(listener: &WorkerListener, io: &Io, read: &[u8], stream: StreamInfo) {
    if !read.is_empty() {
        io.reset_on_drop();
    }
    log_connection(listener, stream);
}

fn connection_info(
    listener: &WorkerListener,
    found: Found,
    chain: Option<&FilterChain>,
    key: ConnectionKey,
    started: Instant,
) -> Rc<ConnectionInfo> {
    Rc::new(ConnectionInfo {
        id: listener.worker.next_id(),
        remote: found.remote,
        direct_remote: found.direct_remote,
        local: found.local,
        local_restored: found.local_restored,
        upstream_options: found.source.map(as_client),
        direct_local: found.direct_local,
        requested_server_name: found.server_name,
        tls_inspection: found.tls,
        is_tls: chain.is_some_and(|chain| chain.transport.is_some()),
        started,
        key,
        filter_chain_name: chain.map_or_else(|| "".into(), |c| c.name.clone()),
        listener_name: listener.config.name.clone(),
        state: FilterState::default(),
        found: found.metadata,
        ..ConnectionInfo::default()
    })
}

/// What asks for upstream connections from the client's address.
fn as_client(source: OriginalSource) -> Arc<TransportSocketOptions> {
    Arc::new(TransportSocketOptions { source: Some(source), ..TransportSocketOptions::default() })
}

/// A connection's own stream.
fn stream_info(info: &Rc<ConnectionInfo>) -> StreamInfo {
    let wall = SystemTime::now() - info.started.elapsed();
    let mut stream = StreamInfo::new(info.clone(), info.id, info.started, wall);
    stream.metadata.clone_from(info.metadata());
    stream
}

fn find(listener: &WorkerListener, found: &Found) -> Option<Arc<FilterChain>> {
    let ip = |address: &crate::stream_info::Address| {
        address.ip().map(|a| (a.ip().to_canonical(), a.port()))
    };
    let protocols: Vec<&str> = found.application_protocols.iter().collect();
    let facts = ConnectionFacts {
        destination: ip(&found.local),
        source: ip(&found.remote),
        direct_source: ip(&found.direct_remote).map(|(ip, _)| ip),
        server_name: found.server_name.as_deref().unwrap_or(""),
        // Who was not looked at passes for plain, as in Envoy.
        transport_protocol: if found.tls == TlsInspection::Found { "tls" } else { "raw_buffer" },
        application_protocols: &protocols,
    };
    listener.config.filter_chains.find(&facts).cloned()
}

/// A connection of the connection manager, at its end.
fn http_stream(info: &Rc<ConnectionInfo>) -> StreamInfo {
    let mut stream = stream_info(info);
    stream.protocol = info.protocol.get();
    stream.bytes_received = info.wire_received.get();
    stream.bytes_sent = info.wire_sent.get();
    stream
}

/// The listener's own access log, one line for each connection.
fn log_connection(listener: &ListenerScope, mut stream: StreamInfo) {
    if listener.logs.is_empty() {
        return;
    }
    stream.timing.end.get_or_insert_with(Instant::now);
    let mut cx = format::Ctx::new(&stream);
    cx.access_log_type = format::AccessLogType::NotSet;
    listener.logs.log(&cx);
}
