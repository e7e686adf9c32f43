//! What the fuzz targets share: connections over memory, polled by hand, and what must hold of anything
//! that a decoder lets pass.
//!
//! Run: `RUSTC_BOOTSTRAP=1 cargo fuzz run h1_request -s none -- -max_total_time=60`.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use outrigger::codec::head::{HeaderList, RequestHead, ResponseHead};
use outrigger::codec::{ClientStream, Fault, Frame, ParseFault, ServerStream, h1};
use outrigger::io::Io;

pub mod h2;

/// Settings that differ in what they let pass, chosen by the input's first byte.
pub fn server_settings(choice: u8) -> Arc<h1::ServerSettings> {
    Arc::new(h1::ServerSettings {
        accept_http_10: choice & 1 != 0,
        enable_trailers: choice & 2 != 0,
        allow_absolute_url: choice & 4 == 0,
        allow_custom_methods: choice & 8 != 0,
        default_host_for_http_10: (choice & 16 != 0).then(|| "default".into()),
        max_header_count: if choice & 32 != 0 { 200 } else { 100 },
        max_head_bytes: if choice & 64 != 0 { 256 } else { 60 * 1024 },
        ..h1::ServerSettings::default()
    })
}

pub fn poll<T>(f: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    match f(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

pub fn write(io: &mut Io, bytes: &[u8]) {
    if !bytes.is_empty() {
        let written = poll(|cx| io.poll_write(cx, bytes));
        assert!(matches!(written, Some(Ok(n)) if n == bytes.len()));
    }
}

/// All that a connection gave: heads, bodies, trailers and the fault at its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    pub events: Vec<String>,
    pub bodies: Vec<Vec<u8>>,
    pub fault: Option<Fault>,
}

/// Which of several faults of a head is named depends on how much of it has come.
pub fn grammar(fault: Option<Fault>) -> Option<Fault> {
    match fault {
        Some(Fault::Parse(ParseFault::InvalidCharacters | ParseFault::NonAsciiName)) => {
            Some(Fault::Parse(ParseFault::CodecError))
        }
        other => other,
    }
}

/// The same requests or the same fault, whatever the reads were.
pub fn assert_same(a: &Transcript, b: &Transcript) {
    // A head over its limit is refused when it is seen, which may be before or after another fault in it.
    let too_large = Some(Fault::Parse(ParseFault::HeadersTooLarge));
    if a.fault == too_large || b.fault == too_large {
        return;
    }
    assert_eq!(a.events, b.events);
    assert_eq!(grammar(a.fault), grammar(b.fault));
    if a.fault.is_none() {
        assert_eq!(a.bodies, b.bodies);
        return;
    }
    // Nothing is given out of a read that has a fault in it: how much came before depends on the reads.
    assert_eq!(a.bodies.len(), b.bodies.len());
    for (a, b) in a.bodies.iter().zip(&b.bodies) {
        assert!(a.starts_with(b) || b.starts_with(a));
    }
}

pub fn lines(list: &HeaderList) -> Vec<(Vec<u8>, Vec<u8>)> {
    list.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.to_vec())).collect()
}

fn show(list: &HeaderList) -> String {
    format!("{:?}", lines(list))
}

/// Nothing that could begin a line or a message of its own is in a field.
pub fn check_fields(list: &HeaderList) {
    for (name, value) in list.iter() {
        assert!(!name.is_empty());
        assert!(name.iter().all(|b| outrigger::codec::name::is_tchar(*b)));
        assert!(value.iter().all(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f)));
        for framing in ["transfer-encoding", "keep-alive", "proxy-connection"] {
            assert!(!name.eq_ignore_ascii_case(framing.as_bytes()));
        }
    }
}

pub fn check_request(head: &RequestHead) {
    check_fields(&head.headers);
    let clean = |bytes: &[u8]| bytes.iter().all(|b| (0x21..0x7f).contains(b));
    assert!(clean(head.path().unwrap_or(b"/")));
    assert!(clean(head.authority().unwrap_or(b"")));
    let lengths =
        head.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(b"content-length")).count();
    assert!(lengths <= 1);
}

