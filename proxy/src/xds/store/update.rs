//! One response of a source: its resources one after another, in as many turns as they need. Between two turns the thread
//! is everybody's: the admin interface, secrets, timers and other sources do not wait for thousands of resources.
//!
//! Each turn leaves the store as a smaller update would have. The source is answered, and a whole type counts as there,
//! after the last one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::Store;
use super::turn::Turn;
use super::version::Raw;
use crate::xds::resource::{RawResource, Rejection, ResourceType, TypeUpdate};

/// A turn takes no more resources once it has lasted this long,
const SLICE: Duration = Duration::from_millis(2);

/// or has taken so many, what is removed included.
const SLICE_RESOURCES: usize = 128;

/// How far an update has come.
struct Progress<'u> {
    update: &'u TypeUpdate,
    begun: bool,
    /// Resources that have been taken.
    taken: usize,
    /// All of them have been.
    ended: bool,
    /// What is still to be removed.
    gone: VecDeque<Arc<str>>,
    /// Of clusters and listeners: the names so far.
    seen: FxHashSet<Arc<str>>,
    /// A cluster is another than before.
    changed: bool,
    rejected: Vec<Rejection>,
}

impl Store {
    /// Takes one response of a source. What is not taken is given back by name, to be told to the source. Not to be
    /// dropped half way: the rest of the response would be lost.
    pub async fn apply(&self, update: &TypeUpdate) -> Vec<Rejection> {
        let mut progress = Progress {
            update,
            begun: false,
            taken: 0,
            ended: false,
            gone: VecDeque::new(),
            seen: FxHashSet::default(),
            changed: false,
            rejected: Vec::new(),
        };
        loop {
            let mut turn = self.turn();
            if turn.go_on(&mut progress) {
                turn.whole_arrived(update, &progress.rejected);
                turn.finish();
                return progress.rejected;
            }
            turn.rest();
            tokio::task::yield_now().await;
        }
    }
}

impl Turn<'_> {
    /// Whether the whole update has been taken.
    fn go_on(&mut self, progress: &mut Progress<'_>) -> bool {
        let update = progress.update;
        let begin = Instant::now();
        if !std::mem::replace(&mut progress.begun, true) {
            self.whole_began(update.resource_type);
            match update.resource_type {
                ResourceType::Listener => progress.gone = self.gone_listeners(update),
                // Something may have begun to use one in the turn before.
                ResourceType::Secret => self.follow_secrets(),
                _ => {}
            }
        }
        let mut taken = 0;
        while self.take_one(progress) {
            taken += 1;
            if taken == SLICE_RESOURCES || begin.elapsed() >= SLICE {
                return false;
            }
        }
        match update.resource_type {
            ResourceType::Cluster => {
                // Removals alone are no reload, nor is a response that is refused in part, as in Envoy.
                if progress.changed
                    && progress.rejected.is_empty()
                    && let Some(whole) = &self.state.whole_clusters
                {
                    whole.stats.reloaded();
                }
            }
            ResourceType::Secret => self.warm_all(),
            _ => {}
        }
        true
    }

    /// Takes or removes one resource. Whether there was one left.
    fn take_one(&mut self, progress: &mut Progress<'_>) -> bool {
        let update = progress.update;
        if update.resource_type == ResourceType::Listener
            && let Some(name) = progress.gone.pop_front()
        {
            self.remove(update, name);
            return true;
        }
        if let Some(resource) = update.resources.get(progress.taken) {
            progress.taken += 1;
            self.put(progress, resource);
            return true;
        }
        if !std::mem::replace(&mut progress.ended, true) {
            progress.gone = match update.resource_type {
                ResourceType::Cluster => self.gone_clusters(update, &progress.seen),
                // Listeners have gone first; secrets stay while they are in use.
                ResourceType::Listener | ResourceType::Secret => VecDeque::new(),
                ResourceType::Endpoints | ResourceType::Routes | ResourceType::Extension => {
                    update.removed.iter().map(|name| Arc::from(name.as_str())).collect()
                }
            };
        }
        let Some(name) = progress.gone.pop_front() else { return false };
        self.remove(update, name);
        true
    }

    fn remove(&mut self, update: &TypeUpdate, name: Arc<str>) {
        let key = (update.source.clone(), name);
        match update.resource_type {
            ResourceType::Cluster => self.remove_cluster(&key.1),
            ResourceType::Listener => self.remove_listener(&key.1),
            ResourceType::Endpoints => self.remove_endpoints(&key, &update.version),
            ResourceType::Routes => self.remove_routes(&key, &update.version),
            ResourceType::Extension => self.remove_extension(&key, &update.version),
            ResourceType::Secret => {}
        }
    }

    fn put(&mut self, progress: &mut Progress<'_>, resource: &RawResource) {
        let TypeUpdate { source, resource_type: kind, version, .. } = progress.update;
        let name: Arc<str> = kind.name_of(&resource.bytes).into();
        let raw = Raw::new(resource);
        let outcome = if kind.is_whole() && !progress.seen.insert(name.clone()) {
            Err(format!("duplicate {kind} {name} found"))
        } else {
            let key = || (source.clone(), name.clone());
            match kind {
                ResourceType::Cluster => {
                    self.put_cluster(&name, raw).map(|changed| progress.changed |= changed)
                }
                ResourceType::Listener => self.put_listener(&name, raw),
                ResourceType::Endpoints => self.put_endpoints(&key(), raw, version),
                ResourceType::Routes => self.put_routes(&key(), raw, version),
                ResourceType::Secret => self.put_secret(&key(), raw, version),
                ResourceType::Extension => self.put_extension(&key(), raw, version),
            }
        };
        if let Err(error) = outcome {
            progress.rejected.push(Rejection { name: name.to_string(), error });
        }
    }
}
