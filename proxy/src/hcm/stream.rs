//! One request and its response: `handle_stream` is the request path on one screen.
//!
//! The stream owns the request outside the filter chain and pulls: from the client through the request filters
//! on behalf of the router (`frames`), from the upstream through the response filters on behalf of the client.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;

use super::live::WorkerHcm;
use super::local_reply::LocalReply;
use super::stream_timers::StreamTimers;
use smallvec::SmallVec;

use crate::cluster::WorkerCluster;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::queue::FrameQueue;
use crate::codec::{Fault, Frame, ServerStream};
use crate::config::route::stats::RouteStats;
use crate::format;
use crate::http_filters::chain::FilterChain;
use crate::http_filters::{FilterContext, Flow};
use crate::router::route_table::RouteFacts;
use crate::router::{self, RouteState, timeouts};
use crate::stats::names::HttpStat;
use crate::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::worker::WorkerContext;

/// Why a stream ends before its response is complete.
#[derive(Debug)]
pub enum StreamEnd {
    /// To be answered by us.
    Reply(Box<LocalReply>),
    /// The client has gone or broke the protocol.
    Downstream(Fault),
    /// Cut off, with an HTTP/2 error code.
    Reset(u32),
}

/// HTTP/2 error codes that the proxy sends (RFC 9113 §7).
pub mod reset_code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const CANCEL: u32 = 8;
}

/// A frame on its way through the filters: `None` is the end of the body.
pub(super) struct Passing {
    pub(super) frame: Option<Frame>,
    /// Request: the filter that sees it next. Response: how many filters are still to see it.
    pub(super) at: usize,
}

/// One direction's frames between their source and their taker.
#[derive(Default)]
pub(super) struct Direction {
    /// Collected by a filter that held back the head; each marked with its place in the chain, as in `Passing`.
    pub(super) collected: FrameQueue<usize>,
    pub(super) current: Option<Passing>,
    pub(super) wait: Option<LocalBoxFuture<'static, ()>>,
    /// The source has given its end.
    pub(super) ended: bool,
    /// Trailers have passed: no `end` call of a data hook is due.
    pub(super) had_trailers: bool,
}

impl Direction {
    /// The frame that a filter has held up, or the next one collected.
    pub(super) fn take_held(&mut self) -> Option<Passing> {
        self.current
            .take()
            .or_else(|| self.collected.pop().map(|(frame, at)| Passing { frame, at }))
    }
}

/// How far the response has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    Nothing,
    HeadSent,
    Complete,
}

/// A request being served.
pub struct ActiveStream<'a> {
    pub worker: Rc<WorkerContext>,
    pub hcm: Rc<WorkerHcm>,
    pub down: ServerStream<'a>,
    pub request: RequestHead,
    pub info: StreamInfo,
    pub route: RouteState,
    pub timers: StreamTimers,
    /// The moment of the last poll, so that one turn asks the clock once.
    pub now: Instant,
    pub(super) chain: FilterChain,
    pub(super) chain_made: bool,
    pub(super) inbound: Direction,
    pub(super) outbound: Direction,
    pub progress: Progress,
    /// The head that the client got, for logs and `on_end`.
    pub response: Option<ResponseHead>,
    pub response_trailers: Option<HeaderList>,
    pub(super) local_reply_body: bytes::Bytes,
    /// The route's, for the response of a listener for inbound traffic.
    pub(super) operation: Option<Arc<str>>,
    /// The cluster of the route as matched first.
    pub cluster: Option<Rc<WorkerCluster>>,
    /// What counts a request beside its cluster: its virtual cluster, its route.
    pub(crate) route_stats: SmallVec<[Arc<RouteStats>; 2]>,
    /// The client did: the flag for it is set when the stream ends, after any reply to it was made.
    pub(super) broke_protocol: bool,
    /// The head was read whole: without, logs know nothing of a request.
    pub(super) head_read: bool,
    /// Taken off the host by `strip_*_host_port`; a CONNECT gets it back.
    pub stripped_port: Option<u32>,
    /// The codec's buffer was at its limit when the source was last asked.
    pub(super) was_full: bool,
    /// The connection is to be closed after this response.
    pub close_after: bool,
    /// It drains already: nobody is asked any more.
    pub(super) draining: bool,
    /// Its upgrade was refused from the head alone: on HTTP/2, too, the connection drains.
    pub(super) upgrade_refused: bool,
    /// Counted in `downstream_cx_upgrades_active`.
    pub(super) upgraded: bool,
    pub limit: usize,
    pub(super) life: Life,
}

