//! Handshakes of both sides over an `Io`, up to an established stream.
//!
//! Crypto costs a fraction of a millisecond a step: at most a few steps are taken in one turn of a worker, so that a
//! burst of handshakes does not keep its other connections waiting. Who is silent holds no buffer, who sends a part of
//! a ClientHello no more than that part.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{Acceptor, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{
    AlertDescription, CommonState, Error, HandshakeKind, NamedGroup, PeerIncompatible,
    ProtocolVersion, ServerConfig,
};
use tokio::sync::Semaphore;

use super::choice::{self, ServerBuilt};
use super::context::{ClientContext, ServerContext};
use super::failure;
use super::hello::{self, Scan, Scanner, Seen};
use super::info::{CertificateChain, TlsInfo};
use super::record;
use super::session_id::{self, SessionId};
use super::stats::{Established, SslStats};
use super::stream::{Kernel, TlsStream};
use super::suites;
use super::verdict::{Check, Refusal, Verdict};
use super::verify;
use crate::io::Io;

/// Room of one read.
const READ_BYTES: usize = 16 * 1024;
/// Steps of handshakes in one turn of a worker.
const STEPS: usize = 4;
const TLS_1_2: &str = suites::version_name(ProtocolVersion::TLSv1_2);
/// Handshake bytes of a peer that are kept undigested.
const MAX_INCOMING: usize = 64 * 1024;

thread_local! {
    static GATE: Rc<Semaphore> = Rc::new(Semaphore::new(STEPS));
    static INPUT: RefCell<BytesMut> = RefCell::default();
}

/// What is counted of a handshake that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A secret is missing: no handshake was tried.
    NotReady,
    /// The peer left, or the socket failed.
    Closed,
    NoCertificate,
    Refused(Check),
    Protocol,
}

/// A handshake that failed.
#[derive(Debug, Clone)]
pub struct HandshakeFailure {
    pub cause: Cause,
    /// As Envoy words it; empty where the peer just left.
    pub reason: Arc<str>,
    /// What was established by then. The peer is not validated.
    pub info: Option<Arc<TlsInfo>>,
    /// The peer's certificates that were refused.
    peer: Option<Arc<CertificateChain>>,
}

impl HandshakeFailure {
    fn closed() -> Self {
        Self::of(Cause::Closed, "")
    }

    fn not_ready() -> Self {
        Self::of(Cause::NotReady, "TLS error: Secret is not supplied by SDS")
    }

    fn of(cause: Cause, reason: impl Into<Arc<str>>) -> Self {
        Self { cause, reason: reason.into(), info: None, peer: None }
    }

    fn new(error: &Error) -> Self {
        let refusal = Verdict::take().refusal;
        Self::with(error, refusal)
    }

    /// A session that is not resumed.
    fn refused(refusal: Refusal, info: &TlsInfo) -> Self {
        let failure = Self::with(&refusal.error.clone(), Some(refusal));
        Self { info: Some(Arc::new(info.clone())), ..failure }
    }

    fn with(error: &Error, refusal: Option<Refusal>) -> Self {
        let detail = refusal.as_ref().map(|refusal| &*refusal.detail);
        let cause = match (&refusal, error) {
            (Some(refusal), _) => Cause::Refused(refusal.check),
            (None, Error::NoCertificatesPresented) => Cause::NoCertificate,
            (None, Error::InvalidCertificate(_)) => Cause::Refused(Check::Chain),
            (None, _) => Cause::Protocol,
        };
        let reason = match cause {
            Cause::Refused(Check::KeyUsage) => failure::openssl("KEY_USAGE_BIT_INCORRECT"),
            _ => failure::of_handshake(error, detail),
        };
        Self { peer: refusal.and_then(|refusal| refusal.peer), ..Self::of(cause, reason) }
    }
}

impl From<io::Error> for HandshakeFailure {
    fn from(_: io::Error) -> Self {
        Self::closed()
    }
}

/// The two ends of rustls' interface without buffers.
trait Session {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    /// Which of the buffers may tell the session's id.
    fn note_session(buffers: &mut Buffers, before: bool);
}

