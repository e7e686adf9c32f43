//! One HTTP/2 connection without its socket: `receive` takes bytes and gives events, frames to be sent gather in
//! one queue (`send`). Its owner moves the bytes; the streams' owners look at it through a shared cell, and wake
//! it when there is something to send. All of it lives on one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::budget::{Budget, Flood};
use super::counters::Counters;
use super::fault::Http2Fault;
use super::frame::{Header, code, flag, kind, setting};
use super::hpack::{Decoder, Encoder};
use super::stream::{EndedBy, Key, Recent, Stream, Streams};
use super::{Settings, send::Outbox};
use crate::codec::Fault;
use crate::codec::head::RequestHead;
use crate::io::Io;
use crate::stats::names::Http2Stat;

/// RFC 9113 §6.9.2.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// RFC 9113 §6.9.1.
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

/// The most of the peer's compression table that we use, in bytes; `hpack_table_size` can make it less, as in Envoy.
const ENCODER_TABLE_BYTES: u32 = 4096;

/// A connection that its owner and those of its streams have in common.
pub(super) type Shared = Rc<RefCell<Connection>>;

/// What came.
#[derive(Debug)]
pub(super) enum Event {
    Request {
        key: Key,
        head: RequestHead,
        end: bool,
    },
    /// A request that never was a stream; `told`: its peer gets a reset.
    Refused {
        fault: Http2Fault,
        told: bool,
    },
}

/// The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) fault: Http2Fault,
    /// The code that a GOAWAY tells.
    pub(super) goaway: Option<u32>,
    /// It was by the head of a new stream, which somebody has to hear of.
    pub(super) by_request: bool,
}

impl Broken {
    /// GOAWAY says why.
    pub(super) fn told(code: u32) -> Self {
        Self { goaway: Some(code), ..Self::silent(Http2Fault::Codec) }
    }

    /// Without a word, as Envoy closes it.
    pub(super) fn silent(fault: Http2Fault) -> Self {
        Self { fault, goaway: None, by_request: false }
    }
}

/// A header block of which CONTINUATION frames are to come.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) header: Header,
    pub(super) bytes: Vec<u8>,
    pub(super) frames: u32,
    /// Its stream depends on itself (RFC 7540 §5.3.1).
    pub(super) bad_priority: bool,
    /// Its request was answered without it: it is read for the sake of the table alone.
    pub(super) given_up: bool,
}

/// What the peer's SETTINGS say.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) initial_window: i64,
    pub(super) max_frame: usize,
    pub(super) max_streams: u32,
    pub(super) connect_protocol: bool,
    pub(super) settings_seen: bool,
    /// It has sent GOAWAY.
    pub(super) going: bool,
}

/// How far we have come in saying that we go (RFC 9113 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Going {
    No,
    Announced,
    /// The last stream has been named.
    Final,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) is_server: bool,
    /// A message that breaks the rules of HTTP ends alone, not with its connection.
    pub(super) stream_errors: bool,
    pub(super) settings: Arc<Settings>,
    pub(super) counters: Counters,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) out: Outbox,
    pub(super) streams: Streams,
    pub(super) recent: Recent,
    pub(super) budget: Budget,
    pub(super) flooded: Option<Flood>,
    pub(super) peer: Peer,
    pub(super) going: Going,
    /// It was we who began: a drain, not an answer to the peer's GOAWAY.
    pub(super) drains: bool,
    /// What the peer takes on all streams together.
    pub(super) send_window: i64,
    /// What the peer may send on all of them.
    pub(super) receive_window: i64,
    /// What of it was taken and has not been given back.
    pub(super) taken: u32,
    /// Streams with data that waits for the connection.
    pub(super) ready: VecDeque<Key>,
    /// Requests that wait for the peer to admit them.
    pub(super) waiting: VecDeque<Key>,
    pub(super) block: Option<Block>,
    /// Bodies of frames that are smaller are copied out of the read buffer in hand.
    pub(super) slice_bytes: usize,
    /// The newest stream: of the peer (server), or of ours (client).
    pub(super) newest: u32,
    /// The newest that was given out.
    pub(super) accepted: u32,
    /// Messages of the peer that have ended, in whatever way.
    pub(super) ended_messages: u32,
    /// A PING of ours is not answered yet.
    pub(super) pinging: bool,
    /// Why it has ended.
    pub(super) ended: Option<Fault>,
    task: Option<Waker>,
    woken: bool,
}

