//! The figures: medians, ratios, the bars they have to clear; as a table and as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::peer::Name;
use crate::scenario::Lab;

/// Unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    #[serde(rename = "us")]
    Micros,
    #[serde(rename = "ms")]
    Millis,
    #[serde(rename = "1/s")]
    PerSecond,
    #[serde(rename = "B")]
    Bytes,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "")]
    Count,
    #[serde(rename = "x")]
    Ratio,
}

impl Unit {
    fn label(self) -> &'static str {
        match self {
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::PerSecond => "1/s",
            Self::Bytes => "B",
            Self::Mebibytes => "MiB",
            Self::Count => "",
            Self::Ratio => "x",
        }
    }
}

/// One figure of one proxy in one scenario, a sample for each round.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub scenario: &'static str,
    pub metric: &'static str,
    pub unit: Unit,
    pub peer: Name,
    pub samples: Vec<f64>,
}

impl Measurement {
    /// A measurement that waits for its samples.
    pub fn new(scenario: &'static str, metric: &'static str, unit: Unit, peer: Name) -> Self {
        Self { scenario, metric, unit, peer, samples: Vec::new() }
    }

    /// Whether this is the given proxy's figure.
    pub fn is(&self, metric: &str, peer: Name) -> bool {
        self.metric == metric && self.peer == peer
    }
}

/// What Outrigger's figure has to be.
#[derive(Clone, Copy, Debug)]
enum Limit {
    /// At most this times the other proxy's figure.
    Times(f64, Name),
    /// At most this.
    AtMost(f64),
}

/// The bars: scenario, metric, limit.
const BARS: &[(&str, &str, Limit)] = &[
    ("sidecar-32", "cpu", Limit::Times(0.30, Name::Envoy)),
    ("sidecar-128", "cpu", Limit::Times(0.30, Name::Envoy)),
    ("router-32", "cpu", Limit::Times(0.24, Name::Envoy)),
    ("router-32", "cpu", Limit::Times(1.0, Name::Haproxy)),
    ("router-128", "cpu", Limit::Times(0.24, Name::Envoy)),
    ("router-128", "cpu", Limit::Times(1.0, Name::Haproxy)),
    ("h2", "cpu", Limit::Times(0.33, Name::Envoy)),
    ("tcp-small", "cpu", Limit::Times(0.75, Name::Envoy)),
    ("tcp-1m", "cpu", Limit::Times(0.75, Name::Envoy)),
    ("new-connection", "cpu", Limit::Times(0.5, Name::Envoy)),
    ("mtls-32", "cpu", Limit::Times(0.33, Name::Envoy)),
    ("mtls-128", "cpu", Limit::Times(0.33, Name::Envoy)),
    ("handshake", "cpu", Limit::Times(1.0, Name::Envoy)),
    ("idle-tls", "memory after a handshake", Limit::AtMost(16.0 * 1024.0)),
    ("idle-tls", "memory after a request", Limit::AtMost(16.0 * 1024.0)),
    ("latency-50", "p99", Limit::Times(1.0, Name::Envoy)),
    ("latency-80", "p99", Limit::Times(1.0, Name::Envoy)),
    ("idle", "resident after start", Limit::AtMost(12.0)),
    ("idle", "memory per idle connection", Limit::AtMost(2048.0)),
    ("idle", "start to first response", Limit::Times(0.4, Name::Envoy)),
    ("idle", "wake-ups", Limit::AtMost(5.0)),
    ("scale", "ready", Limit::Times(0.6, Name::Envoy)),
    ("scale", "settled per cluster", Limit::AtMost(20.0 * 1024.0)),
    ("scale", "touched per cluster", Limit::AtMost(24.0 * 1024.0)),
    ("scale", "peak over settled", Limit::AtMost(1.5)),
    ("soak", "growth", Limit::AtMost(1.0)),
];

