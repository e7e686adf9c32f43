//! What a peer's certificate has to satisfy: a compiled `CertificateValidationContext`.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::matcher::StringMatcher;

/// Which subject alternative names a matcher looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanType {
    Email,
    Dns,
    Uri,
    Ip,
}

/// pb `SubjectAltNameMatcher`.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    pub kind: SanType,
    pub matcher: StringMatcher,
    /// An exact DNS pattern: names with wildcards in the certificate cover it (RFC 9525, 6.3).
    pub exact_dns: Option<Box<str>>,
}

/// A compiled `CertificateValidationContext`.
#[derive(Debug, Clone, Default)]
pub struct ValidationContext {
    pub trusted_ca: Option<Arc<[CertificateDer<'static>]>>,
    /// The file of `trusted_ca`; `<inline>` where it came otherwise.
    pub ca_path: Arc<str>,
    /// Revocation lists that stand with the trusted CAs.
    pub ca_crl: Option<Arc<[CertificateRevocationListDer<'static>]>>,
    pub crl: Option<Arc<[CertificateRevocationListDer<'static>]>>,
    /// `only_verify_leaf_cert_crl`.
    pub only_leaf_crl: bool,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo; any of them.
    pub spki: Vec<[u8; 32]>,
    /// SHA-256 of the leaf's DER; any of them, or of `spki`.
    pub hashes: Vec<[u8; 32]>,
    /// Any of them; none is no check.
    pub sans: Vec<SanMatcher>,
    pub allow_expired: bool,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`.
    pub accept_untrusted: bool,
    /// `max_verify_depth`: intermediates in a chain; default 100.
    pub max_depth: Option<u32>,
}

impl ValidationContext {
    /// The end of the first trusted CA's validity.
    pub fn first_end(&self) -> Option<SystemTime> {
        let first = self.trusted_ca.as_ref()?.first()?;
        let (_, first) = X509Certificate::from_der(first).ok()?;
        Some(super::material::time(first.validity().not_after.timestamp()))
    }

    /// As protobuf merges `other` into a `default_validation_context`: what is set replaces, lists grow.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let joined = |a: &[[u8; 32]], b: &[[u8; 32]]| [a, b].concat();
        Self {
            trusted_ca: other.trusted_ca.clone().or_else(|| self.trusted_ca.clone()),
            ca_path: match &other.trusted_ca {
                Some(_) => other.ca_path.clone(),
                None => self.ca_path.clone(),
            },
            ca_crl: match &other.trusted_ca {
                Some(_) => other.ca_crl.clone(),
                None => self.ca_crl.clone(),
            },
            crl: other.crl.clone().or_else(|| self.crl.clone()),
            only_leaf_crl: self.only_leaf_crl || other.only_leaf_crl,
            spki: joined(&self.spki, &other.spki),
            hashes: joined(&self.hashes, &other.hashes),
            sans: self.sans.iter().chain(&other.sans).cloned().collect(),
            allow_expired: self.allow_expired || other.allow_expired,
            accept_untrusted: self.accept_untrusted || other.accept_untrusted,
            max_depth: other.max_depth.or(self.max_depth),
        }
    }
}