impl Session for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn note_session(buffers: &mut Buffers, before: bool) {
        if !before && buffers.session.is_none() {
            buffers.session = session_id::note(&buffers.outgoing, None);
        }
    }

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records(self, incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl Session for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn note_session(buffers: &mut Buffers, before: bool) {
        if before {
            buffers.session = session_id::note(&buffers.incoming, buffers.session);
        }
    }

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records(self, incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// A handshake's buffers.
#[derive(Default)]
struct Buffers {
    incoming: BytesMut,
    outgoing: Vec<u8>,
    written: usize,
    /// How many bytes of `incoming`, in whole records, the session has seen.
    given: usize,
    session: Option<SessionId>,
    seen: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Done,
    PeerClosed,
}

/// One step: digests what came, and prepares what is to be sent.
///
/// Record by record, so that the session never sees what comes behind the handshake: it would answer a key update there
/// itself, and its answer would be lost with it.
fn step<S: Session>(session: &mut S, buffers: &mut Buffers) -> Result<Step, Error> {
    let mut end = buffers.given;
    loop {
        let UnbufferedStatus { discard, state } = session.process(&mut buffers.incoming[..end]);
        let done = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let at = buffers.outgoing.len();
                if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                    buffers.outgoing.resize(at + size.required_size, 0);
                    let _ = data.encode(&mut buffers.outgoing[at..]);
                }
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(Step::More)),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Step::Done)),
            Ok(_) => Some(Ok(Step::PeerClosed)),
            Err(error) => Some(Err(error)),
        };
        buffers.incoming.advance(discard);
        // A record that is not all there yet is looked at, but never taken.
        buffers.given = buffers.given.saturating_sub(discard);
        end = end.saturating_sub(discard);
        if let Some(Ok(Step::More)) = done {
            let (next, is_whole) = record::end(&buffers.incoming, buffers.given);
            if is_whole {
                buffers.given = next;
            }
            if next > end {
                end = next;
                continue;
            }
        }
        if let Some(done) = done {
            if let Err(error) = &done {
                take_alert(session, buffers);
                if session.common().protocol_version() == Some(ProtocolVersion::TLSv1_2) {
                    failure::amend_alert(error, &mut buffers.outgoing);
                }
            }
            return done;
        }
    }
}

/// What rustls has for the peer after an error. It looks at the same bytes again: they have to be there.
fn take_alert<S: Session>(session: &mut S, buffers: &mut Buffers) {
    loop {
        let UnbufferedStatus { discard, state } = session.process(&mut buffers.incoming);
        let at = buffers.outgoing.len();
        let more = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => {
                    buffers.outgoing.resize(at + size.required_size, 0);
                    data.encode(&mut buffers.outgoing[at..]).is_ok()
                }
                _ => false,
            },
            _ => false,
        };
        buffers.incoming.advance(discard);
        if !more {
            return;
        }
    }
}

/// Waits for this thread's turn, then takes the step and lets everybody else have one.
async fn in_turn<T>(step: impl FnOnce() -> T) -> T {
    let gate = GATE.with(Rc::clone);
    let place = gate.acquire().await;
    let result = step();
    tokio::task::yield_now().await;
    drop(place);
    result
}

impl Buffers {
    /// Reads once, to the end of `incoming`; false at the end of the stream.
    async fn read(&mut self, io: &mut Io) -> io::Result<bool> {
        poll_fn(|cx| self.poll_read(io, cx)).await
    }

    fn poll_read(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        ready!(io.poll_read_ready(cx));
        let mut input = INPUT.take();
        input.clear();
        input.reserve(READ_BYTES);
        let result = io.poll_read_limited(cx, &mut input, READ_BYTES);
        if let Poll::Ready(Ok(_)) = result {
            self.incoming.extend_from_slice(&input);
        }
        INPUT.set(input);
        result.map_ok(|n| n > 0)
    }

