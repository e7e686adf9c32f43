//! One proxy with its own upstreams, ports and files; runs the cases of an area one by one.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::sleep;

use crate::area::{Area, Case, Protocol};
use crate::client::{h1, h2, h2_raw};
use crate::config::{Places, bootstrap, upstream_names};
use crate::observe::{Normaliser, Observation};
use crate::ports;
use crate::proxy::{Kind, Proxy};
use crate::stats::{Filter, Snapshot, parse};
use crate::tls::{Front, certificates};
use crate::upstream::Upstreams;

/// How long statistics may take to come to rest after a case.
const SETTLE: Duration = Duration::from_secs(3);

/// A proxy and its surroundings.
#[derive(Debug)]
pub struct Sandbox {
    pub proxy: Proxy,
    pub upstreams: Upstreams,
    pub places: Places,
    normaliser: Normaliser,
    filter: Filter,
    exact_bytes: bool,
    log_read: usize,
    _dir: TempDir,
}

impl Sandbox {
    /// Chooses ports, writes the configuration, starts upstreams and the proxy.
    ///
    /// # Errors
    /// When any of them does not start.
    pub async fn start(kind: Kind, area: &Area, extra: &[&str]) -> Result<Self> {
        let dir = TempDir::with_prefix(format!("outrigger-{}-", kind.name()))?;
        let upstreams = Upstreams::start(&upstream_names(area)).await?;
        let mut places = Places {
            admin: ports::free()?,
            upstreams: upstreams.ports().clone(),
            dir: dir.path().display().to_string(),
            certs: certificates::directory()?.display().to_string(),
            ..Places::default()
        };
        for (name, port) in upstreams.ports().iter().filter(|(name, _)| name.starts_with("pipe")) {
            let listener = UnixListener::bind(dir.path().join(format!("{name}.sock")))?;
            tokio::spawn(from_unix(listener, *port));
        }
        for name in area.listeners.keys() {
            places.listeners.insert(name.clone(), ports::free()?);
        }
        let config = bootstrap(area, &places)?;
        let path = dir.path().join("bootstrap.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        let proxy = Proxy::start(kind, &path, places.admin, extra).await?;
        let normaliser = Normaliser::new(&places, area.exact_bytes)?;
        Ok(Self {
            proxy,
            upstreams,
            places,
            normaliser,
            filter: Filter::new()?,
            exact_bytes: area.exact_bytes,
            log_read: 0,
            _dir: dir,
        })
    }

    /// Port of a listener.
    ///
    /// # Errors
    /// When the area has none of that name.
    pub fn port(&self, listener: &str) -> Result<u16> {
        self.places.listeners.get(listener).copied().with_context(|| format!("listener {listener}"))
    }

    /// Sends one case and gives everything that could be seen of it.
    ///
    /// # Errors
    /// When the proxy does not accept connections or its admin port is silent.
    pub async fn run_case(&mut self, case: &Case, patience: u32) -> Result<Observation> {
        let case = &self.filled(case)?;
        let before = self.stats().await?;
        self.upstreams.begin(&case.upstream, case.protocol == Protocol::Tcp);
        let linger = Duration::from_millis(case.linger_ms) * patience;
        let mut to = self.address(case).await?;
        let front = match &case.tls {
            Some(offer) => Some(Front::start(offer, to).await?),
            None => None,
        };
        if let Some(front) = &front {
            to = front.address;
        }
        let mut lines = match case.protocol {
            Protocol::H1 | Protocol::Tcp => {
                let client = h1::Client::connect(to, &self.upstreams, &self.normaliser).await?;
                client.run(case, linger).await?
            }
            Protocol::H2 => h2::run(to, case, &self.upstreams, &self.normaliser, linger).await?,
            Protocol::H2Raw => h2_raw::run(to, case, linger).await?,
        };
        if let Some(front) = front {
            lines.extend(front.finish().await);
        }
        self.settle("listener.", "downstream_cx_active").await?;
        self.upstreams.close_all().await;
        let after = self.settle("cluster.", "upstream_cx_active").await?;
        lines.extend(self.upstreams.tls_lines());

        let mut seen = self.upstreams.seen();
        // Which connection came first is chance between upstreams, not within one.
        seen.sort_by(|a, b| a.upstream.cmp(&b.upstream));
        let h2 = matches!(case.protocol, Protocol::H2 | Protocol::H2Raw)
            || seen.iter().any(|s| s.head.first().is_some_and(|l| l.starts_with(':')));
        for (index, seen) in seen.iter().enumerate() {
            lines.extend(self.normaliser.seen(index, seen));
        }
        let expected = case.log_lines.unwrap_or_else(|| requests(&before, &after));
        for (index, line) in self.log_lines(expected).await.iter().enumerate() {
            lines.extend(self.normaliser.log_line(index, line, h2));
        }
        for line in self.filter.diff(&before, &after, self.exact_bytes) {
            lines.push(self.normaliser.text(&line));
        }
        for request in &case.admin {
            let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
            let (head, body) = self.proxy.admin_full(method, path).await?;
            lines.push(format!("admin {request}: {}", head.lines().next().unwrap_or_default()));
            for line in head.lines().filter(|l| l.starts_with("content-type")) {
                lines.push(format!("admin {request}: {line}"));
            }
            for line in crate::observe::document(&body) {
                lines.push(format!("admin {request}: {}", self.normaliser.text(&line)));
            }
        }
        for ignore in &case.ignore {
            let pattern = regex::Regex::new(&ignore.lines)?;
            lines.retain(|line| !pattern.is_match(line));
        }
        Ok(Observation { lines, h2 })
    }

    /// Where the client of a case connects to.
    async fn address(&self, case: &Case) -> Result<SocketAddr> {
        match case.via.as_deref() {
            Some(path) if path.starts_with('/') => to_unix(path.into()).await,
            Some(ip) => Ok(SocketAddr::new(ip.parse()?, self.port(&case.to)?)),
            None => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port(&case.to)?)),
        }
    }

    /// Placeholders in the strings that a case sends.
    fn filled(&self, case: &Case) -> Result<Case> {
        let fill = |text: &mut String| -> Result<()> {
            *text = crate::config::fill_text(text, &self.places)?;
            Ok(())
        };
        let mut case = case.clone();
        case.raw.iter_mut().try_for_each(fill)?;
        case.via.iter_mut().try_for_each(fill)?;
        for request in std::iter::once(&mut case.request).chain(&mut case.requests) {
            request.path.iter_mut().try_for_each(fill)?;
            request.host.iter_mut().try_for_each(fill)?;
            request.headers.iter_mut().try_for_each(fill)?;
        }
        for step in &mut case.steps {
            step.send.iter_mut().try_for_each(fill)?;
        }
        crate::config::fill(&mut case.upstream, &self.places)?;
        Ok(case)
    }

    /// Names of all statistics that are compared.
    ///
    /// # Errors
    /// When the admin port does not answer.
    pub async fn stat_names(&self) -> Result<Vec<String>> {
        let (_, text) = self.proxy.admin("GET", "/stats").await?;
        let names = crate::stats::names(&text).into_iter();
        Ok(names.filter(|n| self.filter.compares(n)).map(|n| self.normaliser.text(&n)).collect())
    }

    /// Counters and gauges.
    ///
    /// # Errors
    /// When the admin port does not answer.
    pub async fn stats(&self) -> Result<Snapshot> {
        let (_, text) = self.proxy.admin("GET", "/stats").await?;
        Ok(parse(&text))
    }

    /// Waits until the gauge is 0 in the scope and nothing moves any more.
    async fn settle(&self, scope: &str, gauge: &str) -> Result<Snapshot> {
        let begin = Instant::now();
        let mut last = self.stats().await?;
        loop {
            let now = self.stats().await?;
            let busy: i64 = now
                .iter()
                .filter(|(name, _)| {
                    name.starts_with(scope)
                        && name.ends_with(gauge)
                        && !name.starts_with("listener.admin")
                        && !name.contains("worker_")
                })
                .map(|(_, value)| *value)
                .sum();
            let still = now
                .iter()
                .all(|(name, value)| !self.filter.compares(name) || last.get(name) == Some(value));
            if busy == 0 && still || begin.elapsed() > SETTLE {
                return Ok(now);
            }
            last = now;
            sleep(Duration::from_millis(3)).await;
        }
    }

    /// The access log lines written since the last call, once `expected` are there.
    async fn log_lines(&mut self, expected: usize) -> Vec<String> {
        let path = PathBuf::from(&self.places.dir).join("access.log");
        let begin = Instant::now();
        let mut more_at = None;
        loop {
            let bytes = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(bytes.get(self.log_read..).unwrap_or_default());
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let enough = lines.len() >= expected && (text.is_empty() || text.ends_with('\n'));
            if enough && more_at.is_none() {
                more_at = Some(Instant::now());
            }
            // One flush interval more, should there be a line too many.
            let waited = more_at.is_some_and(|at| at.elapsed() > Duration::from_millis(15));
            if enough && waited || begin.elapsed() > Duration::from_millis(1500) {
                self.log_read = bytes.len();
                return lines;
            }
            sleep(Duration::from_millis(4)).await;
        }
    }
}

