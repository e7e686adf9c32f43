//! `envoy.filters.http.fault`: delays, aborts and slow responses, for a share of requests, by the
//! configuration or by what `x-envoy-fault-*` headers ask for within it.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rustc_hash::FxHashMap;

mod settings;

use self::settings::{Settings, compile_settings, downstream_cluster};
use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::codec::head::HeaderList;
use crate::config::compile::core::unpack_any;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::google::protobuf::Any;
use crate::hcm::HcmScope;
use crate::hcm::local_reply::LocalReply;
use crate::metrics;
use crate::stats::{Scope, SharedBlock, SharedCounter};
use crate::stream_info::ResponseFlags;

pub const TYPE: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
pub const PER_ROUTE_TYPE: &str = TYPE;

metrics! {
    /// Injected faults (`http.<prefix>.fault`).
    pub enum FaultStat {
        AbortsInjected: counter "aborts_injected",
        ActiveFaults: gauge "active_faults",
        DelaysInjected: counter "delays_injected",
        FaultsOverflow: counter "faults_overflow",
        ResponseRlInjected: counter "response_rl_injected",
    }
}

/// The filter's configuration and its counters, which all workers share: faults are rare.
#[derive(Debug)]
pub struct Config {
    settings: Settings,
    stats: OnceLock<SharedBlock<FaultStat>>,
    /// Counters of the clients' clusters that had a fault. A new one makes a new map; reading takes no lock.
    clusters: ArcSwap<FxHashMap<Arc<str>, Arc<ClusterCounters>>>,
}

/// Clients name their clusters themselves: no more than this are counted apart.
const MAX_CLUSTERS: usize = 1000;
/// Nor names longer than this, in bytes.
const MAX_CLUSTER_NAME: usize = 256;

/// `fault.<cluster>`: each counter is made when it first counts.
#[derive(Debug)]
struct ClusterCounters {
    scope: Scope,
    aborts: OnceLock<SharedCounter>,
    delays: OnceLock<SharedCounter>,
}

impl ClusterCounters {
    fn inc(&self, stat: FaultStat) {
        let (place, name) = match stat {
            FaultStat::AbortsInjected => (&self.aborts, "aborts_injected"),
            FaultStat::DelaysInjected => (&self.delays, "delays_injected"),
            // Envoy counts no other by cluster.
            _ => return,
        };
        place.get_or_init(|| self.scope.shared_counter(name)).inc();
    }
}

impl Config {
    /// See `chain::FilterConfig::declare`.
    pub fn declare(&self, hcm: &HcmScope) {
        self.stats(hcm);
    }

    fn stats(&self, hcm: &HcmScope) -> &SharedBlock<FaultStat> {
        self.stats.get_or_init(|| hcm.scope.scope("fault").shared())
    }

    fn count_of_cluster(&self, cluster: &str, hcm: &HcmScope, stat: FaultStat) {
        let known = self.clusters.load();
        if let Some(counters) = known.get(cluster) {
            counters.inc(stat);
            return;
        }
        if known.len() >= MAX_CLUSTERS || cluster.len() > MAX_CLUSTER_NAME {
            return;
        }
        let counters = Arc::new(ClusterCounters {
            scope: hcm.scope.scope(&format!("fault.{cluster}")),
            aborts: OnceLock::new(),
            delays: OnceLock::new(),
        });
        counters.inc(stat);
        let name: Arc<str> = cluster.into();
        self.clusters.rcu(|known| {
            let mut more = FxHashMap::clone(known);
            // Another worker's may be there first: both count in the same scope.
            more.entry(name.clone()).or_insert_with(|| counters.clone());
            more
        });
    }
}

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    let settings = compile_settings(&unpack_any(any, path)?, path)?;
    Some(Arc::new(Config { settings, stats: OnceLock::new(), clusters: ArcSwap::default() }))
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    Some(Arc::new(compile_settings(&unpack_any(any, path)?, path)?))
}

/// One stream.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    stage: Stage,
    /// Counted in `active_faults`.
    active: bool,
    pace: Option<Pace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    /// The delay's timer runs or has fired.
    Delayed,
}

