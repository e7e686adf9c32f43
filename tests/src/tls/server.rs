//! The scripted upstreams' TLS. An upstream named `tls_CERT` (`tls_CERT.2` for another one like it) shows that
//! certificate, takes any client's or none, speaks `h2` and `http/1.1` where they are offered, and is behind that the
//! plain upstream that it would be without.

use std::sync::Arc;

use anyhow::Result;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::Acceptor;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{Connection, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::{Lines, carry, certificates, facts, provider};

const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1", b"istio-peer-exchange"];

/// Whether the upstream of this name speaks TLS.
pub(crate) fn is_tls(name: &str) -> bool {
    name.starts_with("tls_")
}

/// Serves an upstream's port, for the plain upstream at `inner`.
pub(crate) async fn serve(listener: TcpListener, name: String, inner: u16, lines: Lines) {
    while let Ok((tls, _)) = listener.accept().await {
        let (name, lines) = (name.clone(), lines.clone());
        tokio::spawn(async move {
            if let Err(e) = accept(tls, &name, inner, &lines).await {
                lines.push(format!("upstream {name} tls failed: {e:#}"));
            }
        });
    }
}

async fn accept(mut tls: TcpStream, name: &str, inner: u16, lines: &Lines) -> Result<()> {
    tls.set_nodelay(true)?;
    let mut acceptor = Acceptor::default();
    let mut buf = vec![0; 16 * 1024];
    let accepted = loop {
        let n = tls.read(&mut buf).await?;
        let mut bytes = &buf[..n];
        if n == 0 {
            return Ok(());
        }
        acceptor.read_tls(&mut bytes)?;
        if let Some(accepted) = acceptor.accept().map_err(|(e, _)| e)? {
            break accepted;
        }
    };
    let hello = accepted.client_hello();
    let offered: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
    let asked = format!(
        "sni={} offers={}",
        hello.server_name().unwrap_or("-"),
        offered.iter().map(|p| String::from_utf8_lossy(p)).collect::<Vec<_>>().join(",")
    );
    let common = PROTOCOLS.iter().filter(|p| offered.contains(p)).map(|p| p.to_vec()).collect();
    let connection = accepted.into_connection(config(name, common)?).map_err(|(e, _)| e)?;
    let plain = TcpStream::connect(("127.0.0.1", inner)).await?;
    plain.set_nodelay(true)?;
    let established = |state: &rustls::CommonState| {
        lines.push(format!("upstream {name} tls: {asked} {}", facts(state)))
    };
    let end = carry(&mut Connection::Server(connection), tls, plain, None, established).await?;
    lines.push(format!("upstream {name} tls end: {end:?}"));
    Ok(())
}

fn config(name: &str, alpn: Vec<Vec<u8>>) -> Result<Arc<ServerConfig>> {
    let certificate = name.trim_start_matches("tls_");
    let certificate = certificate.split('.').next().unwrap_or(certificate);
    let (chain, key) = certificates::pair(certificate)?;
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Anybody(provider)))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn;
    Ok(Arc::new(config))
}

/// Whoever the proxy is: it is shown in the observation.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
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
