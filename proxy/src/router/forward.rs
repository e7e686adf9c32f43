//! From the end of the filter chain to the response: what the route says is done, attempt after attempt.
//!
//! `forward` decides (redirect, direct response, cluster), `Forwarding` drives the attempts.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::attempt::{Answer, Attempt, AttemptEnd};
use super::replay::Replay;
use super::retry::{BackOff, RetryState};
use super::route_table::RouteMatch;
use super::timeouts::{self, Timeouts};
use super::{charge, rewrite, shadow};
use crate::cluster::host::Host;
use crate::cluster::{DropOverload, RetryGuard, WorkerCluster};
use crate::codec::head::{HeaderList, ResponseHead, Scheme};
use crate::codec::name::names;
use crate::codec::queue::FrameQueue;
use crate::config::route::RouteTable;
use crate::config::route::action::{
    Action, DirectResponseAction, HostRewrite, RedirectAction, RouteAction,
};
use crate::config::runtime;
use crate::hcm::local_reply::LocalReply;
use crate::hcm::stream::{ActiveStream, StreamEnd};
use crate::stats::names::{ClusterStat, RouterStat};
use crate::stream_info::ResponseFlags;

/// Does with a request what its route says.
pub async fn forward(s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
    s.hcm.router_stats.inc(RouterStat::RqTotal);
    s.info.timing.routed = Some(s.now);
    let Some(matched) = s.resolve_route() else {
        s.hcm.router_stats.inc(RouterStat::NoRoute);
        let reply = LocalReply::new(StatusCode::NOT_FOUND, "route_not_found")
            .flag(ResponseFlags::NO_ROUTE_FOUND);
        return Err(StreamEnd::Reply(Box::new(reply)));
    };
    let table = s.route.table().clone();
    if matched.is_tls_redirect() {
        s.hcm.router_stats.inc(RouterStat::RqDirectResponse);
        let location = rewrite::tls_redirect_location(&s.request);
        return Err(redirect_to(StatusCode::MOVED_PERMANENTLY, &location));
    }
    let route = table.matched_route(matched).expect("only TLS redirects have no route");
    match &route.action {
        Action::Redirect(redirect) => Err(redirect_reply(s, &table, matched, redirect)),
        Action::DirectResponse(direct) => Err(direct_reply(s, &table, matched, direct)),
        // It names no cluster, so there is none to be found.
        Action::NonForwarding => Err(no_cluster(s, StatusCode::SERVICE_UNAVAILABLE)),
        Action::Route(action) => {
            let cluster = find_cluster(s, &table, matched, action)?;
            note_cluster(s, &cluster);
            charge::note_route(s, table.virtual_host(matched), route);
            if runtime::is_in_maintenance(&cluster.config.name, || s.worker.random()) {
                return Err(maintenance(s, &cluster));
            }
            if let Some(drop) = cluster.shared.drops(|| s.worker.random()) {
                return Err(drop_overload(s, &cluster, drop));
            }
            let mut forwarding = Forwarding::prepare(s, &table, matched, action, cluster);
            forwarding.run(s).await
        }
    }
}

fn redirect_to(status: StatusCode, location: &[u8]) -> StreamEnd {
    let mut headers = HeaderList::new();
    headers.append(&names::LOCATION, location);
    let mut reply = LocalReply::new(status, "direct_response");
    reply.headers = Some(headers);
    StreamEnd::Reply(Box::new(reply))
}

fn redirect_reply(
    s: &mut ActiveStream<'_>,
    table: &RouteTable,
    matched: RouteMatch,
    redirect: &RedirectAction,
) -> StreamEnd {
    s.hcm.router_stats.inc(RouterStat::RqDirectResponse);
    if let Some(route) = table.matched_route(matched) {
        let keep_original = !s.hcm.config.router.suppress_envoy_headers;
        rewrite::rewrite_path(route, &mut s.request, keep_original);
    }
    let location = rewrite::redirect_location(redirect, &s.request);
    let StreamEnd::Reply(mut reply) = redirect_to(redirect.response_code, &location) else {
        return StreamEnd::Reset(crate::hcm::stream::reset_code::INTERNAL_ERROR);
    };
    add_response_ops(s, table, matched, &mut reply);
    StreamEnd::Reply(reply)
}

