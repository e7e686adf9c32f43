//! What the certificates of CAs say of their use, beyond name and key: webpki does not look at it in a trust anchor.

use std::time::Duration;

use rustls::pki_types::UnixTime;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// What a trusted certificate says of its use as an issuer.
#[derive(Debug)]
pub(super) struct Terms {
    /// It may not sign others: it is trusted as what it is alone.
    pub(super) is_leaf: bool,
    /// From and until when it is valid; seconds since 1970.
    valid: (i64, i64),
    /// How many intermediates may stand under it (RFC 5280, 4.2.1.9).
    pub(super) path_len: Option<u32>,
}

impl Terms {
    pub(super) fn of(certificate: &[u8]) -> Self {
        let is_leaf = !may_sign(certificate);
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self { is_leaf, valid: (i64::MIN, i64::MAX), path_len: None };
        };
        let validity = certificate.validity();
        let constraints = certificate.basic_constraints().ok().flatten();
        Self {
            is_leaf,
            valid: (validity.not_before.timestamp(), validity.not_after.timestamp()),
            path_len: constraints.and_then(|constraints| constraints.value.path_len_constraint),
        }
    }

    /// Whether it is valid then.
    pub(super) fn valid_at(&self, at: UnixTime) -> Result<(), webpki::Error> {
        let now = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
        let unix = |seconds: i64| {
            UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        };
        let (not_before, not_after) = self.valid;
        if now > not_after {
            return Err(webpki::Error::CertExpired { time: at, not_after: unix(not_after) });
        }
        if now < not_before {
            return Err(webpki::Error::CertNotValidYet { time: at, not_before: unix(not_before) });
        }
        Ok(())
    }
}

/// Whether a certificate may sign others, as BoringSSL has it: by its key usages, and as a CA by its basic constraints or
/// of version 1. Of intermediates webpki looks at the constraints alone, of trust anchors at neither.
pub(super) fn may_sign(certificate: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let (Ok(usage), Ok(constraints)) = (certificate.key_usage(), certificate.basic_constraints())
    else {
        return false;
    };
    let is_old =
        certificate.version() == X509Version::V1 && certificate.subject() == certificate.issuer();
    usage.is_none_or(|usage| usage.value.key_cert_sign())
        && constraints.map_or(is_old, |constraints| constraints.value.ca)
}
