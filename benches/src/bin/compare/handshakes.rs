//! A load generator that makes TLS handshakes and nothing else: connect, full mutual handshake, close_notify, and the
//! wait for the proxy's end, which it sends after it has verified the client's certificate. Threads, because the
//! generator's own time does not count.

use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use rustls::{ClientConfig, Stream};
use serde::{Deserialize, Serialize};

use crate::args::parse_seconds;
use crate::certificates;

/// What to do.
#[derive(Clone, Debug, Args)]
pub struct Spec {
    /// Address of the proxy.
    #[arg(long)]
    pub address: SocketAddr,
    /// Where the certificates are.
    #[arg(long)]
    pub directory: PathBuf,
    /// Connections at a time.
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Seconds.
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub duration: Duration,
}

/// What was done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub handshakes: u64,
    /// Handshakes per second.
    pub rate: f64,
}

/// Runs the load and prints the outcome as JSON.
pub fn main(spec: &Spec) -> Result<()> {
    let config = certificates::client(&spec.directory)?;
    let start = Instant::now();
    let threads: Vec<_> = (0..spec.connections)
        .map(|_| {
            let (config, address, duration) = (config.clone(), spec.address, spec.duration);
            std::thread::spawn(move || -> Result<u64> {
                let mut handshakes = 0;
                while start.elapsed() < duration {
                    handshake(address, &config)?;
                    handshakes += 1;
                }
                Ok(handshakes)
            })
        })
        .collect();
    let mut handshakes = 0;
    for thread in threads {
        handshakes += thread.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    let rate = handshakes as f64 / start.elapsed().as_secs_f64();
    serde_json::to_writer(io::stdout().lock(), &Outcome { handshakes, rate })?;
    Ok(())
}

/// One handshake; an error unless the proxy closes the connection in good order.
fn handshake(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<()> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_nodelay(true)?;
    let mut session = certificates::connection(config)?;
    while session.is_handshaking() {
        session.complete_io(&mut socket).context("handshake")?;
    }
    session.send_close_notify();
    while session.wants_write() {
        session.write_tls(&mut socket)?;
    }
    socket.shutdown(Shutdown::Write)?;
    // Some answer a connection without a request; an alert is an error here.
    let mut rest = Vec::new();
    match Stream::new(&mut session, &mut socket).read_to_end(&mut rest) {
        Ok(_) => Ok(()),
        // An end without close_notify is an end.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error).context("end of the connection"),
    }
}
