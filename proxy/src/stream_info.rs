//! The facts of one stream, as access logs, header formatters, filters and statistics read them.
//!
//! Written by the station where a fact becomes known, finalised exactly once, in `hcm::stream`
//! (HTTP) or `filter_chain::tcp_proxy` (TCP).

use std::any::{Any, TypeId};
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use smallvec::SmallVec;

use crate::codec::head::Protocol;
use crate::listener::tls_inspector::NotTls;
use crate::tls::TlsInfo;
use crate::upstream::TransportSocketOptions;
use crate::worker::connections::{ConnectionKey, Cut};

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// A unix socket's path; empty for an unnamed peer.
    Pipe(Arc<str>),
    /// An in-memory or internal connection.
    Internal(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Pipe(path) => f.write_str(path),
            Self::Internal(name) => write!(f, "envoy://{name}/"),
        }
    }
}

impl Address {
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Pipe(_) | Self::Internal(_) => None,
        }
    }
}

/// Envoy's `%RESPONSE_FLAGS%`: a set, printed comma-separated in the order in which its members were added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseFlags {
    bits: u32,
    /// The bits' numbers plus one, five bits each, first one lowest; what does not fit is printed last.
    order: u64,
}

macro_rules! response_flags {
    ($($konst:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $(#[doc = $long] pub const $konst: Self = Self { bits: 1 << $bit, order: $bit + 1 };)*
            /// `(flag, short, long)` by bit.
            pub const ALL: &[(Self, &'static str, &'static str)] = &[$((Self::$konst, $short, $long)),*];
        }
    };
}

// Order and names: envoy source/common/stream_info/utility.h, `ResponseFlagUtils::CORE_RESPONSE_FLAGS`.
response_flags! {
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH", "FailedLocalHealthCheck";
    NO_HEALTHY_UPSTREAM = 1, "UH", "NoHealthyUpstream";
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "UpstreamRequestTimeout";
    LOCAL_RESET = 3, "LR", "LocalReset";
    UPSTREAM_REMOTE_RESET = 4, "UR", "UpstreamRemoteReset";
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "UpstreamConnectionFailure";
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "UpstreamConnectionTermination";
    UPSTREAM_OVERFLOW = 7, "UO", "UpstreamOverflow";
    NO_ROUTE_FOUND = 8, "NR", "NoRouteFound";
    DELAY_INJECTED = 9, "DI", "DelayInjected";
    FAULT_INJECTED = 10, "FI", "FaultInjected";
    RATE_LIMITED = 11, "RL", "RateLimited";
    UNAUTHORIZED_EXTERNAL_SERVICE = 12, "UAEX", "UnauthorizedExternalService";
    RATE_LIMIT_SERVICE_ERROR = 13, "RLSE", "RateLimitServiceError";
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC", "DownstreamConnectionTermination";
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX", "UpstreamRetryLimitExceeded";
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH", "InvalidEnvoyRequestHeaders";
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE", "DownstreamProtocolError";
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    RESPONSE_FROM_CACHE_FILTER = 20, "RFCF", "ResponseFromCacheFilter";
    NO_FILTER_CONFIG_FOUND = 21, "NFCF", "NoFilterConfigFound";
    DURATION_TIMEOUT = 22, "DT", "DurationTimeout";
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE", "UpstreamProtocolError";
    NO_CLUSTER_FOUND = 24, "NC", "NoClusterFound";
    OVERLOAD_MANAGER = 25, "OM", "OverloadManagerTerminated";
    DNS_RESOLUTION_FAILURE = 26, "DF", "DnsResolutionFailed";
    DROP_OVERLOAD = 27, "DO", "DropOverload";
    DOWNSTREAM_REMOTE_RESET = 28, "DR", "DownstreamRemoteReset";
    UNCONDITIONAL_DROP_OVERLOAD = 29, "UDO", "UnconditionalDropOverload";
}

/// Room for one flag's number.
const ORDER_BITS: u32 = 5;

impl ResponseFlags {
    /// Adds flags, those that are new behind those that are there.
    pub fn insert(&mut self, flags: Self) {
        let new = flags.bits & !self.bits;
        if new == 0 {
            return;
        }
        self.bits |= new;
        let mut at = (u64::BITS - self.order.leading_zeros()).div_ceil(ORDER_BITS) * ORDER_BITS;
        for number in flags.in_order() {
            if new & (1 << number) != 0 && at + ORDER_BITS <= u64::BITS {
                self.order |= u64::from(number + 1) << at;
                at += ORDER_BITS;
            }
        }
    }

    pub fn contains(self, flag: Self) -> bool {
        self.bits & flag.bits == flag.bits
    }

    pub fn intersects(self, flags: Self) -> bool {
        self.bits & flags.bits != 0
    }

    pub fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// The members' bits, first added first.
    fn in_order(self) -> impl Iterator<Item = u32> {
        let places = (0..u64::BITS / ORDER_BITS).map(move |place| {
            (self.order >> (place * ORDER_BITS)) as u32 & ((1 << ORDER_BITS) - 1)
        });
        let listed: u32 = places.clone().filter(|n| *n > 0).map(|n| 1 << (n - 1)).sum();
        let rest = self.bits & !listed;
        let rest = (0..u32::BITS).filter(move |number| rest & (1 << number) != 0);
        places.take_while(|n| *n > 0).map(|n| n - 1).chain(rest)
    }

    /// The flag of a short name.
    pub fn from_short(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, short, _)| *short == name).map(|(flag, ..)| *flag)
    }

    /// `-` for none, else the short names with commas between.
    pub fn write_short(self, out: &mut Vec<u8>) {
        self.write(out, |(_, short, _)| short);
    }

    /// As `write_short`, with the long names.
    pub fn write_long(self, out: &mut Vec<u8>) {
        self.write(out, |(.., long)| long);
    }

    fn write(
        self,
        out: &mut Vec<u8>,
        name: impl Fn(&(Self, &'static str, &'static str)) -> &'static str,
    ) {
        if self.is_empty() {
            out.push(b'-');
            return;
        }
        for (i, number) in self.in_order().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(name(&Self::ALL[number as usize]).as_bytes());
        }
    }
}

