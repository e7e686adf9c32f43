//! A proxy at rest: how fast it starts, what it holds, how often it wakes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::backend::{free_port, tail};
use crate::peer::{Peer, Running};
use crate::procfs;
use crate::report::{Measurement, Unit};
use crate::scenario::{Lab, Scenario};

/// Idle connections whose memory is weighed.
const CONNECTIONS: usize = 2000;
/// Wake-ups are counted over this long.
const WATCH: Duration = Duration::from_secs(5);

/// Measures each proxy `lab.rounds` times, each time a fresh process.
pub fn run(lab: &Lab, scenario: &Scenario) -> Result<Vec<Measurement>> {
    let mut peers: Vec<&Peer> = lab.peers.iter().collect();
    let metrics = [
        ("start to first response", Unit::Millis),
        ("resident after start", Unit::Mebibytes),
        ("wake-ups", Unit::PerSecond),
        ("threads", Unit::Count),
        ("memory per idle connection", Unit::Bytes),
        ("resident after load", Unit::Mebibytes),
    ];
    let mut measured = Vec::new();
    for (metric, unit) in metrics {
        for peer in &peers {
            measured.push(Measurement::new(scenario.name, metric, unit, peer.name));
        }
    }
    for round in 0..lab.rounds {
        eprintln!("  round {}/{}", round + 1, lab.rounds);
        for peer in &peers {
            let samples = match rest(lab, scenario, peer) {
                Ok(samples) => samples,
                Err(error) => {
                    eprintln!("  {} left out: {error:#}", peer.name);
                    continue;
                }
            };
            for ((metric, _), sample) in metrics.iter().zip(samples) {
                let found = measured.iter_mut().find(|m| m.is(metric, peer.name));
                found.context("a measurement for each metric")?.samples.push(sample);
            }
        }
        peers.rotate_left(1);
    }
    measured.retain(|m| !m.samples.is_empty());
    Ok(measured)
}

fn rest(lab: &Lab, scenario: &Scenario, peer: &Peer) -> Result<[f64; 6]> {
    const MEBIBYTE: f64 = 1024.0 * 1024.0;
    let (proxy, start) = cold_start(lab, scenario, peer)?;
    let pid = proxy.pid();
    // Initialisation that goes on after the first response has to end first.
    std::thread::sleep(Duration::from_secs(1));
    let resident = procfs::memory(pid)?.resident as f64 / MEBIBYTE;
    let switches = procfs::context_switches(pid);
    std::thread::sleep(WATCH);
    let switches = procfs::context_switches(pid).saturating_sub(switches);
    let wake_ups = switches as f64 / WATCH.as_secs_f64();
    // What the first connections make once (tables, pools, histograms) is not theirs.
    drop(open_connections(proxy.port, 100)?);
    std::thread::sleep(Duration::from_millis(500));
    let before = procfs::memory(pid)?;
    let connections = open_connections(proxy.port, CONNECTIONS)?;
    std::thread::sleep(Duration::from_secs(1));
    let after = procfs::memory(pid)?;
    let each = after.anonymous.saturating_sub(before.anonymous) as f64 / connections.len() as f64;
    let threads = procfs::threads(pid) as f64;
    Ok([start, resident, wake_ups, threads, each, after.resident as f64 / MEBIBYTE])
}

/// Starts the proxy; milliseconds until a request is answered with 200.
fn cold_start(lab: &Lab, scenario: &Scenario, peer: &Peer) -> Result<(Running, f64)> {
    let port = free_port()?;
    let config = peer.write_config(lab, scenario.job, scenario.workers, port, lab.backend.port)?;
    let start = Instant::now();
    let proxy = peer.start_with(lab, &config, port)?;
    let took = first_response(port, "backend", start, Duration::from_secs(20))
        .with_context(|| tail(&peer.log(lab)))?;
    Ok((proxy, took.as_secs_f64() * 1e3))
}

/// Time from `start` until a request to the port is answered with 200.
pub fn first_response(port: u16, host: &str, start: Instant, limit: Duration) -> Result<Duration> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    loop {
        if let Ok(mut stream) = connect(address) {
            // A proxy may accept before it is ready to route.
            if request(&mut stream, host).is_ok() {
                return Ok(start.elapsed());
            }
        }
        if start.elapsed() > limit {
            bail!("no response after {limit:?}");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Opens so many connections and sends one request on each.
fn open_connections(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        request(&mut stream, "backend")?;
        connections.push(stream);
    }
    Ok(connections)
}

/// A connection whose reads end after some time.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // A request behind a handshake does not wait for its acknowledgement.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and reads the (small) answer; an error unless it is 200.
pub fn request(stream: &mut (impl Read + Write), host: &str) -> Result<()> {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            bail!("closed after {} bytes", answer.len());
        }
        answer.extend_from_slice(&buffer[..count]);
        if answer.ends_with(b"from the backend") {
            break;
        }
        if !answer.starts_with(b"HTTP/1.1 200"[..answer.len().min(12)].as_ref()) {
            bail!("answered {}", String::from_utf8_lossy(&answer));
        }
    }
    Ok(())
}
