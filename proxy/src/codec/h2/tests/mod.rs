//! A server against raw frames: what RFC 9113 forbids, floods, draining, keepalive.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;

use crate::codec::head::RequestHead;
use crate::codec::{Fault, ParseFault, ServerStream};
use crate::config::protocol_options::{Http2Options, KeepaliveSettings};
use crate::io::Io;

use super::{Counters, Http2Fault, ServerConn, Settings};

mod faults;
mod memory;
mod peers;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Literal fields without indexing or Huffman (RFC 7541 §6.2.2).
fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.b")];

struct Raw {
    conn: ServerConn,
    peer: Io,
    received: Vec<u8>,
}

impl Raw {
    fn new(settings: Settings) -> Self {
        let (a, peer) = Io::pair(1 << 22);
        let mut early = BytesMut::from(PREFACE);
        early.extend_from_slice(&frame(SETTINGS, 0, 0, &[]));
        Self {
            conn: ServerConn::new(a, early, Arc::new(settings), Counters::detached()),
            peer,
            received: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            matches!(self.peer.poll_write(&mut cx, bytes), Poll::Ready(Ok(n)) if n == bytes.len())
        );
    }

    fn accept(&mut self) -> Poll<Option<Result<super::Accepted, Fault>>> {
        self.conn.poll_accept(&mut Context::from_waker(Waker::noop()))
    }

    /// Drives the connection with nobody to serve; the frames it sent.
    fn frames(&mut self) -> Vec<(u8, u32, Vec<u8>)> {
        for _ in 0..4 {
            if let Poll::Ready(Some(Ok((head, _, stream)))) = self.accept() {
                assert!(stream.rejected().is_some(), "accepted {head:?}");
            }
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut buf = BytesMut::with_capacity(1 << 16);
        while let Poll::Ready(Ok(1..)) = self.peer.poll_read(&mut cx, &mut buf) {
            buf.reserve(1 << 16);
        }
        self.received.extend_from_slice(&buf);
        let mut frames = Vec::new();
        let mut rest = &self.received[..];
        while let [a, b, c, kind, _, s0, s1, s2, s3, tail @ ..] = rest {
            let (payload, tail) = tail.split_at(u32::from_be_bytes([0, *a, *b, *c]) as usize);
            frames.push((*kind, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload.to_vec()));
            rest = tail;
        }
        frames
    }

    fn request(&mut self, fields: &[(&str, &str)], end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(&frame(HEADERS, flags, 1, &hpack(fields)));
    }
}

fn local(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(test());
}

fn accepted(fields: &[(&str, &str)]) -> RequestHead {
    let mut raw = Raw::new(Settings {
        options: Http2Options { allow_connect: true, ..Http2Options::default() },
        ..Settings::default()
    });
    raw.request(fields, true);
    match raw.accept() {
        Poll::Ready(Some(Ok((head, ..)))) => head,
        other => panic!("{fields:?}: {other:?}"),
    }
}

#[test]
fn good_requests_are_accepted() {
    local(async || {
        let head = accepted(&GOOD);
        assert_eq!((head.path_str(), head.authority_str()), ("/", "a.b"));
        let [method, scheme, path, _] = GOOD;
        let head = accepted(&[method, scheme, path, ("host", "c.d")]);
        assert_eq!(head.authority_str(), "c.d");
        assert!(head.headers.is_empty());
        let with = |extra: &[(&'static str, &'static str)]| [&GOOD[..], extra].concat();
        let head = accepted(&with(&[("host", "A.b"), ("te", "trailers")]));
        assert_eq!(head.headers.len(), 1);
        let head = accepted(&with(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]));
        let lines: Vec<_> = head.headers.iter().collect();
        assert_eq!(lines, [(&b"cookie"[..], &b"a=1; b=2"[..]), (b"x", b"y")]);
        let head = accepted(&[
            (":method", "CONNECT"),
            (":scheme", "http"),
            (":path", "/chat"),
            (":authority", "a.b"),
            (":protocol", "websocket"),
        ]);
        assert_eq!((head.method.as_str(), head.upgrade_str()), ("GET", Some(&b"websocket"[..])));
    });
}

