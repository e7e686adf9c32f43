//! What a type has to say, as a request.

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

use crate::interest::{Ack, Interest};

/// `google.rpc.Code.INTERNAL`: what Envoy's NACKs say.
const INTERNAL: i32 = 13;

fn error_detail(error: Option<String>) -> Option<Status> {
    error.map(|message| Status { code: INTERNAL, message, details: Vec::new() })
}

/// The next request of a type, and whether the server has something to answer.
pub(crate) fn delta(interest: &mut Interest, node: Option<Node>) -> (DeltaDiscoveryRequest, bool) {
    let mut request = DeltaDiscoveryRequest {
        node,
        type_url: interest.resource_type.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut asks = true;
    if interest.started {
        (request.resource_names_subscribe, request.resource_names_unsubscribe) = interest.changes();
        asks = !request.resource_names_subscribe.is_empty();
    } else {
        interest.started = true;
        request.resource_names_subscribe = interest.all_names();
        // A server says what is gone of the names that it finds here. No version is the version of what was rejected.
        let held = interest.held.iter().map(|(name, held)| (name.clone(), held.version.clone()));
        let refused = interest.refused.iter().map(|name| (name.clone(), String::new()));
        request.initial_resource_versions = held.chain(refused).collect();
    }
    if !interest.acks.is_empty() {
        let Ack { nonce, error } = interest.acks.remove(0);
        request.response_nonce = nonce;
        request.error_detail = error_detail(error);
    }
    (request, asks)
}

/// As `delta`.
pub(crate) fn full(interest: &mut Interest, node: Option<Node>) -> (DiscoveryRequest, bool) {
    let asks = interest.changed && !interest.to_subscribe.is_empty() || !interest.started;
    interest.started = true;
    let resource_names = interest.all_names();
    let error = interest.acks.pop().and_then(|ack| ack.error);
    let request = DiscoveryRequest {
        version_info: interest.version.clone(),
        node,
        resource_names,
        type_url: interest.resource_type.url().to_owned(),
        response_nonce: interest.nonce.clone(),
        error_detail: error_detail(error),
        ..DiscoveryRequest::default()
    };
    (request, asks)
}