/// How far a stream is in the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    New,
    /// One of those that are active.
    Counted,
    Finished,
}

/// Its connection was ended by force, the process ends, or its task has panicked.
impl Drop for ActiveStream<'_> {
    fn drop(&mut self) {
        if self.life == Life::Counted {
            self.cut();
        }
    }
}

/// What a stream needs of its connection.
pub struct StreamSetup<'a> {
    pub worker: Rc<WorkerContext>,
    pub hcm: Rc<WorkerHcm>,
    pub connection: Rc<ConnectionInfo>,
    pub down: ServerStream<'a>,
    pub request: RequestHead,
    /// The head is all of the request.
    pub end: bool,
    /// When the head's first byte came, where that was in an earlier turn.
    pub begun: Option<Instant>,
    /// `per_connection_buffer_limit_bytes`.
    pub limit: usize,
    /// The connection ends with the response, which says so.
    pub close_after: bool,
    /// It is at a limit of its own, so that nobody is asked whether it is to go.
    pub draining: bool,
}

/// How a stream ended, for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Complete,
    /// By us, before its end.
    Cut,
    /// Answered, and its connection is to take no more: the stream's bytes might have been requests.
    Last,
    PeerGone,
    /// So has the peer: an HTTP/2 client took its request back at once.
    Premature,
}

/// Serves one request to its end.
///
/// The stream comes in its box: within this future it would be copied into place, and the future with it.
pub async fn handle_stream(mut stream: Box<ActiveStream<'_>>) -> Fate {
    let outcome = match stream.serve().await {
        Err(StreamEnd::Reply(reply)) => stream.local_reply(*reply).await,
        outcome => outcome,
    };
    if matches!(outcome, Err(StreamEnd::Reset(_)))
        && stream.progress == Progress::HeadSent
        && matches!(stream.down, ServerStream::H2(_))
    {
        // What was sent before the reset goes out first: the connection has its turn.
        tokio::task::yield_now().await;
    }
    stream.finish(outcome)
}

/// Answers a request whose head could not be read.
pub(super) async fn reject_unread(setup: StreamSetup<'_>, fault: Fault) -> Fate {
    let mut stream = ActiveStream::new(setup);
    stream.head_read = false;
    stream.count_request();
    stream.limit_answer();
    let end = stream.downstream_fault(fault);
    let outcome = match end {
        StreamEnd::Reply(reply) => stream.local_reply(*reply).await,
        end => Err(end),
    };
    stream.finish(outcome);
    // What follows on the connection is not known to be a request.
    Fate::Cut
}

/// Counts and logs an HTTP/2 request that its codec has refused.
pub(super) fn refuse(setup: StreamSetup<'_>, fault: Fault) {
    let mut stream = ActiveStream::new(setup);
    stream.head_read = false;
    stream.count_request();
    stream.finish(Err(StreamEnd::Downstream(fault)));
}

/// Notes a request whose client left in the middle of its head.
pub(super) async fn abandon_unread(setup: StreamSetup<'_>) -> Fate {
    let mut stream = ActiveStream::new(setup);
    stream.head_read = false;
    stream.count_request();
    stream.finish(Err(StreamEnd::Downstream(Fault::Eof)))
}

/// Which time was up while a head was on its way. All run from a request's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadLimit {
    /// `stream_idle_timeout`, to which only a whole head is a sign of life.
    Idle,
    /// `request_timeout`.
    Request,
    /// `request_headers_timeout`.
    Head,
    /// `max_stream_duration`.
    Duration,
}

