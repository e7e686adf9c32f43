//! The HTTP/1 side of a scripted upstream.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::sleep;

use super::{Peer, Seen, reset_on_close};
use crate::area::{Answer, bytes, grpc_frame, header};
use crate::wire::{End, Framing, Head, Wire};

const DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn serve(stream: TcpStream, peer: Peer) {
    let (read, mut write) = stream.into_split();
    let mut wire = Wire::new(read, DEADLINE);
    loop {
        let head = match wire.head().await {
            Ok(head) => head,
            Err(End::Malformed) => {
                let held = crate::wire::latin1(wire.held());
                peer.shared.record(seen(
                    &peer,
                    &Head { first: held, headers: vec![] },
                    "malformed",
                ));
                return;
            }
            Err(_) => return,
        };
        let index = peer.shared.record(seen(&peer, &head, "open"));
        let answer = peer.shared.answer(&peer.name);
        let exchange = Exchange { peer: &peer, index, answer, head };
        match exchange.run(&mut wire, &mut write).await {
            Next::KeepAlive => {}
            Next::Close => return,
            Next::Reset => {
                if let Ok(whole) = wire.into_inner().reunite(write) {
                    reset_on_close(&whole);
                }
                return;
            }
        }
    }
}

fn seen(peer: &Peer, head: &Head, end: &str) -> Seen {
    let mut lines = vec![head.first.clone()];
    lines.extend(head.headers.iter().map(|(n, v)| format!("{}: {v}", n.to_ascii_lowercase())));
    Seen {
        upstream: peer.name.clone(),
        connection: peer.connection,
        head: lines,
        end: end.to_owned(),
        ..Seen::default()
    }
}

enum Next {
    KeepAlive,
    Close,
    Reset,
}

struct Exchange<'a> {
    peer: &'a Peer,
    index: usize,
    answer: Answer,
    head: Head,
}

impl Exchange<'_> {
    async fn run(self, wire: &mut Wire<OwnedReadHalf>, write: &mut OwnedWriteHalf) -> Next {
        let early = self.answer.early || self.tunnel();
        match self.answer.instead.as_deref() {
            Some("close") if early => return Next::Close,
            Some("reset") if early => return Next::Reset,
            _ => {}
        }
        if !early && !self.read_body(wire).await {
            return Next::Close;
        }
        match self.answer.instead.as_deref() {
            Some("close") => return Next::Close,
            Some("reset") => return Next::Reset,
            Some(_) => return self.hang(wire).await,
            None => {}
        }
        sleep(Duration::from_millis(self.answer.delay_ms)).await;
        if self.write_answer(write).await.is_err() {
            self.peer.shared.update(self.index, |s| s.end.push_str(", then gone"));
            return Next::Close;
        }
        if self.tunnel() {
            return self.echo(wire, write).await;
        }
        match self.answer.then.as_deref() {
            Some("close") => return Next::Close,
            Some("reset") => return Next::Reset,
            Some("shutdown") => {
                let _ = write.shutdown().await;
                return self.hang(wire).await;
            }
            Some(_) => return self.hang(wire).await,
            None => {}
        }
        if early && !self.read_body(wire).await {
            return Next::Close;
        }
        Next::KeepAlive
    }

    /// Whether what follows the answer is a tunnel.
    fn tunnel(&self) -> bool {
        self.answer.echo
    }

    async fn read_body(&self, wire: &mut Wire<OwnedReadHalf>) -> bool {
        // Piece by piece, so that a case can wait for a part of the body.
        let framing = self.head.framing(Framing::None);
        let body = if let Framing::Length(length) = framing {
            let mut end = End::Complete;
            let mut left = length;
            while left > 0 {
                if wire.held().is_empty()
                    && let Err(e) = wire.fill().await
                {
                    end = e;
                    break;
                }
                let take = wire.held().len().min(left);
                let part = wire.body(Framing::Length(take)).await;
                left -= take;
                self.peer.shared.update(self.index, |s| s.body.extend_from_slice(&part.data));
            }
            crate::wire::Body { data: vec![], trailers: vec![], end }
        } else {
            wire.body(framing).await
        };
        let complete = body.end == End::Complete;
        self.peer.shared.update(self.index, |s| {
            s.body.extend_from_slice(&body.data);
            s.trailers = body.trailers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
            s.end = body.end.text().to_owned();
        });
        complete
    }

    /// Waits until the proxy closes.
    async fn hang(&self, wire: &mut Wire<OwnedReadHalf>) -> Next {
        let rest = wire.body(Framing::UntilClose).await;
        let how = if rest.end == End::Reset { "reset" } else { "closed" };
        self.peer.shared.update(self.index, |s| s.end.push_str(&format!(", then {how}")));
        Next::Close
    }

    async fn echo(&self, wire: &mut Wire<OwnedReadHalf>, write: &mut OwnedWriteHalf) -> Next {
        loop {
            let data = wire.take();
            self.peer.shared.update(self.index, |s| s.body.extend_from_slice(&data));
            if write.write_all(&data).await.is_err() {
                return Next::Close;
            }
            if let Err(end) = wire.fill().await {
                self.peer.shared.update(self.index, |s| s.end = format!("tunnel {}", end.text()));
                let _ = write.shutdown().await;
                return Next::Close;
            }
        }
    }

    async fn write_answer(&self, write: &mut OwnedWriteHalf) -> std::io::Result<()> {
        if let Some(raw) = &self.answer.raw {
            return write.write_all(&bytes(raw)).await;
        }
        for line in &self.answer.informational {
            write.write_all(&informational(line)).await?;
            sleep(Duration::from_millis(self.answer.chunk_delay_ms)).await;
        }
        let (head, parts, tail) = render(&self.answer, self.head.first.starts_with("HEAD "));
        if self.answer.chunk_delay_ms == 0 {
            let mut all = head;
            all.extend(parts.into_iter().flatten());
            all.extend(tail);
            return write.write_all(&all).await;
        }
        write.write_all(&head).await?;
        for part in parts {
            sleep(Duration::from_millis(self.answer.chunk_delay_ms)).await;
            write.write_all(&part).await?;
        }
        write.write_all(&tail).await
    }
}