/// A Unix socket as one more way to a scripted upstream.
async fn from_unix(listener: UnixListener, port: u16) {
    while let Ok((mut unix, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut tcp) = TcpStream::connect(("127.0.0.1", port)).await {
                let _ = tokio::io::copy_bidirectional(&mut unix, &mut tcp).await;
            }
        });
    }
}

/// An address that leads one client to a Unix socket.
async fn to_unix(path: PathBuf) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        if let Ok((mut tcp, _)) = listener.accept().await
            && let Ok(mut unix) = UnixStream::connect(path).await
        {
            let _ = tokio::io::copy_bidirectional(&mut tcp, &mut unix).await;
        }
    });
    Ok(address)
}

/// Requests and TCP connections counted between two scrapes.
fn requests(before: &Snapshot, after: &Snapshot) -> usize {
    let count = |snapshot: &Snapshot| -> i64 {
        snapshot
            .iter()
            .filter(|(name, _)| {
                name.starts_with("http.")
                    && name.ends_with(".downstream_rq_total")
                    && !name.starts_with("http.admin.")
                    || name.starts_with("tcp.") && name.ends_with(".downstream_cx_total")
            })
            .map(|(_, value)| value)
            .sum()
    };
    usize::try_from(count(after) - count(before)).unwrap_or(0)
}
