//! One suite over every implementation: the same exchanges through HTTP/1 and HTTP/2, our server with our
//! client here, with hyper as the other side in `foreign`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead, Scheme};
use crate::codec::name::HeaderName;
use crate::codec::{ClientStream, Fault, Frame, ServerStream, h1, h2};
use crate::config::protocol_options::Http2Options;
use crate::io::Io;

mod edges;
mod foreign;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    H1,
    H2,
}

const VERSIONS: [Version; 2] = [Version::H1, Version::H2];

/// Everything that one side says and the other should hear.
#[derive(Debug, Clone)]
struct Exchange {
    name: &'static str,
    method: Method,
    request_fields: &'static [(&'static str, &'static str)],
    request_body: &'static [usize],
    request_trailers: &'static [(&'static str, &'static str)],
    informational: &'static [u16],
    status: u16,
    response_fields: &'static [(&'static str, &'static str)],
    response_body: &'static [usize],
    response_trailers: &'static [(&'static str, &'static str)],
    /// Bytes of the response that arrive; others than sent where there can be none.
    heard_response_body: Option<usize>,
}

const PLAIN: Exchange = Exchange {
    name: "plain",
    method: Method::GET,
    request_fields: &[("accept", "x"), ("x-dup", "1"), ("x-dup", "2")],
    request_body: &[],
    request_trailers: &[],
    informational: &[],
    status: 200,
    response_fields: &[("set-cookie", "a"), ("set-cookie", "b"), ("content-length", "5")],
    response_body: &[5],
    response_trailers: &[],
    heard_response_body: None,
};

fn exchanges() -> Vec<Exchange> {
    let stream = Exchange { response_fields: &[("x-a", "b")], ..PLAIN };
    let none = Exchange { response_fields: &[], response_body: &[], ..PLAIN };
    vec![
        PLAIN,
        Exchange {
            name: "lengths both ways",
            method: Method::POST,
            request_fields: &[("content-length", "7")],
            request_body: &[3, 4],
            ..PLAIN
        },
        Exchange {
            name: "no lengths",
            method: Method::PUT,
            request_body: &[1, 5000, 70_000],
            response_body: &[1, 2, 5000, 70_000],
            ..stream.clone()
        },
        Exchange {
            name: "a megabyte both ways",
            method: Method::POST,
            request_body: &[1 << 19, 1 << 19],
            response_body: &[1 << 20],
            ..stream.clone()
        },
        Exchange {
            name: "end behind the head",
            method: Method::POST,
            request_body: &[0],
            response_body: &[0],
            ..stream.clone()
        },
        Exchange {
            name: "head",
            method: Method::HEAD,
            response_fields: &[("content-length", "5")],
            response_body: &[],
            ..PLAIN
        },
        Exchange { name: "no content", status: 204, ..none.clone() },
        Exchange {
            name: "not modified",
            status: 304,
            response_fields: &[("content-length", "5"), ("etag", "x")],
            ..none.clone()
        },
        Exchange { name: "error without body", status: 503, ..none.clone() },
        Exchange {
            name: "trailers",
            method: Method::POST,
            request_fields: &[("te", "trailers"), ("content-type", "application/grpc")],
            request_body: &[5],
            request_trailers: &[("x-sum", "1")],
            response_body: &[5, 6],
            response_trailers: &[("grpc-status", "0"), ("grpc-message", "fine")],
            ..stream.clone()
        },
        Exchange { name: "informational", informational: &[100, 103, 103], ..PLAIN },
        Exchange {
            name: "cookies",
            request_fields: &[("cookie", "a=1; b=2"), ("x-after", "1")],
            ..PLAIN
        },
    ]
}

fn fill(list: &mut HeaderList, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        list.push_raw(name.as_bytes(), value.as_bytes());
    }
}

fn lines(list: &HeaderList) -> Vec<(String, String)> {
    list.iter()
        .map(|(n, v)| {
            (String::from_utf8_lossy(n).to_lowercase(), String::from_utf8_lossy(v).into_owned())
        })
        .collect()
}

fn has_all(list: &HeaderList, fields: &[(&str, &str)], name: &str) {
    for (field, value) in fields {
        let header = HeaderName::parse(field).unwrap();
        assert!(
            list.get_all(&header).any(|v| v == value.as_bytes()),
            "{name}: {field} missing in {list:?}"
        );
    }
}