impl std::ops::BitOr for ResponseFlags {
    type Output = Self;
    fn bitor(mut self, other: Self) -> Self {
        self.insert(other);
        self
    }
}

/// Bytes seen on one side of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByteMeter {
    pub wire_received: u64,
    pub wire_sent: u64,
    pub header_received: u64,
    pub header_sent: u64,
}

impl std::ops::AddAssign for ByteMeter {
    fn add_assign(&mut self, other: Self) {
        self.wire_received += other.wire_received;
        self.wire_sent += other.wire_sent;
        self.header_received += other.header_received;
        self.header_sent += other.header_sent;
    }
}

/// Moments of a stream, relative to nothing: monotonic.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    pub last_downstream_rx: Option<Instant>,
    /// When the filters had let the head pass to the router.
    pub routed: Option<Instant>,
    pub first_upstream_tx: Option<Instant>,
    pub last_upstream_tx: Option<Instant>,
    pub first_upstream_rx: Option<Instant>,
    pub last_upstream_rx: Option<Instant>,
    pub first_downstream_tx: Option<Instant>,
    pub last_downstream_tx: Option<Instant>,
    pub end: Option<Instant>,
}

/// Dynamic metadata: namespace, then a struct; a handful at most.
pub type Metadata = SmallVec<[(Arc<str>, Arc<serde_json::Map<String, serde_json::Value>>); 1]>;

/// The struct of a namespace, made where there is none.
pub fn fields_mut<'m>(
    metadata: &'m mut Metadata,
    namespace: &str,
) -> &'m mut serde_json::Map<String, serde_json::Value> {
    let at = match metadata.iter().position(|(ns, _)| &**ns == namespace) {
        Some(at) => at,
        None => {
            metadata.push((Arc::from(namespace), Arc::default()));
            metadata.len() - 1
        }
    };
    Arc::make_mut(&mut metadata[at].1)
}

