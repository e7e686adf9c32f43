//! SDS: secrets by source and name, for the slots that transport sockets have asked for. A new one serves the next
//! handshake; no connection closes. One that is refused leaves the one before in force.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustc_hash::{FxHashMap, FxHashSet};

use super::stats::{Event, SubscriptionStats};
use super::turn::Turn;
use super::version::{Problem, Raw, Refused};
use crate::config::compile::tls::compile_secret_bytes;
use crate::config::source::Source;
use crate::tls::{SecretSource, SecretUse};
use crate::xds::resource::ResourceType;

/// Source and name.
pub type SecretKey = (Source, Arc<str>);

/// One secret.
#[derive(Debug)]
pub struct SecretEntry {
    pub current: Option<Raw>,
    pub refused: Option<Refused>,
    /// Since when it is wanted.
    pub since: SystemTime,
    /// It has not come in time once.
    timed_out: bool,
    stats: SubscriptionStats,
}

/// All that are in use.
#[derive(Debug, Default)]
pub struct SecretEntries(pub FxHashMap<SecretKey, SecretEntry>);

impl SecretEntries {
    /// Whether nobody has to wait for any of these: they are there, or were refused, or have not come within `waited`.
    pub fn are_answered<'a>(
        &self,
        mut slots: impl Iterator<Item = &'a SecretUse>,
        waited: Option<Duration>,
    ) -> bool {
        slots.all(|slot| {
            let SecretSource::Discovered(source) = slot.source() else { return true };
            let timeout = slot.initial_fetch_timeout;
            slot.is_filled()
                || timeout.is_some_and(|timeout| waited.is_some_and(|waited| waited >= timeout))
                || self
                    .0
                    .get(&(source.clone(), slot.name().clone()))
                    .is_some_and(|entry| entry.refused.is_some())
        })
    }
}

/// After which times nobody waits for these any longer.
pub fn timeouts<'a>(slots: impl Iterator<Item = &'a SecretUse>) -> impl Iterator<Item = Duration> {
    slots
        .filter(|slot| !slot.is_filled() && matches!(slot.source(), SecretSource::Discovered(_)))
        .filter_map(|slot| slot.initial_fetch_timeout)
}

impl Turn<'_> {
    /// Follows which secrets are in use: at the end of every turn.
    pub(super) fn follow_secrets(&mut self) {
        let setup = self.store.setup();
        let mut in_use = FxHashSet::default();
        let mut refilled = false;
        for wanted in setup.secrets.wanted() {
            let key = (wanted.source, wanted.name);
            if !self.state.secrets.0.contains_key(&key) {
                self.state.subscriptions.add(ResourceType::Secret, &key.0, &key.1);
                let scope = setup.registry.scope(&format!("sds.{}", key.1));
                let stats = SubscriptionStats::own(scope);
                stats.started();
                let since = SystemTime::now();
                let entry =
                    SecretEntry { current: None, refused: None, since, timed_out: false, stats };
                self.state.secrets.0.insert(key.clone(), entry);
            } else if !wanted.is_filled
                && let Some(current) =
                    self.state.secrets.0.get(&key).and_then(|e| e.current.as_ref())
                && let Ok((_, secret)) = compile_secret_bytes(&current.bytes)
            {
                // A slot made anew for a secret that is known: the control plane sees no reason to send it again.
                let source = SecretSource::Discovered(key.0.clone());
                refilled |= setup.secrets.refill(&key.1, &source, secret);
            }
            in_use.insert(key);
        }
        let state = &mut *self.state;
        state.secrets.0.retain(|key, _| {
            let keep = in_use.contains(key);
            if !keep {
                state.subscriptions.remove(ResourceType::Secret, &key.0, &key.1);
            }
            keep
        });
        if refilled {
            self.warm_all();
        }
    }

    /// A secret; one that nobody uses is passed over.
    pub(super) fn put_secret(
        &mut self,
        key: &SecretKey,
        raw: Raw,
        version: &str,
    ) -> Result<(), String> {
        let secrets = &self.store.setup().secrets;
        let Some(entry) = self.state.secrets.0.get_mut(key) else { return Ok(()) };
        if entry.current.as_ref().is_some_and(|current| current.hash == raw.hash) {
            entry.stats.count(Event::Success(version));
            entry.refused = None;
            return Ok(());
        }
        // One that was refused is looked at again: what is expired or in force changes with time.
        let compiled = compile_secret_bytes(&raw.bytes).map(|(_, secret)| secret);
        let source = SecretSource::Discovered(key.0.clone());
        if let Err(refused) = secrets.publish(&key.1, &source, compiled) {
            entry.stats.count(Event::Rejected);
            let problems = Problem::whole(refused.to_string());
            let refused = Refused::new(raw, entry.refused.as_ref(), problems);
            return Err(entry.refused.insert(refused).details());
        }
        entry.refused = None;
        entry.current = Some(raw);
        entry.stats.count(Event::Success(version));
        Ok(())
    }

    /// Whoever waits for a secret may have it now.
    pub(super) fn warm_all(&mut self) {
        let entries = self.state.clusters.entries.iter();
        let warming: Vec<Arc<str>> =
            entries.filter(|(_, entry)| entry.warming.is_some()).map(|(n, _)| n.clone()).collect();
        warming.iter().for_each(|name| self.warm_cluster(name));
        self.warm_listeners();
    }

    /// The stream of these secrets has ended: of one name, or of all of a source.
    pub(super) fn secrets_failed(&self, source: &Source, name: Option<&str>) {
        let is_meant =
            |key: &SecretKey| key.0 == *source && name.is_none_or(|name| *key.1 == *name);
        let meant = self.state.secrets.0.iter().filter(|(key, _)| is_meant(key));
        meant.for_each(|(_, entry)| entry.stats.count(Event::Failure));
    }

    /// Somebody has waited for these for so long: each is counted once.
    pub(super) fn secrets_timed_out(&mut self, slots: &[SecretUse], waited: Duration) {
        for slot in slots {
            let SecretSource::Discovered(source) = slot.source() else { continue };
            let is_over = slot.initial_fetch_timeout.is_some_and(|timeout| timeout <= waited);
            let key = (source.clone(), slot.name().clone());
            if let Some(entry) = self.state.secrets.0.get_mut(&key)
                && is_over
                && !slot.is_filled()
                && !std::mem::replace(&mut entry.timed_out, true)
            {
                entry.stats.count(Event::InitFetchTimeout);
            }
        }
    }
}
