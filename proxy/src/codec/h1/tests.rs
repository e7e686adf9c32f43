//! Both ends of HTTP/1 over in-memory connections: grammar, framing, reuse.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::io::AsyncReadExt;

use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::name::{HeaderName, names};
use crate::codec::{Fault, Frame, ParseFault};
use crate::config::protocol_options::HeaderKeyFormat;
use crate::io::Io;

use super::{ClientConn, ClientSettings, ServerConn, ServerSettings};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn settings() -> ServerSettings {
    ServerSettings { header_key_format: HeaderKeyFormat::PreserveCase, ..ServerSettings::default() }
}

/// A server whose client has sent `bytes` and, with `close`, ended its direction.
fn server_with(bytes: &[u8], settings: ServerSettings) -> (ServerConn, Io) {
    let (a, b) = Io::pair(1 << 20);
    let conn = ServerConn::new(a, BytesMut::from(bytes), Arc::new(settings));
    (conn, b)
}

fn poll_once<T>(mut f: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    f(&mut Context::from_waker(Waker::noop()))
}

fn head_of(bytes: &[u8], settings: ServerSettings) -> Result<(RequestHead, bool), ParseFault> {
    let (mut conn, peer) = server_with(bytes, settings);
    drop(peer);
    match block_on(poll_fn(|cx| conn.poll_head(cx))) {
        Ok(Some(head)) => Ok(head),
        Err(Fault::Parse(fault)) => Err(fault),
        other => panic!("{other:?} for {}", String::from_utf8_lossy(bytes)),
    }
}

async fn body_of(conn: &mut ServerConn) -> Result<(Vec<u8>, Option<HeaderList>), Fault> {
    let mut body = Vec::new();
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| conn.poll_frame(cx)).await? {
        match frame {
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(list) => trailers = Some(list),
        }
    }
    Ok((body, trailers))
}

async fn response_body(conn: &mut ClientConn) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| conn.poll_frame(cx)).await? {
        if let Frame::Data(data) = frame {
            body.extend_from_slice(&data);
        }
    }
    Ok(body)
}

/// Heads that are refused: `{}` lines are put behind `Host`, others are whole.
#[test]
fn malformed_heads_are_refused_with_envoys_reasons() {
    use ParseFault as F;
    let big = format!("x-big: {}", "a".repeat(64 * 1024));
    let cases: &[(&str, F)] = &[
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", F::ContentLengthAndChunked),
        ("Content-Length: 1\r\nContent-Length: 2", F::CodecError),
        ("Content-Length: 1\r\nContent-Length: 1", F::CodecError),
        ("Content-Length: 1, 1", F::CodecError),
        ("Content-Length: 1, 2", F::CodecError),
        ("Content-Length: +1", F::CodecError),
        ("Content-Length: -1", F::CodecError),
        ("Content-Length: 0x1", F::CodecError),
        ("Content-Length: 1_0", F::CodecError),
        ("Content-Length:", F::CodecError),
        ("Content-Length: 18446744073709551617", F::CodecError),
        ("Transfer-Encoding: xchunked", F::InvalidTransferEncoding),
        ("Transfer-Encoding: chunked, identity", F::InvalidTransferEncoding),
        ("Transfer-Encoding: \x0bchunked", F::InvalidCharacters),
        ("Transfer-Encoding: ,chunked", F::InvalidTransferEncoding),
        ("Transfer-Encoding: gzip, chunked", F::InvalidTransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", F::InvalidTransferEncoding),
        ("Transfer-Encoding : chunked", F::CodecError),
        ("x: a\n y: b", F::CodecError),
        ("x: a\ny: b", F::CodecError),
        ("x: a\rb", F::InvalidCharacters),
        ("x: a\r\n b", F::CodecError),
        (": empty", F::CodecError),
        ("X(y): 1", F::CodecError),
        ("no colon", F::CodecError),
        ("n\u{e9}: 1", F::NonAsciiName),
        ("x: a\0b", F::InvalidCharacters),
        ("x\0: a", F::InvalidCharacters),
        ("x: a\x01b", F::InvalidCharacters),
        ("x: a\x7fb", F::InvalidCharacters),
        ("Host: two", F::InvalidAuthority),
        ("Connection: x-forwarded-for", F::ConnectionHeaderRejected),
        ("Connection: host, x-forwarded-for", F::ConnectionHeaderRejected),
        ("Connection: host", F::ConnectionHeaderRejected),
        ("Connection: content-length", F::ConnectionHeaderRejected),
        ("Connection: :path", F::ConnectionHeaderRejected),
        ("Connection: a,b,c,d,e,f,g,h,i,j", F::ConnectionHeaderRejected),
        (&big, F::HeadersTooLarge),
    ];
    for (lines, fault) in cases {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
        assert_eq!(head_of(head.as_bytes(), settings()).err(), Some(*fault), "{lines:.60}");
    }
    let long_uri = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000));
    let whole: &[(&[u8], F)] = &[
        (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", F::InvalidAuthority),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", F::InvalidAuthority),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", F::InvalidAuthority),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", F::InvalidAuthority),
        (b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", F::InvalidAuthority),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", F::CodecError),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", F::CodecError),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", F::CodecError),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", F::CodecError),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET foo HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"CONNECT a:1:2 HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", F::BodyDisallowed),
        (b"CONNECT a:70000 HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"GET http://a#b/ HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidCharacters),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", F::LowVersion),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", F::LowVersion),
        (b"GET /\xd0\x87 HTTP/2.0\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET /\r\n\r\n", F::LowVersion),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", F::LowVersion),
        (b"GET / \r\nHost: a\r\n\r\n", F::LowVersion),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", F::CodecError),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", F::CodecError),
        (b"NOPE / HTTP/1.1\r\n", F::CodecError),
        (b"\x8f\x01\xfe\0\x99\r\n\r\n", F::InvalidCharacters),
        (b"NOPE / HTTP/1.1\r\nHost: a\r\n\r\n", F::CodecError),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidScheme),
        (b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", F::InvalidUrl),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", F::CodecError),
        (long_uri.as_bytes(), F::HeadersTooLarge),
    ];
    for (bytes, fault) in whole {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(head_of(bytes, settings()).err(), Some(*fault), "{text:.80}");
    }
}

