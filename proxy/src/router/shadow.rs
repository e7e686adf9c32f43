//! Mirrors: copies of requests, sent as the requests come, whose responses nobody waits for.
//!
//! A mirror starts when there is a connection for its request, or one on its way; what became of that one is nothing to
//! it. It ends with a request that does not come to its end. As Envoy since its shadows stream.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::feed::Feed;
use crate::cluster::WorkerCluster;
use crate::cluster::original_dst::Asking;
use crate::codec::head::RequestHead;
use crate::codec::{ClientStream, Frame};
use crate::config::route::action::{ClusterName, RouteAction};
use crate::config::runtime;
use crate::hcm::request_headers::mark_as_ours;
use crate::hcm::stream::{ActiveStream, reset_code};
use crate::load_balancer::PickContext;
use crate::stats::names::{ClusterStat, RouterStat};
use crate::worker::WorkerContext;

/// So long a request waits for a mirror that takes nothing of it. Envoy has no limit.
const PATIENCE: Duration = Duration::from_secs(5);

/// The mirrors of one request that are on.
#[derive(Default)]
pub(super) struct Mirrors {
    /// Not started yet.
    chosen: SmallVec<[Mirror; 0]>,
    /// Of those that have to hear of the rest of the request.
    feeds: SmallVec<[Rc<Feed>; 0]>,
}

struct Mirror {
    cluster: Rc<WorkerCluster>,
    head: RequestHead,
    timeout: Option<Duration>,
}

impl Mirrors {
    /// The mirrors that the route wants for this request; unknown clusters are passed over, as in Envoy.
    pub(super) fn choose(s: &ActiveStream<'_>, action: &RouteAction) -> Self {
        let mut chosen = SmallVec::new();
        if s.request.method == Method::CONNECT && s.request.upgrade_str().is_none() {
            return Self::default();
        }
        for policy in action.mirrors.iter() {
            if !policy.fraction.is_hit(s.worker.random()) {
                continue;
            }
            let name = match &policy.cluster {
                ClusterName::Name(name) => Some(&**name),
                ClusterName::Header(header) => {
                    s.request.get(header).and_then(|v| std::str::from_utf8(v).ok())
                }
            };
            let Some(cluster) = name.and_then(|name| s.worker.clusters.get(name)) else { continue };
            let mut head = s.request.clone();
            policy.request_headers.apply_request(&mut head, &s.info);
            if let Some(host) = &policy.host_rewrite_literal {
                head.set_authority(host);
            } else if !policy.disable_shadow_host_suffix_append {
                let host = shadow_host(head.authority().unwrap_or_default());
                head.set_authority(&host);
            }
            mark_as_ours(&mut head);
            let timeout = Some(action.timeouts.timeout).filter(|t| !t.is_zero());
            chosen.push(Mirror { cluster, head, timeout });
        }
        Self { chosen, feeds: SmallVec::new() }
    }

    /// Begins to send the copies, with nothing of the body yet.
    pub(super) fn start(&mut self, s: &ActiveStream<'_>) {
        for mirror in self.chosen.drain(..) {
            let limit = s.limit.min(mirror.cluster.config.per_connection_buffer_limit);
            let feed = Feed::new(limit.max(1));
            if s.request_is_empty() {
                feed.push(None);
            } else {
                self.feeds.push(feed.clone());
            }
            let worker = s.worker.clone();
            tokio::task::spawn_local(async move {
                mirror.run(worker, &feed).await;
                feed.close();
            });
        }
    }

    /// The next frame of the request on its way; `None` is its end.
    pub(super) fn pass(&mut self, frame: Option<Frame>) -> Option<Frame> {
        if let Some(frame) = &frame {
            self.feeds.iter().for_each(|feed| feed.push(Some(frame.clone())));
        }
        if !matches!(frame, Some(Frame::Data(_))) {
            self.finish();
        }
        frame
    }

    /// All of the request has been said.
    pub(super) fn finish(&mut self) {
        for feed in self.feeds.drain(..) {
            feed.push(None);
        }
    }

    /// Whether all of them take more of the request.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> bool {
        self.feeds.iter().all(|feed| feed.poll_room(cx))
    }
}

impl Drop for Mirrors {
    fn drop(&mut self) {
        self.feeds.iter().for_each(|feed| feed.cancel());
    }
}

/// `host-shadow:port`.
fn shadow_host(host: &[u8]) -> Vec<u8> {
    let port = super::route_table::without_port(host).len();
    [&host[..port], b"-shadow", &host[port..]].concat()
}