/// Adds fields that were made before to the struct of a namespace; without an allocation where it is the first.
pub fn add_fields(
    metadata: &mut Metadata,
    namespace: &Arc<str>,
    fields: &Arc<serde_json::Map<String, serde_json::Value>>,
) {
    match metadata.iter_mut().find(|(of, _)| of == namespace) {
        Some((_, known)) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), value.clone()));
            Arc::make_mut(known).extend(fields);
        }
        None => metadata.push((namespace.clone(), fields.clone())),
    }
}

/// What the listener filter `tls_inspector` makes of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsInspection {
    /// Not asked, or not answered in time.
    #[default]
    None,
    Found,
    NotFound(NotTls),
    /// The ClientHello was too long; the connection is closed.
    TooLarge,
}

/// Facts about the downstream connection, shared by its streams.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Unique in the process.
    pub id: u64,
    /// The peer as the socket (or the PROXY header) names it.
    pub remote: Address,
    /// The peer as the socket names it, whatever a PROXY header says.
    pub direct_remote: Address,
    pub local: Address,
    /// `local` is the original destination, as a listener filter has found out.
    pub local_restored: bool,
    pub direct_local: Address,
    pub requested_server_name: Option<Arc<str>>,
    /// What the listener filter `tls_inspector` found.
    pub tls_inspection: TlsInspection,
    pub is_tls: bool,
    /// What the handshake established, once it is done.
    pub tls: OnceCell<Arc<TlsInfo>>,
    /// Why the handshake failed: `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: OnceCell<Arc<str>>,
    pub started: Instant,
    /// Its place on its worker's list.
    pub key: ConnectionKey,
    pub filter_chain_name: Arc<str>,
    pub listener_name: Arc<str>,
    /// Filter state of the connection: parent of every stream's.
    pub state: FilterState,
    /// What listener filters have found.
    pub found: Metadata,
    /// That, and what network filters have left, where they have left anything.
    pub left: OnceCell<Box<Metadata>>,
    /// What it asks of every upstream connection: whose address it is to come from.
    pub upstream_options: Option<Arc<TransportSocketOptions>>,
    /// What its connection manager speaks; bytes on the wire of the streams that have ended.
    pub protocol: Cell<Option<Protocol>>,
    pub wire_received: Cell<u64>,
    pub wire_sent: Cell<u64>,
    /// Why we have ended it by force.
    pub cut: Cell<Option<Cut>>,
}

impl ConnectionInfo {
    /// The metadata that a TCP stream begins with.
    pub fn metadata(&self) -> &Metadata {
        self.left.get().map_or(&self.found, |left| left)
    }

    /// Adds a stream that has ended.
    pub fn count_stream(&self, protocol: Option<Protocol>, bytes: &ByteMeter) {
        self.protocol.set(protocol.or(self.protocol.get()));
        self.wire_received.set(self.wire_received.get() + bytes.wire_received);
        self.wire_sent.set(self.wire_sent.get() + bytes.wire_sent);
    }
}

/// Nobody's connection.
impl Default for ConnectionInfo {
    fn default() -> Self {
        let nowhere = || Address::Pipe("".into());
        Self {
            id: 0,
            remote: nowhere(),
            direct_remote: nowhere(),
            local: nowhere(),
            local_restored: false,
            direct_local: nowhere(),
            requested_server_name: None,
            tls_inspection: TlsInspection::None,
            is_tls: false,
            tls: OnceCell::new(),
            transport_failure: OnceCell::new(),
            started: Instant::now(),
            key: ConnectionKey::NONE,
            filter_chain_name: "".into(),
            listener_name: "".into(),
            state: FilterState::default(),
            found: Metadata::new(),
            left: OnceCell::new(),
            upstream_options: None,
            protocol: Cell::new(None),
            wire_received: Cell::new(0),
            wire_sent: Cell::new(0),
            cut: Cell::new(None),
        }
    }
}

