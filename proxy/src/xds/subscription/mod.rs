//! Subscriptions to control planes: one stream for everything that comes over ADS, one for each name that has a source
//! of its own, as Envoy has them.
//!
//! What is wanted comes in over a channel, what arrives goes to the `Consumer` (the store). All of it lives on the control
//! thread. The protocol itself is the crate `xds-client`; the connections are those of the source's cluster (`grpc`).

pub mod service;
mod stats;
mod stream;

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use prost::Message as _;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use xds_client::WILDCARD;

use super::resource::{Rejection, ResourceType, Told, TypeUpdate, Wanted};
use crate::config::pb::envoy::config::core::v3::Node;
use crate::config::source::{ApiSource, Source};
use crate::worker::WorkerContext;
use stats::ControlPlaneStats;
use stream::{Stream, StreamSetup};

/// Who applies what arrives.
pub trait Consumer {
    /// Applies an update, however many turns of the thread that takes. What it makes wanted has been said when this is
    /// done: it goes out before the acknowledgement.
    fn apply(&self, update: TypeUpdate) -> LocalBoxFuture<'_, Vec<Rejection>>;

    /// A source could not be reached, or its stream has ended: counted by who wants something of this type there, or
    /// this name.
    fn failed(&self, source: &Source, resource_type: ResourceType, name: Option<&str>);
}

/// What identifies a stream: one for ADS, else one for each name of a source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Ads,
    Own(Arc<ApiSource>, ResourceType, String),
}

/// All streams to control planes.
pub struct Subscriptions {
    worker: Rc<WorkerContext>,
    /// Sent as it is in the bootstrap, with what this program is.
    node: Node,
    /// `dynamic_resources.ads_config`
    ads: Option<Arc<ApiSource>>,
    consumer: Rc<dyn Consumer>,
    told: RefCell<mpsc::UnboundedReceiver<Told>>,
    streams: RefCell<FxHashMap<Key, Rc<Stream>>>,
}

impl fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriptions")
            .field("streams", &self.streams.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Subscriptions {
    /// Follows what it is `told`, in a task of its own, until the consumer drops their other end. `node` is the bootstrap's,
    /// encoded. Streams are opened once something is wanted of them.
    pub fn start(
        worker: Rc<WorkerContext>,
        node: &[u8],
        ads: Option<Arc<ApiSource>>,
        consumer: Rc<dyn Consumer>,
        told: mpsc::UnboundedReceiver<Told>,
    ) -> Rc<Self> {
        // It was encoded here.
        let node = Node::decode(node).unwrap_or_default();
        let told = RefCell::new(told);
        let this = Rc::new(Self { worker, node, ads, consumer, told, streams: RefCell::default() });
        let task = Rc::downgrade(&this);
        tokio::task::spawn_local(async move {
            let next = |cx: &mut Context<'_>| match task.upgrade() {
                Some(this) => this.told.borrow_mut().poll_recv(cx),
                None => Poll::Ready(None),
            };
            while let Some(told) = poll_fn(next).await {
                let Some(this) = task.upgrade() else { return };
                this.take(told);
            }
        });
        this
    }

    /// Follows what has been said by now.
    fn follow(self: &Rc<Self>) {
        loop {
            let Ok(told) = self.told.borrow_mut().try_recv() else { return };
            self.take(told);
        }
    }

    fn take(self: &Rc<Self>, told: Told) {
        match told {
            Told::Wanted(wanted) => self.want(wanted),
            Told::HoldClusters(held) => {
                let stream = self.streams.borrow().get(&Key::Ads).cloned();
                if let Some(stream) = stream {
                    stream.hold(ResourceType::Cluster, held);
                }
            }
        }
    }

    /// Follows a change of what is wanted. A whole type is wanted by a message without names. Files are not ours.
    fn want(self: &Rc<Self>, wanted: Wanted) {
        let Wanted { source, resource_type, mut add, remove } = wanted;
        if add.is_empty() && remove.is_empty() && resource_type.is_whole() {
            add.push(WILDCARD.to_owned());
        }
        match source {
            Source::Ads => {
                let Some(stream) = self.stream(Key::Ads) else {
                    tracing::error!(
                        "resources over ADS are wanted, but there is no dynamic_resources.ads_config"
                    );
                    return;
                };
                stream.change(resource_type, &add, &remove);
            }
            Source::Api(api) => {
                for name in add {
                    let key = Key::Own(api.clone(), resource_type, name.clone());
                    if let Some(stream) = self.stream(key) {
                        stream.change(resource_type, &[name], &[]);
                    }
                }
                for name in remove {
                    let key = Key::Own(api.clone(), resource_type, name);
                    if let Some(stream) = self.streams.borrow_mut().remove(&key) {
                        stream.stop();
                    }
                }
            }
            Source::Path(_) => {}
        }
    }

    fn stream(self: &Rc<Self>, key: Key) -> Option<Rc<Stream>> {
        if let Some(stream) = self.streams.borrow().get(&key) {
            return Some(stream.clone());
        }
        let (api, source, path, scope, name) = match &key {
            Key::Ads => {
                let api = self.ads.clone()?;
                let path = service::aggregated(api.delta);
                (api, Source::Ads, path, String::new(), None)
            }
            Key::Own(api, resource_type, name) => {
                let path = service::of_type(*resource_type, api.delta);
                let scope = service::stats_prefix(*resource_type, name);
                (api.clone(), Source::Api(api.clone()), path, scope, Some(name.clone()))
            }
        };
        let stats = ControlPlaneStats::new(&self.worker.registry.scope(&scope));
        let stream = Stream::start(StreamSetup {
            worker: self.worker.clone(),
            api,
            source,
            name,
            path,
            node: self.node.clone(),
            stats,
            owner: Rc::downgrade(self),
        });
        self.streams.borrow_mut().insert(key, stream.clone());
        Some(stream)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.streams.get_mut().values().for_each(|stream| stream.stop());
    }
}

#[cfg(test)]
mod tests;
