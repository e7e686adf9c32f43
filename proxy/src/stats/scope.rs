//! A scope: a prefix, the sets declared under it, the blocks their writers have made, and statistics with names
//! known only at run time. A scope that nobody counts in keeps only the list of its sets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use smallvec::SmallVec;

use super::bins::Bins;
use super::block::{
    Block, BlockData, Counter, Gauge, SharedBlock, SharedCounter, SharedGauge, TextReadout,
    WorkerHistogram, gauge_value,
};
use super::definition::{Kind, StatDef, StatSet, StatTable, Unit};
use super::histogram::Histogram;
use super::names::ClusterStat;
use super::registry::{Inner, lock};

/// Writer of shared blocks and shared single statistics.
const SHARED: u16 = u16::MAX;

/// A named group of statistics. Cheap to clone; the statistics exist while a clone or a handle taken from one does.
#[derive(Clone, Debug)]
pub struct Scope(pub(super) Arc<ScopeInner>);

pub(super) struct ScopeInner {
    /// With its trailing dot, or empty for the root.
    pub(super) prefix: Arc<str>,
    registry: Arc<Inner>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tables: Vec<&'static StatTable>,
    /// Blocks by table and writer, in no order: there are few.
    blocks: Vec<(&'static StatTable, u16, Arc<BlockData>)>,
    /// Sorted by name; there are few.
    named: Vec<(Box<str>, Named)>,
}

/// A statistic whose name is known only at run time.
struct Named {
    kind: Kind,
    cells: SmallVec<[(u16, NamedCell); 1]>,
}

enum NamedCell {
    Number(Arc<AtomicU64>),
    Histogram(Arc<Histogram>),
    Text(TextReadout),
}

/// A statistic as a reader sees it.
#[derive(Debug)]
pub(super) enum Value {
    Counter(u64),
    Gauge(u64),
    Text(String),
    Histogram(Unit, Bins),
}

/// Value and whether the statistic was ever written.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) value: Value,
    pub(super) used: bool,
}

/// Which statistic of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    Def(&'static StatTable, usize),
    Named(Box<str>),
}

impl PartialEq for StatTable {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for StatTable {}

impl std::fmt::Debug for ScopeInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Drop for ScopeInner {
    fn drop(&mut self) {
        self.registry.forget(&self.prefix);
    }
}

impl Scope {
    /// Prefix without a trailing dot.
    pub fn prefix(&self) -> &str {
        self.0.prefix.trim_end_matches('.')
    }

    fn keep(&self) -> Option<Arc<ScopeInner>> {
        Some(self.0.clone())
    }

    /// A scope below this one.
    pub fn scope(&self, suffix: &str) -> Self {
        super::Registry(self.0.registry.clone()).scope(&format!("{}{suffix}", self.0.prefix))
    }

    /// Makes the statistics of a set exist at zero; costs nothing per statistic.
    ///
    /// With `enable_deferred_creation_stats` a cluster's traffic statistics wait for their first block.
    pub fn declare<S: StatSet>(&self) {
        let deferred = self.0.registry.config.deferred_creation;
        if !deferred || S::TABLE != ClusterStat::TABLE {
            self.0.declare(S::TABLE);
        }
    }

    /// The block of worker `worker`, made on first use; declares the set. Call it on that worker only.
    pub fn block<S: StatSet>(&self, worker: usize) -> Block<S> {
        Block::new(self.0.block(S::TABLE, worker as u16), self.keep())
    }

    /// As `block`, for who keeps it to make blocks of.
    pub(super) fn data<S: StatSet>(&self, worker: usize) -> Arc<BlockData> {
        self.0.block(S::TABLE, worker as u16)
    }

    /// The block for writers that are not workers.
    pub fn shared<S: StatSet>(&self) -> SharedBlock<S> {
        SharedBlock::new(self.0.block(S::TABLE, SHARED), self.keep())
    }

    /// Worker `worker`'s part of a counter with a name known at run time (`upstream_rq_503`).
    pub fn counter(&self, worker: usize, name: &str) -> Counter {
        Counter::new(self.0.number(worker as u16, name, Kind::Counter), self.keep())
    }

    /// Worker `worker`'s part of a gauge with a name known at run time.
    pub fn gauge(&self, worker: usize, name: &str) -> Gauge {
        Gauge::new(self.0.number(worker as u16, name, Kind::Gauge), self.keep())
    }

    /// Worker `worker`'s part of a histogram with a name known at run time.
    pub fn histogram(&self, worker: usize, name: &str, unit: Unit) -> WorkerHistogram {
        let mut histogram = None;
        self.0.named(worker as u16, name, Kind::Histogram(unit), |cell| {
            if let NamedCell::Histogram(cell) = cell {
                histogram = Some(cell.clone());
            }
        });
        WorkerHistogram::new(histogram.unwrap_or_default(), self.keep())
    }