impl HeadLimit {
    /// The shortest of the limits that hold for a head.
    pub(super) fn of(hcm: &WorkerHcm) -> Option<(Duration, Self)> {
        let config = &hcm.config;
        [
            (config.stream_idle_timeout, Self::Idle),
            (config.request_timeout, Self::Request),
            (config.request_headers_timeout, Self::Head),
            (config.common.max_stream_duration, Self::Duration),
        ]
        .into_iter()
        .filter_map(|(timeout, limit)| Some((timeout?, limit)))
        .min_by_key(|(timeout, _)| *timeout)
    }

    pub(super) fn stat(self) -> HttpStat {
        match self {
            Self::Idle => HttpStat::DownstreamRqIdleTimeout,
            Self::Request => HttpStat::DownstreamRqTimeout,
            Self::Head => HttpStat::DownstreamRqHeaderTimeout,
            Self::Duration => HttpStat::DownstreamRqMaxDurationReached,
        }
    }

    fn reply(self) -> LocalReply {
        let (details, body) = match self {
            Self::Idle => ("stream_idle_timeout", "stream timeout"),
            Self::Request => ("request_overall_timeout", "request timeout"),
            Self::Head => ("request_header_timeout", "request header timeout"),
            Self::Duration => ("max_duration_timeout", "downstream duration timeout"),
        };
        let reply = LocalReply::new(http::StatusCode::REQUEST_TIMEOUT, details).body(body);
        match self {
            Self::Idle => reply.flag(ResponseFlags::STREAM_IDLE_TIMEOUT),
            _ => reply,
        }
    }
}

/// Answers a request whose head did not come in time.
pub(super) async fn head_timed_out(setup: StreamSetup<'_>, limit: HeadLimit) -> Fate {
    let mut stream = ActiveStream::new(setup);
    stream.head_read = false;
    stream.count_request();
    stream.limit_answer();
    let outcome = stream.local_reply(limit.reply()).await;
    stream.finish(outcome);
    // What follows on the connection is not known to be a request.
    Fate::Cut
}

impl<'a> ActiveStream<'a> {
    pub fn new(setup: StreamSetup<'a>) -> Self {
        let worker = setup.worker;
        let now = worker.clock.now();
        let start = setup.begun.unwrap_or(now);
        let wall = worker.clock.wall(start);
        let mut info = StreamInfo::new(setup.connection, worker.next_id(), start, wall);
        info.protocol = Some(setup.request.protocol);
        if setup.end {
            info.timing.last_downstream_rx = Some(now);
        }
        let facts = RouteFacts::new(&info.connection, worker.random());
        Self {
            route: RouteState::new(setup.hcm.routes(), facts),
            timers: StreamTimers::new(&worker.timers, now),
            worker,
            hcm: setup.hcm,
            down: setup.down,
            request: setup.request,
            info,
            now,
            chain: FilterChain::default(),
            chain_made: false,
            inbound: Direction { ended: setup.end, ..Direction::default() },
            outbound: Direction::default(),
            progress: Progress::Nothing,
            response: None,
            response_trailers: None,
            local_reply_body: bytes::Bytes::new(),
            cluster: None,
            route_stats: SmallVec::new(),
            broke_protocol: false,
            head_read: true,
            stripped_port: None,
            was_full: false,
            close_after: setup.close_after,
            draining: setup.draining,
            upgrade_refused: false,
            upgraded: false,
            operation: None,
            limit: setup.limit,
            life: Life::New,
        }
    }

