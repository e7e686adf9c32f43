//! A paced load from inside of a pod, for what has to go on without a single failure whatever is done to the mesh.
//!
//! A kept connection that ends, for whatever reason, is a failure, as is each request without a whole 200.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Mesh;
use super::netns;
use crate::wire::{End, Framing, Wire};

/// Longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// What came of a load.
#[derive(Debug, Default)]
pub struct Tally {
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    first: Mutex<Vec<String>>,
}

impl Tally {
    fn fail(&self, why: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first.lock()
            && first.len() < 5
        {
            first.push(why);
        }
    }

    /// How many exchanges there were.
    ///
    /// # Errors
    /// Some failed, or there were none.
    pub fn judge(&self) -> Result<u64> {
        let (ok, failed) = (self.ok.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        ensure!(failed == 0 && ok > 0, "{failed} of {} failed: {:#?}", ok + failed, self.first);
        Ok(ok)
    }
}

/// One client.
#[derive(Debug, Clone)]
pub struct Client {
    pub to: SocketAddr,
    pub speaks: Speaks,
    /// Whether all exchanges go over one connection, or each over its own.
    pub keeps: bool,
    /// From one exchange to the next.
    pub every: Duration,
}

/// What a client says.
#[derive(Debug, Clone)]
pub enum Speaks {
    /// A GET.
    Http { host: String, path: String },
    /// A line, to a server that greets and then echoes.
    Echo,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// No clients yet.
    #[must_use]
    pub fn new() -> Self {
        Self { tally: Arc::default(), stop: Arc::default(), threads: Vec::new() }
    }

    /// Lets clients work in a pod.
    pub fn start(&mut self, mesh: &Mesh, pod: &str, clients: Vec<Client>) {
        let (tally, stop) = (self.tally.clone(), self.stop.clone());
        let (mesh, pod) = (mesh.name.clone(), pod.to_owned());
        self.threads.push(std::thread::spawn(move || {
            netns::within(&mesh, &pod, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, async {
                    let work = clients.into_iter().map(|client| run(client, &tally, &stop));
                    futures_util::future::join_all(work).await;
                });
                Ok(())
            })?
        }));
    }

    /// Lets something else be done again and again on a thread in a pod, each time an exchange.
    pub fn repeat(
        &mut self,
        mesh: &Mesh,
        pod: &str,
        every: Duration,
        mut exchange: impl FnMut() -> Result<()> + Send + 'static,
    ) {
        let (tally, stop) = (self.tally.clone(), self.stop.clone());
        let (mesh, pod) = (mesh.name.clone(), pod.to_owned());
        self.threads.push(std::thread::spawn(move || {
            netns::within(&mesh, &pod, move || {
                while !stop.load(Ordering::Relaxed) {
                    match exchange() {
                        Ok(()) => _ = tally.ok.fetch_add(1, Ordering::Relaxed),
                        Err(error) => tally.fail(format!("{error:#}")),
                    }
                    std::thread::sleep(every);
                }
            })
        }));
    }

    /// Ends it.
    ///
    /// # Errors
    /// A client's thread has panicked, or could not enter its pod.
    pub fn stop(self) -> Result<Arc<Tally>> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(self.tally)
    }
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

async fn run(client: Client, tally: &Tally, stop: &AtomicBool) {
    let mut tick = interval(client.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept: Option<Wire<TcpStream>> = None;
    while !stop.load(Ordering::Relaxed) {
        match turn(&client, kept.take(), &mut tick).await {
            Ok(wire) => {
                tally.ok.fetch_add(1, Ordering::Relaxed);
                kept = wire;
            }
            Err(error) => tally.fail(format!("{client:?}: {error:#}")),
        }
    }
}

/// One exchange, once it is time; gives the connection back where it is kept.
async fn turn(
    client: &Client,
    kept: Option<Wire<TcpStream>>,
    tick: &mut tokio::time::Interval,
) -> Result<Option<Wire<TcpStream>>> {
    let mut wire = if let Some(mut wire) = kept {
        // Nothing may come between two exchanges, least of all the end.
        tokio::select! {
            biased;
            end = wire.fill() => bail!("between two exchanges: {:?} {:?}", end.err().map(End::text), wire.held()),
            _ = tick.tick() => wire,
        }
    } else {
        tick.tick().await;
        connect(client).await?
    };
    match &client.speaks {
        Speaks::Http { host, path } => http(&mut wire, host, path, client.keeps).await?,
        Speaks::Echo => echo(&mut wire, "again\n").await?,
    }
    Ok(client.keeps.then_some(wire))
}

async fn connect(client: &Client) -> Result<Wire<TcpStream>> {
    let io = timeout(PATIENCE, TcpStream::connect(client.to)).await.context("connect")??;
    io.set_nodelay(true)?;
    let mut wire = Wire::new(io, PATIENCE);
    if matches!(client.speaks, Speaks::Echo) {
        while !wire.held().ends_with(b"\n") {
            wire.fill().await.map_err(|end| anyhow!("{} before the greeting", end.text()))?;
        }
        wire.take();
    }
    Ok(wire)
}

async fn http(wire: &mut Wire<TcpStream>, host: &str, path: &str, keeps: bool) -> Result<()> {
    let connection = if keeps { "keep-alive" } else { "close" };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: {connection}\r\n\r\n");
    wire.send(head.as_bytes()).await.map_err(|end| anyhow!("{} while sending", end.text()))?;
    let head = wire.head().await.map_err(|end| anyhow!("{} before the answer", end.text()))?;
    let body = wire.body(head.framing(Framing::None)).await;
    ensure!(head.status() == 200 && body.end == End::Complete, "{head:?} {body:?}");
    ensure!(
        !keeps || head.get("connection").is_none_or(|v| !v.eq_ignore_ascii_case("close")),
        "told to close: {head:?}"
    );
    Ok(())
}

async fn echo(wire: &mut Wire<TcpStream>, line: &str) -> Result<()> {
    wire.send(line.as_bytes()).await.map_err(|end| anyhow!("{} while sending", end.text()))?;
    while wire.held().len() < line.len() {
        wire.fill().await.map_err(|end| anyhow!("{} before the echo", end.text()))?;
    }
    ensure!(wire.take() == line.as_bytes(), "another echo");
    Ok(())
}
