//! Many WebSockets and HTTP/2 streams held open through the mesh: echo servers in one pod, clients in another. A round
//! sends a message over each of them and waits for its echo; a stream that ends at any other time is lost.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::{Mesh, netns};
use crate::wire::{Framing, Wire};

/// Longer than a round takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// WebSockets that are opened at a time: handshakes in a queue run into the mesh's connect timeout.
const OPENED_AT_ONCE: usize = 50;

/// A masked text frame of a client (RFC 6455): proxies carry it as it is, and so does the echo.
const FRAME: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";

/// A message of an HTTP/2 stream: large enough not to look like an attack by small frames.
const MESSAGE: &[u8] = &[7; 1024];

/// Serves echoes in a pod until the test ends: HTTP/1.1 with any upgrade at one port, HTTP/2 at the other.
///
/// # Errors
/// A port is taken.
pub fn serve(mesh: &Mesh, pod: &str, upgrades: u16, streams: u16) -> Result<()> {
    let bind = move |port| std::net::TcpListener::bind(("0.0.0.0", port));
    let both = move || Ok((bind(upgrades)?, bind(streams)?));
    let (upgrades, streams) = netns::within(&mesh.name, pod, both)?
        .map_err(|error: std::io::Error| anyhow!("echo servers: {error}"))?;
    let listen = |listener: std::net::TcpListener| -> Result<TcpListener> {
        listener.set_nonblocking(true)?;
        Ok(TcpListener::from_std(listener)?)
    };
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let (upgrades, streams) = (listen(upgrades)?, listen(streams)?);
            // What goes wrong with a connection shows at its other end.
            loop {
                tokio::select! {
                    accepted = upgrades.accept() => { spawn_local(upgraded(accepted?.0)); }
                    accepted = streams.accept() => { spawn_local(h2_echoes(accepted?.0)); }
                }
            }
        })
    });
    Ok(())
}

async fn upgraded(io: TcpStream) -> Result<()> {
    let mut wire = Wire::new(io, PATIENCE);
    let head = wire.head().await.map_err(|end| anyhow!(end.text()))?;
    let kind = head.get("upgrade").context("no upgrade")?;
    let answer =
        format!("HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: {kind}\r\n\r\n");
    wire.send(answer.as_bytes()).await.map_err(|end| anyhow!(end.text()))?;
    let mut io = wire.into_inner();
    let mut piece = [0; 64];
    loop {
        match io.read(&mut piece).await? {
            0 => return Ok(()),
            n => io.write_all(&piece[..n]).await?,
        }
    }
}

async fn h2_echoes(io: TcpStream) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(10_000);
    let mut connection = builder.handshake::<_, Bytes>(io).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        spawn_local(async move {
            let mut out = respond.send_response(http::Response::new(()), false)?;
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                let _ = body.flow_control().release_capacity(data.len());
                out.send_data(data, false)?;
            }
            out.send_data(Bytes::new(), true)
        });
    }
    Ok(())
}

/// What is to be held open.
#[derive(Debug, Clone)]
pub struct Plan {
    pub web_sockets: (SocketAddr, u32),
    /// Connections of HTTP/2, and streams of each.
    pub streams: (SocketAddr, u32, u32),
    /// `host` of all requests.
    pub host: String,
}

impl Plan {
    /// Number of streams of both kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        u64::from(self.web_sockets.1) + u64::from(self.streams.1) * u64::from(self.streams.2)
    }
}

/// Streams held open by a thread in a pod.
#[derive(Debug)]
pub struct Held {
    plan: Plan,
    round: watch::Sender<u64>,
    seen: Arc<Seen>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Echoes of all rounds.
    echoes: AtomicU64,
    lost: Mutex<Vec<String>>,
}

impl Held {
    /// Opens them all; each has had its first echo when it returns.
    ///
    /// # Errors
    /// Some cannot be opened.
    pub fn open(mesh: &Mesh, pod: &str, plan: Plan) -> Result<Self> {
        let (round, rounds) = watch::channel(0);
        let seen: Arc<Seen> = Arc::default();
        let (mesh, pod, for_thread) = (mesh.name.clone(), pod.to_owned(), seen.clone());
        let planned = plan.clone();
        let thread = std::thread::spawn(move || {
            let seen = for_thread.clone();
            let all = move || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, hold(planned, rounds, seen));
                Ok(())
            };
            if let Err(error) = netns::within(&mesh, &pod, all).and_then(|done| done) {
                for_thread.lose(format!("{error:#}"));
            }
        });
        let held = Self { plan, round, seen, thread };
        held.round()?;
        Ok(held)
    }

    /// Sends a message over each and waits for all echoes.
    ///
    /// # Errors
    /// Some were lost since the last round, or do not echo.
    pub fn round(&self) -> Result<()> {
        let mut number = 0;
        self.round.send_modify(|round| {
            *round += 1;
            number = *round;
        });
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let lost = self.seen.lost.lock().map_err(|_| anyhow!("a stream panicked"))?.clone();
            let echoes = self.seen.echoes.load(Ordering::Relaxed);
            ensure!(lost.is_empty(), "{} lost in round {number}: {:#?}", lost.len(), lost.first());
            if echoes == self.plan.total() * number {
                return Ok(());
            }
            ensure!(std::time::Instant::now() < until, "round {number}: {echoes} echoes in all");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Closes them.
    ///
    /// # Errors
    /// Their thread panicked, or some were lost before.
    pub fn close(self) -> Result<()> {
        drop(self.round);
        self.thread.join().map_err(|_| anyhow!("a stream panicked"))?;
        let lost = self.seen.lost.lock().map_err(|_| anyhow!("a stream panicked"))?;
        ensure!(lost.is_empty(), "{} lost: {:#?}", lost.len(), lost.first());
        Ok(())
    }
}

