//! The listener filters of one connection, in configuration order, on the bytes that have come so far.
//!
//! Bytes are read as they come and stay in the buffer for the filter chain, but for a PROXY header, which is taken
//! out. A connection that ends here with bytes unread ends by RST, as a socket does whose bytes nobody took.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::BytesMut;

use super::http_inspector::{self, Inspected};
use super::original::{restore_destination, take_source};
use super::proxy_protocol::{self, ProxyError, ProxyHeader, Version};
use super::tls_inspector;
use super::{ApplicationProtocols, Arrival, Found, WorkerListener};
use crate::config::listener::{
    Listener, ListenerFilter, ListenerFilterKind, ProxyProtocol, TlsInspector,
};
use crate::io::Io;
use crate::stats::Block;
use crate::stats::names::{
    HttpInspectorStat, ListenerStat, ProxyProtocolErrorStat, ProxyProtocolStat, TlsInspectorStat,
};
use crate::stream_info::{Address, TlsInspection};
use crate::worker::WorkerContext;
use crate::worker::connections::{ConnectionHandle, LastCall};

/// A first read of listener filters; small, since a connection that stops there holds it.
const INSPECT_BYTES: usize = 1024;

/// The counters of a listener's filters on one worker, in the order of the filters.
pub struct ListenerFilters {
    stats: Box<[FilterStats]>,
    /// None of them waits for bytes.
    immediate: bool,
}

enum FilterStats {
    /// Of a filter that counts nothing.
    None,
    HttpInspector(Block<HttpInspectorStat>),
    TlsInspector(Block<TlsInspectorStat>),
    ProxyProtocol {
        stats: Block<ProxyProtocolStat>,
        errors: Block<ProxyProtocolErrorStat>,
    },
}

/// What becomes of a connection.
pub(super) enum Outcome {
    Passed,
    /// To be closed.
    Refused,
}

enum Ended {
    Passed,
    Refused,
    /// The connection drains, and its client has said nothing.
    Drained,
    Closed,
    Failed,
    TimedOut,
}

enum Step {
    Done,
    More,
    Refuse,
}

impl ListenerFilters {
    pub fn new(listener: &Listener, worker: &WorkerContext) -> Self {
        let block = |filter: &ListenerFilter| match &filter.kind {
            ListenerFilterKind::OriginalDst | ListenerFilterKind::OriginalSrc(_) => {
                FilterStats::None
            }
            ListenerFilterKind::HttpInspector => {
                let scope = worker.registry.scope("http_inspector");
                FilterStats::HttpInspector(scope.block(worker.index))
            }
            ListenerFilterKind::TlsInspector(_) => {
                let scope = worker.registry.scope("tls_inspector");
                FilterStats::TlsInspector(scope.block(worker.index))
            }
            ListenerFilterKind::ProxyProtocol(config) => {
                let name = format!("proxy_proto.{}", config.stat_prefix);
                let scope = worker.registry.scope(name.trim_end_matches('.'));
                FilterStats::ProxyProtocol {
                    stats: scope.block(worker.index),
                    errors: worker.registry.scope("").block(worker.index),
                }
            }
        };
        Self {
            stats: listener.listener_filters.iter().map(block).collect(),
            immediate: listener.listener_filters.iter().all(|f| f.kind.is_immediate()),
        }
    }

    /// Whether `run_immediate` does for all of them.
    pub(super) fn are_immediate(&self) -> bool {
        self.immediate
    }

