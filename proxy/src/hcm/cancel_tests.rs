//! A client of HTTP/2 that gives up a request while nobody reads it: its upstream does not either.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use crate::codec::h2;
use crate::codec::head::{Protocol, RequestHead, Scheme};
use crate::codec::{ClientStream, Fault};
use crate::io::Io;
use crate::worker::testing::Bench;

const PIECE: usize = 16 * 1024;

/// Of a connection in memory.
const PIPE: usize = 64 * 1024;

/// More than the proxy buffers for an upstream, and most of what all streams of a connection may send unread.
const STALLED: usize = 20 << 20;

async fn connect(bench: &Bench) -> (h2::ClientConn, JoinHandle<Fault>) {
    let (settings, counters) = (Arc::new(h2::Settings::default()), h2::Counters::detached());
    let handshake = h2::ClientConn::handshake(bench.connect(), settings, counters).await;
    let (conn, driver) = handshake.unwrap();
    (conn, spawn_local(driver))
}

fn request(conn: &h2::ClientConn, method: Method) -> ClientStream {
    let end = method == Method::GET;
    let mut head = RequestHead::new(method, Protocol::Http2);
    head.scheme = Some(Scheme::Http);
    head.set_authority(b"h");
    head.set_path(b"/");
    let mut stream = ClientStream::H2(Box::new(conn.open()));
    stream.send_head(&head, end);
    stream
}

/// Sends so many bytes, or as many as are taken: time stands still as long as anything moves.
async fn upload(stream: &mut ClientStream, bytes: usize) -> usize {
    for sent in (0..bytes).step_by(PIECE) {
        stream.send_data(Bytes::from_static(&[0; PIECE]), sent + PIECE >= bytes);
        let flushed = timeout(Duration::from_secs(1), poll_fn(|cx| stream.poll_flush(cx))).await;
        if flushed.is_err() {
            return sent;
        }
    }
    bytes
}

/// Whether the proxy has closed without being moved by a byte that is read: what is left is what the pipe holds.
async fn is_closed(upstream: &mut Io) -> bool {
    // Until nothing moves.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut left, mut piece) = (0, vec![0; PIECE]);
    while let Ok(n @ 1..) = upstream.read(&mut piece).await {
        left += n;
    }
    left <= PIPE
}

#[tokio::test(start_paused = true)]
async fn a_stalled_upload_that_is_reset_ends_upstream_and_gives_its_window_back() {
    let test = async {
        let bench = Bench::start("stat_prefix: l", "connect_timeout: 1s");
        let (conn, _driver) = connect(&bench).await;
        let mut stream = request(&conn, Method::POST);
        let (sent, mut upstream) =
            tokio::join!(upload(&mut stream, STALLED), bench.upstream.accept());
        assert!(sent < STALLED, "{sent} bytes");
        stream.reset(8);
        drop(stream);
        assert!(is_closed(&mut upstream).await);
        let mut stream = request(&conn, Method::POST);
        let answer = async {
            let mut upstream = bench.upstream.accept().await;
            let (mut got, mut piece) = (0, vec![0; PIECE]);
            while got < STALLED {
                got += upstream.read(&mut piece).await.unwrap();
            }
            upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            upstream
        };
        let (sent, _upstream) = tokio::join!(upload(&mut stream, STALLED), answer);
        assert_eq!(sent, STALLED);
        let (head, _) = poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
        assert_eq!(head.status.as_u16(), 200);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_upload_ends_upstream_with_its_connection() {
    let test = async {
        let bench = Bench::start("stat_prefix: l", "connect_timeout: 1s");
        let (conn, driver) = connect(&bench).await;
        let mut stream = request(&conn, Method::POST);
        let (_, mut upstream) = tokio::join!(upload(&mut stream, STALLED), bench.upstream.accept());
        driver.abort();
        assert!(is_closed(&mut upstream).await);
    };
    LocalSet::new().run_until(test).await;
}

/// How many requests are reset, one after the other, before the connection is closed; where there is an `answer`, after
/// its head.
async fn resets(answer: &'static [u8]) -> Option<usize> {
    const MANY: usize = 1000;
    let bench = Bench::start("stat_prefix: l", "connect_timeout: 1s");
    let (conn, _driver) = connect(&bench).await;
    let serve = async {
        let mut upstreams = Vec::new();
        loop {
            let mut upstream = bench.upstream.accept().await;
            upstream.write_all(answer).await.unwrap();
            upstreams.push(upstream);
        }
    };
    let ask = async {
        for reset in 0..MANY {
            let mut stream = request(&conn, Method::GET);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            if !answer.is_empty() {
                let head = poll_fn(|cx| stream.poll_head(cx)).await;
                if head.is_err() {
                    return Some(reset);
                }
            }
            stream.reset(8);
            // Until nothing moves.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if conn.is_closed() {
                return Some(reset + 1);
            }
        }
        None
    };
    tokio::select! {
        resets = ask => resets,
        () = serve => unreachable!(),
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_taken_back_at_once_end_their_connection() {
    let test = async {
        // More, where the machine stands still for seconds.
        assert!(resets(b"").await.is_some_and(|resets| resets >= 200));
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
        assert_eq!(resets(head).await, None);
    };
    LocalSet::new().run_until(test).await;
}
