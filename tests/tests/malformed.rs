//! Ten thousand generated malformed requests: no panic, no hang, and an answer of the right class.
//! `MALFORMED_INPUTS` and `MALFORMED_SEED` choose others.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::area::Area;
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tests::wire::{End, Framing, Wire};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const VALID: &[&str] = &[
    "GET /a/b?c=d HTTP/1.1\r\nhost: a.com\r\nx-a: 1\r\nx-b: two words\r\ncookie: a=b\r\n\r\n",
    "POST /p HTTP/1.1\r\nhost: a.com\r\ncontent-length: 5\r\n\r\nhello",
    "POST /p HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nx-t: 1\r\n\r\n",
    "GET http://a.com:80/x HTTP/1.1\r\nhost: a.com:80\r\nconnection: keep-alive, x-a\r\nx-a: 1\r\n\r\n",
    "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbytes",
    "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x01\x05\0\0\0\x01\u{82}",
];

const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    ":",
    " ",
    "\t",
    "\x0b",
    "content-length: 3\r\n",
    "content-length: 18446744073709551616\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip\r\n",
    "host: evil\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "-1\r\n",
    " folded\r\n",
    "\u{ff}",
    "%00",
    "HTTP/1.0",
    "HTTP/9.9",
    "connection: host\r\n",
    "upgrade: h2c\r\n",
    "GET / HTTP/1.1\r\n\r\n",
];

/// A valid request with one to four things wrong.
fn mutate(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = tests::area::bytes(VALID[rng.random_range(0..VALID.len())]);
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 if at < bytes.len() => {
                let end = rng.random_range(at..bytes.len().min(at + 20)) + 1;
                bytes.drain(at..end);
            }
            2 => bytes.truncate(at),
            3 => {
                let end = bytes.len().min(at + rng.random_range(0..40));
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let junk: Vec<u8> = (0..rng.random_range(1..8)).map(|_| rng.random()).collect();
                bytes.splice(at..at, junk);
            }
            5 if rng.random_ratio(1, 20) => {
                let long = vec![b'x'; rng.random_range(1000..100_000)];
                bytes.splice(at..at, long);
            }
            _ => {
                let piece = PIECES[rng.random_range(0..PIECES.len())];
                bytes.splice(at..at, tests::area::bytes(piece));
            }
        }
    }
    bytes
}

/// Sends the input and reads until the proxy closes; what is wrong with the answer, if anything.
async fn check(port: u16, input: &[u8]) -> Result<(), String> {
    let io = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
    let (read, mut write) = io.into_split();
    // The proxy may answer and close before everything is written.
    let _ = tokio::time::timeout(Duration::from_secs(5), write.write_all(input)).await;
    let mut wire = Wire::new(read, Duration::from_secs(10));
    let body = wire.body(Framing::UntilClose).await;
    if body.end == End::Timeout {
        return Err("the connection stays open".into());
    }
    // HTTP/2 answers begin with a SETTINGS frame.
    if body.data.is_empty() || body.data.get(3) == Some(&4) {
        return Ok(());
    }
    let line = String::from_utf8_lossy(&body.data[..body.data.len().min(12)]).into_owned();
    let status: u16 = line.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    let right = matches!(status, 100 | 200 | 400..=499 | 501 | 505);
    if line.starts_with("HTTP/1.1 ") && right { Ok(()) } else { Err(format!("answers {line:?}")) }
}

#[test]
fn malformed_inputs_get_the_right_class_of_answer() {
    let number = |name: &str, otherwise| {
        std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
    };
    let (count, seed) = (number("MALFORMED_INPUTS", 10_000), number("MALFORMED_SEED", 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let area = Area::load("../robustness").unwrap();
        let mut sandbox = Sandbox::start(Kind::Outrigger, &area, &[]).await.unwrap();
        let port = sandbox.port("main").unwrap();
        sandbox.upstreams.begin(&serde_json::Value::Null, false);
        let mut rng = StdRng::seed_from_u64(seed);
        let slots = Arc::new(Semaphore::new(200));
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..count {
            let input = mutate(&mut rng);
            let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
            running.spawn(async move {
                let verdict = check(port, &input).await;
                drop(slot);
                verdict.map_err(|e| format!("{e}: {:?}", String::from_utf8_lossy(&input)))
            });
        }
        let mut faults = Vec::new();
        while let Some(verdict) = running.join_next().await {
            faults.extend(verdict.unwrap().err());
        }
        let tail = sandbox.proxy.log_tail();
        assert!(sandbox.proxy.alive(), "died: {tail}");
        assert!(!tail.contains("panicked"), "{tail}");
        // What reached the upstream must be a request that anybody can read.
        for seen in sandbox.upstreams.seen() {
            if seen.end == "malformed" {
                faults.push(format!("forwarded: {:?}", seen.head));
            }
        }
        faults.truncate(20);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    });
}
