//! nginx, the backend of every comparison.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::child::Child;

/// Addresses 127.0.0.1 to 127.0.0.N on which the backend listens, for clusters of many endpoints.
pub const ADDRESSES: u8 = 10;

/// The running backend.
#[derive(Debug)]
pub struct Backend {
    /// HTTP/1 port.
    pub port: u16,
    /// HTTP/2 port (prior knowledge, no TLS).
    pub port_h2: u16,
    _nginx: Child,
}

impl Backend {
    /// Writes configuration and bodies into `directory` and starts nginx on `cores`.
    pub fn start(cores: &str, directory: &Path) -> Result<Self> {
        let (port, port_h2) = (free_port()?, free_port()?);
        std::fs::write(directory.join("body-10k"), vec![b'x'; 10_000])?;
        std::fs::write(directory.join("body-1m"), vec![b'x'; 1_000_000])?;
        let listens: Vec<String> = (1..=ADDRESSES)
            .map(|host| format!("        listen 127.0.0.{host}:{port} backlog=4096;"))
            .collect();
        let config = render(
            include_str!("configs/nginx.conf"),
            &[
                ("DIR", &directory.display().to_string()),
                ("LISTENS", &listens.join("\n")),
                ("PORT_H2", &port_h2.to_string()),
            ],
        );
        let path = directory.join("nginx.conf");
        std::fs::write(&path, config)?;
        let log = directory.join("nginx.log");
        let args = ["-p".as_ref(), directory.as_os_str(), "-c".as_ref(), path.as_os_str()];
        let mut nginx = Child::start(cores, Path::new("nginx"), args, &log)?;
        wait_for_port(port, &mut nginx, Duration::from_secs(10))
            .with_context(|| format!("nginx: {}", tail(&log)))?;
        Ok(Self { port, port_h2, _nginx: nginx })
    }
}

/// Puts values in the place of `@NAME@`.
pub fn render(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    text
}

/// A port of 127.0.0.1 that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Waits until something accepts on the port, or the child has ended.
pub fn wait_for_port(port: u16, child: &mut Child, limit: Duration) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let start = Instant::now();
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        if child.has_ended() {
            bail!("ended before it listened");
        }
        if start.elapsed() > limit {
            bail!("does not listen after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The last lines of a log file.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
