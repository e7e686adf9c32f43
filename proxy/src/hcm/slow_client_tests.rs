//! A client that does not read its answer: the upstream that has given all of it is free for others.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use crate::io::Io;
use crate::worker::testing::Bench;

/// More than the pipes hold, less than the proxy buffers for a client.
const ANSWER: usize = 500_000;

async fn ask(client: &mut Io) {
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
}

async fn read_head(io: &mut Io) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
}

async fn answer(upstream: &mut Io, body: &[u8]) {
    read_head(upstream).await;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    upstream.write_all(head.as_bytes()).await.unwrap();
    upstream.write_all(body).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_upstream_is_free_once_its_answer_was_read() {
    let test = async {
        let one = "connect_timeout: 1s, circuit_breakers: {thresholds: \
                   [{max_connections: 1, max_pending_requests: 1}]}";
        let bench = Bench::start("stat_prefix: l", one);
        let mut slow = bench.connect();
        ask(&mut slow).await;
        let mut upstream = bench.upstream.accept().await;
        answer(&mut upstream, &[b'a'; ANSWER]).await;
        let mut other = bench.connect();
        ask(&mut other).await;
        // On the same connection, which is the only one there may be.
        answer(&mut upstream, b"b").await;
        read_head(&mut other).await;
        assert_eq!(other.read_u8().await.unwrap(), b'b');
        read_head(&mut slow).await;
        let mut body = vec![0; ANSWER];
        slow.read_exact(&mut body).await.unwrap();
        assert!(body.iter().all(|byte| *byte == b'a'));
    };
    // Over as soon as nothing moves.
    let in_time = tokio::time::timeout(Duration::from_secs(60), test);
    LocalSet::new().run_until(in_time).await.unwrap();
}
