//! Prints what a control plane serves over ADS: clusters and listeners, the endpoints and routes that they name.
//!
//!     cargo run -p xds-client --example print_resources -- [--sotw] ADDRESS [NODE-ID]
//!
//! ADDRESS is `http://host:port`, or the path of a unix socket. Prints changes until it is stopped. A whole client: what
//! stands beside the state machine is gRPC and a clock.

#![expect(clippy::print_stdout, reason = "it prints")]

use std::error::Error;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use xds_client::{
    Action, Client, Options, Request, ResourceType, Response, Update, Variant, Verdict, WILDCARD,
};

type Failure = Box<dyn Error + Send + Sync>;

/// What the tasks tell the state machine.
enum Event {
    Opened(Requests),
    Received(Response),
    Ended(String),
}

/// Where requests of the open stream go.
enum Requests {
    Delta(
        mpsc::UnboundedSender<
            envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest,
        >,
    ),
    Sotw(mpsc::UnboundedSender<envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest>),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let sotw = arguments.iter().any(|one| one == "--sotw");
    arguments.retain(|one| one != "--sotw");
    let address = arguments.first().ok_or("usage: print_resources [--sotw] ADDRESS [NODE-ID]")?;
    let id = arguments
        .get(1)
        .map_or("sidecar~127.0.0.1~print.default~default.svc.cluster.local", |id| id);
    let variant = if sotw { Variant::StateOfTheWorld } else { Variant::Delta };
    let node = Node { id: id.to_owned(), cluster: "print_resources".into(), ..Node::default() };

    let mut client = Client::new(Options::new(variant, node), Instant::now());
    client.subscribe(&ResourceType::cluster(), WILDCARD, None, Instant::now());
    client.subscribe(&ResourceType::listener(), WILDCARD, None, Instant::now());
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut requests = None;
    loop {
        while let Some(action) = client.poll_action(Instant::now()) {
            match action {
                Action::Open => {
                    tokio::spawn(run_stream(address.clone(), variant, events.clone()));
                }
                Action::Close => requests = None,
                Action::Send(request) => match (&requests, request) {
                    (Some(Requests::Delta(to)), Request::Delta(request)) => to.send(*request)?,
                    (Some(Requests::Sotw(to)), Request::StateOfTheWorld(request)) => {
                        to.send(*request)?;
                    }
                    _ => {}
                },
                Action::Deliver(update) => {
                    for (resource_type, name) in print(&update) {
                        client.subscribe(&resource_type, &name, None, Instant::now());
                    }
                    client.judge(Verdict::default());
                }
                Action::TimedOut { .. } => {}
            }
        }
        let wait =
            client.next_deadline().map_or(Duration::from_secs(3600), |at| at - Instant::now());
        match tokio::time::timeout(wait, inbox.recv()).await {
            Ok(Some(Event::Opened(to))) => {
                requests = Some(to);
                client.opened();
            }
            Ok(Some(Event::Received(response))) => client.received(response),
            Ok(Some(Event::Ended(reason))) => {
                println!("# the stream has ended: {reason}");
                requests = None;
                client.ended(Instant::now());
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// Prints an update, and gives what it refers to.
fn print(update: &Update) -> Vec<(ResourceType, String)> {
    let mut wanted = Vec::new();
    for resource in &update.resources {
        println!("{:?} {} {} bytes", update.resource_type, resource.name, resource.body.len());
        if let Ok(cluster) = Cluster::decode(resource.body.clone())
            && update.resource_type == ResourceType::cluster()
            && let Some(eds) = cluster.eds_cluster_config
        {
            let name = if eds.service_name.is_empty() { cluster.name } else { eds.service_name };
            wanted.push((ResourceType::endpoints(), name));
        }
        if let Ok(listener) = Listener::decode(resource.body.clone())
            && update.resource_type == ResourceType::listener()
        {
            wanted.extend(routes_of(&listener).map(|name| (ResourceType::routes(), name)));
        }
    }
    for name in &update.removed {
        println!("{:?} {name} is gone", update.resource_type);
    }
    wanted
}

fn routes_of(listener: &Listener) -> impl Iterator<Item = String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.flat_map(|chain| &chain.filters).filter_map(|filter| {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { return None };
        if !any.type_url.ends_with(".HttpConnectionManager") {
            return None;
        }
        match HttpConnectionManager::decode(&*any.value).ok()?.route_specifier? {
            RouteSpecifier::Rds(rds) => Some(rds.route_config_name),
            _ => None,
        }
    })
}

async fn connect(address: String) -> Result<Channel, tonic::transport::Error> {
    if !address.starts_with('/') {
        return Endpoint::from_shared(address)?.connect().await;
    }
    let connector = tower::service_fn(move |_| {
        let address = address.clone();
        async move { UnixStream::connect(address).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://unix").connect_with_connector(connector).await
}

/// One stream, from its opening to its end.
async fn run_stream(address: String, variant: Variant, events: mpsc::UnboundedSender<Event>) {
    let outcome = exchange(address, variant, &events).await;
    let reason = outcome.map_or_else(|error| error.to_string(), |()| "by the server".to_owned());
    // Nobody listens once the program ends.
    let _ = events.send(Event::Ended(reason));
}

async fn exchange(
    address: String,
    variant: Variant,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<(), Failure> {
    let channel = connect(address).await?;
    let mut service =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(1 << 28);
    match variant {
        Variant::Delta => {
            let (requests, outgoing) = mpsc::unbounded_channel();
            events.send(Event::Opened(Requests::Delta(requests)))?;
            let outgoing = UnboundedReceiverStream::new(outgoing);
            let mut responses = service.delta_aggregated_resources(outgoing).await?.into_inner();
            while let Some(response) = responses.next().await {
                events.send(Event::Received(Response::Delta(response?)))?;
            }
        }
        Variant::StateOfTheWorld => {
            let (requests, outgoing) = mpsc::unbounded_channel();
            events.send(Event::Opened(Requests::Sotw(requests)))?;
            let outgoing = UnboundedReceiverStream::new(outgoing);
            let mut responses = service.stream_aggregated_resources(outgoing).await?.into_inner();
            while let Some(response) = responses.next().await {
                events.send(Event::Received(Response::StateOfTheWorld(response?)))?;
            }
        }
    }
    Ok(())
}