    pub fn shared_counter(&self, name: &str) -> SharedCounter {
        SharedCounter::new(self.0.number(SHARED, name, Kind::Counter), self.keep())
    }

    pub fn shared_gauge(&self, name: &str) -> SharedGauge {
        SharedGauge::new(self.0.number(SHARED, name, Kind::Gauge), self.keep())
    }

    pub fn text_readout(&self, name: &str) -> TextReadout {
        let mut text = None;
        self.0.named(SHARED, name, Kind::TextReadout, |cell| {
            if let NamedCell::Text(cell) = cell {
                text = Some(cell.clone());
            }
        });
        text.unwrap_or_default()
    }

    /// Merged value of a counter or gauge of a set: for tests and admin answers.
    pub fn value<S: StatSet>(&self, stat: S) -> u64 {
        match self.0.read(&Which::Def(S::TABLE, stat.index())) {
            Some(Reading { value: Value::Counter(n) | Value::Gauge(n), .. }) => n,
            _ => 0,
        }
    }
}

impl ScopeInner {
    pub(super) fn new(prefix: Arc<str>, registry: Arc<Inner>) -> Self {
        Self { prefix, registry, state: Mutex::default() }
    }

    /// False when the stats matcher keeps the whole set from existing.
    fn declare(&self, table: &'static StatTable) -> bool {
        let known = lock(&self.state).tables.contains(&table);
        if known {
            return true;
        }
        let wanted = self.registry.config.matcher.is_accept_all()
            || table.defs.iter().any(|def| self.registry.accepts(&self.prefix, def.name));
        if wanted {
            let mut state = lock(&self.state);
            if !state.tables.contains(&table) {
                state.tables.reserve_exact(1);
                state.tables.push(table);
            }
        }
        wanted
    }

    fn block(&self, table: &'static StatTable, writer: u16) -> Arc<BlockData> {
        if !self.declare(table) {
            return self.registry.discarded(table, writer);
        }
        let mut state = lock(&self.state);
        let found = state.blocks.iter().find(|(of, by, _)| *of == table && *by == writer);
        if let Some((.., block)) = found {
            return block.clone();
        }
        let block = BlockData::new(table);
        state.blocks.reserve_exact(1);
        state.blocks.push((table, writer, block.clone()));
        block
    }

    fn number(&self, writer: u16, name: &str, kind: Kind) -> Arc<AtomicU64> {
        let mut number = None;
        self.named(writer, name, kind, |cell| {
            if let NamedCell::Number(cell) = cell {
                number = Some(cell.clone());
            }
        });
        // A name that is taken by another kind counts into a cell that nobody reads.
        number.unwrap_or_default()
    }

    fn named(&self, writer: u16, name: &str, kind: Kind, take: impl FnOnce(&NamedCell)) {
        self.registry.count_lookup();
        let make = || match kind {
            Kind::Counter | Kind::Gauge => NamedCell::Number(Arc::default()),
            Kind::Histogram(_) => NamedCell::Histogram(Arc::default()),
            Kind::TextReadout => NamedCell::Text(TextReadout::default()),
        };
        let name: Box<str> = if name.contains([':', '\0']) {
            name.replace([':', '\0'], "_").into()
        } else {
            name.into()
        };
        if !self.registry.accepts(&self.prefix, &name) {
            return take(&make());
        }
        let mut state = lock(&self.state);
        let at = state.named.binary_search_by(|(of, _)| of.cmp(&name)).unwrap_or_else(|at| {
            state.named.reserve_exact(1);
            state.named.insert(at, (name, Named { kind, cells: SmallVec::new() }));
            at
        });
        let named = &mut state.named[at].1;
        let index = named.cells.iter().position(|(by, _)| *by == writer).unwrap_or_else(|| {
            named.cells.push((writer, make()));
            named.cells.len() - 1
        });
        take(&named.cells[index].1);
    }

    /// The statistics of this scope that exist.
    pub(super) fn list(&self) -> Vec<Which> {
        let state = lock(&self.state);
        let mut all = Vec::new();
        for &table in &state.tables {
            for (index, def) in table.defs.iter().enumerate() {
                if def.lazy && !state.read(table, index).is_some_and(|reading| reading.used) {
                    continue;
                }
                if self.registry.accepts(&self.prefix, def.name) {
                    all.push(Which::Def(table, index));
                }
            }
        }
        all.extend(state.named.iter().map(|(name, _)| Which::Named(name.clone())));
        all
    }

    /// The statistics with run-time names.
    pub(super) fn named_list(&self) -> Vec<(Box<str>, Kind)> {
        lock(&self.state).named.iter().map(|(name, named)| (name.clone(), named.kind)).collect()
    }

    /// Kind of a statistic of this scope.
    pub(super) fn kind(&self, which: &Which) -> Option<Kind> {
        match which {
            Which::Def(table, index) => table.defs.get(*index).map(|def| def.kind),
            Which::Named(name) => lock(&self.state).named(name).map(|named| named.kind),
        }
    }

