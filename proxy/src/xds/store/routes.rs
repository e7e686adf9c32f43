//! RDS: route configurations by source and name. A new one is in its slot for the next stream; no connection closes.

use std::sync::Arc;

use super::by_name::{ByName, Key};
use super::stats::{Event, SubscriptionStats};
use super::turn::Turn;
use super::version::{Problem, Raw};
use crate::config::compile::configuration::compile_raw_routes;
use crate::config::route::RouteTable;
use crate::config::route::slot::RouteSlot;
use crate::config::source::Source;
use crate::xds::resource::ResourceType;

/// All that listeners name.
pub type RouteConfigurations = ByName<RouteSlot>;

impl Turn<'_> {
    /// A listener names a route configuration.
    pub(super) fn want_routes(&mut self, slot: &Arc<RouteSlot>) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.add(ResourceType::Routes, &key.0, &key.1);
        let registry = &self.store.setup().registry;
        self.state.routes.want(key, slot, || {
            let scope = format!("http.{}.rds.{}", slot.stat_prefix, slot.name);
            SubscriptionStats::routes(registry.scope(&scope))
        });
    }

    /// A listener that named one is gone.
    pub(super) fn unwant_routes(&mut self, slot: &RouteSlot) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.remove(ResourceType::Routes, &key.0, &key.1);
        self.state.routes.unwant(key);
    }

    /// A configuration that is gone stays in force until its listener goes, as in Envoy.
    pub(super) fn remove_routes(&mut self, key: &Key, version: &str) {
        if let Some(entry) = self.state.routes.0.get(key) {
            entry.stats.count(Event::Success(version));
            entry.stats.empty();
        }
    }

    /// A route configuration; one that nobody wants is passed over.
    pub(super) fn put_routes(&mut self, key: &Key, raw: Raw, version: &str) -> Result<(), String> {
        let state = &mut *self.state;
        let Some(entry) = state.routes.0.get_mut(key) else { return Ok(()) };
        if entry.is_current(&raw) {
            entry.stats.count(Event::Success(version));
            return Ok(());
        }
        // One that was refused is looked at again: its clusters may be there by now.
        let (compiled, found) = compile_raw_routes(&raw.bytes);
        let checked = match compiled {
            Some(table) => check_clusters(&table, |name| state.clusters.knows(name))
                .map(|()| table)
                .map_err(Problem::whole),
            None => Err(Problem::of(found.clone())),
        };
        let table = match checked {
            Ok(table) => table,
            Err(problems) => {
                entry.stats.count(Event::Rejected);
                let details = entry.refuse(raw, problems);
                // An answer all the same: its listeners wait for no other.
                entry.slot.refuse();
                self.warm_listeners();
                return Err(details);
            }
        };
        entry.accept(raw);
        entry.stats.count(Event::Success(version));
        entry.stats.reloaded();
        let before = entry.slot.fill(Arc::new(table));
        self.retire(before);
        self.note_ignored(ResourceType::Routes, found);
        self.warm_listeners();
        Ok(())
    }

    /// The stream of these has ended: of one name, or of all of a source.
    pub(super) fn routes_failed(&self, source: &Source, name: Option<&str>) {
        let meant = self.state.routes.of(source, name);
        meant.for_each(|entry| entry.stats.count(Event::Failure));
    }
}

/// Where a table wants its clusters to exist, they must.
fn check_clusters(table: &RouteTable, knows: impl Fn(&str) -> bool) -> Result<(), String> {
    if !table.validate_clusters.unwrap_or(false) {
        return Ok(());
    }
    match table.clusters.iter().find(|name| !knows(name)) {
        Some(name) => Err(format!("route: unknown cluster '{name}'")),
        None => Ok(()),
    }
}
