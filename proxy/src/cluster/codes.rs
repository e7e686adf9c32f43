//! Response codes and times of a cluster on one worker, by who asked.

use std::cell::OnceCell;

use crate::stats::{ResponseCodes, Scope, Unit, WorkerHistogram};

/// `upstream_rq_<code>` and its kin: all, external or internal, canary.
#[derive(Debug)]
pub struct ClusterCodes {
    scope: Scope,
    worker: usize,
    all: ResponseCodes,
    external: OnceCell<ResponseCodes>,
    internal: OnceCell<ResponseCodes>,
    canary: OnceCell<ResponseCodes>,
    retry: OnceCell<ResponseCodes>,
    /// Response times: external, internal, canary.
    times: [OnceCell<WorkerHistogram>; 3],
}

impl ClusterCodes {
    pub fn new(scope: Scope, worker: usize) -> Self {
        Self {
            all: ResponseCodes::new(scope.clone(), worker, ""),
            scope,
            worker,
            external: OnceCell::new(),
            internal: OnceCell::new(),
            canary: OnceCell::new(),
            retry: OnceCell::new(),
            times: Default::default(),
        }
    }

    fn side(&self, internal: bool) -> &ResponseCodes {
        let (cell, prefix) =
            if internal { (&self.internal, "internal.") } else { (&self.external, "external.") };
        cell.get_or_init(|| ResponseCodes::new(self.scope.clone(), self.worker, prefix))
    }

    /// Counts one response.
    pub fn charge(&self, code: u16, internal: bool, canary: bool) {
        self.all.charge(code);
        self.side(internal).charge(code);
        if canary {
            let codes = || ResponseCodes::new(self.scope.clone(), self.worker, "canary.");
            self.canary.get_or_init(codes).charge(code);
        }
    }

    /// Counts a response that a retry has taken the place of: below `retry.` only.
    pub fn charge_retried(&self, code: u16) {
        let codes = || ResponseCodes::new(self.scope.clone(), self.worker, "retry.");
        self.retry.get_or_init(codes).charge(code);
    }

    /// Records how long a request took, in milliseconds.
    pub fn time(&self, internal: bool, canary: bool, ms: u64) {
        self.time_of(usize::from(internal), ms);
        if canary {
            self.time_of(2, ms);
        }
    }

    fn time_of(&self, side: usize, ms: u64) {
        let histogram = self.times[side].get_or_init(|| {
            let name = ["external.", "internal.", "canary."][side].to_owned() + "upstream_rq_time";
            self.scope.histogram(self.worker, &name, Unit::Milliseconds)
        });
        histogram.record(ms);
    }
}
