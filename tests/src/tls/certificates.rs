//! The certificates of all cases, made once per run: `NAME.pem` and `NAME.key` in one directory, `${certs}` in area
//! files. Keys are P-256; roots are `ca` and `other_ca`; `ca.crl` is the first one's list of what it has revoked,
//! `ca_with_crl.pem` both in one file.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

/// One leaf.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    name: &'static str,
    uris: &'static [&'static str],
    dns: &'static [&'static str],
    flaw: Flaw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    Expired,
    NotYetValid,
    /// Signed by `other_ca`.
    OtherCa,
    SelfSigned,
    /// Good for servers only, or for clients only.
    OnlyServer,
    OnlyClient,
    /// In `ca.crl`.
    Revoked,
    /// A key for agreement, not for signatures.
    KeyAgreement,
    /// Signed by an intermediate CA, which is sent along.
    Chained,
    /// The same, but the CA's key may not sign certificates.
    UnfitIssuer,
    /// A leaf that may sign.
    Ca,
    /// Names beyond ASCII and with characters that mean something to logs and headers.
    OddNames,
}

const fn leaf(
    name: &'static str,
    uris: &'static [&'static str],
    dns: &'static [&'static str],
    flaw: Flaw,
) -> Leaf {
    Leaf { name, uris, dns, flaw }
}

const SERVER: &[&str] = &["spiffe://td/ns/s/sa/server"];
const CLIENT: &[&str] = &["spiffe://td/ns/c/sa/client"];

const LEAVES: &[Leaf] = &[
    leaf("server", SERVER, &["a.example", "b.example", "*.wild.example"], Flaw::None),
    leaf("server2", &["spiffe://td/ns/s/sa/server2"], &["second.example"], Flaw::None),
    leaf("client", CLIENT, &["client.example"], Flaw::None),
    leaf("spiffe_only", CLIENT, &[], Flaw::None),
    leaf("other_domain", &["spiffe://elsewhere/ns/c/sa/client"], &["client.example"], Flaw::None),
    leaf("no_uri", &[], &["client.example", "second.example"], Flaw::None),
    leaf("nameless", &[], &[], Flaw::None),
    leaf("two_uris", &["spiffe://td/one", "spiffe://td/two"], &[], Flaw::None),
    leaf("expired", CLIENT, &["a.example"], Flaw::Expired),
    leaf("not_yet", CLIENT, &["a.example"], Flaw::NotYetValid),
    leaf("foreign", CLIENT, &["a.example"], Flaw::OtherCa),
    leaf("self_signed", CLIENT, &["a.example"], Flaw::SelfSigned),
    leaf("only_server", CLIENT, &["a.example"], Flaw::OnlyServer),
    leaf("only_client", CLIENT, &["a.example"], Flaw::OnlyClient),
    leaf("ca_leaf", CLIENT, &["a.example"], Flaw::Ca),
    leaf("odd_names", CLIENT, &["a.example"], Flaw::OddNames),
    leaf("revoked", CLIENT, &["a.example"], Flaw::Revoked),
    leaf("key_agreement", CLIENT, &["a.example"], Flaw::KeyAgreement),
    leaf("chained", CLIENT, &["a.example"], Flaw::Chained),
    leaf("unfit_issuer", CLIENT, &["a.example"], Flaw::UnfitIssuer),
];

/// The directory with all of them.
///
/// # Errors
/// They cannot be made or written.
pub fn directory() -> Result<&'static Path> {
    static MADE: OnceLock<std::result::Result<TempDir, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| make().map_err(|e| format!("{e:#}")));
    made.as_ref().map(TempDir::path).map_err(|e| anyhow!(e.clone()))
}

/// Chain and key of a leaf.
///
/// # Errors
/// There is none of that name.
pub fn pair(name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let directory = directory()?;
    let chain = CertificateDer::pem_file_iter(directory.join(format!("{name}.pem")))
        .with_context(|| format!("certificate {name}"))?;
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key")))?;
    Ok((chain.collect::<Result<_, _>>()?, key))
}