#[test]
fn header_lines_are_counted() {
    let lines = |n: usize| {
        let mut head = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
        for i in 1..n {
            head.push_str(&format!("h{i}: v\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    };
    assert!(head_of(&lines(100), settings()).is_ok());
    assert_eq!(head_of(&lines(101), settings()).err(), Some(ParseFault::TooManyHeaders));
    assert_eq!(head_of(&lines(1001), settings()).err(), Some(ParseFault::TooManyHeaders));
    let many = ServerSettings { max_header_count: 2000, ..settings() };
    assert_eq!(head_of(&lines(1001), many).unwrap().0.headers.len(), 1000);
}

#[test]
fn http_10_is_a_matter_of_settings() {
    let on = || ServerSettings { accept_http_10: true, ..settings() };
    let chunked = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(head_of(chunked, on()).err(), Some(ParseFault::InvalidTransferEncoding));
    let plain = b"GET / HTTP/1.0\r\n\r\n";
    assert_eq!(head_of(plain, on()).unwrap().0.authority(), None);
    let default = ServerSettings { default_host_for_http_10: Some("d".into()), ..on() };
    let (head, end) = head_of(plain, default).unwrap();
    assert_eq!((head.authority_str(), head.protocol, end), ("d", Protocol::Http10, true));
}

#[test]
fn targets_give_path_authority_and_scheme() {
    let get = |target: &str, host: &str| {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let head = head_of(text.as_bytes(), settings()).unwrap().0;
        let scheme = head.scheme.map_or("", |s| s.as_str());
        (head.path_str().to_owned(), head.authority_str().to_owned(), scheme.to_owned())
    };
    let s = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(get("/a?b=c", "h:80"), s("/a?b=c", "h:80", ""));
    assert_eq!(get("http://x:1/p?q", "h"), s("/p?q", "x:1", "http"));
    assert_eq!(get("HTTPS://x", "h"), s("/", "x", "https"));
    assert_eq!(get("http://[::1]:80?q", "h"), s("?q", "[::1]:80", "http"));
    let edge = ServerSettings { validate_scheme: true, ..settings() };
    let https = b"GET https://x/ HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(head_of(https, edge).err(), Some(ParseFault::HttpsInPlaintext));
    let (head, end) = head_of(b"CONNECT a.b:443 HTTP/1.1\r\nHost: c\r\n\r\n", settings()).unwrap();
    assert_eq!((head.path(), head.authority_str(), end), (None, "a.b:443", false));
    let (head, _) = head_of(b"OPTIONS * HTTP/1.1\r\nHost: c\r\n\r\n", settings()).unwrap();
    assert_eq!(head.path_str(), "*");
}

#[test]
fn fields_of_the_connection_do_not_reach_the_head() {
    let (head, _) = head_of(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Foo, TE\r\nX-Foo: 1\r\nKeep-Alive: 5\r\n\
          Proxy-Connection: x\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\
          Transfer-Encoding: chunked\r\nx-FOO: 2\r\nKept: 1\r\n\r\n",
        settings(),
    )
    .unwrap();
    let lines: Vec<_> = head.headers.iter().collect();
    assert_eq!(lines, [(&b"TE"[..], &b"trailers"[..]), (b"Kept", b"1")]);
    assert_eq!(head.upgrade_str(), None);
    let (head, _) = head_of(
        b"GET / HTTP/1.1\r\nHost: a\r\nVia: 1\r\nX: 1\r\nTE: trailers;q=1\r\nX: 2\r\nvia: 2\r\n\r\n",
        settings(),
    )
    .unwrap();
    let lines: Vec<_> = head.headers.iter().collect();
    assert_eq!(lines, [(&b"Via"[..], &b"1,2"[..]), (b"X", b"1"), (b"X", b"2")]);
}

/// The request, whole and cut at every byte, gives the same head and body.
#[test]
fn a_message_cut_anywhere_is_the_same_message() {
    let messages: &[&[u8]] = &[
        b"POST /p HTTP/1.1\r\nHost: h\r\nX: y\r\nContent-Length: 11\r\n\r\nhello world",
        b"POST /p HTTP/1.1\r\nHost: h\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n\
          5;a=b\r\nhello\r\n006 ;\"q\"\r\n world\r\n0\r\nT: v\r\nHost: no\r\nContent-Length: 4\r\n\r\n",
        b"\r\n\r\nPOST /p HTTP/1.1\r\nHost: h\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n\
          b\r\nhello world\r\n0\r\n\r\n",
    ];
    for message in messages {
        for cut in 0..=message.len() {
            let settings = ServerSettings { enable_trailers: true, ..settings() };
            let (mut conn, mut peer) = server_with(&[], settings);
            block_on(async {
                for part in [&message[..cut], &message[cut..]] {
                    if part.is_empty() {
                        continue;
                    }
                    poll_fn(|cx| peer.poll_write(cx, part)).await.unwrap();
                    if part.len() < message.len() - 60 && cut < 60 {
                        let early = poll_once(|cx| conn.poll_head(cx));
                        assert!(early.is_pending(), "{early:?}");
                    }
                }
                let (head, end) = poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
                assert!(!end);
                assert_eq!(head.path_str(), "/p");
                assert_eq!(head.get(&HeaderName::parse("x").unwrap()), Some(&b"y"[..]));
                let (body, trailers) = body_of(&mut conn).await.unwrap();
                assert_eq!(body, b"hello world");
                if let Some(trailers) = trailers {
                    let lines: Vec<_> = trailers.iter().collect();
                    assert_eq!(lines, [(&b"T"[..], &b"v"[..])]);
                }
                assert!(conn.is_end());
                assert_eq!(conn.meter().wire_received, message.len() as u64);
            });
        }
    }
}

#[test]
fn malformed_chunks_are_refused() {
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
    let zeros = format!("{}1\r\na\r\n0\r\n\r\n", "0".repeat(20_000));
    let cases: &[&str] = &[
        "0x1\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "1zz\r\na\r\n0\r\n\r\n",
        "\r\na\r\n0\r\n\r\n",
        "11111111111111111\r\na\r\n0\r\n\r\n",
        "011111111111111111\r\na\r\n0\r\n\r\n",
        &zeros,
        "1\na\r\n0\r\n\r\n",
        "1;x\na\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "1;a\rb\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1 1\r\na\r\n0\r\n\r\n",
        "1\r\na\r\n0\r\n\n",
        "1\r\na\r\n0\r\nx: y\n\r\n",
        "1\r\na\r\n0\r\nno colon\r\n\r\n",
        &long,
    ];
    for case in cases {
        let text =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{case}");
        let (mut conn, peer) = server_with(text.as_bytes(), settings());
        drop(peer);
        block_on(async {
            poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
            let fault = body_of(&mut conn).await.unwrap_err();
            assert!(matches!(fault, Fault::Parse(_)), "{fault:?} for {case:.40}");
        });
        assert!(!conn.is_reusable());
    }
}

fn response(status: u16, lines: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap(), Protocol::Http11);
    for (name, value) in lines {
        head.headers.push_raw(name.as_bytes(), value.as_bytes());
    }
    head
}

/// What a client sees for a request and what `answer` sends to it.
fn served(
    request: &str,
    settings: ServerSettings,
    answer: impl FnOnce(&mut ServerConn),
) -> (String, bool) {
    let (mut conn, mut peer) = server_with(request.as_bytes(), settings);
    block_on(async {
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        if conn.upgrade_is_plain() {
            body_of(&mut conn).await.unwrap();
        }
        answer(&mut conn);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        let reusable = conn.is_reusable();
        drop(conn);
        let mut got = String::new();
        peer.read_to_string(&mut got).await.unwrap();
        (got, reusable)
    })
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn responses_are_framed_by_what_they_are() {
    let get = |answer: &dyn Fn(&mut ServerConn)| served(GET, settings(), |c| answer(c));
    let b = |s: &'static str| Bytes::from_static(s.as_bytes());
    let (got, reusable) = get(&|c| {
        c.send_informational(&response(103, &[("Link", "x")]));
        c.send_head(
            &response(200, &[("X-A", "b"), ("Content-Length", "5"), ("Keep-Alive", "1")]),
            false,
        );
        c.send_data(b("hello"), true);
    });
    assert_eq!(
        got,
        "HTTP/1.1 103 Unknown\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello"
    );
    assert!(reusable);
    let (got, reusable) = get(&|c| {
        c.send_head(&response(200, &[("Transfer-Encoding", "gzip")]), false);
        c.send_data(b("hello"), false);
        c.send_data(b("0123456789abcdef"), false);
        c.send_data(Bytes::new(), true);
    });
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    );
    assert!(reusable);
    let (got, _) = get(&|c| c.send_head(&response(404, &[]), true));
    assert_eq!(got, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    let (got, _) = get(&|c| c.send_head(&response(204, &[("content-length", "0")]), true));
    assert_eq!(got, "HTTP/1.1 204 No Content\r\n\r\n");
    let (got, _) = get(&|c| c.send_head(&response(304, &[("content-length", "7")]), true));
    assert_eq!(got, "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n");
    let (got, reusable) = get(&|c| {
        c.close_after_response();
        c.send_head(&response(200, &[]), true);
    });
    assert_eq!(got, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert!(!reusable);
    let (got, reusable) = get(&|c| {
        c.send_head(&response(200, &[("content-length", "3")]), false);
        c.send_data(b("hello"), true);
    });
    assert!(got.ends_with("\r\n\r\nhel"), "{got}");
    assert!(!reusable);
    let (got, reusable) = served("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", settings(), |c| {
        c.send_head(&response(200, &[("content-length", "9")]), true);
    });
    assert_eq!(got, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n");
    assert!(reusable);
}

#[test]
fn trailers_go_out_where_enabled() {
    let mut trailers = HeaderList::new();
    trailers.push_raw(b"Grpc-Status", b"0");
    trailers.push_raw(b"Content-Length", b"1");
    for enabled in [true, false] {
        let settings = ServerSettings { enable_trailers: enabled, ..settings() };
        let (got, reusable) = served(GET, settings, |c| {
            c.send_head(&response(200, &[]), false);
            c.send_trailers(&trailers);
        });
        let end = if enabled { "0\r\ngrpc-status: 0\r\n\r\n" } else { "0\r\n\r\n" };
        assert_eq!(got, format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{end}"));
        assert!(reusable);
    }
}

#[test]
fn http_10_gets_its_own_framing() {
    let on = || ServerSettings { accept_http_10: true, ..settings() };
    let request = |extra: &str| format!("GET / HTTP/1.0\r\nHost: a\r\n{extra}\r\n");
    let stream = |c: &mut ServerConn| {
        c.send_informational(&response(103, &[]));
        c.send_head(&response(200, &[]), false);
        c.send_data(Bytes::from_static(b"x"), true);
    };
    let (got, reusable) = served(&request("Connection: keep-alive\r\n"), on(), stream);
    assert_eq!(got, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nx");
    assert!(!reusable);
    let fixed = |c: &mut ServerConn| {
        c.send_head(&response(200, &[("content-length", "1")]), false);
        c.send_data(Bytes::from_static(b"x"), true);
    };
    let (got, reusable) = served(&request("Connection: keep-alive\r\n"), on(), fixed);
    assert_eq!(got, "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\nx");
    assert!(reusable);
    let (got, reusable) = served(&request(""), on(), fixed);
    assert!(got.contains("connection: close"), "{got}");
    assert!(!reusable);
}

#[test]
fn an_answer_before_the_requests_end_is_the_last() {
    let (mut conn, _peer) =
        server_with(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe", settings());
    block_on(async {
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        conn.send_head(&response(413, &[]), true);
        assert!(!conn.is_reusable());
    });
}

#[test]
fn pipelined_requests_come_one_by_one_and_a_bad_one_is_answered() {
    let bytes = b"GET /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nabGET /2 HTTP/1.1\r\nHost: a\r\n\r\nBAD\r\n\r\n";
    let (mut conn, mut peer) = server_with(bytes, settings());
    block_on(async {
        for path in ["/1", "/2"] {
            let (head, end) = poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
            assert_eq!((head.path_str(), end), (path, path == "/2"));
            body_of(&mut conn).await.unwrap();
            assert!(poll_once(|cx| conn.poll_closed(cx)).is_pending());
            conn.send_head(&response(200, &[]), true);
            assert!(conn.is_reusable());
        }
        let fault = poll_fn(|cx| conn.poll_head(cx)).await.unwrap_err();
        assert_eq!(fault.status(), Some(StatusCode::BAD_REQUEST));
        conn.send_head(&response(400, &[]), true);
        assert!(!conn.is_reusable());
        let closing = async {
            poll_fn(|cx| conn.poll_close(cx)).await;
        };
        let reading = async {
            let mut got = String::new();
            let mut buf = BytesMut::with_capacity(4096);
            while poll_fn(|cx| peer.poll_read(cx, &mut buf)).await.unwrap() > 0 {
                buf.reserve(1024);
            }
            got.push_str(std::str::from_utf8(&buf).unwrap());
            drop(peer);
            got
        };
        let got = futures_util::future::join(Box::pin(closing), Box::pin(reading)).await.1;
        assert!(got.ends_with(
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        ));
    });
}

#[test]
fn upgrades_hold_early_bytes_until_they_are_granted() {
    let request = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nEARLY";
    let switching = response(101, &[("Upgrade", "websocket"), ("Connection", "Upgrade")]);
    let (mut conn, mut peer) = server_with(request, settings());
    block_on(async {
        let (head, end) = poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        assert_eq!((head.upgrade_str(), end), (Some(&b"websocket"[..]), false));
        assert!(poll_once(|cx| conn.poll_frame(cx)).is_pending());
        conn.send_head(&switching, false);
        let frame = poll_fn(|cx| conn.poll_frame(cx)).await.unwrap();
        assert!(matches!(frame, Some(Frame::Data(d)) if d == "EARLY"));
        conn.send_data(Bytes::from_static(b"raw"), true);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        let mut got = String::new();
        peer.read_to_string(&mut got).await.unwrap();
        assert_eq!(
            got,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw"
        );
        poll_fn(|cx| peer.poll_write(cx, b"still open")).await.unwrap();
        drop(peer);
        let frame = poll_fn(|cx| conn.poll_frame(cx)).await.unwrap();
        assert!(matches!(frame, Some(Frame::Data(d)) if d == "still open"));
        assert!(matches!(poll_fn(|cx| conn.poll_frame(cx)).await, Err(Fault::Eof)));
        assert!(!conn.is_reusable());
    });
    let (mut conn, _peer) = server_with(request, settings());
    block_on(async {
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        assert_eq!(conn.held_bytes(), 0);
        assert!(poll_once(|cx| conn.poll_frame(cx)).is_pending());
        conn.send_head(&response(403, &[]), true);
        assert!(poll_once(|cx| conn.poll_frame(cx)).is_pending());
        assert_eq!(conn.held_bytes(), 5);
        assert!(!conn.is_reusable());
    });
}

#[test]
fn connect_becomes_a_tunnel_with_2xx_only() {
    let request = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    let (got, reusable) = served(request, settings(), |c| {
        c.send_head(&response(200, &[("content-length", "5")]), false);
        c.send_data(Bytes::from_static(b"raw"), false);
    });
    assert_eq!((got.as_str(), reusable), ("HTTP/1.1 200 OK\r\n\r\nraw", false));
    let (got, _) = served(request, settings(), |c| c.send_head(&response(503, &[]), true));
    assert!(got.ends_with("connection: close\r\ncontent-length: 0\r\n\r\n"), "{got}");
}

#[test]
fn a_client_that_leaves_is_noticed_and_pipelined_bytes_are_kept() {
    let (mut conn, mut peer) = server_with(GET.as_bytes(), settings());
    block_on(async {
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        assert!(poll_once(|cx| conn.poll_closed(cx)).is_pending());
        poll_fn(|cx| peer.poll_write(cx, GET.as_bytes())).await.unwrap();
        assert!(poll_once(|cx| conn.poll_closed(cx)).is_pending());
        conn.send_head(&response(200, &[]), true);
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        drop(peer);
        assert_eq!(poll_fn(|cx| conn.poll_closed(cx)).await, Fault::Eof);
    });
}

#[test]
fn idle_connections_hold_no_buffers() {
    let (mut conn, mut peer) = server_with(&[], settings());
    block_on(async {
        assert!(poll_once(|cx| conn.poll_head(cx)).is_pending());
        poll_fn(|cx| peer.poll_write(cx, GET.as_bytes())).await.unwrap();
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        conn.send_head(&response(200, &[]), true);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        assert!(poll_once(|cx| conn.poll_head(cx)).is_pending());
        assert_eq!(conn.read_capacity(), 0);
    });
    assert!(size_of::<ServerConn>() <= 320, "{}", size_of::<ServerConn>());
    assert!(size_of::<ClientConn>() <= 320, "{}", size_of::<ClientConn>());
}

fn request(method: Method, lines: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new(method, Protocol::Http11);
    head.set_authority(b"h:1");
    head.set_path(b"/p?q");
    for (name, value) in lines {
        head.headers.push_raw(name.as_bytes(), value.as_bytes());
    }
    head
}

fn client() -> (ClientConn, Io) {
    let (a, b) = Io::pair(1 << 20);
    let settings = ClientSettings {
        header_key_format: HeaderKeyFormat::PreserveCase,
        enable_trailers: true,
        ..ClientSettings::default()
    };
    (ClientConn::new(a, Arc::new(settings)), b)
}

#[test]
fn requests_are_framed_by_what_they_are() {
    let sent = |head: RequestHead, body: Option<&'static str>| {
        let (mut conn, mut peer) = client();
        block_on(async {
            conn.send_head(&head, body.is_none());
            if let Some(body) = body {
                conn.send_data(Bytes::from_static(body.as_bytes()), true);
            }
            poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
            drop(conn);
            let mut got = String::new();
            peer.read_to_string(&mut got).await.unwrap();
            got
        })
    };
    let connection = ("Connection", "close");
    assert_eq!(
        sent(request(Method::GET, &[("X-A", "b"), connection]), None),
        "GET /p?q HTTP/1.1\r\nhost: h:1\r\nX-A: b\r\n\r\n"
    );
    assert_eq!(
        sent(request(Method::POST, &[]), None),
        "POST /p?q HTTP/1.1\r\nhost: h:1\r\ncontent-length: 0\r\n\r\n"
    );
    assert_eq!(
        sent(request(Method::POST, &[("content-length", "2")]), Some("ab")),
        "POST /p?q HTTP/1.1\r\nhost: h:1\r\ncontent-length: 2\r\n\r\nab"
    );
    assert_eq!(
        sent(request(Method::POST, &[]), Some("ab")),
        "POST /p?q HTTP/1.1\r\nhost: h:1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    );
    assert_eq!(
        sent(request(Method::CONNECT, &[]), Some("raw")),
        "CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\nraw"
    );
}

/// What a client makes of `bytes` as the answer to a request, and whether it would use the connection again.
fn answered(method: Method, bytes: &[u8]) -> (Result<(u16, Vec<u8>), Fault>, bool) {
    let (mut conn, mut peer) = client();
    block_on(async {
        conn.send_head(&request(method, &[]), true);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        poll_fn(|cx| peer.poll_write(cx, bytes)).await.unwrap();
        peer.poll_shutdown(&mut Context::from_waker(Waker::noop())).is_ready();
        let result = async {
            loop {
                let (head, end) = poll_fn(|cx| conn.poll_head(cx)).await?;
                if head.is_informational() {
                    continue;
                }
                let body = response_body(&mut conn).await?;
                assert!(!end || body.is_empty());
                return Ok((head.status.as_u16(), body));
            }
        }
        .await;
        (result, conn.is_reusable())
    })
}

#[test]
fn responses_are_read_by_the_rules_and_the_connection_reused_only_when_sure() {
    let get = |bytes: &[u8]| answered(Method::GET, bytes);
    let ok = |body: &[u8]| Ok((200, body.to_vec()));
    assert_eq!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"), (ok(b"ab"), true));
    assert_eq!(
        get(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        (ok(b"ab"), true)
    );
    assert_eq!(get(b"HTTP/1.1 200 OK\r\n\r\nab"), (ok(b"ab"), false));
    assert_eq!(
        get(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"),
        (ok(b"ab"), false)
    );
    assert_eq!(get(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab"), (ok(b"ab"), false));
    assert_eq!(
        get(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab"),
        (ok(b"ab"), true)
    );
    assert_eq!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabjunk"), (ok(b"ab"), false));
    assert_eq!(
        get(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\na: b\r\n\r\nHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        (ok(b""), true)
    );
    assert_eq!(get(b"HTTP/1.1 204 No\r\n\r\n"), (Ok((204, vec![])), true));
    assert_eq!(get(b"HTTP/1.1 204 No\r\n\r\nbody"), (Ok((204, vec![])), false));
    assert_eq!(get(b"HTTP/1.1 304 NM\r\nContent-Length: 7\r\n\r\n"), (Ok((304, vec![])), true));
    assert_eq!(
        answered(Method::HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"),
        (ok(b""), true)
    );
    for bad in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 99 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\na: b\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc",
        b"junk",
    ] {
        let (result, reusable) = get(bad);
        let text = String::from_utf8_lossy(bad);
        assert!(matches!(result, Err(Fault::Parse(_))), "{result:?} for {text}");
        assert!(!reusable);
    }
    let endless = b"HTTP/1.1 103 X\r\n\r\n".repeat(101);
    assert_eq!(get(&endless).0, Err(Fault::Parse(ParseFault::TooManyInformational)));
    assert_eq!(get(b""), (Err(Fault::Eof), false));
    let cut = (Err(Fault::Parse(ParseFault::Truncated)), false);
    assert_eq!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"), cut);
    assert_eq!(get(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"), cut);
}

#[test]
fn a_stale_connection_is_told_from_a_broken_response() {
    for (bytes, any) in [(&b""[..], false), (b"H", true)] {
        let (mut conn, mut peer) = client();
        block_on(async {
            conn.send_head(&request(Method::GET, &[]), true);
            poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
            if !bytes.is_empty() {
                poll_fn(|cx| peer.poll_write(cx, bytes)).await.unwrap();
            }
            drop(peer);
            let fault = if any { Fault::Parse(ParseFault::Truncated) } else { Fault::Eof };
            assert_eq!(poll_fn(|cx| conn.poll_head(cx)).await.unwrap_err(), fault);
            assert_eq!(conn.received_any(), any);
        });
    }
}

#[test]
fn a_pooled_connection_notices_the_peer() {
    let exchange = async |conn: &mut ClientConn, peer: &mut Io| {
        conn.send_head(&request(Method::GET, &[]), true);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        poll_fn(|cx| peer.poll_write(cx, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"))
            .await
            .unwrap();
        poll_fn(|cx| conn.poll_head(cx)).await.unwrap();
        assert_eq!(response_body(conn).await.unwrap(), b"a");
        assert!(conn.is_reusable());
        assert!(poll_once(|cx| conn.poll_idle(cx)).is_pending());
    };
    block_on(async {
        let (mut conn, mut peer) = client();
        exchange(&mut conn, &mut peer).await;
        exchange(&mut conn, &mut peer).await;
        poll_fn(|cx| peer.poll_write(cx, b"HTTP/1.1 408 X\r\n\r\n")).await.unwrap();
        poll_fn(|cx| conn.poll_idle(cx)).await;
        assert!(!conn.is_reusable());
        let (mut conn, mut peer) = client();
        exchange(&mut conn, &mut peer).await;
        drop(peer);
        poll_fn(|cx| conn.poll_idle(cx)).await;
    });
}

#[test]
fn an_answer_before_the_requests_end_prevents_reuse() {
    let (mut conn, mut peer) = client();
    block_on(async {
        conn.send_head(&request(Method::POST, &[]), false);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        poll_fn(|cx| peer.poll_write(cx, b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n"))
            .await
            .unwrap();
        let (head, end) = poll_fn(|cx| conn.poll_head(cx)).await.unwrap();
        assert_eq!((head.status, end), (StatusCode::PAYLOAD_TOO_LARGE, true));
        assert!(!conn.is_reusable());
    });
}

#[test]
fn a_switched_client_is_a_tunnel() {
    let (mut conn, mut peer) = client();
    block_on(async {
        let mut head = request(Method::GET, &[("Connection", "Upgrade"), ("Upgrade", "websocket")]);
        let value = head.headers.store(b"websocket");
        head.upgrade = Some(value);
        conn.send_head(&head, false);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        let answer = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nEARLY";
        poll_fn(|cx| peer.poll_write(cx, answer)).await.unwrap();
        let (head, end) = poll_fn(|cx| conn.poll_head(cx)).await.unwrap();
        assert_eq!((head.status.as_u16(), end), (101, false));
        assert_eq!(head.headers.get(&names::UPGRADE), Some(&b"websocket"[..]));
        let frame = poll_fn(|cx| conn.poll_frame(cx)).await.unwrap();
        assert!(matches!(frame, Some(Frame::Data(d)) if d == "EARLY"));
        conn.send_data(Bytes::from_static(b"raw"), true);
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        assert!(!conn.is_reusable());
        // The end of the request alone ends nothing.
        drop(conn);
        let mut got = String::new();
        peer.read_to_string(&mut got).await.unwrap();
        assert!(got.ends_with("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw"), "{got}");
    });
}

proptest::proptest! {
    /// Any body, in any chunks with any extensions, arriving in any pieces, is that body.
    #[test]
    fn chunks_in_any_pieces_are_the_body(
        chunks in proptest::collection::vec((proptest::collection::vec(0_u8.., 1..40), "(;[a-z]{0,3})?"), 0..8),
        pieces in proptest::collection::vec(1_usize..30, 1..200),
    ) {
        let mut wire = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let mut want = Vec::new();
        for (data, extension) in &chunks {
            wire.extend_from_slice(format!("{:x}{extension}\r\n", data.len()).as_bytes());
            wire.extend_from_slice(data);
            wire.extend_from_slice(b"\r\n");
            want.extend_from_slice(data);
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        let (mut conn, mut peer) = server_with(&[], settings());
        let mut got = Vec::new();
        let mut begun = false;
        let mut rest = &wire[..];
        for size in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*size).min(rest.len()));
            rest = tail;
            let _ = poll_once(|cx| peer.poll_write(cx, piece));
            if !begun {
                begun = poll_once(|cx| conn.poll_head(cx)).is_ready();
            }
            while begun && let Poll::Ready(Ok(Some(Frame::Data(data)))) = poll_once(|cx| conn.poll_frame(cx)) {
                got.extend_from_slice(&data);
            }
        }
        proptest::prop_assert!(conn.is_end());
        proptest::prop_assert_eq!(got, want);
    }
}