    /// Runs them.
    pub(super) async fn run(
        &self,
        listener: &WorkerListener,
        arrival: &mut Arrival,
        handle: &ConnectionHandle,
    ) -> Outcome {
        let Arrival { io, read, found, .. } = arrival;
        let config = &listener.config;
        let mut timer = listener.worker.timers.timer();
        if let Some(timeout) = config.listener_filters_timeout {
            timer.arm(Instant::now() + timeout);
        }
        let mut last_call = LastCall::new(handle, &listener.worker.timers);
        for (filter, stats) in config.listener_filters.iter().zip(&self.stats) {
            if is_skipped(filter, found) || take_immediate(&filter.kind, io, found) {
                continue;
            }
            let outcome = poll_fn(|cx| {
                loop {
                    // As in Envoy, nobody is asked about no bytes.
                    if !read.is_empty() {
                        match step(&filter.kind, stats, read, found) {
                            Step::Done => return Poll::Ready(Ended::Passed),
                            Step::Refuse => return Poll::Ready(Ended::Refused),
                            Step::More => {}
                        }
                    }
                    if timer.poll(cx).is_ready() {
                        return Poll::Ready(Ended::TimedOut);
                    }
                    match poll_more(io, cx, read) {
                        Poll::Pending if read.is_empty() => {
                            return last_call.poll(cx).map(|()| Ended::Drained);
                        }
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(0)) => return Poll::Ready(Ended::Closed),
                        Poll::Ready(Err(_)) => return Poll::Ready(Ended::Failed),
                        Poll::Ready(Ok(_)) => {}
                    }
                }
            })
            .await;
            let stat = match outcome {
                Ended::Passed => continue,
                Ended::Refused | Ended::Drained => return Outcome::Refused,
                Ended::Closed => ListenerStat::DownstreamListenerFilterRemoteClose,
                Ended::Failed => ListenerStat::DownstreamListenerFilterError,
                Ended::TimedOut => ListenerStat::DownstreamPreCxTimeout,
            };
            listener.stats.inc(stat);
            let goes_on = config.continue_on_listener_filters_timeout;
            return match outcome {
                Ended::TimedOut if goes_on => Outcome::Passed,
                _ => Outcome::Refused,
            };
        }
        Outcome::Passed
    }
}

fn is_skipped(filter: &ListenerFilter, found: &Found) -> bool {
    filter.is_disabled(&found.local)
        // Nothing to see in what is encrypted.
        || (matches!(filter.kind, ListenerFilterKind::HttpInspector)
            && found.tls == TlsInspection::Found)
}

/// Runs filters none of which waits for bytes.
pub(super) fn run_immediate(config: &Listener, arrival: &mut Arrival) {
    for filter in &config.listener_filters {
        if !is_skipped(filter, &arrival.found) {
            take_immediate(&filter.kind, &arrival.io, &mut arrival.found);
        }
    }
}

/// Runs a filter that does not wait for bytes; false where this is another one.
fn take_immediate(kind: &ListenerFilterKind, io: &Io, found: &mut Found) -> bool {
    match kind {
        ListenerFilterKind::OriginalDst => restore_destination(io, found),
        ListenerFilterKind::OriginalSrc(config) => take_source(config, found),
        ListenerFilterKind::HttpInspector
        | ListenerFilterKind::TlsInspector(_)
        | ListenerFilterKind::ProxyProtocol(_) => return false,
    }
    true
}

/// Reads once; who is silent holds no buffer.
fn poll_more(io: &mut Io, cx: &mut Context<'_>, read: &mut BytesMut) -> Poll<io::Result<usize>> {
    ready!(io.poll_read_ready(cx));
    read.reserve(INSPECT_BYTES);
    io.poll_read(cx, read)
}

fn step(
    kind: &ListenerFilterKind,
    stats: &FilterStats,
    read: &mut BytesMut,
    found: &mut Found,
) -> Step {
    match (kind, stats) {
        (ListenerFilterKind::HttpInspector, FilterStats::HttpInspector(stats)) => {
            inspect_http(stats, read, found)
        }
        (ListenerFilterKind::TlsInspector(config), FilterStats::TlsInspector(stats)) => {
            inspect_tls(*config, stats, read, found)
        }
        (
            ListenerFilterKind::ProxyProtocol(config),
            FilterStats::ProxyProtocol { stats, errors },
        ) => read_proxy_header(config, stats, errors, read, found),
        // The two lists were made together.
        _ => Step::Done,
    }
}

fn inspect_http(stats: &Block<HttpInspectorStat>, read: &[u8], found: &mut Found) -> Step {
    let (stat, step) = match http_inspector::inspect(read) {
        Inspected::More => return Step::More,
        Inspected::TooLong => (HttpInspectorStat::ReadError, Step::Refuse),
        Inspected::NotHttp => (HttpInspectorStat::HttpNotFound, Step::Done),
        Inspected::Http(protocol) => {
            found.application_protocols = ApplicationProtocols::Seen(protocol);
            let stat = match protocol {
                "http/1.1" => HttpInspectorStat::Http11Found,
                "http/1.0" => HttpInspectorStat::Http10Found,
                _ => HttpInspectorStat::Http2Found,
            };
            (stat, Step::Done)
        }
    };
    stats.inc(stat);
    step
}

