//! Response code statistics: `<prefix>upstream_rq_200`, `…_2xx`, and their kin, made when a code is first seen.

use std::cell::RefCell;

use smallvec::SmallVec;

use super::block::Counter;
use super::scope::Scope;

/// Counters by response code of one prefix on one worker, as Envoy's `CodeStatsImpl` charges them:
/// `upstream_rq_completed` (only below a prefix such as `external.`: without one it belongs to `ClusterStat`),
/// `upstream_rq_<class>xx`, `upstream_rq_<code>`.
#[derive(Debug)]
pub struct ResponseCodes {
    scope: Scope,
    worker: usize,
    prefix: &'static str,
    /// The few codes that a service answers with, newest last.
    seen: RefCell<SmallVec<[(u16, CodeCounters); 2]>>,
}

#[derive(Debug, Clone)]
struct CodeCounters {
    completed: Option<Counter>,
    class: Option<Counter>,
    code: Counter,
}

impl ResponseCodes {
    /// `prefix` is "" or one with its dot: `external.`, `internal.`, `canary.`.
    pub fn new(scope: Scope, worker: usize, prefix: &'static str) -> Self {
        Self { scope, worker, prefix, seen: RefCell::default() }
    }

    /// Counts one response; a few compares once the code was seen.
    pub fn charge(&self, code: u16) {
        let mut seen = self.seen.borrow_mut();
        let index = seen.iter().position(|(of, _)| *of == code).unwrap_or_else(|| {
            seen.push((code, self.resolve(code)));
            seen.len() - 1
        });
        let counters = &seen[index].1;
        counters.completed.iter().for_each(Counter::inc);
        counters.class.iter().for_each(Counter::inc);
        counters.code.inc();
    }

    fn resolve(&self, code: u16) -> CodeCounters {
        let counter =
            |name: String| self.scope.counter(self.worker, &format!("{}{name}", self.prefix));
        CodeCounters {
            completed: (!self.prefix.is_empty()).then(|| counter("upstream_rq_completed".into())),
            class: (100..600)
                .contains(&code)
                .then(|| counter(format!("upstream_rq_{}xx", code / 100))),
            code: match code {
                100..600 => counter(format!("upstream_rq_{code}")),
                _ => counter("upstream_rq_unknown".into()),
            },
        }
    }
}
