//! A client of Envoy's xDS protocol as a state machine without IO.
//!
//! The crate knows the protocol: both variants (incremental and state of the world), any number of types on one
//! stream (ADS) or one of them, subscriptions by name and by wildcard, nonces, acknowledgements, what a new stream has
//! to repeat, back-off, lives of resources. It does not know what resources mean, opens no socket and reads no clock:
//! whoever owns a [`Client`] tells it what has happened and does the [`Action`]s that it asks for.
//!
//! ```
//! use std::time::Instant;
//! use envoy_types::pb::envoy::config::core::v3::Node;
//! use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
//! use xds_client::{Action, Client, Options, Request, ResourceType, Response, Variant, Verdict, WILDCARD};
//!
//! let node = Node { id: "sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local".into(), ..Node::default() };
//! let now = Instant::now();
//! let mut client = Client::new(Options::new(Variant::Delta, node), now);
//! client.subscribe(&ResourceType::cluster(), WILDCARD, None, now);
//!
//! assert_eq!(client.poll_action(now), Some(Action::Open));
//! client.opened();
//! let Some(Action::Send(Request::Delta(request))) = client.poll_action(now) else { panic!() };
//! assert_eq!(request.type_url, ResourceType::cluster().url());
//! assert_eq!(client.poll_action(now), None);
//!
//! client.received(Response::Delta(DeltaDiscoveryResponse {
//!     type_url: request.type_url,
//!     nonce: "1".into(),
//!     removed_resources: vec!["gone".into()],
//!     ..DeltaDiscoveryResponse::default()
//! }));
//! let Some(Action::Deliver(update)) = client.poll_action(now) else { panic!() };
//! assert_eq!(update.removed, ["gone"]);
//! // Here what refers to other resources subscribes to them.
//! client.judge(Verdict::default());
//! let Some(Action::Send(Request::Delta(ack))) = client.poll_action(now) else { panic!() };
//! assert_eq!(ack.response_nonce, "1");
//! ```
//!
//! `examples/print_resources.rs` is a whole client over gRPC.
//!
//! # What it promises
//!
//! - A new stream asks for each type in the order in which the types were first wanted, with every wanted name and,
//!   in the incremental variant, the versions that are held.
//! - A response is acknowledged only after its receiver has judged it; a rejected one is answered with the reason, and
//!   the resources of it that were applied count as held.
//! - Of two state-of-the-world responses of a type only the newer nonce is ever used.
//! - Between delivery and judgement nothing is sent, so that new subscriptions of one type share a request.
//! - Of a type on hold nothing is sent after a stream's first request; what was to be said of it goes out in order once
//!   it is let go.

#![warn(missing_docs)]

mod backoff;
mod client;
mod interest;
mod request;
mod resource;
mod response;

pub use backoff::{BackoffOptions, RateLimit};
pub use client::{Action, Client, Options, Request, Response, Variant};
pub use resource::{Rejection, Resource, ResourceType, Update, Verdict, WILDCARD, name_of};
