//! One exchange with a gRPC service: messages both ways on one stream of the cluster's connection.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::Target;
use super::frame::{Decoder, encode};
use super::status::{Code, Status};
use crate::cluster::WorkerCluster;
use crate::codec::head::{Protocol, RequestHead, Scheme};
use crate::codec::name::{HeaderName, names};
use crate::codec::{Fault, Frame};
use crate::config::runtime;
use crate::conn_pool::Lease;
use crate::hcm::request_headers::mark_as_ours;
use crate::hcm::stream::reset_code;
use crate::load_balancer::PickContext;
use crate::router::transport;
use crate::stats::names::{ClusterStat, RouterStat};
use crate::worker::WorkerContext;

/// An open exchange. Dropped before its end it resets its stream.
pub struct Call {
    /// `None` once it has ended.
    lease: Option<Lease>,
    cluster: Rc<WorkerCluster>,
    decoder: Decoder,
    has_head: bool,
    /// The server's status, while whole messages before it are left.
    end: Option<Result<(), Status>>,
    begin: Instant,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            self.cluster.stats.inc(ClusterStat::UpstreamRqTxReset);
            lease.reset(reset_code::CANCEL);
        }
    }
}

impl Call {
    pub(super) async fn open(
        worker: &WorkerContext,
        target: &Target,
        path: &str,
        timeout: Option<Duration>,
    ) -> Result<Self, Status> {
        let unavailable = |reason: &str| Status::new(Code::UNAVAILABLE, reason);
        let Some(cluster) = worker.clusters.get(&target.cluster) else {
            let reason = format!("unknown cluster '{}'", target.cluster);
            return Err(unavailable(&reason));
        };
        worker.async_client.inc(RouterStat::RqTotal);
        let begin = Instant::now();
        if runtime::is_in_maintenance(&cluster.config.name, || worker.random()) {
            cluster.stats.inc(ClusterStat::UpstreamRqMaintenanceMode);
            cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
            cluster.codes.charge(503, true, false);
            return Err(unavailable("maintenance mode"));
        }
        let Ok(host) = cluster.pick(&PickContext::default()) else {
            return Err(unavailable("no healthy upstream"));
        };
        let head = head(target, path, timeout);
        let mut lease = match transport::acquire(&host, &head).await {
            Ok(lease) => lease,
            Err(failure) => {
                cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
                cluster.codes.charge(503, true, false);
                let mut reason = format!(
                    "upstream connect error or disconnect/reset before headers. reset reason: {}",
                    failure.reset_reason()
                );
                if let Some(why) = failure.transport_failure() {
                    reason = format!("{reason}, transport failure reason: {why}");
                }
                return Err(unavailable(&reason));
            }
        };
        lease.send_head(&head, false);
        let decoder = Decoder::new(target.max_message);
        Ok(Self { lease: Some(lease), cluster, decoder, has_head: false, end: None, begin })
    }

    /// Sends a message: `poll_message` moves it out.
    pub fn send<M: prost::Message>(&mut self, message: &M) {
        if let Some(lease) = &mut self.lease {
            lease.send_data(encode(message), false);
        }
    }

