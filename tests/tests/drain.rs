//! SIGTERM while keep-alive clients of both protocols send 2 000 requests a second: every request
//! that was sent gets its answer, and the process ends by itself with code 0.

use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::area::Area;
use tests::load::{Tally, h1, h2};
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
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
        sleep(Duration::from_millis(1500)).await;
        let before = tally.ok.get();
        let status = sandbox.proxy.signal(Signal::SIGTERM, Duration::from_secs(8)).await.unwrap();
        for client in clients {
            client.await.unwrap();
        }
        eprintln!("{before} answers before SIGTERM, {} in all", tally.ok.get());
        assert!(before > 1000, "the load never came up: {before} answers");
        assert_eq!(tally.failed.get(), 0, "{:?}", tally.first.take());
        assert_eq!(status.code(), Some(0));
    });
}