impl Connection {
    /// With our preface and SETTINGS to be sent.
    pub(super) fn new(is_server: bool, settings: Arc<Settings>, counters: Counters) -> Self {
        let options = &settings.options;
        let mut connection = Self {
            is_server,
            stream_errors: options.stream_errors(),
            decoder: Decoder::new(options.hpack_table_size),
            encoder: Encoder::new(ENCODER_TABLE_BYTES.min(options.hpack_table_size)),
            out: Outbox::default(),
            streams: Streams::default(),
            recent: Recent::default(),
            budget: Budget::new(&settings),
            flooded: None,
            peer: Peer {
                initial_window: DEFAULT_WINDOW.into(),
                max_frame: super::frame::MAX_FRAME_BYTES,
                max_streams: u32::MAX,
                connect_protocol: false,
                settings_seen: false,
                going: false,
            },
            going: Going::No,
            drains: false,
            send_window: DEFAULT_WINDOW.into(),
            receive_window: DEFAULT_WINDOW.into(),
            taken: 0,
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            block: None,
            slice_bytes: 0,
            newest: 0,
            accepted: 0,
            ended_messages: 0,
            pinging: false,
            ended: None,
            task: None,
            woken: false,
            settings,
            counters,
        };
        connection.greet();
        connection
    }

    fn greet(&mut self) {
        if !self.is_server {
            self.out.queue.tail().extend_from_slice(super::server::PREFACE);
        }
        let settings = Arc::clone(&self.settings);
        let options = &settings.options;
        let pairs = [
            (setting::HEADER_TABLE_SIZE, options.hpack_table_size),
            (setting::ENABLE_PUSH, 0),
            (setting::ENABLE_CONNECT_PROTOCOL, u32::from(options.allow_connect)),
            (setting::MAX_CONCURRENT_STREAMS, options.max_concurrent_streams),
            (setting::INITIAL_WINDOW_SIZE, options.initial_stream_window_size),
        ];
        let mut payload = Vec::with_capacity(6 * pairs.len());
        for (id, value) in pairs {
            let default = match id {
                // Only a client may say so.
                setting::ENABLE_PUSH => self.is_server,
                setting::HEADER_TABLE_SIZE => value == 4096,
                setting::ENABLE_CONNECT_PROTOCOL => value == 0,
                setting::INITIAL_WINDOW_SIZE => value == DEFAULT_WINDOW,
                _ => false,
            };
            if !default {
                payload.extend_from_slice(&id.to_be_bytes());
                payload.extend_from_slice(&value.to_be_bytes());
            }
        }
        self.put(kind::SETTINGS, 0, 0, &payload);
        let whole = options.initial_connection_window_size;
        if let Some(more) = whole.checked_sub(DEFAULT_WINDOW).filter(|more| *more > 0) {
            self.put(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
            self.receive_window += i64::from(more);
        }
    }

    /// The owner's task, which moves the bytes, is at it.
    pub(super) fn attend(&mut self, cx: &Context<'_>) {
        self.woken = true;
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    /// The owner has done what there was.
    pub(super) fn leave(&mut self) {
        self.woken = false;
    }

    /// There is something for the owner to do.
    pub(super) fn wake(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }

    /// Gives taken bytes back to the connection's window, in steps of half of it.
    pub(super) fn give_back(&mut self, bytes: u32) {
        self.taken += bytes;
        if self.taken >= self.settings.options.initial_connection_window_size / 2 {
            let taken = std::mem::take(&mut self.taken);
            self.receive_window += i64::from(taken);
            self.put(kind::WINDOW_UPDATE, 0, 0, &taken.to_be_bytes());
            self.wake();
        }
    }

    /// As `give_back`, for what a stream's owner has taken.
    pub(super) fn take(&mut self, key: Key, bytes: u32) {
        self.give_back(bytes);
        let window = self.settings.options.initial_stream_window_size;
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.incoming.ended || stream.closed {
            return;
        }
        stream.incoming.taken += bytes;
        if stream.incoming.taken >= window / 2 {
            let taken = std::mem::take(&mut stream.incoming.taken);
            stream.incoming.window += i64::from(taken);
            let id = stream.id;
            self.put(kind::WINDOW_UPDATE, 0, id, &taken.to_be_bytes());
            self.wake();
        }
    }

    /// Closes a stream that has ended on both sides.
    pub(super) fn close_if_done(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.incoming.ended && stream.is_answered() && !stream.closed {
            self.close(key, EndedBy::Peer);
        }
    }

    pub(super) fn close(&mut self, key: Key, by: EndedBy) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.closed || stream.id == 0 {
            return;
        }
        stream.closed = true;
        let id = stream.id;
        self.streams.note_closed(id);
        self.recent.note(id, by);
        self.counters.codec.gauge_dec(Http2Stat::StreamsActive);
        self.admit_waiting();
        if self.streams.open() == 0 && (self.going == Going::Final || self.peer.going) {
            self.wake();
        }
    }

    /// A stream cannot go on, its peer being told or not knowing better. A server goes no further with the request;
    /// of a response there may be more to take than the fault.
    pub(super) fn fail(&mut self, key: Key, fault: Fault, by: EndedBy) {
        let is_server = self.is_server;
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.fault.get_or_insert(fault);
        stream.abandon();
        let unread = if is_server { stream.incoming.discard() } else { 0 };
        stream.wake();
        if unread > 0 {
            self.give_back(unread);
        }
        self.close(key, by);
    }

    /// A stream of ours with a place among the others.
    pub(super) fn add_stream(&mut self, id: u32) -> Key {
        let window = self.settings.options.initial_stream_window_size;
        if id != 0 {
            self.counters.codec.gauge_inc(Http2Stat::StreamsActive);
        }
        self.streams.insert(Stream::new(id, window, self.peer.initial_window))
    }

    /// The owner of a stream is gone: what was not finished is reset.
    pub(super) fn release(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.id == 0 {
            self.waiting.retain(|waiting| *waiting != key);
        } else if !stream.closed {
            let served = self.is_server && stream.is_answered();
            self.reset(key, if served { code::NO_ERROR } else { code::CANCEL });
        }
        let Some(stream) = self.streams.remove(key) else { return };
        let unread = stream.incoming.unread();
        if unread > 0 && self.ended.is_none() {
            self.give_back(unread as u32);
        }
        if stream.outgoing.is_ready {
            self.ready.retain(|ready| *ready != key);
        }
        if !self.is_server {
            self.wake();
        }
    }

    /// Applies what `receive` could not go on from; nothing but what is told leaves any more.
    pub(super) fn give_up(&mut self, broken: Broken) {
        match broken.goaway {
            Some(code) => self.go_away(self.accepted, code),
            None => self.out.queue.clear(),
        }
        let stops = match self.flooded {
            Some(Flood::Empty) => Http2Fault::EmptyFrames.into(),
            _ => Fault::GoAway { code: code::PROTOCOL_ERROR, remote: false },
        };
        self.end(broken.fault.into(), stops);
    }

    /// The connection is over: its streams hear `why`.
    pub(super) fn end(&mut self, fault: Fault, why: Fault) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(fault);
        let open = self.streams.open();
        self.counters.codec.gauge_add(Http2Stat::StreamsActive, -(open as i64));
        self.streams.close_all();
        self.ready.clear();
        self.waiting.clear();
        for (_, stream) in self.streams.all_mut() {
            stream.outgoing.is_ready = false;
            if stream.closed {
                continue;
            }
            stream.closed = true;
            let is_over = stream.incoming.ended && stream.is_answered();
            if !is_over {
                stream.fault.get_or_insert(why);
                stream.abandon();
                if self.is_server {
                    stream.incoming.discard();
                }
            }
            stream.wake();
        }
    }

