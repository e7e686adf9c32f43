//! Bytes of an upstream: what comes of them is well-formed, the same whole or in pieces, and a connection is
//! called reusable only when nothing is left over.
#![no_main]

use std::sync::Arc;

use http::Method;
use libfuzzer_sys::fuzz_target;
use outrigger::codec::head::{Protocol, RequestHead};
use outrigger::codec::{ClientStream, Fault, Frame, h1};
use outrigger::io::Io;
use outrigger_fuzz::{check_fields, grammar, lines, poll, write};

#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    events: Vec<String>,
    body: Vec<u8>,
    fault: Option<Fault>,
    reusable: bool,
}

fuzz_target!(|input: &[u8]| {
    let [choice, cut, bytes @ ..] = input else { return };
    let at = usize::from(*cut) * bytes.len() / 256;
    let mut whole = ask(*choice, &[bytes]);
    let mut pieces = ask(*choice, &[&bytes[..at], &bytes[at..]]);
    whole.fault = grammar(whole.fault);
    pieces.fault = grammar(pieces.fault);
    assert_eq!(whole, pieces);
});

fn ask(choice: u8, pieces: &[&[u8]]) -> Answer {
    let (ours, mut peer) = Io::pair(1 << 22);
    let settings = h1::ClientSettings { enable_trailers: choice & 1 != 0, ..Default::default() };
    let conn = h1::ClientConn::new(ours, Arc::new(settings));
    let mut stream = ClientStream::H1(Box::new(conn));
    let method = match choice >> 1 & 3 {
        0 => Method::HEAD,
        1 => Method::CONNECT,
        _ => Method::GET,
    };
    let mut head = RequestHead::new(method, Protocol::Http11);
    head.set_authority(b"a:1");
    head.set_path(b"/");
    stream.send_head(&head, true);
    assert!(matches!(poll(|cx| stream.poll_flush(cx)), Some(Ok(()))));
    let mut answer = Answer::default();
    let mut in_body = false;
    for piece in pieces {
        write(&mut peer, piece);
        if advance(&mut stream, &mut answer, &mut in_body) {
            break;
        }
    }
    // What stands behind a response may still be on its way when the response ends.
    drop(peer);
    advance(&mut stream, &mut answer, &mut in_body);
    if let Some(mut conn) = stream.into_h1() {
        answer.reusable = conn.is_reusable() && poll(|cx| conn.poll_idle(cx)).is_none();
    }
    answer
}

/// True when the response or the connection has ended.
fn advance(stream: &mut ClientStream, answer: &mut Answer, in_body: &mut bool) -> bool {
    if answer.fault.is_some() {
        return true;
    }
    while !*in_body {
        match poll(|cx| stream.poll_head(cx)) {
            None => return false,
            Some(Err(fault)) => {
                answer.fault = Some(fault);
                return true;
            }
            Some(Ok((head, end))) => {
                check_fields(&head.headers);
                *in_body = !head.is_informational();
                answer.events.push(format!("{} {end} {:?}", head.status, lines(&head.headers)));
            }
        }
    }
    loop {
        match poll(|cx| stream.poll_frame(cx)) {
            None => return false,
            Some(Ok(Some(Frame::Data(data)))) => answer.body.extend_from_slice(&data),
            Some(Ok(Some(Frame::Trailers(list)))) => {
                check_fields(&list);
                answer.events.push(format!("{:?}", lines(&list)));
            }
            Some(Ok(None)) => return true,
            Some(Err(fault)) => {
                answer.fault = Some(fault);
                return true;
            }
        }
    }
}
