//! Handles that count: a worker's own block of a set, blocks shared by threads, and single statistics with names
//! known only at run time.
//!
//! Per-worker handles are `!Send`: each cell has a single writer, so that counting is a relaxed load and store. A
//! gauge's cell keeps in its lowest bit whether it was ever written (`usedonly` shows it even at 0).

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::definition::{StatSet, StatTable};
use super::histogram::Histogram;
use super::scope::ScopeInner;

/// Keeps a handle's scope, so that its statistics stay in sight as long as somebody counts; a detached handle has none.
pub(super) type Keep = Option<Arc<ScopeInner>>;

/// Cells of one set, of one scope, of one writer.
#[derive(Debug)]
pub(super) struct BlockData {
    pub(super) cells: Box<[AtomicU64]>,
    pub(super) histograms: Box<[Histogram]>,
}

impl BlockData {
    pub(super) fn new(table: &StatTable) -> Arc<Self> {
        Arc::new(Self {
            cells: (0..table.cells).map(|_| AtomicU64::new(0)).collect(),
            histograms: (0..table.histograms).map(|_| Histogram::default()).collect(),
        })
    }
}

/// Lowest bit of a gauge's cell.
const USED: u64 = 1;

/// Value of a gauge's cell.
pub(super) fn gauge_value(cell: u64) -> u64 {
    ((cell as i64) >> 1) as u64
}

fn plain_add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

fn plain_gauge_add(cell: &AtomicU64, n: i64) {
    let seen = cell.load(Ordering::Relaxed);
    cell.store(seen.wrapping_add((n as u64) << 1) | USED, Ordering::Relaxed);
}

fn shared_gauge_add(cell: &AtomicU64, n: i64) {
    let seen = cell.fetch_add((n as u64) << 1, Ordering::Relaxed);
    if seen & USED == 0 {
        cell.fetch_or(USED, Ordering::Relaxed);
    }
}

/// One worker's block of a set of statistics. The merged value of a statistic is the sum over workers.
pub struct Block<S> {
    data: Arc<BlockData>,
    scope: Keep,
    /// Single writer: stays on its worker.
    _set: PhantomData<(S, Rc<()>)>,
}

impl<S> Clone for Block<S> {
    fn clone(&self) -> Self {
        Self { data: self.data.clone(), scope: self.scope.clone(), _set: PhantomData }
    }
}

impl<S> std::fmt::Debug for Block<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<S: StatSet> Block<S> {
    pub(super) fn new(data: Arc<BlockData>, scope: Keep) -> Self {
        Self { data, scope, _set: PhantomData }
    }

    /// A block that no registry reports: for tests and for parts that run without statistics.
    pub fn detached() -> Self {
        Self::new(BlockData::new(S::TABLE), None)
    }

    #[inline]
    fn cell(&self, stat: S) -> &AtomicU64 {
        &self.data.cells[S::TABLE.defs[stat.index()].slot as usize]
    }

    /// Adds 1 to a counter.
    #[inline]
    pub fn inc(&self, counter: S) {
        plain_add(self.cell(counter), 1);
    }

    /// Adds to a counter.
    #[inline]
    pub fn add(&self, counter: S, n: u64) {
        plain_add(self.cell(counter), n);
    }

    /// Adds 1 to a gauge.
    #[inline]
    pub fn gauge_inc(&self, gauge: S) {
        plain_gauge_add(self.cell(gauge), 1);
    }

    /// Takes 1 from a gauge.
    #[inline]
    pub fn gauge_dec(&self, gauge: S) {
        plain_gauge_add(self.cell(gauge), -1);
    }

    /// Adds to this worker's part of a gauge, or takes from it.
    #[inline]
    pub fn gauge_add(&self, gauge: S, n: i64) {
        plain_gauge_add(self.cell(gauge), n);
    }

    /// Sets this worker's part of a gauge.
    #[inline]
    pub fn gauge_set(&self, gauge: S, value: u64) {
        self.cell(gauge).store(value << 1 | USED, Ordering::Relaxed);
    }

    /// Adds a sample to a histogram, in the unit that its name says (`_ms`: milliseconds).
    #[inline]
    pub fn record(&self, histogram: S, value: u64) {
        self.data.histograms[S::TABLE.defs[histogram.index()].slot as usize].record(value);
    }

    /// This worker's part of a counter.
    pub fn counter_value(&self, counter: S) -> u64 {
        self.cell(counter).load(Ordering::Relaxed)
    }

    /// This worker's part of a gauge.
    pub fn gauge_value(&self, gauge: S) -> u64 {
        gauge_value(self.cell(gauge).load(Ordering::Relaxed))
    }
}

/// A block that any thread may write: control threads, and what has no worker.
pub struct SharedBlock<S> {
    data: Arc<BlockData>,
    scope: Keep,
    _set: PhantomData<fn(S)>,
}

impl<S> Clone for SharedBlock<S> {
    fn clone(&self) -> Self {
        Self { data: self.data.clone(), scope: self.scope.clone(), _set: PhantomData }
    }
}

