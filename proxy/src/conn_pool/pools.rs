//! The pools of one host by what is asked of them: nearly always one, and as many as downstream sides have wishes for
//! the transport socket (names under `auto_sni`, addresses under `original_src`), of which there may be thousands.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{Entry, PoolKind};
use crate::config::cluster::RoutingPriority;
use crate::upstream::TransportSocketOptions;

/// So many pools of wishes are kept whether anybody uses them or not.
pub(super) const KEPT: usize = 8;

type Key = (PoolKind, RoutingPriority, Arc<TransportSocketOptions>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pools {
    plain: SmallVec<[Entry; 1]>,
    /// Few hosts have any.
    wishes: Option<Box<Wishes>>,
}

#[derive(Debug)]
struct Wishes {
    pools: FxHashMap<Key, Entry>,
    /// With so many it is looked again which are used.
    sweep_at: usize,
}

impl Pools {
    pub(super) fn find(
        &self,
        kind: PoolKind,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> Option<&Entry> {
        match options {
            None => self.plain.iter().find(|entry| entry.is(kind, priority)),
            Some(options) => self.wishes.as_ref()?.pools.get(&(kind, priority, options.clone())),
        }
    }

    pub(super) fn insert(&mut self, entry: Entry, options: Option<&Arc<TransportSocketOptions>>) {
        let Some(options) = options else { return self.plain.push(entry) };
        let wishes = self.wishes.get_or_insert_with(|| {
            Box::new(Wishes { pools: FxHashMap::default(), sweep_at: KEPT })
        });
        // Requests make up the names of their pools: those of names that nobody asks for any more go.
        if wishes.pools.len() >= wishes.sweep_at {
            wishes.pools.retain(|_, entry| entry.is_used());
            wishes.sweep_at = (2 * wishes.pools.len()).max(KEPT);
        }
        wishes.pools.insert((entry.pool.kind(), entry.priority, options.clone()), entry);
    }

    /// Takes out a pool that holds a place among pools and has nothing to do.
    pub(super) fn take_spare(&mut self, priority: RoutingPriority) -> Option<Entry> {
        let is_spare = |entry: &Entry| entry.priority == priority && entry.is_spare();
        if let Some(at) = self.plain.iter().position(is_spare) {
            return Some(self.plain.remove(at));
        }
        let pools = &mut self.wishes.as_mut()?.pools;
        let key = pools.iter().find_map(|(key, entry)| is_spare(entry).then(|| key.clone()))?;
        pools.remove(&key)
    }

    fn wishes(&self) -> impl Iterator<Item = &Entry> {
        self.wishes.iter().flat_map(|wishes| wishes.pools.values())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.plain.iter().chain(self.wishes())
    }
}
