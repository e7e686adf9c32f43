//! One proxy process, Envoy or Outrigger, started with the same flags.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long a proxy may take to say LIVE.
const START: Duration = Duration::from_secs(30);

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Envoy,
    Outrigger,
    /// Another build of Outrigger, at this path.
    Variant(&'static str),
}

impl Kind {
    /// The binary: `ENVOY_BIN` or `envoy`; `OUTRIGGER_BIN` or this workspace's release build.
    #[must_use]
    pub fn binary(self) -> PathBuf {
        match self {
            Self::Envoy => std::env::var_os("ENVOY_BIN").map_or_else(|| "envoy".into(), Into::into),
            Self::Outrigger => std::env::var_os("OUTRIGGER_BIN").map_or_else(
                || {
                    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
                        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                        PathBuf::from,
                    );
                    target.join("release/outrigger")
                },
                Into::into,
            ),
            Self::Variant(path) => path.into(),
        }
    }

    /// For messages and file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Outrigger | Self::Variant(_) => "outrigger",
        }
    }
}

/// A running proxy; killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    kind: Kind,
    child: Child,
    admin: u16,
    log: PathBuf,
}

impl Proxy {
    /// Starts the proxy with the configuration file and waits until its admin port says LIVE.
    ///
    /// # Errors
    /// When the process cannot be started, exits, or does not become ready in time; the message
    /// holds the end of its log.
    pub async fn start(kind: Kind, config: &Path, admin: u16, extra: &[&str]) -> Result<Self> {
        Self::start_in_group(kind, config, admin, extra, None).await
    }

    /// As `start`, in a group of its own: what redirect rules can tell it by.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_in_group(
        kind: Kind,
        config: &Path,
        admin: u16,
        extra: &[&str],
        group: Option<u32>,
    ) -> Result<Self> {
        let log = config.with_file_name(format!("{}.log", kind.name()));
        let out = std::fs::File::create(&log)?;
        let concurrency: &[&str] =
            if extra.contains(&"--concurrency") { &[] } else { &["--concurrency", "1"] };
        let mut command = Command::new(kind.binary());
        if let Some(group) = group {
            command.gid(group);
        }
        let child = command
            .arg("-c")
            .arg(config)
            .args(concurrency)
            .args(["-l", "warning", "--disable-hot-restart", "--file-flush-interval-msec", "10"])
            .args(extra)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", kind.binary().display()))?;
        let mut proxy = Self { kind, child, admin, log };
        let begin = Instant::now();
        loop {
            if let Some(status) = proxy.child.try_wait()? {
                bail!("{} ended with {status}: {}", kind.name(), proxy.log_tail());
            }
            if matches!(proxy.admin("GET", "/ready").await, Ok((200, _))) {
                return Ok(proxy);
            }
            if begin.elapsed() > START {
                bail!("{} not ready: {}", kind.name(), proxy.log_tail());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Which proxy it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The last lines of its own log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Resident memory in KiB.
    #[must_use]
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        status
            .unwrap_or_default()
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0)
    }

    /// Ends with a signal and waits up to `limit` for the exit.
    ///
    /// # Errors
    /// When it is still there after `limit`.
    pub async fn signal(
        &mut self,
        signal: nix::sys::signal::Signal,
        limit: Duration,
    ) -> Result<ExitStatus> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid())?);
        nix::sys::signal::kill(pid, signal)?;
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(5)).await;
        }
        bail!("{} still runs {limit:?} after {signal}", self.kind.name())
    }

    /// Whether the process still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// An admin request: status and body.
    ///
    /// # Errors
    /// When the admin port does not answer.
    pub async fn admin(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let (head, body) = self.admin_full(method, path).await?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok((status, body))
    }

    /// An admin request: head and body.
    ///
    /// # Errors
    /// When the admin port does not answer within ten seconds.
    pub async fn admin_full(&self, method: &str, path: &str) -> Result<(String, String)> {
        timeout(Duration::from_secs(10), async {
            let mut io = TcpStream::connect(("127.0.0.1", self.admin)).await?;
            let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: admin\r\n{length}connection: close\r\n\r\n"
            );
            io.write_all(request.as_bytes()).await?;
            let mut wire = crate::wire::Wire::new(io, Duration::from_secs(10));
            let head = match wire.head().await {
                Ok(head) => head,
                Err(end) => bail!("admin {path}: {}", end.text()),
            };
            let body = wire.body(head.framing(crate::wire::Framing::UntilClose)).await;
            let mut text = head.first.clone();
            for (name, value) in &head.headers {
                text.push_str(&format!("\n{}: {value}", name.to_ascii_lowercase()));
            }
            Ok((text, String::from_utf8_lossy(&body.data).into_owned()))
        })
        .await
        .context("admin does not answer")?
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
