//! Stage 9: upstream connections. An address and a cluster's socket options in, a connected `Io` out.
//!
//! The deadline is the pool's. Texts of failures are Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`: whether
//! `connect(2)` itself failed ("immediate") or the handshake later ("delayed").

pub mod proxy_header;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpStream, UnixStream};

use crate::config::cluster::SocketOptions;
use crate::config::core::{
    BindConfig, SocketFamily, SocketOption, SocketOptionValue, SocketState, TcpKeepalive,
};
use crate::io::{Io, memory};
use crate::stream_info::Address;
use crate::sys;

/// What the downstream side asks of the upstream transport socket: part of every pool's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TransportSocketOptions {
    /// SNI to send instead of the configured one.
    pub server_name: Option<Arc<str>>,
    /// ALPN to offer instead of the configured list.
    pub application_protocols: Box<[Box<str>]>,
    /// Subject alternative names to accept instead of the configured ones.
    pub verify_subject_alt_names: Box<[Box<str>]>,
    /// PROXY protocol header to send first.
    pub proxy_header: Option<Box<[u8]>>,
    /// Whom to connect as.
    pub source: Option<OriginalSource>,
}

/// The client's own address, for connections that are to come from it (listener filter `original_src`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginalSource {
    /// Port 0: any.
    pub address: SocketAddr,
    /// SO_MARK, by which routing brings the answers back; 0: none.
    pub mark: u32,
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectError {
    /// Our end failed, before anything was sent (bind, socket options, out of descriptors).
    pub local: bool,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub reason: Arc<str>,
}

impl ConnectError {
    fn local(error: &io::Error, what: &str) -> Self {
        Self { local: true, reason: format!("{what}: {}", errno_text(error)).into() }
    }

    fn immediate(error: &io::Error, address: &Address) -> Self {
        let text = errno_text(error);
        let reason = format!("immediate connect error: {text}|remote address:{address}");
        Self { local: false, reason: reason.into() }
    }

    fn delayed(error: &io::Error) -> Self {
        let reason = format!("delayed connect error: {}", errno_text(error));
        Self { local: false, reason: reason.into() }
    }
}

/// The C library's text of an error, without what Rust adds.
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Connects to a host. Cancel-safe: dropping the future closes the socket.
///
/// # Errors
/// With the reason, as Envoy words it.
pub async fn connect(
    address: &Address,
    options: &SocketOptions,
    source: Option<&OriginalSource>,
) -> Result<Io, ConnectError> {
    match address {
        Address::Ip(peer) => connect_tcp(*peer, address, options, source).await,
        Address::Pipe(path) => connect_pipe(path, address).await,
        Address::Internal(name) => match memory::connect(name) {
            Some(stream) => Ok(Io::Memory(stream)),
            None => {
                let error = io::Error::from(io::ErrorKind::ConnectionRefused);
                Err(ConnectError::immediate(&error, address))
            }
        },
    }
}

async fn connect_tcp(
    peer: SocketAddr,
    address: &Address,
    options: &SocketOptions,
    source: Option<&OriginalSource>,
) -> Result<Io, ConnectError> {
    let socket = Socket::new(
        Domain::for_address(peer),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )
    .map_err(|e| ConnectError::local(&e, "cannot create socket"))?;
    // Every write here is a whole message or a piece of one that must not wait for the last to be acknowledged.
    socket.set_tcp_nodelay(true).map_err(|e| ConnectError::local(&e, "TCP_NODELAY"))?;
    if let Some(keepalive) = &options.keepalive {
        set_keepalive(&socket, keepalive).map_err(|e| ConnectError::local(&e, "SO_KEEPALIVE"))?;
    }
    match source.filter(|source| source.address.is_ipv4() == peer.is_ipv4()) {
        Some(source) => bind_as(&socket, options.bind.as_ref(), source, peer)?,
        None => {
            if let Some(bind) = &options.bind {
                bind_source(&socket, bind, peer)?;
            }
        }
    }
    start_connect(&socket, &SockAddr::from(peer), address)?;
    let stream = TcpStream::from_std(socket.into()).map_err(|e| ConnectError::local(&e, "poll"))?;
    stream.writable().await.map_err(|e| ConnectError::delayed(&e))?;
    match stream.take_error() {
        Ok(None) => Ok(stream.into()),
        Ok(Some(error)) | Err(error) => Err(ConnectError::delayed(&error)),
    }
}

async fn connect_pipe(path: &str, address: &Address) -> Result<Io, ConnectError> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(|e| ConnectError::local(&e, "cannot create socket"))?;
    // Envoy writes the abstract namespace's leading NUL as '@'.
    let target = match path.strip_prefix('@') {
        Some(name) => SockAddr::unix(format!("\0{name}")),
        None => SockAddr::unix(path),
    };
    let target = target.map_err(|e| ConnectError::immediate(&e, address))?;
    start_connect(&socket, &target, address)?;
    let stream =
        UnixStream::from_std(socket.into()).map_err(|e| ConnectError::local(&e, "poll"))?;
    stream.writable().await.map_err(|e| ConnectError::delayed(&e))?;
    Ok(stream.into())
}

fn start_connect(
    socket: &Socket,
    target: &SockAddr,
    address: &Address,
) -> Result<(), ConnectError> {
    match socket.connect(target) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        Err(e) => Err(ConnectError::immediate(&e, address)),
    }
}

fn set_keepalive(socket: &Socket, keepalive: &TcpKeepalive) -> io::Result<()> {
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
    socket.set_tcp_keepalive(&params)
}

