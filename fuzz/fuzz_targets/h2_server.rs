//! Our HTTP/2 server between a client of fuzzed frames and an application that does what a script says. What is sent
//! is always valid, and whatever was answered in full arrives once the windows are open.
#![no_main]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use outrigger::codec::h2::hpack::{Name, Pseudo};
use outrigger::codec::h2::{Counters, ServerConn, Settings};
use outrigger::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use outrigger::codec::{Frame, ServerStream};
use outrigger::config::protocol_options::Http2Options;
use outrigger::io::Io;
use outrigger_fuzz::h2::{DATA, END_STREAM, PREFACE, Peer, SETTINGS, Script, WINDOW_UPDATE};
use outrigger_fuzz::{check_fields, check_request, poll};

/// The connection's window beyond the default.
const RAISED: u32 = 100_000;

fn settings(choice: u8) -> Arc<Settings> {
    Arc::new(Settings {
        options: Http2Options {
            allow_connect: choice & 1 != 0,
            max_concurrent_streams: if choice & 2 != 0 { 3 } else { 100 },
            initial_stream_window_size: 65_535,
            initial_connection_window_size: 65_535 + RAISED,
            hpack_table_size: if choice & 4 != 0 { 100 } else { 4096 },
            ..Http2Options::default()
        },
        max_head_bytes: if choice & 8 != 0 { 200 } else { 60 * 1024 },
        ..Settings::default()
    })
}

struct Exchange {
    stream: ServerStream<'static>,
    headed: bool,
    answered: bool,
    failed: bool,
}

struct Server {
    conn: ServerConn,
    exchanges: Vec<Exchange>,
    ended: bool,
}

impl Server {
    /// Takes what has come and sends what is to go.
    fn run(&mut self, peer: &mut Peer) {
        while !self.ended {
            match poll(|cx| self.conn.poll_accept(cx)) {
                None => break,
                Some(Some(Ok((head, _, stream)))) => self.accept(&head, stream),
                Some(Some(Err(_)) | None) => {
                    self.ended = true;
                    let _ = poll(|cx| self.conn.poll_close(cx));
                }
            }
        }
        peer.receive();
        peer.check_given_back(RAISED.into());
    }

    fn accept(&mut self, head: &RequestHead, stream: outrigger::codec::h2::ServerStream) {
        if stream.rejected().is_some() {
            return;
        }
        check_request(head);
        assert!(head.authority().is_some());
        self.exchanges.push(Exchange {
            stream: ServerStream::H2(Box::new(stream)),
            headed: false,
            answered: false,
            failed: false,
        });
    }

    /// The application does something with one of its streams.
    fn act(&mut self, script: &mut Script<'_>) -> Option<()> {
        let [which, what, much] = [script.byte()?, script.byte()?, script.byte()?];
        if self.exchanges.is_empty() {
            return Some(());
        }
        let at = usize::from(which) % self.exchanges.len();
        let exchange = &mut self.exchanges[at];
        let size = usize::from(much) * usize::from(much);
        match what % 8 {
            0 => exchange.head(false),
            1 => exchange.head(true),
            2 => exchange.data(size, false),
            3 => exchange.data(size, true),
            4 => exchange.trailers(),
            5 => exchange.read(),
            6 if much % 4 == 0 => {
                exchange.stream.reset(much.into());
                exchange.failed = true;
            }
            6 => drop(self.exchanges.remove(at)),
            _ if much == 7 => self.conn.drain(),
            _ if much == 8 => self.conn.finish_drain(),
            _ => exchange.check_flushed(),
        }
        Some(())
    }
}

impl Exchange {
    fn head(&mut self, end: bool) {
        if self.headed {
            return;
        }
        let mut head = ResponseHead::new(http::StatusCode::OK, Protocol::Http2);
        head.headers.push_raw(b"X-Answer", b"to everything");
        if !end {
            head.headers.push_raw(b"x-flavour", &[b'v'; 300]);
        }
        self.stream.send_head(&head, end);
        self.headed = true;
        self.answered = end;
    }

