//! What becomes of an attempt's outcome: the response, another attempt after a wait, or a reply of our own.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::StatusCode;

use super::charge;
use super::failure::{Failure, ResetReason};
use super::forward::Forwarding;
use super::retry::{BackOff, Verdict};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::name::names;
use crate::hcm::frames::Interrupt;
use crate::hcm::local_reply::LocalReply;
use crate::hcm::stream::{ActiveStream, StreamEnd};
use crate::hcm::stream_timers::Expired;
use crate::stats::names::{ClusterStat, RouteStat};
use crate::stream_info::ResponseFlags;

impl Forwarding<'_> {
    /// `Some(wait)`: try again after it. `None`: this is the response.
    pub(super) fn judge_response(
        &mut self,
        s: &mut ActiveStream<'_>,
        head: &ResponseHead,
    ) -> Result<Option<BackOff>, StreamEnd> {
        if !self.can_retry() {
            return Ok(None);
        }
        let Some(retry) = &mut self.retry else { return Ok(None) };
        let (verdict, success) = retry.on_response(head, s.worker.random());
        if success {
            self.cluster.stats.inc(ClusterStat::UpstreamRqRetrySuccess);
            charge::count(s, RouteStat::UpstreamRqRetrySuccess);
        }
        match verdict {
            Verdict::Accept => Ok(None),
            Verdict::Exhausted => {
                self.note_exhausted(s);
                Ok(None)
            }
            Verdict::Retry(wait) => {
                if !self.take_retry(s) {
                    return Ok(None);
                }
                self.cluster.codes.charge_retried(head.status.as_u16());
                Ok(Some(wait))
            }
        }
    }

    pub(super) fn judge_failure(
        &mut self,
        s: &mut ActiveStream<'_>,
        failure: &Failure,
        sent: bool,
    ) -> Result<BackOff, StreamEnd> {
        if self.can_retry()
            && let Some(retry) = &mut self.retry
        {
            match retry.on_reset(failure.reason, sent, s.worker.random()) {
                Verdict::Retry(wait) if self.take_retry(s) => return Ok(wait),
                Verdict::Exhausted => self.note_exhausted(s),
                Verdict::Retry(_) | Verdict::Accept => {}
            }
        }
        s.info.upstream.transport_failure = failure.transport.clone();
        let suppress = s.hcm.config.router.suppress_envoy_headers;
        let mut reply = failure.reply(self.attempts > 1, suppress);
        if self.informed {
            // To Envoy a 1xx head was the response's start.
            reply.details = failure.code_details("after").into();
        } else {
            charge::local(s, &self.cluster, reply.status);
        }
        Err(self.reply(reply))
    }

    pub(super) fn judge_timeout(
        &mut self,
        s: &mut ActiveStream<'_>,
        expired: Expired,
    ) -> Result<BackOff, StreamEnd> {
        let stats = &self.cluster.stats;
        let per_try = match expired {
            Expired::PerTry => {
                stats.inc(ClusterStat::UpstreamRqPerTryTimeout);
                true
            }
            Expired::PerTryIdle => {
                stats.inc(ClusterStat::UpstreamRqPerTryIdleTimeout);
                true
            }
            Expired::UpstreamMaxDuration => {
                stats.inc(ClusterStat::UpstreamRqMaxDurationReached);
                true
            }
            _ => {
                stats.inc(ClusterStat::UpstreamRqTimeout);
                charge::count(s, RouteStat::UpstreamRqTimeout);
                false
            }
        };
        if per_try
            && self.can_retry()
            && let Some(retry) = &mut self.retry
        {
            // A try that timed out is a local reset to the policy.
            match retry.on_reset(ResetReason::LocalReset, true, s.worker.random()) {
                Verdict::Retry(wait) if self.take_retry(s) => return Ok(wait),
                Verdict::Exhausted => self.note_exhausted(s),
                Verdict::Retry(_) | Verdict::Accept => {}
            }
        }
        if expired == Expired::UpstreamMaxDuration {
            let status = s.timeout_status();
            let reply = LocalReply::new(status, "upstream_max_stream_duration_reached")
                .body("upstream max stream duration reached")
                .flag(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED);
            return Err(self.reply(reply));
        }
        charge::budget(s, &self.cluster, self.timeouts.route);
        let details = match expired {
            Expired::PerTry => "upstream_per_try_timeout",
            Expired::PerTryIdle => "upstream_per_try_idle_timeout",
            _ => "response_timeout",
        };
        let alternative =
            s.request.headers.contains(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE);
        let (status, body) = if alternative {
            (StatusCode::NO_CONTENT, "")
        } else {
            (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
        };
        let reply = LocalReply::new(status, details)
            .body(body)
            .flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT);
        charge::local(s, &self.cluster, reply.status);
        Err(self.reply(reply))
    }

    /// There is no host, or no pool for one.
    pub(super) fn no_healthy_upstream(&self, s: &ActiveStream<'_>) -> StreamEnd {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        charge::local(s, &self.cluster, status);
        let reply = LocalReply::new(status, "no_healthy_upstream")
            .body("no healthy upstream")
            .flag(ResponseFlags::NO_HEALTHY_UPSTREAM);
        StreamEnd::Reply(Box::new(reply))
    }

    /// A reply in the place of an upstream's response.
    pub(super) fn reply(&self, mut reply: LocalReply) -> StreamEnd {
        let virtual_host = self.table.virtual_host(self.matched);
        if virtual_host.include_attempt_count_in_response && self.attempts > 0 {
            let mut text = itoa::Buffer::new();
            let headers = reply.headers.get_or_insert_with(HeaderList::new);
            headers.set(&names::X_ENVOY_ATTEMPT_COUNT, text.format(self.attempts).as_bytes());
        }
        StreamEnd::Reply(Box::new(reply))
    }

    /// A request is tried again while all that has come of it is still here; the rest may follow.
    fn can_retry(&self) -> bool {
        self.replay.is_whole()
    }

    fn note_exhausted(&self, s: &mut ActiveStream<'_>) {
        self.cluster.stats.inc(ClusterStat::UpstreamRqRetryLimitExceeded);
        charge::count(s, RouteStat::UpstreamRqRetryLimitExceeded);
        s.info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    }

    /// Counts a retry against the breaker of retries.
    fn take_retry(&mut self, s: &mut ActiveStream<'_>) -> bool {
        match self.cluster.try_retry(self.priority()) {
            Ok(guard) => {
                self.retry_guard = Some(guard);
                true
            }
            Err(_) => {
                charge::count(s, RouteStat::UpstreamRqRetryOverflow);
                s.info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                false
            }
        }
    }

    /// A retry is one once its wait is over, as in Envoy: a client that leaves before has had none.
    fn note_retry(&self, s: &ActiveStream<'_>, stat: ClusterStat) {
        self.cluster.stats.inc(ClusterStat::UpstreamRqRetry);
        self.cluster.stats.inc(stat);
        charge::count(s, RouteStat::UpstreamRqRetry);
    }

    /// While no try is under way, what comes of the request is kept for the next one; a request that outgrows its buffer
    /// cannot be sent any more.
    fn take_meanwhile(
        &mut self,
        s: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd> {
        // What the last try left goes before it.
        while let Some((frame, ())) = self.early.pop() {
            if let Some(frame) = &frame {
                self.replay.push(frame);
            }
        }
        while !s.request_is_empty() && self.mirrors.poll_room(cx) {
            let Poll::Ready(frame) = s.poll_request(cx) else { break };
            let Some(frame) = self.mirrors.pass(frame?) else { continue };
            if self.replay.push(&frame) {
                self.cluster.stats.inc(ClusterStat::RetryOrShadowAbandoned);
                let status = StatusCode::INSUFFICIENT_STORAGE;
                let reply = LocalReply::new(status, "request_payload_exceeded_retry_buffer_limit")
                    .body("exceeded request buffer limit while retrying upstream");
                return Err(self.reply(reply));
            }
        }
        if s.request_is_empty() {
            self.mirrors.finish();
        }
        self.start_route_timer(s);
        Ok(())
    }

    pub(super) async fn back_off(
        &mut self,
        s: &mut ActiveStream<'_>,
        wait: BackOff,
    ) -> Result<(), StreamEnd> {
        s.timers.set_per_try(s.now, None, None);
        s.timers.set_upstream_max(None);
        let (stat, wait) = match wait {
            BackOff::Exponential(wait) => (ClusterStat::UpstreamRqRetryBackoffExponential, wait),
            BackOff::RateLimited(wait) => (ClusterStat::UpstreamRqRetryBackoffRatelimited, wait),
        };
        if wait < Duration::from_millis(1) {
            self.note_retry(s, stat);
            return Ok(());
        }
        let mut timer = s.worker.timers.timer();
        timer.arm(Instant::now() + wait);
        let mut first = true;
        let expired = std::future::poll_fn(|cx| {
            s.note_turn(&mut first);
            if timer.poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            self.take_meanwhile(s, cx)?;
            s.poll_event(cx).map(|interrupt| match interrupt {
                Interrupt::End(end) => Err(end),
                Interrupt::Try(expired) => Ok(Some(expired)),
            })
        })
        .await?;
        match expired {
            None => {
                self.note_retry(s, stat);
                Ok(())
            }
            Some(expired) => match self.judge_timeout(s, expired) {
                Err(end) => Err(end),
                Ok(_) => Ok(()),
            },
        }
    }
}
