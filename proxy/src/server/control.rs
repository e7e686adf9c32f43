//! The control thread as a worker without listeners: what it asks of clusters (gRPC streams to a control plane) goes
//! through the same pools, balancers and statistics as traffic.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rand::Rng as _;

use crate::access_log::{AccessLogWriter, WorkerAccessLogs};
use crate::cluster::{ClusterMap, WorkerClusters};
use crate::hcm::request_headers::LocalInfo;
use crate::stats::Registry;
use crate::worker::WorkerContext;
use crate::worker::timers::Timers;

/// Makes the control thread's context and starts its timers; inside of the thread's `LocalSet`. `index` is one past
/// the last worker's.
pub fn start_context(
    index: usize,
    clusters: Arc<ClusterMap>,
    registry: Registry,
    access_log: Arc<AccessLogWriter>,
    local: Arc<LocalInfo>,
) -> Rc<WorkerContext> {
    let timers = Timers::new(Instant::now());
    let mut seeds = rand::rng();
    let clusters = WorkerClusters::new(clusters, index, timers.clone(), seeds.random());
    let access_logs = WorkerAccessLogs::new(access_log, index);
    let driven = timers.clone();
    tokio::task::spawn_local(async move { driven.drive().await });
    Rc::new(WorkerContext::new(
        index,
        timers,
        clusters,
        registry,
        access_logs,
        local,
        seeds.random(),
    ))
}
