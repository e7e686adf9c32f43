//! Load generators: wrk and h2load, and what they report.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child::pinned;
use crate::handshakes::Outcome;
use crate::scenario::{Lab, Work};

/// What a load generator got through.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: u64,
    /// Requests per second.
    pub rate: f64,
}

/// Loads the port of 127.0.0.1 for about `duration`; any failed request is an error.
pub fn run(lab: &Lab, work: &Work, port: u16, cores: &str, duration: Duration) -> Result<Load> {
    let seconds = duration.as_secs_f64().ceil().max(1.0).to_string();
    match *work {
        Work::Wrk { connections, path } => wrk(port, cores, &seconds, connections, path, &[]),
        Work::WrkClose { connections } => {
            wrk(port, cores, &seconds, connections, "/", &["-H", "Connection: close"])
        }
        Work::H2load { connections, streams } => {
            h2load(port, cores, &seconds, connections, streams)
        }
        Work::Handshakes { connections } => handshakes(lab, port, cores, &seconds, connections),
    }
}

fn wrk(
    port: u16,
    cores: &str,
    seconds: &str,
    connections: usize,
    path: &str,
    extra: &[&str],
) -> Result<Load> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let args = ["-t1", connections.as_str(), duration.as_str(), url.as_str()];
    let output = pinned(cores, Path::new("wrk")).args(args).args(extra).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "Socket errors: connect 0, read 3, write 0, timeout 0"; "Non-2xx or 3xx responses: 4".
    // A read error is also how wrk tells that the other side closed after a complete answer.
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx")) {
        bail!("wrk: {}", line.trim());
    }
    if let Some(line) = text.lines().find(|line| line.contains("Socket errors")) {
        let failed = ["connect", "read", "write", "timeout"]
            .iter()
            .filter_map(|kind| number_after(line, kind))
            .sum::<f64>();
        if failed > 0.0 {
            bail!("wrk: {}", line.trim());
        }
    }
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk says {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    if requests == 0 {
        bail!("wrk got no answer");
    }
    let rate = text.lines().find_map(|line| number_after(line, "Requests/sec:"));
    Ok(Load { requests, rate: rate.context("no rate from wrk")? })
}

fn h2load(
    port: u16,
    cores: &str,
    seconds: &str,
    connections: usize,
    streams: usize,
) -> Result<Load> {
    let url = format!("http://127.0.0.1:{port}/");
    let (connections, streams) = (format!("-c{connections}"), format!("-m{streams}"));
    let args = ["-t1", "-D", seconds, connections.as_str(), streams.as_str(), url.as_str()];
    let output = pinned(cores, Path::new("h2load")).args(args).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let totals = text
        .lines()
        .find(|line| line.starts_with("requests:"))
        .with_context(|| format!("h2load says {text}"))?;
    // "requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout"
    let count = |word: &str| {
        totals
            .split([',', ':'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    let (done, good) = (count("done").unwrap_or(0), count("succeeded").unwrap_or(0));
    // What is in flight at the end counts as errored; everything else must have succeeded.
    if good == 0 || good < done {
        bail!("h2load: {totals}");
    }
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("finished in ")?.split_once(", ")?.1.split(' ').next());
    let rate = rate.context("no rate from h2load")?.parse()?;
    Ok(Load { requests: good, rate })
}

fn handshakes(
    lab: &Lab,
    port: u16,
    cores: &str,
    seconds: &str,
    connections: usize,
) -> Result<Load> {
    let address = SocketAddr::from(([127, 0, 0, 1], port)).to_string();
    let output = pinned(cores, &std::env::current_exe()?)
        .args(["handshakes", "--address", &address, "--duration", seconds])
        .args(["--connections", &connections.to_string(), "--directory"])
        .arg(lab.directory())
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let outcome: Outcome = serde_json::from_slice(&output.stdout)?;
    Ok(Load { requests: outcome.handshakes, rate: outcome.rate })
}

fn number_after(line: &str, word: &str) -> Option<f64> {
    let rest = line.split_once(word)?.1.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}
