//! Listening sockets: bound when their listener is compiled, so that a port that is taken is an error of its
//! configuration; they listen once it is warm.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::config::core::{ConfigAddress, SocketFamily, SocketOptionValue, SocketState};
use crate::config::listener::{Bind, Listener};
use crate::stream_info::Address;
use crate::sys;

/// Level and option of `tcp_fast_open_queue_length`, of Linux's `netinet/tcp.h`.
const IPPROTO_TCP: i32 = 6;
const TCP_FASTOPEN: i32 = 23;

/// The sockets of one listener for all workers.
#[derive(Debug)]
pub struct BoundListener {
    /// By worker, then by address.
    pub workers: Vec<Vec<BoundSocket>>,
    /// The addresses as bound: port 0 resolved.
    pub addresses: Vec<Address>,
}

impl BoundListener {
    /// A listener without sockets of its own: `bind_to_port: false`.
    pub fn unbound(listener: &Listener, workers: usize) -> Self {
        let address = |bind: &Bind| match &bind.address {
            ConfigAddress::Ip { addr, .. } => Some(Address::Ip(*addr)),
            ConfigAddress::Pipe { path, .. } => Some(Address::Pipe(path.clone())),
            ConfigAddress::Dns { .. } => None,
        };
        Self {
            workers: (0..workers).map(|_| Vec::new()).collect(),
            addresses: listener.binds.iter().filter_map(address).collect(),
        }
    }

    /// Lets connections in; before, they are refused.
    ///
    /// # Errors
    /// Something else has come to listen on an address since it was bound.
    pub fn listen(&self, listener: &Listener) -> Result<(), BindError> {
        for sockets in &self.workers {
            for (socket, bind) in sockets.iter().zip(&listener.binds) {
                socket.listen(listener.backlog, bind).map_err(|source| bind_error(bind, source))?;
            }
        }
        Ok(())
    }
}

/// One listening socket of one worker.
#[derive(Debug)]
pub enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl BoundSocket {
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
#[error("cannot bind '{address}': {source}")]
pub struct BindError {
    pub address: String,
    #[source]
    pub source: io::Error,
}

/// Binds every address of a listener for each of `workers` workers.
///
/// # Errors
/// One cannot be bound.
pub fn bind(listener: &Listener, workers: usize) -> Result<BoundListener, BindError> {
    let mut out = BoundListener {
        workers: (0..workers).map(|_| Vec::new()).collect(),
        addresses: Vec::new(),
    };
    for bind in &listener.binds {
        let (sockets, address) =
            bind_address(listener, bind, workers).map_err(|source| bind_error(bind, source))?;
        out.addresses.push(address);
        for (worker, socket) in out.workers.iter_mut().zip(sockets) {
            worker.push(socket);
        }
    }
    Ok(out)
}

fn bind_error(bind: &Bind, source: io::Error) -> BindError {
    let address = match &bind.address {
        ConfigAddress::Ip { addr, .. } => addr.to_string(),
        ConfigAddress::Dns { host, port } => format!("{host}:{port}"),
        ConfigAddress::Pipe { path, .. } => path.to_string(),
    };
    BindError { address, source }
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
