//! The HTTP/1 and plain TCP client: writes exactly the bytes of the case.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use super::DEADLINE;
use crate::area::{Case, Protocol, Request, Step, bytes, header};
use crate::observe::{Normaliser, show_body};
use crate::upstream::h1::pieces;
use crate::upstream::{Upstreams, reset_on_close};
use crate::wire::{End, Framing, Wire, find, latin1};

/// One connection of the client.
pub struct Client<'a> {
    to: SocketAddr,
    wire: Wire<OwnedReadHalf>,
    write: Option<OwnedWriteHalf>,
    upstreams: &'a Upstreams,
    normaliser: &'a Normaliser,
    lines: Vec<String>,
    responses: usize,
    /// Methods of requests sent and not yet answered.
    heads: std::collections::VecDeque<String>,
    /// The end, once seen.
    end: Option<End>,
    says_close: bool,
}

impl<'a> Client<'a> {
    /// Connects.
    ///
    /// # Errors
    /// When the proxy does not accept.
    pub async fn connect(
        to: SocketAddr,
        upstreams: &'a Upstreams,
        normaliser: &'a Normaliser,
    ) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self {
            to,
            wire: Wire::new(read, DEADLINE),
            write: Some(write),
            upstreams,
            normaliser,
            lines: Vec::new(),
            responses: 0,
            heads: std::collections::VecDeque::new(),
            end: None,
            says_close: false,
        })
    }

    /// Runs a case to its end and gives the lines.
    ///
    /// # Errors
    /// When a step waits for something that does not come.
    pub async fn run(mut self, case: &Case, linger: Duration) -> Result<Vec<String>> {
        if !case.steps.is_empty() {
            for step in &case.steps {
                if let Err(e) = self.step(step).await {
                    self.lines.push(format!("client step failed: {e}"));
                }
            }
        } else if let Some(raw) = &case.raw {
            let sent = bytes(raw);
            self.heads = raw_methods(&sent);
            self.send(&sent).await;
            if case.protocol == Protocol::Tcp {
                self.step(&Step { eof: true, ..Step::default() }).await?;
            } else {
                self.read_responses(case.responses.unwrap_or(1)).await;
            }
        } else {
            for request in std::iter::once(&case.request).chain(&case.requests) {
                self.request(request).await;
                if self.end.is_some() {
                    break;
                }
            }
        }
        self.fate(linger).await;
        Ok(self.lines)
    }

    async fn request(&mut self, request: &Request) {
        let (head, body) = render(request);
        self.heads.push_back(request.method.clone().unwrap_or_else(|| "GET".into()));
        match request.body_after.as_deref() {
            Some(event) => {
                self.send(&head).await;
                if event == "continue" {
                    self.informational().await;
                    self.send(&body).await;
                    self.read_responses(1).await;
                } else {
                    self.read_responses(1).await;
                    self.send(&body).await;
                }
            }
            None => {
                let mut all = head;
                all.extend(body);
                self.send(&all).await;
                self.read_responses(1).await;
            }
        }
    }

    async fn send(&mut self, data: &[u8]) {
        let Some(write) = self.write.as_mut() else { return };
        // The peer may have answered and closed already: what it said is read later.
        let _ = timeout(DEADLINE, write.write_all(data)).await;
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        if let Some(raw) = &step.send {
            let sent = bytes(raw);
            self.heads.extend(raw_methods(&sent));
            self.send(&sent).await;
        } else if let Some(count) = step.responses {
            self.read_responses(count).await;
        } else if step.informational {
            self.informational().await;
        } else if let Some(text) = &step.expect {
            self.expect(&bytes(text)).await;
        } else if let Some(count) = step.upstream_saw {
            self.upstreams.wait(|seen| seen.len() >= count).await?;
        } else if let Some(text) = &step.upstream_got {
            let text = bytes(text);
            self.upstreams.wait(|seen| seen.iter().any(|s| find(&s.body, &text).is_some())).await?;
        } else if step.shutdown {
            self.write.as_mut().context("closed")?.shutdown().await?;
        } else if step.eof {
            let body = self.wire.body(Framing::UntilClose).await;
            self.lines.push(format!("client received {}", show_body(&body.data)));
            self.end = Some(if body.end == End::Complete { End::Eof } else { body.end });
        } else if step.reset {
            let write = self.write.take().context("closed")?;
            reset_on_close(write.as_ref());
            // Dropping it would send FIN first.
            write.forget();
            self.end = Some(End::Reset);
        } else if let Some(ms) = step.pause_ms {
            sleep(Duration::from_millis(ms)).await;
        } else if step.reconnect {
            let (read, write) = TcpStream::connect(self.to).await?.into_split();
            self.wire = Wire::new(read, DEADLINE);
            self.write = Some(write);
            self.end = None;
            self.says_close = false;
        }
        Ok(())
    }

    async fn expect(&mut self, text: &[u8]) {
        loop {
            if find(self.wire.held(), text).is_some() {
                let data = self.wire.take();
                self.lines.push(format!("client received {}", show_body(&data)));
                return;
            }
            if let Err(end) = self.wire.fill().await {
                let data = self.wire.take();
                self.lines.push(format!(
                    "client received {} then {}",
                    show_body(&data),
                    end.text()
                ));
                self.end = Some(end);
                return;
            }
        }
    }

    async fn read_responses(&mut self, count: usize) {
        let want = self.responses + count;
        while self.responses < want && self.end.is_none() {
            self.message().await;
        }
    }

    async fn informational(&mut self) {
        if self.end.is_none() {
            self.message().await;
        }
    }

    /// Reads one response, informational or final.
    async fn message(&mut self) {
        let at = format!("client[{}]", self.responses);
        let head = match self.wire.head().await {
            Ok(head) => head,
            Err(end) => {
                if !self.wire.held().is_empty() {
                    let data = self.wire.take();
                    self.lines.push(format!("{at} received {}", show_body(&data)));
                }
                self.end = Some(end);
                return;
            }
        };
        let status = head.status();
        self.lines.push(format!("{at} {}", head.first));
        let headers = head.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        self.lines.extend(self.normaliser.headers(&format!("{at} header"), headers));
        if (100..200).contains(&status) && status != 101 {
            return;
        }
        self.responses += 1;
        let method = self.heads.pop_front().unwrap_or_default();
        let tunnel = status == 101 || method == "CONNECT" && (200..300).contains(&status);
        self.says_close = head.get("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        if tunnel {
            return;
        }
        let framing = if method == "HEAD" || status == 204 || status == 304 {
            Framing::None
        } else {
            head.framing(Framing::UntilClose)
        };
        let body = self.wire.body(framing).await;
        self.lines.push(format!("{at} body {}", show_body(&body.data)));
        let trailers = body.trailers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        self.lines.extend(self.normaliser.headers(&format!("{at} trailer"), trailers));
        if framing == Framing::UntilClose {
            self.end = Some(if body.end == End::Complete { End::Eof } else { body.end });
        } else if body.end != End::Complete {
            self.lines.push(format!("{at} body ends {}", body.end.text()));
            self.end = Some(body.end);
        }
    }

    /// Whether the connection stays open.
    async fn fate(&mut self, linger: Duration) {
        let end = match self.end {
            Some(end) => end,
            None => {
                let wait = if self.says_close { DEADLINE } else { linger };
                self.wire.set_deadline(wait);
                let rest = self.wire.body(Framing::UntilClose).await;
                if !rest.data.is_empty() {
                    self.lines.push(format!("client then received {}", show_body(&rest.data)));
                }
                if rest.end == End::Complete { End::Eof } else { rest.end }
            }
        };
        let fate = match end {
            End::Timeout if self.end.is_none() => "kept alive",
            other => other.text(),
        };
        self.lines.push(format!("client connection {fate}"));
    }
}

