//! Latency at a fixed rate below Envoy's saturation, less that of the direct path.
//!
//! The proxies keep their core to themselves; load and backend run on the others, because a load
//! generator that queues behind the proxy for the same core measures the scheduler.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child::pinned;
use crate::load;
use crate::open_loop::Outcome;
use crate::peer::{Name, Running};
use crate::report::{Measurement, Unit};
use crate::scenario::{Lab, Scenario, Work};
use crate::throughput::start_all;

const CONNECTIONS: usize = 32;

/// In each round finds Envoy's saturation rate (a host's speed changes) and sends that percentage
/// of it to each proxy in turn.
pub fn run(lab: &Lab, scenario: &Scenario, percent: u32) -> Result<Vec<Measurement>> {
    let lab = &lab.split()?;
    let cores = lab.load_cores(scenario.workers);
    let mut running = start_all(lab, scenario)?;
    let mut names: Vec<Name> = running.iter().map(|proxy| proxy.name).collect();
    names.insert(0, Name::Direct);
    let new = |metric, name| Measurement::new(scenario.name, metric, Unit::Micros, name);
    let mut p50: Vec<_> = names.iter().map(|name| new("p50 raw", *name)).collect();
    let mut p99: Vec<_> = names.iter().map(|name| new("p99 raw", *name)).collect();
    for round in 0..lab.rounds {
        let saturation = saturation(lab, &running, &cores)?;
        let rate = saturation * f64::from(percent) / 100.0;
        let mut line = format!("  round {}/{} at {rate:.0} 1/s:", round + 1, lab.rounds);
        let proxies = running.iter().map(|proxy| (proxy.name, proxy.port));
        for (name, port) in [(Name::Direct, lab.backend.port)].into_iter().chain(proxies) {
            let outcome = open_loop(port, &cores, rate, lab.duration)
                .with_context(|| format!("{name} at {rate:.0} requests/s"))?;
            for (list, sample) in [(&mut p50, outcome.p50), (&mut p99, outcome.p99)] {
                let found = list.iter_mut().find(|m| m.peer == name);
                found.context("a measurement for each proxy")?.samples.push(sample);
            }
            line += &format!(" {name} p50 {:.0} p99 {:.0} us", outcome.p50, outcome.p99);
        }
        eprintln!("{line}");
        running.rotate_left(1);
    }
    let mut measured = above_direct(&p50, "p50")?;
    measured.extend(above_direct(&p99, "p99")?);
    measured.extend(p50);
    measured.extend(p99);
    Ok(measured)
}

/// Envoy's requests per second under wrk; that of the first proxy when Envoy is absent.
fn saturation(lab: &Lab, running: &[Running], cores: &str) -> Result<f64> {
    let proxy = running
        .iter()
        .find(|proxy| proxy.name == Name::Envoy)
        .or_else(|| running.first())
        .context("no proxy runs")?;
    let work = Work::Wrk { connections: CONNECTIONS, path: "/" };
    Ok(load::run(lab, &work, proxy.port, cores, Duration::from_secs(2))?.rate)
}

fn open_loop(port: u16, cores: &str, rate: f64, duration: Duration) -> Result<Outcome> {
    let address = SocketAddr::from(([127, 0, 0, 1], port)).to_string();
    let own = std::env::current_exe()?;
    let output = pinned(cores, Path::new(&own))
        .args(["open-loop", "--address", &address, "--rate", &rate.to_string()])
        .args(["--connections", &CONNECTIONS.to_string()])
        .args(["--duration", &duration.as_secs_f64().to_string()])
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Each round's latency less the direct path's of the same round.
fn above_direct(raw: &[Measurement], metric: &'static str) -> Result<Vec<Measurement>> {
    let direct = raw.iter().find(|m| m.peer == Name::Direct).context("no direct path")?;
    let proxies = raw.iter().filter(|m| m.peer != Name::Direct);
    Ok(proxies
        .map(|proxy| Measurement {
            metric,
            samples: proxy.samples.iter().zip(&direct.samples).map(|(a, b)| a - b).collect(),
            ..proxy.clone()
        })
        .collect())
}
