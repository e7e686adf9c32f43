//! ECDS: configurations of HTTP filters by source and name. A new one serves the next stream; no connection closes.

use std::sync::Arc;

use super::by_name::{ByName, Key};
use super::stats::{Event, SubscriptionStats};
use super::turn::Turn;
use super::version::{Problem, Raw};
use crate::config::compile::configuration::compile_raw_extension;
use crate::config::extension::ExtensionSlot;
use crate::config::source::Source;
use crate::xds::resource::ResourceType;

/// All that listeners name.
pub type Extensions = ByName<ExtensionSlot>;

impl Turn<'_> {
    /// A listener names a filter's configuration.
    pub(super) fn want_extension(&mut self, slot: &Arc<ExtensionSlot>) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.add(ResourceType::Extension, &key.0, &key.1);
        let registry = &self.store.setup().registry;
        let entry = self.state.extensions.want(key, slot, || {
            let scope = format!("extension_config_discovery.http_filter.{}", slot.name);
            SubscriptionStats::extension(registry.scope(&scope))
        });
        entry.stats.extension_conflicts(slot.take_conflicts());
    }

    /// A listener that named one is gone.
    pub(super) fn unwant_extension(&mut self, slot: &ExtensionSlot) {
        let key = (slot.source.source.clone(), slot.name.clone());
        self.state.subscriptions.remove(ResourceType::Extension, &key.0, &key.1);
        self.state.extensions.unwant(key);
    }

    /// Filters go without what is gone.
    pub(super) fn remove_extension(&mut self, key: &Key, version: &str) {
        if let Some(entry) = self.state.extensions.0.get_mut(key) {
            entry.current = None;
            entry.slot.set(None);
            entry.slot.users().iter().for_each(|filter| filter.fill(None));
            entry.stats.count(Event::Success(version));
            entry.stats.extension_reloaded();
        }
    }

    /// A filter's configuration; one that nobody wants is passed over.
    pub(super) fn put_extension(
        &mut self,
        key: &Key,
        raw: Raw,
        version: &str,
    ) -> Result<(), String> {
        let state = &mut *self.state;
        let Some(entry) = state.extensions.0.get_mut(key) else { return Ok(()) };
        if entry.is_current(&raw) {
            entry.stats.count(Event::Success(version));
            return Ok(());
        }
        let users = entry.slot.users();
        let cx = self.store.setup().compile_context();
        let (compiled, found) = compile_raw_extension(&raw.bytes, &users, &cx);
        entry.slot.answer();
        let Some((any, configs)) = compiled else {
            entry.stats.count(Event::Rejected);
            entry.stats.extension_failed();
            let details = entry.refuse(raw, Problem::of(found));
            self.warm_listeners();
            return Err(details);
        };
        entry.accept(raw);
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

    /// The stream of these has ended: of one name, or of all of a source.
    pub(super) fn extensions_failed(&self, source: &Source, name: Option<&str>) {
        for entry in self.state.extensions.of(source, name) {
            entry.stats.count(Event::Failure);
            entry.stats.extension_failed();
        }
    }
}
