//! The slots that resources compile against: what one resource names and another fills.
//!
//! A slot is made when it is first named and lives while somebody holds it; who names the same thing of the same source
//! gets the same slot.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use rustc_hash::FxHashMap;

use super::diagnostic::Diagnostics;
use super::route::{RouteContext, compile_route_table};
use crate::config::extension::ExtensionSlot;
use crate::config::pb::envoy::config::route::v3::RouteConfiguration;
use crate::config::route::RouteTable;
use crate::config::route::slot::RouteSlot;
use crate::config::source::{ConfigSource, Source};

/// All slots of the process. `!Send`: belongs to the thread that compiles.
#[derive(Debug, Default)]
pub struct Slots {
    routes: RefCell<FxHashMap<SlotKey, Weak<RouteSlot>>>,
    extensions: RefCell<FxHashMap<SlotKey, Weak<ExtensionSlot>>>,
}

/// Where what fills a slot comes from, and its name there.
type SlotKey = (Source, Arc<str>);

impl Slots {
    /// The slot of a route configuration.
    pub fn routes(&self, name: &str, source: &ConfigSource, stat_prefix: &str) -> Arc<RouteSlot> {
        let name: Arc<str> = name.into();
        let key = (source.source.clone(), name.clone());
        let mut slots = self.routes.borrow_mut();
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let empty = Arc::new(no_routes(&name));
        let slot = Arc::new(RouteSlot::new(name, source.clone(), stat_prefix.into(), empty));
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }

    /// The slot of a route configuration, where somebody holds it.
    pub fn known_routes(&self, name: &str, source: &Source) -> Option<Arc<RouteSlot>> {
        self.routes.borrow().get(&(source.clone(), Arc::from(name)))?.upgrade()
    }

    /// The slot of a filter's configuration.
    pub fn extension(&self, name: &str, source: &ConfigSource) -> Arc<ExtensionSlot> {
        let name: Arc<str> = name.into();
        let key = (source.source.clone(), name.clone());
        let mut slots = self.extensions.borrow_mut();
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::new(ExtensionSlot::new(name, source.clone()));
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }
}

/// A table without virtual hosts.
fn no_routes(name: &str) -> RouteTable {
    let pb = RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::default() };
    let found = Diagnostics::new("");
    compile_route_table(&pb, RouteContext { per_route: &|_| None }, &found.root())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_the_same_gets_the_same() {
        let slots = Slots::default();
        let ads = ConfigSource { source: Source::Ads, initial_fetch_timeout: None };
        let one = slots.routes("80", &ads, "a");
        assert!(Arc::ptr_eq(&one, &slots.routes("80", &ads, "b")));
        assert!(!Arc::ptr_eq(&one, &slots.routes("81", &ads, "b")));
        assert!(!one.is_answered());
        let table = one.load().clone();
        one.fill(table);
        assert!(slots.known_routes("80", &Source::Ads).unwrap().is_answered());
        drop(one);
        assert!(slots.known_routes("80", &Source::Ads).is_none());
    }
}