/// All that was measured.
#[derive(Debug)]
pub struct Report {
    peers: Vec<(Name, String)>,
    rounds: usize,
    seconds: f64,
    measured: Vec<Measurement>,
    failed: Vec<(&'static str, String)>,
}

impl Report {
    /// An empty report about the proxies of `lab`.
    pub fn new(lab: &Lab) -> Self {
        Self {
            peers: lab
                .peers
                .iter()
                .chain(&lab.floor)
                .map(|peer| (peer.name, peer.version.clone()))
                .collect(),
            rounds: lab.rounds,
            seconds: lab.duration.as_secs_f64(),
            measured: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Adds a scenario's figures.
    pub fn add(&mut self, measured: Vec<Measurement>) {
        self.measured.extend(measured);
    }

    /// Notes that a scenario could not be measured.
    pub fn failed(&mut self, scenario: &'static str, reason: String) {
        self.failed.push((scenario, reason));
    }

    /// Writes everything, samples included, as JSON.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bars: Vec<_> = BARS
            .iter()
            .filter_map(|bar| {
                let (value, limit) = self.judge(bar)?;
                Some(json!({
                    "scenario": bar.0, "metric": bar.1, "rule": rule(bar.2),
                    "value": value, "limit": limit, "pass": value <= limit,
                }))
            })
            .collect();
        let figures: Vec<_> = self
            .measured
            .iter()
            .map(|m| {
                json!({
                    "scenario": m.scenario, "metric": m.metric, "unit": m.unit, "peer": m.peer,
                    "median": median(&m.samples), "samples": m.samples,
                })
            })
            .collect();
        let peers: Vec<_> = self
            .peers
            .iter()
            .map(|(name, version)| json!({"name": name, "version": version}))
            .collect();
        let value = json!({
            "peers": peers, "rounds": self.rounds, "seconds": self.seconds,
            "figures": figures, "bars": bars, "failed": self.failed,
        });
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(&value)?)?;
        Ok(())
    }

    /// Prints the tables to standard output.
    pub fn print(&self) -> Result<()> {
        let mut out = String::new();
        self.table(&mut out)?;
        self.bars(&mut out)?;
        for (scenario, reason) in &self.failed {
            writeln!(out, "{scenario} failed: {reason}")?;
        }
        io::stdout().write_all(out.as_bytes())?;
        Ok(())
    }

    fn table(&self, out: &mut String) -> Result<()> {
        write!(out, "\n{:<16} {:<32}", "scenario", "median")?;
        for (name, version) in &self.peers {
            write!(out, "{:>20}", format!("{name} {version}"))?;
        }
        writeln!(out, "{:>10}{:>10}{:>10}{:>10}", "/envoy", "/haproxy", "/before", "/floor")?;
        let mut rows: Vec<(&str, &str, Unit)> = Vec::new();
        for m in &self.measured {
            let row = (m.scenario, m.metric, m.unit);
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        for (scenario, metric, unit) in rows {
            write!(out, "{scenario:<16} {:<32}", format!("{metric} {}", unit.label()))?;
            for (name, _) in &self.peers {
                let value = self.median(scenario, metric, *name);
                write!(out, "{:>20}", value.map_or("-".into(), number))?;
            }
            for other in [Name::Envoy, Name::Haproxy, Name::Before, Name::Floor] {
                let ours = self.median(scenario, metric, Name::Outrigger);
                let ratio = ours.zip(self.median(scenario, metric, other)).map(|(a, b)| a / b);
                write!(out, "{:>10}", ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn bars(&self, out: &mut String) -> Result<()> {
        writeln!(out, "\n{:<16} {:<32}{:>20}{:>12}{:>12}", "scenario", "bar", "", "is", "limit")?;
        for bar in BARS {
            let Some((value, limit)) = self.judge(bar) else { continue };
            let floor = self.median(bar.0, bar.1, Name::Floor);
            let verdict = match floor {
                _ if value <= limit => "pass".to_owned(),
                Some(floor) if limit < floor => {
                    format!("FAIL (the kernel alone: {})", number(floor))
                }
                _ => "FAIL".to_owned(),
            };
            writeln!(
                out,
                "{:<16} {:<32}{:>20}{:>12}{:>12}  {verdict}",
                bar.0,
                bar.1,
                rule(bar.2),
                number(value),
                number(limit),
            )?;
        }
        Ok(())
    }

    /// Outrigger's figure and its limit in the same unit, when both were measured.
    fn judge(&self, (scenario, metric, limit): &(&str, &str, Limit)) -> Option<(f64, f64)> {
        let value = self.median(scenario, metric, Name::Outrigger)?;
        let limit = match limit {
            Limit::Times(factor, other) => factor * self.median(scenario, metric, *other)?,
            Limit::AtMost(limit) => *limit,
        };
        Some((value, limit))
    }

    fn median(&self, scenario: &str, metric: &str, peer: Name) -> Option<f64> {
        let found = self.measured.iter().find(|m| m.scenario == scenario && m.is(metric, peer))?;
        (!found.samples.is_empty()).then(|| median(&found.samples))
    }
}

fn rule(limit: Limit) -> String {
    match limit {
        Limit::Times(factor, other) => format!("<= {factor:.2} x {other}"),
        Limit::AtMost(limit) => format!("<= {}", number(limit)),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Median; zero of nothing.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}