    async fn flush(&mut self, io: &mut Io) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(io, cx)).await
    }

    fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let n = ready!(io.poll_write(cx, &self.outgoing[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.outgoing.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Tells the peer what the kernel takes now; nobody waits for a peer that failed.
    fn flush_now(&mut self, io: &mut Io) {
        let _ = self.poll_flush(io, &mut Context::from_waker(Waker::noop()));
        let _ = io.poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }

    /// Runs a session until it is established.
    async fn drive<S: Session>(
        &mut self,
        session: &mut S,
        io: &mut Io,
    ) -> Result<(), HandshakeFailure> {
        loop {
            let outcome = in_turn(|| {
                let _ = (Verdict::take(), choice::take_picked());
                S::note_session(self, true);
                let outcome = step(session, self).map_err(|error| HandshakeFailure::new(&error));
                S::note_session(self, false);
                let (verdict, seen) = (Verdict::take(), &mut self.seen);
                seen.validated |= verdict.validated;
                seen.overlooked = verdict.overlooked.or(seen.overlooked);
                seen.signature = verdict.signature.or(seen.signature);
                seen.picked = choice::take_picked().or(seen.picked);
                outcome
            })
            .await;
            match outcome {
                Ok(Step::Done) => {
                    self.flush(io).await?;
                    return Ok(());
                }
                Ok(Step::More) => self.flush(io).await?,
                Ok(Step::PeerClosed) => return Err(HandshakeFailure::closed()),
                Err(failure) => {
                    self.flush_now(io);
                    return Err(failure);
                }
            }
            if self.incoming.len() > MAX_INCOMING || !self.read(io).await? {
                return Err(HandshakeFailure::closed());
            }
        }
    }
}

/// What a ClientHello asks for.
struct Hello {
    config: Arc<ServerConfig>,
    server_name: Option<Arc<str>>,
    seen: Seen,
    group: Option<NamedGroup>,
}

/// Reads until a whole ClientHello is there, and chooses by it.
async fn read_hello(
    buffers: &mut Buffers,
    io: &mut Io,
    built: &ServerBuilt,
    stats: Option<&SslStats>,
) -> Result<Hello, HandshakeFailure> {
    let mut scanner = Scanner::default();
    while scanner.scan(&buffers.incoming) == Scan::More {
        if !buffers.read(io).await? {
            return Err(HandshakeFailure::closed());
        }
    }
    let outcome = in_turn(|| {
        let seen = hello::see(&buffers.incoming);
        if seen.asks_ocsp
            && let Some(stats) = stats
        {
            stats.asked_for_staple();
        }
        if seen.is_old {
            // rustls would miss an extension of newer versions first.
            let alert = failure::plain_alert(AlertDescription::ProtocolVersion);
            return Err((PeerIncompatible::Tls12NotOffered.into(), alert));
        }
        let mut acceptor = Acceptor::default();
        let mut rest = &buffers.incoming[..];
        loop {
            // A slice gives what it has; what is left over is no part of the hello.
            let read = acceptor.read_tls(&mut rest).unwrap_or(0);
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Ok(Hello {
                        config: built.config_for(&hello, &seen).map_err(|e| (e, Vec::new()))?,
                        server_name: hello.server_name().map(Arc::from),
                        group: built.group_of_tls12(&hello),
                        seen,
                    });
                }
                Ok(None) if read == 0 => return Err((Error::HandshakeNotComplete, Vec::new())),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    let _ = alert.write_all(&mut bytes);
                    return Err((error, bytes));
                }
            }
        }
    })
    .await;
    outcome.map_err(|(error, alert)| {
        let mut failure = HandshakeFailure::new(&error);
        buffers.outgoing = alert;
        if matches!(error, Error::PeerIncompatible(_)) {
            // A ClientHello that asks for what is not there.
        } else if let Some((reason, alert)) = failure::of_no_hello(&buffers.incoming) {
            failure.reason = reason.into();
            buffers.outgoing = alert.map(failure::plain_alert).unwrap_or_default();
        }
        buffers.flush_now(io);
        failure
    })
}

/// Makes the server's side of a handshake; `read` is what has come of it already. Cancel-safe: dropping it closes the
/// connection.
///
/// # Errors
/// What is to be counted and logged; the peer has been told.
pub async fn accept(
    mut io: Io,
    read: BytesMut,
    context: &ServerContext,
    stats: Option<&SslStats>,
) -> Result<(TlsStream, Established), HandshakeFailure> {
    let Some(built) = context.current() else { return Err(HandshakeFailure::not_ready()) };
    let mut buffers = Buffers { incoming: read, ..Buffers::default() };
    let hello = read_hello(&mut buffers, &mut io, &built, stats).await?;
    let mut session = UnbufferedServerConnection::new(hello.config)
        .map_err(|error| HandshakeFailure::new(&error))?;
    let outcome = buffers.drive(&mut session, &mut io).await;
    let (common, seen) = (session.common(), &buffers.seen);
    let mut info = facts(common);
    info.sni = hello.server_name;
    info.local = built.presented(seen.picked);
    if info.version == TLS_1_2 {
        // A session behind a ticket has an id only once it is resumed.
        let id = match hello.seen.ticket {
            Some(ticket) if built.gives_tickets() => ticket.filter(|_| info.resumed),
            _ => buffers.session,
        };
        info.session_id = id.map(SessionId::to_text);
    }
    if let Err(mut failure) = outcome {
        info.peer = failure.peer.take().or(info.peer);
        failure.info = Some(Arc::new(info));
        return Err(failure);
    }
    let established = Established::new(common, &info, seen, hello.group);
    info.peer_validated = match &built.verifier {
        Some(verifier) if info.resumed => verifier
            .judge_resumed(common.peer_certificates(), None)
            .map_err(|refusal| HandshakeFailure::refused(refusal, &info))?,
        _ => seen.validated,
    };
    let version = common.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2);
    let (secrets, kernel) = session
        .dangerous_into_kernel_connection()
        .map_err(|error| HandshakeFailure::new(&error))?;
    let kernel = Kernel::Server(Box::new(kernel));
    finish(io, buffers, secrets, version, kernel, info).map(|stream| (stream, established))
}

