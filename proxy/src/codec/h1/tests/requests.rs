//! Requests as a server reads them: heads and bodies, good, cut and malformed.

use super::*;

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