    /// For each poll of a wait: the first is in the turn that began it, only later ones ask the clock.
    pub fn note_turn(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.now = self.worker.clock.now();
        }
    }

    async fn serve(&mut self) -> Result<(), StreamEnd> {
        self.start_timers();
        self.count_request();
        super::request_head::admit(self)?;
        self.match_route();
        super::decorator::request(self);
        self.make_filters();
        super::request_head::check_upgrade(self)?;
        if self.hcm.config.flush_log_on_new_request {
            self.log(format::AccessLogType::DownstreamStart);
        }
        self.request_filters().await?;
        router::forward::forward(self).await
    }

    /// An answer to no request waits for its client for as long as the stream may be idle.
    fn limit_answer(&mut self) {
        self.timers.set_idle(self.hcm.config.stream_idle_timeout);
    }

    /// The limits of the whole run from the head's first byte, as in Envoy.
    fn start_timers(&mut self) {
        let hcm = &self.hcm.config;
        let start = self.info.start;
        if !self.inbound.ended {
            self.timers.set_request(hcm.request_timeout.map(|t| start + t));
        }
        self.timers.set_idle(hcm.stream_idle_timeout);
        self.timers.set_max_duration(hcm.common.max_stream_duration.map(|t| start + t));
    }

    /// Matches the route and takes what it says about the stream as a whole; again when a filter has cleared it.
    fn match_route(&mut self) {
        self.resolve_route();
        let route = self.route.route();
        self.info.route_name = route.filter(|r| !r.name.is_empty()).map(|route| route.name.clone());
        self.info.route_metadata = route.and_then(|route| route.metadata.clone());
        let host = self.route.virtual_host();
        self.info.virtual_host_metadata = host.and_then(|host| host.metadata.clone());
        self.info.virtual_host_name = host.map(|host| host.name.clone());
        if let Some(action) = self.route.action()
            && let Some(idle) = action.timeouts.idle
        {
            self.timers.set_idle(Some(idle).filter(|d| !d.is_zero()));
        }
        self.resolve_cluster();
    }

    /// The route as the head is now; a new match brings the stream's longest duration with it.
    pub fn resolve_route(&mut self) -> Option<router::route_table::RouteMatch> {
        let known = self.route.matched().is_some();
        let matched = self.route.resolve(&self.request);
        let of_hcm = self.hcm.config.common.max_stream_duration;
        if !known
            && let Some(action) = self.route.action()
            && (of_hcm.is_some() || action.timeouts.uses_max_stream_duration)
        {
            let duration = timeouts::max_stream_duration(action, of_hcm, &mut self.request);
            self.timers.set_max_duration(duration.map(|d| self.info.start + d));
        }
        matched
    }

    /// The route's cluster, which logs name even where the request never gets there.
    fn resolve_cluster(&mut self) {
        let matched = self.route.matched();
        let name = matched.and_then(|m| self.route.table().cluster_name(m, &self.request));
        self.cluster = name.and_then(|name| self.worker.clusters.get(name));
        let config = self.cluster.as_ref().map(|cluster| &cluster.config);
        self.info.upstream.cluster = config.map(|config| config.name.clone());
        self.info.upstream.cluster_observability_name =
            config.and_then(|config| config.alt_stat_name.clone());
        self.info.upstream.cluster_metadata = config.and_then(|config| config.metadata.clone());
    }

    /// All filters are made before the first runs; also for a stream that ended before, since every filter sees
    /// every response.
    pub(super) fn make_filters(&mut self) {
        if !self.chain_made {
            self.chain_made = true;
            self.chain.create(&self.hcm.config.filters, &self.route);
        }
    }

    /// Request heads through the filters, in order.
    async fn request_filters(&mut self) -> Result<(), StreamEnd> {
        let mut at = 0;
        while at < self.chain.len() {
            let end = self.inbound.ended && self.inbound.collected.is_empty();
            let (chain, mut cx) = self.filter_context();
            match chain.request_head(at, &mut cx, end) {
                Flow::Continue => at += 1,
                Flow::BufferBody { limit } => {
                    self.collect_request(at, limit).await?;
                    at += 1;
                }
                Flow::Reply(reply) => return Err(StreamEnd::Reply(reply)),
                Flow::Reset => return Err(StreamEnd::Reset(reset_code::NO_ERROR)),
                Flow::Wait(done) => self.wait_reading(done).await?,
            }
            if self.route.is_cleared() {
                self.match_route();
            }
        }
        Ok(())
    }

    /// The chain beside what its hooks may see.
    pub(super) fn filter_context(&mut self) -> (&mut FilterChain, FilterContext<'_>) {
        let cx = FilterContext::new(
            &mut self.request,
            &mut self.info,
            self.cluster.as_deref(),
            &mut self.route,
            &self.worker,
            self.now,
            &self.hcm.scope,
        );
        (&mut self.chain, cx)
    }
}
