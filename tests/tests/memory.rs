//! Memory: large bodies through slow readers, and many requests, leave the resident size flat.
//! `SOAK_REQUESTS` sets the length of the soak (10 000 000 by hand, fewer here).
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tests::area::Area;
use tests::load::{Tally, h1};
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

const BODY: usize = 100 << 20;
const LIMIT_KIB: u64 = 40 << 10;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// A proxy before one upstream that this test plays itself.
async fn proxy_before(port: u16) -> Sandbox {
    let mut area = Area::load("../load").unwrap();
    let address =
        serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    for cluster in &mut area.clusters {
        let name = cluster["name"].clone();
        cluster["load_assignment"] = serde_json::json!({
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        });
    }
    Sandbox::start(Kind::Outrigger, &area, &[]).await.unwrap()
}

/// Reads `left` bytes: nothing for a while, then in small steps.
async fn read_slowly(io: &mut (impl AsyncReadExt + Unpin), mut left: usize) {
    sleep(Duration::from_millis(700)).await;
    let mut buf = vec![0; 64 << 10];
    let mut steps = 0;
    while left > 0 {
        let n = io.read(&mut buf).await.unwrap();
        assert!(n > 0, "closed with {left} bytes missing");
        left -= n.min(left);
        steps += 1;
        if steps % 32 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Runs the transfer and gives the largest resident size seen meanwhile.
async fn peak(sandbox: &Sandbox, transfer: impl Future<Output = ()>) -> u64 {
    let mut transfer = std::pin::pin!(transfer);
    let mut peak = 0;
    loop {
        tokio::select! {
            () = &mut transfer => return peak,
            () = sleep(Duration::from_millis(10)) => peak = peak.max(sandbox.proxy.rss_kib()),
        }
    }
}

async fn read_head(io: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
}

async fn write_zeros(io: &mut (impl AsyncWriteExt + Unpin), mut left: usize) {
    let zeros = vec![0; 64 << 10];
    while left > 0 {
        let n = left.min(zeros.len());
        io.write_all(&zeros[..n]).await.unwrap();
        left -= n;
    }
}

#[test]
fn upload_to_a_slow_reader() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = proxy_before(listener.local_addr().unwrap().port()).await;
        let port = sandbox.port("main").unwrap();
        let upstream = async {
            let (mut io, _) = listener.accept().await.unwrap();
            read_head(&mut io).await;
            read_slowly(&mut io, BODY).await;
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            sleep(Duration::from_millis(50)).await;
        };
        let client = async {
            let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {BODY}\r\n\r\n");
            io.write_all(head.as_bytes()).await.unwrap();
            write_zeros(&mut io, BODY).await;
            read_head(&mut io).await;
        };
        let rss = peak(&sandbox, async {
            tokio::join!(upstream, client);
        })
        .await;
        assert!(rss < LIMIT_KIB, "{rss} KiB while uploading");
    });
}

/// Answers one HTTP/1 request with the large body.
async fn serve_body(listener: &TcpListener) {
    let (mut io, _) = listener.accept().await.unwrap();
    read_head(&mut io).await;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
    io.write_all(head.as_bytes()).await.unwrap();
    write_zeros(&mut io, BODY).await;
    sleep(Duration::from_millis(50)).await;
}

#[test]
fn download_to_a_slow_reader() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = proxy_before(listener.local_addr().unwrap().port()).await;
        let port = sandbox.port("main").unwrap();
        let client = async {
            let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            io.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
            read_head(&mut io).await;
            read_slowly(&mut io, BODY).await;
        };
        let rss = peak(&sandbox, async {
            tokio::join!(serve_body(&listener), client);
        })
        .await;
        assert!(rss < LIMIT_KIB, "{rss} KiB while downloading");
    });
}

#[test]
fn download_to_a_slow_http2_reader() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = proxy_before(listener.local_addr().unwrap().port()).await;
        let port = sandbox.port("main").unwrap();
        let client = async {
            let io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // A window as wide as clients of bulk data offer: our own limit must hold.
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(256 << 20).initial_connection_window_size(256 << 20);
            let (sender, connection) = builder.handshake::<_, Bytes>(io).await.unwrap();
            tokio::task::spawn_local(connection);
            let request = http::Request::get("http://h/").body(()).unwrap();
            let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
            let mut body = response.await.unwrap().into_body();
            sleep(Duration::from_millis(300)).await;
            let mut left = BODY;
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                left -= data.len();
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            assert_eq!(left, 0);
        };
        let rss = peak(&sandbox, async {
            tokio::join!(serve_body(&listener), client);
        })
        .await;
        assert!(rss < LIMIT_KIB, "{rss} KiB while downloading");
    });
}

/// After so many requests everything has been touched.
const WARM: u64 = 20_000;

#[test]
fn resident_size_is_flat_over_many_requests() {
    let count: u64 =
        std::env::var("SOAK_REQUESTS").ok().and_then(|v| v.parse().ok()).unwrap_or(60_000);
    run(async {
        let area = Area::load("../load").unwrap();
        let sandbox = Sandbox::start(Kind::Outrigger, &area, &[]).await.unwrap();
        let port = sandbox.port("main").unwrap();
        let tally = Rc::new(Tally::default());
        let mut warm = 0;
        while tally.ok.get() < count.max(2 * WARM) {
            // New connections in every round, so that their cost would show too.
            sandbox.upstreams.begin(&serde_json::Value::Null, false);
            let until = Instant::now() + Duration::from_secs(2);
            let clients: Vec<_> = (0..8)
                .map(|_| {
                    tokio::task::spawn_local(h1(port, Duration::ZERO, until, Rc::clone(&tally)))
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
            assert_eq!(tally.failed.get(), 0, "{:?}", tally.first.take());
            if warm == 0 && tally.ok.get() >= WARM {
                warm = sandbox.proxy.rss_kib();
            }
        }
        let end = sandbox.proxy.rss_kib();
        eprintln!(
            "{} requests: {warm} KiB after the first {WARM}, {end} KiB at the end",
            tally.ok.get()
        );
        assert!(
            end < warm + 2048,
            "grew from {warm} to {end} KiB over {} requests",
            tally.ok.get()
        );
    });
}
