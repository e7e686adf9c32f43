//! RDS: route configurations by source and name. A new one is in its slot for the next stream; no connection closes.

use std::sync::Arc;

use super::stats::{Event, SubscriptionStats};
use super::turn::Turn;
use super::version::{Problem, Raw, Refused};
use crate::config::compile::configuration::compile_raw_routes;
use crate::config::route::RouteTable;
use crate::config::route::slot::RouteSlot;
use crate::config::source::Source;
use crate::xds::resource::{Rejection, ResourceType, TypeUpdate};

/// Source and name.
pub type RoutesKey = (Source, Arc<str>);

/// One route configuration.
#[derive(Debug)]
pub struct RoutesEntry {
    pub slot: Arc<RouteSlot>,
    pub current: Option<Raw>,
    pub refused: Option<Refused>,
    /// How often listeners name it.
    users: u32,
    pub stats: SubscriptionStats,
}

impl Turn<'_> {
    /// A listener names a route configuration.
    pub(super) fn want_routes(&mut self, slot: &Arc<RouteSlot>) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.add(ResourceType::Routes, &key.0, &key.1);
        let registry = &self.store.setup().registry;
        let entry = self.state.routes.entry(key).or_insert_with(|| {
            let scope = format!("http.{}.rds.{}", slot.stat_prefix, slot.name);
            let stats = SubscriptionStats::routes(registry.scope(&scope));
            stats.started();
            RoutesEntry { slot: slot.clone(), current: None, refused: None, users: 0, stats }
        });
        entry.users += 1;
    }

    /// A listener that named one is gone.
    pub(super) fn unwant_routes(&mut self, slot: &RouteSlot) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.remove(ResourceType::Routes, &key.0, &key.1);
        if let Some(entry) = self.state.routes.get_mut(&key) {
            entry.users -= 1;
            if entry.users == 0 {
                self.state.routes.remove(&key);
            }
        }
    }

    /// Takes a response of route configurations. Names that nobody wants are passed over.
    pub(super) fn apply_routes(&mut self, update: &TypeUpdate) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in &update.resources {
            let name = ResourceType::Routes.name_of(&resource.bytes);
            let key = (update.source.clone(), Arc::from(name));
            if let Err(error) = self.put_routes(&key, Raw::new(resource), &update.version) {
                rejected.push(Rejection { name: name.to_owned(), error });
            }
        }
        // A configuration that is gone stays in force until its listener goes, as in Envoy.
        for name in &update.removed {
            let key = (update.source.clone(), Arc::from(name.as_str()));
            if let Some(entry) = self.state.routes.get(&key) {
                entry.stats.count(Event::Success(&update.version));
                entry.stats.empty();
            }
        }
        rejected
    }

    fn put_routes(&mut self, key: &RoutesKey, raw: Raw, version: &str) -> Result<(), String> {
        let state = &mut *self.state;
        let Some(entry) = state.routes.get_mut(key) else { return Ok(()) };
        if entry.current.as_ref().is_some_and(|current| current.hash == raw.hash) {
            entry.stats.count(Event::Success(version));
            entry.refused = None;
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
                let refused = Refused::new(raw, entry.refused.as_ref(), problems);
                let details = entry.refused.insert(refused).details();
                // An answer all the same: its listeners wait for no other.
                entry.slot.refuse();
                self.warm_listeners();
                return Err(details);
            }
        };
        entry.refused = None;
        entry.current = Some(raw);
        entry.stats.count(Event::Success(version));
        entry.stats.reloaded();
        let before = entry.slot.fill(Arc::new(table));
        self.retire(before);
        self.note_ignored(ResourceType::Routes, found);
        self.warm_listeners();
        Ok(())
    }

    pub(super) fn routes_failed(&self, source: &Source, event: Event<'_>) {
        let of_source = self.state.routes.iter().filter(|((of, _), _)| of == source);
        of_source.for_each(|(_, entry)| entry.stats.count(event));
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