impl<S> std::fmt::Debug for SharedBlock<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedBlock").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<S: StatSet> SharedBlock<S> {
    pub(super) fn new(data: Arc<BlockData>, scope: Keep) -> Self {
        Self { data, scope, _set: PhantomData }
    }

    /// A block that no registry reports.
    pub fn detached() -> Self {
        Self::new(BlockData::new(S::TABLE), None)
    }

    fn cell(&self, stat: S) -> &AtomicU64 {
        &self.data.cells[S::TABLE.defs[stat.index()].slot as usize]
    }

    pub fn inc(&self, counter: S) {
        self.add(counter, 1);
    }

    pub fn add(&self, counter: S, n: u64) {
        self.cell(counter).fetch_add(n, Ordering::Relaxed);
    }

    pub fn gauge_inc(&self, gauge: S) {
        shared_gauge_add(self.cell(gauge), 1);
    }

    pub fn gauge_dec(&self, gauge: S) {
        shared_gauge_add(self.cell(gauge), -1);
    }

    pub fn gauge_add(&self, gauge: S, n: i64) {
        shared_gauge_add(self.cell(gauge), n);
    }

    pub fn gauge_set(&self, gauge: S, value: u64) {
        self.cell(gauge).store(value << 1 | USED, Ordering::Relaxed);
    }

    pub fn record(&self, histogram: S, value: u64) {
        self.data.histograms[S::TABLE.defs[histogram.index()].slot as usize].record_shared(value);
    }

    pub fn counter_value(&self, counter: S) -> u64 {
        self.cell(counter).load(Ordering::Relaxed)
    }

    pub fn gauge_value(&self, gauge: S) -> u64 {
        gauge_value(self.cell(gauge).load(Ordering::Relaxed))
    }
}

/// One worker's part of a counter with a name known at run time (`upstream_rq_503`).
#[derive(Debug, Clone)]
pub struct Counter {
    cell: Arc<AtomicU64>,
    _scope: Keep,
    _worker: PhantomData<Rc<()>>,
}

impl Counter {
    pub(super) fn new(cell: Arc<AtomicU64>, scope: Keep) -> Self {
        Self { cell, _scope: scope, _worker: PhantomData }
    }

    #[inline]
    pub fn inc(&self) {
        plain_add(&self.cell, 1);
    }

    #[inline]
    pub fn add(&self, n: u64) {
        plain_add(&self.cell, n);
    }
}

/// One worker's part of a gauge with a name known at run time.
#[derive(Debug, Clone)]
pub struct Gauge {
    cell: Arc<AtomicU64>,
    _scope: Keep,
    _worker: PhantomData<Rc<()>>,
}

impl Gauge {
    pub(super) fn new(cell: Arc<AtomicU64>, scope: Keep) -> Self {
        Self { cell, _scope: scope, _worker: PhantomData }
    }

    #[inline]
    pub fn inc(&self) {
        plain_gauge_add(&self.cell, 1);
    }

    #[inline]
    pub fn dec(&self) {
        plain_gauge_add(&self.cell, -1);
    }
}

/// One worker's part of a histogram with a name known at run time.
#[derive(Debug, Clone)]
pub struct WorkerHistogram {
    histogram: Arc<Histogram>,
    _scope: Keep,
    _worker: PhantomData<Rc<()>>,
}

impl WorkerHistogram {
    pub(super) fn new(histogram: Arc<Histogram>, scope: Keep) -> Self {
        Self { histogram, _scope: scope, _worker: PhantomData }
    }

    #[inline]
    pub fn record(&self, value: u64) {
        self.histogram.record(value);
    }
}

/// A counter that any thread may write.
#[derive(Debug, Clone)]
pub struct SharedCounter {
    cell: Arc<AtomicU64>,
    _scope: Keep,
}

impl SharedCounter {
    pub(super) fn new(cell: Arc<AtomicU64>, scope: Keep) -> Self {
        Self { cell, _scope: scope }
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.cell.fetch_add(n, Ordering::Relaxed);
    }
}

/// A gauge that any thread may write.
#[derive(Debug, Clone)]
pub struct SharedGauge {
    cell: Arc<AtomicU64>,
    _scope: Keep,
}

impl SharedGauge {
    pub(super) fn new(cell: Arc<AtomicU64>, scope: Keep) -> Self {
        Self { cell, _scope: scope }
    }

    pub fn add(&self, n: i64) {
        shared_gauge_add(&self.cell, n);
    }

    pub fn set(&self, value: u64) {
        self.cell.store(value << 1 | USED, Ordering::Relaxed);
    }
}

/// A text readout: a short string as a statistic (`control_plane.identifier`).
#[derive(Debug, Clone, Default)]
pub struct TextReadout(pub(super) Arc<OnceLock<Mutex<String>>>);

impl TextReadout {
    pub fn set(&self, value: &str) {
        let text = self.0.get_or_init(Mutex::default);
        value.clone_into(&mut text.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// `None` before it was set.
    pub(super) fn value(&self) -> Option<String> {
        self.0.get().map(|text| text.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
