//! One turn of the store: what an update, a timer or a start changes, and what follows from it at its end.
//!
//! A turn runs to its end without waiting; a large update takes several. Then the sources are told what is wanted, timers are set, and the next stage
//! begins if everything of this one is there.

use std::any::Any;
use std::cell::RefMut;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::endpoints::EndpointsKey;
use super::{Stage, State, Store};
use crate::config::compile::diagnostic::{Diagnostic, Severity};
use crate::config::extension::ExtensionSlot;
use crate::config::route::slot::RouteSlot;
use crate::xds::resource::{ResourceType, Told};

/// Who waits for something, with the serial number of its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waiter {
    Cluster(Arc<str>, u64),
    Listener(Arc<str>, u64),
    /// A whole type's first response.
    Type(ResourceType),
    /// An assignment that no other has followed, and which of its arrivals.
    Stale(EndpointsKey),
    /// The end of a listener's drain.
    Drained(u64),
    /// The end of the drain of so many filter chains.
    ChainsDrained(usize),
}

/// More notices than this are not kept.
const MAX_IGNORED: usize = 1000;

pub(super) struct Turn<'s> {
    pub(super) store: &'s Store,
    pub(super) state: RefMut<'s, State>,
    timers: BTreeMap<Duration, Vec<Waiter>>,
    awaited: Vec<Awaited>,
    /// Listeners have come, warmed or gone.
    pub(super) listeners_changed: bool,
}

/// Something to wait for, and who does.
type Awaited = (Pin<Box<dyn Future<Output = ()>>>, Waiter);

impl<'s> Turn<'s> {
    pub(super) fn new(store: &'s Store) -> Self {
        let state = store.0.state.borrow_mut();
        let (timers, awaited) = (BTreeMap::new(), Vec::new());
        Self { store, state, timers, awaited, listeners_changed: false }
    }

    /// Somebody waits no longer than this.
    pub(super) fn wait(&mut self, time: Duration, waiter: Waiter) {
        self.timers.entry(time).or_default().push(waiter);
    }

    /// Somebody is to be looked at again when this is done.
    pub(super) fn when(&mut self, done: impl Future<Output = ()> + 'static, waiter: Waiter) {
        self.awaited.push((Box::pin(done), waiter));
    }

    /// Keeps something until no worker has it any more, so that its last owner is this thread.
    pub(super) fn retire(&mut self, gone: Arc<dyn Any + Send + Sync>) {
        self.state.retired.push(gone);
    }

    /// Fields of a resource that are applied without: each is logged and listed once, whatever resources have it.
    pub(super) fn note_ignored(&mut self, kind: ResourceType, found: Vec<Diagnostic>) {
        for one in found.into_iter().filter(|one| one.severity == Severity::Ignored) {
            let key = (kind, without_numbers(&one.path), one.reason.clone());
            let known = &mut self.state.ignored;
            if known.len() < MAX_IGNORED && !known.contains_key(&key) {
                tracing::warn!("applied without: {one}");
                known.insert(key, one);
            }
        }
    }

    /// What follows from the turn.
    pub(super) fn finish(mut self) {
        self.follow_secrets();
        self.advance();
        self.pause();
    }

    /// As `finish`, without a next stage.
    pub(super) fn pause(mut self) {
        self.follow_secrets();
        self.rest();
    }

    /// As `pause`, in the middle of an update: which secrets are in use is looked at when it is over.
    pub(super) fn rest(mut self) {
        if self.listeners_changed {
            self.store.show_listeners(&self.state.listeners);
        }
        self.state.routes.sweep(RouteSlot::forget);
        self.state.extensions.sweep(ExtensionSlot::forget);
        // Whoever had it when it was put aside may have let go of it.
        self.state.retired.retain(|one| Arc::strong_count(one) > 1);
        if !self.state.retired.is_empty() {
            self.store.sweep();
        }
        let listens = self.state.stage >= Stage::Listeners;
        let wanted = self.state.subscriptions.take(|kind| {
            listens || !matches!(kind, ResourceType::Routes | ResourceType::Extension)
        });
        let hold = self.hold_clusters();
        let Self { store, state, timers, awaited, .. } = self;
        drop(state);
        store.want(wanted);
        if let Some(hold) = hold {
            let _ = store.0.streams.send(Told::HoldClusters(hold));
        }
        for (time, waiters) in timers {
            let store = store.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(time).await;
                store.waited(waiters, Some(time));
            });
        }
        for (done, waiter) in awaited {
            let store = store.clone();
            tokio::task::spawn_local(async move {
                done.await;
                store.waited(vec![waiter], None);
            });
        }
    }
}

impl Turn<'_> {
    /// Clusters over ADS are acknowledged once all are warm, but for those of the start, as in Envoy: a control plane
    /// can wait for that before it sends routes to them. Gives a change.
    fn hold_clusters(&mut self) -> Option<bool> {
        let state = &mut *self.state;
        let hold = state.stage >= Stage::Listeners && state.clusters.warming > 0;
        (std::mem::replace(&mut state.holds_clusters, hold) != hold).then_some(hold)
    }
}

/// `routes[3].match` and `routes[4].match` are one place.
fn without_numbers(path: &str) -> String {
    let mut inside = false;
    let keep = |c: &char| {
        let keep = !(inside && c.is_ascii_digit());
        inside = *c == '[' || (inside && c.is_ascii_digit());
        keep
    };
    path.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_lists_are_one_place() {
        assert_eq!(without_numbers("routes[13].a2[0].b"), "routes[].a2[].b");
        assert_eq!(without_numbers("x[\"1\"]"), "x[\"1\"]");
    }
}
