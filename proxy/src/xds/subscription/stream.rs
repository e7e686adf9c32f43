//! One stream: a task that does what the protocol's state machine asks for.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use prost::Message as _;
use tokio::sync::Notify;
use xds_client::{
    Action, BackoffOptions, Client, Options, RateLimit, Request, Response, Update, Variant, Verdict,
};

use super::Subscriptions;
use super::stats::ControlPlaneStats;
use crate::config::pb::envoy::config::core::v3::Node;
use crate::config::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::config::source::{ApiSource, Source};
use crate::grpc::call::Call;
use crate::grpc::status::{Code, Status};
use crate::grpc::{self, MAX_MESSAGE, Target};
use crate::worker::WorkerContext;
use crate::worker::timers::Timer;
use crate::xds::resource::{RawResource, Rejection, ResourceType, TypeUpdate};

pub(super) struct StreamSetup {
    pub(super) worker: Rc<WorkerContext>,
    pub(super) api: Arc<ApiSource>,
    /// As updates name it.
    pub(super) source: Source,
    /// The one name that it is for; `None`: ADS.
    pub(super) name: Option<String>,
    pub(super) path: &'static str,
    pub(super) node: Node,
    pub(super) stats: ControlPlaneStats,
    pub(super) owner: Weak<Subscriptions>,
}

/// A stream as its owner sees it; its task ends after `stop`.
pub(super) struct Stream {
    setup: StreamSetup,
    grpc: grpc::Client,
    client: RefCell<Client>,
    /// Types that something is wanted of.
    types: RefCell<Vec<ResourceType>>,
    changed: Notify,
    stopped: Cell<bool>,
}

/// What a stream waits for.
enum Event {
    Opened(Result<Call, Status>),
    Message(Result<Option<Bytes>, Status>),
    Time,
}

impl Stream {
    pub(super) fn start(setup: StreamSetup) -> Rc<Self> {
        let api = &setup.api;
        let variant = if api.delta { Variant::Delta } else { Variant::StateOfTheWorld };
        let mut options = Options::new(variant, setup.node.clone());
        options.node_on_first_message_only = api.set_node_on_first_message_only;
        options.backoff = BackoffOptions { base: api.back_off.0, max: api.back_off.1 };
        options.rate_limit = api.rate_limit.map(|(tokens, per_minute)| RateLimit {
            max_tokens: tokens,
            fill_rate: f64::from(per_minute) / 60.0,
        });
        options.seed = setup.worker.random();
        let target = Target {
            cluster: api.cluster.clone(),
            authority: api.authority.clone(),
            initial_metadata: api.initial_metadata.clone(),
            max_message: MAX_MESSAGE,
        };
        let stream = Rc::new(Self {
            grpc: grpc::Client::new(setup.worker.clone(), target),
            client: RefCell::new(Client::new(options, Instant::now())),
            types: RefCell::default(),
            changed: Notify::new(),
            stopped: Cell::new(false),
            setup,
        });
        let task = stream.clone();
        tokio::task::spawn_local(async move { task.run().await });
        stream
    }

    /// Follows what is wanted of a type.
    pub(super) fn change(&self, resource_type: ResourceType, add: &[String], remove: &[String]) {
        {
            let mut types = self.types.borrow_mut();
            if !types.contains(&resource_type) {
                types.push(resource_type);
            }
        }
        let now = Instant::now();
        let wire_type = xds_client::ResourceType::new(resource_type.type_url());
        let mut client = self.client.borrow_mut();
        remove.iter().for_each(|name| client.unsubscribe(&wire_type, name));
        // The store has the timers of what it waits for.
        add.iter().for_each(|name| client.subscribe(&wire_type, name, None, now));
        self.changed.notify_one();
    }

    /// See `xds_client::Client::hold`.
    pub(super) fn hold(&self, resource_type: ResourceType, held: bool) {
        let wire_type = xds_client::ResourceType::new(resource_type.type_url());
        self.client.borrow_mut().hold(&wire_type, held);
        self.changed.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.changed.notify_one();
    }