fn direct_reply(
    s: &mut ActiveStream<'_>,
    table: &RouteTable,
    matched: RouteMatch,
    direct: &DirectResponseAction,
) -> StreamEnd {
    s.hcm.router_stats.inc(RouterStat::RqDirectResponse);
    s.info.set_details("direct_response");
    let body = direct.body.as_deref().unwrap_or_default();
    let body = match &direct.body_format {
        Some(format) => {
            let mut out = Vec::new();
            let mut cx = crate::format::Ctx::new(&s.info);
            cx.request = Some(&s.request);
            cx.local_reply_body = body;
            format.write(&cx, &mut out);
            Bytes::from(out)
        }
        None => Bytes::copy_from_slice(body),
    };
    let mut reply = LocalReply::new(direct.status, "direct_response").body(body);
    // RFC 9110 §10.2.2: the other statuses give it no meaning.
    if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
        let mut headers = HeaderList::new();
        headers.append(&names::LOCATION, &rewrite::request_location(&s.request));
        reply.headers = Some(headers);
    }
    add_response_ops(s, table, matched, &mut reply);
    StreamEnd::Reply(Box::new(reply))
}

/// The response header operations of the route, on a reply of our own, whose flags and details they may name.
fn add_response_ops(
    s: &mut ActiveStream<'_>,
    table: &RouteTable,
    matched: RouteMatch,
    reply: &mut LocalReply,
) {
    s.info.flags.insert(reply.flags);
    s.info.set_details(reply.details.clone());
    let mut head = ResponseHead::new(reply.status, s.request.protocol);
    if let Some(headers) = reply.headers.take() {
        head.headers = headers;
    }
    for ops in table.response_header_ops(matched) {
        ops.apply_response(&mut head, Some(&s.request), &s.info);
    }
    reply.headers = Some(head.headers);
}

fn find_cluster(
    s: &mut ActiveStream<'_>,
    table: &RouteTable,
    matched: RouteMatch,
    action: &RouteAction,
) -> Result<Rc<WorkerCluster>, StreamEnd> {
    let name = table.cluster_name(matched, &s.request);
    if let Some(cluster) = &s.cluster
        && name == Some(&*cluster.config.name)
    {
        return Ok(cluster.clone());
    }
    if let Some(cluster) = name.and_then(|name| s.worker.clusters.get(name)) {
        return Ok(cluster);
    }
    Err(no_cluster(s, action.cluster_not_found_response_code))
}

fn no_cluster(s: &ActiveStream<'_>, status: StatusCode) -> StreamEnd {
    s.hcm.router_stats.inc(RouterStat::NoCluster);
    let reply = LocalReply::new(status, "cluster_not_found").flag(ResponseFlags::NO_CLUSTER_FOUND);
    StreamEnd::Reply(Box::new(reply))
}

fn note_cluster(s: &mut ActiveStream<'_>, cluster: &WorkerCluster) {
    s.info.upstream.cluster = Some(cluster.config.name.clone());
    s.info.upstream.cluster_observability_name = cluster.config.alt_stat_name.clone();
    s.info.upstream.cluster_metadata.clone_from(&cluster.config.metadata);
}

/// The runtime wants requests to the cluster answered, and this is one.
fn maintenance(s: &ActiveStream<'_>, cluster: &WorkerCluster) -> StreamEnd {
    cluster.stats.inc(ClusterStat::UpstreamRqMaintenanceMode);
    charge::local(s, cluster, StatusCode::SERVICE_UNAVAILABLE);
    let mut reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "maintenance_mode")
        .body("maintenance mode")
        .flag(ResponseFlags::UPSTREAM_OVERFLOW);
    if !s.hcm.config.router.suppress_envoy_headers {
        let mut headers = HeaderList::new();
        headers.append(&names::X_ENVOY_OVERLOADED, b"true");
        reply.headers = Some(headers);
    }
    StreamEnd::Reply(Box::new(reply))
}

/// The control plane wants requests to the cluster dropped (`drop_overloads`), and this is one.
fn drop_overload(s: &ActiveStream<'_>, cluster: &WorkerCluster, drop: DropOverload) -> StreamEnd {
    let (details, body, flag, header) = match drop {
        DropOverload::Some => (
            "drop_overload",
            "drop overload",
            ResponseFlags::DROP_OVERLOAD,
            &names::X_ENVOY_DROP_OVERLOAD,
        ),
        DropOverload::All => (
            "unconditional_drop_overload",
            "unconditional drop overload",
            ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD,
            &names::X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD,
        ),
    };
    charge::local(s, cluster, StatusCode::SERVICE_UNAVAILABLE);
    let mut reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, details).body(body).flag(flag);
    if !s.hcm.config.router.suppress_envoy_headers {
        let mut headers = HeaderList::new();
        headers.append(header, b"true");
        reply.headers = Some(headers);
    }
    StreamEnd::Reply(Box::new(reply))
}

/// An answer that is neither the upgrade nor a refusal: what follows it could be either side's.
fn refuses_websocket(s: &ActiveStream<'_>, head: &ResponseHead) -> bool {
    !head.status.is_client_error()
        && !head.status.is_server_error()
        && head.status != StatusCode::SWITCHING_PROTOCOLS
        && s.request.upgrade_str().is_some_and(|u| u.eq_ignore_ascii_case(b"websocket"))
}

