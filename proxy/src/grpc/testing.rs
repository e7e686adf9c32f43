//! A gRPC peer for tests, on the crate h2, and a worker's context with one cluster that leads to it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Response, request};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::frame::{Decoder, encode};
use crate::access_log::{AccessLogWriter, FlushOptions};
use crate::cluster::{ClusterMap, SharedCluster};
use crate::config::cluster::{Cluster, LbPolicy};
use crate::config::core::ConfigAddress;
use crate::config::endpoint::HealthStatus;
use crate::config::protocol_options::{UpstreamHttpOptions, UpstreamProtocolChoice};
use crate::server::control::start_context;
use crate::stats::Registry;
use crate::stats::StatSet;
use crate::worker::WorkerContext;

/// Gives out every call as it comes.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    calls: mpsc::UnboundedReceiver<PeerCall>,
}

/// The server's end of one call.
pub(crate) struct PeerCall {
    pub(crate) head: request::Parts,
    messages: RecvStream,
    decoder: Decoder,
    respond: SendResponse<Bytes>,
    body: Option<h2::SendStream<Bytes>>,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (found, calls) = mpsc::unbounded_channel();
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let found = found.clone();
                spawn_local(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let (head, messages) = request.into_parts();
                        let decoder = Decoder::new(1 << 20);
                        let call = PeerCall { head, messages, decoder, respond, body: None };
                        let _ = found.send(call);
                    }
                });
            }
        });
        Self { address, calls }
    }

    pub(crate) async fn call(&mut self) -> PeerCall {
        self.calls.recv().await.expect("the peer runs")
    }

    /// The control thread's context with the cluster `c`, whose one host this is.
    pub(crate) fn context(&self) -> (Rc<WorkerContext>, Arc<SharedCluster>) {
        context(self.address, |_| {})
    }
}

/// A context with the cluster `c`, which speaks HTTP/2 with its one host.
pub(crate) fn context(
    address: SocketAddr,
    change: impl FnOnce(&mut Cluster),
) -> (Rc<WorkerContext>, Arc<SharedCluster>) {
    let healthy: &[HealthStatus] = &[HealthStatus::Healthy];
    let mut config = crate::cluster::tests::cluster(&[healthy], LbPolicy::RoundRobin);
    config.load_assignment.localities[0].endpoints[0].address =
        ConfigAddress::Ip { addr: address, ipv4_compat: false };
    config.http = Arc::new(UpstreamHttpOptions {
        choice: UpstreamProtocolChoice::Http2,
        ..UpstreamHttpOptions::default()
    });
    change(&mut config);
    let registry = Registry::default();
    let shared = Arc::new(SharedCluster::new(Arc::new(config), &registry));
    let map = Arc::new(ClusterMap::new([shared.clone()]));
    let log = AccessLogWriter::start(FlushOptions::default(), &registry).unwrap();
    (start_context(0, map, registry, log, Arc::default()), shared)
}

impl PeerCall {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `None`: the client has ended.
    pub(crate) async fn read<M: prost::Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(M::decode(message).unwrap());
            }
            let data = self.messages.data().await?.ok()?;
            let _ = self.messages.flow_control().release_capacity(data.len());
            self.decoder.push(&data);
        }
    }

    pub(crate) fn send<M: prost::Message>(&mut self, message: &M) {
        self.body().send_data(encode(message), false).unwrap();
    }

    pub(crate) fn end(mut self, status: &str, message: &str) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        trailers.insert("grpc-message", message.parse().unwrap());
        self.body().send_trailers(trailers).unwrap();
    }

    /// All of an answer in its head.
    pub(crate) fn refuse(mut self, http: u16, status: &str) {
        let mut head = Response::builder().status(http);
        if !status.is_empty() {
            head = head.header("grpc-status", status);
        }
        self.respond.send_response(head.body(()).unwrap(), true).unwrap();
    }

    fn body(&mut self) -> &mut h2::SendStream<Bytes> {
        let respond = &mut self.respond;
        self.body.get_or_insert_with(|| {
            let head = Response::builder().header("content-type", "application/grpc");
            respond.send_response(head.body(()).unwrap(), false).unwrap()
        })
    }
}

pub(crate) fn value<S: StatSet>(cluster: &SharedCluster, stat: S) -> u64 {
    cluster.scope.value(stat)
}
