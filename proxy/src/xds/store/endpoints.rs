//! EDS: the endpoints of clusters by source and name. An update costs what it changes: the clusters that asked for the
//! name get a new host set, hosts that stay keep their pools and counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::clusters::ClusterVersion;
use super::stats::{Event, SubscriptionStats};
use super::turn::{Turn, Waiter};
use super::version::{Problem, Raw, Refused};
use crate::config::compile::configuration::compile_raw_assignment;
use crate::config::endpoint::LoadAssignment;
use crate::config::source::Source;
use crate::stats::names::{ClusterManagerStat, ClusterUpdateStat};
use crate::xds::resource::ResourceType;

/// Source and name.
pub type EndpointsKey = (Source, Arc<str>);

/// The endpoints of one name.
#[derive(Debug, Default)]
pub struct EndpointsEntry {
    pub current: Option<Raw>,
    pub refused: Option<Refused>,
    /// The source has said something of the name: who comes later does not wait for it to be said again.
    answered: bool,
    /// `endpoint_stale_after` of `current`.
    stale_after: Option<Duration>,
    /// When `current` is stale, if it does not come again.
    stale_at: Option<Instant>,
    /// When the next timer for that is over.
    timer: Option<Instant>,
    /// Clusters that use it, with the number of their versions that do.
    users: BTreeMap<Arc<str>, (u32, Option<SubscriptionStats>)>,
}

impl EndpointsEntry {
    fn count(&self, event: Event<'_>) {
        self.users.values().filter_map(|(_, stats)| stats.as_ref()).for_each(|s| s.count(event));
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.users.keys().cloned().collect()
    }
}

