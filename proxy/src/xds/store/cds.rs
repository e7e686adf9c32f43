//! Taking updates of clusters, and putting them in force once they are warm.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::Rng as _;
use rustc_hash::FxHashSet;

use super::State;
use super::clusters::{ClusterVersion, Verdict};
use super::turn::{Turn, Waiter};
use super::version::{Problem, Raw};
use crate::cluster::SharedCluster;
use crate::cluster::dns::DnsDiscovery;
use crate::config::compile::configuration::{compile_raw_cluster, raw_of};
use crate::stats::names::{ClusterManagerStat, ClusterUpdateStat};
use crate::xds::resource::{ResourceType, TypeUpdate};

impl Turn<'_> {
    /// What an update of clusters is without: it goes once the others are there.
    pub(super) fn gone_clusters(
        &self,
        update: &TypeUpdate,
        seen: &FxHashSet<Arc<str>>,
    ) -> VecDeque<Arc<str>> {
        let mut gone = VecDeque::new();
        if update.full_state {
            let known = self.state.clusters.dynamic_names();
            gone.extend(known.into_iter().filter(|name| !seen.contains(name)));
        }
        gone.extend(update.removed.iter().map(|name| Arc::from(name.as_str())));
        gone
    }

    /// Whether it is another than before.
    pub(super) fn put_cluster(&mut self, name: &Arc<str>, raw: Raw) -> Result<bool, String> {
        let known = self.state.clusters.entries.get(name);
        match known.map_or(Verdict::Compile, |entry| entry.judge(&raw)) {
            Verdict::Compile => {}
            Verdict::Nothing => {
                if let Some(entry) = self.state.clusters.entries.get_mut(name) {
                    entry.refused = None;
                }
                return Ok(false);
            }
        }
        let resource = raw_of(ResourceType::Cluster, &raw.bytes);
        let setup = self.store.setup();
        let (compiled, found) =
            compile_raw_cluster(&resource, setup.upstream_bind.as_ref(), &setup.compile_context());
        let Some(config) = compiled else {
            let problems = Problem::of(found);
            let entry = self.state.clusters.entries.entry(name.clone()).or_default();
            return Err(entry.refuse(raw, problems).details());
        };
        self.note_ignored(ResourceType::Cluster, found);
        let shared = Arc::new(SharedCluster::new(Arc::new(config), &setup.registry));
        self.begin_cluster(ClusterVersion::new(raw, shared));
        Ok(true)
    }

    /// A cluster of the bootstrap.
    pub(super) fn add_static_cluster(&mut self, version: ClusterVersion) {
        let name = version.config().name.clone();
        self.state.clusters.entries.entry(name).or_default().is_static = true;
        self.begin_cluster(version);
    }

    /// A compiled version starts to warm.
    fn begin_cluster(&mut self, mut version: ClusterVersion) {
        let name = version.config().name.clone();
        self.want_endpoints(&mut version);
        let (store, of) = (self.store.clone(), name.clone());
        let changed = move || store.tell_hosts_changed(&of);
        let seed = rand::rng().random();
        version.dns = DnsDiscovery::start(&version.shared, self.store.resolvers(), seed, changed);
        if let Some(dns) = &version.dns {
            self.when(dns.wait(), Waiter::Cluster(name.clone(), version.serial));
        }
        if !version.is_warm(&self.state.secrets) {
            version.shared.update_stats().gauge_set(ClusterUpdateStat::WarmingState, 1);
            for timeout in version.timeouts() {
                self.wait(timeout, Waiter::Cluster(name.clone(), version.serial));
            }
        }
        let clusters = &mut self.state.clusters;
        if !clusters.entries.get(&name).is_some_and(|e| e.active.is_some() || e.warming.is_some()) {
            clusters.last_number += 1;
            clusters.order.insert(clusters.last_number, name.clone());
            clusters.entries.entry(name.clone()).or_default().number = clusters.last_number;
            self.store.cluster_stats().inc(ClusterManagerStat::ClusterAdded);
        } else {
            self.store.cluster_stats().inc(ClusterManagerStat::ClusterModified);
        }
        let entry = clusters.entries.entry(name.clone()).or_default();
        entry.refused = None;
        match entry.warming.replace(version) {
            Some(abandoned) => self.unwant_endpoints(&abandoned),
            None => self.state.clusters.warming += 1,
        }
        self.store.show_clusters(&self.state.clusters);
        self.warm_cluster(&name);
    }

    /// Puts a cluster's warming version in force if nothing keeps it.
    pub(super) fn warm_cluster(&mut self, name: &str) {
        let State { clusters, secrets, .. } = &mut *self.state;
        let Some(entry) = clusters.entries.get_mut(name) else { return };
        let Some(version) = entry.warming.as_ref().filter(|version| version.is_warm(secrets))
        else {
            return;
        };
        let shared = version.shared.clone();
        shared.update_stats().gauge_set(ClusterUpdateStat::WarmingState, 0);
        let before = entry.promote();
        clusters.warming -= 1;
        clusters.active += usize::from(before.is_none());
        self.store.setup().map.insert(shared.clone());
        if let Some(before) = before {
            self.store.tell_cluster_changed(&shared.config.name);
            self.unwant_endpoints(&before);
            self.retire(before.shared);
        }
        self.store.show_clusters(&self.state.clusters);
    }

    pub(super) fn remove_cluster(&mut self, name: &str) {
        let clusters = &mut self.state.clusters;
        if clusters.entries.get(name).is_none_or(|entry| entry.is_static) {
            return;
        }
        let Some(entry) = clusters.entries.remove(name) else { return };
        clusters.order.remove(&entry.number);
        clusters.active -= usize::from(entry.active.is_some());
        clusters.warming -= usize::from(entry.warming.is_some());
        if entry.active.is_some() || entry.warming.is_some() {
            self.store.cluster_stats().inc(ClusterManagerStat::ClusterRemoved);
        }
        if let Some(active) = &entry.active {
            self.store.setup().map.remove(name);
            self.store.tell_cluster_changed(&active.config().name);
        }
        for version in entry.active.into_iter().chain(entry.warming) {
            self.unwant_endpoints(&version);
            self.retire(version.shared);
        }
        self.store.show_clusters(&self.state.clusters);
    }

    /// A cluster's time is up, or its names have been resolved.
    pub(super) fn cluster_waited(
        &mut self,
        name: &str,
        serial: u64,
        waited: Option<std::time::Duration>,
    ) {
        let Some(entry) = self.state.clusters.entries.get_mut(name) else { return };
        let Some(version) = entry.warming.as_mut().filter(|version| version.serial == serial)
        else {
            return;
        };
        if waited.is_some() {
            version.waited = version.waited.max(waited);
            tracing::warn!(cluster = name, "goes on without what it waited for");
        }
        if let Some(entry) = self.state.clusters.entries.get(name)
            && let Some(version) = entry.warming.as_ref().filter(|_| waited.is_some())
        {
            self.endpoints_timed_out(version);
            let slots: Vec<_> = version.slots().cloned().collect();
            self.secrets_timed_out(&slots, waited.unwrap_or_default());
        }
        self.warm_cluster(name);
    }
}
