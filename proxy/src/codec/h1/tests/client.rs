//! What a client sends and reads, and when it would use its connection again.

use super::*;

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
        sent(request(Method::CONNECT, &[]), Some("before it is granted")),
        "CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n"
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

#[test]
fn nothing_follows_a_tunnel_that_was_refused() {
    let mut upgrade = request(Method::GET, &[("upgrade", "websocket"), ("connection", "upgrade")]);
    upgrade.upgrade = Some(upgrade.headers.store(b"websocket"));
    for (head, answer, granted) in [
        (upgrade.clone(), "403 Forbidden\r\ncontent-length: 2\r\n\r\nno", false),
        (upgrade.clone(), "200 OK\r\ncontent-length: 2\r\n\r\nno", false),
        (upgrade, "101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", true),
        (request(Method::CONNECT, &[]), "407 Who\r\ncontent-length: 2\r\n\r\nno", false),
        (request(Method::CONNECT, &[]), "200 OK\r\n\r\n", true),
    ] {
        for ends_with_head in [false, true] {
            let (mut conn, mut peer) = client();
            block_on(async {
                conn.send_head(&head, ends_with_head);
                let answer = format!("HTTP/1.1 {answer}");
                poll_fn(|cx| peer.poll_write(cx, answer.as_bytes())).await.unwrap();
                poll_fn(|cx| conn.poll_head(cx)).await.unwrap();
                assert_eq!(conn.has_refused_tunnel(), !granted, "{answer}");
                if !granted {
                    assert_eq!(response_body(&mut conn).await.unwrap(), b"no");
                }
                conn.send_data(Bytes::from_static(b"GET /inside"), false);
                conn.send_data(Bytes::new(), true);
                poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
                assert!(!conn.is_reusable(), "{answer}");
                drop(conn);
                let mut got = String::new();
                peer.read_to_string(&mut got).await.unwrap();
                let passes = granted && !ends_with_head;
                assert_eq!(got.ends_with("GET /inside"), passes, "{answer}: {got}");
            });
        }
    }
}
