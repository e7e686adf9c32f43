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
                self.attempt.failed = Some(fault);
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