fn make() -> Result<TempDir> {
    let dir = TempDir::with_prefix("outrigger-certs-")?;
    let ca = root("ca", dir.path())?;
    let other = root("other_ca", dir.path())?;
    let mut revoked = Vec::new();
    for (number, leaf) in LEAVES.iter().enumerate() {
        let params = params(leaf, number)?;
        if leaf.flaw == Flaw::Revoked {
            revoked.extend(params.serial_number.clone());
        }
        let key = KeyPair::generate()?;
        let chain = match leaf.flaw {
            Flaw::SelfSigned => params.self_signed(&key)?.pem(),
            Flaw::OtherCa => params.signed_by(&key, &other)?.pem(),
            Flaw::Chained | Flaw::UnfitIssuer => {
                let usage = match leaf.flaw {
                    Flaw::Chained => KeyUsagePurpose::KeyCertSign,
                    _ => KeyUsagePurpose::DigitalSignature,
                };
                let (issuer, between) = intermediate(&ca, leaf.name, usage)?;
                params.signed_by(&key, &issuer)?.pem() + &between
            }
            _ => params.signed_by(&key, &ca)?.pem(),
        };
        write(dir.path(), leaf.name, &chain, &key)?;
    }
    let list = revocations(revoked, &ca)?;
    std::fs::write(dir.path().join("ca.crl"), &list)?;
    let ca = std::fs::read_to_string(dir.path().join("ca.pem"))?;
    std::fs::write(dir.path().join("ca_with_crl.pem"), ca + &list)?;
    Ok(dir)
}

/// A CA below the root, and its PEM.
fn intermediate(
    root: &Issuer<'_, KeyPair>,
    leaf: &str,
    usage: KeyUsagePurpose,
) -> Result<(Issuer<'static, KeyPair>, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("issuer of {leaf}"), "issuers");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![usage];
    let key = KeyPair::generate()?;
    let pem = params.signed_by(&key, root)?.pem();
    Ok((Issuer::new(params, key), pem))
}

fn revocations(serials: Vec<SerialNumber>, ca: &Issuer<'_, KeyPair>) -> Result<String> {
    let revoked = serials.into_iter().map(|serial_number| RevokedCertParams {
        serial_number,
        revocation_time: date_time_ymd(2024, 2, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 3, 1),
        next_update: date_time_ymd(2044, 3, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(ca)?.pem()?)
}

fn root(name: &str, dir: &Path) -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name, "roots");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    write(dir, name, &certificate.pem(), &key)?;
    Ok(Issuer::new(params, key))
}

fn params(leaf: &Leaf, number: usize) -> Result<CertificateParams> {
    let dns: Vec<String> = leaf.dns.iter().map(|d| (*d).to_owned()).collect();
    let mut params = CertificateParams::new(dns)?;
    for uri in leaf.uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
    }
    if leaf.name == "server" || leaf.name == "client" {
        params.subject_alt_names.push(SanType::IpAddress([10, 1, 2, 3].into()));
        params.subject_alt_names.push(SanType::Rfc822Name("post@a.example".try_into()?));
    }
    params.distinguished_name = match leaf.flaw {
        Flaw::OddNames => subject("ödd, \"name\"", " org;=+#"),
        _ if leaf.name == "spiffe_only" => DistinguishedName::new(),
        _ => subject(leaf.name, "leaves"),
    };
    params.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0xbc, number as u8 + 1]));
    params.not_before = date_time_ymd(2024, 1, 2);
    params.not_after = date_time_ymd(2044, 3, 4);
    match leaf.flaw {
        Flaw::Expired => params.not_after = date_time_ymd(2025, 1, 1),
        Flaw::NotYetValid => params.not_before = date_time_ymd(2043, 1, 1),
        Flaw::Ca => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        _ => {}
    }
    params.key_usages = vec![match leaf.flaw {
        Flaw::KeyAgreement => KeyUsagePurpose::KeyAgreement,
        _ => KeyUsagePurpose::DigitalSignature,
    }];
    if leaf.flaw != Flaw::OnlyClient {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if leaf.flaw != Flaw::OnlyServer {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    Ok(params)
}

fn subject(common: &str, organisation: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "XX");
    name.push(DnType::OrganizationName, organisation);
    name.push(DnType::CommonName, common);
    name
}

fn write(dir: &Path, name: &str, pem: &str, key: &KeyPair) -> Result<()> {
    std::fs::write(dir.join(format!("{name}.pem")), pem)?;
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}
