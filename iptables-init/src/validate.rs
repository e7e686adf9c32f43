//! `--run-validation`: connections that the rules must redirect, and listeners in the proxy's place that see whether
//! they do.
//!
//! The connection that Istio tries is one of the proxy itself to `127.0.0.6`, which goes to the inbound port. It needs
//! the proxy's user, or the right to become it. Any other user is redirected when it connects to the outside; that is
//! tried too where the settings say so for all destinations, to an address that belongs to nobody (RFC 5737).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Gid, Uid, setfsuid};

use crate::rule::Family;
use crate::settings::{OutboundRanges, OwnerGroups, Settings, Validation};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// A time that no clock overflows at; nobody waits for longer.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// For one connection; all of them are within the machine.
const CONNECT: Duration = Duration::from_secs(1);

/// What is wrong with the redirection, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    #[error(
        "cannot listen on {address}, where the proxy will: {source}; validate before the proxy starts"
    )]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot look: run as the proxy's user ({0}), or with the capability SETUID")]
    User(u32),
    #[error(
        "{whose} connection to {to} is not redirected to port {port}: {seen}. The rules are missing or not these; in \
         a pod of Istio's CNI plugin, delete it, so that it is set up again"
    )]
    NotRedirected {
        whose: &'static str,
        to: SocketAddr,
        port: u16,
        /// What became of it.
        seen: String,
    },
}

/// A connection to try.
#[derive(Debug, Clone, Copy)]
struct Probe {
    whose: &'static str,
    /// The user that opens it; None for ours.
    user: Option<u32>,
    from: Option<IpAddr>,
    to: SocketAddr,
    /// Where it must arrive.
    port: u16,
}

