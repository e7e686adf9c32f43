//! What a server sends, and when its connection goes on.

use super::*;

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