/// Facts about the upstream side of the last attempt.
#[derive(Debug, Clone, Default)]
pub struct UpstreamInfo {
    pub cluster: Option<Arc<str>>,
    /// `alt_stat_name` of the cluster where it has one: what `%UPSTREAM_CLUSTER%` prints.
    pub cluster_observability_name: Option<Arc<str>>,
    pub host: Option<Address>,
    pub hostname: Option<Arc<str>>,
    pub local: Option<Address>,
    pub remote: Option<Address>,
    pub connection_id: Option<u64>,
    pub protocol: Option<Protocol>,
    pub tls: Option<Arc<TlsInfo>>,
    pub transport_failure: Option<Arc<str>>,
    /// Reasons why a host was detected failed, connect time.
    pub connect_duration: Option<Duration>,
    pub attempts: u32,
    pub bytes: ByteMeter,
    /// When the connection began and had been made; the same for all streams of the connection.
    pub connect_start: Option<Instant>,
    pub connect_end: Option<Instant>,
    /// From the attempt's start until the pool had a connection for it.
    pub pool_ready: Option<Duration>,
    /// `filter_metadata` of the cluster and of the endpoint: namespace, then a struct.
    pub cluster_metadata: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    pub host_metadata: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
}

/// An attempt before the last one: what `%UPSTREAM_HOSTS_ATTEMPTED%` lists.
#[derive(Debug, Clone)]
pub struct EarlierAttempt {
    pub host: Address,
    pub hostname: Option<Arc<str>>,
    pub connection_id: Option<u64>,
}

/// Values that filters leave for one another, a handful at most: typed ones by `TypeId`, strings by
/// Envoy's object key.
#[derive(Default, Clone)]
pub struct FilterState {
    typed: Vec<(TypeId, Rc<dyn Any>)>,
    strings: Vec<(Arc<str>, Arc<str>)>,
    /// Values made on first use, by whoever owns the key.
    keyed: RefCell<Vec<(usize, Rc<dyn Any>)>>,
}

impl FilterState {
    pub fn set<T: 'static>(&mut self, value: T) {
        let id = TypeId::of::<T>();
        self.typed.retain(|(have, _)| *have != id);
        self.typed.push((id, Rc::new(value)));
    }

    /// Sets a string object (`envoy.string`), which `%FILTER_STATE(key)%` prints.
    pub fn set_string(&mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) {
        let key = key.into();
        self.strings.retain(|(have, _)| *have != key);
        self.strings.push((key, value.into()));
    }

    /// The value of a key, made where there is none: for filters that keep something for a connection. The key is
    /// an address or number that nobody else uses.
    pub fn keyed<T: 'static>(&self, key: usize, make: impl FnOnce() -> T) -> Rc<T> {
        let mut keyed = self.keyed.borrow_mut();
        let found = keyed.iter().find(|(have, _)| *have == key).map(|(_, value)| value.clone());
        if let Some(found) = found.and_then(|value| value.downcast().ok()) {
            return found;
        }
        let value = Rc::new(make());
        keyed.push((key, value.clone()));
        value
    }

    pub fn string(&self, key: &str) -> Option<&str> {
        self.strings.iter().find(|(have, _)| **have == *key).map(|(_, value)| &**value)
    }

    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.typed
            .iter()
            .find(|(id, _)| *id == TypeId::of::<T>())
            .and_then(|(_, v)| v.downcast_ref())
    }
}

impl fmt::Debug for FilterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilterState({} values)", self.typed.len() + self.strings.len())
    }
}

/// How many messages of a gRPC call have begun.
#[derive(Debug, Clone, Copy)]
pub struct GrpcMessages {
    pub request: u64,
    pub response: u64,
}