/// A request on its way to a cluster, over all its attempts.
pub(super) struct Forwarding<'r> {
    /// From the end of a try that got one to the answer's delivery.
    pub(super) answer: Option<Answer>,
    pub(super) table: &'r RouteTable,
    pub(super) matched: RouteMatch,
    pub(super) action: &'r RouteAction,
    pub(super) cluster: Rc<WorkerCluster>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<RetryState>,
    pub(super) replay: Replay,
    pub(super) mirrors: shadow::Mirrors,
    /// Hosts of the attempts so far, for `previous_hosts`.
    pub(super) tried: smallvec::SmallVec<[Arc<Host>; 2]>,
    pub(super) attempts: u32,
    /// Whether the route's timer runs: from the end of the request.
    route_timer: bool,
    /// The request has been replayed on a fresh connection after a stale one.
    replayed: bool,
    pub(super) last_was_timeout: bool,
    /// Frames of the request that came before there was a connection to send them on.
    pub(super) early: FrameQueue<()>,
    /// A 1xx head of the upstream has come.
    pub(super) informed: bool,
    pub(super) retry_guard: Option<RetryGuard>,
}

/// What follows a try.
enum Next {
    /// The response in `Forwarding::answer`.
    Deliver,
    Again,
    /// Another try after a wait.
    BackOff(BackOff),
}

impl<'r> Forwarding<'r> {
    fn prepare(
        s: &mut ActiveStream<'_>,
        table: &'r RouteTable,
        matched: RouteMatch,
        action: &'r RouteAction,
        cluster: Rc<WorkerCluster>,
    ) -> Self {
        let config = s.hcm.config.clone();
        if config.scheme_of_upstream {
            s.request.scheme = Some(Scheme::Http);
        }
        let timeouts = timeouts::decide(action, &config.router, &mut s.request);
        s.request.headers.remove(&names::X_ENVOY_UPSTREAM_ALT_STAT_NAME);
        timeouts::set_headers(&timeouts, action, &config.router, Duration::ZERO, &mut s.request);
        // What the route's header operations see, and may change: the first try sets neither again.
        s.info.upstream.attempts = 1;
        if table.virtual_host(matched).include_request_attempt_count {
            s.request.headers.set(&names::X_ENVOY_ATTEMPT_COUNT, b"1");
        }
        let keep_original = !config.router.suppress_envoy_headers;
        rewrite::finalize_request(table, matched, &mut s.request, &s.info, keep_original);
        let retry = RetryState::new(action.retry_policy.as_ref(), &mut s.request);
        let limit = table
            .matched_route(matched)
            .and_then(|r| r.request_body_buffer_limit)
            .map_or(s.limit, |l| l as usize);
        let mirrors = shadow::Mirrors::choose(s, action);
        // Where nothing but a stale connection could ask for a repetition, not more is kept than may wait for one.
        let limit = match retry.is_none() {
            true => limit.min(cluster.config.per_connection_buffer_limit),
            false => limit,
        };
        Self {
            replay: Replay::new(limit),
            answer: None,
            table,
            matched,
            action,
            cluster,
            timeouts,
            retry,
            mirrors,
            tried: smallvec::SmallVec::new(),
            attempts: 0,
            route_timer: false,
            replayed: false,
            last_was_timeout: false,
            early: FrameQueue::default(),
            informed: false,
            retry_guard: None,
        }
    }

    async fn run(&mut self, s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
        loop {
            self.start_route_timer(s);
            let end = Attempt::start(self, s).await?;
            match self.judge(s, end)? {
                Next::Deliver => return self.deliver(s).await,
                Next::Again => {}
                Next::BackOff(wait) => self.back_off(s, wait).await?,
            }
        }
    }

    /// What follows the end of a try.
    fn judge(&mut self, s: &mut ActiveStream<'_>, end: AttemptEnd) -> Result<Next, StreamEnd> {
        if !matches!(end, AttemptEnd::Stale) {
            // However it goes on, the retry that this try was is over: an answer may stream for days.
            self.retry_guard = None;
        }
        match end {
            AttemptEnd::Response => {
                let Some(answer) = self.answer.take() else { return Ok(Next::Again) };
                if refuses_websocket(s, &answer.head) {
                    let status = answer.head.status;
                    answer.attempt.abandon(self, s);
                    let details = "websocket_handshake_unsuccessful";
                    let reply = LocalReply::new(status, details);
                    return Err(StreamEnd::Reply(Box::new(reply)));
                }
                match self.judge_response(s, &answer.head)? {
                    Some(wait) => {
                        answer.attempt.abandon(self, s);
                        Ok(Next::BackOff(wait))
                    }
                    None => {
                        self.answer = Some(answer);
                        Ok(Next::Deliver)
                    }
                }
            }
            AttemptEnd::Stale => {
                self.replayed = true;
                self.attempts -= 1;
                self.cluster.stats.inc(ClusterStat::UpstreamRqReplayed);
                Ok(Next::Again)
            }
            AttemptEnd::Failed(failure, sent) => {
                self.last_was_timeout = false;
                self.judge_failure(s, &failure, sent).map(Next::BackOff)
            }
            AttemptEnd::TimedOut(expired) => {
                self.last_was_timeout = true;
                self.judge_timeout(s, expired).map(Next::BackOff)
            }
        }
    }

