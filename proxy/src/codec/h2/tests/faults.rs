//! Requests that break the rules of HTTP: what of the connection is left, and what the log is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use super::*;

const CONTINUATION: u8 = 9;
const PADDED: u8 = 8;
const HAS_PRIORITY: u8 = 0x20;

fn lenient() -> Settings {
    let override_stream_error_on_invalid_http_message = true;
    let options =
        Http2Options { override_stream_error_on_invalid_http_message, ..Http2Options::default() };
    Settings { options, ..Settings::default() }
}

fn stream(raw: &mut Raw) -> super::super::ServerStream {
    match raw.accept() {
        Poll::Ready(Some(Ok((_, _, stream)))) => stream,
        other => panic!("{other:?}"),
    }
}

fn resets(raw: &mut Raw) -> Vec<u32> {
    let frames = raw.frames();
    assert!(frames.iter().all(|(kind, ..)| *kind != GOAWAY), "{frames:?}");
    frames.iter().filter(|(kind, ..)| *kind == RST_STREAM).map(|(_, id, _)| *id).collect()
}

#[test]
fn a_bad_head_ends_its_stream_alone_where_that_is_asked_for() {
    local(async || {
        let mut raw = Raw::new(lenient());
        raw.request(&[&GOOD[..], &[("connection", "close")]].concat(), true);
        assert_eq!(stream(&mut raw).rejected(), Some(Http2Fault::HeaderField));
        assert_eq!(resets(&mut raw), [1]);
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &hpack(&GOOD)));
        assert_eq!(stream(&mut raw).rejected(), None);
    });
}

#[test]
fn bad_trailers_end_their_streams_alone_where_that_is_asked_for() {
    local(async || {
        let mut raw = Raw::new(lenient());
        let mut streams = Vec::new();
        for id in [1, 3, 5] {
            let block = hpack(&[&GOOD[..], &[("content-length", "10")]].concat());
            raw.send(&frame(HEADERS, END_HEADERS, id, &block));
            streams.push(ServerStream::H2(Box::new(stream(&mut raw))));
        }
        let end = END_HEADERS | END_STREAM;
        raw.send(&frame(DATA, 0, 1, b"abc"));
        raw.send(&frame(HEADERS, end, 1, &hpack(&[("x", "y")])));
        raw.send(&frame(DATA, 0, 3, b"0123456789"));
        raw.send(&frame(HEADERS, end, 3, &hpack(&[(":method", "GET")])));
        raw.send(&frame(DATA, END_STREAM, 5, b"0123456789"));
        assert_eq!(resets(&mut raw), [1, 3]);
        let mut ends = Vec::new();
        for stream in &mut streams {
            loop {
                match poll_fn(|cx| stream.poll_frame(cx)).await {
                    Ok(Some(crate::codec::Frame::Data(_))) => {}
                    Ok(end) => break ends.push(Ok(end.is_some())),
                    Err(fault) => break ends.push(Err(fault)),
                }
            }
        }
        let fault = |fault: Http2Fault| Err(fault.into());
        let (short, pseudo) = (fault(Http2Fault::Messaging), fault(Http2Fault::HeaderField));
        assert_eq!(ends, [short, pseudo, Ok(false)]);
        drop(streams);
        assert_eq!(resets(&mut raw), [1, 3, 5]);
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 7, &hpack(&GOOD)));
        assert_eq!(stream(&mut raw).rejected(), None);
    });
}

