//! Compiled forms of the small messages of `envoy.config.core.v3` and `envoy.type.v3` that many
//! resources share: addresses, socket options, keepalive, bind configuration, fractions, metadata.
//!
//! Filled by `config::compile::core`; plain and immutable.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A compiled `Metadata.filter_metadata`: namespace to struct.
pub type Metadata = Arc<MetadataMap>;

/// See [`Metadata`].
pub type MetadataMap = serde_json::Map<String, serde_json::Value>;

/// A configured `core.v3.Address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConfigAddress {
    /// A `socket_address` whose `address` is an IP. `ipv4_compat` is `SocketAddress.ipv4_compat`:
    /// an IPv6 listener takes IPv4 too.
    Ip { addr: SocketAddr, ipv4_compat: bool },
    /// A `socket_address` whose `address` is a name, to be resolved.
    Dns { host: Arc<str>, port: u16 },
    /// A `pipe`; `mode` 0 leaves the permissions as the process's umask makes them.
    Pipe { path: Arc<str>, mode: u32 },
}

impl ConfigAddress {
    /// Whether a socket of the one is a socket of the other.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip { addr, .. }, Self::Ip { addr: other, .. }) => addr == other,
            (Self::Pipe { path, .. }, Self::Pipe { path: other, .. }) => path == other,
            (Self::Dns { .. }, Self::Dns { .. }) => self == other,
            (Self::Ip { .. } | Self::Pipe { .. } | Self::Dns { .. }, _) => false,
        }
    }

    /// The same for all addresses that are the same place.
    pub fn place(&self) -> Self {
        match self {
            Self::Ip { addr, .. } => Self::Ip { addr: *addr, ipv4_compat: false },
            Self::Pipe { path, .. } => Self::Pipe { path: path.clone(), mode: 0 },
            Self::Dns { .. } => self.clone(),
        }
    }

    /// A port that the kernel chooses.
    pub fn is_any_port(&self) -> bool {
        matches!(self, Self::Ip { addr, .. } if addr.port() == 0)
    }
}

impl fmt::Display for ConfigAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip { addr, .. } => addr.fmt(f),
            Self::Dns { host, port } => write!(f, "{host}:{port}"),
            Self::Pipe { path, .. } => f.write_str(path),
        }
    }
}

/// When a socket option is applied: `SocketOption.SocketState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketState {
    Prebind,
    Bound,
    Listening,
}

/// For which address family a socket option holds: `SocketOption.SocketIpVersion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketFamily {
    Any,
    Ipv4,
    Ipv6,
}

/// A socket option's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SocketOptionValue {
    Int(i32),
    Bytes(Arc<[u8]>),
}

/// A compiled `core.v3.SocketOption`: raw `setsockopt` arguments.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: SocketOptionValue,
    pub state: SocketState,
    pub family: SocketFamily,
}

/// A compiled `core.v3.TcpKeepalive`; `None` leaves the kernel's setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// A compiled `core.v3.BindConfig`. Sources by family; the first that fits the peer is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct BindConfig {
    pub source: Option<SocketAddr>,
    /// `extra_source_addresses` and `additional_source_addresses`.
    pub extra_sources: Box<[ExtraSource]>,
    pub freebind: bool,
    pub socket_options: Box<[SocketOption]>,
}

/// A compiled `core.v3.ExtraSourceAddress`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExtraSource {
    pub address: SocketAddr,
    /// Replace those of the `BindConfig`.
    pub socket_options: Option<Box<[SocketOption]>>,
}

impl BindConfig {
    /// The source address and options for a peer: the first source of the peer's family.
    pub fn source_for(&self, peer: SocketAddr) -> (Option<SocketAddr>, &[SocketOption]) {
        let fits = |source: &SocketAddr| source.is_ipv4() == peer.is_ipv4();
        if let Some(source) = self.source.filter(fits) {
            return (Some(source), &self.socket_options);
        }
        match self.extra_sources.iter().find(|extra| fits(&extra.address)) {
            Some(extra) => {
                let options = extra.socket_options.as_deref();
                (Some(extra.address), options.unwrap_or(&self.socket_options))
            }
            None => (None, &self.socket_options),
        }
    }
}

/// A compiled `type.v3.FractionalPercent`; the denominator is 100, 10 000 or 1 000 000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fraction {
    pub numerator: u32,
    pub denominator: u32,
}

impl Fraction {
    pub const ALWAYS: Self = Self { numerator: 100, denominator: 100 };
    pub const NEVER: Self = Self { numerator: 0, denominator: 100 };

    /// Whether a random number falls into the fraction.
    pub fn hits(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

/// A compiled `core.v3.RuntimeFractionalPercent`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuntimeFraction {
    /// `runtime_key`; `None` where it is empty.
    pub runtime_key: Option<Arc<str>>,
    pub default: Fraction,
}

impl RuntimeFraction {
    /// A fraction with no runtime key.
    pub const fn fixed(default: Fraction) -> Self {
        Self { runtime_key: None, default }
    }
}

/// A compiled `core.v3.RuntimeFeatureFlag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFlag {
    /// `runtime_key`; `None` where it is empty.
    pub runtime_key: Option<Arc<str>>,
    pub default: bool,
}

/// A compiled `core.v3.RuntimeDouble`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeDouble {
    pub runtime_key: Option<Arc<str>>,
    pub default: f64,
}

/// A compiled `core.v3.Locality`; empty strings for what is not set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locality {
    pub region: Box<str>,
    pub zone: Box<str>,
    pub sub_zone: Box<str>,
}