    /// Whether a statistic of a declared set exists: accepted by the matcher and, when it is lazy, written.
    pub(super) fn shows(&self, which: &Which) -> bool {
        let Which::Def(table, index) = which else { return true };
        let Some(def) = table.defs.get(*index) else { return false };
        let hidden = def.lazy && !self.read(which).is_some_and(|reading| reading.used);
        !hidden && self.registry.accepts(&self.prefix, def.name)
    }

    /// The sets declared here.
    pub(super) fn tables(&self) -> Vec<&'static StatTable> {
        lock(&self.state).tables.clone()
    }

    /// `None` when the statistic does not exist (any more).
    pub(super) fn read(&self, which: &Which) -> Option<Reading> {
        let mut reading = {
            let state = lock(&self.state);
            match which {
                Which::Def(table, index) => state.read(table, *index)?,
                Which::Named(name) => state.named(name)?.read(),
            }
        };
        if let Value::Counter(n) = &mut reading.value {
            let baseline = lock(&self.registry.baseline);
            if !baseline.is_empty() {
                let key = (self.prefix.clone(), which.name().into());
                *n = n.saturating_sub(baseline.get(&key).copied().unwrap_or(0));
            }
        }
        Some(reading)
    }

    pub(super) fn for_each_counter(&self, each: &mut dyn FnMut(&str, u64)) {
        let state = lock(&self.state);
        for &table in &state.tables {
            for (index, def) in table.defs.iter().enumerate() {
                if let Some(Reading { value: Value::Counter(n), .. }) = state.read(table, index) {
                    each(def.name, n);
                }
            }
        }
        for (name, named) in &state.named {
            if let Reading { value: Value::Counter(n), .. } = named.read() {
                each(name, n);
            }
        }
    }
}

impl Which {
    /// Name below the scope's prefix.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Def(table, index) => table.defs[*index].name,
            Self::Named(name) => name,
        }
    }
}

impl State {
    fn named(&self, name: &str) -> Option<&Named> {
        let at = self.named.binary_search_by(|(of, _)| (**of).cmp(name)).ok()?;
        Some(&self.named[at].1)
    }

    fn read(&self, table: &'static StatTable, index: usize) -> Option<Reading> {
        let def: &StatDef = table.defs.get(index)?;
        let slot = usize::from(def.slot);
        let blocks = self.blocks.iter().filter(|(of, ..)| *of == table).map(|(.., block)| block);
        Some(match def.kind {
            Kind::Histogram(unit) => {
                let mut bins = Bins::default();
                blocks.for_each(|block| block.histograms[slot].merge_into(&mut bins));
                Reading { used: !bins.is_empty(), value: Value::Histogram(unit, bins) }
            }
            Kind::Counter => sum_counter(blocks.map(|block| &block.cells[slot])),
            Kind::Gauge => sum_gauge(blocks.map(|block| &block.cells[slot])),
            Kind::TextReadout => Reading { value: Value::Text(String::new()), used: false },
        })
    }
}

impl Named {
    fn read(&self) -> Reading {
        let numbers = self.cells.iter().filter_map(|(_, cell)| match cell {
            NamedCell::Number(cell) => Some(&**cell),
            NamedCell::Histogram(_) | NamedCell::Text(_) => None,
        });
        match self.kind {
            Kind::Counter => sum_counter(numbers),
            Kind::Gauge => sum_gauge(numbers),
            Kind::Histogram(unit) => {
                let mut bins = Bins::default();
                for (_, cell) in &self.cells {
                    if let NamedCell::Histogram(histogram) = cell {
                        histogram.merge_into(&mut bins);
                    }
                }
                Reading { used: !bins.is_empty(), value: Value::Histogram(unit, bins) }
            }
            Kind::TextReadout => {
                let text = self.cells.iter().find_map(|(_, cell)| match cell {
                    NamedCell::Text(text) => text.value(),
                    NamedCell::Number(_) | NamedCell::Histogram(_) => None,
                });
                Reading { used: text.is_some(), value: Value::Text(text.unwrap_or_default()) }
            }
        }
    }
}

fn sum_counter<'a>(cells: impl Iterator<Item = &'a AtomicU64>) -> Reading {
    let sum = cells.fold(0u64, |sum, cell| sum.wrapping_add(cell.load(Ordering::Relaxed)));
    Reading { value: Value::Counter(sum), used: sum > 0 }
}

fn sum_gauge<'a>(cells: impl Iterator<Item = &'a AtomicU64>) -> Reading {
    let (mut sum, mut used) = (0u64, false);
    for cell in cells {
        let cell = cell.load(Ordering::Relaxed);
        sum = sum.wrapping_add(gauge_value(cell));
        used |= cell & 1 == 1;
    }
    Reading { value: Value::Gauge(sum), used }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_statistics_stay_small() {
        assert!(size_of::<ScopeInner>() <= 120);
        assert!(size_of::<Histogram>() <= 16);
    }
}