/// What the log is told of a head: the block is not read wrongly, however it is cut.
#[test]
fn a_head_is_judged_by_all_of_its_block() {
    let upper = hpack(&[&GOOD[..], &[("X-Upper", "1")]].concat());
    let pathless = hpack(&[GOOD[0], GOOD[1], GOOD[3]]);
    let weight = [0, 0, 0, 0, 9];
    let padded = |block: &[u8]| [&[3][..], block, &[0; 3]].concat();
    let both = |block: &[u8]| [&[3][..], &weight, block, &[0; 3]].concat();
    let cases: [(&[u8], Http2Fault); 2] =
        [(&upper, Http2Fault::HeaderField), (&pathless, Http2Fault::Messaging)];
    for (block, fault) in cases {
        let (first, rest) = block.split_at(20);
        let priority = [&weight, first].concat();
        let ends = END_HEADERS | END_STREAM;
        let inputs = [
            frame(HEADERS, ends | PADDED, 1, &padded(block)),
            frame(HEADERS, ends | HAS_PRIORITY, 1, &[&weight, block].concat()),
            frame(HEADERS, ends | PADDED | HAS_PRIORITY, 1, &both(block)),
            [
                frame(HEADERS, END_STREAM | HAS_PRIORITY, 1, &priority),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat(),
            [
                frame(HEADERS, END_STREAM | PADDED, 1, &padded(first)),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat(),
        ];
        for input in inputs {
            local(async || {
                let mut raw = Raw::new(Settings::default());
                raw.send(&input);
                assert_eq!(stream(&mut raw).rejected(), Some(fault), "{input:?}");
            });
        }
    }
}

/// CVE-2025-8671: a peer that has us reset its streams is cut off, as one that resets them itself.
#[test]
fn streams_that_the_peer_has_us_reset_are_counted() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        let mut streams = Vec::new();
        for id in (1..4000).step_by(2) {
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, id, &hpack(&GOOD)));
            raw.send(&frame(PRIORITY, 0, id, &[&id.to_be_bytes()[..], &[0]].concat()));
            for _ in 0..3 {
                match raw.accept() {
                    Poll::Ready(Some(Ok((_, _, stream)))) => streams.push(stream),
                    Poll::Ready(_) => return,
                    Poll::Pending => {}
                }
            }
        }
        panic!("{} requests were begun for streams that were reset at once", streams.len());
    });
}

/// Whether a task would run again.
#[derive(Default)]
pub(super) struct Woken(AtomicBool);

impl Woken {
    pub(super) fn is_woken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Nobody may want frames: the upstream takes no more, or there is none yet.
#[test]
fn a_cancelled_request_is_known_to_be_and_gives_its_window_back() {
    const UNREAD: usize = 40_000;
    let returned = |frames: &[(u8, u32, Vec<u8>)]| -> u32 {
        let updates = frames.iter().filter(|(kind, id, _)| (*kind, *id) == (WINDOW_UPDATE, 0));
        updates.map(|(.., n)| u32::from_be_bytes([n[0], n[1], n[2], n[3]])).sum()
    };
    local(async || {
        let options = Http2Options {
            initial_connection_window_size: 65_535,
            initial_stream_window_size: 65_535,
            ..Http2Options::default()
        };
        let mut raw = Raw::new(Settings { options, ..Settings::default() });
        raw.send(&frame(HEADERS, END_HEADERS, 1, &hpack(&GOOD)));
        let mut stream = ServerStream::H2(Box::new(stream(&mut raw)));
        for _ in 0..4 {
            raw.send(&frame(DATA, 0, 1, &[0; UNREAD / 4]));
        }
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert_eq!(returned(&raw.frames()), 0);
        assert!(stream.poll_known_fault(&mut cx).is_pending());
        woken.0.store(false, Ordering::Relaxed);
        raw.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]));
        assert_eq!(returned(&raw.frames()) as usize, UNREAD);
        assert!(woken.is_woken());
        let cancelled = Fault::Reset { code: 8, remote: true };
        assert!(matches!(stream.poll_known_fault(&mut cx), Poll::Ready(f) if f == cancelled));
        // What came before the reset goes no further.
        assert!(matches!(stream.poll_frame(&mut cx), Poll::Ready(Err(f)) if f == cancelled));
        assert_eq!(stream.held_bytes(), UNREAD);
        assert!(stream.meter().wire_received as usize > UNREAD + 4 * 9);
    });
}

/// Its rest still belongs to the compression's table, and to no request.
#[test]
fn a_head_that_was_given_up_leaves_the_connection_whole() {
    local(async || {
        let mut raw = Raw::new(Settings::default());
        let block = hpack(&GOOD);
        let (first, rest) = block.split_at(20);
        raw.send(&frame(HEADERS, END_STREAM, 1, first));
        assert!(raw.accept().is_pending());
        assert_eq!(raw.conn.begun_head(), Some(1));
        let stream_of_it = raw.conn.give_up_head().unwrap();
        assert_eq!(raw.conn.begun_head(), None);
        assert!(raw.conn.give_up_head().is_none());
        raw.send(&frame(CONTINUATION, END_HEADERS, 1, rest));
        assert!(raw.accept().is_pending());
        drop(stream_of_it);
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &block));
        assert_eq!(stream(&mut raw).rejected(), None);
        assert_eq!(resets(&mut raw), [1, 3]);
    });
}
