//! The scripted client's TLS: a port of our own that leads to the proxy over TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, Connection, DigitallySignedStruct, SignatureScheme};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::{Lines, carry, certificates, facts, provider};

/// How a case's client speaks TLS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Offer {
    /// None: no server name is sent.
    pub sni: Option<String>,
    pub alpn: Vec<String>,
    /// A certificate of [`certificates`].
    pub cert: Option<String>,
    /// `1.2` or `1.3` alone; both unless given.
    pub version: Option<String>,
    /// The ClientHello in segments of so many bytes.
    pub split: Option<usize>,
    /// Keep sessions, for a case that connects again.
    pub resume: bool,
}

/// A port that leads to the proxy.
#[derive(Debug)]
pub struct Front {
    pub address: SocketAddr,
    lines: Lines,
    accepting: JoinHandle<()>,
    connections: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

impl Front {
    /// Listens; each connection becomes one to `to`.
    ///
    /// # Errors
    /// What the case offers does not exist, or no port is free.
    pub async fn start(offer: &Offer, to: SocketAddr) -> Result<Self> {
        let config = Arc::new(config(offer)?);
        let name: ServerName<'static> = match &offer.sni {
            Some(name) => name.clone().try_into().context("sni")?,
            None => ServerName::IpAddress(to.ip().into()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let lines = Lines::default();
        let connections = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
        let (all, out, split) = (connections.clone(), lines.clone(), offer.split);
        let accepting = tokio::spawn(async move {
            while let Ok((plain, _)) = listener.accept().await {
                let (config, name, lines) = (config.clone(), name.clone(), out.clone());
                all.lock().await.spawn(async move {
                    if let Err(e) = connect(config, name, plain, to, split, &lines).await {
                        lines.push(format!("client tls failed: {e:#}"));
                    }
                });
            }
        });
        Ok(Self { address, lines, accepting, connections })
    }

    /// The lines, once all connections have ended.
    pub async fn finish(self) -> Vec<String> {
        self.accepting.abort();
        let mut connections = self.connections.lock().await;
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
        self.lines.take()
    }
}

async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    plain: TcpStream,
    to: SocketAddr,
    split: Option<usize>,
    lines: &Lines,
) -> Result<()> {
    let tls = TcpStream::connect(to).await?;
    tls.set_nodelay(true)?;
    plain.set_nodelay(true)?;
    let mut connection = Connection::Client(ClientConnection::new(config, name)?);
    let established = |state: &rustls::CommonState| {
        let kind = match state.handshake_kind() {
            Some(rustls::HandshakeKind::Resumed) => " resumed",
            _ => "",
        };
        lines.push(format!("client tls: {}{kind}", facts(state)));
    };
    let end = carry(&mut connection, tls, plain, split, established).await?;
    lines.push(format!("client tls end: {end:?}"));
    Ok(())
}

fn config(offer: &Offer) -> Result<ClientConfig> {
    let provider = provider();
    let versions: &[_] = match offer.version.as_deref() {
        Some("1.2") => &[&rustls::version::TLS12],
        Some("1.3") => &[&rustls::version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match &offer.cert {
        Some(name) => {
            let (chain, key) = certificates::pair(name)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = offer.alpn.iter().map(|p| p.clone().into_bytes()).collect();
    config.enable_sni = offer.sni.is_some();
    if !offer.resume {
        config.resumption = rustls::client::Resumption::disabled();
    }
    Ok(config)
}

/// Whoever the proxy is: it is shown in the observation.
#[derive(Debug)]
pub(crate) struct Anybody(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
