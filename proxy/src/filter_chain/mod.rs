//! Stage 2: the filter chain of one connection: found by its facts, network filters in order, then the terminal.

pub mod copy;
pub mod network_rbac;
pub mod tcp_proxy;

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use crate::config::filter_chain::{ConnectionFacts, FilterChain, NetworkFilter, Terminal};
use crate::config::listener::Listener;
use crate::format;
use crate::hcm::connection::HttpConnection;
use crate::hcm::live::HcmSlot;
use crate::io::Io;
use crate::listener::{Found, WorkerListener};
use crate::stats::names::ListenerStat;
use crate::stream_info::{ConnectionInfo, FilterState, ResponseFlags, StreamInfo};
use crate::worker::WorkerContext;
use crate::worker::connections::ConnectionHandle;
use tcp_proxy::WorkerTcpProxy;

/// A listener's chains on one worker: what their terminals need, made once.
pub struct WorkerChains(FxHashMap<*const FilterChain, WorkerTerminal>);

enum WorkerTerminal {
    Http(Rc<HcmSlot>),
    Tcp(Rc<WorkerTcpProxy>),
}

impl fmt::Debug for WorkerChains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerChains({})", self.0.len())
    }
}

impl WorkerChains {
    /// The chains live as long as `listener`, whose addresses are the keys.
    pub fn new(listener: &Listener, worker: &WorkerContext) -> Self {
        let mut chains = FxHashMap::default();
        for chain in listener.filter_chains.iter() {
            let live = match &chain.terminal {
                Terminal::Http(published) => WorkerTerminal::Http(Rc::new(HcmSlot::new(
                    published.clone(),
                    listener.stat_prefix.clone(),
                    worker,
                ))),
                Terminal::TcpProxy(config) => {
                    WorkerTerminal::Tcp(Rc::new(WorkerTcpProxy::new(config.clone(), worker)))
                }
                Terminal::Close => continue,
            };
            chains.insert(Arc::as_ptr(chain), live);
        }
        Self(chains)
    }
}

/// A connection that has found its chain. Its end, when this is dropped, is logged and counted.
#[derive(Debug)]
pub struct Entered {
    listener: Rc<WorkerListener>,
    info: Rc<ConnectionInfo>,
    handle: ConnectionHandle,
    details: Option<&'static str>,
}

impl Deref for Entered {
    type Target = ConnectionHandle;

    fn deref(&self) -> &ConnectionHandle {
        &self.handle
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        log_connection(&self.listener, &self.info, self.details);
        self.listener.count_end(self.info.started);
    }
}

/// Finds the chain of a connection that the listener filters have passed, and serves it in a task of its own:
/// no connection carries the room that another kind, or its own beginning, needs.
pub fn start(
    listener: Rc<WorkerListener>,
    io: Io,
    read: BytesMut,
    found: Found,
    handle: ConnectionHandle,
    started: Instant,
) {
    let chain = find(&listener, &found);
    let info = Rc::new(ConnectionInfo {
        id: listener.worker.next_id(),
        remote: found.remote,
        direct_remote: found.direct_remote,
        local: found.local,
        direct_local: found.direct_local,
        requested_server_name: found.server_name,
        is_tls: io.is_tls(),
        started,
        filter_chain_name: chain.as_ref().map_or_else(|| "".into(), |c| c.name.clone()),
        listener_name: listener.config.name.clone(),
        state: FilterState::default(),
    });
    let Some(chain) = chain else {
        listener.stats.inc(ListenerStat::NoFilterChainMatch);
        log_connection(&listener, &info, Some("filter_chain_not_found"));
        return;
    };
    listener.count_start();
    let entered = Entered { listener, info, handle, details: None };
    if chain.filters.is_empty() {
        return entered.run(&chain, io, read);
    }
    tokio::task::spawn_local(async move {
        for filter in &chain.filters {
            let NetworkFilter::Rbac(rbac) = filter;
            if !rbac.admit(&entered.info, &entered.listener.worker).await {
                return entered.deny("rbac_access_denied");
            }
        }
        entered.run(&chain, io, read);
    });
}

impl Entered {
    /// Closed by a network filter.
    fn deny(mut self, details: &'static str) {
        self.details = Some(details);
    }

    /// The chain's terminal filter takes the connection over.
    fn run(self, chain: &Arc<FilterChain>, io: Io, read: BytesMut) {
        let (listener, info) = (self.listener.clone(), self.info.clone());
        let worker = listener.worker.clone();
        let limit = listener.config.per_connection_buffer_limit;
        match listener.chains.0.get(&Arc::as_ptr(chain)) {
            Some(WorkerTerminal::Http(slot)) => {
                let slot = slot.clone();
                let connection = HttpConnection { worker, slot, info, handle: self, limit };
                tokio::task::spawn_local(connection.serve(io, read));
            }
            Some(WorkerTerminal::Tcp(proxy)) => {
                let proxy = proxy.clone();
                let connection =
                    tcp_proxy::TcpConnection { worker, proxy, info, handle: self, limit };
                tokio::task::spawn_local(connection.serve(io, read));
            }
            // No filters: closed at once.
            None => {}
        }
    }
}

fn find(listener: &WorkerListener, found: &Found) -> Option<Arc<FilterChain>> {
    let ip = |address: &crate::stream_info::Address| {
        address.ip().map(|a| (a.ip().to_canonical(), a.port()))
    };
    let protocols: &[&str] = match &found.application_protocol {
        Some(protocol) => &[*protocol],
        None => &[],
    };
    let facts = ConnectionFacts {
        destination: ip(&found.local),
        source: ip(&found.remote),
        direct_source: ip(&found.direct_remote).map(|(ip, _)| ip),
        server_name: found.server_name.as_deref().unwrap_or(""),
        transport_protocol: "raw_buffer",
        application_protocols: protocols,
    };
    listener.config.filter_chains.find(&facts).cloned()
}

/// The listener's own access log, one line for each connection.
fn log_connection(
    listener: &WorkerListener,
    info: &Rc<ConnectionInfo>,
    details: Option<&'static str>,
) {
    if listener.logs.is_empty() {
        return;
    }
    let mut stream = StreamInfo::new(
        info.clone(),
        info.id,
        info.started,
        SystemTime::now() - info.started.elapsed(),
    );
    stream.timing.end = Some(Instant::now());
    if let Some(details) = details {
        stream.flags.insert(ResponseFlags::NO_ROUTE_FOUND);
        stream.set_details(details);
    }
    let mut cx = format::Ctx::new(&stream);
    cx.access_log_type = format::AccessLogType::NotSet;
    listener.logs.log(&cx);
}
