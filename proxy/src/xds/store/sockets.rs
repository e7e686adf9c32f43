//! The sockets of a listener's new version: those it has already, those of a listener that goes, or new ones.
//!
//! Connections wait in a socket's queue, which no other socket takes over: where an address and its socket options stay,
//! its socket does. Other options need other sockets, beside the old ones for as long as those have connections waiting.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::listeners::{ListenerEntry, Sockets};
use super::turn::Turn;
use crate::config::core::ConfigAddress;
use crate::config::listener::{Bind, Listener};
use crate::listener::sockets::{BindError, BoundAddress};
use crate::stats::names::ListenerManagerStat;

/// Which listeners have which addresses: one entry for each version in force or warming.
#[derive(Debug, Default)]
pub struct Places(Rc<RefCell<Owners>>);

type Owners = FxHashMap<ConfigAddress, SmallVec<[Arc<str>; 1]>>;

impl Places {
    /// Takes a version's addresses for as long as what is returned lives.
    pub fn take(&self, config: &Listener) -> Taken {
        let places: Vec<_> = config.places().collect();
        let mut owners = self.0.borrow_mut();
        for place in &places {
            owners.entry(place.clone()).or_default().push(config.name.clone());
        }
        Taken { owners: self.0.clone(), name: config.name.clone(), places }
    }
}

/// The addresses of a version.
#[derive(Debug)]
pub struct Taken {
    owners: Rc<RefCell<Owners>>,
    name: Arc<str>,
    places: Vec<ConfigAddress>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut all = self.owners.borrow_mut();
        for place in &self.places {
            let Some(owners) = all.get_mut(place) else { continue };
            if let Some(at) = owners.iter().position(|name| *name == self.name) {
                owners.swap_remove(at);
            }
            if owners.is_empty() {
                all.remove(place);
            }
        }
    }
}

/// A version in force or warming, by what matters here.
struct Known<'a> {
    config: &'a Listener,
    bound: &'a [Arc<BoundAddress>],
    /// The workers have its sockets.
    in_force: bool,
}

impl ListenerEntry {
    /// The newest version.
    fn newest(&self) -> Option<Known<'_>> {
        let warming = self.warming.as_ref().map(|warming| Known {
            config: &warming.config,
            bound: &warming.sockets.bound,
            in_force: !warming.sockets.are_new,
        });
        let active = || {
            self.active.as_ref().map(|active| Known {
                config: &active.config,
                bound: &active.sockets,
                in_force: true,
            })
        };
        warming.or_else(active)
    }
}

impl Known<'_> {
    /// Whether the sockets of a configuration have the same options where they have the same addresses.
    fn has_options_of(&self, config: &Listener) -> bool {
        config.binds.iter().all(|new| {
            let mut old = self.config.binds.iter();
            old.all(|old| !old.address.is_same_place(&new.address) || old.has_same_options(new))
        })
    }

    /// Its sockets in the order of a configuration that has the same addresses.
    fn in_order_of(&self, config: &Listener) -> Option<Vec<Arc<BoundAddress>>> {
        if self.config.bind_to_port != config.bind_to_port || self.bound.len() != config.binds.len()
        {
            return None;
        }
        let mut left = self.bound.to_vec();
        let mut take = |bind: &Bind| {
            let at = left.iter().position(|one| one.bind.is_same_socket(bind))?;
            Some(left.remove(at))
        };
        config.binds.iter().map(&mut take).collect()
    }
}

impl Turn<'_> {
    /// Finds or makes the sockets of a version.
    pub(super) fn sockets_for(&self, name: &str, config: &Listener) -> Result<Sockets, String> {
        let entries = &self.state.listeners.entries;
        if let Some(known) = entries.get(name).and_then(ListenerEntry::newest) {
            if known.config.reuse_port != config.reuse_port {
                return Err(format!(
                    "Listener {name}: reuse port cannot be changed during an update"
                ));
            }
            if !config.reuse_port && !known.has_options_of(config) {
                return Err(format!(
                    "Listener {name}: doesn't support update any socket options when the reuse \
                     port isn't enabled"
                ));
            }
            if let Some(bound) = known.in_order_of(config) {
                return Ok(Sockets { bound, are_new: !known.in_force });
            }
        }
        self.check_duplicates(name, config)?;
        let bound = self.bind(name, config).map_err(|error| {
            self.store.listener_stats().inc(ListenerManagerStat::ListenerCreateFailure);
            error.to_string()
        })?;
        Ok(Sockets { bound, are_new: true })
    }

    fn check_duplicates(&self, name: &str, config: &Listener) -> Result<(), String> {
        let places = self.state.listeners.places.0.borrow();
        let is_taken = |bind: &Bind| {
            let owners = places.get(&bind.address.place()).into_iter().flatten();
            // Versions of one listener may have sockets of their own side by side.
            owners.into_iter().any(|owner| **owner != *name || !config.reuse_port)
        };
        if config.binds.iter().any(is_taken) { Err(config.duplicate_address()) } else { Ok(()) }
    }

    fn bind(&self, name: &str, config: &Listener) -> Result<Vec<Arc<BoundAddress>>, BindError> {
        let workers = self.store.setup().workers;
        let bind = |bind| {
            let taken_over = self
                .take_over(name, config, bind)
                .map_err(|source| BindError { address: bind.address.to_string(), source })?;
            let bound = taken_over.map_or_else(|| BoundAddress::bind(config, bind, workers), Ok)?;
            Ok(Arc::new(bound))
        };
        config.binds.iter().map(bind).collect()
    }

    /// The sockets of an address that this listener has already, or that one had which goes.
    fn take_over(
        &self,
        name: &str,
        config: &Listener,
        bind: &Bind,
    ) -> io::Result<Option<BoundAddress>> {
        if !config.bind_to_port || bind.address.is_any_port() {
            return Ok(None);
        }
        let listeners = &self.state.listeners;
        let entry = listeners.entries.get(name);
        let warming = entry.and_then(|entry| entry.warming.as_ref());
        let active = entry.and_then(|entry| entry.active.as_ref());
        let own = warming.map(|one| &one.sockets.bound).into_iter();
        let own = own.chain(active.map(|one| &one.sockets)).flatten();
        let going = listeners.draining.iter().rev().flat_map(|one| &one.sockets);
        let going = going.chain(listeners.left.iter().rev());
        for bound in own.chain(going).filter(|one| one.bind.is_same_socket(bind)) {
            if let Some(taken) = bound.take_over()? {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }
}
