//! SIGTERM while keep-alive clients of both protocols send 2 000 requests a second: every request
//! that was sent gets its answer, and the process ends by itself with code 0. What the admin interface has to say
//! about drains means the same as with Envoy.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tests::area::Area;
use tests::load::{Tally, h1, h2};
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

/// Nobody who says nothing keeps the process: not where listener filters wait for a first byte without a limit.
#[test]
fn sigterm_ends_silent_connections() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let area = Area::load("../load").unwrap();
        let mut sandbox =
            Sandbox::start(Kind::Outrigger, &area, &["--drain-time-s", "25"]).await.unwrap();
        let port = sandbox.port("silent").unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let waits = |(name, value): (&String, &i64)| name.ends_with("pre_cx_active") && *value > 0;
        while !sandbox.stats().await.unwrap().iter().any(waits) {
            tokio::task::yield_now().await;
        }
        let status = sandbox.proxy.signal(Signal::SIGTERM, Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.code(), Some(0));
    });
}

#[test]
fn sigterm_under_load_fails_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let area = Area::load("../load").unwrap();
        let mut sandbox =
            Sandbox::start(Kind::Outrigger, &area, &["--drain-time-s", "5"]).await.unwrap();
        let port = sandbox.port("main").unwrap();
        sandbox.upstreams.begin(&serde_json::json!({"body": "ok", "delay_ms": 3}), false);
        let tally = Rc::new(Tally::default());
        // The end of the process ends them before.
        let until = Instant::now() + Duration::from_secs(60);
        let mut clients = Vec::new();
        // 20 × 50 + 4 × 250 requests a second.
        for _ in 0..20 {
            let client = h1(port, Duration::from_millis(20), until, Rc::clone(&tally));
            clients.push(tokio::task::spawn_local(client));
        }
        for _ in 0..4 {
            let client = h2(port, Duration::from_millis(4), until, Rc::clone(&tally));
            clients.push(tokio::task::spawn_local(client));
        }
        while tally.ok.get() < 1000 && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        let before = tally.ok.get();
        let status = sandbox.proxy.signal(Signal::SIGTERM, Duration::from_secs(20)).await.unwrap();
        for client in clients {
            client.await.unwrap();
        }
        eprintln!("{before} answers before SIGTERM, {} in all", tally.ok.get());
        assert!(before >= 1000, "the load never came up: {before} answers");
        assert_eq!(tally.failed.get(), 0, "{:?}", tally.first.take());
        assert_eq!(status.code(), Some(0));
    });
}

/// Who is told to go, and what `/ready` says meanwhile.
#[test]
fn answers_tell_clients_to_go_as_envoys_do() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for strategy in ["immediate", "gradual"] {
        for commands in [DRAINS, &["/reset_counters", STOPS]] {
            let run = |kind| {
                let told = async {
                    let all = told(kind, strategy, commands);
                    tokio::time::timeout(Duration::from_secs(120), all).await
                };
                LocalSet::new().block_on(&runtime, told)
            };
            let [theirs, ours] =
                [Kind::Envoy, Kind::Outrigger].map(|kind| run(kind).unwrap().unwrap());
            assert_eq!(ours, theirs, "{strategy}");
        }
    }
}

const DRAINS: &[&str] = &[
    "/reset_counters",
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/drain_listeners?skip_exit&inboundonly",
    "/drain_listeners?graceful&skip_exit",
    "/drain_listeners?graceful",
    "/healthcheck/fail",
];

/// After it, nobody new is let in.
const STOPS: &str = "/drain_listeners";