    fn data(&mut self, size: usize, end: bool) {
        if !self.answered {
            self.head(false);
            self.stream.send_data(Bytes::from(vec![7; size]), end);
            self.answered = end;
        }
    }

    fn trailers(&mut self) {
        if !self.answered {
            self.head(false);
            let mut trailers = HeaderList::new();
            trailers.push_raw(b"grpc-status", b"0");
            self.stream.send_trailers(&trailers);
            self.answered = true;
        }
    }

    fn read(&mut self) {
        loop {
            match poll(|cx| self.stream.poll_frame(cx)) {
                Some(Ok(Some(Frame::Data(data)))) => assert!(!data.is_empty()),
                Some(Ok(Some(Frame::Trailers(trailers)))) => check_fields(&trailers),
                Some(Err(_)) => {
                    self.failed = true;
                    return;
                }
                None | Some(Ok(None)) => return,
            }
        }
    }

    fn check_flushed(&mut self) {
        match poll(|cx| self.stream.poll_flush(cx)) {
            None => assert!(self.stream.buffered() > 0),
            Some(Ok(())) => assert_eq!(self.stream.buffered(), 0),
            Some(Err(_)) => self.failed = true,
        }
    }
}

fn request(peer: &mut Peer, id: u32, flags: u8) {
    let method: &[u8] = if flags & 2 == 0 { b"POST" } else { b"GET" };
    let mut fields = vec![
        (Name::Pseudo(Pseudo::Method), method),
        (Name::Pseudo(Pseudo::Scheme), b"http"),
        (Name::Pseudo(Pseudo::Path), b"/some/where"),
        (Name::Pseudo(Pseudo::Authority), b"host.example"),
    ];
    if flags & 4 != 0 {
        fields.push((Name::Other(b"content-length"), b"5"));
    }
    peer.send_head(id, flags & END_STREAM != 0, &fields);
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let Some(choice) = script.byte() else { return };
    let (ours, theirs) = Io::pair(1 << 22);
    let conn = ServerConn::new(ours, BytesMut::new(), settings(choice), Counters::detached());
    let mut server = Server { conn, exchanges: Vec::new(), ended: false };
    let mut peer = Peer::new(theirs, false);
    peer.send_bytes(PREFACE);
    if choice & 128 == 0 {
        peer.send(SETTINGS, 0, 0, &[]);
    }
    let mut next = 1;
    while let Some(op) = script.byte() {
        let done = match op % 16 {
            kind @ 0..=9 => script.frame(kind, &mut peer),
            10 => script.byte().map(|flags| {
                request(&mut peer, next, flags);
                next += 2;
            }),
            11 => script.byte().zip(script.byte()).map(|(id, much)| {
                let body = vec![1; usize::from(much) * 64];
                peer.send(DATA, much & END_STREAM, u32::from(id % 32), &body);
            }),
            12 => script.byte().zip(script.byte()).map(|(id, much)| {
                let more = u32::from(much) << (much & 15);
                peer.send(WINDOW_UPDATE, 0, u32::from(id % 32), &more.to_be_bytes());
            }),
            13 | 14 => server.act(&mut script),
            _ => {
                server.run(&mut peer);
                Some(())
            }
        };
        if done.is_none() || peer.closed || server.ended {
            break;
        }
    }
    server.run(&mut peer);
    if peer.closed || server.ended {
        return;
    }
    // Whatever is left is answered and has to arrive.
    for exchange in &mut server.exchanges {
        exchange.read();
        exchange.data(10, true);
    }
    for _ in 0..40 {
        server.run(&mut peer);
        if peer.closed || server.ended {
            return;
        }
        peer.open_windows();
    }
    for exchange in &mut server.exchanges {
        exchange.check_flushed();
        assert!(exchange.failed || exchange.stream.buffered() == 0);
    }
    let failed = server.exchanges.iter().filter(|exchange| exchange.failed).count();
    assert!(peer.unfinished() <= failed, "answered in full, and not all of it came");
});