    pub(super) fn go_away(&mut self, last: u32, code: u32) {
        let [a, b, c, d] = last.to_be_bytes();
        let [e, f, g, h] = code.to_be_bytes();
        self.put(kind::GOAWAY, 0, 0, &[a, b, c, d, e, f, g, h]);
        self.wake();
    }

    /// No new stream is taken any more.
    pub(super) fn go_away_at_last(&mut self, code: u32) {
        if self.going < Going::Final && self.ended.is_none() {
            self.going = Going::Final;
            self.go_away(self.newest_taken(), code);
        }
    }

    /// What we tell as the last stream that we have seen to.
    fn newest_taken(&self) -> u32 {
        if self.is_server { self.accepted } else { 0 }
    }

    /// A PING whose answer ends `pinging`.
    pub(super) fn ping(&mut self) {
        self.pinging = true;
        self.put(kind::PING, 0, 0, &OUR_PING);
    }

    /// Moves out what there is, as far as the socket takes it; ready when that is all.
    pub(super) fn poll_flush(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            self.pump_ready();
            let before = self.out.queue.len();
            if before == 0 {
                // Under it something may still hold bytes.
                return self.out.queue.poll_flush(io, cx);
            }
            let flushed = self.out.queue.poll_flush(io, cx);
            self.counters.sent(before - self.out.queue.len());
            match flushed {
                Poll::Ready(Ok(())) => self.out.note_empty(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.out.note_progress(before);
                    return Poll::Pending;
                }
            }
        }
    }
}

/// What our PINGs carry.
pub(super) const OUR_PING: [u8; 8] = *b"outrigge";

/// Flags of a SETTINGS or PING frame that answers one.
pub(super) const ACK: u8 = flag::ACK;