fn inspect_tls(
    config: TlsInspector,
    stats: &Block<TlsInspectorStat>,
    read: &[u8],
    found: &mut Found,
) -> Step {
    use TlsInspectorStat as Stat;
    use tls_inspector::Inspected;
    let limit = config.max_client_hello_size;
    let (inspected, seen) = tls_inspector::inspect(read, limit);
    let step = match inspected {
        Inspected::More => return Step::More,
        Inspected::TooLarge => {
            stats.inc(Stat::ClientHelloTooLarge);
            found.tls = TlsInspection::TooLarge;
            Step::Refuse
        }
        Inspected::NotTls(_) if config.close_on_parsing_errors => {
            let too_large = read.len() >= limit;
            stats.inc(if too_large { Stat::ClientHelloTooLarge } else { Stat::TlsNotFound });
            Step::Refuse
        }
        Inspected::NotTls(reason) => {
            stats.inc(Stat::TlsNotFound);
            found.tls = TlsInspection::NotFound(reason);
            Step::Done
        }
        Inspected::Tls(hello) => {
            stats.inc(Stat::TlsFound);
            let sni = hello.server_name.is_some();
            stats.inc(if sni { Stat::SniFound } else { Stat::SniNotFound });
            stats.inc(if hello.alpn.is_some() { Stat::AlpnFound } else { Stat::AlpnNotFound });
            found.tls = TlsInspection::Found;
            found.server_name = hello.server_name;
            if let Some(list) = hello.alpn {
                found.application_protocols = ApplicationProtocols::Offered(list);
            }
            Step::Done
        }
    };
    stats.record(Stat::BytesProcessed, seen as u64);
    step
}

fn read_proxy_header(
    config: &ProxyProtocol,
    stats: &Block<ProxyProtocolStat>,
    errors: &Block<ProxyProtocolErrorStat>,
    read: &mut BytesMut,
    found: &mut Found,
) -> Step {
    use ProxyProtocolStat as Stat;
    let by_version = |version, v1, v2| match version {
        Version::V1 => v1,
        Version::V2 => v2,
    };
    match proxy_protocol::parse(read, config) {
        Ok(None) => Step::More,
        Ok(Some(parsed)) => {
            stats.inc(by_version(parsed.version, Stat::V1Found, Stat::V2Found));
            for (rule, value) in parsed.tlvs(read, config) {
                insert_once(found, rule, utf8(value));
            }
            let _ = read.split_to(parsed.length);
            if let ProxyHeader::Addresses { source, destination } = parsed.header {
                found.remote = Address::Ip(source);
                found.local = Address::Ip(destination);
                found.local_restored = true;
            }
            Step::Done
        }
        Err(ProxyError::Absent) if config.allow_without_header => {
            stats.inc(Stat::NotFoundAllowed);
            Step::Done
        }
        Err(error) => {
            match error {
                ProxyError::Absent => stats.inc(Stat::NotFoundDisallowed),
                ProxyError::Malformed(v) => {
                    stats.inc(by_version(v, Stat::V1Error, Stat::V2Error));
                }
                ProxyError::Disallowed(v) => {
                    stats.inc(by_version(v, Stat::V1Found, Stat::V2Found));
                    stats.inc(by_version(v, Stat::V1Disallowed, Stat::V2Disallowed));
                    return Step::Refuse;
                }
            }
            errors.inc(ProxyProtocolErrorStat::DownstreamCxProxyProtoError);
            Step::Refuse
        }
    }
}

/// The first value of a key stays.
fn insert_once(found: &mut Found, rule: &crate::config::listener::TlvRule, value: String) {
    let at = match found.metadata.iter().position(|(name, _)| *name == rule.namespace) {
        Some(at) => at,
        None => {
            found.metadata.push((rule.namespace.clone(), Arc::default()));
            found.metadata.len() - 1
        }
    };
    Arc::make_mut(&mut found.metadata[at].1).entry(&*rule.key).or_insert(value.into());
}

/// As text; each byte that is none becomes `!`, as in Envoy.
fn utf8(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }
    out
}