fn request_head(x: &Exchange) -> RequestHead {
    let mut head = RequestHead::new(x.method.clone(), Protocol::Http11);
    head.scheme = Some(Scheme::Http);
    head.set_authority(b"example.com:80");
    head.set_path(b"/path?query");
    fill(&mut head.headers, x.request_fields);
    head
}

fn response_head(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap(), Protocol::Http11);
    fill(&mut head.headers, fields);
    head
}

fn piece(n: usize) -> Bytes {
    Bytes::from(vec![b'x'; n])
}

async fn read_request(stream: &mut ServerStream<'_>) -> Result<(usize, Option<HeaderList>), Fault> {
    let mut body = 0;
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await? {
        match frame {
            Frame::Data(data) => body += data.len(),
            Frame::Trailers(list) => trailers = Some(list),
        }
    }
    Ok((body, trailers))
}

async fn read_response(stream: &mut ClientStream) -> Result<(usize, Option<HeaderList>), Fault> {
    let mut body = 0;
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| stream.poll_frame(cx)).await? {
        match frame {
            Frame::Data(data) => body += data.len(),
            Frame::Trailers(list) => trailers = Some(list),
        }
    }
    Ok((body, trailers))
}

/// Serves one exchange and checks what was asked.
async fn serve(x: &Exchange, head: RequestHead, end: bool, stream: &mut ServerStream<'_>) {
    assert_eq!(head.method, x.method, "{}", x.name);
    assert_eq!(head.path_str(), "/path?query", "{}", x.name);
    assert_eq!(head.authority_str(), "example.com:80", "{}", x.name);
    assert_eq!(head.upgrade, None);
    has_all(&head.headers, x.request_fields, x.name);
    let (body, trailers) = read_request(stream).await.unwrap();
    assert_eq!(body, x.request_body.iter().sum::<usize>(), "{}", x.name);
    assert!(!end || body == 0);
    assert!(stream.is_end());
    let trailers = trailers.map(|t| lines(&t)).unwrap_or_default();
    assert_eq!(trailers.len(), x.request_trailers.len(), "{}", x.name);
    for status in x.informational {
        stream.send_informational(&response_head(*status, &[("x-early", "1")]));
    }
    let ends = x.response_body.is_empty() && x.response_trailers.is_empty();
    stream.send_head(&response_head(x.status, x.response_fields), ends);
    let last = x.response_body.len().wrapping_sub(1);
    for (i, size) in x.response_body.iter().enumerate() {
        stream.send_data(piece(*size), i == last && x.response_trailers.is_empty());
        poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
        assert_eq!(stream.buffered(), 0);
    }
    if !x.response_trailers.is_empty() {
        let mut list = HeaderList::new();
        fill(&mut list, x.response_trailers);
        stream.send_trailers(&list);
    }
    poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
    assert!(stream.meter().wire_sent as usize >= x.response_body.iter().sum());
    assert!(stream.meter().wire_received as usize >= body);
}

/// Asks one exchange and checks the answer.
async fn ask(x: &Exchange, stream: &mut ClientStream) {
    let ends = x.request_body.is_empty() && x.request_trailers.is_empty();
    stream.send_head(&request_head(x), ends);
    let last = x.request_body.len().wrapping_sub(1);
    for (i, size) in x.request_body.iter().enumerate() {
        stream.send_data(piece(*size), i == last && x.request_trailers.is_empty());
        poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
        assert_eq!(stream.buffered(), 0);
    }
    if !x.request_trailers.is_empty() {
        let mut list = HeaderList::new();
        fill(&mut list, x.request_trailers);
        stream.send_trailers(&list);
    }
    poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
    let mut informational = Vec::new();
    let (head, end) = loop {
        let (head, end) = poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
        assert!(stream.received_any());
        if !head.is_informational() {
            break (head, end);
        }
        informational.push(head.status.as_u16());
        has_all(&head.headers, &[("x-early", "1")], x.name);
    };
    assert_eq!(informational, x.informational, "{}", x.name);
    assert_eq!(head.status.as_u16(), x.status, "{}", x.name);
    has_all(&head.headers, x.response_fields, x.name);
    let (body, trailers) = read_response(stream).await.unwrap();
    let want = x.heard_response_body.unwrap_or_else(|| x.response_body.iter().sum());
    assert_eq!(body, want, "{}", x.name);
    assert!(!end || body == 0);
    let mut trailers = trailers.map(|t| lines(&t)).unwrap_or_default();
    trailers.sort();
    let mut want: Vec<_> =
        x.response_trailers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    want.sort();
    assert_eq!(trailers, want, "{}", x.name);
}

