//! The scenarios, and the laboratory in which they run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::backend::Backend;
use crate::certificates;
use crate::child;
use crate::peer::{Job, Peer};

/// One thing that is measured.
#[derive(Debug)]
pub struct Scenario {
    /// Name on the command line and in the report.
    pub name: &'static str,
    /// One line for the reader.
    pub about: &'static str,
    /// What the proxies are configured to do.
    pub job: Job,
    /// Worker threads of each proxy.
    pub workers: usize,
    pub kind: Kind,
}

/// How a scenario is measured.
#[derive(Debug)]
pub enum Kind {
    /// As many requests as the load generator gets through; CPU per request.
    Throughput(Work),
    /// A fixed rate, as a percentage of Envoy's saturation; latency over the direct path's.
    Latency { percent: u32 },
    /// Memory, wake-ups and start time of a proxy that does nothing.
    Idle,
    /// Memory of TLS connections that do nothing.
    IdleTls,
    /// Many clusters and virtual hosts.
    Scale,
    /// Millions of requests; only when asked for by name.
    Soak,
}

/// What the load generator asks for.
#[derive(Debug)]
pub enum Work {
    /// wrk: keep-alive connections, one request at a time on each.
    Wrk { connections: usize, path: &'static str },
    /// wrk with `connection: close`: a new downstream connection for each request.
    WrkClose { connections: usize },
    /// h2load: connections with so many concurrent streams each.
    H2load { connections: usize, streams: usize },
    /// Full mutual TLS handshakes, so many at a time.
    Handshakes { connections: usize },
}

const fn wrk(connections: usize, path: &'static str) -> Kind {
    Kind::Throughput(Work::Wrk { connections, path })
}

/// All scenarios, in the order of the report.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "router-32",
        about: "bare router, h1 to h1, 32 connections",
        job: Job::Router,
        workers: 1,
        kind: wrk(32, "/"),
    },
    Scenario {
        name: "router-128",
        about: "bare router, h1 to h1, 128 connections",
        job: Job::Router,
        workers: 1,
        kind: wrk(128, "/"),
    },
    Scenario {
        name: "sidecar-32",
        about: "five filters, access log, retries, ten header operations; 32 connections",
        job: Job::Sidecar,
        workers: 1,
        kind: wrk(32, "/"),
    },
    Scenario {
        name: "sidecar-128",
        about: "five filters, access log, retries, ten header operations; 128 connections",
        job: Job::Sidecar,
        workers: 1,
        kind: wrk(128, "/"),
    },
    Scenario {
        name: "h2",
        about: "bare router, h2c to h2c, 8 connections with 32 streams",
        job: Job::H2,
        workers: 1,
        kind: Kind::Throughput(Work::H2load { connections: 8, streams: 32 }),
    },
    Scenario {
        name: "tcp-small",
        about: "TCP proxy, small requests, 32 connections",
        job: Job::Tcp,
        workers: 1,
        kind: wrk(32, "/"),
    },
    Scenario {
        name: "tcp-1m",
        about: "TCP proxy, 1 MB answers, 8 connections",
        job: Job::Tcp,
        workers: 1,
        kind: wrk(8, "/1m"),
    },
    Scenario {
        name: "new-connection",
        about: "bare router, a new connection for each request, 32 at a time",
        job: Job::Router,
        workers: 1,
        kind: Kind::Throughput(Work::WrkClose { connections: 32 }),
    },
    Scenario {
        name: "body-10k",
        about: "bare router, 10 KB answers, 32 connections",
        job: Job::Router,
        workers: 1,
        kind: wrk(32, "/10k"),
    },
    Scenario {
        name: "body-1m",
        about: "bare router, 1 MB answers, 8 connections",
        job: Job::Router,
        workers: 1,
        kind: wrk(8, "/1m"),
    },
    Scenario {
        name: "mtls-32",
        about: "two hops, h1 to h2 with mutual TLS to h1, 32 connections; both hops' CPU",
        job: Job::Mtls,
        workers: 1,
        kind: wrk(32, "/"),
    },
    Scenario {
        name: "mtls-128",
        about: "two hops, h1 to h2 with mutual TLS to h1, 128 connections; both hops' CPU",
        job: Job::Mtls,
        workers: 1,
        kind: wrk(128, "/"),
    },
    Scenario {
        name: "mtls-10k",
        about: "two hops with mutual TLS, 10 KB answers, 32 connections; both hops' CPU",
        job: Job::Mtls,
        workers: 1,
        kind: wrk(32, "/10k"),
    },
    Scenario {
        name: "mtls-new",
        about: "two hops, a new connection with a full mutual handshake between them for each request",
        job: Job::MtlsNew,
        workers: 1,
        kind: wrk(32, "/"),
    },
    Scenario {
        name: "handshake",
        about: "full mutual TLS 1.3 handshakes (P-256, X25519), 8 at a time; CPU of each",
        job: Job::TlsServer,
        workers: 1,
        kind: Kind::Throughput(Work::Handshakes { connections: 8 }),
    },
    Scenario {
        name: "idle-tls",
        about: "memory per idle mutual TLS connection",
        job: Job::TlsServer,
        workers: 1,
        kind: Kind::IdleTls,
    },
    Scenario {
        name: "two-workers",
        about: "bare router with two workers on all cores, 128 connections",
        job: Job::Router,
        workers: 2,
        kind: wrk(128, "/"),
    },
    Scenario {
        name: "latency-50",
        about: "latency over the direct path's at 50 % of Envoy's saturation rate",
        job: Job::Router,
        workers: 1,
        kind: Kind::Latency { percent: 50 },
    },
    Scenario {
        name: "latency-80",
        about: "latency over the direct path's at 80 % of Envoy's saturation rate",
        job: Job::Router,
        workers: 1,
        kind: Kind::Latency { percent: 80 },
    },
    Scenario {
        name: "idle",
        about: "start, resident memory, memory per idle connection, wake-ups",
        job: Job::Router,
        workers: 1,
        kind: Kind::Idle,
    },
    Scenario {
        name: "scale",
        about: "thousands of clusters with ten endpoints each, as many virtual hosts",
        job: Job::Router,
        workers: 1,
        kind: Kind::Scale,
    },
    Scenario {
        name: "soak",
        about: "ten million requests with the sidecar configuration, memory over time",
        job: Job::Sidecar,
        workers: 1,
        kind: Kind::Soak,
    },
];

