//! Random exchanges with the crate h2 at the other end, in both directions: windows of any size, heads that need
//! CONTINUATION, bodies in pieces, trailers, several streams at once. Everything comes back as it was sent.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use tokio::task::{LocalSet, spawn_local};

use super::super::ClientConn;
use super::{
    Arc, BytesMut, Counters, Http2Options, Io, ServerConn, ServerStream, Settings, poll_fn,
};
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::{ClientStream, Frame};

type Fields = Vec<(String, String)>;

#[derive(Debug, Clone)]
struct Message {
    fields: Fields,
    /// Sizes of the body's pieces; none: the head ends the message.
    body: Vec<usize>,
    trailers: Option<Fields>,
}

/// What the crate h2 is set up with, and the messages, all of them under way at once.
#[derive(Debug, Clone)]
struct Plan {
    stream_window: u32,
    connection_window: u32,
    table: u32,
    frame: u32,
    streams: u32,
    /// Of the pipe between the two.
    pipe: usize,
    messages: Vec<Message>,
}

/// Of some names that trailers may have, and `others`.
fn any_fields(others: &'static [&'static str]) -> impl Strategy<Value = Fields> {
    let name = select([&["x-one", "x-two", "grpc-status"], others].concat());
    let value = prop_oneof![
        5 => "[a-z]{1,3}",
        2 => "[!-~]{1,40}",
        1 => (15_000..19_000_usize).prop_map(|n| "v".repeat(n)),
    ];
    vec((name.prop_map(str::to_owned), value), 0..3)
}

fn any_message() -> impl Strategy<Value = Message> {
    // None is empty, for the same reason as in `their_server`.
    let size = prop_oneof![Just(1), 1..100_usize, 1000..5000_usize, 10_000..70_000_usize];
    let fields = any_fields(&["accept", "x-request-id"]);
    (fields, vec(size, 0..5), option::of(any_fields(&[])))
        .prop_map(|(fields, body, trailers)| Message { fields, body, trailers })
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let window = || prop_oneof![1000..65_535_u32, Just(65_535), 65_536..1_000_000_u32];
    let windows = (window(), window());
    let pipe = prop_oneof![500..5000_usize, Just(1 << 20)];
    (windows, 0..10_000_u32, any::<bool>(), 1..8_u32, pipe, vec(any_message(), 1..7)).prop_map(
        |((stream_window, connection_window), table, large, streams, pipe, messages)| Plan {
            stream_window,
            connection_window: connection_window.max(65_535),
            table,
            frame: if large { 1 << 20 } else { 16_384 },
            streams,
            pipe,
            messages,
        },
    )
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(std::time::Duration::from_secs(60), test()).await.expect("an end");
    });
}

fn settings() -> Arc<Settings> {
    Arc::new(Settings {
        options: Http2Options {
            initial_stream_window_size: 65_535,
            initial_connection_window_size: 65_535,
            ..Http2Options::default()
        },
        ..Settings::default()
    })
}

fn list(fields: &Fields, list: &mut HeaderList) {
    for (name, value) in fields {
        list.push_raw(name.as_bytes(), value.as_bytes());
    }
}

fn map(fields: &Fields, map: &mut HeaderMap) {
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().unwrap();
        map.append(name, value.parse().unwrap());
    }
}

/// Lists that are one line to the proxy, in responses or in requests.
const JOINED: [&str; 3] = ["accept", "grpc-status", "x-request-id"];

/// As one message, with lists joined, and in an order.
fn sorted(mut fields: Fields) -> Fields {
    let mut joined = Vec::new();
    fields.retain(|field| {
        if !JOINED.contains(&&field.0[..]) {
            return true;
        }
        joined.push(field.clone());
        false
    });
    for name in JOINED {
        let values: Vec<_> = joined.iter().filter(|f| f.0 == name).map(|f| &f.1[..]).collect();
        if !values.is_empty() {
            fields.push((name.to_owned(), values.join(",")));
        }
    }
    fields.sort();
    fields
}

