//! Both ends of HTTP/1 over in-memory connections: grammar, framing, reuse.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::io::AsyncReadExt;

use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::name::{HeaderName, names};
use crate::codec::{Fault, Frame, ParseFault};
use crate::config::protocol_options::HeaderKeyFormat;
use crate::io::Io;

use super::{ClientConn, ClientSettings, ServerConn, ServerSettings};

mod client;
mod requests;
mod server;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn settings() -> ServerSettings {
    ServerSettings { header_key_format: HeaderKeyFormat::PreserveCase, ..ServerSettings::default() }
}

/// A server whose client has sent `bytes` and, with `close`, ended its direction.
fn server_with(bytes: &[u8], settings: ServerSettings) -> (ServerConn, Io) {
    let (a, b) = Io::pair(1 << 20);
    let conn = ServerConn::new(a, BytesMut::from(bytes), Arc::new(settings));
    (conn, b)
}

fn poll_once<T>(mut f: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    f(&mut Context::from_waker(Waker::noop()))
}

fn head_of(bytes: &[u8], settings: ServerSettings) -> Result<(RequestHead, bool), ParseFault> {
    let (mut conn, peer) = server_with(bytes, settings);
    drop(peer);
    match block_on(poll_fn(|cx| conn.poll_head(cx))) {
        Ok(Some(head)) => Ok(head),
        Err(Fault::Parse(fault)) => Err(fault),
        other => panic!("{other:?} for {}", String::from_utf8_lossy(bytes)),
    }
}

async fn body_of(conn: &mut ServerConn) -> Result<(Vec<u8>, Option<HeaderList>), Fault> {
    let mut body = Vec::new();
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| conn.poll_frame(cx)).await? {
        match frame {
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(list) => trailers = Some(list),
        }
    }
    Ok((body, trailers))
}

async fn response_body(conn: &mut ClientConn) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| conn.poll_frame(cx)).await? {
        if let Frame::Data(data) = frame {
            body.extend_from_slice(&data);
        }
    }
    Ok(body)
}

fn response(status: u16, lines: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap(), Protocol::Http11);
    for (name, value) in lines {
        head.headers.push_raw(name.as_bytes(), value.as_bytes());
    }
    head
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