impl Mirror {
    async fn run(self, worker: Rc<WorkerContext>, feed: &Feed) {
        let (mut timer, mut patience) = (worker.timers.timer(), worker.timers.timer());
        worker.async_client.inc(RouterStat::RqTotal);
        let cluster = &self.cluster;
        // An answer counts from its head, whatever becomes of the rest.
        let charged = Cell::new(false);
        // From the request's end run its timeout and the time that it takes.
        let mut completed = None;
        let mut request = Box::pin(self.request(&worker, feed, &charged));
        let done = poll_fn(|cx| {
            feed.listen(cx);
            if completed.is_none() && feed.is_complete() {
                let now = Instant::now();
                completed = Some(now);
                if let Some(timeout) = self.timeout {
                    timer.arm(now + timeout);
                }
            }
            if let Poll::Ready(status) = request.as_mut().poll(cx) {
                return Poll::Ready(status);
            }
            if feed.is_cancelled() {
                return Poll::Ready(None);
            }
            if !feed.holds_back() {
                patience.disarm();
            } else if !patience.is_armed() {
                patience.arm(Instant::now() + PATIENCE);
            }
            if patience.poll(cx).is_ready() {
                cluster.stats.inc(ClusterStat::RetryOrShadowAbandoned);
                return Poll::Ready(None);
            }
            timer.poll(cx).map(|()| {
                cluster.stats.inc(ClusterStat::UpstreamRqTimeout);
                Some((StatusCode::GATEWAY_TIMEOUT, false))
            })
        })
        .await;
        if let Some((status, whole)) = done {
            self.charge(status, &charged);
            if whole && let Some(completed) = completed {
                let took = completed.elapsed().as_millis() as u64;
                cluster.stats.record(ClusterStat::UpstreamRqTime, took);
                cluster.codes.time(true, false, took);
            }
        }
    }

    /// Counts the answer, once.
    fn charge(&self, status: StatusCode, charged: &Cell<bool>) {
        if !charged.replace(true) {
            self.cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
            self.cluster.codes.charge(status.as_u16(), true, false);
        }
    }

    /// The status of the response and whether it came to its end; `None` where there was no host.
    async fn request(
        &self,
        worker: &WorkerContext,
        feed: &Feed,
        charged: &Cell<bool>,
    ) -> Option<(StatusCode, bool)> {
        if runtime::is_in_maintenance(&self.cluster.config.name, || worker.random()) {
            self.cluster.stats.inc(ClusterStat::UpstreamRqMaintenanceMode);
            return Some((StatusCode::SERVICE_UNAVAILABLE, false));
        }
        let asking = Asking { stream: None, head: Some(&self.head) };
        let context = PickContext { asking, ..PickContext::default() };
        let host = self.cluster.pick(&context).ok()?;
        let Ok(mut lease) = super::transport::acquire(&host, &self.head).await else {
            return Some((StatusCode::SERVICE_UNAVAILABLE, false));
        };
        let stream = &mut *lease;
        let mut sent = feed.take_end();
        stream.send_head(&self.head, sent);
        let mut status = None;
        let outcome = poll_fn(|cx| {
            loop {
                let whole = poll_forward(feed, stream, cx, &mut sent).is_ready() && sent;
                let Some(_) = status else {
                    match stream.poll_head(cx) {
                        Poll::Ready(Ok((head, _))) if head.is_informational() => continue,
                        Poll::Ready(Ok((head, end))) => {
                            status = Some(head.status);
                            self.charge(head.status, charged);
                            if end {
                                return Poll::Ready(Ok(whole));
                            }
                            continue;
                        }
                        Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                        Poll::Pending => return Poll::Pending,
                    }
                };
                match stream.poll_frame(cx) {
                    Poll::Ready(Ok(Some(_))) => {}
                    Poll::Ready(Ok(None)) => return Poll::Ready(Ok(whole)),
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        let whole = outcome.is_ok();
        match outcome {
            Ok(true) => lease.release(true, Instant::now()),
            Ok(false) => lease.reset(reset_code::INTERNAL_ERROR),
            Err(fault) => lease.close(fault.is_remote()),
        }
        Some((status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), whole))
    }
}

/// Moves the request on, as far as there is some and the stream has room; ready when the stream has written all of it.
fn poll_forward(
    feed: &Feed,
    stream: &mut ClientStream,
    cx: &mut Context<'_>,
    sent: &mut bool,
) -> Poll<()> {
    loop {
        while stream.buffered() < feed.limit()
            && let Some(frame) = feed.pop()
        {
            match frame {
                Some(Frame::Data(data)) => {
                    *sent = feed.take_end();
                    stream.send_data(data, *sent);
                }
                Some(Frame::Trailers(trailers)) => {
                    *sent = feed.take_end();
                    stream.send_trailers(&trailers);
                }
                None => {
                    *sent = true;
                    stream.send_data(Bytes::new(), true);
                }
            }
        }
        let full = stream.buffered() >= feed.limit();
        match stream.poll_flush(cx) {
            Poll::Ready(Ok(())) if full => {}
            // A write that fails shows on the reading side too.
            flushed => return flushed.map(|_| ()),
        }
    }
}