fn of_list(list: &HeaderList) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    sorted(list.iter().map(|(name, value)| (text(name), text(value))).collect())
}

fn of_map(map: &HeaderMap) -> Fields {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
    };
    sorted(map.iter().map(field).collect())
}

/// The body of a message, each piece of other bytes.
fn pieces(message: &Message) -> impl Iterator<Item = Bytes> {
    message.body.iter().enumerate().map(|(i, n)| Bytes::from(vec![i as u8; *n]))
}

/// What came back.
#[derive(Debug, Default)]
struct Echo {
    fields: Fields,
    body: Vec<u8>,
    trailers: Option<Fields>,
}

impl Echo {
    fn check(&self, sent: &Message) {
        assert_eq!(self.fields, sorted(sent.fields.clone()));
        assert!(self.body == pieces(sent).flatten().collect::<Vec<u8>>(), "the body");
        let trailers = sent.trailers.clone().map(sorted).filter(|fields| !fields.is_empty());
        assert_eq!(self.trailers.clone().filter(|fields| !fields.is_empty()), trailers);
    }
}

/// Our server: what comes goes back.
async fn serve(io: Io) {
    let mut conn = ServerConn::new(io, BytesMut::new(), settings(), Counters::detached());
    while let Some(Ok((head, end, stream))) = poll_fn(|cx| conn.poll_accept(cx)).await {
        spawn_local(echo(head, end, ServerStream::H2(Box::new(stream))));
    }
}

async fn echo(request: RequestHead, end: bool, mut stream: ServerStream<'static>) {
    let mut head = ResponseHead::new(StatusCode::OK, Protocol::Http2);
    head.headers = request.headers;
    stream.send_head(&head, end);
    let mut ended = end;
    while !ended {
        match poll_fn(|cx| stream.poll_frame(cx)).await.unwrap() {
            Some(Frame::Data(data)) => stream.send_data(data, false),
            Some(Frame::Trailers(trailers)) => {
                stream.send_trailers(&trailers);
                ended = true;
            }
            None => {
                stream.send_data(Bytes::new(), true);
                ended = true;
            }
        }
        poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
    }
}

async fn send_all(mut stream: SendStream<Bytes>, message: &Message) {
    for piece in pieces(message) {
        stream.send_data(piece, false).unwrap();
    }
    match &message.trailers {
        Some(trailers) => {
            let mut trailers_map = HeaderMap::new();
            map(trailers, &mut trailers_map);
            stream.send_trailers(trailers_map).unwrap();
        }
        None => stream.send_data(Bytes::new(), true).unwrap(),
    }
}

async fn receive_all(mut body: RecvStream, echo: &mut Echo) {
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        echo.body.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    echo.trailers = body.trailers().await.unwrap().map(|map| of_map(&map));
}

fn is_bare(message: &Message) -> bool {
    message.body.is_empty() && message.trailers.is_none()
}

async fn ask_our_server(plan: Plan) {
    let (ours, theirs) = Io::pair(plan.pipe);
    spawn_local(serve(ours));
    let (send, conn) = h2::client::Builder::new()
        .initial_window_size(plan.stream_window)
        .initial_connection_window_size(plan.connection_window)
        .header_table_size(plan.table)
        .max_frame_size(plan.frame)
        .handshake::<_, Bytes>(theirs)
        .await
        .unwrap();
    let conn = spawn_local(conn);
    let exchanges = plan.messages.iter().map(|message| async {
        let mut request = Request::post("http://a.b/echo").body(()).unwrap();
        map(&message.fields, request.headers_mut());
        let mut send = send.clone().ready().await.unwrap();
        let (response, stream) = send.send_request(request, is_bare(message)).unwrap();
        let sending = async {
            if !is_bare(message) {
                send_all(stream, message).await;
            }
        };
        let receiving = async {
            let response = response.await.unwrap();
            let mut echo = Echo { fields: of_map(response.headers()), ..Echo::default() };
            receive_all(response.into_body(), &mut echo).await;
            echo
        };
        let ((), echo) = join(sending, receiving).await;
        echo.check(message);
    });
    join_all(exchanges).await;
    drop(send);
    conn.await.unwrap().unwrap();
}

