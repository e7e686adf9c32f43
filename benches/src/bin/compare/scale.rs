//! Many clusters and virtual hosts in one static file: time until ready, and memory for each.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::backend::{ADDRESSES, free_port, tail};
use crate::idle::{connect, first_response, request};
use crate::peer::{Name, Peer};
use crate::procfs;
use crate::report::{Measurement, Unit};
use crate::scenario::{Lab, Scenario};

const METRICS: [(&str, Unit); 5] = [
    ("ready", Unit::Millis),
    ("settled per cluster", Unit::Bytes),
    ("touched per cluster", Unit::Bytes),
    ("settled resident", Unit::Mebibytes),
    ("peak over settled", Unit::Ratio),
];

/// Runs Envoy and Outrigger (HAProxy reads another language) with the large configuration.
pub fn run(lab: &Lab, scenario: &Scenario) -> Result<Vec<Measurement>> {
    let mut peers: Vec<&Peer> =
        lab.peers.iter().filter(|peer| peer.name != Name::Haproxy).collect();
    let mut measured = Vec::new();
    for (metric, unit) in METRICS {
        for peer in &peers {
            measured.push(Measurement::new(scenario.name, metric, unit, peer.name));
        }
    }
    // Each turn is a fresh process and takes long; three are enough for a median.
    let rounds = lab.rounds.min(3);
    for round in 0..rounds {
        let mut line = format!("  round {}/{rounds}:", round + 1);
        for peer in &peers {
            let samples = weigh(lab, peer).with_context(|| tail(&peer.log(lab)))?;
            for ((metric, _), sample) in METRICS.iter().zip(samples) {
                let found = measured.iter_mut().find(|m| m.is(metric, peer.name));
                found.context("a measurement for each metric")?.samples.push(sample);
            }
            line += &format!(" {} {:.0} ms {:.0} B", peer.name, samples[0], samples[1]);
        }
        eprintln!("{line}");
        peers.rotate_left(1);
    }
    Ok(measured)
}

fn weigh(lab: &Lab, peer: &Peer) -> Result<[f64; 5]> {
    const MEBIBYTE: f64 = 1024.0 * 1024.0;
    let empty = {
        let (port, config) = write_config(lab, peer, 1)?;
        let proxy = peer.start_with(lab, &config, port)?;
        first_response(port, &host(0), Instant::now(), Duration::from_secs(20))?;
        std::thread::sleep(Duration::from_secs(1));
        procfs::memory(proxy.pid())?.resident as f64
    };
    let (port, config) = write_config(lab, peer, lab.clusters)?;
    let start = Instant::now();
    let proxy = peer.start_with(lab, &config, port)?;
    let ready = first_response(port, &host(lab.clusters - 1), start, Duration::from_secs(120))?;
    // Allocators give memory back some time after the configuration has been read.
    std::thread::sleep(Duration::from_secs(5));
    let settled = procfs::memory(proxy.pid())?;
    let mut stream = connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    for index in 0..lab.clusters {
        request(&mut stream, &host(index)).with_context(|| format!("virtual host {index}"))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let touched = procfs::memory(proxy.pid())?;
    let clusters = lab.clusters as f64;
    let resident = settled.resident as f64;
    Ok([
        ready.as_secs_f64() * 1e3,
        (resident - empty) / clusters,
        (touched.resident as f64 - empty) / clusters,
        resident / MEBIBYTE,
        settled.peak as f64 / resident,
    ])
}

fn host(index: usize) -> String {
    format!("service-{index}.example.com")
}

/// A bootstrap with so many clusters of ten endpoints and a virtual host for each.
fn write_config(lab: &Lab, peer: &Peer, clusters: usize) -> Result<(u16, PathBuf)> {
    let port = free_port()?;
    let address =
        |host: &str, port: u16| json!({"socket_address": {"address": host, "port_value": port}});
    let cluster = |index: usize| {
        let endpoints: Vec<Value> = (1..=ADDRESSES)
            .map(|host| address(&format!("127.0.0.{host}"), lab.backend.port))
            .map(|address| json!({"endpoint": {"address": address}}))
            .collect();
        let name = format!("outbound|80||service-{index}.example.com");
        json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "lb_policy": "LEAST_REQUEST",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        })
    };
    let virtual_host = |index: usize| {
        let host = host(index);
        json!({
            "name": format!("{host}:80"),
            "domains": [host, format!("{host}:80")],
            "routes": [{
                "match": {"prefix": "/"},
                "route": {"cluster": format!("outbound|80||{host}"), "timeout": "15s"},
            }],
        })
    };
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound",
        "route_config": {
            "name": "80",
            "virtual_hosts": (0..clusters).map(virtual_host).collect::<Vec<_>>(),
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        }],
    });
    let filter = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    });
    let bootstrap = json!({
        "admin": {"address": address("127.0.0.1", free_port()?)},
        "static_resources": {
            "listeners": [{
                "name": "outbound",
                "address": address("127.0.0.1", port),
                "filter_chains": [{"filters": [filter]}],
            }],
            "clusters": (0..clusters).map(cluster).collect::<Vec<_>>(),
        },
    });
    let path: &Path = lab.directory();
    let path = path.join(format!("{}-scale-{clusters}.json", peer.name));
    std::fs::write(&path, serde_json::to_vec(&bootstrap)?)?;
    Ok((port, path))
}
