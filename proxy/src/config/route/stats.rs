//! What a virtual cluster, or a route with a `stat_prefix`, counts beside its cluster.
//!
//! Part of a compiled table, which all workers share and which does not know of them: any of them writes the same cells.

use std::sync::OnceLock;

use crate::stats::names::{RouteStat, RouteTimeStat};
use crate::stats::{Registry, Scope, SharedBlock, SharedCounter};

/// See the module. Nothing is there before `declare`.
pub struct RouteStats {
    prefix: Box<str>,
    made: OnceLock<Made>,
}

struct Made {
    scope: Scope,
    counters: SharedBlock<RouteStat>,
    times: OnceLock<SharedBlock<RouteTimeStat>>,
    completed: OnceLock<SharedCounter>,
    /// 1xx to 5xx.
    classes: [OnceLock<Class>; 5],
}

struct Class {
    all: SharedCounter,
    codes: Box<[OnceLock<SharedCounter>]>,
}

impl std::fmt::Debug for RouteStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteStats").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl RouteStats {
    /// `prefix` without a dot at its end.
    pub fn new(prefix: String) -> Self {
        Self { prefix: prefix.into(), made: OnceLock::new() }
    }

    /// Makes the counters exist at zero.
    pub fn declare(&self, registry: &Registry) {
        self.made.get_or_init(|| {
            let scope = registry.scope(&self.prefix);
            Made {
                counters: scope.shared(),
                scope,
                times: OnceLock::new(),
                completed: OnceLock::new(),
                classes: Default::default(),
            }
        });
    }

    /// Counts one.
    pub fn inc(&self, stat: RouteStat) {
        if let Some(made) = self.made.get() {
            made.counters.inc(stat);
        }
    }

    /// Counts one response.
    pub fn charge(&self, code: u16) {
        let Some(made) = self.made.get() else { return };
        let counter = |name: &str| made.scope.shared_counter(name);
        made.completed.get_or_init(|| counter("upstream_rq_completed")).inc();
        let class = usize::from(code / 100).checked_sub(1).and_then(|n| made.classes.get(n));
        let Some(class) = class else { return };
        let class = class.get_or_init(|| Class {
            all: counter(&format!("upstream_rq_{}xx", code / 100)),
            codes: (0..100).map(|_| OnceLock::new()).collect(),
        });
        class.all.inc();
        let one = &class.codes[usize::from(code % 100)];
        one.get_or_init(|| counter(&format!("upstream_rq_{code}"))).inc();
    }

    /// Records how long a request took, in milliseconds.
    pub fn time(&self, ms: u64) {
        if let Some(made) = self.made.get() {
            let times = made.times.get_or_init(|| made.scope.shared());
            times.record(RouteTimeStat::UpstreamRqTime, ms);
        }
    }
}
