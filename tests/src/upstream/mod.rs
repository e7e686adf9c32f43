//! Scripted upstreams: each listens on a port of its own, tells HTTP/2 from HTTP/1 by the preface,
//! records what it receives byte for byte and answers as the current case says.

pub(crate) mod h1;
pub(crate) mod h2;
mod tcp;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{MsgFlags, recv};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};

use crate::area::Answer;
use crate::ports;
use crate::tls::{self, Lines};

/// One request (or TCP connection) as an upstream saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub upstream: String,
    /// Which connection of the case, counted over all upstreams.
    pub connection: usize,
    /// Request line and header lines, or pseudo-headers and headers.
    pub head: Vec<String>,
    pub body: Vec<u8>,
    pub trailers: Vec<String>,
    /// How the request ended, seen from here.
    pub end: String,
}

#[derive(Debug, Default)]
struct State {
    script: Value,
    tcp: bool,
    answered: BTreeMap<String, usize>,
    total: usize,
    connections: usize,
    open: usize,
    seen: Vec<Seen>,
}

/// Shared by the tasks of all upstreams of one sandbox.
#[derive(Debug, Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    names: Arc<Vec<String>>,
}

/// All upstreams of one sandbox.
#[derive(Debug)]
pub struct Upstreams {
    shared: Shared,
    epoch: watch::Sender<u64>,
    ports: BTreeMap<String, u16>,
    tls: Lines,
    /// Bound and never listening: connections are refused.
    _refused: Vec<TcpSocket>,
}

impl Upstreams {
    /// Binds one port per name and serves until dropped.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(names: &[String]) -> Result<Self> {
        let (epoch, watcher) = watch::channel(0);
        let shared = Shared {
            state: Arc::default(),
            changed: Arc::default(),
            names: Arc::new(names.to_vec()),
        };
        let mut ports = BTreeMap::new();
        let mut refused = Vec::new();
        let lines = Lines::default();
        for name in names {
            let port = ports::free()?;
            ports.insert(name.clone(), port);
            if name.starts_with("refused") {
                let socket = TcpSocket::new_v4()?;
                socket.bind(([127, 0, 0, 1], port).into())?;
                refused.push(socket);
                continue;
            }
            let mut listener = TcpListener::bind(("127.0.0.1", port)).await?;
            if tls::is_tls(name) {
                let inner = TcpListener::bind("127.0.0.1:0").await?;
                let to = inner.local_addr()?.port();
                let outer = std::mem::replace(&mut listener, inner);
                tokio::spawn(tls::serve(outer, name.clone(), to, lines.clone()));
            }
            tokio::spawn(accept(listener, name.clone(), shared.clone(), watcher.clone()));
        }
        Ok(Self { shared, epoch, ports, tls: lines, _refused: refused })
    }

    /// Ports by upstream name.
    #[must_use]
    pub fn ports(&self) -> &BTreeMap<String, u16> {
        &self.ports
    }

    /// Starts a case: what to answer, and whether connections are plain TCP.
    pub fn begin(&self, script: &Value, tcp: bool) {
        let mut state = self.shared.lock();
        let connections = state.open;
        *state = State { script: script.clone(), tcp, open: connections, ..State::default() };
    }

    /// Closes every connection and waits until all are gone.
    pub async fn close_all(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
        let shared = self.shared.clone();
        let _ = tokio::time::timeout(Duration::from_secs(2), async {
            while shared.lock().open > 0 {
                shared.changed.notified().await;
            }
        })
        .await;
    }

    /// What the upstreams that speak TLS have seen of it since the last call, in no particular order.
    #[must_use]
    pub fn tls_lines(&self) -> Vec<String> {
        let mut lines = self.tls.take();
        lines.sort();
        lines
    }

    /// What was received in this case so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Waits until `done` says so of what was received, at most five seconds.
    ///
    /// # Errors
    /// When it does not within that time.
    pub async fn wait(&self, done: impl Fn(&[Seen]) -> bool) -> Result<()> {
        let shared = &self.shared;
        tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                let changed = shared.changed.notified();
                if done(&shared.lock().seen) {
                    return;
                }
                changed.await;
            }
        })
        .await
        .context("the upstreams did not see what the case waits for")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request; its index is the handle for [`Self::update`].
    ///
    /// A server whose name begins with `side` is asked by a filter: what it is asked counts, how is each
    /// proxy's own affair.
    fn record(&self, mut seen: Seen) -> usize {
        if is_side(&seen.upstream) {
            seen.head.truncate(1);
            seen.connection = 0;
        }
        let index = {
            let mut state = self.lock();
            state.seen.push(seen);
            state.seen.len() - 1
        };
        self.changed.notify_waiters();
        self.changed.notify_one();
        index
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.lock().seen.get_mut(index) {
            change(seen);
        }
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// The next answer of the script for this upstream.
    fn answer(&self, upstream: &str) -> Answer {
        let mut state = self.lock();
        let total = state.total;
        state.total += 1;
        let mine = state.answered.entry(upstream.to_owned()).or_default();
        let count = *mine;
        *mine += 1;
        let per_upstream = state
            .script
            .as_object()
            .is_some_and(|map| map.keys().all(|key| self.names.contains(key)));
        let (script, index) = if per_upstream {
            (state.script.get(upstream).cloned().unwrap_or_default(), count)
        } else {
            (state.script.clone(), total)
        };
        let one = match script {
            Value::Array(list) => list.get(index).or(list.last()).cloned().unwrap_or_default(),
            other => other,
        };
        if one.is_null() {
            return Answer { body: Some("ok".into()), ..Answer::default() };
        }
        match serde_json::from_value(one) {
            Ok(answer) => answer,
            Err(e) => Answer {
                status: Some(599),
                body: Some(format!("bad script: {e}")),
                ..Answer::default()
            },
        }
    }
}

