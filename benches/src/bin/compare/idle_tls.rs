//! What an idle mutual TLS connection holds: anonymous memory before and after a thousand of them, each after its
//! handshake alone, and each after a request.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::backend::tail;
use crate::certificates;
use crate::idle::{connect, request};
use crate::peer::Peer;
use crate::procfs;
use crate::report::{Measurement, Unit};
use crate::scenario::{Lab, Scenario};

const CONNECTIONS: usize = 1000;
/// What they make once (tables, pools, histograms) is not theirs.
const WARM_UP: usize = 100;
/// Until a handshake has ended on the proxy's side too, and its memory is free again.
const SETTLE: Duration = Duration::from_secs(1);

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Measures each proxy `lab.rounds` times, each time in fresh processes.
pub fn run(lab: &Lab, scenario: &Scenario) -> Result<Vec<Measurement>> {
    let mut measured = Vec::new();
    for (metric, asks) in [("memory after a handshake", false), ("memory after a request", true)] {
        let mut peers: Vec<&Peer> = lab.peers.iter().collect();
        let new = |peer: &Peer| Measurement::new(scenario.name, metric, Unit::Bytes, peer.name);
        let mut figures: Vec<_> = lab.peers.iter().map(new).collect();
        for round in 0..lab.rounds {
            let mut line = format!("  {metric}, round {}/{}:", round + 1, lab.rounds);
            for peer in &peers {
                let each = weigh(lab, scenario, peer, asks)
                    .with_context(|| format!("{}: {}", peer.name, tail(&peer.log(lab))))?;
                let found = figures.iter_mut().find(|m| m.is(metric, peer.name));
                found.context("a measurement for each proxy")?.samples.push(each);
                line += &format!(" {} {each:.0} B", peer.name);
            }
            eprintln!("{line}");
            peers.rotate_left(1);
        }
        measured.extend(figures);
    }
    Ok(measured)
}

/// Bytes of one connection.
fn weigh(lab: &Lab, scenario: &Scenario, peer: &Peer, asks: bool) -> Result<f64> {
    let config = certificates::client(lab.directory())?;
    let proxy = peer.start(lab, scenario.job, scenario.workers)?;
    drop(open(proxy.port, &config, WARM_UP, asks)?);
    std::thread::sleep(SETTLE);
    let before = procfs::memory(proxy.pid())?.anonymous;
    let connections = open(proxy.port, &config, CONNECTIONS, asks)?;
    std::thread::sleep(SETTLE);
    let after = procfs::memory(proxy.pid())?.anonymous;
    Ok(after.saturating_sub(before) as f64 / connections.len() as f64)
}

/// Opens so many connections; with `asks`, each gets an answer.
fn open(port: u16, config: &Arc<ClientConfig>, count: usize, asks: bool) -> Result<Vec<Stream>> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = Stream::new(certificates::connection(config)?, connect(address)?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        if asks {
            request(&mut stream, "backend")?;
        }
        connections.push(stream);
    }
    Ok(connections)
}
