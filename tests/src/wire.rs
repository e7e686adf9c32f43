//! Reading HTTP/1 messages off a socket as they are: nothing is corrected, everything is kept.
//! Used by the scripted client and the scripted upstream alike.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How reading came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The message is complete.
    Complete,
    /// FIN.
    Eof,
    /// RST.
    Reset,
    /// Not HTTP.
    Malformed,
    /// Nothing came within the deadline.
    Timeout,
}

impl End {
    /// As shown in an observation.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Eof => "closed",
            Self::Reset => "reset",
            Self::Malformed => "malformed",
            Self::Timeout => "silent",
        }
    }
}

/// A request or response head, byte for byte as Latin-1.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Request or status line.
    pub first: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// First value of a header.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Status of a response head; 0 when it is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// Whether the last transfer coding is chunked.
    #[must_use]
    pub fn chunked(&self) -> bool {
        self.get("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked"))
    }

    /// The framing of the body that follows, for a message that has one.
    #[must_use]
    pub fn framing(&self, otherwise: Framing) -> Framing {
        if self.chunked() {
            return Framing::Chunked;
        }
        match self.get("content-length").and_then(|v| v.trim().parse().ok()) {
            Some(n) => Framing::Length(n),
            None => otherwise,
        }
    }
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// What was read of a body.
#[derive(Debug, Clone)]
pub struct Body {
    pub data: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub end: End,
}

/// A reading half with what was read and not yet used.
#[derive(Debug)]
pub struct Wire<R> {
    io: R,
    buf: BytesMut,
    deadline: Duration,
}

impl<R: AsyncRead + Unpin> Wire<R> {
    /// `deadline` bounds each single read.
    pub fn new(io: R, deadline: Duration) -> Self {
        Self { io, buf: BytesMut::new(), deadline }
    }

    /// Reads more into the buffer.
    ///
    /// # Errors
    /// How the stream ended instead.
    pub async fn fill(&mut self) -> Result<(), End> {
        self.buf.reserve(64 * 1024);
        match timeout(self.deadline, self.io.read_buf(&mut self.buf)).await {
            Err(_) => Err(End::Timeout),
            Ok(Ok(0)) => Err(End::Eof),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionReset => Err(End::Reset),
            Ok(Err(_)) => Err(End::Eof),
        }
    }

    /// Writes, where it is more than a reading half.
    ///
    /// # Errors
    /// The stream takes nothing more.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), End>
    where
        R: AsyncWrite,
    {
        self.io.write_all(bytes).await.map_err(|_| End::Reset)
    }

    /// The reading half; what is buffered is lost.
    pub fn into_inner(self) -> R {
        self.io
    }

    /// Another deadline from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// What was read and not used.
    pub fn take(&mut self) -> Vec<u8> {
        self.buf.split().to_vec()
    }

    /// Bytes held.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.buf
    }

    /// Reads up to and with the empty line of a head.
    ///
    /// # Errors
    /// How the stream ended instead; `Malformed` when it ended inside a head.
    pub async fn head(&mut self) -> Result<Head, End> {
        loop {
            if let Some(at) = find(&self.buf, b"\r\n\r\n") {
                let head = self.buf.split_to(at + 4);
                return parse_head(&head[..at]).ok_or(End::Malformed);
            }
            if let Err(end) = self.fill().await {
                return Err(if self.buf.is_empty() || end != End::Eof {
                    end
                } else {
                    End::Malformed
                });
            }
        }
    }

    /// Reads a body to its end.
    pub async fn body(&mut self, framing: Framing) -> Body {
        let mut body = Body { data: Vec::new(), trailers: Vec::new(), end: End::Complete };
        let result = match framing {
            Framing::None => Ok(()),
            Framing::Length(n) => self.length(n, &mut body).await,
            Framing::Chunked => self.chunked(&mut body).await,
            Framing::UntilClose => self.until_close(&mut body).await,
        };
        if let Err(end) = result {
            body.end = end;
        }
        body
    }

    async fn length(&mut self, n: usize, body: &mut Body) -> Result<(), End> {
        while body.data.len() < n {
            if self.buf.is_empty() {
                self.fill().await?;
            }
            let take = (n - body.data.len()).min(self.buf.len());
            body.data.extend_from_slice(&self.buf.split_to(take));
        }
        Ok(())
    }

    async fn until_close(&mut self, body: &mut Body) -> Result<(), End> {
        loop {
            body.data.extend_from_slice(&self.buf.split());
            match self.fill().await {
                Ok(()) => {}
                Err(End::Eof) => return Ok(()),
                Err(end) => return Err(end),
            }
        }
    }

    async fn chunked(&mut self, body: &mut Body) -> Result<(), End> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| End::Malformed)?;
            if size == 0 {
                break;
            }
            let want = body.data.len() + size;
            self.length(want, body).await?;
            if !self.line().await?.is_empty() {
                return Err(End::Malformed);
            }
        }
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            body.trailers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<String, End> {
        loop {
            if let Some(at) = find(&self.buf, b"\r\n") {
                let line = self.buf.split_to(at + 2);
                return Ok(latin1(&line[..at]));
            }
            self.fill().await?;
        }
    }
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let text = latin1(bytes);
    let mut lines = text.split("\r\n");
    let first = lines.next()?.to_owned();
    let headers = lines
        .map(|line| {
            line.split_once(':').map(|(n, v)| (n.to_owned(), v.trim_matches(' ').to_owned()))
        })
        .collect::<Option<_>>()?;
    Some(Head { first, headers })
}

/// Bytes as text, one character each.
#[must_use]
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// Position of `needle` in `hay`.
#[must_use]
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}
