//! The other side of an HTTP/2 connection: frames as a script says, and what must hold of everything that our
//! codec sends back.
//!
//! Windows are never exceeded (RFC 9113 §6.9), frames come in an order that their streams' states allow (§5.1), header
//! blocks decode, and no more window is given than was taken.

use std::collections::{BTreeMap, VecDeque};

use bytes::BytesMut;
use outrigger::codec::h2::hpack::{Decoder, Encoder, Name};
use outrigger::io::Io;

use crate::poll;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;
const DEFAULT_WINDOW: i64 = 65_535;
pub const MAX_WINDOW: i64 = (1 << 31) - 1;
const MAX_FRAME: usize = 16_384;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What has passed on one stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Flow-controlled bytes that we have let come, beyond the initial window.
    granted: i64,
    received: i64,
    has_head: bool,
    /// We have sent a head on it.
    opened: bool,
    /// We have reset it, or said that we do not see to it.
    abandoned: bool,
    pub ended: bool,
    pub reset: bool,
    /// Bytes that we have sent, and window that came back for them.
    sent: i64,
    given_back: i64,
}

pub struct Peer {
    pub io: Io,
    encoder: Encoder,
    decoder: Decoder,
    pub streams: BTreeMap<u32, Stream>,
    connection: Stream,
    /// INITIAL_WINDOW_SIZE of SETTINGS that are not acknowledged yet, and the one that is.
    unacknowledged: VecDeque<Option<i64>>,
    initial: i64,
    /// A block without END_HEADERS.
    block: Option<(u32, Vec<u8>)>,
    received: Vec<u8>,
    /// We are the server.
    is_server: bool,
    preface: bool,
    pub goaway: bool,
    /// Our codec has closed the connection, or does not read.
    pub closed: bool,
}

impl Peer {
    pub fn new(io: Io, is_server: bool) -> Self {
        Self {
            io,
            encoder: Encoder::new(4096),
            // Never acknowledged: any size that the other side tells is taken.
            decoder: Decoder::new(u32::MAX),
            streams: BTreeMap::new(),
            connection: Stream::default(),
            unacknowledged: VecDeque::new(),
            initial: DEFAULT_WINDOW,
            block: None,
            received: Vec::new(),
            is_server,
            // What comes begins with a client's preface.
            preface: is_server,
            goaway: false,
            closed: false,
        }
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        if self.closed || bytes.is_empty() {
            return;
        }
        let written = poll(|cx| self.io.poll_write(cx, bytes));
        self.closed = !matches!(written, Some(Ok(n)) if n == bytes.len());
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.note_sent(kind, flags, stream, payload);
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.send_bytes(&frame);
    }

    /// What the frame allows the other side, if it is good.
    fn note_sent(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let id = stream & 0x7fff_ffff;
        match kind {
            WINDOW_UPDATE if payload.len() == 4 => {
                let more = i64::from(word(payload) & 0x7fff_ffff);
                self.on(id).granted += more;
            }
            SETTINGS if flags & ACK == 0 => {
                let pairs = payload.chunks_exact(6);
                let windows = pairs.filter(|p| p[..2] == INITIAL_WINDOW_SIZE.to_be_bytes());
                let last = windows.map(|p| i64::from(word(&p[2..]))).next_back();
                self.unacknowledged.push_back(last);
            }
            DATA => {
                self.connection.sent += payload.len() as i64;
                self.streams.entry(id).or_default().sent += payload.len() as i64;
            }
            HEADERS => self.on(id).opened = true,
            RST_STREAM => self.on(id).abandoned = true,
            GOAWAY if self.is_server && payload.len() >= 8 => {
                let last = word(payload) & 0x7fff_ffff;
                for (_, stream) in self.streams.range_mut(last + 1..) {
                    stream.abandoned = true;
                }
            }
            _ => {}
        }
    }

    fn on(&mut self, id: u32) -> &mut Stream {
        if id == 0 { &mut self.connection } else { self.streams.entry(id).or_default() }
    }

