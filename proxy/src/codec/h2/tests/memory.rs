//! What waits in a connection takes up about as much memory as its bytes, however its peer cuts them.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};

use super::*;
use crate::codec::buffer::ReadBuffer;
use crate::codec::head::{Protocol, ResponseHead, Scheme};

use super::super::connection::{Connection, Event};
use super::super::server_stream::poll_sent;
use super::super::stream::Key;

const UNKNOWN: u8 = 0x77;

fn connection(is_server: bool, settings: &[u8]) -> Connection {
    let counters = Counters::detached();
    let mut connection = Connection::new(is_server, Arc::new(Settings::default()), counters);
    receive(&mut connection, &frame(SETTINGS, 0, 0, settings));
    connection
}

fn receive(connection: &mut Connection, bytes: &[u8]) -> Option<Event> {
    connection.receive(&mut ReadBuffer::new(bytes.into())).unwrap()
}

fn accept(connection: &mut Connection) -> Key {
    match receive(connection, &frame(HEADERS, END_HEADERS, 1, &hpack(&GOOD))) {
        Some(Event::Request { key, .. }) => key,
        other => panic!("{other:?}"),
    }
}

/// Whether nothing of a full read buffer is left after it was gone through: whoever holds data has copied it.
fn lets_go(room: usize, data: usize) -> bool {
    let mut connection = connection(true, &[]);
    let key = accept(&mut connection);
    let mut bytes = BytesMut::with_capacity(room);
    bytes.extend_from_slice(&frame(DATA, 0, 1, &vec![7; data]));
    while bytes.len() + 16_393 <= room {
        bytes.extend_from_slice(&frame(UNKNOWN, 0, 0, &[0; 16_384]));
    }
    let mut read = ReadBuffer::new(bytes);
    assert!(connection.receive(&mut read).unwrap().is_none());
    let unread = connection.streams.get(key).unwrap().incoming.unread();
    assert_eq!(unread, data);
    read.bytes.try_reclaim(room)
}

#[test]
fn a_small_part_of_a_read_buffer_does_not_keep_it() {
    assert!(lets_go(64 * 1024, 4096));
    assert!(lets_go(64 * 1024, 8192));
    assert!(lets_go(16 * 1024, 4000));
    // What is a good part of it is not copied.
    assert!(!lets_go(64 * 1024, 16_384));
    assert!(!lets_go(16 * 1024, 4096));
}

#[test]
fn a_megabyte_of_single_bytes_waits_as_a_megabyte_and_leaves_in_whole_frames() {
    const MANY: usize = 1 << 20;
    // The peer's windows are shut.
    let mut connection = connection(true, &[0, 4, 0, 0, 0, 0]);
    let key = accept(&mut connection);
    let head = ResponseHead::new(StatusCode::OK, Protocol::Http2);
    connection.send_response(key, &head, false, false);
    let read = Bytes::from(vec![7; 16 * 1024]);
    for i in 0..MANY {
        let byte = read.slice(i % read.len()..i % read.len() + 1);
        connection.send_data(key, byte, i + 1 == MANY);
    }
    let outgoing = &connection.streams.get(key).unwrap().outgoing;
    assert_eq!(outgoing.queued, MANY);
    assert!(outgoing.held() < 2 * MANY, "{} bytes", outgoing.held());
    // Only the first, which was alone, keeps its buffer.
    let before = connection.budget.data_sent;
    let open = 0x7fff_0000_u32.to_be_bytes();
    receive(&mut connection, &frame(WINDOW_UPDATE, 0, 0, &open));
    receive(&mut connection, &frame(WINDOW_UPDATE, 0, 1, &open));
    while connection.streams.get(key).unwrap().outgoing.queued > 0 {
        connection.out.queue.clear();
        connection.pump_ready();
    }
    let frames = connection.budget.data_sent - before;
    assert!(frames <= MANY as u64 / (16 * 1024) + 2, "{frames} frames");
    assert!(read.is_unique());
}

/// The one that waits for its turn among the peer's streams has data to send, and somebody waits for that to be out.
#[test]
fn a_stream_that_is_admitted_late_is_told_that_its_data_is_out() {
    // One stream at once.
    let mut connection = connection(false, &[0, 3, 0, 0, 0, 1]);
    let mut head = RequestHead::new(Method::POST, Protocol::Http2);
    head.scheme = Some(Scheme::Http);
    head.set_path(b"/");
    let (first, second) = (connection.add_stream(0), connection.add_stream(0));
    connection.send_request(first, &head, true);
    connection.send_request(second, &head, false);
    connection.send_data(second, Bytes::from_static(&[0; 32 * 1024]), false);
    let woken = Arc::new(faults::Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    assert!(poll_sent(&mut connection, second, &mut cx).is_pending());
    receive(&mut connection, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]));
    assert!(woken.is_woken());
    assert!(poll_sent(&mut connection, second, &mut cx).is_ready());
}