/// A response that is slowed down.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    /// What was sent before is through by then.
    free_at: Option<Instant>,
    /// The frame that waits has been counted.
    counted: bool,
}

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self { config: config.clone(), stage: Stage::New, active: false, pace: None }
    }

    fn stats(&self, cx: &FilterContext<'_>) -> &SharedBlock<FaultStat> {
        self.config.stats(cx.hcm_stats)
    }

    /// Counts an injected fault, once as an active one.
    fn count(&mut self, cx: &mut FilterContext<'_>, stat: FaultStat) {
        let stats = self.stats(cx);
        stats.inc(stat);
        if !self.active {
            stats.gauge_inc(FaultStat::ActiveFaults);
        }
        self.active = true;
        let settings = cx.per_route::<Settings>().unwrap_or(&self.config.settings);
        let metadata = settings.metadata.clone();
        if settings.cluster_stats
            && let Some(cluster) = downstream_cluster(cx.request)
        {
            self.config.count_of_cluster(cluster, cx.hcm_stats, stat);
        }
        *cx.info.metadata_mut("envoy.filters.http.fault") = metadata;
    }

    fn abort(&mut self, cx: &mut FilterContext<'_>) -> Flow {
        let random = cx.worker.random();
        let settings = cx.per_route::<Settings>().unwrap_or(&self.config.settings);
        let Some((status, grpc_status)) = settings.abort(cx.request, random) else {
            return Flow::Continue;
        };
        let body = settings.response_body.clone();
        self.count(cx, FaultStat::AbortsInjected);
        let mut reply = LocalReply::new(status, "fault_filter_abort")
            .body(body)
            .flag(ResponseFlags::FAULT_INJECTED);
        reply.grpc_status = grpc_status;
        Flow::Reply(Box::new(reply))
    }
}

fn wait_until(cx: &FilterContext<'_>, deadline: Instant) -> Flow {
    let mut timer = cx.worker.timers.timer();
    timer.arm(deadline);
    // Cancel-safe: dropping the future disarms the timer.
    Flow::Wait(Box::pin(async move { poll_fn(|cx| timer.poll(cx)).await }))
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        if self.stage == Stage::Delayed {
            return self.abort(cx);
        }
        cx.route.resolve(cx.request);
        let settings = cx.per_route::<Settings>().unwrap_or(&self.config.settings);
        if settings.is_idle() && settings.max_active.is_none() {
            return Flow::Continue;
        }
        let stats = self.stats(cx);
        if stats.gauge_value(FaultStat::ActiveFaults) >= settings.max_active() {
            stats.inc(FaultStat::FaultsOverflow);
            return Flow::Continue;
        }
        if !settings.wants(cx) {
            return Flow::Continue;
        }
        let rate = settings.response_rate(cx.request, cx.worker.random());
        let delay = settings.delay(cx.request, cx.worker.random());
        if let Some(bytes_per_second) = rate {
            self.pace = Some(Pace { bytes_per_second, free_at: None, counted: false });
            let stats = self.stats(cx);
            stats.inc(FaultStat::ResponseRlInjected);
            if !std::mem::replace(&mut self.active, true) {
                self.stats(cx).gauge_inc(FaultStat::ActiveFaults);
            }
        }
        match delay {
            Some(delay) => {
                self.stage = Stage::Delayed;
                self.count(cx, FaultStat::DelaysInjected);
                cx.info.flags.insert(ResponseFlags::DELAY_INJECTED);
                wait_until(cx, cx.now + delay)
            }
            None => self.abort(cx),
        }
    }

    fn on_response_data(
        &mut self,
        cx: &mut FilterContext<'_>,
        data: &mut Bytes,
        _end: bool,
    ) -> Flow {
        let Some(pace) = &mut self.pace else { return Flow::Continue };
        if !std::mem::replace(&mut pace.counted, true) {
            let nanos = data.len() as u64 * 1_000_000_000 / pace.bytes_per_second.max(1);
            let from = pace.free_at.map_or(cx.now, |at| at.max(cx.now));
            pace.free_at = Some(from + Duration::from_nanos(nanos));
        }
        match pace.free_at {
            Some(deadline) if deadline > cx.now => wait_until(cx, deadline),
            _ => {
                pace.counted = false;
                Flow::Continue
            }
        }
    }

    fn on_response_trailers(&mut self, _: &mut FilterContext<'_>, _: &mut HeaderList) -> Flow {
        Flow::Continue
    }

    fn on_end(&mut self, cx: &mut FilterContext<'_>) {
        if std::mem::take(&mut self.active) {
            self.stats(cx).gauge_dec(FaultStat::ActiveFaults);
        }
    }

    fn wants_response_frames(&self) -> bool {
        self.pace.is_some()
    }
}

/// Of a stream whose task has panicked.
impl Drop for Filter {
    fn drop(&mut self) {
        if self.active
            && let Some(stats) = self.config.stats.get()
        {
            stats.gauge_dec(FaultStat::ActiveFaults);
        }
    }
}

#[cfg(test)]
mod tests;
