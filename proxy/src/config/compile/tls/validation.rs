//! pb `CertificateValidationContext` to what the verifier checks.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::secret::{read, where_from};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::compile_string_matcher;
use crate::config::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use crate::config::pb::envoy::r#type::matcher::v3 as pb_matcher;
use crate::tls::validation::{SanMatcher, SanType, ValidationContext};

/// pb `max_verify_depth`, upper bound.
const MOST_DEPTH: u32 = 100;

/// Compiles a validation context; reports every problem.
#[expect(deprecated, reason = "match_subject_alt_names is still read, as Envoy does")]
pub fn compile(
    pb: &pb::CertificateValidationContext,
    path: &FieldPath<'_>,
) -> Option<ValidationContext> {
    use pb::certificate_validation_context::TrustChainVerification;
    reject_unsupported(pb, path);
    let mut out = ValidationContext {
        only_leaf_crl: pb.only_verify_leaf_cert_crl,
        allow_expired: pb.allow_expired_certificate,
        ..ValidationContext::default()
    };
    if let Some(source) = &pb.trusted_ca {
        let at = path.field("trusted_ca");
        out.ca_path = where_from(Some(source)).into();
        let pem = read(source, &at)?;
        out.trusted_ca = Some(compile_ca(&pem, &at)?);
        // As BoringSSL loads both from one file.
        out.ca_crl = Some(compile_crls(&pem, &at)?).filter(|lists| !lists.is_empty());
    }
    if let Some(source) = &pb.crl {
        let at = path.field("crl");
        let crls = compile_crls(&read(source, &at)?, &at)?;
        if crls.is_empty() {
            at.error("failed to load CRL: none in it");
        }
        out.crl = Some(crls);
    }
    match TrustChainVerification::try_from(pb.trust_chain_verification) {
        Ok(TrustChainVerification::VerifyTrustChain) => {}
        Ok(TrustChainVerification::AcceptUntrusted) => out.accept_untrusted = true,
        Err(_) => path.field("trust_chain_verification").error("unknown enum value"),
    }
    if let Some(depth) = &pb.max_verify_depth {
        if depth.value > MOST_DEPTH {
            path.field("max_verify_depth").error("value must be less than or equal to 100");
        }
        out.max_depth = Some(depth.value);
    }
    compile_hashes(pb, &mut out, path);
    for (i, matcher) in pb.match_typed_subject_alt_names.iter().enumerate() {
        let at = path.index("match_typed_subject_alt_names", i);
        out.sans.extend(compile_typed(matcher, &at));
    }
    // The typed ones replace the untyped, which look at every type.
    if pb.match_typed_subject_alt_names.is_empty() {
        for (i, matcher) in pb.match_subject_alt_names.iter().enumerate() {
            let at = path.index("match_subject_alt_names", i);
            for kind in [SanType::Dns, SanType::Uri, SanType::Email, SanType::Ip] {
                out.sans.extend(compile_matcher(matcher, kind, &at));
            }
        }
    }
    Some(out)
}

fn reject_unsupported(pb: &pb::CertificateValidationContext, path: &FieldPath<'_>) {
    let reject = |set: bool, name: &str| {
        if set {
            path.field(name).error("is not supported");
        }
    };
    reject(pb.ca_certificate_provider_instance.is_some(), "ca_certificate_provider_instance");
    reject(pb.system_root_certs.is_some(), "system_root_certs");
    reject(pb.custom_validator_config.is_some(), "custom_validator_config");
    reject(
        pb.require_signed_certificate_timestamp.is_some_and(|v| v.value),
        "require_signed_certificate_timestamp",
    );
    if pb.suppress_client_ca_list {
        path.field("suppress_client_ca_list").ignored("clients are told the names of the CAs");
    }
}

fn compile_ca(pem: &[u8], path: &FieldPath<'_>) -> Option<Arc<[CertificateDer<'static>]>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all =
        path.ok_or_error(all.map_err(|e| format!("failed to load trusted CA certificates: {e}")))?;
    if all.is_empty() {
        path.error("failed to load trusted CA certificates: none in it");
        return None;
    }
    for (i, ca) in all.iter().enumerate() {
        let anchor = webpki::anchor_from_trusted_cert(ca);
        path.ok_or_error(anchor.map_err(|e| format!("certificate {i}: {e}")))?;
    }
    Some(all.into())
}

fn compile_crls(
    pem: &[u8],
    path: &FieldPath<'_>,
) -> Option<Arc<[CertificateRevocationListDer<'static>]>> {
    let crls: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let crls = path.ok_or_error(crls.map_err(|e| format!("failed to load CRL: {e}")))?;
    for crl in &crls {
        path.ok_or_error(webpki::OwnedCertRevocationList::from_der(crl))?;
    }
    Some(crls.into())
}

fn compile_hashes(
    pb: &pb::CertificateValidationContext,
    out: &mut ValidationContext,
    path: &FieldPath<'_>,
) {
    for (i, hash) in pb.verify_certificate_spki.iter().enumerate() {
        let decoded = BASE64.decode(hash).ok().and_then(|hash| hash.try_into().ok());
        match decoded {
            Some(hash) => out.spki.push(hash),
            None => path
                .index("verify_certificate_spki", i)
                .error(format_args!("Invalid base64-encoded SHA-256 {hash}")),
        }
    }
    for (i, hash) in pb.verify_certificate_hash.iter().enumerate() {
        let hex: String = hash.chars().filter(|c| *c != ':').collect();
        match decode_hex(&hex) {
            Some(hash) => out.hashes.push(hash),
            None => path
                .index("verify_certificate_hash", i)
                .error(format_args!("Invalid hex-encoded SHA-256 {hash}")),
        }
    }
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

fn compile_typed(pb: &pb::SubjectAltNameMatcher, path: &FieldPath<'_>) -> Option<SanMatcher> {
    use pb::subject_alt_name_matcher::SanType as Pb;
    let at = path.field("san_type");
    let kind = match Pb::try_from(pb.san_type) {
        Ok(Pb::Email) => SanType::Email,
        Ok(Pb::Dns) => SanType::Dns,
        Ok(Pb::Uri) => SanType::Uri,
        Ok(Pb::IpAddress) => SanType::Ip,
        Ok(Pb::OtherName) => {
            at.error("OTHER_NAME is not supported");
            return None;
        }
        Ok(Pb::Unspecified) | Err(_) => {
            at.error("value must be one of EMAIL, DNS, URI, IP_ADDRESS");
            return None;
        }
    };
    let Some(matcher) = &pb.matcher else {
        path.field("matcher").error("value is required");
        return None;
    };
    compile_matcher(matcher, kind, &path.field("matcher"))
}

fn compile_matcher(
    pb: &pb_matcher::StringMatcher,
    kind: SanType,
    path: &FieldPath<'_>,
) -> Option<SanMatcher> {
    use pb_matcher::string_matcher::MatchPattern;
    let matcher = compile_string_matcher(pb, path)?;
    let exact_dns = match &pb.match_pattern {
        Some(MatchPattern::Exact(name)) if kind == SanType::Dns => Some(name.as_str().into()),
        _ => None,
    };
    Some(SanMatcher { kind, matcher, exact_dns })
}
