//! What a handshake established: for access logs, headers, RBAC and statistics. Shared by the streams of a connection.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;

use super::Certificate;

/// The facts of one TLS connection, downstream or upstream.
#[derive(Debug, Clone, Default)]
pub struct TlsInfo {
    /// As OpenSSL names it: `TLSv1.3`.
    pub version: &'static str,
    /// As OpenSSL names it: `TLS_AES_128_GCM_SHA256`, `ECDHE-ECDSA-AES128-GCM-SHA256`.
    pub cipher: &'static str,
    /// Its number in the TLS registry.
    pub cipher_id: u16,
    /// The negotiated application protocol.
    pub alpn: Option<Box<str>>,
    /// The name that the client asked for.
    pub sni: Option<Arc<str>>,
    /// Lower-case hex; `None` where the peers used none.
    pub session_id: Option<Box<str>>,
    /// The session was resumed: certificates are those of its first handshake.
    pub resumed: bool,
    /// What the peer presented; it may be unverified: see `peer_validated`.
    pub peer: Option<Arc<CertificateChain>>,
    /// The peer's chain was verified against a trusted CA.
    pub peer_validated: bool,
    /// What we presented.
    pub local: Option<Arc<CertificateChain>>,
}

impl TlsInfo {
    /// What the peer's leaf says.
    pub fn peer_certificate(&self) -> Option<&Certificate> {
        self.peer.as_deref()?.certificate()
    }

    /// What our leaf says.
    pub fn local_certificate(&self) -> Option<&Certificate> {
        self.local.as_deref()?.certificate()
    }
}

/// Certificates as they were sent, the leaf first; never empty.
pub struct CertificateChain {
    certificates: Box<[CertificateDer<'static>]>,
    /// The leaf, read when somebody first asks.
    parsed: OnceLock<Option<Box<Certificate>>>,
}

impl CertificateChain {
    /// `None` for no certificates.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        (!certificates.is_empty())
            .then(|| Self { certificates: certificates.into(), parsed: OnceLock::new() })
    }

    /// The DER of the leaf.
    pub fn leaf(&self) -> &[u8] {
        &self.certificates[0]
    }

    /// What the leaf says; `None` if it cannot be read.
    pub fn certificate(&self) -> Option<&Certificate> {
        let parse = || Certificate::parse(self.leaf()).map(Box::new);
        self.parsed.get_or_init(parse).as_deref()
    }

    /// The DER of all, the leaf first.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

impl fmt::Debug for CertificateChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateChain({} certificates)", self.certificates.len())
    }
}
