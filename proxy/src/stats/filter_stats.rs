//! Statistics of a compiled configuration that all workers share: where each worker's block of them is,
//! without a lock and without the configuration having to know how many workers there are.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use super::block::{Block, BlockData};
use super::definition::StatSet;
use super::scope::Scope;

/// Blocks of one set of statistics, one a worker, made on first use.
pub struct FilterStats<S> {
    scope: OnceLock<Scope>,
    blocks: OnceLock<Box<[OnceLock<Arc<BlockData>>]>>,
    _set: PhantomData<fn(S)>,
}

/// More workers than this share a lock to find their blocks.
const WORKERS: usize = 64;

impl<S> Default for FilterStats<S> {
    fn default() -> Self {
        Self { scope: OnceLock::new(), blocks: OnceLock::new(), _set: PhantomData }
    }
}

impl<S> std::fmt::Debug for FilterStats<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterStats").field("scope", &self.scope.get()).finish_non_exhaustive()
    }
}

impl<S: StatSet> FilterStats<S> {
    /// Makes the statistics exist at zero, in the scope that `scope` gives the first time.
    pub fn declare(&self, scope: impl FnOnce() -> Scope) {
        self.scope.get_or_init(|| {
            let scope = scope();
            scope.declare::<S>();
            scope
        });
    }

    /// The block of worker `worker`; to be called on that worker only. `scope` as in `declare`.
    pub fn block(&self, worker: usize, scope: impl FnOnce() -> Scope) -> Block<S> {
        let blocks = self.blocks.get_or_init(|| (0..WORKERS).map(|_| OnceLock::new()).collect());
        let Some(place) = blocks.get(worker) else {
            return self.scope.get_or_init(scope).block(worker);
        };
        let data = place.get_or_init(|| self.scope.get_or_init(scope).data::<S>(worker));
        // The scope lives in `self`.
        Block::new(data.clone(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Registry;

    crate::metrics! {
        /// For the test.
        enum Test {
            Hits: counter "hits",
        }
    }

    #[test]
    fn every_worker_has_its_block_and_the_sum_is_read() {
        let registry = Registry::new(Default::default());
        let stats = FilterStats::<Test>::default();
        for worker in [0, 1, 0, WORKERS + 1] {
            stats.block(worker, || registry.scope("a")).inc(Test::Hits);
        }
        assert_eq!(registry.scope("a").value(Test::Hits), 4);
    }
}