    /// Nothing more is sent; the server's messages still come.
    pub fn finish(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.send_data(Bytes::new(), true);
        }
    }

    /// Moves what was sent out, and waits for the next message, encoded. `None`: the server ended well; nothing comes
    /// after that, nor after an error. Cancel-safe.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => return Poll::Ready(Ok(Some(message))),
                Ok(None) => {}
                Err(status) => {
                    if let Some(mut lease) = self.lease.take() {
                        self.cluster.stats.inc(ClusterStat::UpstreamRqTxReset);
                        lease.reset(reset_code::CANCEL);
                    }
                    self.end = Some(Ok(()));
                    return Poll::Ready(Err(status));
                }
            }
            if let Some(end) = self.end.replace(Ok(())) {
                return Poll::Ready(end.map(|()| None));
            }
            self.end = None;
            let polled = if self.has_head { self.poll_body(cx) } else { self.poll_head(cx) };
            match polled {
                Poll::Ready(Some(end)) => self.end = Some(end),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The next message, decoded.
    ///
    /// # Errors
    /// The server's status, or what went wrong on the way.
    pub async fn next<R: prost::Message + Default>(&mut self) -> Result<Option<R>, Status> {
        match poll_fn(|cx| self.poll_message(cx)).await? {
            None => Ok(None),
            Some(bytes) => R::decode(bytes)
                .map(Some)
                .map_err(|error| Status::new(Code::INTERNAL, error.to_string())),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), Status>>> {
        let Some(lease) = &mut self.lease else { return Poll::Ready(Some(Ok(()))) };
        // A write that fails shows on the reading side too.
        let _ = lease.poll_flush(cx);
        let (head, end) = match lease.poll_head(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok((head, _))) if head.is_informational() => return Poll::Ready(None),
            Poll::Ready(Ok(head)) => head,
            Poll::Ready(Err(fault)) => return Poll::Ready(Some(Err(self.failed(fault)))),
        };
        self.has_head = true;
        self.cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
        self.cluster.codes.charge(head.status.as_u16(), true, false);
        let status = Status::of_fields(&head.headers);
        if !end && head.status == http::StatusCode::OK {
            return Poll::Ready(None);
        }
        self.done(end);
        let status = match status {
            Some(status) if end => status,
            _ if head.status != http::StatusCode::OK => Status::of_head(&head),
            _ => Status::new(Code::UNKNOWN, "an answer without a status"),
        };
        Poll::Ready(Some(ended_by(status)))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), Status>>> {
        let Some(lease) = &mut self.lease else { return Poll::Ready(Some(Ok(()))) };
        let _ = lease.poll_flush(cx);
        let end = match lease.poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(Some(Frame::Data(data)))) => {
                self.decoder.push(&data);
                return Poll::Ready(None);
            }
            Poll::Ready(Ok(Some(Frame::Trailers(trailers)))) => Status::of_fields(&trailers),
            Poll::Ready(Ok(None)) => None,
            Poll::Ready(Err(fault)) => return Poll::Ready(Some(Err(self.failed(fault)))),
        };
        self.done(true);
        let missing = || Status::new(Code::UNKNOWN, "a response that ends without a status");
        Poll::Ready(Some(ended_by(end.unwrap_or_else(missing))))
    }

    /// The response is over; `whole`: all of it has come.
    fn done(&mut self, whole: bool) {
        let Some(mut lease) = self.lease.take() else { return };
        let took = self.begin.elapsed().as_millis() as u64;
        self.cluster.stats.record(ClusterStat::UpstreamRqTime, took);
        self.cluster.codes.time(true, false, took);
        if whole {
            lease.release(true, Instant::now());
        } else {
            self.cluster.stats.inc(ClusterStat::UpstreamRqTxReset);
            lease.reset(reset_code::CANCEL);
        }
    }

    fn failed(&mut self, fault: Fault) -> Status {
        if let Some(lease) = self.lease.take() {
            if let Fault::Reset { remote: true, .. } = fault {
                self.cluster.stats.inc(ClusterStat::UpstreamRqRxReset);
            } else {
                self.cluster.stats.inc(ClusterStat::UpstreamRqPendingFailureEject);
            }
            if !self.has_head {
                self.cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
                self.cluster.codes.charge(503, true, false);
            }
            lease.close(fault.is_remote());
        }
        let code = if self.has_head { Code::INTERNAL } else { Code::UNAVAILABLE };
        Status::new(code, fault.to_string())
    }
}

fn ended_by(status: Status) -> Result<(), Status> {
    if status.code == Code::OK { Ok(()) } else { Err(status) }
}

fn head(target: &Target, path: &str, timeout: Option<Duration>) -> RequestHead {
    let mut head = RequestHead::new(Method::POST, Protocol::Http2);
    head.scheme = Some(Scheme::Http);
    head.set_path(path.as_bytes());
    head.set_authority(target.authority.as_ref().unwrap_or(&target.cluster).as_bytes());
    if let Some(timeout) = timeout {
        // At most eight digits (gRPC over HTTP/2, "Timeout").
        let millis = timeout.as_millis().min(99_999_999);
        head.headers.append(&names::GRPC_TIMEOUT, format!("{millis}m").as_bytes());
    }
    head.headers.append(&names::TE, b"trailers");
    head.headers.append(&names::CONTENT_TYPE, b"application/grpc");
    for (name, value) in &target.initial_metadata {
        if let Ok(name) = HeaderName::parse(name) {
            head.headers.append(&name, value.as_bytes());
        }
    }
    mark_as_ours(&mut head);
    head
}
