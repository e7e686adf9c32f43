//! Prints what a control plane serves: every cluster and listener, and the endpoints and routes that they name.
//!
//!     cargo run -p xds-client --example print_resources -- [--sotw] ADDRESS [NODE-ID]
//!
//! ADDRESS is `host:port`, or the path of a unix socket. Runs until the control plane's last first answer, then for
//! changes, until it is stopped. A whole client: everything beside the state machine is gRPC and a clock.

#![expect(clippy::print_stdout, reason = "it prints")]

use std::error::Error;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream_of::receiver;
use tonic::transport::{Channel, Endpoint};
use xds_client::{
    Action, Client, Options, Request, ResourceType, Response, Update, Variant, Verdict, WILDCARD,
};
