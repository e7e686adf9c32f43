//! What is no plain exchange: tunnels, early answers, ends that break off and readers that stop.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use http::Method;

use super::{
    Exchange, PLAIN, VERSIONS, Version, has_all, open, piece, read_response, request_head,
    response_head, run, spawn_server,
};
use crate::codec::head::{Protocol, RequestHead};
use crate::codec::name::names;
use crate::codec::{Fault, Frame, ParseFault};
use crate::io::Io;

fn data_of(frame: Option<Frame>) -> usize {
    match frame {
        Some(Frame::Data(data)) => data.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_upgrade_is_a_tunnel() {
    for version in VERSIONS {
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let server = spawn_server(version, a, async |head, end, stream| {
                assert_eq!(head.upgrade_str(), Some(&b"websocket"[..]));
                assert_eq!((head.method.as_str(), head.path_str(), end), ("GET", "/chat", false));
                let fields = [("upgrade", "websocket"), ("connection", "Upgrade")];
                stream.send_head(&response_head(101, &fields), false);
                stream.send_data(piece(10), false);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
                let mut got = 0;
                while got < 32 {
                    got += data_of(poll_fn(|cx| stream.poll_frame(cx)).await.unwrap());
                }
                stream.send_data(piece(got), true);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            });
            let (mut stream, conn) = open(version, b).await;
            let mut head = request_head(&PLAIN);
            head.set_path(b"/chat");
            head.headers.append(&names::UPGRADE, b"websocket");
            head.headers.append(&names::CONNECTION, b"Upgrade");
            let protocol = head.headers.store(b"websocket");
            head.upgrade = Some(protocol);
            if let Some(conn) = &conn {
                while !conn.is_connect_protocol_enabled() {
                    tokio::task::yield_now().await;
                }
            }
            stream.send_head(&head, false);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            let (head, end) = poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
            assert_eq!((head.status.as_u16(), end), (101, false));
            has_all(&head.headers, &[("upgrade", "websocket")], "upgrade");
            stream.send_data(piece(32), false);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            let mut got = 0;
            while got < 42 {
                got += data_of(poll_fn(|cx| stream.poll_frame(cx)).await.unwrap());
            }
            // A FIN on a connection of HTTP/1 ends the tunnel as a whole.
            let end = poll_fn(|cx| stream.poll_frame(cx)).await;
            match version {
                Version::H1 => assert!(matches!(end, Err(Fault::Eof))),
                Version::H2 => assert!(matches!(end, Ok(None))),
            }
            drop((stream, conn));
            server.await.unwrap();
        });
    }
}

#[test]
fn connect_is_a_tunnel_without_a_path() {
    for version in VERSIONS {
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let server = spawn_server(version, a, async |head, end, stream| {
                assert_eq!((head.method.as_str(), head.path(), end), ("CONNECT", None, false));
                assert_eq!(head.authority_str(), "example.com:443");
                stream.send_head(&response_head(200, &[]), false);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
                let mut got = 0;
                while got < 32 {
                    got += data_of(poll_fn(|cx| stream.poll_frame(cx)).await.unwrap());
                }
                stream.send_data(piece(got), true);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            });
            let (mut stream, conn) = open(version, b).await;
            let mut head = RequestHead::new(Method::CONNECT, Protocol::Http11);
            head.set_authority(b"example.com:443");
            stream.send_head(&head, false);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            let (head, _) = poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
            assert_eq!(head.status.as_u16(), 200);
            stream.send_data(piece(32), true);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            assert_eq!(read_response(&mut stream).await.unwrap().0, 32);
            drop((stream, conn));
            server.await.unwrap();
        });
    }
}

#[test]
fn an_early_answer_arrives_while_the_request_goes_on() {
    for version in VERSIONS {
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let server = spawn_server(version, a, async |_, end, stream| {
                assert!(!end);
                stream.send_head(&response_head(413, &[]), true);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            });
            let (mut stream, conn) = open(version, b).await;
            stream.send_head(&request_head(&Exchange { method: Method::POST, ..PLAIN }), false);
            stream.send_data(piece(10), false);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            let (head, end) = poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
            assert_eq!((head.status.as_u16(), end), (413, true));
            drop((stream, conn));
            server.await.unwrap();
        });
    }
}

#[test]
fn a_response_cut_short_is_never_a_clean_end() {
    for version in VERSIONS {
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let server = spawn_server(version, a, async |_, _, stream| {
                stream.send_head(&response_head(200, &[]), false);
                stream.send_data(piece(10), false);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
                // A reset drops what the connection's task has not written yet.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                stream.reset(2);
            });
            let (mut stream, conn) = open(version, b).await;
            stream.send_head(&request_head(&PLAIN), true);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
            let fault = read_response(&mut stream).await.unwrap_err();
            match version {
                Version::H1 => assert_eq!(fault, Fault::Parse(ParseFault::Truncated)),
                Version::H2 => assert_eq!(fault, Fault::Reset { code: 2, remote: true }),
            }
            drop((stream, conn));
            server.await.unwrap();
        });
    }
}

#[test]
fn a_server_notices_that_its_client_gave_up() {
    for version in VERSIONS {
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let seen = Rc::new(RefCell::new(None));
            let noted = Rc::clone(&seen);
            let server = spawn_server(version, a, async move |_, end, stream| {
                assert!(end);
                let fault = poll_fn(|cx| stream.poll_closed(cx)).await;
                *noted.borrow_mut() = Some(fault);
            });
            let (mut stream, conn) = open(version, b).await;
            stream.send_head(&request_head(&PLAIN), true);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            stream.reset(8);
            drop((stream, conn));
            server.await.unwrap();
            let want = match version {
                Version::H1 => Fault::Eof,
                Version::H2 => Fault::Reset { code: 8, remote: true },
            };
            assert_eq!(*seen.borrow(), Some(want));
        });
    }
}

#[test]
fn a_reader_that_stops_holds_the_writer_back() {
    for version in VERSIONS {
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let server = spawn_server(version, a, async |_, _, stream| {
                stream.send_head(&response_head(200, &[]), false);
                for _ in 0..64 {
                    stream.send_data(piece(32 * 1024), false);
                }
                // Two megabytes, of which windows and pipes admit a few hundred kilobytes.
                let mut turns = 0;
                let flushed = poll_fn(|cx| {
                    turns += 1;
                    let polled = stream.poll_flush(cx);
                    if polled.is_pending() && turns < 50 {
                        cx.waker().wake_by_ref();
                        return std::task::Poll::Pending;
                    }
                    std::task::Poll::Ready(polled.is_ready())
                });
                assert!(!flushed.await);
                assert!(stream.buffered() > 1 << 20, "{}", stream.buffered());
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
                assert_eq!(stream.buffered(), 0);
                stream.send_data(Bytes::new(), true);
                poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            });
            let (mut stream, conn) = open(version, b).await;
            stream.send_head(&request_head(&PLAIN), true);
            poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
            assert_eq!(read_response(&mut stream).await.unwrap().0, 2 << 20);
            drop((stream, conn));
            server.await.unwrap();
        });
    }
}