impl Seen {
    fn lose(&self, why: String) {
        if let Ok(mut lost) = self.lost.lock() {
            lost.push(why);
        }
    }
}

/// Until there are no more rounds.
async fn hold(plan: Plan, rounds: watch::Receiver<u64>, seen: Arc<Seen>) {
    let mut work: Vec<tokio::task::JoinHandle<()>> = Vec::new();
    let mut start =
        |what: &'static str, task: futures_util::future::LocalBoxFuture<'static, Result<()>>| {
            let seen = seen.clone();
            work.push(spawn_local(async move {
                if let Err(error) = task.await {
                    seen.lose(format!("{what}: {error:#}"));
                }
            }));
        };
    let (to, count) = plan.web_sockets;
    let room = Rc::new(Semaphore::new(OPENED_AT_ONCE));
    for _ in 0..count {
        let (host, room) = (plan.host.clone(), room.clone());
        start("a WebSocket", Box::pin(web_socket(to, host, room, rounds.clone(), seen.clone())));
    }
    let (to, connections, count) = plan.streams;
    for _ in 0..connections {
        start(
            "HTTP/2",
            Box::pin(h2_streams(to, plan.host.clone(), count, rounds.clone(), seen.clone())),
        );
    }
    join_all(work).await;
}

async fn web_socket(
    to: SocketAddr,
    host: String,
    room: Rc<Semaphore>,
    mut rounds: watch::Receiver<u64>,
    seen: Arc<Seen>,
) -> Result<()> {
    let place = room.acquire().await?;
    let io = timeout(PATIENCE, TcpStream::connect(to)).await??;
    let mut wire = Wire::new(io, PATIENCE);
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    wire.send(head.as_bytes()).await.map_err(|end| anyhow!(end.text()))?;
    let head = wire.head().await.map_err(|end| anyhow!("{} before the answer", end.text()))?;
    if head.status() != 101 {
        bail!("{head:?} {:?}", wire.body(head.framing(Framing::None)).await);
    }
    drop(place);
    let mut io = wire.into_inner();
    let mut piece = [0; FRAME.len()];
    let mut done = 0;
    loop {
        let round = *rounds.borrow_and_update();
        while done < round {
            io.write_all(FRAME).await?;
            timeout(PATIENCE, io.read_exact(&mut piece))
                .await
                .context("no echo")?
                .context("closed")?;
            ensure!(piece == FRAME, "another echo");
            seen.echoes.fetch_add(1, Ordering::Relaxed);
            done += 1;
        }
        tokio::select! {
            more = rounds.changed() => if more.is_err() { return Ok(()) },
            read = io.read(&mut piece) => bail!("between two rounds: {read:?}"),
        }
    }
}

async fn h2_streams(
    to: SocketAddr,
    host: String,
    count: u32,
    rounds: watch::Receiver<u64>,
    seen: Arc<Seen>,
) -> Result<()> {
    let io = timeout(PATIENCE, TcpStream::connect(to)).await??;
    let (sender, connection) = timeout(PATIENCE, h2::client::handshake(io)).await??;
    let mut connection = spawn_local(connection);
    let streams = (0..count).map(|_| h2_stream(sender.clone(), &host, rounds.clone(), &seen));
    tokio::select! {
        results = join_all(streams) => results.into_iter().collect::<Result<Vec<()>>>().map(drop),
        ended = &mut connection => bail!("the connection ended: {ended:?}"),
    }
}

async fn h2_stream(
    sender: h2::client::SendRequest<Bytes>,
    host: &str,
    mut rounds: watch::Receiver<u64>,
    seen: &Seen,
) -> Result<()> {
    let mut sender = sender.ready().await?;
    let request = http::Request::post(format!("http://{host}/stream")).body(())?;
    let (response, mut out) = sender.send_request(request, false)?;
    let response = timeout(PATIENCE, response).await.context("no answer")??;
    ensure!(response.status() == 200, "{response:?}");
    let mut body = response.into_body();
    let mut done = 0;
    loop {
        let round = *rounds.borrow_and_update();
        while done < round {
            out.send_data(Bytes::from_static(MESSAGE), false)?;
            let mut back = 0;
            while back < MESSAGE.len() {
                let data = timeout(PATIENCE, body.data()).await.context("no echo")?;
                let data = data.context("the stream ended")??;
                back += data.len();
                body.flow_control().release_capacity(data.len())?;
            }
            seen.echoes.fetch_add(1, Ordering::Relaxed);
            done += 1;
        }
        tokio::select! {
            more = rounds.changed() => if more.is_err() { return Ok(()) },
            data = body.data() => bail!("between two rounds: {data:?}"),
        }
    }
}
