//! Opening a connection within the cluster's `connect_timeout`.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::PoolFailure;
use super::record::CxRecord;
use crate::cluster::HostContext;
use crate::config::protocol_options::UpstreamProtocolChoice;
use crate::io::Io;
use crate::tls::ClientContext;
use crate::tls::handshake::{self, ClientRequest};
use crate::upstream::{self, ConnectError, TransportSocketOptions};

/// What is asked of a connection's transport socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Transport {
    pub(super) options: Option<Arc<TransportSocketOptions>>,
    /// The protocols that the pool speaks: offered where nothing else says what to.
    pub(super) protocols: &'static [&'static str],
}

/// Connects to the host, with the handshake where the transport socket has one, and counts the outcome in `record`.
/// Cancel-safe: dropping it closes the socket.
pub(super) async fn connect(
    host: &Rc<HostContext>,
    transport: &Transport,
    record: &mut CxRecord,
) -> Result<Io, PoolFailure> {
    let cluster = &host.cluster;
    let mut timeout = cluster.timers.timer();
    timeout.arm(Instant::now() + cluster.config.connect_timeout);
    let mut connecting = pin!(open(host, transport));
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(PoolFailure::from));
        }
        timeout.poll(cx).map(|()| Err(PoolFailure::Timeout))
    })
    .await;
    match &outcome {
        Ok(io) => {
            record.connected(io);
            if is_negotiated(host) && !transport.protocols.is_empty() {
                record.count_again();
            }
        }
        Err(PoolFailure::Connect(error)) => record.connect_failed(false, error.local),
        Err(failure) => record.connect_failed(matches!(failure, PoolFailure::Timeout), true),
    }
    outcome
}

async fn open(host: &HostContext, transport: &Transport) -> Result<Io, ConnectError> {
    let source = transport.options.as_ref().and_then(|options| options.source.as_ref());
    let io = upstream::connect(&host.host.address, &host.cluster.config.socket, source).await?;
    let Some(context) = host.host.transport() else { return Ok(io) };
    // Only connections under TLS pay for the room.
    Box::pin(secure(io, &context, host, transport)).await
}

/// Whether ALPN decides what a connection speaks.
fn is_negotiated(host: &HostContext) -> bool {
    host.cluster.config.http.choice == UpstreamProtocolChoice::Auto
}

/// The protocols to offer whatever the context says; none for the context's.
fn offered(host: &HostContext, transport: &Transport) -> Vec<Vec<u8>> {
    let owned = |names: &mut dyn Iterator<Item = &str>| {
        names.map(|name| name.as_bytes().to_vec()).collect()
    };
    let options = transport.options.as_deref();
    let asked = options.filter(|options| !options.application_protocols.is_empty());
    match asked {
        Some(options) => owned(&mut options.application_protocols.iter().map(|name| &**name)),
        // Where ALPN decided, later connections must not come to another decision.
        None if is_negotiated(host) => owned(&mut transport.protocols.iter().copied()),
        None => Vec::new(),
    }
}

async fn secure(
    io: Io,
    context: &ClientContext,
    host: &HostContext,
    transport: &Transport,
) -> Result<Io, ConnectError> {
    let options = transport.options.as_deref();
    let asked = options.and_then(|options| options.server_name.as_deref());
    let hostname = host.host.hostname.as_deref().filter(|_| context.settings().auto_host_sni);
    let request = ClientRequest {
        server_name: asked.or(hostname),
        alpn: offered(host, transport),
        alpn_fallback: transport.protocols,
        names: options.map_or(&[], |options| &options.verify_subject_alt_names),
    };
    match handshake::connect(io, context, &request).await {
        Ok((mut stream, established)) => {
            stream.count_in(host.cluster.ssl.clone());
            if let Some(ssl) = &host.cluster.ssl {
                ssl.established(&established);
            }
            Ok(stream.into())
        }
        Err(failure) => {
            if let Some(ssl) = &host.cluster.ssl {
                ssl.failed(&failure, false);
            }
            Err(ConnectError { local: false, reason: failure.reason })
        }
    }
}
