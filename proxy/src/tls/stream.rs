//! An established TLS connection over any `Io`: plaintext on this side, records on the other.
//!
//! Idle, it holds two keys and what key updates and tickets need, no buffer. A read takes ciphertext into a buffer of
//! the thread and decrypts into the caller's; a write encrypts into another and hands all of it to the kernel at once.
//! The end of the stream without close_notify is an end, as in Envoy.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ContentType, ExtractedSecrets, ProtocolVersion};

use super::failure;
use super::info::TlsInfo;
use super::record::{Key, MAX_PLAIN, RecordError, RecordHeader};
use super::stats::SslStats;
use super::write::{seal_slices, write_some};
use crate::io::Io;

/// Room of the thread's buffer for ciphertext.
const READ_BYTES: usize = 68 * 1024;
/// A read is at least this large.
const MIN_READ: usize = 2 * 1024;
/// Bytes of a handshake message that comes in pieces after the handshake: a ticket at most.
const MAX_MESSAGE: usize = 32 * 1024;
/// Records in a row that bring no data (empty ones, warnings, key updates), as in BoringSSL.
const MAX_IDLE_RECORDS: u8 = 32;

thread_local! {
    static CIPHER_IN: RefCell<BytesMut> = RefCell::default();
    static CIPHER_OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What rustls keeps for key updates and tickets.
pub(super) enum Kernel {
    Server(Box<KernelConnection<ServerConnectionData>>),
    Client(Box<KernelConnection<ClientConnectionData>>),
}

impl Kernel {
    fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    fn next_key(&mut self, transmit: bool) -> Result<Key, RecordError> {
        let (version, next) = match self {
            Self::Server(kernel) if transmit => {
                (kernel.protocol_version(), kernel.update_tx_secret())
            }
            Self::Server(kernel) => (kernel.protocol_version(), kernel.update_rx_secret()),
            Self::Client(kernel) if transmit => {
                (kernel.protocol_version(), kernel.update_tx_secret())
            }
            Self::Client(kernel) => (kernel.protocol_version(), kernel.update_rx_secret()),
        };
        Key::new(version, next.map_err(|_| RecordError::NoKey)?)
    }
}

/// An established connection.
pub struct TlsStream {
    io: Io,
    tx: Key,
    rx: Key,
    kernel: Kernel,
    info: Arc<TlsInfo>,
    /// Ciphertext that is not a whole record yet, or found no room.
    incoming: BytesMut,
    /// Plaintext that came with the handshake, or found no room.
    plain: BytesMut,
    /// A handshake message that is not whole yet.
    message: Vec<u8>,
    /// Ciphertext that the kernel has not taken yet.
    outgoing: Vec<u8>,
    written: usize,
    idle_records: u8,
    is_tls13: bool,
    /// The peer wants another key of us.
    owes_update: bool,
    /// The peer's close_notify or the end of the stream has come.
    ended: bool,
    /// Our close_notify is out or on its way.
    closed: bool,
    /// Reading or writing has failed: nothing more is said to the peer.
    failed: bool,
    failure: Option<Arc<str>>,
    stats: Option<Rc<SslStats>>,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("io", &self.io).field("info", &self.info).finish()
    }
}

/// What the peer has done that ends the connection, and what it is told.
struct Violation {
    alert: Option<AlertDescription>,
    reason: Arc<str>,
}

impl From<RecordError> for Violation {
    fn from(error: RecordError) -> Self {
        let alert = match error {
            RecordError::TooLong => AlertDescription::RecordOverflow,
            RecordError::NotTls => AlertDescription::ProtocolVersion,
            RecordError::BadMac => AlertDescription::BadRecordMac,
            RecordError::NoKey | RecordError::KeyExhausted => AlertDescription::InternalError,
        };
        Self { alert: Some(alert), reason: failure::of_record(error).into() }
    }
}