fn server_settings() -> Arc<h1::ServerSettings> {
    Arc::new(h1::ServerSettings { enable_trailers: true, ..h1::ServerSettings::default() })
}

fn client_settings() -> Arc<h1::ClientSettings> {
    Arc::new(h1::ClientSettings { enable_trailers: true, ..h1::ClientSettings::default() })
}

/// Small windows, so that flow control is met.
fn h2_settings() -> Arc<h2::Settings> {
    Arc::new(h2::Settings {
        options: Http2Options {
            allow_connect: true,
            initial_stream_window_size: 65_535,
            initial_connection_window_size: 65_535,
            ..Http2Options::default()
        },
        ..h2::Settings::default()
    })
}

/// Serves every stream of a connection with `serve`, one after the other (h1) or each in a task (h2).
fn spawn_server(
    version: Version,
    io: Io,
    serve: impl AsyncFn(RequestHead, bool, &mut ServerStream<'_>) + 'static,
) -> JoinHandle<()> {
    let serve = Rc::new(serve);
    match version {
        Version::H1 => spawn_local(async move {
            let mut conn = h1::ServerConn::new(io, BytesMut::new(), server_settings());
            while let Ok(Some((head, end))) = poll_fn(|cx| conn.poll_head(cx)).await {
                serve(head, end, &mut ServerStream::H1(&mut conn)).await;
                if !conn.is_reusable() {
                    break;
                }
            }
            poll_fn(|cx| conn.poll_close(cx)).await;
        }),
        Version::H2 => spawn_local(async move {
            let mut conn =
                h2::ServerConn::new(io, BytesMut::new(), h2_settings(), h2::Counters::detached());
            let mut tasks = Vec::new();
            while let Some(Ok((head, end, stream))) = poll_fn(|cx| conn.poll_accept(cx)).await {
                let serve = Rc::clone(&serve);
                tasks.push(spawn_local(async move {
                    serve(head, end, &mut ServerStream::H2(Box::new(stream))).await;
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
        }),
    }
}

/// Opens a stream; the second value keeps the connection of an h2 one.
async fn open(version: Version, io: Io) -> (ClientStream, Option<h2::ClientConn>) {
    match version {
        Version::H1 => {
            let conn = h1::ClientConn::new(io, client_settings());
            (ClientStream::H1(Box::new(conn)), None)
        }
        Version::H2 => {
            let (conn, driver) =
                h2::ClientConn::handshake(io, h2_settings(), h2::Counters::detached())
                    .await
                    .unwrap();
            spawn_local(driver);
            (ClientStream::H2(Box::new(conn.open())), Some(conn))
        }
    }
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = std::time::Duration::from_secs(20);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(limit, test()).await.expect("the exchange hangs");
    });
}

#[test]
fn every_exchange_passes_between_our_own_ends() {
    for version in VERSIONS {
        for x in exchanges() {
            let served = x.clone();
            run(async || {
                let (a, b) = Io::pair(16 * 1024);
                let server = spawn_server(version, a, async move |head, end, stream| {
                    serve(&served, head, end, stream).await;
                });
                let (mut stream, conn) = open(version, b).await;
                ask(&x, &mut stream).await;
                drop((stream, conn));
                server.await.unwrap();
            });
        }
    }
}

#[test]
fn a_connection_carries_exchange_after_exchange() {
    for version in VERSIONS {
        let served = Rc::new(RefCell::new(exchanges().into_iter()));
        run(async || {
            let (a, b) = Io::pair(16 * 1024);
            let server = spawn_server(version, a, async move |head, end, stream| {
                let x = served.borrow_mut().next().unwrap();
                serve(&x, head, end, stream).await;
            });
            let (mut stream, conn) = open(version, b).await;
            for x in exchanges() {
                ask(&x, &mut stream).await;
                stream = match (stream, &conn) {
                    (ClientStream::H1(conn), _) => {
                        assert!(conn.is_reusable(), "{}", x.name);
                        ClientStream::H1(conn)
                    }
                    (ClientStream::H2(_), Some(conn)) => {
                        assert!(!conn.is_closed());
                        ClientStream::H2(Box::new(conn.open()))
                    }
                    (ClientStream::H2(_) | ClientStream::Raw(_), _) => unreachable!(),
                };
            }
            drop((stream, conn));
            server.await.unwrap();
        });
    }
}
