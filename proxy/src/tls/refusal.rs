//! Certificates that are refused: BoringSSL's words for webpki's errors, and the alerts that fit.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor};
use rustls::{CertificateError, DistinguishedName};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verdict::{Check, Refusal};

/// The key usages do not fit.
pub(super) fn purpose() -> Refusal {
    Refusal {
        check: Check::Chain,
        detail: chain_text(0, "unsupported certificate purpose"),
        error: CertificateError::InvalidPurpose.into(),
        peer: None,
    }
}

/// The certificate's key may not be used as the handshake uses it.
pub(super) fn usage_of_key() -> Refusal {
    // Any misbehaviour: what counts is the alert, illegal_parameter.
    let error = rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into();
    Refusal { check: Check::KeyUsage, detail: String::new(), error, peer: None }
}

/// Names or hashes do not fit.
pub(super) fn refuse_leaf(check: Check, detail: String) -> Refusal {
    let error = CertificateError::Other(rustls::OtherError(Arc::new(Refused))).into();
    Refusal { check, detail, error, peer: None }
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate does not fit the validation context")]
struct Refused;

fn chain_text(depth: usize, why: &str) -> String {
    format!(
        "verify cert failed: X509_verify_cert: certificate verification error at depth {depth}: {why}"
    )
}

/// webpki's error in BoringSSL's words, and rustls' error with the alert that fits.
pub(super) fn refuse_chain(
    error: webpki::Error,
    leaf: &[u8],
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
) -> Refusal {
    use webpki::Error as E;
    let parsed = X509Certificate::from_der(leaf).ok().map(|(_, leaf)| leaf);
    let end = end_of_chain(parsed.as_ref(), intermediates, anchors);
    // BoringSSL looks for the issuers first.
    let error = if end.is_some() { E::UnknownIssuer } else { error };
    let leaf_is_current = parsed.as_ref().is_some_and(|leaf| leaf.validity().is_valid());
    let of_time = if leaf_is_current { 1 } else { 0 };
    let last = intermediates.len();
    let (depth, why, error) = match error {
        // Valid until before it is valid.
        E::InvalidCertValidity => (0, "certificate has expired", CertificateError::Expired),
        E::CrlExpired { .. } => (0, "CRL has expired", CertificateError::Expired),
        E::UnsupportedCriticalExtension => {
            let other = CertificateError::Other(rustls::OtherError(Arc::new(Refused)));
            (0, "unhandled critical extension", other)
        }
        E::CertExpired { .. } => (of_time, "certificate has expired", CertificateError::Expired),
        E::CertNotValidYet { .. } => {
            (of_time, "certificate is not yet valid", CertificateError::NotValidYet)
        }
        E::UnknownIssuer => {
            let (depth, why) = end.unwrap_or((0, NO_ISSUER));
            (depth, why, CertificateError::UnknownIssuer)
        }
        E::CertRevoked => (0, "certificate revoked", CertificateError::Revoked),
        E::UnknownRevocationStatus => {
            (0, "unable to get certificate CRL", CertificateError::UnknownRevocationStatus)
        }
        E::InvalidSignatureForPublicKey => {
            (0, "certificate signature failure", CertificateError::BadSignature)
        }
        E::RequiredEkuNotFoundContext(_) => {
            (0, "unsupported certificate purpose", CertificateError::InvalidPurpose)
        }
        E::CaUsedAsEndEntity => (0, "invalid CA certificate", CertificateError::InvalidPurpose),
        E::EndEntityUsedAsCa => (1, "invalid CA certificate", CertificateError::UnknownIssuer),
        E::PathLenConstraintViolated => {
            (1, "path length constraint exceeded", CertificateError::UnknownIssuer)
        }
        E::MaximumPathDepthExceeded => {
            (last, "certificate chain too long", CertificateError::UnknownIssuer)
        }
        E::NameConstraintViolation => {
            (0, "permitted subtree violation", CertificateError::UnknownIssuer)
        }
        _ => (0, "unspecified certificate verification error", CertificateError::BadEncoding),
    };
    let error = error.into();
    Refusal { check: Check::Chain, detail: chain_text(depth, why), error, peer: None }
}

const NO_ISSUER: &str = "unable to get local issuer certificate";

/// Where a chain ends that leads to no trusted CA by its names, and what BoringSSL says of that.
fn end_of_chain(
    leaf: Option<&X509Certificate<'_>>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
) -> Option<(usize, &'static str)> {
    let trusted = |name: &[u8]| {
        let same = |anchor: &TrustAnchor<'_>| {
            DistinguishedName::in_sequence(&anchor.subject).as_ref() == name
        };
        anchors.iter().any(same)
    };
    let others = intermediates.iter().filter_map(|der| X509Certificate::from_der(der).ok());
    let mut others: Vec<_> = others.map(|(_, other)| other).collect();
    let (mut depth, mut last) = (0, leaf?.clone());
    loop {
        if trusted(last.issuer().as_raw()) || trusted(last.subject().as_raw()) {
            return None;
        }
        if is_self_signed(&last) {
            let in_chain = "self signed certificate in certificate chain";
            return Some((depth, if depth == 0 { "self signed certificate" } else { in_chain }));
        }
        let issuer = others.iter().position(|other| other.subject() == last.issuer());
        let Some(issuer) = issuer else { return Some((depth, NO_ISSUER)) };
        last = others.swap_remove(issuer);
        depth += 1;
    }
}

/// As BoringSSL sees it: a certificate that may not sign certificates has not signed itself.
fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage().ok().flatten();
    certificate.subject() == certificate.issuer()
        && usage.is_none_or(|usage| usage.value.key_cert_sign())
}
