//! Compiled listeners: sockets, listener filters, filter chains. From pb `Listener`.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLogConfigs;
use super::core::{ConfigAddress, SocketOption, TcpKeepalive};
use super::filter_chain::FilterChains;
use crate::stream_info::Address;
use crate::tls::SecretUse;

/// A listener as published to the workers.
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    /// `address` first, then `additional_addresses`.
    pub binds: Vec<Bind>,
    /// What stands between `listener.` and the counter: `stat_prefix`, else the address with `:` as `_`.
    pub stat_prefix: Arc<str>,
    pub bind_to_port: bool,
    /// Redirected connections go to the listener of their destination, where there is one. Adds the filter
    /// `OriginalDst` at the end.
    pub use_original_dst: bool,
    /// One socket per worker (SO_REUSEPORT), else one shared by all.
    pub reuse_port: bool,
    pub backlog: i32,
    /// Bytes buffered for a peer that does not read before the other side is no longer read.
    pub per_connection_buffer_limit: usize,
    pub listener_filters: Vec<ListenerFilter>,
    /// `None`: wait for ever.
    pub listener_filters_timeout: Option<Duration>,
    pub continue_on_listener_filters_timeout: bool,
    /// Accepts per readiness of the socket.
    pub max_accepts_per_event: usize,
    pub filter_chains: FilterChains,
    pub access_log: AccessLogConfigs,
    pub ignore_global_conn_limit: bool,
    pub direction: Direction,
    pub drain_type: DrainType,
}

impl Listener {
    /// The slots of all its chains' secrets: what warming waits for.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretUse> {
        let contexts = self.filter_chains.iter().filter_map(|chain| chain.transport.as_ref());
        contexts.flat_map(|context| context.settings().common.slots())
    }

    /// The places that are its own. A port that the kernel chooses is no one's.
    pub fn places(&self) -> impl Iterator<Item = ConfigAddress> {
        let is_own = |bind: &&Bind| !bind.address.is_any_port() || !self.bind_to_port;
        self.binds.iter().filter(is_own).map(|bind| bind.address.place())
    }

    /// Why a listener is refused that shares an address with another.
    pub fn duplicate_address(&self) -> String {
        let addresses: Vec<_> = self.binds.iter().map(|bind| bind.address.to_string()).collect();
        format!(
            "error adding listener: '{}' has duplicate address '{}' as existing listener, to check if the listener has \
             duplicated addresses with other listeners or 'enable_reuse_port' is set to 'false' for the listener",
            self.name,
            addresses.join(",")
        )
    }
}

/// One listening address.
#[derive(Debug, Clone, PartialEq)]
pub struct Bind {
    /// An IP (with `ipv4_compat`) or a pipe.
    pub address: ConfigAddress,
    pub keepalive: Option<TcpKeepalive>,
    pub socket_options: Box<[SocketOption]>,
    pub freebind: bool,
    /// IP_TRANSPARENT: takes connections to addresses that are not ours (TPROXY).
    pub transparent: bool,
    /// TCP_FASTOPEN queue length.
    pub fast_open: Option<u32>,
}

impl Bind {
    /// Whether a socket made for one will do for the other.
    pub fn is_same_socket(&self, other: &Self) -> bool {
        self.address.is_same_place(&other.address) && self.has_same_options(other)
    }

    pub fn has_same_options(&self, other: &Self) -> bool {
        self.transparent == other.transparent
            && self.freebind == other.freebind
            && self.fast_open == other.fast_open
            && self.keepalive == other.keepalive
            && self.socket_options == other.socket_options
    }
}

/// pb `TrafficDirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Unspecified,
    Inbound,
    Outbound,
}

/// pb `Listener.DrainType`: whether connections are told to go while the operator has health checks failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainType {
    Default,
    /// Only where a listener changes, goes, or is drained.
    ModifyOnly,
}

/// One listener filter and when it is skipped.
#[derive(Debug)]
pub struct ListenerFilter {
    pub kind: ListenerFilterKind,
    /// `filter_disabled`: skipped for connections that match.
    pub disabled: Option<Predicate>,
}

impl ListenerFilter {
    /// Whether it is skipped for a connection to `local`.
    pub fn is_disabled(&self, local: &Address) -> bool {
        self.disabled.as_ref().is_some_and(|predicate| predicate.matches(local))
    }
}

/// What a listener filter does.
#[derive(Debug)]
pub enum ListenerFilterKind {
    /// Detects HTTP/1 and the HTTP/2 preface; sets the application protocols `http/1.0`, `http/1.1`, `h2c`.
    HttpInspector,
    /// Detects TLS; sets the transport protocol, the server name and the application protocols of the ClientHello.
    TlsInspector(TlsInspector),
    /// Reads a PROXY header, version 1 or 2.
    ProxyProtocol(ProxyProtocol),
    /// Restores the address that a redirected connection was sent to.
    OriginalDst,
    /// Connects to upstreams from the client's address.
    OriginalSrc(OriginalSrc),
}

/// pb `extensions.filters.listener.original_src.v3.OriginalSrc`.
#[derive(Debug, Clone, Copy)]
pub struct OriginalSrc {
    /// From its port, too.
    pub bind_port: bool,
    /// SO_MARK of upstream sockets; 0: none.
    pub mark: u32,
}

impl ListenerFilterKind {
    /// Needs none of the connection's bytes.
    pub fn is_immediate(&self) -> bool {
        match self {
            Self::HttpInspector | Self::TlsInspector(_) | Self::ProxyProtocol(_) => false,
            Self::OriginalDst | Self::OriginalSrc(_) => true,
        }
    }
}

/// pb `extensions.filters.listener.tls_inspector.v3.TlsInspector`.
#[derive(Debug, Clone, Copy)]
pub struct TlsInspector {
    /// Bytes, record headers included; a ClientHello that is longer ends its connection.
    pub max_client_hello_size: usize,
    /// What is no ClientHello ends its connection instead of passing as plain.
    pub close_on_parsing_errors: bool,
}

/// pb `extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`.
#[derive(Debug, Clone, Default)]
pub struct ProxyProtocol {
    /// Pass connections that start without a PROXY header.
    pub allow_without_header: bool,
    pub disallow_v1: bool,
    pub disallow_v2: bool,
    /// Between `proxy_proto.` and the counters, where set.
    pub stat_prefix: Arc<str>,
    /// TLVs of version 2 that become dynamic metadata of the connection; one rule a type at most.
    pub rules: Box<[TlvRule]>,
}

/// pb `ProxyProtocol.Rule`.
#[derive(Debug, Clone)]
pub struct TlvRule {
    pub tlv_type: u8,
    /// Default `envoy.filters.listener.proxy_protocol`.
    pub namespace: Arc<str>,
    pub key: Arc<str>,
}

/// pb `ListenerFilterChainMatchPredicate`.
#[derive(Debug)]
pub enum Predicate {
    Any(Vec<Predicate>),
    All(Vec<Predicate>),
    Not(Box<Predicate>),
    Always(bool),
    /// Destination ports from start (included) to end (excluded).
    DestinationPort(u16, u32),
}

impl Predicate {
    pub fn matches(&self, local: &Address) -> bool {
        match self {
            Self::Any(all) => all.iter().any(|p| p.matches(local)),
            Self::All(all) => all.iter().all(|p| p.matches(local)),
            Self::Not(p) => !p.matches(local),
            Self::Always(value) => *value,
            Self::DestinationPort(start, end) => {
                local.ip().is_some_and(|a| a.port() >= *start && u32::from(a.port()) < *end)
            }
        }
    }
}
