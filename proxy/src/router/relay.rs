//! The response of an attempt as the connection manager pulls it, the rest of the request going the other way.

use std::task::{Context, Poll, ready};

use super::attempt::Attempt;
use super::failure::Failure;
use super::forward::Forwarding;
use crate::codec::Frame;
use crate::hcm::frames::ResponseSource;
use crate::hcm::stream::{ActiveStream, StreamEnd, reset_code};
use crate::hcm::stream_timers::Expired;
use crate::stats::names::ClusterStat;
use crate::stream_info::ResponseFlags;

pub(super) struct Relay<'f, 'r> {
    fw: &'f mut Forwarding<'r>,
    attempt: &'f mut Attempt,
}

impl<'f, 'r> Relay<'f, 'r> {
    pub(super) fn new(fw: &'f mut Forwarding<'r>, attempt: &'f mut Attempt) -> Self {
        Self { fw, attempt }
    }
}

impl ResponseSource for Relay<'_, '_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamEnd>> {
        Poll::Ready(match ready!(self.attempt.lease.poll_frame(cx)) {
            Ok(frame) => Ok(frame),
            Err(fault) => {
                self.attempt.failed = Some(Failure::of(fault));
                Err(StreamEnd::Reset(reset_code::INTERNAL_ERROR))
            }
        })
    }

    fn is_end(&self) -> bool {
        self.attempt.lease.is_end()
    }

    fn poll_request(
        &mut self,
        stream: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd> {
        if self.attempt.request_done && self.attempt.lease.buffered() == 0 {
            return Ok(());
        }
        self.attempt.pump_request(self.fw, stream, cx)
    }

    fn timed_out(&mut self, stream: &mut ActiveStream<'_>, expired: Expired) -> Option<StreamEnd> {
        let (stat, details) = match expired {
            Expired::PerTry => (ClusterStat::UpstreamRqPerTryTimeout, "upstream_per_try_timeout"),
            Expired::PerTryIdle => {
                (ClusterStat::UpstreamRqPerTryIdleTimeout, "upstream_per_try_idle_timeout")
            }
            _ => (ClusterStat::UpstreamRqTimeout, "response_timeout"),
        };
        self.fw.cluster.stats.inc(stat);
        stream.info.flags.insert(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT);
        stream.info.set_details(details);
        Some(StreamEnd::Reset(reset_code::INTERNAL_ERROR))
    }
}