/// Checks that a case's script can be read.
///
/// # Errors
/// With the name of the unknown field.
pub fn check_script(script: &Value, names: &[String]) -> Result<()> {
    let per_upstream =
        script.as_object().is_some_and(|map| map.keys().all(|key| names.contains(key)));
    let scripts: Vec<&Value> = match script {
        Value::Object(map) if per_upstream => map.values().collect(),
        other => vec![other],
    };
    for script in scripts {
        let list = script.as_array().map_or_else(|| vec![script], |list| list.iter().collect());
        for one in list.into_iter().filter(|v| !v.is_null()) {
            let _: Answer = serde_json::from_value(one.clone())?;
        }
    }
    Ok(())
}

async fn accept(
    listener: TcpListener,
    name: String,
    shared: Shared,
    mut epoch: watch::Receiver<u64>,
) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            // Seen by each connection through its own receiver.
            changed = epoch.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let _ = stream.set_nodelay(true);
        let (connection, tcp) = {
            let mut state = shared.lock();
            state.open += 1;
            state.connections += usize::from(!is_side(&name));
            (state.connections.saturating_sub(1), state.tcp)
        };
        let (shared, name, mut ended) = (shared.clone(), name.clone(), epoch.clone());
        ended.mark_unchanged();
        tokio::spawn(async move {
            let peer = Peer { shared: shared.clone(), name, connection };
            tokio::select! {
                () = serve(stream, tcp, peer) => {}
                _ = ended.changed() => {}
            }
            shared.lock().open -= 1;
            shared.changed.notify_waiters();
            shared.changed.notify_one();
        });
    }
}

/// One accepted connection's identity.
#[derive(Debug, Clone)]
struct Peer {
    shared: Shared,
    name: String,
    connection: usize,
}

async fn serve(stream: TcpStream, tcp: bool, peer: Peer) {
    if tcp {
        return tcp::serve(stream, peer).await;
    }
    match speaks_http2(&stream).await {
        true => h2::serve(stream, peer).await,
        false => h1::serve(stream, peer).await,
    }
}

/// Whether a connection begins with the preface of HTTP/2; what tells it apart may come in pieces.
async fn speaks_http2(stream: &TcpStream) -> bool {
    const BEGINNING: &[u8] = b"PRI";
    loop {
        let Ok(ready) = stream.ready(Interest::READABLE).await else { return false };
        let looked = stream.try_io(Interest::READABLE, || {
            let mut first = [0; BEGINNING.len()];
            let n = recv(stream.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK)?;
            let first = &first[..n];
            let is_part = n < BEGINNING.len() && BEGINNING.starts_with(first);
            if is_part && !ready.is_read_closed() {
                // Ready again when more has come.
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            Ok(first == BEGINNING)
        });
        match looked {
            Ok(is_http2) => return is_http2,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

fn is_side(upstream: &str) -> bool {
    upstream.starts_with("side")
}

/// RST instead of FIN when the stream is dropped.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
