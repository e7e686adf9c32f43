//! gRPC statistics of a cluster on one worker, as the filter `grpc_stats` charges them: below `grpc.`, or below
//! `grpc.<service>.<method>.` for methods that are told apart.

use std::cell::RefCell;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::stats::{Block, Counter, Scope};

/// Methods of a cluster that get statistics of their own; their names come from the network. What comes then is counted
/// with those that are not told apart.
const MAX_METHODS: usize = 1000;

crate::metrics! {
    /// `cluster.<name>.grpc.[<service>.<method>.]`
    pub enum GrpcStat {
        Success: counter "success" lazy,
        Failure: counter "failure" lazy,
        Total: counter "total" lazy,
        RequestMessages: counter "request_message_count" lazy,
        ResponseMessages: counter "response_message_count" lazy,
        UpstreamRqTime: histogram "upstream_rq_time" ms lazy,
    }
}

/// Calls of one name.
#[derive(Debug)]
pub struct GrpcCounters {
    pub stats: Block<GrpcStat>,
    scope: Scope,
    worker: usize,
    /// By status, those seen.
    statuses: RefCell<SmallVec<[(u16, Counter); 2]>>,
}

impl GrpcCounters {
    fn new(scope: Scope, worker: usize) -> Self {
        Self { stats: scope.block(worker), scope, worker, statuses: RefCell::default() }
    }

    /// Counts the end of a call by its `grpc-status`. A status that is no number below 1000 has no counter of its own.
    pub fn charge(&self, status: &[u8]) {
        let number = std::str::from_utf8(status).ok().and_then(|text| text.parse::<u16>().ok());
        if let Some(number) = number.filter(|number| *number < 1000) {
            let mut statuses = self.statuses.borrow_mut();
            let known = statuses.iter().position(|(of, _)| *of == number);
            let at = known.unwrap_or_else(|| {
                statuses.push((number, self.scope.counter(self.worker, &number.to_string())));
                statuses.len() - 1
            });
            statuses[at].1.inc();
        }
        self.stats.inc(if status == b"0" { GrpcStat::Success } else { GrpcStat::Failure });
        self.stats.inc(GrpcStat::Total);
    }
}

/// A cluster's calls.
#[derive(Debug)]
pub struct GrpcCalls {
    /// `cluster.<name>.grpc`.
    scope: Scope,
    worker: usize,
    /// Those not told apart.
    all: Rc<GrpcCounters>,
    /// By `service/method`: as they are, and with underscores for the dots of a service.
    methods: [RefCell<FxHashMap<Box<str>, Rc<GrpcCounters>>>; 2],
}

impl GrpcCalls {
    /// `scope` is `cluster.<name>.grpc`.
    pub fn new(scope: Scope, worker: usize) -> Self {
        let all = Rc::new(GrpcCounters::new(scope.clone(), worker));
        Self { scope, worker, all, methods: Default::default() }
    }

    /// Of calls that are not told apart.
    pub fn all(&self) -> Rc<GrpcCounters> {
        self.all.clone()
    }

    /// Of the calls of one method, a path `service/method`.
    pub fn method(&self, path: &str, replace_dots: bool) -> Rc<GrpcCounters> {
        let mut methods = self.methods[usize::from(replace_dots)].borrow_mut();
        if let Some(known) = methods.get(path) {
            return known.clone();
        }
        if methods.len() >= MAX_METHODS {
            return self.all();
        }
        let (service, method) = path.split_once('/').unwrap_or((path, ""));
        let service = if replace_dots { service.replace('.', "_") } else { service.to_owned() };
        let scope = self.scope.scope(&format!("{service}.{method}"));
        let counters = Rc::new(GrpcCounters::new(scope, self.worker));
        methods.insert(path.into(), counters.clone());
        counters
    }
}