#[test]
fn malformed_requests_are_reset_and_never_accepted() {
    let [method, scheme, path, authority] = GOOD;
    let with = |extra: &[(&'static str, &'static str)]| [&GOOD[..], extra].concat();
    let cases: Vec<Vec<(&str, &str)>> = vec![
        with(&[("X-Upper", "1")]),
        with(&[("a b", "1")]),
        with(&[("a:b", "1")]),
        with(&[("x", "a\r\nb: c")]),
        with(&[("x", "a\0b")]),
        with(&[("x", " outer")]),
        with(&[("x", "outer\t")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "x")]),
        with(&[("keep-alive", "x")]),
        with(&[("proxy-connection", "x")]),
        with(&[("te", "gzip")]),
        with(&[("content-length", "5")]),
        with(&[("host", "other")]),
        with(&[("host", "a.b"), ("host", "a.b")]),
        with(&[(":path", "/late")]),
        with(&[(":unknown", "x")]),
        with(&[(":status", "200")]),
        vec![scheme, path, authority],
        vec![method, path, authority],
        vec![method, scheme, authority],
        vec![method, method, scheme, path, authority],
        vec![method, scheme, (":path", ""), authority],
        vec![method, scheme, (":path", "/a b"), authority],
        vec![method, scheme, (":path", "no-slash"), authority],
        vec![method, (":scheme", "ftp"), path, authority],
        vec![method, scheme, path, (":authority", "u@h")],
        vec![method, scheme, path, ("x", "1"), authority],
    ];
    local(async || {
        for case in &cases {
            let mut raw = Raw::new(Settings::default());
            raw.request(case, true);
            let Poll::Ready(Some(Ok((_, _, stream)))) = raw.accept() else { panic!("{case:?}") };
            let fault = stream.rejected().unwrap_or_else(|| panic!("{case:?} was accepted"));
            assert!(fault.is_messaging(), "{case:?}: {fault:?}");
            assert!(matches!(raw.accept(), Poll::Ready(Some(Err(Fault::Parse(_))))));
            assert!(raw.frames().is_empty(), "{case:?} was answered");
        }
    });
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_is_a_fault() {
    local(async || {
        for sent in [&b"abc"[..], b"abcdefg"] {
            let mut raw = Raw::new(Settings::default());
            raw.request(&[&GOOD[..], &[("content-length", "5")]].concat(), false);
            let Poll::Ready(Some(Ok((_, end, stream)))) = raw.accept() else { panic!() };
            assert!(!end && stream.rejected().is_none());
            raw.send(&frame(DATA, END_STREAM, 1, sent));
            assert!(raw.accept().is_pending());
            let mut stream = ServerStream::H2(Box::new(stream));
            let mut last = Ok(None);
            for _ in 0..3 {
                last = poll_fn(|cx| stream.poll_frame(cx)).await.map(|f| f.map(drop));
                if last.is_err() {
                    break;
                }
            }
            assert!(matches!(last, Err(Fault::Reset { code: 1, remote: false })), "{last:?}");
        }
    });
}

#[test]
fn header_lines_are_counted_before_cookies_are_joined() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        let fields = [&GOOD[..], &[("cookie", "a"); 101]].concat();
        raw.request(&fields, true);
        let Poll::Ready(Some(Ok((_, _, stream)))) = raw.accept() else { panic!() };
        assert_eq!(stream.rejected(), Some(Http2Fault::TooManyHeaders));
        let frames = raw.frames();
        let reset = frames.iter().any(|(kind, stream, payload)| {
            *kind == RST_STREAM && *stream == 1 && payload[..] == [0, 0, 0, 2]
        });
        assert!(reset, "{frames:?}");
    });
}

/// Frames of a flood, and whether the connection is given up.
fn is_refused(flood: &[u8], rounds: usize) -> bool {
    let mut raw = Raw::new(Settings::default());
    for _ in 0..rounds {
        raw.send(flood);
        match raw.accept() {
            Poll::Ready(Some(Err(fault))) => {
                assert_eq!(fault, Fault::Parse(ParseFault::Http2(Http2Fault::Flood)));
                assert!(raw.frames().iter().all(|(kind, ..)| *kind != GOAWAY));
                return true;
            }
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending => {}
        }
    }
    false
}

#[test]
fn floods_of_control_frames_end_the_connection() {
    local(async || {
        let floods = [
            frame(PING, 0, 0, &[0; 8]),
            frame(SETTINGS, 0, 0, &[]),
            frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ];
        for flood in floods {
            assert!(is_refused(&flood.repeat(20), 200), "{flood:?}");
        }
    });
}

#[test]
fn floods_of_empty_frames_end_the_connection() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        raw.request(&GOOD, false);
        let Poll::Ready(Some(Ok(request))) = raw.accept() else { panic!() };
        raw.send(&frame(DATA, 0, 1, &[]));
        assert!(raw.accept().is_pending(), "one may come");
        raw.send(&frame(DATA, 0, 1, &[]));
        let ended = raw.accept();
        assert!(matches!(
            ended,
            Poll::Ready(Some(Err(Fault::Parse(ParseFault::Http2(Http2Fault::Flood)))))
        ));
        drop(request);
    });
}

#[test]
fn endless_header_blocks_end_the_connection() {
    const CONTINUATION: u8 = 9;
    for payload in [&b""[..], &[0x82; 1000]] {
        local(async || {
            let mut raw = Raw::new(Settings::default());
            raw.send(&frame(HEADERS, 0, 1, &hpack(&GOOD)));
            for i in 0..500 {
                raw.send(&frame(CONTINUATION, 0, 1, payload));
                if let Poll::Ready(ended) = raw.accept() {
                    // The request that never came to be is logged first.
                    assert!(
                        !matches!(ended, Some(Ok((_, _, stream))) if stream.rejected().is_none())
                    );
                    return;
                }
                assert!(i < 400, "frames are taken for ever");
            }
        });
    }
}