async fn their_server(plan: Plan, io: Io) {
    let mut conn = h2::server::Builder::new()
        .initial_window_size(plan.stream_window)
        .initial_connection_window_size(plan.connection_window)
        .max_concurrent_streams(plan.streams)
        .header_table_size(plan.table)
        .max_frame_size(plan.frame)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    while let Some(request) = conn.accept().await {
        let (request, mut respond) = request.unwrap();
        spawn_local(async move {
            let (parts, mut body) = request.into_parts();
            let mut response = Response::new(());
            *response.headers_mut() = parts.headers;
            let bare = body.is_end_stream();
            let mut stream = respond.send_response(response, bare).unwrap();
            if bare {
                return;
            }
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                // The crate gives out the empty frame that ends a body; a row of those is a flood.
                if !data.is_empty() {
                    stream.send_data(data, false).unwrap();
                }
            }
            match body.trailers().await.unwrap() {
                Some(trailers) => stream.send_trailers(trailers).unwrap(),
                None => stream.send_data(Bytes::new(), true).unwrap(),
            }
        });
    }
}

async fn send_ours(stream: &RefCell<ClientStream>, message: &Message) {
    for piece in pieces(message) {
        stream.borrow_mut().send_data(piece, false);
        poll_fn(|cx| stream.borrow_mut().poll_flush(cx)).await.unwrap();
    }
    match &message.trailers {
        Some(trailers) => {
            let mut fields = HeaderList::new();
            list(trailers, &mut fields);
            stream.borrow_mut().send_trailers(&fields);
        }
        None => stream.borrow_mut().send_data(Bytes::new(), true),
    }
    poll_fn(|cx| stream.borrow_mut().poll_flush(cx)).await.unwrap();
}

async fn receive_ours(stream: &RefCell<ClientStream>) -> Echo {
    let (head, mut end) = poll_fn(|cx| stream.borrow_mut().poll_head(cx)).await.unwrap();
    let mut echo = Echo { fields: of_list(&head.headers), ..Echo::default() };
    while !end {
        match poll_fn(|cx| stream.borrow_mut().poll_frame(cx)).await.unwrap() {
            Some(Frame::Data(data)) => echo.body.extend_from_slice(&data),
            Some(Frame::Trailers(trailers)) => echo.trailers = Some(of_list(&trailers)),
            None => end = true,
        }
    }
    echo
}

async fn ask_their_server(plan: Plan) {
    let (ours, theirs) = Io::pair(plan.pipe);
    let server = spawn_local(their_server(plan.clone(), theirs));
    let (conn, driver) =
        ClientConn::handshake(ours, settings(), Counters::detached()).await.unwrap();
    spawn_local(driver);
    let conn = Rc::new(conn);
    let exchanges = plan.messages.into_iter().map(|message| {
        let conn = Rc::clone(&conn);
        // Each with a waker of its own, as streams have in the proxy.
        spawn_local(async move {
            let mut head = RequestHead::new(Method::POST, Protocol::Http2);
            head.set_path(b"/echo");
            head.set_authority(b"a.b");
            list(&message.fields, &mut head.headers);
            let stream = RefCell::new(ClientStream::H2(Box::new(conn.open())));
            stream.borrow_mut().send_head(&head, is_bare(&message));
            let sending = async {
                if !is_bare(&message) {
                    send_ours(&stream, &message).await;
                }
            };
            let ((), echo) = join(sending, receive_ours(&stream)).await;
            echo.check(&message);
        })
    });
    for exchange in join_all(exchanges).await {
        exchange.unwrap();
    }
    drop(conn);
    server.await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_their_client_sends_comes_back_from_our_server(plan in any_plan()) {
        run(async || ask_our_server(plan).await);
    }

    #[test]
    fn what_our_client_sends_comes_back_from_their_server(plan in any_plan()) {
        run(async || ask_their_server(plan).await);
    }
}