/// Everything a scenario needs: the backend, the binaries, a directory and the cores.
#[derive(Debug)]
pub struct Lab {
    pub backend: Backend,
    pub peers: Vec<Peer>,
    /// What the kernel alone costs, beside proxies that forward small HTTP/1 requests.
    pub floor: Option<Peer>,
    pub rounds: usize,
    pub duration: Duration,
    pub clusters: usize,
    cores: String,
    load_cores: String,
    directory: PathBuf,
}

impl Lab {
    /// Makes the working directory, finds the binaries and starts the backend.
    pub fn new(args: &Args) -> Result<Self> {
        let name = format!("outrigger-compare-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        child::remove_at_end(&directory);
        certificates::write(&directory)?;
        let peers = Peer::find(args, &directory)?;
        let backend = Backend::start(&args.cores, &directory)?;
        Ok(Self {
            backend,
            peers,
            floor: Peer::floor(args)?,
            rounds: args.rounds.max(1),
            duration: args.duration,
            clusters: args.clusters,
            cores: args.cores.clone(),
            load_cores: args.cores.clone(),
            directory,
        })
    }

    /// Where configurations and logs of this run lie; removed at the end.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cores of a proxy with so many workers.
    pub fn cores(&self, workers: usize) -> String {
        if workers < 2 { self.cores.clone() } else { all_cores() }
    }

    /// The cores of the load against a proxy with so many workers.
    pub fn load_cores(&self, workers: usize) -> String {
        if workers < 2 { self.load_cores.clone() } else { all_cores() }
    }

    /// The same laboratory with load and a backend of its own on the cores that the proxies leave
    /// free: what latencies need, where the load must not queue behind the proxy. With no core
    /// left everything stays where it is.
    pub fn split(&self) -> Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let own: Vec<&str> = self.cores.split(',').collect();
        let free: Vec<String> = (0..count)
            .map(|core| core.to_string())
            .filter(|core| !own.contains(&&**core))
            .collect();
        let cores = if free.is_empty() { self.cores.clone() } else { free.join(",") };
        let directory = self.directory.join("split");
        std::fs::create_dir_all(&directory)?;
        Ok(Self {
            backend: Backend::start(&cores, &directory)?,
            peers: self.peers.clone(),
            floor: None,
            rounds: self.rounds,
            duration: self.duration,
            clusters: self.clusters,
            cores: self.cores.clone(),
            load_cores: cores,
            directory,
        })
    }
}

fn all_cores() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("0-{}", count - 1)
}
