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
        let until = Instant::now() + Duration::from_secs(8);
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
            let run = |kind| LocalSet::new().block_on(&runtime, told(kind, strategy, commands));
            let [theirs, ours] = [Kind::Envoy, Kind::Outrigger].map(|kind| run(kind).unwrap());
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
    let listeners = [("main", "/direct"), ("inbound", "/")];
    let mut seen = Vec::new();
    let mut open = [None, None];
    for &command in commands {
        let (status, _) = sandbox.proxy.admin("POST", command).await?;
        let (_, ready) = sandbox.proxy.admin("GET", "/ready").await?;
        seen.push(format!("{command}: {status}, {}", ready.trim()));
        for ((name, path), open) in listeners.iter().zip(&mut open) {
            let port = sandbox.port(name)?;
            let mut old = open.take();
            let stays = match &mut old {
                Some(stream) => Some(ask(stream, path).await?),
                None => None,
            };
            if command == STOPS {
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

/// Whether a connection stays after one more request. One that has been closed without an answer does not: its client
/// was told as well.
async fn ask(stream: &mut TcpStream, path: &str) -> Result<bool> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if sent.is_err() || stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            ensure!(head.is_empty(), "half an answer: {head:?}");
            return Ok(false);
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    Ok(!head.contains("\r\nconnection: close\r\n"))
}
