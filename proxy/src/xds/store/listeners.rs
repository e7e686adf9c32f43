//! Listeners by name: the version in force, the one that still warms, and those that drain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::secrets::{self, SecretEntries};
use super::sockets::{Places, Taken};
use super::version::{Problem, Raw, Refused, next_serial};
use crate::config::extension::ExtensionSlot;
use crate::config::filter_chain::Terminal;
use crate::config::listener::{Direction, Listener};
use crate::config::route::slot::{RouteSlot, Routes};
use crate::http_filters::chain::FilterConfig;
use crate::listener::sockets::BoundAddress;
use crate::stream_info::Address;
use crate::tls::SecretUse;

/// What a listener names and another resource tells.
#[derive(Debug, Clone)]
pub enum Named {
    Routes(Arc<RouteSlot>),
    /// With whether the listener waits for it.
    Extension(Arc<ExtensionSlot>, bool),
}

impl Named {
    /// Whether something has come for it, or nobody waits for that.
    pub fn is_answered(&self) -> bool {
        match self {
            Self::Routes(slot) => slot.is_answered(),
            Self::Extension(slot, waits) => !waits || slot.is_answered(),
        }
    }

    /// How long a listener waits for it.
    pub fn initial_fetch_timeout(&self) -> Option<Duration> {
        match self {
            Self::Routes(slot) => slot.source.initial_fetch_timeout,
            Self::Extension(slot, _) => slot.source.initial_fetch_timeout,
        }
    }
}

/// A version in force.
#[derive(Debug)]
pub struct ActiveListener {
    pub raw: Raw,
    pub config: Arc<Listener>,
    /// By which workers know it, the same for all versions until it is removed.
    pub number: usize,
    /// By address, in the configuration's order.
    pub sockets: Vec<Arc<BoundAddress>>,
    pub named: Vec<Named>,
    #[expect(dead_code, reason = "gives the addresses back when it is dropped")]
    pub places: Taken,
}

impl ActiveListener {
    /// As bound: port 0 resolved.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.sockets.iter().map(|bound| &bound.address)
    }
}

/// The sockets of a version that is not yet in force.
#[derive(Debug)]
pub struct Sockets {
    /// By address, in the configuration's order.
    pub bound: Vec<Arc<BoundAddress>>,
    /// They are not those of the version in force.
    pub are_new: bool,
}

/// A version that waits for what it names.
#[derive(Debug)]
pub struct WarmingListener {
    pub raw: Raw,
    pub serial: u64,
    /// Nobody else has it yet: it takes over the chains of the version before when it is put in force.
    pub config: Listener,
    pub sockets: Sockets,
    pub named: Vec<Named>,
    pub places: Taken,
    /// Fetches that take no longer than this have timed out.
    pub waited: Option<Duration>,
}

impl WarmingListener {
    pub fn new(raw: Raw, config: Listener, sockets: Sockets, places: Taken) -> Self {
        let named = named_by(&config);
        Self { raw, serial: next_serial(), config, sockets, named, places, waited: None }
    }

    /// Whether it may be put in force.
    pub fn is_warm(&self, secrets: &SecretEntries) -> bool {
        let has_named = self.named.iter().all(|slot| {
            let timeout = slot.initial_fetch_timeout();
            slot.is_answered() || timeout.is_some_and(|t| self.waited.is_some_and(|w| w >= t))
        });
        has_named && secrets.are_answered(self.slots(), self.waited)
    }

    /// The secrets of its filter chains.
    pub fn slots(&self) -> impl Iterator<Item = &SecretUse> {
        let contexts = self.config.filter_chains.iter().filter_map(|c| c.transport.as_ref());
        contexts.flat_map(|context| context.slots())
    }

    /// The times after which it no longer waits for something.
    pub fn timeouts(&self) -> Vec<Duration> {
        let missing = self.named.iter().filter(|slot| !slot.is_answered());
        let mut all: Vec<_> = missing.filter_map(Named::initial_fetch_timeout).collect();
        all.extend(secrets::timeouts(self.slots()));
        all.sort();
        all.dedup();
        all
    }
}