/// What an upstream connection asks for besides its context.
#[derive(Debug, Clone, Default)]
pub struct ClientRequest<'a> {
    /// Instead of the context's.
    pub server_name: Option<&'a str>,
    /// Instead of the context's, unless empty.
    pub alpn: Vec<Vec<u8>>,
    /// Where neither the context nor `alpn` has any.
    pub alpn_fallback: &'a [&'a str],
    /// Subject alternative names to accept, instead of the context's checks.
    pub names: &'a [Box<str>],
}

/// Makes the client's side of a handshake. Cancel-safe: dropping it closes the connection.
///
/// # Errors
/// What is to be counted and logged; the peer has been told.
pub async fn connect(
    mut io: Io,
    context: &ClientContext,
    request: &ClientRequest<'_>,
) -> Result<(TlsStream, Established), HandshakeFailure> {
    let Some(built) = context.current() else { return Err(HandshakeFailure::not_ready()) };
    let settings = context.settings();
    let sni = request.server_name.unwrap_or(&settings.sni);
    let alpn = if !request.alpn.is_empty() {
        request.alpn.clone()
    } else if !settings.common.alpn.is_empty() {
        settings.common.alpn.clone()
    } else {
        request.alpn_fallback.iter().map(|name| name.as_bytes().to_vec()).collect()
    };
    let config = built.with_names(request.names);
    let mut buffers = Buffers::default();
    let name = match server_name(sni) {
        Some(name) => name,
        None if settings.auto_sni_san_validation => return Err(impossible_name()),
        None => verify::nobody(),
    };
    let mut session = UnbufferedClientConnection::new_with_alpn(config, name.clone(), alpn)
        .map_err(|error| HandshakeFailure::new(&error))?;
    buffers.drive(&mut session, &mut io).await?;
    let (common, seen) = (session.common(), &mut buffers.seen);
    let mut info = facts(common);
    if info.version == TLS_1_2 {
        info.session_id = buffers.session.map(SessionId::to_text);
    }
    info.sni = (!sni.is_empty()).then(|| sni.into());
    info.local = built.certificate.as_ref().map(|certificate| certificate.chain.clone());
    if info.resumed {
        let judged = built.verifier.judge_resumed(common.peer_certificates(), Some(&name));
        seen.validated = judged.map_err(|refusal| {
            // The next connection makes a new one.
            built.forget(&name);
            HandshakeFailure::refused(refusal, &info)
        })?;
        seen.overlooked = Verdict::take().overlooked;
    }
    info.peer_validated = seen.validated;
    let established = Established::new(common, &info, seen, built.session_group(common));
    let version = common.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2);
    let (secrets, kernel) = session
        .dangerous_into_kernel_connection()
        .map_err(|error| HandshakeFailure::new(&error))?;
    let kernel = Kernel::Client(Box::new(kernel));
    finish(io, buffers, secrets, version, kernel, info).map(|stream| (stream, established))
}

/// rustls sends no SNI for an address. `None` for what is no name.
fn server_name(sni: &str) -> Option<ServerName<'static>> {
    if sni.is_empty() {
        return Some(verify::nobody());
    }
    ServerName::try_from(sni).ok().map(|name| name.to_owned())
}

/// No certificate has such a name.
fn impossible_name() -> HandshakeFailure {
    let error = Error::InvalidCertificate(rustls::CertificateError::NotValidForName);
    let detail = "verify cert failed: SAN matcher";
    let reason = failure::of_handshake(&error, Some(detail));
    HandshakeFailure::of(Cause::Refused(Check::San), reason)
}

fn facts(common: &CommonState) -> TlsInfo {
    let suite = common.negotiated_cipher_suite();
    let peer = common.peer_certificates().map(<[CertificateDer<'static>]>::to_vec);
    TlsInfo {
        version: common.protocol_version().map_or("", suites::version_name),
        cipher: suite.map_or("", suites::suite_name),
        cipher_id: suite.map_or(0, |suite| suite.suite().into()),
        alpn: common.alpn_protocol().map(|name| String::from_utf8_lossy(name).into()),
        resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        peer: peer.and_then(CertificateChain::new).map(Arc::new),
        ..TlsInfo::default()
    }
}

fn finish(
    io: Io,
    buffers: Buffers,
    secrets: rustls::ExtractedSecrets,
    version: ProtocolVersion,
    kernel: Kernel,
    info: TlsInfo,
) -> Result<TlsStream, HandshakeFailure> {
    let incoming = match buffers.incoming.is_empty() {
        true => BytesMut::new(),
        false => buffers.incoming,
    };
    TlsStream::new(io, secrets, version, kernel, Arc::new(info), incoming)
        .map_err(|error| HandshakeFailure::of(Cause::Protocol, failure::of_record(error)))
}