fn bind_source(socket: &Socket, bind: &BindConfig, peer: SocketAddr) -> Result<(), ConnectError> {
    let (source, options) = bind.source_for(peer);
    apply(socket, options, SocketState::Prebind, peer)?;
    if bind.freebind {
        let freebind = match peer {
            SocketAddr::V4(_) => socket.set_freebind_v4(true),
            SocketAddr::V6(_) => socket.set_freebind_v6(true),
        };
        freebind.map_err(|e| ConnectError::local(&e, "IP_FREEBIND"))?;
    }
    if let Some(source) = source {
        bind_to(socket, source)?;
    }
    apply(socket, options, SocketState::Bound, peer)
}

fn bind_to(socket: &Socket, source: SocketAddr) -> Result<(), ConnectError> {
    if source.port() == 0 {
        // The port is chosen at connect, by the whole 4-tuple: more than 64K connections to several peers.
        let on = 1_i32.to_ne_bytes();
        let option = libc::IP_BIND_ADDRESS_NO_PORT;
        sys::socket::set_option(socket.as_fd(), libc::IPPROTO_IP, option, &on)
            .map_err(|e| ConnectError::local(&e, "IP_BIND_ADDRESS_NO_PORT"))?;
    }
    socket
        .bind(&SockAddr::from(source))
        .map_err(|e| ConnectError::local(&e, &format!("cannot bind '{source}'")))
}

/// Binds to an address that is not ours, in place of the configured one.
fn bind_as(
    socket: &Socket,
    bind: Option<&BindConfig>,
    source: &OriginalSource,
    peer: SocketAddr,
) -> Result<(), ConnectError> {
    let options = bind.map_or(&[][..], |bind| bind.source_for(peer).1);
    apply(socket, options, SocketState::Prebind, peer)?;
    if source.mark != 0 {
        socket.set_mark(source.mark).map_err(|e| ConnectError::local(&e, "SO_MARK"))?;
    }
    let transparent = match peer {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    };
    transparent.map_err(|e| ConnectError::local(&e, "IP_TRANSPARENT"))?;
    bind_to(socket, source.address)?;
    apply(socket, options, SocketState::Bound, peer)
}

/// Sets the options of a state that hold for the peer's family.
fn apply(
    socket: &Socket,
    options: &[SocketOption],
    state: SocketState,
    peer: SocketAddr,
) -> Result<(), ConnectError> {
    for option in options.iter().filter(|option| option.state == state) {
        let fits = match option.family {
            SocketFamily::Any => true,
            SocketFamily::Ipv4 => peer.is_ipv4(),
            SocketFamily::Ipv6 => peer.is_ipv6(),
        };
        if fits {
            set_socket_option(socket.as_fd(), option).map_err(|e| {
                ConnectError::local(&e, &format!("socket option {}/{}", option.level, option.name))
            })?;
        }
    }
    Ok(())
}

/// Sets one configured option, whatever its state.
///
/// # Errors
/// What the kernel says.
pub fn set_socket_option(fd: std::os::fd::BorrowedFd<'_>, option: &SocketOption) -> io::Result<()> {
    match &option.value {
        SocketOptionValue::Int(value) => {
            sys::socket::set_option(fd, option.level, option.name, &value.to_ne_bytes())
        }
        SocketOptionValue::Bytes(bytes) => {
            sys::socket::set_option(fd, option.level, option.name, bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// An address that refuses: bound, not listening.
    fn refusing() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    #[test]
    fn a_source_without_a_port_has_none_before_it_connects() {
        for any in ["127.0.0.6:0", "[::1]:0"] {
            let any: SocketAddr = any.parse().unwrap();
            let socket = Socket::new(Domain::for_address(any), Type::STREAM, None).unwrap();
            bind_to(&socket, any).unwrap();
            assert_eq!(socket.local_addr().unwrap().as_socket().unwrap(), any);
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_delayed_error() {
        let (_socket, address) = refusing();
        let error =
            connect(&Address::Ip(address), &SocketOptions::default(), None).await.unwrap_err();
        assert_eq!(&*error.reason, "delayed connect error: Connection refused");
        assert!(!error.local);
    }

    #[tokio::test]
    async fn a_missing_pipe_is_an_immediate_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        let address = Address::Pipe(path.to_str().unwrap().into());
        let error = connect(&address, &SocketOptions::default(), None).await.unwrap_err();
        let wanted = format!(
            "immediate connect error: No such file or directory|remote address:{}",
            path.display()
        );
        assert_eq!(&*error.reason, wanted);
    }

    #[tokio::test]
    async fn bind_and_keepalive_are_applied() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = SocketOptions {
            keepalive: Some(TcpKeepalive { probes: Some(3), ..Default::default() }),
            bind: Some(BindConfig {
                source: Some("127.0.0.2:0".parse().unwrap()),
                ..BindConfig::default()
            }),
        };
        let peer = Address::Ip(listener.local_addr().unwrap());
        let io = connect(&peer, &options, None).await.unwrap();
        let Ok(Address::Ip(local)) = io.local_address() else { panic!("not an IP") };
        assert_eq!(local.ip().to_string(), "127.0.0.2");
        let socket = socket2::SockRef::from(io.tcp().unwrap());
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }

    #[tokio::test]
    async fn a_source_that_is_not_ours_is_a_local_error() {
        let options = SocketOptions {
            bind: Some(BindConfig {
                source: Some("192.0.2.1:0".parse().unwrap()),
                ..BindConfig::default()
            }),
            ..SocketOptions::default()
        };
        let peer = Address::Ip("127.0.0.1:1".parse().unwrap());
        let error = connect(&peer, &options, None).await.unwrap_err();
        assert!(error.local, "{error}");
    }
}
