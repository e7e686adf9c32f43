//! Subscriptions to control planes: one stream for everything that comes over ADS, one for each name that has a source
//! of its own, as Envoy has them.
//!
//! What is wanted comes in by `want`, what arrives goes to the `Consumer` (the store). All of it lives on the control
//! thread. The protocol itself is the crate `xds-client`; the connections are those of the source's cluster (`grpc`).

pub mod service;
mod stats;
mod stream;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use prost::Message as _;
use rustc_hash::FxHashMap;
use xds_client::WILDCARD;

use super::resource::{Rejection, ResourceType, TypeUpdate, Wanted};
use crate::config::pb::envoy::config::core::v3::Node;
use crate::config::source::{ApiSource, Source};
use crate::worker::WorkerContext;
use stats::ControlPlaneStats;
use stream::{Stream, StreamSetup};

/// Who applies what arrives.
pub trait Consumer {
    /// Applies an update; what it makes wanted is told to `Subscriptions::want` before this returns, so that it goes out
    /// before the acknowledgement.
    fn apply(&self, update: TypeUpdate) -> Vec<Rejection>;

    /// A source could not be reached, or its stream has ended: counted by who wants something of this type there.
    fn failed(&self, source: &Source, resource_type: ResourceType);
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
    /// `node` is the bootstrap's, encoded. Streams are opened once something is wanted of them.
    pub fn new(
        worker: Rc<WorkerContext>,
        node: &[u8],
        ads: Option<Arc<ApiSource>>,
        consumer: Rc<dyn Consumer>,
    ) -> Self {
        // It was encoded here.
        let node = Node::decode(node).unwrap_or_default();
        Self { worker, node, ads, consumer, streams: RefCell::default() }
    }

    /// Follows a change of what is wanted. A whole type without names is wanted by its wildcard. Files are not ours.
    pub fn want(&self, wanted: Wanted) {
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

    fn stream(&self, key: Key) -> Option<Rc<Stream>> {
        if let Some(stream) = self.streams.borrow().get(&key) {
            return Some(stream.clone());
        }
        let (api, source, path, scope) = match &key {
            Key::Ads => {
                let api = self.ads.clone()?;
                let path = service::aggregated(api.delta);
                (api, Source::Ads, path, String::new())
            }
            Key::Own(api, resource_type, name) => {
                let path = service::of_type(*resource_type, api.delta);
                let scope = service::stats_prefix(*resource_type, name);
                (api.clone(), Source::Api(api.clone()), path, scope)
            }
        };
        let stats = ControlPlaneStats::new(&self.worker.registry.scope(&scope));
        let stream = Stream::start(StreamSetup {
            worker: self.worker.clone(),
            api,
            source,
            path,
            node: self.node.clone(),
            stats,
            consumer: self.consumer.clone(),
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
