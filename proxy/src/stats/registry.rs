//! All scopes of the process, by prefix. A scope lives as long as somebody holds it: a removed cluster's
//! statistics vanish with its last user, and two users of one prefix count into the same cells.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::bins::{Bins, DEFAULT_BOUNDS};
use super::block::BlockData;
use super::definition::StatTable;
use super::scope::{Scope, ScopeInner};
use crate::config::stats::StatsConfig;

/// Locks; a poisoned lock is taken as it is, since statistics hold no invariant worth dying for.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Recomputes gauges that somebody must compute (uptime, memory) before they are read.
type Refresh = Box<dyn Fn() + Send>;

/// Key of state that only few statistics have: scope prefix and name.
pub(super) type SeriesKey = (Arc<str>, Box<str>);

/// What a text reader saw of a histogram, for the interval column.
#[derive(Debug, Clone)]
pub(super) struct IntervalState {
    pub(super) at: Instant,
    /// Cumulative counts at `at`.
    pub(super) base: Bins,
    /// Counts of the interval that ended at `at`.
    pub(super) interval: Bins,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) config: StatsConfig,
    scopes: Mutex<BTreeMap<Arc<str>, Weak<ScopeInner>>>,
    /// Scopes of the process as a whole, which never go.
    process: Mutex<Vec<Arc<ScopeInner>>>,
    /// Blocks behind tables that the stats matcher rejects whole, by table and writer.
    discarded: Mutex<HashMap<(usize, u16), Arc<BlockData>>>,
    refresh: Mutex<Vec<Refresh>>,
    /// Counter values at the last `/reset_counters`; empty before the first.
    pub(super) baseline: Mutex<HashMap<SeriesKey, u64>>,
    pub(super) intervals: Mutex<HashMap<SeriesKey, IntervalState>>,
    /// A downstream connection spoke HTTP/2.
    pub(super) http2: AtomicBool,
    /// Names interned since the start (`server.stats_recent_lookups`).
    pub(super) lookups: AtomicU64,
}

/// The process's statistics; cheap to clone.
#[derive(Clone, Default)]
pub struct Registry(pub(super) Arc<Inner>);

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("scopes", &lock(&self.0.scopes).len()).finish()
    }
}

/// Names as Envoy keeps them: a colon is an underscore (`127.0.0.1_80`), no dots at the ends.
pub fn sanitize(name: &str) -> String {
    name.trim_matches('.').replace([':', '\0'], "_")
}

impl Registry {
    pub fn new(config: StatsConfig) -> Self {
        Self(Arc::new(Inner { config, ..Inner::default() }))
    }

    pub fn config(&self) -> &StatsConfig {
        &self.0.config
    }

    /// The scope with this prefix (`cluster.foo`, no trailing dot; "" is the root), made when there is none.
    /// Characters that Envoy replaces in names are replaced here.
    pub fn scope(&self, prefix: &str) -> Scope {
        let mut key = sanitize(prefix);
        if !key.is_empty() {
            key.push('.');
        }
        let mut scopes = lock(&self.0.scopes);
        if let Some(scope) = scopes.get(key.as_str()).and_then(Weak::upgrade) {
            return Scope(scope);
        }
        let key: Arc<str> = key.into();
        let scope = Arc::new(ScopeInner::new(key.clone(), self.0.clone()));
        if is_process_wide(&key) {
            lock(&self.0.process).push(scope.clone());
        }
        scopes.insert(key, Arc::downgrade(&scope));
        Scope(scope)
    }

    /// Runs `refresh` before each read: for gauges that must be computed.
    pub fn before_read(&self, refresh: impl Fn() + Send + 'static) {
        lock(&self.0.refresh).push(Box::new(refresh));
    }

    pub(crate) fn refresh(&self) {
        for refresh in lock(&self.0.refresh).iter() {
            refresh();
        }
    }

