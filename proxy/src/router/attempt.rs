//! One try of a request on one host: pick, connection, request out, response head in.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;

use super::charge;
use super::failure::{Failure, ResetReason};
use super::forward::Forwarding;
use super::transport::transport_options;
use crate::cluster::host::Host;
use crate::cluster::original_dst::Asking;
use crate::cluster::{WorkerCluster, WorkerHost};
use crate::codec::head::{Protocol, ResponseHead};
use crate::codec::{ClientStream, Fault, Frame};
use crate::config::cluster::RoutingPriority;
use crate::config::protocol_options::UpstreamProtocolChoice;
use crate::config::route::action::Priority;
use crate::conn_pool::{Acquire, Lease, PoolFailure};
use crate::hcm::frames::Interrupt;
use crate::hcm::stream::{ActiveStream, StreamEnd, reset_code};
use crate::hcm::stream_timers::Expired;
use crate::load_balancer::PickContext;
use crate::stats::names::{ClusterStat, RouteStat};
use crate::upstream::proxy_header::proxy_header;

/// A request on an upstream connection.
pub(super) struct Attempt {
    pub(super) lease: Lease,
    /// Everything of the request has been handed to the codec.
    pub(super) request_done: bool,
    /// The upstream does not take the request any more; its response may still come.
    pub(super) write_failed: bool,
    /// What went wrong behind the response's head.
    pub(super) failed: Option<Fault>,
    /// A canary host answered, or said that it is one.
    pub(super) canary: bool,
    /// Bytes and lines of the response's head, where the cluster wants to know.
    pub(super) response_size: Option<(u64, u64)>,
}

/// A try that has got its response's head.
pub(super) struct Answer {
    pub(super) attempt: Attempt,
    pub(super) head: ResponseHead,
    /// The head is all of the response.
    pub(super) end: bool,
}

/// How a try ended.
pub(super) enum AttemptEnd {
    /// A final head: it is in `Forwarding::answer`, so that the future of a stream has room for it once.
    Response,
    /// A pooled connection turned out to be dead before any answer: to be replayed on a fresh one.
    Stale,
    /// No response; whether some of the request was sent.
    Failed(Failure, bool),
    TimedOut(Expired),
}

impl Forwarding<'_> {
    pub(super) fn priority(&self) -> RoutingPriority {
        match self.action.priority {
            Priority::Default => RoutingPriority::Default,
            Priority::High => RoutingPriority::High,
        }
    }
}

impl Attempt {
    /// Runs a try up to its response's head.
    pub(super) async fn start(
        fw: &mut Forwarding<'_>,
        s: &mut ActiveStream<'_>,
    ) -> Result<AttemptEnd, StreamEnd> {
        fw.attempts += 1;
        forget_earlier_attempt(s);
        s.info.upstream.attempts = fw.attempts;
        fw.set_attempt_headers(s);
        let host = {
            // Which hosts to avoid is a question of retries.
            let retry = fw.retry.as_ref().filter(|_| fw.attempts > 1);
            let policy = retry.and_then(|retry| retry.policy());
            let tried = &fw.tried;
            let reject = |host: &Host| {
                policy.is_some_and(|p| {
                    (p.avoid_previous_hosts && tried.iter().any(|t| std::ptr::eq(&**t, host)))
                        || (p.omit_canary_hosts && host.is_canary())
                })
            };
            let context = PickContext {
                reject: Some(&reject),
                max_attempts: policy.map_or(1, |p| p.host_selection_max_attempts),
                asking: Asking { stream: Some(&s.info), head: Some(&s.request) },
            };
            fw.cluster.pick(&context)
        };
        let Ok(host) = host else { return Err(fw.no_healthy_upstream(s)) };
        if fw.retry.is_some() {
            fw.tried.push(host.context.host.clone());
        }
        let lease = match fw.connect(s, &host).await? {
            Ok(lease) => lease,
            Err(end) => return Ok(end),
        };
        charge::count(s, RouteStat::UpstreamRqTotal);
        note_host(s, &host);
        note_connection(s, &lease);
        fw.set_host(s, &host);
        let mut attempt = Self {
            lease,
            request_done: false,
            write_failed: false,
            failed: None,
            canary: false,
            response_size: None,
        };
        if let Some(max) = fw.cluster.config.http.common.max_stream_duration {
            s.timers.set_upstream_max(Some(s.now + max));
        }
        attempt.send_head(fw, s);
        let mut first = true;
        let outcome = poll_fn(|cx| {
            s.note_turn(&mut first);
            attempt.poll_exchange(fw, s, cx)
        })
        .await;
        attempt.conclude(fw, s, outcome)
    }

