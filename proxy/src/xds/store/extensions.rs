//! ECDS: configurations of HTTP filters by source and name. A new one serves the next stream; no connection closes.

use std::sync::Arc;

use super::stats::{Event, SubscriptionStats};
use super::turn::Turn;
use super::version::{Problem, Raw, Refused};
use crate::config::compile::configuration::compile_raw_extension;
use crate::config::extension::ExtensionSlot;
use crate::config::source::Source;
use crate::xds::resource::{Rejection, ResourceType, TypeUpdate};

/// Source and name.
pub type ExtensionKey = (Source, Arc<str>);

/// One filter's configuration.
#[derive(Debug)]
pub struct ExtensionEntry {
    slot: Arc<ExtensionSlot>,
    pub current: Option<Raw>,
    pub refused: Option<Refused>,
    /// How often listeners name it.
    users: u32,
    pub stats: SubscriptionStats,
}

impl Turn<'_> {
    /// A listener names a filter's configuration.
    pub(super) fn want_extension(&mut self, slot: &Arc<ExtensionSlot>) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.add(ResourceType::Extension, &key.0, &key.1);
        let registry = &self.store.setup().registry;
        let entry = self.state.extensions.entry(key).or_insert_with(|| {
            let scope = format!("extension_config_discovery.http_filter.{}", slot.name);
            let stats = SubscriptionStats::extension(registry.scope(&scope));
            stats.started();
            ExtensionEntry { slot: slot.clone(), current: None, refused: None, users: 0, stats }
        });
        entry.users += 1;
        entry.stats.extension_conflicts(slot.take_conflicts());
    }

    /// A listener that named one is gone.
    pub(super) fn unwant_extension(&mut self, slot: &ExtensionSlot) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.remove(ResourceType::Extension, &key.0, &key.1);
        if let Some(entry) = self.state.extensions.get_mut(&key) {
            entry.users -= 1;
            if entry.users == 0 {
                self.state.extensions.remove(&key);
            }
        }
    }

    /// Takes a response of filter configurations. Names that nobody wants are passed over.
    pub(super) fn apply_extensions(&mut self, update: &TypeUpdate) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in &update.resources {
            let name = ResourceType::Extension.name_of(&resource.bytes);
            let key = (update.source.clone(), Arc::from(name));
            if let Err(error) = self.put_extension(&key, Raw::new(resource), &update.version) {
                rejected.push(Rejection { name: name.to_owned(), error });
            }
        }
        for name in &update.removed {
            let key = (update.source.clone(), Arc::from(name.as_str()));
            if let Some(entry) = self.state.extensions.get_mut(&key) {
                entry.current = None;
                entry.slot.set(None);
                entry.slot.users().iter().for_each(|filter| filter.fill(None));
                entry.stats.count(Event::Success(&update.version));
                entry.stats.extension_reloaded();
            }
        }
        rejected
    }

    fn put_extension(&mut self, key: &ExtensionKey, raw: Raw, version: &str) -> Result<(), String> {
        let state = &mut *self.state;
        let Some(entry) = state.extensions.get_mut(key) else { return Ok(()) };
        if entry.current.as_ref().is_some_and(|current| current.hash == raw.hash) {
            entry.stats.count(Event::Success(version));
            entry.refused = None;
            return Ok(());
        }
        let users = entry.slot.users();
        let cx = self.store.setup().compile_context();
        let (compiled, found) = compile_raw_extension(&raw.bytes, &users, &cx);
        entry.slot.answer();
        let Some((any, configs)) = compiled else {
            entry.stats.count(Event::Rejected);
            entry.stats.extension_failed();
            let refused = Refused::new(raw, entry.refused.as_ref(), Problem::of(found));
            let details = entry.refused.insert(refused).details();
            self.warm_listeners();
            return Err(details);
        };
        entry.refused = None;
        entry.current = Some(raw);
        entry.slot.set(Some(any));
        for (filter, config) in users.iter().zip(configs) {
            filter.fill(Some(Arc::new(config)));
        }
        entry.stats.count(Event::Success(version));
        entry.stats.extension_reloaded();
        self.note_ignored(ResourceType::Extension, found);
        self.warm_listeners();
        Ok(())
    }

    pub(super) fn extensions_failed(&self, source: &Source, event: Event<'_>) {
        let of_source = self.state.extensions.iter().filter(|((of, _), _)| of == source);
        of_source.for_each(|(_, entry)| {
            entry.stats.count(event);
            entry.stats.extension_failed();
        });
    }
}
