//! TLS in front of the plain clients and upstreams: each connection is terminated or originated here with rustls and
//! goes on as plain TCP, so that scripts stay what they are. What the handshake established, or how it failed, and how
//! the connection ended becomes lines of the observation.

pub mod certificates;
pub(crate) mod client;
mod server;

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger::tls::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::{CommonState, Connection, Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub use self::client::{Front, Offer};
pub(crate) use self::server::{is_tls, serve};

/// Lines of an observation, from connections that end when they end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn push(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What both sides have agreed upon.
fn facts(state: &CommonState) -> String {
    let version = state.protocol_version().and_then(|v| v.as_str()).unwrap_or("-");
    let cipher = state.negotiated_cipher_suite();
    let cipher = cipher.and_then(|c| c.suite().as_str()).unwrap_or("-");
    let alpn = state.alpn_protocol().map(String::from_utf8_lossy).unwrap_or("-".into());
    let group = state.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name()));
    let group = group.unwrap_or_else(|| "-".into());
    format!("{version} {cipher} {group} alpn={alpn} peer={}", names(state.peer_certificates()))
}

fn names(chain: Option<&[CertificateDer<'_>]>) -> String {
    let Some(leaf) = chain.and_then(<[_]>::first) else { return "-".to_owned() };
    let mut out = Certificate::parse(leaf).map_or_else(String::new, |c| c.subject.into_string());
    let _ = write!(out, " and {} more", chain.map_or(0, |c| c.len() - 1));
    out
}

/// How one direction of a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    CloseNotify,
    /// FIN without a close_notify.
    Cut,
    Reset,
}

/// Carries bytes between a TLS connection and a plain one until both directions have ended. `split` cuts our first
/// flight into pieces of that size.
async fn carry(
    connection: &mut Connection,
    mut tls: TcpStream,
    mut plain: TcpStream,
    mut split: Option<usize>,
    mut established: impl FnMut(&CommonState),
) -> Result<End, Error> {
    let (mut from_tls, mut from_plain) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let (mut tls_end, mut plain_ended, mut told) = (None, false, false);
    loop {
        let _ = flush(connection, &mut tls, split.take()).await;
        if !connection.is_handshaking() && !told {
            told = true;
            established(connection);
        }
        if plain_ended && (tls_end.is_some() || !told) {
            return Ok(tls_end.unwrap_or(End::Cut));
        }
        tokio::select! {
            read = tls.read(&mut from_tls), if tls_end.is_none() => match read {
                Ok(0) => tls_end = Some(End::Cut),
                Ok(n) => {
                    if let Some(end) = received(connection, &mut tls, &mut plain, &from_tls[..n]).await? {
                        tls_end = Some(end);
                    }
                }
                Err(_) => {
                    crate::upstream::reset_on_close(&plain);
                    return Ok(End::Reset);
                }
            },
            read = plain.read(&mut from_plain), if !plain_ended => match read {
                Ok(0) => {
                    plain_ended = true;
                    connection.send_close_notify();
                    let _ = flush(connection, &mut tls, None).await;
                    let _ = tls.shutdown().await;
                }
                Ok(n) => {
                    let _ = connection.writer().write_all(&from_plain[..n]);
                }
                Err(_) => {
                    crate::upstream::reset_on_close(&tls);
                    return Ok(tls_end.unwrap_or(End::Cut));
                }
            },
        }
        if tls_end.is_some() {
            let _ = plain.shutdown().await;
        }
    }
}

/// Bytes off the wire; the end, where they say so.
async fn received(
    connection: &mut Connection,
    tls: &mut TcpStream,
    plain: &mut TcpStream,
    mut bytes: &[u8],
) -> Result<Option<End>, Error> {
    let mut end = None;
    while !bytes.is_empty() {
        if connection.read_tls(&mut bytes).is_err() {
            break;
        }
        let state = match connection.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                let _ = flush(connection, tls, None).await;
                return Err(error);
            }
        };
        let mut data = vec![0; state.plaintext_bytes_to_read()];
        if connection.reader().read_exact(&mut data).is_ok()
            && plain.write_all(&data).await.is_err()
        {
            crate::upstream::reset_on_close(tls);
            end = Some(End::Cut);
        }
        if state.peer_has_closed() {
            end = Some(End::CloseNotify);
        }
    }
    Ok(end)
}

async fn flush(
    connection: &mut Connection,
    tls: &mut TcpStream,
    split: Option<usize>,
) -> io::Result<()> {
    let mut out = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut out)?;
    }
    let size = split.unwrap_or(usize::MAX).min(out.len().max(1));
    for piece in out.chunks(size) {
        tls.write_all(piece).await?;
        if split.is_some() {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
