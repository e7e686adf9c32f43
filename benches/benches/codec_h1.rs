//! HTTP/1 heads over an in-memory Io: a request in and an answer out (server side), a request out and
//! an answer in (client side). The peer's ends only move bytes.

mod fixture;

use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use criterion::{Criterion, criterion_group, criterion_main};
use outrigger::codec::h1::{ClientConn, ClientSettings, ServerConn, ServerSettings};
use outrigger::codec::{ClientStream, ServerStream};
use outrigger::io::Io;

const REQUEST: &[u8] = b"GET /api/v1/orders/1234?expand=lines HTTP/1.1\r\n\
    Host: orders.shop.svc.cluster.local:8080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n\
    Accept: application/json, text/plain, */*\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Accept-Language: en-GB,en;q=0.5\r\n\
    X-Request-Id: e9011966-1652-4622-ba3a-3f4e590de33b\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Sat, 21 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 0\r\n\
    ETag: \"5f3e-1a2b3c\"\r\n\r\n";

fn ready<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("not ready"),
    }
}

fn server(c: &mut Criterion) {
    let mut cx = Context::from_waker(Waker::noop());
    let (io, mut peer) = Io::pair(64 * 1024);
    let settings = Arc::new(ServerSettings::default());
    let mut connection = ServerConn::new(io, BytesMut::new(), settings);
    let mut answer = fixture::response();
    answer.headers.set(&outrigger::codec::name::names::CONTENT_LENGTH, b"0");
    let mut sink = BytesMut::with_capacity(64 * 1024);
    c.bench_function("codec_h1/server_head_in_and_out", |b| {
        b.iter(|| {
            ready(peer.poll_write(&mut cx, REQUEST)).expect("the pipe has room");
            let (head, end) =
                ready(connection.poll_head(&mut cx)).expect("a request").expect("one");
            black_box((head, end));
            let mut stream = ServerStream::H1(&mut connection);
            stream.send_head(&answer, true);
            ready(stream.poll_flush(&mut cx)).expect("the pipe has room");
            sink.clear();
            ready(peer.poll_read(&mut cx, &mut sink)).expect("an answer")
        });
    });
}

fn client(c: &mut Criterion) {
    let mut cx = Context::from_waker(Waker::noop());
    let (io, mut peer) = Io::pair(64 * 1024);
    let connection = ClientConn::new(io, Arc::new(ClientSettings::default()));
    let mut connection = ClientStream::H1(Box::new(connection));
    let request = fixture::request();
    let mut sink = BytesMut::with_capacity(64 * 1024);
    c.bench_function("codec_h1/client_head_out_and_in", |b| {
        b.iter(|| {
            connection.send_head(&request, true);
            ready(connection.poll_flush(&mut cx)).expect("the pipe has room");
            sink.clear();
            ready(peer.poll_read(&mut cx, &mut sink)).expect("a request");
            ready(peer.poll_write(&mut cx, RESPONSE)).expect("the pipe has room");
            black_box(ready(connection.poll_head(&mut cx)).expect("an answer"))
        });
    });
}

criterion_group!(benches, server, client);
criterion_main!(benches);
