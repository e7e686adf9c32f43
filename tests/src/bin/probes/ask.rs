//! A question to the side server, as Envoy's `httpCall` asks it, and the body of its answer.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use outrigger::http_filters::Flow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a hook asked and, after its wait, the answer.
#[derive(Debug, Default)]
pub(crate) struct Question(Option<Rc<RefCell<Bytes>>>);

impl Question {
    /// The first call waits, the second has the answer.
    pub(crate) fn ask(&mut self, side: SocketAddr, path: &'static str) -> Result<Bytes, Flow> {
        if let Some(answer) = &self.0 {
            return Ok(answer.borrow().clone());
        }
        let answer = Rc::new(RefCell::default());
        self.0 = Some(answer.clone());
        Err(Flow::Wait(wait(side, path, answer)))
    }
}

fn wait(
    side: SocketAddr,
    path: &'static str,
    answer: Rc<RefCell<Bytes>>,
) -> LocalBoxFuture<'static, ()> {
    async move {
        let body = exchange(side, path).await;
        *answer.borrow_mut() = body.unwrap_or_else(|e| Bytes::from(e.to_string()));
    }
    .boxed_local()
}

async fn exchange(side: SocketAddr, path: &str) -> io::Result<Bytes> {
    let mut io = TcpStream::connect(side).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: side\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let mut got = Vec::new();
    loop {
        if let Some(body) = body(&got) {
            return Ok(body);
        }
        if io.read_buf(&mut got).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The body, once all of it is here; the side server always says its length.
fn body(got: &[u8]) -> Option<Bytes> {
    let head = got.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&got[..head]).ok()?.to_ascii_lowercase();
    let length = text.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    got[head..].get(..length).map(Bytes::copy_from_slice)
}
