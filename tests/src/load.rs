//! Paced keep-alive clients that know exactly which request failed.

use std::cell::{Cell, RefCell};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::wire::{End, Framing, Wire};

/// Outcomes over all clients.
#[derive(Debug, Default)]
pub struct Tally {
    pub ok: Cell<u64>,
    /// Requests sent on an open connection that got no complete 200.
    pub failed: Cell<u64>,
    /// Why the first one failed.
    pub first: RefCell<Option<String>>,
}

impl Tally {
    fn fail(&self, why: String) {
        self.failed.set(self.failed.get() + 1);
        self.first.borrow_mut().get_or_insert(why);
    }
}

/// One HTTP/1 connection, a request every `pause`, until the proxy says or does close.
pub async fn h1(port: u16, pause: Duration, until: Instant, tally: Rc<Tally>) {
    let Ok(io) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = io.set_nodelay(true);
    let (read, mut write) = io.into_split();
    let mut wire = Wire::new(read, Duration::from_secs(60));
    let mut tick = interval(pause.max(Duration::from_micros(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < until {
        // A close between two requests ends the client: nothing was in flight.
        tokio::select! {
            biased;
            end = wire.fill() => {
                match end {
                    Ok(_) => return tally.fail("h1: an answer that nobody asked for".into()),
                    Err(End::Timeout) => continue,
                    Err(_) => return,
                }
            }
            _ = tick.tick() => {}
        }
        match peek(write.as_ref()) {
            Err(Errno::EAGAIN) => {}
            Ok(1..) => return tally.fail("h1: an answer that nobody asked for".into()),
            _ => return,
        }
        if write.write_all(b"GET / HTTP/1.1\r\nhost: load\r\n\r\n").await.is_err() {
            return tally.fail("h1: cannot write".into());
        }
        let head = match wire.head().await {
            Ok(head) => head,
            Err(end) => return tally.fail(format!("h1: {} before the answer", end.text())),
        };
        let body = wire.body(head.framing(Framing::None)).await;
        if head.status() != 200 || body.end != End::Complete {
            return tally.fail(format!("h1: {} {}", head.first, body.end.text()));
        }
        tally.ok.set(tally.ok.get() + 1);
        if head.get("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
            return;
        }
    }
}

/// What has come by now: the runtime may not have looked since.
///
/// # Errors
/// `EAGAIN`: nothing; any other: the connection is gone.
pub fn peek(io: &TcpStream) -> nix::Result<usize> {
    loop {
        let how = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(io.as_raw_fd(), &mut [0], how) {
            Err(Errno::EINTR) => {}
            seen => return seen,
        }
    }
}

/// One HTTP/2 connection, a request every `pause`, until GOAWAY.
pub async fn h2(port: u16, pause: Duration, until: Instant, tally: Rc<Tally>) {
    let Ok(io) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = io.set_nodelay(true);
    let Ok((mut sender, connection)) = h2::client::handshake(io).await else { return };
    let connection = tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    let mut tick = interval(pause.max(Duration::from_micros(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < until {
        tick.tick().await;
        // After GOAWAY no stream can be opened: a client goes elsewhere, nothing failed.
        if std::future::poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            break;
        }
        let mut request = http::Request::new(());
        *request.uri_mut() = http::Uri::from_static("http://load/");
        let Ok((response, _)) = sender.send_request(request, true) else { break };
        let tally = Rc::clone(&tally);
        tokio::task::spawn_local(async move {
            match exchange(response).await {
                Ok(()) => tally.ok.set(tally.ok.get() + 1),
                // The stream's number is above the last one the proxy took: safe to send again.
                Err(e) if e.is_go_away() && e.is_remote() => {}
                Err(e) if e.reason() == Some(h2::Reason::REFUSED_STREAM) => {}
                Err(e) => tally.fail(format!("h2: {e}")),
            }
        });
    }
    drop(sender);
    let _ = tokio::time::timeout(Duration::from_secs(5), connection).await;
}

async fn exchange(response: h2::client::ResponseFuture) -> Result<(), h2::Error> {
    let response = response.await?;
    let good = response.status() == 200;
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
    }
    if good { Ok(()) } else { Err(h2::Reason::INTERNAL_ERROR.into()) }
}