    /// The route's timer runs from the end of the request.
    pub(super) fn start_route_timer(&mut self, s: &mut ActiveStream<'_>) {
        if !self.route_timer && s.request_received() {
            self.route_timer = true;
            s.timers.set_route(self.timeouts.route.map(|t| s.now + t));
        }
    }

    /// Whether a stale pooled connection may be answered by a replay on a fresh one: nothing of a response came,
    /// the method may be repeated (RFC 9110 §9.2.2), and the request is still whole here.
    pub(super) fn may_replay(&self, s: &ActiveStream<'_>) -> bool {
        !self.replayed
            && s.request.method.is_idempotent()
            && s.request_received()
            && self.replay.is_whole()
    }

    /// Which attempt this is.
    pub(super) fn set_attempt_headers(&mut self, s: &mut ActiveStream<'_>) {
        let virtual_host = self.table.virtual_host(self.matched);
        let (count, timeout) = (
            virtual_host.include_request_attempt_count,
            virtual_host.include_is_timeout_retry_header,
        );
        if count && self.attempts > 1 {
            let mut text = itoa::Buffer::new();
            let text = text.format(self.attempts);
            s.request.headers.set(&names::X_ENVOY_ATTEMPT_COUNT, text.as_bytes());
        }
        if timeout && self.attempts > 1 {
            let value: &[u8] = if self.last_was_timeout { b"true" } else { b"false" };
            s.request.headers.set(&names::X_ENVOY_IS_TIMEOUT_RETRY, value);
        }
        if self.attempts > 1 {
            // What is left of the route's time, which runs from the end of the request.
            let received = s.info.timing.last_downstream_rx;
            let elapsed = received.map(|received| s.now.saturating_duration_since(received));
            let (elapsed, config) = (elapsed.unwrap_or_default(), &s.hcm.config.router);
            timeouts::set_headers(&self.timeouts, self.action, config, elapsed, &mut s.request);
        }
    }

    /// `auto_host_rewrite`.
    pub(super) fn set_host(&mut self, s: &mut ActiveStream<'_>, host: &Host) {
        if matches!(self.action.host_rewrite, Some(HostRewrite::Auto))
            && let Some(hostname) = &host.hostname
        {
            let append = self.action.append_x_forwarded_host;
            let keep = !s.hcm.config.router.suppress_envoy_headers;
            rewrite::update_authority(&mut s.request, hostname.as_bytes(), append, keep);
        }
    }

    /// Hands the response over to the filters and the client.
    async fn deliver(&mut self, s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
        self.prepare_answer(s);
        let Some(Answer { attempt, head, end }) = self.answer.take() else { return Ok(()) };
        // No try follows this one.
        self.replay.close();
        let mut relay = super::relay::Relay::new(self, attempt);
        let outcome = s.respond(head, end, &mut relay).await;
        relay.give_up(s);
        outcome
    }

    /// What the router does to a response's head.
    fn prepare_answer(&mut self, s: &mut ActiveStream<'_>) {
        let Some(Answer { attempt, head, .. }) = &mut self.answer else { return };
        attempt.canary = charge::is_canary(head) || attempt.lease.host().is_canary();
        charge::response(s, &self.cluster, head, attempt.canary);
        if self.cluster.tracked.is_some() {
            attempt.response_size = Some(charge::head_size(head));
        }
        s.info.set_details("via_upstream");
        s.info.response_code = Some(head.status);
        if !s.hcm.config.router.suppress_envoy_headers
            && let Some(took) = charge::service_time(s)
        {
            let mut text = itoa::Buffer::new();
            head.headers.set(&names::X_ENVOY_UPSTREAM_SERVICE_TIME, text.format(took).as_bytes());
        }
        if self.table.virtual_host(self.matched).include_attempt_count_in_response {
            let mut text = itoa::Buffer::new();
            head.headers.set(&names::X_ENVOY_ATTEMPT_COUNT, text.format(self.attempts).as_bytes());
        }
        for ops in self.table.response_header_ops(self.matched) {
            ops.apply_response(head, Some(&s.request), &s.info);
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // The route's time is for an answer, which this was.
            self.route_timer = true;
            s.timers.set_route(None);
        }
    }
}
