//! The certificates of a run: a root, and leaves for a server and a client as a mesh gives them out (P-256, a SPIFFE
//! name; the server's has a DNS name besides). `ca.pem`, `NAME.pem`, `NAME.key`, and `NAME-both.pem` for HAProxy.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// The server's DNS name.
const SERVER: &str = "server.example";

/// Writes them into `directory`.
pub fn write(directory: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    // A leaf named like its issuer would be a root to OpenSSL.
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    std::fs::write(directory.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let ca = Issuer::new(params, key);
    for (name, dns) in [("server", vec![SERVER.to_owned()]), ("client", Vec::new())] {
        let mut params = CertificateParams::new(dns)?;
        params.distinguished_name = DistinguishedName::new();
        let uri = format!("spiffe://cluster.local/ns/default/sa/{name}");
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let (chain, key) = (params.signed_by(&key, &ca)?.pem(), key.serialize_pem());
        std::fs::write(directory.join(format!("{name}.pem")), &chain)?;
        std::fs::write(directory.join(format!("{name}.key")), &key)?;
        std::fs::write(directory.join(format!("{name}-both.pem")), chain + &key)?;
    }
    Ok(())
}

/// A client with the client's certificate: TLS 1.3, X25519, HTTP/1.1, every handshake a full one.
pub fn client(directory: &Path) -> Result<Arc<ClientConfig>> {
    let provider = CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    let chain = CertificateDer::from_pem_file(directory.join("client.pem"))?;
    let key = PrivateKeyDer::from_pem_file(directory.join("client.key"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The client's end of a connection to a proxy that shows the server's certificate.
pub fn connection(config: &Arc<ClientConfig>) -> Result<ClientConnection> {
    Ok(ClientConnection::new(config.clone(), ServerName::try_from(SERVER)?)?)
}
