//! Taking updates of listeners, and putting them in force once they are warm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rustc_hash::FxHashSet;

use super::listeners::{
    ActiveListener, DrainingListener, ListenerEntry, Named, Sockets, Stopped, WarmingListener,
};
use super::stats::Event;
use super::turn::{Turn, Waiter};
use super::version::{Problem, Raw, next_serial};
use super::{Stage, State};
use crate::config::compile::configuration::{compile_raw_listener, raw_of, unknown_clusters};
use crate::config::compile::listener::random_name;
use crate::config::listener::{Direction, Listener};
use crate::config::pb::envoy::config::listener::v3 as pb;
use crate::listener::sockets::{BindError, BoundAddress};
use crate::stats::names::ListenerManagerStat;
use crate::worker::listeners::{ListenerCommand, Retire};
use crate::worker::run::Command;
use crate::xds::resource::{ResourceType, TypeUpdate};

impl Turn<'_> {
    /// What an update of listeners is without. That goes first: its addresses may be taken over.
    pub(super) fn gone_listeners(&self, update: &TypeUpdate) -> VecDeque<Arc<str>> {
        let mut gone = VecDeque::new();
        if update.full_state {
            let names =
                update.resources.iter().map(|one| ResourceType::Listener.name_of(&one.bytes));
            let kept: FxHashSet<&str> = names.collect();
            let known = self.state.listeners.dynamic_names();
            gone.extend(known.into_iter().filter(|name| !kept.contains(&**name)));
        }
        gone.extend(update.removed.iter().map(|name| Arc::from(name.as_str())));
        gone
    }

    /// Takes one listener; one without a name is given one, anew each time, as in Envoy.
    pub(super) fn put_listener(&mut self, name: &Arc<str>, raw: Raw) -> Result<(), String> {
        let name = &if name.is_empty() { random_name() } else { name.clone() };
        let stopped = self.state.listeners.stopped;
        if stopped != Stopped::None && stopped.covers(direction(&raw.bytes)) {
            tracing::debug!(listener = %name, "passed over: listeners of its direction are stopped");
            if let Some(entry) = self.state.listeners.entries.get_mut(name) {
                entry.refused = None;
            }
            return Ok(());
        }
        // One that was refused is looked at again: ports, clusters and files come and go.
        if let Some(entry) = self.state.listeners.entries.get_mut(name)
            && (entry.is_static || entry.newest_hash() == Some(raw.hash))
        {
            entry.refused = None;
            return Ok(());
        }
        match self.prepare_listener(name, raw.clone()) {
            Ok(version) => {
                self.begin_listener(name, version);
                // What is warm at once may turn out at once not to listen.
                let entry = self.state.listeners.entries.get(name);
                let refused = entry.and_then(|entry| entry.refused.as_ref());
                refused.map_or(Ok(()), |refused| Err(refused.details()))
            }
            // Nobody could ever say that it is gone.
            Err(problems) if ResourceType::Listener.name_of(&raw.bytes).is_empty() => {
                Err(ListenerEntry::default().refuse(raw, problems))
            }
            Err(problems) => {
                let entries = &mut self.state.listeners.entries;
                Err(entries.entry(name.clone()).or_default().refuse(raw, problems))
            }
        }
    }

    /// Compiles a version and opens its sockets.
    fn prepare_listener(
        &mut self,
        name: &Arc<str>,
        raw: Raw,
    ) -> Result<WarmingListener, Vec<Problem>> {
        let setup = self.store.setup();
        let cx = setup.compile_context();
        let resource = raw_of(ResourceType::Listener, &raw.bytes);
        let (compiled, found) = compile_raw_listener(&resource, &cx);
        let Some(mut config) = compiled else { return Err(Problem::of(found)) };
        // One without a name has been given one.
        config.name = name.clone();
        let unknown = unknown_clusters(&config, |name| self.state.clusters.knows(name));
        if let Some(unknown) = unknown.first() {
            return Err(Problem::whole(format!("route: unknown cluster '{unknown}'")));
        }
        let sockets = self.sockets_for(name, &config).map_err(Problem::whole)?;
        self.note_ignored(ResourceType::Listener, found);
        let places = self.state.listeners.places.take(&config);
        Ok(WarmingListener::new(raw, config, sockets, places))
    }

    /// A listener of the bootstrap; its sockets are bound.
    pub(super) fn add_static_listener(&mut self, raw: Raw, config: Listener) -> Result<(), String> {
        let name = config.name.clone();
        let sockets = self.sockets_for(&name, &config)?;
        self.state.listeners.entries.entry(name.clone()).or_default().is_static = true;
        let places = self.state.listeners.places.take(&config);
        self.begin_listener(&name, WarmingListener::new(raw, config, sockets, places));
        Ok(())
    }

    /// A version starts to warm.
    fn begin_listener(&mut self, name: &Arc<str>, version: WarmingListener) {
        for slot in &version.named {
            self.want(slot);
        }
        if self.state.stage >= Stage::Listeners {
            for timeout in version.timeouts() {
                self.wait(timeout, Waiter::Listener(name.clone(), version.serial));
            }
        }
        let entry = self.state.listeners.entries.entry(name.clone()).or_default();
        let is_new = entry.active.is_none() && entry.warming.is_none();
        entry.refused = None;
        let abandoned = entry.warming.replace(version);
        for slot in abandoned.into_iter().flat_map(|abandoned| abandoned.named) {
            self.unwant(&slot);
        }
        self.store.listener_stats().inc(match is_new {
            true => ListenerManagerStat::ListenerAdded,
            false => ListenerManagerStat::ListenerModified,
        });
        self.warm_listener(name);
    }

    /// What the listeners of the bootstrap name is asked for from now on.
    pub(super) fn time_listeners(&mut self) {
        let mut all = Vec::new();
        for (name, entry) in &self.state.listeners.entries {
            let Some(version) = &entry.warming else { continue };
            let waiter = || Waiter::Listener(name.clone(), version.serial);
            all.extend(version.timeouts().into_iter().map(|timeout| (timeout, waiter())));
        }
        for (timeout, waiter) in all {
            self.wait(timeout, waiter);
        }
    }

    /// Puts every listener in force that nothing keeps.
    pub(super) fn warm_listeners(&mut self) {
        let entries = self.state.listeners.entries.iter();
        let warming: Vec<Arc<str>> =
            entries.filter(|(_, entry)| entry.warming.is_some()).map(|(n, _)| n.clone()).collect();
        warming.iter().for_each(|name| self.warm_listener(name));
    }

    fn warm_listener(&mut self, name: &Arc<str>) {
        let State { listeners, secrets, .. } = &mut *self.state;
        if let Some(entry) = listeners.entries.get_mut(name)
            && let Some(version) = entry.warming.take_if(|version| version.is_warm(secrets))
        {
            let before = entry.active.take();
            self.publish_listener(name, version, before);
        }
        self.listeners_changed = true;
    }

    fn publish_listener(
        &mut self,
        name: &Arc<str>,
        version: WarmingListener,
        before: Option<ActiveListener>,
    ) {
        let WarmingListener { raw, mut config, sockets, named, places, .. } = version;
        let Sockets { bound, are_new } = sockets;
        if self.state.listeners.started
            && are_new
            && let Err(error) = listen(&bound, &config)
        {
            // Envoy has taken the version by now and removes the listener as a whole.
            let problems = Problem::whole(error.to_string());
            self.store.listener_stats().inc(ListenerManagerStat::ListenerCreateFailure);
            let listeners = &mut self.state.listeners;
            let entry = listeners.entries.entry(name.clone()).or_default();
            let reason = entry.refuse(raw, problems);
            tracing::error!(listener = %name, reason, "not in force");
            entry.active = before;
            named.iter().for_each(|slot| self.unwant(slot));
            return;
        }
        let mut gone = Vec::new();
        if let Some(before) = &before {
            let same_scope = config.stat_prefix == before.config.stat_prefix;
            let taken = config.filter_chains.take_over(&before.config.filter_chains, same_scope);
            gone = taken.gone;
            taken.retired.into_iter().for_each(|hcm| self.retire(hcm));
        }
        let config = Arc::new(config);
        let listeners = &mut self.state.listeners;
        let number = before.as_ref().map_or_else(
            || {
                listeners.last_number += 1;
                listeners.last_number
            },
            |before| before.number,
        );
        if before.is_none() {
            listeners.order.insert(number, name.clone());
        }
        if listeners.started {
            self.send_listener(number, &config, are_new.then_some(&*bound));
        }
        if let Some(before) = before {
            before.named.iter().for_each(|slot| self.unwant(slot));
            self.retire(before.config);
            if are_new && self.state.listeners.started {
                let left = &mut self.state.listeners.left;
                left.retain(|one| !one.is_closed());
                left.extend(before.sockets);
            }
            // No update closes anything here, but only such a one is in place to Envoy.
            if only_chains_differ(&before.raw.bytes, &raw.bytes) {
                self.store.listener_stats().inc(ListenerManagerStat::ListenerInPlaceUpdated);
            }
            self.drain_chains(number, gone);
        }
        let active = ActiveListener { raw, config, number, sockets: bound, named, places };
        let entry = self.state.listeners.entries.entry(name.clone()).or_default();
        entry.active = Some(active);
    }

    /// `/drain_listeners`, at its end: they take no more connections, and updates of their direction are passed over. As
    /// in Envoy, the last command's direction counts, and what has never been in force goes on warming.
    pub(super) fn stop_listeners(&mut self, which: Stopped) {
        let listeners = &mut self.state.listeners;
        listeners.stopped = which;
        let mut numbers = Vec::new();
        let mut abandoned = Vec::new();
        for entry in listeners.entries.values_mut() {
            if let Some(active) = &entry.active
                && which.covers(active.config.direction)
            {
                numbers.push(active.number);
                abandoned.extend(entry.warming.take());
            }
        }
        for slot in abandoned.into_iter().flat_map(|warming| warming.named) {
            self.unwant(&slot);
        }
        let stats = self.store.listener_stats();
        stats.add(ListenerManagerStat::ListenerStopped, numbers.len() as u64);
        let numbers: Arc<[usize]> = numbers.into();
        self.store.tell(|| Command::StopListeners(numbers.clone()));
        self.store.show_listeners(&self.state.listeners);
    }

    /// Gives a listener to the workers, with its sockets where those are new to them.
    fn send_listener(
        &self,
        number: usize,
        config: &Arc<Listener>,
        bound: Option<&[Arc<BoundAddress>]>,
    ) {
        let mut count = 0;
        self.store.setup().lifecycle.tell_each(|worker| {
            count += 1;
            let of_worker = |all: &[Arc<BoundAddress>]| {
                all.iter().filter_map(|one| one.of_worker(worker)).collect()
            };
            let sockets = bound.map(of_worker);
            Command::Listener(number, ListenerCommand::Put { config: config.clone(), sockets })
        });
        self.store.listener_stats().add(ListenerManagerStat::ListenerCreateSuccess, count);
    }

    /// The workers run: they get what is in force.
    pub(super) fn start_listeners(&mut self) {
        self.state.listeners.started = true;
        let names: Vec<Arc<str>> = self.state.listeners.order.values().cloned().collect();
        for name in names {
            let entry = self.state.listeners.entries.get(&name);
            let Some(active) = entry.and_then(|entry| entry.active.as_ref()) else { continue };
            if let Err(error) = listen(&active.sockets, &active.config) {
                tracing::error!(listener = %name, %error, "does not listen");
                self.store.listener_stats().inc(ListenerManagerStat::ListenerCreateFailure);
                self.drop_listener(&name);
                continue;
            }
            self.send_listener(active.number, &active.config, Some(&active.sockets));
        }
        self.listeners_changed = true;
    }

    fn drain_chains(&mut self, number: usize, gone: Vec<u64>) {
        if gone.is_empty() || !self.state.listeners.started {
            return;
        }
        let count = gone.len();
        let stat = ListenerManagerStat::TotalFilterChainsDraining;
        self.store.listener_stats().gauge_add(stat, count as i64);
        let within = self.store.setup().lifecycle.drain_time();
        self.wait(within, Waiter::ChainsDrained(count));
        let retire = self.retirement(Some(gone.into()));
        self.store.tell(|| Command::Listener(number, ListenerCommand::Retire(retire.clone())));
    }

    fn retirement(&self, chains: Option<Arc<[u64]>>) -> Retire {
        let setup = self.store.setup();
        Retire { chains, within: setup.lifecycle.drain_time(), gradually: setup.drain_gradually }
    }

    pub(super) fn remove_listener(&mut self, name: &str) {
        let Some((name, entry)) = self.state.listeners.forget(name, false) else { return };
        let ListenerEntry { active, warming, .. } = entry;
        if active.is_some() || warming.is_some() {
            self.store.listener_stats().inc(ListenerManagerStat::ListenerRemoved);
        }
        for slot in warming.into_iter().flat_map(|warming| warming.named) {
            self.unwant(&slot);
        }
        if let Some(active) = active {
            self.drain_listener(name, active);
        }
        self.listeners_changed = true;
    }

    /// A listener that no worker has, static or not, is gone.
    fn drop_listener(&mut self, name: &str) {
        let Some((_, entry)) = self.state.listeners.forget(name, true) else { return };
        self.store.listener_stats().inc(ListenerManagerStat::ListenerRemoved);
        let of_warming = entry.warming.into_iter().flat_map(|warming| warming.named);
        let named = of_warming.chain(entry.active.into_iter().flat_map(|active| active.named));
        named.for_each(|slot| self.unwant(&slot));
    }

    fn drain_listener(&mut self, name: Arc<str>, active: ActiveListener) {
        let ActiveListener { raw, config, number, sockets, named, .. } = active;
        self.retire(config);
        if !self.state.listeners.started {
            named.iter().for_each(|slot| self.unwant(slot));
            return;
        }
        let retire = self.retirement(None);
        self.store.tell(|| Command::Listener(number, ListenerCommand::Remove));
        let within = retire.within;
        self.store.tell(|| Command::Listener(number, ListenerCommand::Retire(retire.clone())));
        let serial = next_serial();
        let listeners = &mut self.state.listeners;
        listeners.draining.push(DrainingListener { raw, serial, name, sockets, named });
        listeners.have_drained = true;
        self.wait(within, Waiter::Drained(serial));
    }

    /// The connections of a removed listener have ended.
    pub(super) fn listener_drained(&mut self, serial: u64) {
        let draining = &mut self.state.listeners.draining;
        let Some(at) = draining.iter().position(|one| one.serial == serial) else { return };
        let drained = draining.remove(at);
        drained.named.iter().for_each(|slot| self.unwant(slot));
        self.listeners_changed = true;
    }

    /// A listener's time is up.
    pub(super) fn listener_waited(&mut self, name: &Arc<str>, serial: u64, waited: Duration) {
        let entry = self.state.listeners.entries.get_mut(name);
        let Some(version) = entry
            .and_then(|entry| entry.warming.as_mut())
            .filter(|version| version.serial == serial)
        else {
            return;
        };
        version.waited = version.waited.max(Some(waited));
        let late: Vec<_> = version
            .named
            .iter()
            .filter(|one| !one.is_answered() && one.initial_fetch_timeout() == Some(waited))
            .cloned()
            .collect();
        let slots: Vec<_> = version.slots().cloned().collect();
        tracing::warn!(listener = %name, "goes on without what it waited for");
        self.secrets_timed_out(&slots, waited);
        late.iter().for_each(|one| self.named_timed_out(one));
        self.warm_listener(name);
    }

    /// Something that a listener names is wanted.
    fn want(&mut self, named: &Named) {
        match named {
            Named::Routes(slot) => self.want_routes(slot),
            Named::Extension(slot, _) => self.want_extension(slot),
        }
    }

    fn unwant(&mut self, named: &Named) {
        match named {
            Named::Routes(slot) => self.unwant_routes(slot),
            Named::Extension(slot, _) => self.unwant_extension(slot),
        }
    }

    fn named_timed_out(&self, named: &Named) {
        match named {
            Named::Routes(slot) => {
                let key = (slot.source.source.clone(), slot.name.clone());
                if let Some(entry) = self.state.routes.0.get(&key) {
                    entry.stats.count(Event::InitFetchTimeout);
                }
            }
            Named::Extension(slot, _) => {
                let key = (slot.source.source.clone(), slot.name.clone());
                if let Some(entry) = self.state.extensions.0.get(&key) {
                    entry.stats.count(Event::InitFetchTimeout);
                    entry.stats.extension_failed();
                }
            }
        }
    }
}

/// Lets connections in.
fn listen(bound: &[Arc<BoundAddress>], config: &Listener) -> Result<(), BindError> {
    bound.iter().zip(&config.binds).try_for_each(|(one, bind)| one.listen(config.backlog, bind))
}

/// What cannot be read is nobody's, and is refused by who reads it.
fn direction(bytes: &[u8]) -> Direction {
    let listener = pb::Listener::decode(bytes).unwrap_or_default();
    Direction::from(listener.traffic_direction())
}

/// Whether two versions of a listener are the same but for their filter chains.
fn only_chains_differ(a: &[u8], b: &[u8]) -> bool {
    let without_chains = |bytes: &[u8]| {
        let mut listener = pb::Listener::decode(bytes).ok()?;
        listener.filter_chains.clear();
        listener.default_filter_chain = None;
        listener.filter_chain_matcher = None;
        Some(listener)
    };
    without_chains(a).is_some_and(|a| without_chains(b).is_some_and(|b| a == b))
}
