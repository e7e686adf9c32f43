//! Side-by-side comparison of Outrigger with Envoy and HAProxy.
//!
//! nginx is the backend and wrk, h2load or a built-in open-loop client the load. All proxies of a
//! scenario run at the same time and take turns under load, in an order that rotates with each
//! round, so that a noisy host disturbs all of them alike. What survives the noise is the proxy's
//! CPU time per request; everything on one core is the steadiest form.

mod args;
mod backend;
mod certificates;
mod child;
mod floor;
mod handshakes;
mod idle;
mod idle_tls;
mod latency;
mod load;
mod open_loop;
mod peer;
mod procfs;
mod report;
mod scale;
mod scenario;
mod soak;
mod throughput;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Args, Command};
use crate::report::Report;
use crate::scenario::{Kind, SCENARIOS};

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.command {
        Some(Command::OpenLoop(spec)) => open_loop::main(spec),
        Some(Command::Handshakes(spec)) => handshakes::main(spec),
        Some(Command::Floor(spec)) => floor::main(spec),
        None => compare(&args),
    };
    child::kill_all();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the chosen scenarios and prints the table; a scenario that fails is reported and skipped.
fn compare(args: &Args) -> Result<()> {
    child::kill_all_on_signal()?;
    let lab = scenario::Lab::new(args)?;
    let mut report = Report::new(&lab);
    for scenario in SCENARIOS.iter().filter(|scenario| args.wants(scenario)) {
        eprintln!("{}: {}", scenario.name, scenario.about);
        let measured = match scenario.kind {
            Kind::Throughput(ref work) => throughput::run(&lab, scenario, work),
            Kind::Latency { percent } => latency::run(&lab, scenario, percent),
            Kind::Idle => idle::run(&lab, scenario),
            Kind::IdleTls => idle_tls::run(&lab, scenario),
            Kind::Scale => scale::run(&lab, scenario),
            Kind::Soak => soak::run(&lab, scenario),
        };
        match measured {
            Ok(measured) => report.add(measured),
            Err(error) => {
                eprintln!("  failed: {error:#}");
                report.failed(scenario.name, format!("{error:#}"));
            }
        }
        report.save(&args.json)?;
    }
    report.print()?;
    eprintln!("written to {}", args.json.display());
    Ok(())
}
