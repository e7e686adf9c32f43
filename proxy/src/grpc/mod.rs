//! The one gRPC client: messages to whatever names a cluster, over that cluster's own HTTP/2 connections.
//!
//! Connectors, TLS, load balancing, circuit breakers and statistics are the cluster's; here are only message framing
//! (`frame.rs`), statuses (`status.rs`) and the exchange itself (`call.rs`). It works on every thread that has a
//! `WorkerContext`; the control thread has one without listeners. From pb `core.v3.GrpcService.EnvoyGrpc`.

pub mod call;
pub mod frame;
pub mod status;

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::worker::WorkerContext;
use call::Call;
use status::{Code, Status};

/// A service that answers gRPC.
#[derive(Debug, Clone)]
pub struct Target {
    pub cluster: Arc<str>,
    /// `:authority`; the cluster's name where it has none.
    pub authority: Option<Arc<str>>,
    /// Sent with every call: names in lower case.
    pub initial_metadata: Box<[(Box<str>, Box<str>)]>,
    /// The longest message that is taken, in bytes.
    pub max_message: usize,
}

/// The longest message that is taken where nothing says otherwise: the whole configuration of a large mesh is well
/// below it.
pub const MAX_MESSAGE: usize = 256 << 20;

/// Calls to one service from one thread.
#[derive(Debug, Clone)]
pub struct Client {
    worker: Rc<WorkerContext>,
    target: Rc<Target>,
}

impl Client {
    pub fn new(worker: Rc<WorkerContext>, target: Target) -> Self {
        Self { worker, target: Rc::new(target) }
    }

    /// Opens a stream to `path` (`/package.Service/Method`). It ends by `finish` and the server's status, or when it is
    /// dropped.
    ///
    /// # Errors
    /// There is no such cluster, no host, or no connection: `Unavailable`.
    pub async fn stream(&self, path: &str) -> Result<Call, Status> {
        Call::open(&self.worker, &self.target, path, None).await
    }

    /// One message out, one in. `timeout` bounds all of it, connecting included.
    ///
    /// # Errors
    /// What the server says, or `DeadlineExceeded`, or what `stream` says.
    pub async fn unary<Q: prost::Message, R: prost::Message + Default>(
        &self,
        path: &str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R, Status> {
        let exchange = async {
            let mut call = Call::open(&self.worker, &self.target, path, timeout).await?;
            call.send(request);
            call.finish();
            let Some(answer) = call.next::<R>().await? else {
                return Err(Status::new(Code::INTERNAL, "an answer without a message"));
            };
            match call.next::<R>().await? {
                None => Ok(answer),
                Some(_) => Err(Status::new(Code::INTERNAL, "an answer of several messages")),
            }
        };
        let Some(timeout) = timeout else { return exchange.await };
        let mut timer = self.worker.timers.timer();
        timer.arm(Instant::now() + timeout);
        let mut exchange = Box::pin(exchange);
        poll_fn(|cx| match exchange.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => {
                timer.poll(cx).map(|()| Err(Status::new(Code::DEADLINE_EXCEEDED, "timeout")))
            }
        })
        .await
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