/// What a listener's connection managers name, as often as they do.
fn named_by(config: &Listener) -> Vec<Named> {
    let mut named = Vec::new();
    for chain in config.filter_chains.iter() {
        let Terminal::Http(hcm) = &chain.terminal else { continue };
        let hcm = hcm.load();
        if let Routes::Discovered(slot) = &hcm.routes {
            named.push(Named::Routes(slot.clone()));
        }
        for filter in &*hcm.filters {
            if let FilterConfig::Discovered(filter) = &filter.config {
                named.push(Named::Extension(filter.slot.clone(), filter.waits));
            }
        }
    }
    named
}

/// A listener that takes no more connections; those that it has are told to end.
#[derive(Debug)]
pub struct DrainingListener {
    pub raw: Raw,
    pub serial: u64,
    pub name: Arc<str>,
    /// The workers close them when nobody waits in their queues; until then another listener may take them over.
    pub sockets: Vec<Arc<BoundAddress>>,
    pub named: Vec<Named>,
}

/// What is known of one listener.
#[derive(Debug, Default)]
pub struct ListenerEntry {
    /// From the bootstrap: no update changes it.
    pub is_static: bool,
    pub active: Option<ActiveListener>,
    pub warming: Option<WarmingListener>,
    pub refused: Option<Refused>,
}

impl ListenerEntry {
    pub fn refuse(&mut self, raw: Raw, problems: Vec<Problem>) -> String {
        let refused = Refused::new(raw, self.refused.as_ref(), problems);
        self.refused.insert(refused).details()
    }

    /// The bytes that were taken last.
    pub fn newest_hash(&self) -> Option<u64> {
        let warming = self.warming.as_ref().map(|warming| warming.raw.hash);
        warming.or(self.active.as_ref().map(|active| active.raw.hash))
    }
}

/// All listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    pub entries: BTreeMap<Arc<str>, ListenerEntry>,
    pub places: Places,
    /// Those in force by number, and so in the order in which they came.
    pub order: BTreeMap<usize, Arc<str>>,
    pub draining: Vec<DrainingListener>,
    /// There was one.
    pub have_drained: bool,
    /// Sockets that newer versions do without, until the workers have closed them.
    pub left: Vec<Arc<BoundAddress>>,
    pub last_number: usize,
    /// The workers run.
    pub started: bool,
    /// By `/drain_listeners`: no update brings such listeners any more.
    pub stopped: Stopped,
}

/// Which listeners an operator has stopped, and those that would come after them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stopped {
    #[default]
    None,
    Inbound,
    All,
}

impl Stopped {
    pub fn covers(self, direction: Direction) -> bool {
        match self {
            Self::None => false,
            Self::Inbound => direction == Direction::Inbound,
            Self::All => true,
        }
    }
}

impl Listeners {
    pub fn warming(&self) -> usize {
        self.entries.values().filter(|entry| entry.warming.is_some()).count()
    }

    /// Takes a listener off the list; one of the bootstrap only where that is meant.
    pub fn forget(&mut self, name: &str, static_too: bool) -> Option<(Arc<str>, ListenerEntry)> {
        self.entries.get(name).filter(|entry| static_too || !entry.is_static)?;
        let gone = self.entries.remove_entry(name)?;
        if let Some(active) = &gone.1.active {
            self.order.remove(&active.number);
        }
        Some(gone)
    }

    /// Those that are in force or warm.
    pub fn known(&self) -> usize {
        let is_there = |entry: &&ListenerEntry| entry.active.is_some() || entry.warming.is_some();
        self.entries.values().filter(is_there).count()
    }

    /// The names of listeners that came by an update.
    pub fn dynamic_names(&self) -> Vec<Arc<str>> {
        let dynamic = self.entries.iter().filter(|(_, entry)| !entry.is_static);
        dynamic.map(|(name, _)| name.clone()).collect()
    }
}
