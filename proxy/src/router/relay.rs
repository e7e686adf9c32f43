//! The response of an attempt as the connection manager pulls it, the rest of the request going the other way.

use std::task::{Context, Poll, ready};

use super::attempt::Attempt;
use super::charge;
use super::forward::Forwarding;
use crate::codec::Frame;
use crate::hcm::frames::ResponseSource;
use crate::hcm::stream::{ActiveStream, StreamEnd, reset_code};
use crate::hcm::stream_timers::Expired;
use crate::stats::names::{ClusterStat, RouteStat};
use crate::stream_info::ResponseFlags;

pub(super) struct Relay<'f, 'r> {
    fw: &'f mut Forwarding<'r>,
    /// Until the response's end: the client may take its time with what is left, the upstream is free.
    attempt: Option<Attempt>,
}

impl<'f, 'r> Relay<'f, 'r> {
    pub(super) fn new(fw: &'f mut Forwarding<'r>, attempt: Attempt) -> Self {
        Self { fw, attempt: Some(attempt) }
    }

    /// Ends a try whose response did not come to its end.
    pub(super) fn give_up(self, stream: &mut ActiveStream<'_>) {
        if let Some(attempt) = self.attempt {
            attempt.finish(self.fw, stream, false);
        }
    }
}

impl ResponseSource for Relay<'_, '_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamEnd>> {
        let Some(attempt) = &mut self.attempt else { return Poll::Ready(Ok(None)) };
        Poll::Ready(match ready!(attempt.lease.poll_frame(cx)) {
            Ok(frame) => Ok(frame),
            Err(fault) => {
                attempt.failed = Some(fault);
                Err(StreamEnd::Reset(reset_code::INTERNAL_ERROR))
            }
        })
    }

    fn is_end(&self) -> bool {
        self.attempt.as_ref().is_none_or(|attempt| attempt.lease.is_end())
    }

    fn poll_request(
        &mut self,
        stream: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd> {
        match &mut self.attempt {
            Some(attempt) if !attempt.request_done || attempt.lease.buffered() > 0 => {
                attempt.pump_request(self.fw, stream, cx)
            }
            _ => Ok(()),
        }
    }

    fn ended(&mut self, stream: &mut ActiveStream<'_>) {
        if let Some(attempt) = self.attempt.take() {
            attempt.finish(self.fw, stream, true);
        }
    }

    fn timed_out(&mut self, stream: &mut ActiveStream<'_>, expired: Expired) -> Option<StreamEnd> {
        let timeout = ResponseFlags::UPSTREAM_REQUEST_TIMEOUT;
        let (stat, details, flag) = match expired {
            // It bounds the wait for a head only.
            Expired::PerTry => return None,
            Expired::PerTryIdle => {
                let stat = ClusterStat::UpstreamRqPerTryIdleTimeout;
                (stat, "upstream_per_try_idle_timeout", timeout)
            }
            Expired::UpstreamMaxDuration => {
                let flag = ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED;
                let stat = ClusterStat::UpstreamRqMaxDurationReached;
                (stat, "upstream_max_stream_duration_reached", flag)
            }
            _ => (ClusterStat::UpstreamRqTimeout, "response_timeout", timeout),
        };
        self.fw.cluster.stats.inc(stat);
        if stat == ClusterStat::UpstreamRqTimeout {
            charge::count(stream, RouteStat::UpstreamRqTimeout);
        }
        stream.info.flags.insert(flag);
        stream.info.set_details(details);
        Some(StreamEnd::Reset(reset_code::INTERNAL_ERROR))
    }
}
