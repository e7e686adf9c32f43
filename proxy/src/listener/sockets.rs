//! Listening sockets: bound when their listener is compiled, so that a port that is taken is an error of its
//! configuration; they listen once it is warm.
//!
//! A worker accepts on a socket and closes it in the end. Until then control can make another one of it for the listener
//! that takes its place: what waits in its queue is not lost.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::config::core::{ConfigAddress, SocketFamily, SocketOptionValue, SocketState};
use crate::config::listener::{Bind, Listener};
use crate::stream_info::Address;
use crate::sys;
use crate::upstream::errno_text;

/// Level and option of `tcp_fast_open_queue_length`, of Linux's `netinet/tcp.h`.
const IPPROTO_TCP: i32 = 6;
const TCP_FASTOPEN: i32 = 23;

/// One address of a listener, with the sockets of all workers.
#[derive(Debug)]
pub struct BoundAddress {
    pub bind: Bind,
    /// All workers have the same socket, one queue: without `SO_REUSEPORT`.
    is_shared: bool,
    /// As bound: port 0 resolved.
    pub address: Address,
    /// By worker; empty for a listener without sockets of its own (`bind_to_port: false`).
    workers: Vec<SocketHandle>,
}

/// A socket of one worker, as long as it is open.
#[derive(Clone)]
pub struct SocketHandle(Arc<Mutex<Option<BoundSocket>>>);

/// One listening socket.
#[derive(Debug)]
pub enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SocketHandle").field(&*self.lock()).finish()
    }
}

impl SocketHandle {
    fn new(socket: BoundSocket) -> Self {
        Self(Arc::new(Mutex::new(Some(socket))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<BoundSocket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same socket once more; `None` once it is closed.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn open(&self) -> io::Result<Option<BoundSocket>> {
        self.lock().as_ref().map(BoundSocket::try_clone).transpose()
    }

    /// The IP address that it is bound to.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &*self.lock() {
            Some(BoundSocket::Tcp(socket)) => socket.local_addr().ok(),
            Some(BoundSocket::Unix(_)) | None => None,
        }
    }

    /// Nobody makes another one of it from now on.
    pub fn close(&self) {
        // Closed before anybody can find it gone: whoever does may bind its address.
        let mut socket = self.lock();
        drop(socket.take());
    }
}

impl BoundSocket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }

    fn listen(&self, backlog: i32, bind: &Bind) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => {
                let is_ipv4 = socket.local_addr()?.is_ipv4();
                SockRef::from(socket).listen(backlog)?;
                set_options(bind, is_ipv4, SocketState::Listening, socket.as_fd())
            }
            Self::Unix(socket) => SockRef::from(socket).listen(backlog),
        }
    }
}

/// A socket that could not be made, in Envoy's words.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind '{address}': {}", errno_text(.source))]
pub struct BindError {
    pub address: String,
    #[source]
    pub source: io::Error,
}

impl BoundAddress {
    /// Binds an address for each of `workers` workers.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn bind(listener: &Listener, bind: &Bind, workers: usize) -> Result<Self, BindError> {
        if !listener.bind_to_port {
            return Ok(Self::without_sockets(bind));
        }
        let (sockets, address) =
            bind_address(listener, bind, workers).map_err(|source| bind_error(bind, source))?;
        let workers = sockets.into_iter().map(SocketHandle::new).collect();
        let is_shared = !listener.reuse_port || matches!(address, Address::Pipe(_));
        Ok(Self { bind: bind.clone(), is_shared, address, workers })
    }

    fn without_sockets(bind: &Bind) -> Self {
        let address = match &bind.address {
            ConfigAddress::Ip { addr, .. } => Address::Ip(*addr),
            ConfigAddress::Pipe { path, .. } => Address::Pipe(path.clone()),
            // No listener has one.
            ConfigAddress::Dns { host, .. } => Address::Pipe(host.clone()),
        };
        Self { bind: bind.clone(), is_shared: false, address, workers: Vec::new() }
    }

    /// The same sockets for another listener; `None` where they are closed, or some worker's is and the others' queues
    /// are not its own (`SO_REUSEPORT`).
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn take_over(&self) -> io::Result<Option<Self>> {
        let mut workers = Vec::with_capacity(self.workers.len());
        for handle in &self.workers {
            let mut open = handle.open()?;
            if open.is_none() && self.is_shared {
                open = self.workers.iter().find_map(|other| other.open().ok().flatten());
            }
            match open {
                Some(socket) => workers.push(SocketHandle::new(socket)),
                None => return Ok(None),
            }
        }
        if workers.is_empty() {
            return Ok(None);
        }
        let (bind, address) = (self.bind.clone(), self.address.clone());
        Ok(Some(Self { bind, is_shared: self.is_shared, address, workers }))
    }

    /// Lets connections in; before, they are refused.
    ///
    /// # Errors
    /// Something else has come to listen on the address since it was bound, or an option of this state is wrong.
    pub fn listen(&self, backlog: i32, bind: &Bind) -> Result<(), BindError> {
        for handle in &self.workers {
            let Some(socket) = &*handle.lock() else { continue };
            socket.listen(backlog, bind).map_err(|source| bind_error(bind, source))?;
        }
        Ok(())
    }

    /// Whether all its sockets are closed.
    pub fn is_closed(&self) -> bool {
        self.workers.iter().all(|handle| handle.lock().is_none())
    }

    /// The socket of a worker, where it has one.
    pub fn of_worker(&self, worker: usize) -> Option<SocketHandle> {
        self.workers.get(worker).cloned()
    }
}