fn informational(line: &str) -> Vec<u8> {
    let (status, header) = line.split_once(' ').unwrap_or((line, ""));
    let mut out = format!("HTTP/1.1 {status} Info\r\n");
    if !header.is_empty() {
        out.push_str(header);
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    out.into_bytes()
}

/// The body pieces of an answer or request, not yet framed.
pub(crate) fn pieces(
    body: Option<&str>,
    size: Option<usize>,
    chunks: &[String],
    grpc: &[String],
) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    if let Some(body) = body {
        out.push(bytes(body));
    }
    if let Some(size) = size {
        out.push(pattern(size));
    }
    out.extend(chunks.iter().map(|c| bytes(c)));
    out.extend(grpc.iter().map(|m| grpc_frame(m)));
    out
}

/// A body whose every part differs from the others, so that a lost or swapped piece shows.
#[must_use]
pub(crate) fn pattern(size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size + 8);
    let mut line = 0_u32;
    while out.len() < size {
        out.extend_from_slice(format!("{line:07}\n").as_bytes());
        line += 1;
    }
    out.truncate(size);
    out
}

/// Head, body pieces and what ends the body.
fn render(answer: &Answer, to_head: bool) -> (Vec<u8>, Vec<Vec<u8>>, Vec<u8>) {
    let status = answer.status.unwrap_or(200);
    let version = answer.version.as_deref().unwrap_or("HTTP/1.1");
    let reason = answer.reason.as_deref().unwrap_or("Reason");
    let mut head = format!("{version} {status} {reason}\r\n").into_bytes();
    let mut framed = false;
    for line in &answer.headers {
        let (name, value) = header(line);
        framed |= name.eq_ignore_ascii_case(b"content-length")
            || name.eq_ignore_ascii_case(b"transfer-encoding");
        head.extend_from_slice(&name);
        head.extend_from_slice(b": ");
        head.extend_from_slice(&value);
        head.extend_from_slice(b"\r\n");
    }
    let mut parts = pieces(answer.body.as_deref(), answer.body_size, &answer.chunks, &answer.grpc);
    let chunked =
        !answer.chunks.is_empty() || !answer.trailers.is_empty() || !answer.grpc.is_empty();
    let mut tail = Vec::new();
    if chunked {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
        for part in &mut parts {
            let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
            chunk.append(part);
            chunk.extend_from_slice(b"\r\n");
            *part = chunk;
        }
        tail.extend_from_slice(b"0\r\n");
        for line in &answer.trailers {
            tail.extend_from_slice(&bytes(line));
            tail.extend_from_slice(b"\r\n");
        }
        tail.extend_from_slice(b"\r\n");
    } else if !framed && status >= 200 && status != 204 && status != 304 {
        let length: usize = parts.iter().map(Vec::len).sum();
        head.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    if to_head {
        return (head, Vec::new(), Vec::new());
    }
    if let Some(limit) = answer.truncate {
        let mut left = limit;
        for part in &mut parts {
            part.truncate(left);
            left -= part.len();
        }
        tail.clear();
    }
    (head, parts, tail)
}
