//! Handshakes of both sides over an `Io`, up to an established stream. Who sends a part of a ClientHello holds no more
//! than that part.

use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{Acceptor, UnbufferedServerConnection};
use rustls::{
    AlertDescription, CommonState, Error, HandshakeKind, NamedGroup, PeerIncompatible,
    ProtocolVersion, ServerConfig,
};

use super::choice::ServerBuilt;
use super::context::{ClientContext, ServerContext};
use super::drive::{Buffers, Session, in_turn};
use super::failure::{self, Cause, HandshakeFailure};
use super::hello::{self, Scan, Scanner, Seen};
use super::info::{CertificateChain, TlsInfo};
use super::session_id::SessionId;
use super::stats::{Established, SslStats};
use super::stream::{Kernel, TlsStream};
use super::suites;
use super::verdict::{Check, Verdict};
use super::verify;
use crate::io::Io;

const TLS_1_2: &str = suites::version_name(ProtocolVersion::TLSv1_2);

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
    let mut buffers = Buffers::of(read);
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
    info.peer_validated = match info.resumed {
        true => seen.admitted.unwrap_or_default(),
        false => seen.validated,
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
        let judged = built
            .verifier
            .judge_resumed(common.peer_certificates().unwrap_or_default(), Some(&name));
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
