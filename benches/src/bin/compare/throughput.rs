//! Scenarios at saturation: CPU time per request and requests per second.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::load;
use crate::peer::{Job, Running};
use crate::report::{Measurement, Unit};
use crate::scenario::{Lab, Scenario, Work};

/// Loads each proxy in turn, `lab.rounds` times in a rotating order.
pub fn run(lab: &Lab, scenario: &Scenario, work: &Work) -> Result<Vec<Measurement>> {
    let cores = lab.load_cores(scenario.workers);
    let mut running = start_all(lab, scenario)?;
    if let (Some(floor), Work::Wrk { path: "/", .. }, Job::Router | Job::Sidecar) =
        (&lab.floor, work, scenario.job)
        && scenario.workers == 1
    {
        running.push(floor.start_floor(lab)?);
    }
    for proxy in &running {
        load::run(lab, work, proxy.port, &cores, Duration::from_secs(1))
            .with_context(|| format!("{} does not answer", proxy.name))?;
    }
    let metrics = [
        ("cpu", Unit::Micros),
        ("cpu user", Unit::Micros),
        ("cpu system", Unit::Micros),
        ("rate", Unit::PerSecond),
    ];
    let mut measured = Vec::new();
    for (metric, unit) in metrics {
        for proxy in &running {
            measured.push(Measurement::new(scenario.name, metric, unit, proxy.name));
        }
    }
    for round in 0..lab.rounds {
        let mut line = format!("  round {}/{}:", round + 1, lab.rounds);
        for proxy in &running {
            let before = proxy.cpu()?;
            let load = load::run(lab, work, proxy.port, &cores, lab.duration)
                .with_context(|| proxy.name.to_string())?;
            let used = proxy.cpu()?.since(before);
            let each = |time: Duration| time.as_secs_f64() * 1e6 / load.requests as f64;
            let samples = [each(used.total()), each(used.user), each(used.system), load.rate];
            for ((metric, _), sample) in metrics.iter().zip(samples) {
                let found = measured.iter_mut().find(|m| m.is(metric, proxy.name));
                found.context("a measurement for each metric")?.samples.push(sample);
            }
            line += &format!(" {} {:.2} us", proxy.name, samples[0]);
        }
        eprintln!("{line}");
        running.rotate_left(1);
    }
    Ok(measured)
}

/// Starts every proxy for the scenario's job; one that fails is left out with a note.
pub fn start_all(lab: &Lab, scenario: &Scenario) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for peer in &lab.peers {
        match peer.start(lab, scenario.job, scenario.workers) {
            Ok(proxy) => running.push(proxy),
            Err(error) => eprintln!("  {} left out: {error:#}", peer.name),
        }
    }
    anyhow::ensure!(!running.is_empty(), "no proxy started");
    Ok(running)
}
