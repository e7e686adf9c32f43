//! What listeners name and a source tells, by source and name: route configurations and configurations of filters.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::stats::SubscriptionStats;
use super::version::{Problem, Raw, Refused};
use crate::config::source::Source;

/// Source and name.
pub type Key = (Source, Arc<str>);

/// One resource, and the slot from which the data path reads it.
#[derive(Debug)]
pub struct Entry<S> {
    pub slot: Arc<S>,
    pub current: Option<Raw>,
    pub refused: Option<Refused>,
    /// How often listeners name it.
    users: u32,
    pub stats: SubscriptionStats,
}

impl<S> Entry<S> {
    /// Whether these bytes are in force; whatever was refused since is forgotten then.
    pub fn is_current(&mut self, raw: &Raw) -> bool {
        let is_current = self.current.as_ref().is_some_and(|current| current.hash == raw.hash);
        if is_current {
            self.refused = None;
        }
        is_current
    }

    /// These bytes are in force from now on.
    pub fn accept(&mut self, raw: Raw) {
        self.refused = None;
        self.current = Some(raw);
    }

    /// All problems in one line.
    pub fn refuse(&mut self, raw: Raw, problems: Vec<Problem>) -> String {
        let refused = Refused::new(raw, self.refused.as_ref(), problems);
        self.refused.insert(refused).details()
    }
}

/// All resources of a type, and those that have lost their last user in this turn.
#[derive(Debug)]
pub struct ByName<S>(pub FxHashMap<Key, Entry<S>>, Vec<Key>);

impl<S> Default for ByName<S> {
    fn default() -> Self {
        Self(FxHashMap::default(), Vec::new())
    }
}

impl<S> ByName<S> {
    /// One more listener names it; `stats` are made for the first.
    pub fn want(
        &mut self,
        key: Key,
        slot: &Arc<S>,
        stats: impl FnOnce() -> SubscriptionStats,
    ) -> &mut Entry<S> {
        let entry = self.0.entry(key).or_insert_with(|| {
            let stats = stats();
            stats.started();
            Entry { slot: slot.clone(), current: None, refused: None, users: 0, stats }
        });
        entry.users += 1;
        entry
    }

    /// One listener less names it. What nobody names any more is there until `sweep`: it may be named again before its
    /// source has heard of it, which would then see no reason to say it again.
    pub fn unwant(&mut self, key: Key) {
        if let Some(entry) = self.0.get_mut(&key) {
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                self.1.push(key);
            }
        }
    }

    /// At the end of a turn: what nobody names goes; `forget` is for its slot, which old connections may still hold.
    pub fn sweep(&mut self, forget: impl Fn(&S)) {
        for key in self.1.drain(..) {
            if self.0.get(&key).is_some_and(|entry| entry.users == 0)
                && let Some(entry) = self.0.remove(&key)
            {
                forget(&entry.slot);
            }
        }
    }

    /// Those of a source, or one name's.
    pub fn of<'a>(
        &'a self,
        source: &'a Source,
        name: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Entry<S>> {
        let is_meant = move |key: &Key| key.0 == *source && name.is_none_or(|name| *key.1 == *name);
        self.0.iter().filter(move |(key, _)| is_meant(key)).map(|(_, entry)| entry)
    }
}
