//! A certificate chain with its private key, from PEM.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::info::CertificateChain;

/// A compiled `TlsCertificate`.
#[derive(Debug)]
pub struct TlsCertificate {
    pub chain: Arc<CertificateChain>,
    pub key: Arc<CertifiedKey>,
    /// Names of the leaf that SNI may ask for: DNS names, or the subject's common name where it has none. Lower case.
    pub server_names: Box<[Box<str>]>,
    pub is_ecdsa: bool,
    /// The file of the chain; `<inline>` where it came otherwise.
    pub path: Arc<str>,
    not_after: SystemTime,
}

impl TlsCertificate {
    /// Reads a chain, the leaf first, and its key; `path` is what the admin interface says of where it came from.
    ///
    /// # Errors
    /// In words: what cannot be read, or that they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8], path: &str) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("certificate_chain: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("private_key: {e}"))?;
        let key = any_supported_type(&key).map_err(|e| format!("private_key: {e}"))?;
        let held = CertificateChain::new(chain.clone())
            .ok_or("certificate_chain: no certificate in it")?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => {
                "the private key is not that of the certificate".to_owned()
            }
            other => other.to_string(),
        })?;
        let (_, leaf) = X509Certificate::from_der(held.leaf())
            .map_err(|e| format!("certificate_chain: {e}"))?;
        let not_after = time(leaf.validity().not_after.timestamp());
        let server_names = server_names(&leaf);
        let is_ecdsa = key.key.algorithm() == rustls::SignatureAlgorithm::ECDSA;
        let usage = leaf.key_usage().ok().flatten();
        if is_ecdsa && usage.is_some_and(|usage| !usage.value.digital_signature()) {
            return Err("certificate_chain: the key may not be used for signatures".to_owned());
        }
        let (chain, key) = (Arc::new(held), Arc::new(key));
        Ok(Self { chain, key, server_names, is_ecdsa, path: path.into(), not_after })
    }

    /// The end of the leaf's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// Seconds of Unix time; times before it are its beginning.
pub(super) fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn server_names(leaf: &X509Certificate<'_>) -> Box<[Box<str>]> {
    use x509_parser::extensions::GeneralName;
    let sans = leaf.subject_alternative_name().ok().flatten();
    let dns: Vec<Box<str>> = sans
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
            _ => None,
        })
        .collect();
    if !dns.is_empty() {
        return dns.into();
    }
    let names = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.map(|name| name.to_ascii_lowercase().into()).collect()
}