/// The facts of one stream (HTTP) or connection (TCP).
#[derive(Debug)]
pub struct StreamInfo {
    pub connection: Rc<ConnectionInfo>,
    pub start: Instant,
    /// Wall clock of `start`.
    pub start_time: SystemTime,
    /// Unique in the process: `%STREAM_ID%` where there is no request id.
    pub stream_id: u64,
    pub protocol: Option<Protocol>,
    pub response_code: Option<StatusCode>,
    /// Envoy's `response_code_details`; static unless it carries a reason.
    pub response_code_details: Option<std::borrow::Cow<'static, str>>,
    pub connection_termination_details: Option<std::borrow::Cow<'static, str>>,
    pub flags: ResponseFlags,
    /// Body bytes, without heads and framing: `%BYTES_RECEIVED%`, `%BYTES_SENT%`.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub downstream_bytes: ByteMeter,
    pub timing: Timing,
    pub upstream: UpstreamInfo,
    pub route_name: Option<Arc<str>>,
    pub virtual_host_name: Option<Arc<str>>,
    pub virtual_cluster_name: Option<Arc<str>>,
    /// Trusted client address after X-Forwarded-For: `%DOWNSTREAM_REMOTE_ADDRESS%`.
    pub remote: Address,
    pub metadata: Metadata,
    /// Metadata of the matched route, compiled: namespace, then a struct.
    pub route_metadata: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    pub virtual_host_metadata: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    /// Attempts before the one that `upstream` describes, oldest first.
    pub earlier_attempts: Vec<EarlierAttempt>,
    /// `%CUSTOM_FLAGS%`: comma-separated names that filters set.
    pub custom_flags: std::borrow::Cow<'static, str>,
    pub state: FilterState,
    /// Left by `grpc_stats` with `emit_filter_state`.
    pub grpc_messages: Option<GrpcMessages>,
    pub is_health_check: bool,
    pub is_internal: bool,
    /// Why the request would be traced: what `tracing.*` counts.
    pub trace_reason: Option<TraceReason>,
}

/// Why a request is traced (Envoy's `Tracing::Reason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceReason {
    Sampling,
    ServiceForced,
    ClientForced,
}

impl StreamInfo {
    pub fn new(
        connection: Rc<ConnectionInfo>,
        stream_id: u64,
        start: Instant,
        start_time: SystemTime,
    ) -> Self {
        let remote = connection.remote.clone();
        Self {
            connection,
            start,
            start_time,
            stream_id,
            protocol: None,
            response_code: None,
            response_code_details: None,
            connection_termination_details: None,
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            downstream_bytes: ByteMeter::default(),
            timing: Timing::default(),
            upstream: UpstreamInfo::default(),
            route_name: None,
            virtual_host_name: None,
            virtual_cluster_name: None,
            remote,
            metadata: Metadata::new(),
            route_metadata: None,
            virtual_host_metadata: None,
            earlier_attempts: Vec::new(),
            custom_flags: std::borrow::Cow::Borrowed(""),
            state: FilterState::default(),
            grpc_messages: None,
            is_health_check: false,
            is_internal: false,
            trace_reason: None,
        }
    }

    /// Sets the details once: the first cause is the one that is logged.
    pub fn set_details(&mut self, details: impl Into<std::borrow::Cow<'static, str>>) {
        self.response_code_details = Some(details.into());
    }

    /// The struct of a namespace, made where it is missing.
    pub fn metadata_mut(
        &mut self,
        namespace: &str,
    ) -> &mut serde_json::Map<String, serde_json::Value> {
        fields_mut(&mut self.metadata, namespace)
    }

    /// Looks in the stream's state, then in its connection's.
    pub fn filter_state<T: 'static>(&self) -> Option<&T> {
        self.state.get().or_else(|| self.connection.state.get())
    }

    /// As `filter_state`, for string objects.
    pub fn filter_state_string(&self, key: &str) -> Option<&str> {
        self.state.string(key).or_else(|| self.connection.state.string(key))
    }
}

/// Facts of a stream over a pipe, for tests of what reads them.
#[cfg(test)]
pub(crate) fn test_info() -> StreamInfo {
    let connection = ConnectionInfo { id: 1, ..ConnectionInfo::default() };
    StreamInfo::new(Rc::new(connection), 1, Instant::now(), SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_the_order_in_which_they_came() {
        let mut flags = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
        flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        let mut out = Vec::new();
        flags.write_short(&mut out);
        assert_eq!(out, b"URX,UF");
        let mut all = ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD;
        for (flag, ..) in ResponseFlags::ALL {
            all.insert(*flag);
        }
        out.clear();
        all.write_short(&mut out);
        assert!(out.starts_with(b"UDO,LH,UH,UT,"), "{}", String::from_utf8_lossy(&out));
        assert_eq!(out.split(|b| *b == b',').count(), ResponseFlags::ALL.len());
        assert_eq!(ResponseFlags::from_short("NC"), Some(ResponseFlags::NO_CLUSTER_FOUND));
    }
}