/// Tries until it works, for as long as it may take.
///
/// # Errors
/// What the last try has seen.
pub fn validate(settings: &Settings, validation: Validation) -> Result<(), ValidationError> {
    let deadline = Instant::now() + validation.timeout.min(LONGEST);
    let families = if settings.ipv6 { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
    for family in families {
        validate_family(settings, *family, validation.port, deadline)?;
    }
    Ok(())
}

fn validate_family(
    settings: &Settings,
    family: Family,
    port: u16,
    deadline: Instant,
) -> Result<(), ValidationError> {
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let mut listeners = Vec::new();
    let mut refused = None;
    // One will do: the other's port may be taken by a proxy that is there already.
    for port in [settings.inbound_port, settings.outbound_port] {
        let address = SocketAddr::new(loopback, port);
        match listen(address) {
            Ok(listener) => listeners.push((port, listener)),
            Err(source) => refused = Some(ValidationError::Listen { address, source }),
        }
    }
    let mut probes = probes(settings, port, loopback)?;
    probes.retain(|probe| listeners.iter().any(|(port, _)| *port == probe.port));
    if let (true, Some(refused)) = (probes.is_empty(), refused) {
        return Err(refused);
    }
    let listeners: Vec<_> = listeners.into_iter().map(|(_, listener)| listener).collect();
    for probe in probes {
        loop {
            match attempt(probe, &listeners) {
                Ok(()) => break,
                // Nothing is sent to the outside from here, redirected or not.
                Err(Seen::NoRoute) if probe.from.is_none() => break,
                Err(seen) if Instant::now() + PAUSE > deadline => {
                    let Probe { whose, to, port, .. } = probe;
                    let seen = seen.to_string();
                    return Err(ValidationError::NotRedirected { whose, to, port, seen });
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
    Ok(())
}

/// What became of a connection that is not where it should be.
#[derive(Debug)]
enum Seen {
    /// The kernel knows no way to its destination.
    NoRoute,
    Other(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("there is no route to it"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// As Istio's validation: beside a proxy that shares its ports.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    nix::sys::socket::listen(&socket, Backlog::new(128)?)?;
    Ok(socket.into())
}

fn probes(settings: &Settings, port: u16, loopback: IpAddr) -> Result<Vec<Probe>, ValidationError> {
    let (inside, outside): (IpAddr, IpAddr) = match loopback {
        IpAddr::V4(_) => (Ipv4Addr::new(127, 0, 0, 6).into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpAddr::V6(_) => (
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    };
    let proxy = settings.users.first().map_or(1337, |user| user.first);
    let ours = Uid::effective().as_raw();
    let is_proxy = settings.users.iter().any(|user| (user.first..=user.last).contains(&ours));
    let mut probes = Vec::new();
    if is_proxy || can_become(proxy) {
        probes.push(Probe {
            whose: "the proxy's",
            user: (!is_proxy).then_some(proxy),
            from: Some(loopback),
            to: SocketAddr::new(inside, port),
            port: settings.inbound_port,
        });
    }
    let group = Gid::effective().as_raw();
    let of_proxy = settings.groups.iter().any(|g| (g.first..=g.last).contains(&group));
    if !is_proxy && !of_proxy && redirects_all(settings, port) {
        probes.push(Probe {
            whose: "an application's",
            user: None,
            from: None,
            to: SocketAddr::new(outside, port),
            port: settings.outbound_port,
        });
    }
    if probes.is_empty() { Err(ValidationError::User(proxy)) } else { Ok(probes) }
}

/// Whether any connection to the outside is redirected.
fn redirects_all(settings: &Settings, port: u16) -> bool {
    let excluded = settings.exclude_outbound_ports.iter();
    settings.outbound_ranges == OutboundRanges::All
        && settings.exclude_ranges.is_empty()
        && settings.exclude_interfaces.is_empty()
        && settings.owner_groups == OwnerGroups::AllBut(Vec::new())
        && !excluded.clone().any(|range| (range.first..=range.last).contains(&port))
}

/// Whether sockets of this process may belong to another user. Credentials are a thread's.
fn can_become(user: u32) -> bool {
    let thread = std::thread::spawn(move || {
        become_user(user);
        setfsuid(Uid::from_raw(user)).as_raw() == user
    });
    thread.join().unwrap_or(false)
}

fn become_user(user: u32) {
    // Says nothing of success; a second call gives what is in force.
    setfsuid(Uid::from_raw(user));
}

/// One connection; what became of it if it is not where it should be.
fn attempt(probe: Probe, listeners: &[TcpListener]) -> Result<(), Seen> {
    let thread = std::thread::spawn(move || {
        if let Some(user) = probe.user {
            become_user(user);
        }
        open(probe.from, probe.to)
    });
    let stream = thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
    let stream = stream.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::EINPROGRESS as i32 => Seen::Other("nobody answered".into()),
        Some(code) if [Errno::ENETUNREACH as i32, Errno::EHOSTUNREACH as i32].contains(&code) => {
            Seen::NoRoute
        }
        _ => Seen::Other(error.to_string()),
    })?;
    let ours = stream.local_addr().map_err(|error| Seen::Other(error.to_string()))?;
    let began = Instant::now();
    loop {
        for listener in listeners {
            let Ok((accepted, peer)) = listener.accept() else { continue };
            if peer != ours {
                continue;
            }
            let at = listener.local_addr().map_or(0, |address| address.port());
            let original = original_port(&accepted, probe.to.is_ipv4());
            return Err(Seen::Other(match original {
                Ok(port) if at == probe.port && port == probe.to.port() => return Ok(()),
                Ok(port) if at == probe.port => format!("its destination is told as port {port}"),
                Ok(_) => format!("it got to port {at}"),
                Err(error) => format!("the kernel does not tell its destination: {error}"),
            }));
        }
        let left = CONNECT.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Seen::Other("something else accepted it".into()));
        }
        wait(listeners, left);
    }
}

/// Until a connection has come, or it is time.
fn wait(listeners: &[TcpListener], time: Duration) {
    let mut fds: Vec<_> =
        listeners.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN)).collect();
    let time = u16::try_from(time.as_millis()).unwrap_or(u16::MAX);
    // Interrupted or not: whoever waits looks again.
    let _ = poll(&mut fds, PollTimeout::from(time.saturating_add(1)));
}

fn open(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(CONNECT.as_secs()).unwrap_or(1);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(seconds))?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

/// The port that a redirected connection was opened to.
fn original_port(stream: &TcpStream, v4: bool) -> io::Result<u16> {
    let port = if v4 {
        getsockopt(stream, sockopt::OriginalDst)?.sin_port
    } else {
        getsockopt(stream, sockopt::Ip6tOriginalDst)?.sin6_port
    };
    Ok(u16::from_be(port))
}