/// Methods of the requests at the start of lines of raw bytes: enough to know HEAD and CONNECT.
fn raw_methods(raw: &[u8]) -> std::collections::VecDeque<String> {
    latin1(raw)
        .split("\r\n")
        .filter(|line| line.contains(" HTTP/1."))
        .filter_map(|line| line.split(' ').next().map(str::to_owned))
        .collect()
}

/// Head and body bytes of a well-formed request.
fn render(request: &Request) -> (Vec<u8>, Vec<u8>) {
    let method = request.method.as_deref().unwrap_or("GET");
    let path = request.path.as_deref().unwrap_or("/");
    let version = request.version.as_deref().unwrap_or("HTTP/1.1");
    let host = request.host.as_deref().unwrap_or("test.local");
    let mut head = bytes(&format!("{method} {path} {version}\r\n"));
    if !host.is_empty() {
        head.extend(bytes(&format!("host: {host}\r\n")));
    }
    for line in &request.headers {
        let (name, value) = header(line);
        head.extend_from_slice(&name);
        head.extend_from_slice(b": ");
        head.extend_from_slice(&value);
        head.extend_from_slice(b"\r\n");
    }
    let parts = pieces(request.body.as_deref(), request.body_size, &request.chunks, &request.grpc);
    let mut body = Vec::new();
    if !request.chunks.is_empty() || !request.trailers.is_empty() || !request.grpc.is_empty() {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
        for part in &parts {
            body.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            body.extend_from_slice(part);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n");
        for line in &request.trailers {
            body.extend(bytes(line));
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"\r\n");
    } else if !parts.is_empty() {
        body = parts.concat();
        head.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    (head, body)
}
