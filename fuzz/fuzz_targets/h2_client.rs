//! Our HTTP/2 client between an application that does what a script says and a server of fuzzed frames. What is sent
//! is always valid, and whatever was asked in full arrives once the windows are open.
#![no_main]

use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use libfuzzer_sys::fuzz_target;
use outrigger::codec::h2::hpack::{Name, Pseudo};
use outrigger::codec::h2::{ClientConn, Counters, Driver, Settings};
use outrigger::codec::head::{HeaderList, Protocol, RequestHead};
use outrigger::codec::{ClientStream, Frame};
use outrigger::config::protocol_options::Http2Options;
use outrigger::io::Io;
use outrigger_fuzz::h2::{DATA, END_STREAM, Peer, SETTINGS, Script, WINDOW_UPDATE};
use outrigger_fuzz::{check_fields, poll};

/// The connection's window beyond the default.
const RAISED: u32 = 100_000;

fn settings(choice: u8) -> Arc<Settings> {
    Arc::new(Settings {
        options: Http2Options {
            allow_connect: choice & 1 != 0,
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
    stream: ClientStream,
    asked: bool,
    headed: bool,
    failed: bool,
}

struct Client {
    conn: ClientConn,
    driver: Driver,
    exchanges: Vec<Exchange>,
    ended: bool,
}

impl Client {
    /// Takes what has come and sends what is to go.
    fn run(&mut self, peer: &mut Peer) {
        self.ended |= poll(|cx| Pin::new(&mut self.driver).poll(cx)).is_some();
        peer.receive();
        peer.check_given_back(RAISED.into());
    }

    fn open(&mut self, flags: u8) {
        let method = if flags & 2 == 0 { Method::POST } else { Method::HEAD };
        let mut head = RequestHead::new(method, Protocol::Http2);
        head.set_path(b"/some/where");
        head.set_authority(b"host.example");
        head.headers.push_raw(b"X-Question", b"of many");
        if flags & 4 != 0 {
            head.headers.push_raw(b"x-flavour", &[b'v'; 300]);
        }
        let end = flags & END_STREAM != 0;
        let mut stream = ClientStream::H2(Box::new(self.conn.open()));
        stream.send_head(&head, end);
        self.exchanges.push(Exchange { stream, asked: end, headed: false, failed: false });
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
        match what % 6 {
            0 => exchange.data(size, false),
            1 => exchange.data(size, true),
            2 => exchange.trailers(),
            3 => exchange.read(),
            4 if much % 4 == 0 => {
                exchange.stream.reset(much.into());
                exchange.failed = true;
            }
            4 => drop(self.exchanges.remove(at)),
            _ => exchange.check_flushed(),
        }
        Some(())
    }
}

impl Exchange {
    fn data(&mut self, size: usize, end: bool) {
        if !self.asked {
            self.stream.send_data(Bytes::from(vec![7; size]), end);
            self.asked = end;
        }
    }

    fn trailers(&mut self) {
        if !self.asked {
            let mut trailers = HeaderList::new();
            trailers.push_raw(b"x-checksum", b"0");
            self.stream.send_trailers(&trailers);
            self.asked = true;
        }
    }

    fn read(&mut self) {
        while !self.headed {
            match poll(|cx| self.stream.poll_head(cx)) {
                Some(Ok((head, _))) => {
                    check_fields(&head.headers);
                    self.headed = !head.is_informational();
                }
                Some(Err(_)) => {
                    self.failed = true;
                    return;
                }
                None => return,
            }
        }
        loop {
            match poll(|cx| self.stream.poll_frame(cx)) {
                Some(Ok(Some(Frame::Data(data)))) => assert!(!data.is_empty()),
                Some(Ok(Some(Frame::Trailers(trailers)))) => check_fields(&trailers),
                Some(Err(_)) => {
                    self.failed = true;
                    return;
                }
                Some(Ok(None)) => {
                    assert!(self.stream.is_end());
                    return;
                }
                None => return,
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

fn respond(peer: &mut Peer, id: u32, flags: u8) {
    let status: &[u8] = match flags & 6 {
        0 => b"100",
        2 => b"204",
        _ => b"200",
    };
    let mut fields = vec![(Name::Pseudo(Pseudo::Status), status)];
    if flags & 8 != 0 {
        fields.push((Name::Other(b"content-length"), b"64"));
    }
    peer.send_head(id, flags & END_STREAM != 0, &fields);
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let Some(choice) = script.byte() else { return };
    let (ours, theirs) = Io::pair(1 << 22);
    let handshake = pin!(ClientConn::handshake(ours, settings(choice), Counters::detached()));
    let Some(Ok((conn, driver))) = poll(|cx| handshake.poll(cx)) else { return };
    let mut client = Client { conn, driver, exchanges: Vec::new(), ended: false };
    let mut peer = Peer::new(theirs, true);
    if choice & 128 == 0 {
        peer.send(SETTINGS, 0, 0, &[]);
    }
    while let Some(op) = script.byte() {
        let done = match op % 16 {
            kind @ 0..=9 => script.frame(kind, &mut peer),
            10 => script.byte().map(|flags| client.open(flags)),
            11 => script.byte().zip(script.byte()).map(|(id, much)| {
                let body = vec![1; usize::from(much) * 64];
                peer.send(DATA, much & END_STREAM, u32::from(id % 32), &body);
            }),
            12 => script.byte().zip(script.byte()).map(|(id, much)| {
                let more = u32::from(much) << (much & 15);
                peer.send(WINDOW_UPDATE, 0, u32::from(id % 32), &more.to_be_bytes());
            }),
            13 => script.byte().zip(script.byte()).map(|(id, flags)| {
                respond(&mut peer, u32::from(id % 32), flags);
            }),
            14 => client.act(&mut script),
            _ => {
                client.run(&mut peer);
                Some(())
            }
        };
        if done.is_none() || peer.closed || client.ended {
            break;
        }
    }
    client.run(&mut peer);
    if peer.closed || client.ended {
        return;
    }
    // Whatever is left is said and has to arrive.
    for exchange in &mut client.exchanges {
        exchange.read();
        exchange.data(10, true);
    }
    peer.admit_all();
    for _ in 0..40 {
        client.run(&mut peer);
        if peer.closed || client.ended {
            return;
        }
        peer.open_windows();
    }
    for exchange in &mut client.exchanges {
        exchange.check_flushed();
        assert!(exchange.failed || exchange.stream.buffered() == 0);
    }
    let failed = client.exchanges.iter().filter(|exchange| exchange.failed).count();
    assert!(peer.unfinished() <= failed, "asked in full, and not all of it came");
});