/// One field in the table, named again and again: small on the wire, large when decoded.
#[test]
fn decoded_headers_are_bounded() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        let mut block = hpack(&GOOD);
        block.extend_from_slice(&[0x40, 6]);
        block.extend_from_slice(b"cookie");
        block.push(100);
        block.extend_from_slice(&[b'a'; 100]);
        block.extend_from_slice(&vec![0xbe; 15_000]);
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        for _ in 0..4 {
            if let Poll::Ready(Some(Ok((head, _, stream)))) = raw.accept() {
                assert!(stream.rejected().is_some(), "{} fields", head.headers.len());
            }
        }
    });
}

#[test]
fn pings_that_messages_explain_are_no_flood() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        raw.request(&GOOD, false);
        let Poll::Ready(Some(Ok((_, _, stream)))) = raw.accept() else { panic!() };
        let mut stream = ServerStream::H2(Box::new(stream));
        for _ in 0..5000 {
            raw.send(&frame(DATA, 0, 1, b"x"));
            raw.send(&frame(PING, 0, 0, &[0; 8]));
            assert!(raw.accept().is_pending());
            assert!(matches!(poll_fn(|cx| stream.poll_frame(cx)).await, Ok(Some(_))));
        }
    });
}

#[test]
fn frames_of_a_wrong_size_are_told_by_their_code() {
    let cases: [(Vec<u8>, u8); 6] = [
        (frame(PING, 0, 0, b"1234"), 6),
        (frame(SETTINGS, 0, 0, b"12345"), 6),
        (frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), 3),
        (frame(RST_STREAM, 0, 1, b"123"), 6),
        (frame(DATA, 0, 5, b"abc"), 1),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80]), 9),
    ];
    for (bytes, code) in cases {
        local(async || {
            let mut raw = Raw::new(Settings::default());
            raw.send(&bytes);
            while let Poll::Ready(Some(_)) = raw.accept() {}
            let _ = raw.conn.poll_close(&mut Context::from_waker(Waker::noop()));
            let frames = raw.frames();
            let goaway = frames.iter().find(|(kind, ..)| *kind == GOAWAY);
            assert_eq!(goaway.map(|(_, _, p)| p[7]), Some(code), "{bytes:?}: {frames:?}");
        });
    }
}

#[test]
fn pseudo_headers_in_trailers_are_refused() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        raw.request(&GOOD, false);
        let Poll::Ready(Some(Ok((_, _, stream)))) = raw.accept() else { panic!() };
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &hpack(&[(":method", "GET")])));
        assert!(matches!(raw.accept(), Poll::Ready(Some(Err(_)))));
        let mut stream = ServerStream::H2(Box::new(stream));
        let fault = poll_fn(|cx| stream.poll_frame(cx)).await.map(drop);
        assert_eq!(fault, Err(Http2Fault::HeaderField.into()));
    });
}

#[test]
fn keepalive_pings_of_a_peer_are_no_flood() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        for _ in 0..5000 {
            raw.send(&frame(PING, 0, 0, &[0; 8]));
            assert!(raw.accept().is_pending());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    });
}

/// What we say then is an answer, no drain of ours: statistics tell the two apart.
#[test]
fn a_peer_that_goes_is_not_drained() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        raw.frames();
        raw.send(&frame(GOAWAY, 0, 0, &[0; 8]));
        assert!(matches!(raw.accept(), Poll::Ready(None)));
        assert!(!raw.conn.is_draining());
        let mut raw = Raw::new(Settings::default());
        raw.conn.drain();
        assert!(raw.conn.is_draining());
    });
}

#[test]
fn draining_takes_two_steps() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        raw.frames();
        raw.conn.drain();
        let frames = raw.frames();
        let goaways = |frames: &[(u8, u32, Vec<u8>)]| -> Vec<[u8; 4]> {
            frames
                .iter()
                .filter(|(kind, ..)| *kind == GOAWAY)
                .map(|(_, _, p)| [p[0], p[1], p[2], p[3]])
                .collect()
        };
        assert_eq!(goaways(&frames), [[0x7f, 0xff, 0xff, 0xff]]);
        assert_eq!(goaways(&raw.frames()).len(), 1);
        raw.conn.finish_drain();
        let frames = raw.frames();
        assert_eq!(goaways(&frames).last(), Some(&[0, 0, 0, 0]));
        assert!(matches!(raw.accept(), Poll::Ready(None)));
    });
}

#[test]
fn a_peer_that_answers_no_ping_is_given_up() {
    local(async || {
        let mut raw = Raw::new(Settings {
            options: Http2Options {
                connection_keepalive: Some(KeepaliveSettings {
                    interval: Some(Duration::from_secs(10)),
                    timeout: Duration::from_secs(2),
                    interval_jitter: 0.0,
                    connection_idle_interval: None,
                }),
                ..Http2Options::default()
            },
            ..Settings::default()
        });
        let started = tokio::time::Instant::now();
        let ended = poll_fn(|cx| raw.conn.poll_accept(cx)).await;
        assert!(matches!(ended, Some(Err(Fault::Io(std::io::ErrorKind::TimedOut)))));
        assert_eq!(started.elapsed().as_secs(), 12);
    });
}