/// Feeds `pieces` to a server, answers each request, and writes down what came.
pub fn serve(settings: &Arc<h1::ServerSettings>, pieces: &[&[u8]]) -> Transcript {
    let (ours, mut peer) = Io::pair(1 << 22);
    let mut conn = h1::ServerConn::new(ours, BytesMut::new(), Arc::clone(settings));
    let mut out = Transcript::default();
    let mut in_request = false;
    for piece in pieces {
        write(&mut peer, piece);
        if !advance(&mut conn, &mut out, &mut in_request) {
            return out;
        }
    }
    drop(peer);
    advance(&mut conn, &mut out, &mut in_request);
    out
}

/// Goes on as far as the bytes reach; false at the connection's end.
fn advance(conn: &mut h1::ServerConn, out: &mut Transcript, in_request: &mut bool) -> bool {
    loop {
        if !*in_request {
            match poll(|cx| conn.poll_head(cx)) {
                None => return true,
                Some(Ok(None)) => return false,
                Some(Err(fault)) => {
                    out.fault = Some(fault);
                    return false;
                }
                Some(Ok(Some((head, end)))) => {
                    check_request(&head);
                    round_trip(&head);
                    out.events.push(format!(
                        "{} {:?} {:?} {:?} {:?} {end} {}",
                        head.method,
                        head.path_str(),
                        head.authority_str(),
                        head.scheme,
                        head.upgrade_str(),
                        show(&head.headers)
                    ));
                    out.bodies.push(Vec::new());
                    *in_request = true;
                    if head.upgrade.is_some() || head.method == http::Method::CONNECT {
                        conn.ignore_upgrade();
                        let switching =
                            ResponseHead::new(http::StatusCode::SWITCHING_PROTOCOLS, head.protocol);
                        ServerStream::H1(conn).send_head(&switching, false);
                    }
                }
            }
        }
        loop {
            match poll(|cx| ServerStream::H1(conn).poll_frame(cx)) {
                None => return true,
                Some(Ok(Some(Frame::Data(data)))) => {
                    assert!(!data.is_empty());
                    if let Some(body) = out.bodies.last_mut() {
                        body.extend_from_slice(&data);
                    }
                }
                Some(Ok(Some(Frame::Trailers(list)))) => {
                    check_fields(&list);
                    out.events.push(show(&list));
                }
                Some(Ok(None)) => break,
                Some(Err(fault)) => {
                    out.fault = Some(fault);
                    return false;
                }
            }
        }
        *in_request = false;
        let head =
            ResponseHead::new(http::StatusCode::OK, outrigger::codec::head::Protocol::Http11);
        ServerStream::H1(conn).send_head(&head, true);
        if !conn.is_reusable() {
            return false;
        }
    }
}

/// What we would send upstream for this head is one request, and reads as the same.
fn round_trip(head: &RequestHead) {
    if head.upgrade.is_some() || head.method == http::Method::CONNECT {
        return;
    }
    if !head.path_str().starts_with('/') || head.authority().is_none() {
        return;
    }
    let (ours, peer) = Io::pair(1 << 22);
    let conn = h1::ClientConn::new(ours, Arc::default());
    let mut client = ClientStream::H1(Box::new(conn));
    let has_length = head.headers.contains(&outrigger::codec::name::names::CONTENT_LENGTH);
    client.send_head(head, !has_length);
    assert!(matches!(poll(|cx| client.poll_flush(cx)), Some(Ok(()))));
    let settings = Arc::new(h1::ServerSettings {
        allow_custom_methods: true,
        max_header_count: 500,
        max_head_bytes: 1 << 20,
        ..h1::ServerSettings::default()
    });
    let mut server = h1::ServerConn::new(peer, BytesMut::new(), settings);
    let again = poll(|cx| server.poll_head(cx));
    let Some(Ok(Some((again, _)))) = again else { panic!("{again:?} of {head:?}") };
    assert_eq!(again.method, head.method);
    assert_eq!(again.path_str(), head.path_str());
    assert_eq!(again.authority_str(), head.authority_str());
    let without_length = |list: &HeaderList| {
        let mut lines = lines(list);
        lines.retain(|(n, _)| n != b"content-length");
        lines
    };
    assert_eq!(without_length(&again.headers), without_length(&head.headers));
    assert!(poll(|cx| server.poll_head(cx)).is_none() || has_length);
}