fn bind_error(bind: &Bind, source: io::Error) -> BindError {
    BindError { address: bind.address.to_string(), source }
}

fn bind_address(
    listener: &Listener,
    bind: &Bind,
    workers: usize,
) -> io::Result<(Vec<BoundSocket>, Address)> {
    match &bind.address {
        ConfigAddress::Ip { addr, ipv4_compat } => {
            let first = tcp_socket(listener, bind, *addr, *ipv4_compat)?;
            let bound = first.local_addr()?;
            let mut sockets = vec![first];
            while sockets.len() < workers {
                sockets.push(if listener.reuse_port {
                    tcp_socket(listener, bind, bound, *ipv4_compat)?
                } else {
                    sockets[0].try_clone()?
                });
            }
            let sockets = sockets.into_iter().map(BoundSocket::Tcp).collect();
            Ok((sockets, Address::Ip(bound)))
        }
        ConfigAddress::Pipe { path, mode } => {
            let socket = unix_socket(path, *mode)?;
            let mut sockets = vec![socket];
            while sockets.len() < workers {
                sockets.push(sockets[0].try_clone()?);
            }
            let sockets = sockets.into_iter().map(BoundSocket::Unix).collect();
            Ok((sockets, Address::Pipe(path.clone())))
        }
        ConfigAddress::Dns { .. } => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn tcp_socket(
    listener: &Listener,
    bind: &Bind,
    addr: SocketAddr,
    ipv4_compat: bool,
) -> io::Result<std::net::TcpListener> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if listener.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(!ipv4_compat)?;
    }
    if bind.freebind && addr.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else if bind.freebind {
        socket.set_freebind_v6(true)?;
    }
    if bind.transparent && addr.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else if bind.transparent {
        socket.set_ip_transparent_v6(true)?;
    }
    // Connections inherit it: a response must not wait for the next one (Nagle against delayed ACK).
    socket.set_tcp_nodelay(true)?;
    set_options(bind, addr.is_ipv4(), SocketState::Prebind, socket.as_fd())?;
    socket.bind(&SockAddr::from(addr))?;
    set_options(bind, addr.is_ipv4(), SocketState::Bound, socket.as_fd())?;
    if let Some(keepalive) = &bind.keepalive {
        let mut params = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            params = params.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            params = params.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            params = params.with_retries(probes);
        }
        socket.set_tcp_keepalive(&params)?;
    }
    if let Some(length) = bind.fast_open {
        let value = length.to_ne_bytes();
        sys::socket::set_option(socket.as_fd(), IPPROTO_TCP, TCP_FASTOPEN, &value)?;
    }
    Ok(socket.into())
}

/// The options of an address that are set in a state of its socket.
fn set_options(
    bind: &Bind,
    is_ipv4: bool,
    state: SocketState,
    socket: BorrowedFd<'_>,
) -> io::Result<()> {
    let family = if is_ipv4 { SocketFamily::Ipv4 } else { SocketFamily::Ipv6 };
    let of_state = bind.socket_options.iter().filter(|option| {
        option.state == state && (option.family == SocketFamily::Any || option.family == family)
    });
    for option in of_state {
        let int;
        let value: &[u8] = match &option.value {
            SocketOptionValue::Int(value) => {
                int = value.to_ne_bytes();
                &int
            }
            SocketOptionValue::Bytes(bytes) => bytes,
        };
        sys::socket::set_option(socket, option.level, option.name, value)?;
    }
    Ok(())
}

fn unix_socket(path: &str, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    if let Some(name) = path.strip_prefix('@') {
        socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
        return Ok(socket.into());
    }
    // A socket left behind by an earlier process is not an error, as in Envoy.
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    socket.bind(&SockAddr::unix(path)?)?;
    if mode != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(socket.into())
}
