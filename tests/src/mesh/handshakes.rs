//! Handshakes with the proxies of a mesh that look at the certificate presented: a client of ours at a proxy's inbound
//! side, and a server of ours behind a proxy's outbound side.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::{Mesh, netns};
use crate::tls::client::Anybody;
use crate::tls::provider;

/// Longer than a handshake takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Chain and key of a pod, as they are now.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(mesh: &Mesh, pod: &str) -> Result<Identity> {
    let chain = CertificateDer::pem_file_iter(mesh.credential(pod, "cert-chain.pem"))?;
    let key = PrivateKeyDer::from_pem_file(mesh.credential(pod, "key.pem"))?;
    Ok((chain.collect::<Result<_, _>>()?, key))
}

fn patient(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A client with a pod's certificate, as it is now.
///
/// # Errors
/// The pod has none.
pub fn client(mesh: &Mesh, pod: &str) -> Result<Arc<ClientConfig>> {
    let (chain, key) = identity(mesh, pod)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider())))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"istio".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The certificate that a proxy shows in a new handshake, once it has answered a request over it.
///
/// # Errors
/// There is no handshake or no answer.
pub fn shown(config: &Arc<ClientConfig>, to: SocketAddr) -> Result<CertificateDer<'static>> {
    let stream = patient(TcpStream::connect_timeout(&to, PATIENCE)?)?;
    let name = ServerName::IpAddress(to.ip().into());
    let mut tls = StreamOwned::new(ClientConnection::new(config.clone(), name)?, stream);
    let host = "details.default.svc.cluster.local";
    write!(tls, "GET /details/1 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut start = [0; 12];
    tls.read_exact(&mut start).context("no answer over TLS")?;
    ensure!(start == *b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&start));
    let leaf = tls.conn.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    Ok(leaf.clone().into_owned())
}

/// Listens in a pod; whoever connects has to have a certificate of the mesh, which is sent back over the connection.
/// Serves until the test ends.
///
/// # Errors
/// The address is taken, or `identity_of` has no certificate.
pub fn witness(mesh: &Mesh, pod: &str, identity_of: &str, address: SocketAddr) -> Result<()> {
    let (chain, key) = identity(mesh, identity_of)?;
    let mut roots = RootCertStore::empty();
    roots.add(root(&mesh.credential(identity_of, "root-cert.pem"))?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(chain, key)?;
    let config = Arc::new(config);
    let listener = netns::within(&mesh.name, pod, move || TcpListener::bind(address))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let config = config.clone();
            // A connection that fails shows at its other end.
            std::thread::spawn(move || send_back(config, stream));
        }
    });
    Ok(())
}

fn root(path: &Path) -> Result<CertificateDer<'static>> {
    Ok(CertificateDer::from_pem_file(path)?)
}

fn send_back(config: Arc<ServerConfig>, stream: TcpStream) -> Result<()> {
    let mut tls = StreamOwned::new(ServerConnection::new(config)?, patient(stream)?);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    let leaf = tls.conn.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    let leaf = leaf.clone().into_owned();
    tls.write_all(&leaf)?;
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}

/// The certificate that a [`witness`] saw of the proxy that connected to it for us.
///
/// # Errors
/// There is no connection.
pub fn seen(by: SocketAddr) -> Result<CertificateDer<'static>> {
    let mut stream = patient(TcpStream::connect_timeout(&by, PATIENCE)?)?;
    let mut der = Vec::new();
    stream.read_to_end(&mut der)?;
    ensure!(!der.is_empty(), "closed without a handshake");
    Ok(der.into())
}
