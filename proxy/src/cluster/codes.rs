//! Response codes and times of a cluster on one worker, by who asked.

use std::cell::OnceCell;

use crate::stats::{ResponseCodes, Scope, Unit, WorkerHistogram};

/// `upstream_rq_<code>` and its kin: all, external or internal, canary.
#[derive(Debug)]
pub struct ClusterCodes {
    scope: Scope,
    worker: usize,
    all: ResponseCodes,
    external: OnceCell<(ResponseCodes, WorkerHistogram)>,
    internal: OnceCell<(ResponseCodes, WorkerHistogram)>,
    canary: OnceCell<ResponseCodes>,
    retry: OnceCell<ResponseCodes>,
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
        }
    }

    fn side(&self, internal: bool) -> &(ResponseCodes, WorkerHistogram) {
        let (cell, prefix) =
            if internal { (&self.internal, "internal.") } else { (&self.external, "external.") };
        cell.get_or_init(|| {
            let codes = ResponseCodes::new(self.scope.clone(), self.worker, prefix);
            let name = format!("{prefix}upstream_rq_time");
            (codes, self.scope.histogram(self.worker, &name, Unit::Milliseconds))
        })
    }

    /// Counts one response.
    pub fn charge(&self, code: u16, internal: bool, canary: bool) {
        self.all.charge(code);
        self.side(internal).0.charge(code);
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
    pub fn time(&self, internal: bool, ms: u64) {
        self.side(internal).1.record(ms);
    }
}