    async fn run(&self) {
        let mut call: Option<Call> = None;
        let mut opening: Option<LocalBoxFuture<'_, Result<Call, Status>>> = None;
        let mut timer = self.setup.worker.timers.timer();
        while !self.stopped.get() {
            // Taken out of the loop's condition: the machine must not be borrowed while its action is done.
            let next = || self.client.borrow_mut().poll_action(Instant::now());
            while let Some(action) = next() {
                match action {
                    Action::Open => {
                        self.setup.stats.connected(true);
                        opening = Some(Box::pin(self.grpc.stream(self.setup.path)));
                    }
                    Action::Close => {
                        call = None;
                        self.note_end(&Status::new(Code::UNAVAILABLE, "the stream is silent"));
                    }
                    Action::Send(request) => {
                        if let Some(call) = &mut call {
                            match &request {
                                Request::Delta(request) => call.send(&**request),
                                Request::StateOfTheWorld(request) => call.send(&**request),
                            }
                        }
                    }
                    Action::Deliver(update) => {
                        let verdict = self.deliver(update).await;
                        self.client.borrow_mut().judge(verdict);
                        // A push may be large: let others have the thread before the next.
                        tokio::task::yield_now().await;
                    }
                    Action::TimedOut { .. } => {}
                }
            }
            let deadline = {
                let client = self.client.borrow();
                self.setup.stats.requests(client.rate_limited(), client.pending_requests());
                client.next_deadline()
            };
            let event = {
                match deadline {
                    Some(deadline) => timer.arm(deadline),
                    None => timer.disarm(),
                }
                let changed = self.changed.notified();
                let mut changed = std::pin::pin!(changed);
                poll_fn(|cx| {
                    if changed.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Event::Time);
                    }
                    poll_event(&mut call, &mut opening, &mut timer, cx)
                })
                .await
            };
            match event {
                Event::Time => {}
                Event::Opened(Ok(opened)) => {
                    opening = None;
                    call = Some(opened);
                    self.client.borrow_mut().opened();
                }
                Event::Opened(Err(status)) => {
                    opening = None;
                    self.ended(&status);
                }
                Event::Message(Ok(Some(bytes))) => {
                    if let Err(status) = self.received(bytes) {
                        call = None;
                        self.ended(&status);
                    }
                }
                Event::Message(Ok(None)) => {
                    call = None;
                    self.ended(&Status::new(Code::OK, ""));
                }
                Event::Message(Err(status)) => {
                    call = None;
                    self.ended(&status);
                }
            }
        }
        self.setup.stats.connected(false);
    }

    fn received(&self, bytes: Bytes) -> Result<(), Status> {
        let malformed = |error: prost::DecodeError| Status::new(Code::INTERNAL, error.to_string());
        let (response, control_plane) = if self.setup.api.delta {
            let response = DeltaDiscoveryResponse::decode(bytes).map_err(malformed)?;
            let plane = response.control_plane.as_ref().map(|plane| plane.identifier.clone());
            (Response::Delta(response), plane)
        } else {
            let response = DiscoveryResponse::decode(bytes).map_err(malformed)?;
            let plane = response.control_plane.as_ref().map(|plane| plane.identifier.clone());
            (Response::StateOfTheWorld(response), plane)
        };
        if let Some(identifier) = control_plane {
            self.setup.stats.identifier(&identifier);
        }
        self.setup.stats.connected(true);
        self.client.borrow_mut().received(response);
        Ok(())
    }

    fn ended(&self, status: &Status) {
        self.client.borrow_mut().ended(Instant::now());
        self.note_end(status);
    }

    fn note_end(&self, status: &Status) {
        self.setup.stats.connected(false);
        let cluster = &self.setup.api.cluster;
        let method = self.setup.path.rsplit('/').next().unwrap_or_default();
        if status.code == Code::OK {
            tracing::debug!("{method} gRPC config stream to {cluster} closed: {status}");
        } else {
            tracing::warn!("{method} gRPC config stream to {cluster} closed: {status}");
        }
        let Some(owner) = self.setup.owner.upgrade() else { return };
        let types = self.types.borrow().clone();
        for resource_type in types {
            let StreamSetup { source, name, .. } = &self.setup;
            owner.consumer.failed(source, resource_type, name.as_deref());
        }
    }

    async fn deliver(&self, update: Update) -> Verdict {
        let resource_type = ResourceType::of_url(update.resource_type.url());
        let (Some(resource_type), Some(owner)) = (resource_type, self.setup.owner.upgrade()) else {
            return Verdict::default();
        };
        let raw = |one: xds_client::Resource| RawResource {
            name: one.name,
            version: one.version,
            bytes: one.body,
        };
        for one in &update.malformed {
            tracing::warn!("a malformed {resource_type} {:?}: {}", one.name, one.reason);
        }
        let update = TypeUpdate {
            source: self.setup.source.clone(),
            resource_type,
            version: update.version,
            resources: update.resources.into_iter().map(raw).collect(),
            removed: update.removed,
            // What is gone is named in `removed`, whatever the protocol's variant.
            full_state: false,
        };
        let rejected = owner.consumer.apply(update).await;
        owner.follow();
        verdict(resource_type, &rejected)
    }
}

fn verdict(resource_type: ResourceType, rejected: &[Rejection]) -> Verdict {
    if rejected.is_empty() {
        return Verdict::default();
    }
    let message = resource_type.nack(rejected);
    tracing::warn!("gRPC config for {} rejected: {message}", resource_type.type_url());
    Verdict { rejected: rejected.iter().map(|one| one.name.clone()).collect(), message }
}

fn poll_event(
    call: &mut Option<Call>,
    opening: &mut Option<LocalBoxFuture<'_, Result<Call, Status>>>,
    timer: &mut Timer,
    cx: &mut Context<'_>,
) -> Poll<Event> {
    if let Some(opening) = opening
        && let Poll::Ready(opened) = Pin::new(opening).poll(cx)
    {
        return Poll::Ready(Event::Opened(opened));
    }
    if let Some(call) = call
        && let Poll::Ready(message) = call.poll_message(cx)
    {
        return Poll::Ready(Event::Message(message));
    }
    timer.poll(cx).map(|()| Event::Time)
}