    pub fn send_head(&mut self, stream: u32, end: bool, fields: &[(Name<'_>, &[u8])]) {
        let mut block = Vec::new();
        for (name, value) in fields {
            self.encoder.encode(&mut block, *name, value, false);
        }
        self.send(HEADERS, END_HEADERS | if end { END_STREAM } else { 0 }, stream, &block);
    }

    /// All windows as wide as they can be.
    pub fn open_windows(&mut self) {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        let initial = self.unacknowledged.iter().flatten().next_back().copied();
        let initial = initial.unwrap_or(self.initial);
        self.widen(0, DEFAULT_WINDOW);
        for id in ids {
            if self.streams[&id].has_head && !self.streams[&id].ended {
                self.widen(id, initial);
            }
        }
    }

    fn widen(&mut self, id: u32, initial: i64) {
        let stream = self.on(id);
        let more = (MAX_WINDOW - (initial + stream.granted - stream.received)).min(MAX_WINDOW);
        if more > 0 {
            self.send(WINDOW_UPDATE, 0, id, &(more as u32).to_be_bytes());
        }
    }

    /// Takes and checks what has come.
    pub fn receive(&mut self) {
        let mut bytes = BytesMut::with_capacity(1 << 16);
        loop {
            match poll(|cx| self.io.poll_read(cx, &mut bytes)) {
                Some(Ok(1..)) => bytes.reserve(1 << 16),
                Some(Ok(0) | Err(_)) => {
                    self.closed = true;
                    break;
                }
                None => break,
            }
        }
        self.received.extend_from_slice(&bytes);
        let received = std::mem::take(&mut self.received);
        let mut rest = &received[..];
        if self.preface {
            let Some(frames) = rest.strip_prefix(PREFACE) else {
                assert!(PREFACE.starts_with(rest));
                self.received = received;
                return;
            };
            self.preface = false;
            rest = frames;
        }
        while let [a, b, c, kind, flags, s0, s1, s2, s3, tail @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            assert!(length <= MAX_FRAME);
            let Some((payload, tail)) = tail.split_at_checked(length) else { break };
            self.frame(*kind, *flags, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload);
            rest = tail;
        }
        self.received = rest.to_vec();
    }

    fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        if self.block.is_some() {
            assert!(kind == CONTINUATION, "{kind} within a block");
        }
        match kind {
            DATA => self.data(flags, id, payload),
            HEADERS => {
                assert!(flags & (PADDED | 0x20) == 0);
                let stream = self.on(id);
                assert!(id != 0 && !stream.ended && !stream.reset, "a head after the end of {id}");
                stream.has_head = true;
                stream.ended = flags & END_STREAM != 0;
                self.block = Some((id, payload.to_vec()));
                self.end_block(flags);
            }
            CONTINUATION => {
                let (open, block) = self.block.as_mut().expect("a block to go on with");
                assert_eq!(*open, id);
                block.extend_from_slice(payload);
                self.end_block(flags);
            }
            RST_STREAM => {
                assert!(id != 0 && payload.len() == 4);
                let stream = self.on(id);
                // What never was a stream may still become one.
                stream.reset |= stream.opened || stream.has_head;
            }
            SETTINGS if flags & ACK != 0 => {
                assert!(payload.is_empty());
                let acknowledged = self.unacknowledged.pop_front().expect("SETTINGS of ours");
                self.initial = acknowledged.unwrap_or(self.initial);
            }
            SETTINGS => assert!(payload.len().is_multiple_of(6)),
            PING => assert!(payload.len() == 8 && id == 0),
            GOAWAY => {
                assert!(payload.len() >= 8 && id == 0);
                self.goaway = true;
            }
            WINDOW_UPDATE => {
                let more = i64::from(word(payload));
                assert!((1..=MAX_WINDOW).contains(&more));
                let stream = self.on(id);
                stream.given_back += more;
            }
            _ => panic!("a frame of kind {kind}"),
        }
    }

    fn data(&mut self, flags: u8, id: u32, payload: &[u8]) {
        let (length, initial) = (payload.len() as i64, self.initial);
        self.connection.received += length;
        let all = &self.connection;
        assert!(
            length == 0 || all.received <= DEFAULT_WINDOW + all.granted,
            "the connection's window"
        );
        let stream = self.on(id);
        stream.received += length;
        assert!(length == 0 || stream.received <= initial + stream.granted, "the window of {id}");
        assert!(stream.has_head && !stream.ended && !stream.reset, "DATA of {id} out of place");
        stream.ended = flags & END_STREAM != 0;
    }

    fn end_block(&mut self, flags: u8) {
        if flags & END_HEADERS == 0 {
            return;
        }
        let Some((_, block)) = self.block.take() else { return };
        let mut sink = |name: Name<'_>, value: &[u8], _: bool| {
            assert!(!name.text().is_empty() && !name.text().iter().any(u8::is_ascii_uppercase));
            assert!(value.iter().all(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f)));
        };
        assert_eq!(self.decoder.decode(&block, &mut sink), Ok(()));
    }

    /// As many streams as the other side wants.
    pub fn admit_all(&mut self) {
        self.send(SETTINGS, 0, 0, &[0, 3, 0, 1, 0, 0]);
    }

    /// Streams with a head and no end.
    pub fn unfinished(&self) -> usize {
        let open = |stream: &&Stream| {
            stream.has_head && !(stream.ended || stream.reset || stream.abandoned)
        };
        self.streams.values().filter(open).count()
    }

    /// No window was given for bytes that were not sent. `raised`: by how much the connection's began higher.
    pub fn check_given_back(&self, raised: i64) {
        assert!(self.connection.given_back <= self.connection.sent + raised);
        for stream in self.streams.values() {
            assert!(stream.given_back <= stream.sent);
        }
    }
}

fn word(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

/// Takes bytes off a script.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    pub fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// A frame of any kind, flags and payload; on a stream that may be one.
    pub fn frame(&mut self, kind: u8, peer: &mut Peer) -> Option<()> {
        let [flags, stream, length] = [self.byte()?, self.byte()?, self.byte()?];
        let stream = if stream < 250 { u32::from(stream) % 16 } else { 1 << (stream - 230) };
        let payload = self.bytes(length.into());
        peer.send(kind, flags, stream, payload);
        Some(())
    }
}