    /// Only HTTP/2 has resets to send.
    fn count_reset(&self, cluster: &WorkerCluster) {
        if self.lease.protocol() == Protocol::Http2 {
            cluster.stats.inc(ClusterStat::UpstreamRqTxReset);
        }
    }

    fn stream(&mut self) -> &mut ClientStream {
        &mut self.lease
    }

    /// The head, and what earlier tries have already had of the body.
    fn send_head(&mut self, fw: &mut Forwarding<'_>, s: &mut ActiveStream<'_>) {
        let complete = s.request_is_empty() && fw.early.is_empty();
        let end = complete && fw.replay.is_empty();
        s.info.timing.first_upstream_tx = Some(s.now);
        self.stream().send_head(&s.request, end);
        self.send_frames(fw.replay.frames(), complete);
        if complete {
            self.note_request_done(fw, s);
        }
    }

    /// What earlier tries have had of the body; `complete` where that is all of it.
    fn send_frames<'f>(&mut self, frames: impl Iterator<Item = &'f Frame>, complete: bool) {
        let mut frames = frames.peekable();
        while let Some(frame) = frames.next() {
            let end = complete && frames.peek().is_none();
            match frame {
                Frame::Data(data) => self.stream().send_data(data.clone(), end),
                Frame::Trailers(trailers) => self.stream().send_trailers(trailers),
            }
        }
    }

    /// All of the request is on its way: the try's timers run from here.
    fn note_request_done(&mut self, fw: &mut Forwarding<'_>, s: &mut ActiveStream<'_>) {
        self.request_done = true;
        s.info.timing.last_upstream_tx = Some(s.now);
        s.timers.set_per_try(s.now, fw.timeouts.per_try, fw.timeouts.per_try_idle);
        fw.mirrors.finish();
    }

    /// Counts a try that has ended. The bytes of a request are those of all its attempts.
    fn count_end(&mut self, fw: &Forwarding<'_>, s: &mut ActiveStream<'_>) {
        s.info.upstream.bytes += self.stream().meter();
        if let Some(tracked) = &fw.cluster.tracked {
            let took = s.info.timing.first_upstream_tx.map(|t| s.now.saturating_duration_since(t));
            charge::attempt(s, tracked, took.unwrap_or_default(), fw.timeouts.per_try);
            if let Some((bytes, lines)) = self.response_size {
                charge::response_size(s, tracked, bytes, lines);
            }
        }
    }

    fn conclude(
        mut self,
        fw: &mut Forwarding<'_>,
        s: &mut ActiveStream<'_>,
        outcome: Result<Exchanged, StreamEnd>,
    ) -> Result<AttemptEnd, StreamEnd> {
        match outcome {
            Ok(Exchanged::Head(head, end)) => {
                s.info.timing.first_upstream_rx = Some(s.now);
                let stats = &self.lease.host().stats;
                bump(if head.status.is_server_error() {
                    &stats.rq_error
                } else {
                    &stats.rq_success
                });
                fw.answer = Some(Answer { attempt: self, head, end });
                Ok(AttemptEnd::Response)
            }
            Ok(Exchanged::Fault(fault)) => {
                let stale = self.lease.is_reused()
                    && !self.stream().received_any()
                    && matches!(fault, Fault::Eof | Fault::Io(_) | Fault::GoAway { .. });
                note_fault(&fw.cluster, fault, self.lease.protocol());
                self.count_end(fw, s);
                if !stale {
                    bump(&self.lease.host().stats.rq_error);
                }
                let protocol = self.lease.protocol();
                self.lease.close(fault.is_remote());
                if stale && fw.may_replay(s) {
                    return Ok(AttemptEnd::Stale);
                }
                Ok(AttemptEnd::Failed(Failure::of(fault, protocol), true))
            }
            Ok(Exchanged::TimedOut(expired)) => {
                self.count_end(fw, s);
                self.count_reset(&fw.cluster);
                bump(&self.lease.host().stats.rq_timeout);
                self.stream().reset(reset_code::INTERNAL_ERROR);
                Ok(AttemptEnd::TimedOut(expired))
            }
            Err(end) => {
                self.count_end(fw, s);
                self.count_reset(&fw.cluster);
                self.stream().reset(reset_code::INTERNAL_ERROR);
                Err(end)
            }
        }
    }

    fn poll_exchange(
        &mut self,
        fw: &mut Forwarding<'_>,
        s: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Exchanged, StreamEnd>> {
        self.pump_request(fw, s, cx)?;
        loop {
            match self.stream().poll_head(cx) {
                Poll::Ready(Ok((head, _))) if head.is_informational() => {
                    let first = !fw.informed;
                    fw.note_informational(s, &head);
                    // 100 is the connection manager's own affair, and so are its kin, unless it is told to pass
                    // them on: then the first one, as in Envoy.
                    if first && s.hcm.config.proxy_100_continue {
                        s.send_informational(&head);
                        if let Poll::Ready(Err(fault)) = s.down.poll_flush(cx) {
                            return Poll::Ready(Err(s.downstream_fault(fault)));
                        }
                    }
                }
                Poll::Ready(Ok((head, end))) => {
                    return Poll::Ready(Ok(Exchanged::Head(head, end)));
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Ok(Exchanged::Fault(fault))),
                Poll::Pending => break,
            }
        }
        s.poll_event(cx).map(|interrupt| match interrupt {
            Interrupt::End(end) => Err(end),
            Interrupt::Try(expired) => Ok(Exchanged::TimedOut(expired)),
        })
    }

    /// Moves the request on, as far as both sides let it.
    pub(super) fn pump_request(
        &mut self,
        fw: &mut Forwarding<'_>,
        s: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd> {
        let limit = fw.cluster.config.per_connection_buffer_limit;
        loop {
            while !self.request_done && !self.write_failed && self.stream().buffered() < limit {
                let frame = match fw.early.pop() {
                    Some((frame, ())) => frame,
                    None if !fw.mirrors.poll_room(cx) => break,
                    None => match s.poll_request(cx) {
                        Poll::Ready(frame) => fw.mirrors.pass(frame?),
                        Poll::Pending => break,
                    },
                };
                self.send_frame(fw, s, frame);
            }
            if self.write_failed {
                return Ok(());
            }
            let full = self.stream().buffered() >= limit;
            match self.stream().poll_flush(cx) {
                // There is room again: the client may have more.
                Poll::Ready(Ok(())) if full && !self.request_done => {}
                // An answer may have come before the end: reading will tell.
                Poll::Ready(Err(_)) => {
                    self.write_failed = true;
                    return Ok(());
                }
                Poll::Ready(Ok(())) | Poll::Pending => return Ok(()),
            }
        }
    }

    fn send_frame(
        &mut self,
        fw: &mut Forwarding<'_>,
        s: &mut ActiveStream<'_>,
        frame: Option<Frame>,
    ) {
        if let Some(frame) = &frame
            && fw.wants_replay(self.lease.is_reused())
            && fw.replay.push(frame)
            && fw.retry.is_some()
        {
            fw.cluster.stats.inc(ClusterStat::RetryOrShadowAbandoned);
        }
        let done = match frame {
            Some(Frame::Data(data)) => {
                let last = fw.take_end(s);
                self.stream().send_data(data, last);
                last
            }
            Some(Frame::Trailers(trailers)) => {
                self.stream().send_trailers(&trailers);
                true
            }
            None => {
                self.stream().send_data(Bytes::new(), true);
                true
            }
        };
        if done && self.stream().has_refused_tunnel() {
            // All of it has come, and none of it went.
            self.write_failed = true;
        } else if done {
            fw.start_route_timer(s);
            self.note_request_done(fw, s);
        }
    }

    /// A response that is not wanted: another try follows.
    pub(super) fn abandon(mut self, fw: &Forwarding<'_>, s: &mut ActiveStream<'_>) {
        self.count_end(fw, s);
        if self.stream().is_end() && self.request_done {
            self.lease.release(true, Instant::now());
        } else {
            self.count_reset(&fw.cluster);
            self.stream().reset(reset_code::INTERNAL_ERROR);
            self.lease.close(false);
        }
    }

    /// All of the response has been taken, or it is given up.
    pub(super) fn finish(mut self, fw: &Forwarding<'_>, s: &mut ActiveStream<'_>, clean: bool) {
        let cluster = &*fw.cluster;
        if !self.request_done && self.failed.is_none() {
            // What the client said last may still go.
            let flush = poll_fn(|cx| Poll::Ready(self.stream().poll_flush(cx).is_ready()));
            let _ = flush.now_or_never();
        }
        self.count_end(fw, s);
        s.info.timing.last_upstream_rx = Some(s.now);
        if let Some(fault) = self.failed.take() {
            note_fault(cluster, fault, self.lease.protocol());
            let failure = Failure::of(fault, self.lease.protocol());
            s.info.flags.insert(failure.reason.flag());
            s.info.set_details(failure.code_details("after"));
            self.lease.close(fault.is_remote());
            return;
        }
        if self.lease.is_end() {
            charge::budget(s, cluster, fw.timeouts.route);
            charge::time(s, cluster, self.canary);
        }
        if clean && self.request_done {
            self.lease.release(true, s.now);
        } else {
            self.count_reset(cluster);
            self.stream().reset(reset_code::INTERNAL_ERROR);
            self.lease.close(false);
        }
    }
}

fn note_fault(cluster: &WorkerCluster, fault: Fault, protocol: Protocol) {
    match fault {
        // The host has not looked at it.
        Fault::Reset { remote: true, .. } if fault.is_unprocessed() => {}
        Fault::Reset { remote: true, .. } => cluster.stats.inc(ClusterStat::UpstreamRqRxReset),
        Fault::Reset { remote: false, .. } => cluster.stats.inc(ClusterStat::UpstreamRqTxReset),
        Fault::Parse(_) => cluster.stats.inc(ClusterStat::UpstreamCxProtocolError),
        // So Envoy counts streams that end with their connection.
        Fault::Eof | Fault::GoAway { .. } | Fault::Io(_) if protocol == Protocol::Http2 => {
            cluster.stats.inc(ClusterStat::UpstreamRqPendingFailureEject);
        }
        Fault::Eof | Fault::GoAway { .. } | Fault::Io(_) => {}
    }
}

/// What is known of the upstream side is the newest attempt's.
fn forget_earlier_attempt(s: &mut ActiveStream<'_>) {
    let upstream = &mut s.info.upstream;
    (upstream.host, upstream.hostname, upstream.host_metadata) = (None, None, None);
    (upstream.local, upstream.remote, upstream.connection_id) = (None, None, None);
    (upstream.protocol, upstream.connect_duration) = (None, None);
    let timing = &mut s.info.timing;
    (timing.first_upstream_tx, timing.last_upstream_tx) = (None, None);
    (timing.first_upstream_rx, timing.last_upstream_rx) = (None, None);
}

/// Counts over all workers.
fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

enum Exchanged {
    Head(ResponseHead, bool),
    Fault(Fault),
    TimedOut(Expired),
}

impl Forwarding<'_> {
    /// A connection to the host; the inner error ends this try only.
    async fn connect(
        &mut self,
        s: &mut ActiveStream<'_>,
        host: &WorkerHost,
    ) -> Result<Result<Lease, AttemptEnd>, StreamEnd> {
        let protocol = self.cluster.config.http.protocol(s.request.protocol, None);
        let transport = transport_options(s, host);
        let transport = transport.as_ref();
        let acquired = match self.action.connect_config(&s.request.method) {
            Some(config) => {
                let (source, destination) = (&s.info.connection.remote, &s.info.connection.local);
                let header = |version| proxy_header(version, source, destination);
                let first = config.proxy_protocol.map(header).unwrap_or_default();
                Ok(host.pools.tunnel(self.priority(), transport, first.into()))
            }
            None => {
                let pools = &host.pools;
                if self.cluster.config.http.choice == UpstreamProtocolChoice::Auto {
                    pools.try_acquire_negotiated(self.priority(), transport)
                } else {
                    pools.try_acquire(protocol, self.priority(), transport)
                }
            }
        };
        let mut wait = match acquired {
            Ok(Acquire::Ready(lease)) => {
                self.mirrors.start(s);
                return Ok(Ok(lease));
            }
            Ok(Acquire::Wait(wait)) => wait,
            // Without a pool there is no upstream to speak of.
            Err(failure) if failure.is_of_pools() => return Err(self.no_healthy_upstream(s)),
            Err(failure) => return Ok(Err(pool_failed(s, host, failure))),
        };
        let mut first = true;
        let outcome = poll_fn(|cx| {
            s.note_turn(&mut first);
            if let Poll::Ready(lease) = wait.as_mut().poll(cx) {
                return Poll::Ready(Ok(Ok(lease)));
            }
            // A connection is on its way; what fails at once has no mirrors.
            self.mirrors.start(s);
            self.take_early(s, cx)?;
            s.poll_event(cx).map(|interrupt| match interrupt {
                Interrupt::End(end) => Err(end),
                Interrupt::Try(expired) => Ok(Err(expired)),
            })
        })
        .await
        .inspect_err(|_| note_host(s, host))?;
        Ok(match outcome {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(failure)) => Err(pool_failed(s, host, failure)),
            Err(expired) => Err(AttemptEnd::TimedOut(expired)),
        })
    }

    /// Takes in what comes of the request meanwhile, up to the limit of either side's buffer.
    fn take_early(
        &mut self,
        s: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd> {
        let limit = s.limit.min(self.cluster.config.per_connection_buffer_limit);
        while !s.request_is_empty() && self.early.held() < limit && self.mirrors.poll_room(cx) {
            let Poll::Ready(frame) = s.poll_request(cx) else { break };
            self.early.push(self.mirrors.pass(frame?), ());
            if s.take_end() {
                self.mirrors.finish();
                self.early.push(None, ());
            }
            self.start_route_timer(s);
            if self.retry.is_some() && !self.replay.has_room(self.early.payload()) {
                self.cluster.stats.inc(ClusterStat::RetryOrShadowAbandoned);
                self.retry = None;
            }
        }
        Ok(())
    }

    /// Whether the frame just taken was the request's last, early ones included; if so its end is taken too.
    fn take_end(&mut self, s: &mut ActiveStream<'_>) -> bool {
        if self.early.is_empty() {
            return s.take_end();
        }
        let end = self.early.is_at_end();
        if end {
            self.early.pop();
        }
        end
    }

    /// A 1xx head on its way to the client: Envoy counts the first one, and tries nothing again after it.
    fn note_informational(&mut self, s: &ActiveStream<'_>, head: &ResponseHead) {
        if !self.informed {
            self.informed = true;
            self.retry = None;
            charge::response(s, &self.cluster, head, charge::is_canary(head));
        }
    }

    /// Whether the body is to be kept: for retries, or because the connection may be stale.
    fn wants_replay(&self, reused: bool) -> bool {
        self.retry.is_some() || reused
    }
}