async fn told(kind: Kind, strategy: &str, commands: &[&str]) -> Result<Vec<String>> {
    let area = Area::load("../load")?;
    // So long that nobody is told by chance where they are told gradually.
    let options = ["--drain-time-s", "1000000", "--drain-strategy", strategy];
    let sandbox = Sandbox::start(kind, &area, &options).await?;
    let listeners = [("main", "/direct"), ("inbound", "/"), ("modify", "/direct")];
    let mut seen = Vec::new();
    let mut open = [None, None, None];
    let mut closed = false;
    for &command in commands {
        let mut in_flight = Vec::new();
        if !closed {
            for name in ["main", "modify"] {
                in_flight.push((name, InFlight::begin(sandbox.port(name)?).await?));
            }
        }
        while requests_in_flight(&sandbox).await? < 2 * in_flight.len() as i64 {
            sleep(Duration::from_millis(5)).await;
        }
        let (status, _) = sandbox.proxy.admin("POST", command).await?;
        let (_, ready) = sandbox.proxy.admin("GET", "/ready").await?;
        seen.push(format!("{command}: {status}, {}", ready.trim()));
        for (name, requests) in in_flight {
            seen.push(format!("{name}: in flight: {}", requests.finish().await?));
        }
        for ((name, path), open) in listeners.iter().zip(&mut open) {
            let port = sandbox.port(name)?;
            let mut old = open.take();
            let stays = match &mut old {
                Some(stream) => Some(ask(stream, path).await?),
                None => None,
            };
            closed = command == STOPS;
            if closed {
                seen.push(format!("{name}: an open one stays: {stays:?}"));
                continue;
            }
            let mut new = TcpStream::connect(("127.0.0.1", port)).await?;
            let new_stays = ask(&mut new, path).await?;
            seen.push(format!("{name}: an open one stays: {stays:?}, a new one: {new_stays}"));
            *open = new_stays.then_some(new);
        }
    }
    Ok(seen)
}

/// A request of each protocol whose last byte has not been sent, so that its answer waits for us.
struct InFlight {
    h1: TcpStream,
    h2: TcpStream,
}

impl InFlight {
    async fn begin(port: u16) -> Result<Self> {
        let mut h1 = TcpStream::connect(("127.0.0.1", port)).await?;
        h1.write_all(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\n").await?;
        let mut h2 = TcpStream::connect(("127.0.0.1", port)).await?;
        h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        h2.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        // POST, http, /, and the authority `h`, by RFC 7541's static table.
        h2.write_all(&frame(HEADERS, 4, 1, b"\x83\x86\x84\x41\x01h")).await?;
        Ok(Self { h1, h2 })
    }

    /// What their answers say of their connections.
    async fn finish(mut self) -> Result<String> {
        self.h1.write_all(b"x").await?;
        let stays = answer(&mut self.h1).await?;
        self.h2.write_all(&frame(DATA, 1, 1, b"x")).await?;
        let (mut read, mut told) = (Vec::new(), "nothing");
        loop {
            while let Some(&[a, b, c, kind, _, ..]) = read.first_chunk::<9>() {
                let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
                if read.len() < length {
                    break;
                }
                match kind {
                    GOAWAY => told = "GOAWAY",
                    HEADERS => return Ok(format!("h1 stays: {stays}, h2 hears {told} before")),
                    _ => {}
                }
                read.drain(..length);
            }
            ensure!(self.h2.read_buf(&mut read).await? > 0, "no answer by h2");
        }
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
    [&head, payload].concat()
}

/// Of all listeners.
async fn requests_in_flight(sandbox: &Sandbox) -> Result<i64> {
    let stats = sandbox.stats().await?;
    let counts = |name: &str| {
        name.starts_with("http.")
            && name.ends_with(".downstream_rq_active")
            && !name.starts_with("http.admin")
    };
    Ok(stats.iter().filter(|(name, _)| counts(name)).map(|(_, value)| value).sum())
}

/// Whether a connection stays after one more request. One that has been closed without an answer does not: its client
/// was told as well.
async fn ask(stream: &mut TcpStream, path: &str) -> Result<bool> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    match stream.write_all(request.as_bytes()).await {
        Ok(()) => answer(stream).await,
        Err(_) => Ok(false),
    }
}

/// As `ask`, of a request that has been sent.
async fn answer(stream: &mut TcpStream) -> Result<bool> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            ensure!(head.is_empty(), "half an answer: {head:?}");
            return Ok(false);
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    Ok(!head.contains("\r\nconnection: close\r\n"))
}