impl TlsStream {
    /// `incoming` is what came behind the handshake.
    pub(super) fn new(
        io: Io,
        secrets: ExtractedSecrets,
        version: ProtocolVersion,
        kernel: Kernel,
        info: Arc<TlsInfo>,
        incoming: BytesMut,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            io,
            tx: Key::new(version, secrets.tx)?,
            rx: Key::new(version, secrets.rx)?,
            kernel,
            info,
            incoming,
            plain: BytesMut::new(),
            message: Vec::new(),
            outgoing: Vec::new(),
            written: 0,
            idle_records: 0,
            is_tls13: version == ProtocolVersion::TLSv1_3,
            owes_update: false,
            ended: false,
            closed: false,
            failed: false,
            failure: None,
            stats: None,
        })
    }

    /// Where a failure is counted.
    pub(crate) fn count_in(&mut self, stats: Option<Rc<SslStats>>) {
        self.stats = stats;
    }

    /// What is below.
    pub fn io(&self) -> &Io {
        &self.io
    }

    pub fn info(&self) -> &Arc<TlsInfo> {
        &self.info
    }

    /// Why the connection failed after its handshake, as Envoy words it: a fatal alert, a broken record.
    pub fn failure(&self) -> Option<&Arc<str>> {
        self.failure.as_ref()
    }

    /// Dropping it will reset the connection: no close_notify either.
    pub(crate) fn reset_on_drop(&self) {
        self.io.reset_on_drop();
    }

    /// See `Io::poll_read_ready`.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended || self.failed || !self.plain.is_empty() || self.has_record() {
            return Poll::Ready(());
        }
        self.io.poll_read_ready(cx)
    }

    fn has_record(&self) -> bool {
        match RecordHeader::parse(&self.incoming) {
            Ok(Some(header)) => header.total() <= self.incoming.len(),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// See `Io::poll_read`.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        if !self.plain.is_empty() {
            let n = self.plain.len().min(buf.capacity() - buf.len());
            buf.extend_from_slice(&self.plain[..n]);
            self.plain.advance(n);
            if self.plain.is_empty() {
                self.plain = BytesMut::new();
            }
            return Poll::Ready(Ok(n));
        }
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let lent = self.incoming.is_empty();
        let mut raw = if lent {
            let mut lent = CIPHER_IN.take();
            lent.reserve(READ_BYTES);
            lent
        } else {
            std::mem::take(&mut self.incoming)
        };
        let mut taken = 0;
        let result = self.read_records(cx, &mut raw, &mut taken, buf);
        let rest = raw.len() - taken;
        if lent {
            if rest > 0 {
                self.incoming = BytesMut::from(&raw[taken..]);
            }
            raw.clear();
            CIPHER_IN.set(raw);
        } else if rest > 0 {
            raw.advance(taken);
            self.incoming = raw;
        }
        result
    }

    /// As `poll_read`, for tokio's interface: what finds no room waits for the next call.
    pub(crate) fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.plain.is_empty() {
            let mut plain = BytesMut::with_capacity(buf.remaining());
            ready!(self.poll_read(cx, &mut plain))?;
            self.plain = plain;
        }
        let n = self.plain.len().min(buf.remaining());
        buf.put_slice(&self.plain[..n]);
        self.plain.advance(n);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn read_records(
        &mut self,
        cx: &mut Context<'_>,
        raw: &mut BytesMut,
        taken: &mut usize,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let start = buf.len();
        let room = buf.capacity();
        loop {
            let outcome = self.open_records(raw, taken, buf, start, room);
            if let Err(violation) = outcome {
                // What came before it is good.
                self.fail(violation);
                if buf.len() == start {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
            if buf.len() > start {
                return Poll::Ready(Ok(buf.len() - start));
            }
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if *taken == raw.len() {
                raw.clear();
                *taken = 0;
            }
            let limit = self.read_limit(&raw[*taken..], room - start);
            raw.reserve(limit);
            match self.io.poll_read_limited(cx, raw, limit) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.failed = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// How many bytes to ask for: what is missing of a record, and what the caller has room for.
    fn read_limit(&self, raw: &[u8], room: usize) -> usize {
        let missing = match RecordHeader::parse(raw) {
            Ok(Some(header)) => header.total() - raw.len(),
            Ok(None) | Err(_) => 0,
        };
        let records = room / MAX_PLAIN + 1;
        (room + records * self.rx.overhead()).max(missing).clamp(MIN_READ, READ_BYTES)
    }

    /// Decrypts whole records until the caller's room is used up.
    fn open_records(
        &mut self,
        raw: &[u8],
        taken: &mut usize,
        buf: &mut BytesMut,
        start: usize,
        room: usize,
    ) -> Result<(), Violation> {
        while !self.ended {
            let rest = &raw[*taken..];
            let Some(header) = RecordHeader::parse(rest)? else { return Ok(()) };
            let full = buf.len() > start && room.saturating_sub(buf.len()) < header.length;
            if header.total() > rest.len() || full {
                return Ok(());
            }
            let at = buf.len();
            let kind = self.rx.open(header, &rest[..header.total()], buf)?;
            *taken += header.total();
            if kind == ContentType::ApplicationData {
                if buf.len() > at {
                    self.idle_records = 0;
                } else {
                    self.count_idle()?;
                }
                continue;
            }
            let body = buf[at..].to_vec();
            buf.truncate(at);
            match kind {
                ContentType::Alert => self.take_alert(&body)?,
                ContentType::Handshake => self.take_handshake(&body)?,
                _ => return Err(unexpected("UNEXPECTED_RECORD")),
            }
        }
        Ok(())
    }

    fn count_idle(&mut self) -> Result<(), Violation> {
        self.idle_records += 1;
        if self.idle_records > MAX_IDLE_RECORDS {
            return Err(unexpected("TOO_MANY_EMPTY_FRAGMENTS"));
        }
        Ok(())
    }

    fn take_alert(&mut self, body: &[u8]) -> Result<(), Violation> {
        const WARNING: u8 = 1;
        let &[level, description] = body else {
            return Err(Violation {
                alert: Some(AlertDescription::DecodeError),
                reason: failure::openssl("BAD_ALERT").into(),
            });
        };
        let description = AlertDescription::from(description);
        if description == AlertDescription::CloseNotify {
            self.ended = true;
            return Ok(());
        }
        let is_warning = if self.is_tls13 {
            description == AlertDescription::UserCanceled
        } else {
            level == WARNING
        };
        if is_warning {
            return self.count_idle();
        }
        Err(Violation { alert: None, reason: failure::of_alert(description).into() })
    }

    /// Key updates, and tickets at a client; TLS 1.2 allows neither.
    fn take_handshake(&mut self, body: &[u8]) -> Result<(), Violation> {
        const NEW_SESSION_TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        if !self.is_tls13 {
            return Err(Violation {
                alert: Some(AlertDescription::NoRenegotiation),
                reason: failure::openssl("NO_RENEGOTIATION").into(),
            });
        }
        self.count_idle()?;
        self.message.extend_from_slice(body);
        while let [kind, a, b, c, rest @ ..] = &self.message[..] {
            let (kind, length) =
                (*kind, usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
            if length > MAX_MESSAGE {
                return Err(unexpected("EXCESSIVE_MESSAGE_SIZE"));
            }
            if rest.len() < length {
                break;
            }
            let message: Vec<u8> = self.message.drain(..4 + length).skip(4).collect();
            match (kind, &mut self.kernel) {
                (NEW_SESSION_TICKET, Kernel::Client(kernel)) => {
                    let taken = kernel.handle_new_session_ticket(&message);
                    taken.map_err(|_| unexpected("DECODE_ERROR"))?;
                }
                (KEY_UPDATE, _) => self.take_key_update(&message)?,
                _ => return Err(unexpected("UNEXPECTED_MESSAGE")),
            }
        }
        if self.message.is_empty() {
            self.message = Vec::new();
        }
        Ok(())
    }

    fn take_key_update(&mut self, message: &[u8]) -> Result<(), Violation> {
        let asks_for_ours = match message {
            [0] => false,
            [1] => true,
            _ => return Err(unexpected("DECODE_ERROR")),
        };
        // A key changes at the end of a record.
        if !self.message.is_empty() {
            return Err(unexpected("EXCESS_HANDSHAKE_DATA"));
        }
        self.rx = self.kernel.next_key(false)?;
        // What waits is sent under the old key; one answer answers for all that asked by then.
        self.owes_update |= asks_for_ours;
        if self.outgoing.is_empty() {
            self.pay_update()?;
        }
        Ok(())
    }

    /// Our key has to change before the next byte of data (RFC 8446 §4.6.3).
    fn pay_update(&mut self) -> Result<(), RecordError> {
        if std::mem::take(&mut self.owes_update) {
            self.update_our_key()?;
        }
        Ok(())
    }

    /// Announces and takes the next sending key.
    fn update_our_key(&mut self) -> Result<(), RecordError> {
        let message = [24, 0, 0, 1, 0];
        self.tx.seal(ContentType::Handshake, &message, &mut self.outgoing)?;
        self.tx = self.kernel.next_key(true)?;
        Ok(())
    }

    /// The peer broke the protocol, or said that we did: it is told, as far as the kernel takes it now.
    fn fail(&mut self, violation: Violation) {
        self.failed = true;
        self.failure = Some(violation.reason);
        if let Some(stats) = &self.stats {
            stats.broken();
        }
        if let Some(alert) = violation.alert {
            let fatal = [2, u8::from(alert)];
            if self.tx.seal(ContentType::Alert, &fatal, &mut self.outgoing).is_ok() {
                let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
            }
        }
    }

    /// See `Io::poll_write_vectored`. What is taken may wait for the kernel: see `poll_flush`.
    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.outgoing.is_empty() {
            ready!(self.poll_flush(cx))?;
        }
        if self.failed || self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.owes_update |= self.tx.is_worn();
        self.pay_update().map_err(io::Error::other)?;
        let mut out = CIPHER_OUT.take();
        out.append(&mut self.outgoing);
        let taken = seal_slices(&mut self.tx, slices, &mut out);
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.failed = true;
                return Poll::Ready(Err(io::Error::other(error)));
            }
        };
        let result = write_some(&mut self.io, cx, &out);
        let written = match &result {
            Poll::Ready(Ok(n)) => *n,
            _ => 0,
        };
        if written < out.len() {
            self.outgoing = out[written..].to_vec();
        }
        out.clear();
        CIPHER_OUT.set(out);
        match result {
            Poll::Ready(Err(error)) => {
                self.failed = true;
                Poll::Ready(Err(error))
            }
            _ => Poll::Ready(Ok(taken)),
        }
    }

    /// Ready when the kernel has taken everything.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            match ready!(self.io.poll_write(cx, &self.outgoing[self.written..])) {
                Ok(0) => {
                    self.failed = true;
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                Ok(n) => self.written += n,
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
        if self.written > 0 {
            self.outgoing = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// close_notify, then FIN; reading goes on.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue_close();
        ready!(self.poll_flush(cx))?;
        self.io.poll_shutdown(cx)
    }

    fn queue_close(&mut self) {
        if self.closed || self.failed {
            return;
        }
        self.closed = true;
        let close_notify = [1, u8::from(AlertDescription::CloseNotify)];
        // A key that cannot seal has failed before: then there is nobody to tell.
        if self.tx.seal(ContentType::Alert, &close_notify, &mut self.outgoing).is_err() {
            self.failed = true;
        }
    }

    /// Whether it is the client's end.
    pub fn is_client(&self) -> bool {
        self.kernel.is_client()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // As Envoy: told if the kernel takes it at once.
        if !self.closed && !self.failed {
            self.queue_close();
            let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
        }
    }
}

fn unexpected(what: &str) -> Violation {
    Violation {
        alert: Some(AlertDescription::UnexpectedMessage),
        reason: failure::openssl(what).into(),
    }
}