/// The end of a try for which the pool has nothing.
fn pool_failed(s: &mut ActiveStream<'_>, host: &WorkerHost, failure: PoolFailure) -> AttemptEnd {
    if failure.names_host() {
        note_host(s, host);
    }
    AttemptEnd::Failed(pool_failure(failure), false)
}

pub(super) fn pool_failure(failure: PoolFailure) -> Failure {
    let reason = match &failure {
        PoolFailure::Overflow(_) => ResetReason::Overflow,
        PoolFailure::Connect(error) if error.local => ResetReason::LocalConnectionFailure,
        PoolFailure::Connect(_) => ResetReason::RemoteConnectionFailure,
        PoolFailure::Timeout => ResetReason::ConnectionTimeout,
        PoolFailure::LocalClose => ResetReason::LocalConnectionFailure,
    };
    Failure { reason, transport: failure.transport_failure().cloned(), details: None }
}

fn note_host(s: &mut ActiveStream<'_>, host: &Host) {
    let upstream = &mut s.info.upstream;
    upstream.host = Some(host.address.clone());
    upstream.hostname = host.hostname.clone();
    upstream.host_metadata = host.metadata();
}

fn note_connection(s: &mut ActiveStream<'_>, lease: &Lease) {
    let upstream = &mut s.info.upstream;
    upstream.local = lease.local_address().cloned();
    upstream.tls = lease.tls().cloned();
    upstream.remote = upstream.host.clone();
    upstream.connection_id = Some(lease.connection_id());
    upstream.protocol = (!lease.is_raw()).then(|| lease.protocol());
    upstream.connect_duration = lease.connect_duration();
}
