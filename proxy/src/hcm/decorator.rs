//! `x-envoy-decorator-operation`: the name of a route's operation, as it goes from one proxy's spans to the other's.
//!
//! Follows Envoy's `ActiveStream::traceRequest` and `encodeHeaders`: what a listener for outbound traffic sends
//! upstream, the other proxy takes off again; where nothing came, a listener for inbound traffic tells its client.
//! There is no tracer: the names themselves are what peers see. Only where the connection manager has `tracing`.

use crate::codec::head::ResponseHead;
use crate::codec::name::names;

use super::stream::ActiveStream;

/// On the way in, once the route is known and before any filter.
pub(super) fn request(s: &mut ActiveStream<'_>) {
    if s.hcm.config.tracing.is_none() {
        return;
    }
    let decorator = s.route.route().and_then(|route| route.decorator.as_ref());
    let operation = decorator.filter(|d| d.propagate).map(|d| d.operation.clone());
    let headers = &mut s.request.headers;
    if s.hcm.egress {
        if let Some(operation) = operation {
            headers.set(&names::X_ENVOY_DECORATOR_OPERATION, operation.as_bytes());
        }
        return;
    }
    let named = headers.get(&names::X_ENVOY_DECORATOR_OPERATION).map(|name| !name.is_empty());
    if named.is_some() {
        headers.remove(&names::X_ENVOY_DECORATOR_OPERATION);
    }
    if named != Some(true) {
        s.operation = operation;
    }
}

/// On the way out, after every filter.
pub(super) fn response(s: &ActiveStream<'_>, head: &mut ResponseHead) {
    if s.hcm.config.tracing.is_none() {
        return;
    }
    if s.hcm.egress {
        head.headers.remove(&names::X_ENVOY_DECORATOR_OPERATION);
    } else if let Some(operation) = &s.operation {
        head.headers.set(&names::X_ENVOY_DECORATOR_OPERATION, operation.as_bytes());
    }
}