impl Turn<'_> {
    /// A version of a cluster wants its endpoints; those that are there are given to it at once.
    pub(super) fn want_endpoints(&mut self, version: &mut ClusterVersion) {
        let Some(key) = version.endpoints_key() else { return };
        let name = version.config().name.clone();
        self.state.subscriptions.add(ResourceType::Endpoints, &key.0, &key.1);
        let entry = self.state.endpoints.entry(key).or_default();
        let user = entry.users.entry(name).or_default();
        user.0 += 1;
        user.1.get_or_insert_with(|| {
            let stats = SubscriptionStats::endpoints(version.shared.scope.clone());
            stats.started();
            stats
        });
        if let Some(raw) = &entry.current
            && let Some(assignment) = compile_raw_assignment(&raw.bytes).0
        {
            version.shared.assign(&assignment, &raw.bytes);
        }
        version.has_endpoints |= entry.answered;
    }

    /// A version of a cluster is gone.
    pub(super) fn unwant_endpoints(&mut self, version: &ClusterVersion) {
        let Some(key) = version.endpoints_key() else { return };
        self.state.subscriptions.remove(ResourceType::Endpoints, &key.0, &key.1);
        let Some(entry) = self.state.endpoints.get_mut(&key) else { return };
        let name = &version.config().name;
        if let Some(user) = entry.users.get_mut(name) {
            user.0 -= 1;
            if user.0 == 0 {
                entry.users.remove(name);
            }
        }
        if entry.users.is_empty() {
            self.state.endpoints.remove(&key);
        }
    }

    /// Endpoints that are gone stay until others come, as in Envoy.
    pub(super) fn remove_endpoints(&mut self, key: &EndpointsKey, version: &str) {
        let Some(entry) = self.state.endpoints.get_mut(key) else { return };
        entry.answered = true;
        let stats = entry.users.values().filter_map(|(_, stats)| stats.as_ref());
        stats.for_each(|stats| {
            stats.count(Event::Success(version));
            stats.empty();
        });
        // An answer all the same: its clusters wait for no other.
        let users = entry.names();
        users.iter().for_each(|name| self.answered(name, key));
    }

    /// Endpoints of one name; those that nobody wants are passed over.
    pub(super) fn put_endpoints(
        &mut self,
        key: &EndpointsKey,
        raw: Raw,
        version: &str,
    ) -> Result<(), String> {
        let Some(entry) = self.state.endpoints.get_mut(key) else { return Ok(()) };
        entry.answered = true;
        if entry.current.as_ref().is_some_and(|current| current.hash == raw.hash) {
            entry.count(Event::Success(version));
            entry.refused = None;
            let users = entry.names();
            for name in users {
                self.shared_of(&name, key, |shared| {
                    shared.update_stats().inc(ClusterUpdateStat::UpdateNoRebuild);
                });
            }
            self.expect_another(key);
            return Ok(());
        }
        if let Some(refused) = entry.refused.as_ref().filter(|known| known.raw.hash == raw.hash) {
            entry.count(Event::Rejected);
            return Err(refused.details());
        }
        let (compiled, found) = compile_raw_assignment(&raw.bytes);
        let Some(assignment) = compiled else {
            entry.count(Event::Rejected);
            let problems = Problem::of(found);
            let refused = Refused::new(raw, entry.refused.as_ref(), problems);
            let details = entry.refused.insert(refused).details();
            // An answer all the same: its clusters wait for no other.
            let users = entry.names();
            users.iter().for_each(|name| self.answered(name, key));
            return Err(details);
        };
        entry.refused = None;
        entry.count(Event::Success(version));
        let bytes = raw.bytes.clone();
        entry.current = Some(raw);
        entry.stale_after = assignment.stale_after;
        let users = entry.names();
        self.note_ignored(ResourceType::Endpoints, found);
        for name in users {
            self.assign(&name, key, &assignment, &bytes);
        }
        self.expect_another(key);
        Ok(())
    }

    /// An assignment with `endpoint_stale_after` has come.
    fn expect_another(&mut self, key: &EndpointsKey) {
        let Some(entry) = self.state.endpoints.get_mut(key) else { return };
        entry.stale_at = entry.stale_after.map(|after| Instant::now() + after);
        let Some(after) = entry.stale_after else { return };
        // One timer, however often they come: it looks at the time when it is over.
        let waits = entry.timer.is_some_and(|timer| entry.stale_at >= Some(timer));
        if !waits {
            entry.timer = entry.stale_at;
        }
        let names = entry.names();
        for name in names {
            self.shared_of(&name, key, |shared| {
                shared.update_stats().inc(ClusterUpdateStat::AssignmentTimeoutReceived);
            });
        }
        if !waits {
            self.wait(after, Waiter::Stale(key.clone()));
        }
    }

    /// No other assignment has come in time: nobody vouches for these endpoints any longer.
    pub(super) fn endpoints_stale(&mut self, key: &EndpointsKey) {
        let Some(entry) = self.state.endpoints.get_mut(key) else { return };
        let now = Instant::now();
        if entry.timer.is_some_and(|timer| timer > now) {
            // A later one looks.
            return;
        }
        entry.timer = entry.stale_at.filter(|at| *at > now);
        if let Some(at) = entry.timer {
            self.wait(at - now, Waiter::Stale(key.clone()));
            return;
        }
        if entry.stale_at.take().is_none() {
            return;
        }
        entry.current = None;
        for name in entry.names() {
            tracing::warn!(cluster = %name, "its endpoints are stale");
            self.assign(&name, key, &LoadAssignment::default(), &bytes::Bytes::new());
            self.shared_of(&name, key, |shared| {
                shared.update_stats().inc(ClusterUpdateStat::AssignmentStale);
            });
        }
    }

    /// Gives a cluster new endpoints, in all of its versions that asked for them.
    fn assign(
        &mut self,
        name: &Arc<str>,
        key: &EndpointsKey,
        assignment: &LoadAssignment,
        bytes: &bytes::Bytes,
    ) {
        let mut changed = false;
        self.shared_of(name, key, |shared| changed |= shared.assign(assignment, bytes));
        let Some(entry) = self.state.clusters.entries.get(name) else { return };
        let is_known = |active: &ClusterVersion| {
            active.has_endpoints && active.endpoints_key().as_ref() == Some(key)
        };
        if entry.active.as_ref().is_some_and(is_known) {
            self.store.cluster_stats().inc(ClusterManagerStat::ClusterUpdated);
        }
        if changed {
            self.store.tell_hosts_changed(name);
        }
        self.answered(name, key);
    }

    /// Something has come for a cluster's endpoints.
    fn answered(&mut self, name: &str, key: &EndpointsKey) {
        let Some(entry) = self.state.clusters.entries.get_mut(name) else { return };
        for version in entry.active.iter_mut().chain(&mut entry.warming) {
            version.has_endpoints |= version.endpoints_key().as_ref() == Some(key);
        }
        self.warm_cluster(name);
    }

    fn shared_of(
        &self,
        name: &str,
        key: &EndpointsKey,
        mut act: impl FnMut(&crate::cluster::SharedCluster),
    ) {
        let Some(entry) = self.state.clusters.entries.get(name) else { return };
        for shared in entry.versions() {
            if super::clusters::endpoints_key(&shared.config).as_ref() == Some(key) {
                act(&shared);
            }
        }
    }

    /// The stream of these has ended: of one name, or of all of a source.
    pub(super) fn endpoints_failed(&self, source: &Source, name: Option<&str>) {
        let is_meant =
            |key: &EndpointsKey| key.0 == *source && name.is_none_or(|name| *key.1 == *name);
        let meant = self.state.endpoints.iter().filter(|(key, _)| is_meant(key));
        meant.for_each(|(_, entry)| entry.count(Event::Failure));
    }

    /// A cluster has waited for its endpoints for long enough.
    pub(super) fn endpoints_timed_out(&self, version: &ClusterVersion) {
        let entry = version.endpoints_key().and_then(|key| self.state.endpoints.get(&key));
        let user = entry.and_then(|entry| entry.users.get(&version.config().name));
        if let Some((_, Some(stats))) = user {
            stats.count(Event::InitFetchTimeout);
        }
    }
}
