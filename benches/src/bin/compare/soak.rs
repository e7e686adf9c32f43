//! Millions of requests through one process: its memory must not grow.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::load;
use crate::procfs;
use crate::report::{Measurement, Unit};
use crate::scenario::{Lab, Scenario, Work};
use crate::throughput::start_all;

/// Requests of the whole run.
const REQUESTS: u64 = 10_000_000;
/// Load of one step, after which memory is looked at.
const STEP: Duration = Duration::from_secs(10);

/// Loads each proxy, one after the other, and compares its memory after the first step with that
/// at the end.
pub fn run(lab: &Lab, scenario: &Scenario) -> Result<Vec<Measurement>> {
    const MEBIBYTE: f64 = 1024.0 * 1024.0;
    let cores = lab.load_cores(scenario.workers);
    let work = Work::Wrk { connections: 32, path: "/" };
    let mut measured = Vec::new();
    for proxy in start_all(lab, scenario)? {
        let mut new = |metric, sample| {
            let mut m = Measurement::new(scenario.name, metric, Unit::Mebibytes, proxy.name);
            m.samples.push(sample);
            measured.push(m);
        };
        let mut first = None;
        let mut last = 0.0;
        let mut requests = 0;
        while requests < REQUESTS {
            requests += load::run(lab, &work, proxy.port, &cores, STEP)
                .with_context(|| format!("{} after {requests} requests", proxy.name))?
                .requests;
            last = procfs::memory(proxy.pid())?.resident as f64 / MEBIBYTE;
            eprintln!("  {} {requests} requests, {last:.1} MiB", proxy.name);
            first.get_or_insert(last);
        }
        new("resident at first", first.unwrap_or_default());
        new("resident at last", last);
        new("growth", last - first.unwrap_or_default());
    }
    Ok(measured)
}
