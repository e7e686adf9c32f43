//! Mirrors: copies of requests whose responses nobody waits for.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;
use smallvec::SmallVec;

use super::replay::Replay;
use crate::cluster::WorkerCluster;
use crate::cluster::original_dst::Asking;
use crate::codec::Frame;
use crate::codec::head::RequestHead;
use crate::config::route::action::{ClusterName, RouteAction};
use crate::config::runtime;
use crate::hcm::request_headers::mark_as_ours;
use crate::hcm::stream::{ActiveStream, reset_code};
use crate::load_balancer::PickContext;
use crate::stats::names::{ClusterStat, RouterStat};
use crate::worker::WorkerContext;

/// The mirrors of one request that are on.
#[derive(Default)]
pub(super) struct Mirrors(SmallVec<[Mirror; 0]>);

struct Mirror {
    cluster: Rc<WorkerCluster>,
    head: RequestHead,
    timeout: Option<Duration>,
}

impl Mirrors {
    /// The mirrors that the route wants for this request; unknown clusters are passed over, as in Envoy.
    pub(super) fn choose(s: &ActiveStream<'_>, action: &RouteAction) -> Self {
        let mut mirrors = SmallVec::new();
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
            mirrors.push(Mirror { cluster, head, timeout });
        }
        Self(mirrors)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends the copies, once the request is complete; those of a request that did not fit into the replay
    /// buffer are given up.
    pub(super) fn start(&mut self, s: &ActiveStream<'_>, replay: &mut Replay) {
        for mirror in self.0.drain(..) {
            if !replay.is_whole() {
                mirror.cluster.stats.inc(ClusterStat::RetryOrShadowAbandoned);
                continue;
            }
            let frames = replay.frames().cloned().collect();
            let worker = s.worker.clone();
            tokio::task::spawn_local(async move { mirror.run(worker, frames).await });
        }
    }
}

/// `host-shadow:port`.
fn shadow_host(host: &[u8]) -> Vec<u8> {
    let port = super::route_table::without_port(host).len();
    [&host[..port], b"-shadow", &host[port..]].concat()
}

impl Mirror {
    async fn run(self, worker: Rc<WorkerContext>, frames: Vec<Frame>) {
        let mut timer = worker.timers.timer();
        if let Some(timeout) = self.timeout {
            timer.arm(Instant::now() + timeout);
        }
        worker.async_client.inc(RouterStat::RqTotal);
        let cluster = self.cluster.clone();
        let begin = Instant::now();
        let mut request = Box::pin(self.request(&worker, frames));
        let done = poll_fn(|cx| {
            if let Poll::Ready(status) = request.as_mut().poll(cx) {
                return Poll::Ready(status);
            }
            timer.poll(cx).map(|()| {
                cluster.stats.inc(ClusterStat::UpstreamRqTimeout);
                Some((StatusCode::GATEWAY_TIMEOUT, false))
            })
        })
        .await;
        if let Some((status, whole)) = done {
            cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
            cluster.codes.charge(status.as_u16(), true, false);
            if whole {
                let took = begin.elapsed().as_millis() as u64;
                cluster.stats.record(ClusterStat::UpstreamRqTime, took);
                cluster.codes.time(true, false, took);
            }
        }
    }

    /// The status of the response and whether it came to its end; `None` where there was no host.
    async fn request(
        self,
        worker: &WorkerContext,
        frames: Vec<Frame>,
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
        stream.send_head(&self.head, frames.is_empty());
        let last = frames.len().saturating_sub(1);
        for (i, frame) in frames.into_iter().enumerate() {
            match frame {
                Frame::Data(data) => stream.send_data(data, i == last),
                Frame::Trailers(trailers) => stream.send_trailers(&trailers),
            }
        }
        let mut status = None;
        let outcome = poll_fn(|cx| {
            loop {
                // A write that fails shows on the reading side too.
                let flushed = stream.poll_flush(cx);
                let Some(_) = status else {
                    match stream.poll_head(cx) {
                        Poll::Ready(Ok((head, _))) if head.is_informational() => continue,
                        Poll::Ready(Ok((head, true))) => {
                            status = Some(head.status);
                            return Poll::Ready(Ok(flushed.is_ready()));
                        }
                        Poll::Ready(Ok((head, false))) => {
                            status = Some(head.status);
                            continue;
                        }
                        Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                        Poll::Pending => return Poll::Pending,
                    }
                };
                match stream.poll_frame(cx) {
                    Poll::Ready(Ok(Some(_))) => {}
                    Poll::Ready(Ok(None)) => return Poll::Ready(Ok(flushed.is_ready())),
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
