//! All statistics of a phase in the order of their full names, without holding all names: a scope is expanded when
//! its prefix comes up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter::Peekable;
use std::rc::Rc;
use std::sync::Arc;
use std::vec::IntoIter;

use super::{Phase, StatsParams};
use crate::stats::Registry;
use crate::stats::bins::Bins;
use crate::stats::scope::{Reading, ScopeInner, Value, Which};

/// One statistic.
pub(super) struct Item {
    pub(super) name: String,
    pub(super) reading: Reading,
    scope: Arc<ScopeInner>,
    which: Which,
}

#[derive(PartialEq, Eq)]
struct Pending {
    name: String,
    which: Which,
    scope: usize,
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name.cmp(&other.name).then(self.scope.cmp(&other.scope))
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

pub(super) struct Walk {
    registry: Registry,
    params: Rc<StatsParams>,
    phase: Phase,
    scopes: Peekable<IntoIter<Arc<ScopeInner>>>,
    open: Vec<Arc<ScopeInner>>,
    heap: BinaryHeap<Reverse<Pending>>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl Walk {
    pub(super) fn new(registry: &Registry, params: Rc<StatsParams>, phase: Phase) -> Self {
        Self {
            scopes: registry.scopes().into_iter().peekable(),
            registry: registry.clone(),
            params,
            phase,
            open: Vec::new(),
            heap: BinaryHeap::new(),
        }
    }

    fn expand(&mut self, scope: Arc<ScopeInner>) {
        let index = self.open.len();
        for which in scope.list() {
            let wanted = scope.kind(&which).is_some_and(|kind| self.phase.takes(kind));
            if !wanted {
                continue;
            }
            let name = format!("{}{}", scope.prefix, which.name());
            if self.params.wants(&name) {
                self.heap.push(Reverse(Pending { name, which, scope: index }));
            }
        }
        self.open.push(scope);
    }

    /// The interval column of a histogram.
    pub(super) fn interval(&self, item: &Item, cumulative: &Bins) -> Bins {
        self.registry.interval(&item.scope.prefix, item.which.name(), cumulative)
    }

    /// Bucket bounds of a histogram.
    pub(super) fn bounds(&self, item: &Item) -> &[f64] {
        self.registry.bounds(&item.name)
    }
}

impl Iterator for Walk {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            while let Some(scope) = self.scopes.next_if(|scope| {
                self.heap.peek().is_none_or(|Reverse(least)| *scope.prefix <= *least.name)
            }) {
                self.expand(scope);
            }
            let Some(Reverse(Pending { name, which, scope })) = self.heap.pop() else {
                // Every scope that is left was empty in this phase.
                self.scopes.peek()?;
                continue;
            };
            let scope = self.open[scope].clone();
            if self.heap.is_empty() {
                self.open.clear();
            }
            let Some(reading) = scope.read(&which) else { continue };
            if self.params.used_only && !reading.used {
                continue;
            }
            return Some(Item { name, reading, scope, which });
        }
    }
}

impl Item {
    /// The value of a counter or gauge.
    pub(super) fn number(&self) -> Option<u64> {
        match self.reading.value {
            Value::Counter(n) | Value::Gauge(n) => Some(n),
            Value::Text(_) | Value::Histogram(..) => None,
        }
    }
}
