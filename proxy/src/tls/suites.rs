//! rustls' versions, cipher suites, key exchange groups and signature schemes by the names that OpenSSL, and so Envoy's
//! configuration, logs and statistics, have for them.

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group};
use rustls::{NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite};

/// The suites of TLS 1.3, in BoringSSL's order. They cannot be configured.
pub const TLS13_SUITES: [SupportedCipherSuite; 3] = [
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Those of TLS 1.2 in the order of Envoy's default.
const TLS12_SUITES: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

/// What BoringSSL knows and rustls does not have: by keys that are not forward secret, or with CBC.
const NOT_BUILT: [&str; 12] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "AES128-SHA256",
];

/// What a name in a list of cipher suites stands for.
#[derive(Debug)]
pub enum Named<T> {
    Built(T),
    /// It exists, but not here.
    NotBuilt,
    Unknown,
}

/// Envoy's default list of TLS 1.2, in groups of equal preference.
pub fn default_tls12_suites() -> Vec<Vec<SupportedCipherSuite>> {
    let [a, b, c, d, e, f] = TLS12_SUITES.map(|(_, suite)| suite);
    vec![vec![a, b], vec![c, d], vec![e], vec![f]]
}

/// The TLS 1.2 suite of an OpenSSL name.
pub fn tls12_suite(name: &str) -> Named<SupportedCipherSuite> {
    match TLS12_SUITES.iter().find(|(known, _)| *known == name) {
        Some((_, suite)) => Named::Built(*suite),
        None if NOT_BUILT.contains(&name) => Named::NotBuilt,
        None => Named::Unknown,
    }
}

/// OpenSSL's name.
pub fn suite_name(suite: SupportedCipherSuite) -> &'static str {
    if let Some((name, _)) = TLS12_SUITES.iter().find(|(_, known)| *known == suite) {
        return name;
    }
    match suite {
        s if s == suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        s if s == suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        _ => "TLS_CHACHA20_POLY1305_SHA256",
    }
}

/// Groups where `ecdh_curves` is not set.
pub fn default_groups() -> Vec<&'static dyn SupportedKxGroup> {
    vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1]
}

/// The group of BoringSSL's name.
pub fn group(name: &str) -> Named<&'static dyn SupportedKxGroup> {
    Named::Built(match name {
        "X25519MLKEM768" => kx_group::X25519MLKEM768,
        "X25519" => kx_group::X25519,
        "P-256" | "prime256v1" => kx_group::SECP256R1,
        "P-384" | "secp384r1" => kx_group::SECP384R1,
        "P-521" | "secp521r1" | "P-224" | "secp224r1" | "X25519Kyber768Draft00" | "MLKEM1024" => {
            return Named::NotBuilt;
        }
        _ => return Named::Unknown,
    })
}

/// BoringSSL's name.
pub fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        _ => "unknown",
    }
}

/// OpenSSL's name.
pub const fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "TLSv1.2",
    }
}

/// BoringSSL's name.
pub fn signature_name(scheme: SignatureScheme) -> &'static str {
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => "ecdsa_secp256r1_sha256",
        SignatureScheme::ECDSA_NISTP384_SHA384 => "ecdsa_secp384r1_sha384",
        SignatureScheme::ECDSA_NISTP521_SHA512 => "ecdsa_secp521r1_sha512",
        SignatureScheme::RSA_PSS_SHA256 => "rsa_pss_rsae_sha256",
        SignatureScheme::RSA_PSS_SHA384 => "rsa_pss_rsae_sha384",
        SignatureScheme::RSA_PSS_SHA512 => "rsa_pss_rsae_sha512",
        SignatureScheme::RSA_PKCS1_SHA256 => "rsa_pkcs1_sha256",
        SignatureScheme::RSA_PKCS1_SHA384 => "rsa_pkcs1_sha384",
        SignatureScheme::RSA_PKCS1_SHA512 => "rsa_pkcs1_sha512",
        SignatureScheme::ED25519 => "ed25519",
        _ => "unknown",
    }
}