    /// All scopes, in the order of their prefixes.
    pub(super) fn scopes(&self) -> Vec<Arc<ScopeInner>> {
        lock(&self.0.scopes).values().filter_map(Weak::upgrade).collect()
    }

    /// Names resolved since the start (`server.stats_recent_lookups`).
    pub fn lookups(&self) -> u64 {
        self.0.lookups.load(Ordering::Relaxed)
    }

    /// Counts them from 0 again.
    pub fn forget_lookups(&self) {
        self.0.lookups.store(0, Ordering::Relaxed);
    }

    /// Bucket bounds of a histogram by its name.
    pub(super) fn bounds(&self, name: &str) -> &[f64] {
        let rule = self.0.config.buckets.iter().find(|rule| rule.matcher.matches(name.as_bytes()));
        rule.filter(|rule| !rule.bounds.is_empty()).map_or(&DEFAULT_BOUNDS, |rule| &rule.bounds)
    }

    /// The samples of the last whole interval. Nothing ticks: an interval ends when somebody reads and
    /// `stats_flush_interval` has passed since the last one ended.
    pub(super) fn interval(&self, prefix: &Arc<str>, name: &str, cumulative: &Bins) -> Bins {
        if cumulative.is_empty() {
            return Bins::default();
        }
        let mut intervals = lock(&self.0.intervals);
        let now = Instant::now();
        let state = intervals.entry((prefix.clone(), name.into())).or_insert_with(|| {
            IntervalState { at: now, base: cumulative.clone(), interval: cumulative.clone() }
        });
        if now.duration_since(state.at) >= self.0.config.flush_interval {
            state.interval = cumulative.since(&state.base);
            state.base = cumulative.clone();
            state.at = now;
        }
        state.interval.clone()
    }

    /// Sets all counters to zero (`POST /reset_counters`): workers' cells stay, what they hold now is subtracted.
    pub fn reset_counters(&self) {
        let mut baseline = HashMap::new();
        for scope in self.scopes() {
            scope.for_each_counter(&mut |name, raw| {
                if raw > 0 {
                    baseline.insert((scope.prefix.clone(), name.into()), raw);
                }
            });
        }
        *lock(&self.0.baseline) = baseline;
        lock(&self.0.intervals).clear();
    }
}

impl Inner {
    /// False when the stats matcher keeps a statistic from existing.
    pub(super) fn accepts(&self, prefix: &str, name: &str) -> bool {
        self.config.matcher.is_accept_all()
            || self.config.matcher.accepts(&format!("{prefix}{name}"))
    }

    pub(super) fn discarded(&self, table: &'static StatTable, writer: u16) -> Arc<BlockData> {
        let key = (std::ptr::from_ref(table) as usize, writer);
        lock(&self.discarded).entry(key).or_insert_with(|| BlockData::new(table)).clone()
    }

    pub(super) fn forget(&self, prefix: &Arc<str>) {
        let mut scopes = lock(&self.scopes);
        if scopes.get(prefix).is_some_and(|scope| scope.strong_count() == 0) {
            scopes.remove(prefix);
        }
        drop(scopes);
        forget_scope(&self.baseline, prefix);
        forget_scope(&self.intervals, prefix);
    }

    pub(super) fn count_lookup(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }
}

/// Scopes that no configuration makes (`server.`, `http2.`, `dns.cares.`): they stay, whoever lets go of them.
fn is_process_wide(prefix: &str) -> bool {
    let mut tokens = prefix.split_terminator('.');
    match (tokens.next(), tokens.next()) {
        (Some(_), None) => true,
        (Some(first), Some(_)) => {
            matches!(first, "server" | "dns" | "thread_local_cluster_manager" | "envoy")
        }
        (None, _) => false,
    }
}

/// Drops what is kept about a scope that is gone.
fn forget_scope<T>(map: &Mutex<HashMap<SeriesKey, T>>, prefix: &Arc<str>) {
    let mut map = lock(map);
    if !map.is_empty() {
        map.retain(|(of, _), _| !Arc::ptr_eq(of, prefix));
    }
}
