//! Whether a peer's certificate is good: the chain by webpki against the trusted CAs, then names and hashes by the
//! validation context. No host name is checked unless that asks for it (SPIFFE certificates have none).
//!
//! Envoy: `CertificateValidationContext`, its default validator. Both of rustls' verifier traits are this one type.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
    anchor_from_trusted_cert,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::anchors::{Terms, may_sign};
use super::info::CertificateChain;
use super::refusal::{purpose, refuse_chain, refuse_leaf, usage_of_key};
use super::validation::{SanType, ValidationContext};
use super::verdict::{Check, OVERLOOKED, REFUSAL, Refusal, SIGNATURE, VALIDATED};

/// Which end the verified peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Client,
    Server,
}

/// What is checked besides the context, for one upstream connection.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// `TransportSocketOptions::verify_subject_alt_names`, besides the context's.
    pub sans: Box<[Box<str>]>,
    /// `auto_sni_san_validation`: the name asked for, as a DNS name or an address.
    pub sni: bool,
}

/// A verifier of one context. Shared by all connections.
pub struct PeerVerifier {
    context: Arc<ValidationContext>,
    peer: Peer,
    pub(super) mandatory: bool,
    expected: Expected,
    anchors: Arc<[TrustAnchor<'static>]>,
    /// What these certificates say besides: webpki takes a trust anchor for a name and a key.
    terms: Arc<[Terms]>,
    crls: Arc<[CertRevocationList<'static>]>,
    hints: Box<[DistinguishedName]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl PeerVerifier {
    /// `mandatory`: a client must present a certificate.
    ///
    /// # Errors
    /// A trusted CA or a revocation list cannot be read, or names are asked for without a trusted CA: anybody can
    /// write any name into a certificate of their own.
    pub fn new(
        context: Arc<ValidationContext>,
        peer: Peer,
        mandatory: bool,
        expected: Expected,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, String> {
        let trusted = context.trusted_ca.as_deref().unwrap_or_default();
        let anchors: Vec<_> = trusted
            .iter()
            .map(|der| anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("trusted_ca: {e}"))?;
        let lists = [&context.ca_crl, &context.crl].into_iter().flatten();
        let crls: Vec<_> = lists
            .flat_map(|list| list.iter())
            .map(|der| OwnedCertRevocationList::from_der(der).map(CertRevocationList::from))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("crl: {e}"))?;
        if anchors.is_empty() {
            if !context.sans.is_empty() || expected.sni {
                let problem = "SAN-based verification of peer certificates without trusted CA";
                return Err(format!("{problem} is insecure and not allowed"));
            }
            if !crls.is_empty() {
                return Err("crl: there is no trusted CA".to_owned());
            }
        }
        let terms = trusted.iter().map(|certificate| Terms::of(certificate)).collect();
        // Only clients are told which CAs are trusted.
        let told: &[TrustAnchor<'_>] = if peer == Peer::Client { &anchors } else { &[] };
        let hints = told.iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject));
        let hints = hints.collect();
        // A name or a hash that has to fit cannot be asked of nobody.
        let checks_leaf =
            !context.sans.is_empty() || !context.spki.is_empty() || !context.hashes.is_empty();
        let mandatory = mandatory || (checks_leaf && !context.accept_untrusted);
        Ok(Self {
            context,
            peer,
            mandatory,
            expected,
            anchors: anchors.into(),
            terms,
            crls: crls.into(),
            hints,
            algorithms,
        })
    }

    /// The same, but for the names.
    pub(super) fn expecting(&self, names: &[Box<str>]) -> Self {
        Self {
            context: self.context.clone(),
            peer: self.peer,
            mandatory: self.mandatory,
            expected: Expected { sans: names.into(), sni: false },
            anchors: self.anchors.clone(),
            terms: self.terms.clone(),
            crls: self.crls.clone(),
            hints: self.hints.clone(),
            algorithms: self.algorithms,
        }
    }

    /// Whether a client is asked for a certificate at all.
    fn asks(&self) -> bool {
        self.mandatory || !self.anchors.is_empty() || self.context.accept_untrusted
    }

    /// Checks a chain. Whether it was found good; one that is let in unverified was not.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<bool, Refusal> {
        let checks_chain = !self.anchors.is_empty();
        let mut validated = false;
        if checks_chain {
            match self.judge_chain(leaf, intermediates, now) {
                Ok(()) => validated = true,
                Err(refusal) if self.context.accept_untrusted => {
                    // What the peer cannot do is no matter of trust.
                    signs(leaf)?;
                    OVERLOOKED.set(Some(refusal.check));
                    return Ok(false);
                }
                Err(refusal) => return Err(refusal),
            }
        } else {
            signs(leaf)?;
        }
        match self.judge_leaf(leaf, name) {
            Ok(checked) => Ok(validated || checked),
            Err(refusal) if self.context.accept_untrusted => {
                OVERLOOKED.set(Some(refusal.check));
                Ok(false)
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn judge_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let refused = |error| refuse_chain(error, leaf, intermediates, &self.anchors);
        let cert = EndEntityCert::try_from(leaf).map_err(refused)?;
        let usage = match self.peer {
            Peer::Client => KeyUsage::client_auth(),
            Peer::Server => KeyUsage::server_auth(),
        };
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            let depth = if self.context.only_leaf_crl {
                RevocationCheckDepth::EndEntity
            } else {
                RevocationCheckDepth::Chain
            };
            // A list that is out of date says nothing of what was revoked since.
            let expiration = if self.context.allow_expired {
                ExpirationPolicy::Ignore
            } else {
                ExpirationPolicy::Enforce
            };
            options
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(expiration)
                .build()
        });
        let mut at = now;
        if self.context.allow_expired
            && let Some(inside) = inside_validity(leaf)
        {
            at = inside;
        }
        cert.verify_for_usage(
            self.algorithms.all,
            &self.anchors,
            intermediates,
            at,
            usage,
            revocation,
            Some(&|path| self.judge_path(path, leaf, at)),
        )
        .map_err(refused)?;
        check_usage(leaf, self.peer)
    }

    /// What webpki leaves to us: the chain's length, that who signs may, and the terms of the trusted certificate.
    fn judge_path(
        &self,
        path: &VerifiedPath<'_>,
        leaf: &[u8],
        at: UnixTime,
    ) -> Result<(), webpki::Error> {
        let mut depth = 0;
        for intermediate in path.intermediate_certificates() {
            depth += 1;
            if !may_sign(&intermediate.der()) {
                return Err(webpki::Error::UnknownIssuer);
            }
        }
        if self.context.max_depth.is_some_and(|max| depth > max) {
            return Err(webpki::Error::MaximumPathDepthExceeded);
        }
        let anchor = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let trusted = self.context.trusted_ca.as_deref().unwrap_or_default();
        let Some((trusted, terms)) = anchor.and_then(|at| trusted.get(at).zip(self.terms.get(at)))
        else {
            return Ok(());
        };
        // One that is trusted as itself has been looked at as the leaf.
        if **trusted == *leaf {
            return Ok(());
        }
        if terms.is_leaf {
            return Err(webpki::Error::UnknownIssuer);
        }
        if terms.path_len.is_some_and(|max| depth > max) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        if self.context.allow_expired { Ok(()) } else { terms.valid_at(at) }
    }

    /// Names and hashes. Whether there was anything to check.
    fn judge_leaf(
        &self,
        leaf: &CertificateDer<'_>,
        name: Option<&ServerName<'_>>,
    ) -> Result<bool, Refusal> {
        let mut checked = false;
        // Nobody is asked for by an address that nobody has.
        let sni = name.filter(|name| self.expected.sni && !is_nobody(name));
        if !self.expected.sans.is_empty() || sni.is_some() || !self.context.sans.is_empty() {
            let names = subject_alt_names(leaf);
            let printed = || {
                let printed: Vec<&str> = names.iter().map(|(_, name)| &**name).collect();
                printed.join(", ")
            };
            // The request's names come on top of the context's.
            if !self.expected.sans.is_empty() && !self.fits_expected(&names) {
                let detail = format!(
                    "verify cert failed: verify SAN list, expected SANs: [{}], certificate SANs: [{}]",
                    self.expected.sans.join(", "),
                    printed()
                );
                return Err(refuse_leaf(Check::San, detail));
            }
            let fits = match sni {
                Some(ServerName::IpAddress(ip)) => {
                    let ip = IpAddr::from(*ip).to_string();
                    names.iter().any(|(kind, san)| *kind == SanType::Ip && **san == *ip)
                }
                Some(sni) => {
                    let sni = sni.to_str();
                    names.iter().any(|(kind, san)| *kind == SanType::Dns && covers(san, &sni))
                }
                None => self.context.sans.is_empty() || self.fits_context(&names),
            };
            if !fits {
                let printed = printed();
                let detail =
                    format!("verify cert failed: SAN matcher, certificate SANs are [{printed}]");
                return Err(refuse_leaf(Check::San, detail));
            }
            checked = true;
        }
        if !self.context.hashes.is_empty() || !self.context.spki.is_empty() {
            let sha = |bytes: &[u8]| -> [u8; 32] {
                digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
            };
            let spki = X509Certificate::from_der(leaf).ok().map(|(_, c)| sha(c.public_key().raw));
            let fits = self.context.hashes.contains(&sha(leaf))
                || spki.is_some_and(|spki| self.context.spki.contains(&spki));
            if !fits {
                let detail = "verify cert failed: cert hash and spki".to_owned();
                return Err(refuse_leaf(Check::Hash, detail));
            }
            checked = true;
        }
        Ok(checked)
    }

    fn fits_expected(&self, names: &[(SanType, Box<str>)]) -> bool {
        let wanted = &self.expected.sans;
        names.iter().any(|(kind, name)| match kind {
            SanType::Dns => wanted.iter().any(|wanted| covers(name, wanted)),
            _ => wanted.contains(name),
        })
    }

    fn fits_context(&self, names: &[(SanType, Box<str>)]) -> bool {
        self.context.sans.iter().any(|wanted| {
            names.iter().any(|(kind, name)| {
                *kind == wanted.kind
                    && match &wanted.exact_dns {
                        Some(exact) => covers(name, exact),
                        None => wanted.matcher.matches(name.as_bytes()),
                    }
            })
        })
    }

    /// Leaves the verdict for `Verdict::take`.
    fn decide(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        match self.judge(leaf, intermediates, name, now) {
            Ok(validated) => {
                VALIDATED.set(validated);
                Ok(())
            }
            Err(mut refusal) => {
                let error = refusal.error.clone();
                let all = std::iter::once(leaf).chain(intermediates);
                let all = all.map(|der| der.clone().into_owned()).collect();
                refusal.peer = CertificateChain::new(all).map(Arc::new);
                REFUSAL.set(Some(refusal));
                Err(error)
            }
        }
    }

    /// Judges the certificates of a session that is resumed as those of a new one: it was admitted by this very
    /// context, but certificates, trusted CAs and revocation lists end. Whether they were found good.
    pub(super) fn judge_resumed(
        &self,
        chain: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
    ) -> Result<bool, Refusal> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(false) };
        self.judge(leaf, intermediates, name, now())
    }
}

/// The time by which sessions are judged.
fn now() -> UnixTime {
    #[cfg(test)]
    let ahead = AHEAD.get();
    #[cfg(not(test))]
    let ahead = std::time::Duration::ZERO;
    let now = std::time::Duration::from_secs(UnixTime::now().as_secs());
    UnixTime::since_unix_epoch(now + ahead)
}

#[cfg(test)]
thread_local! {
    /// By how much sessions are judged as of later.
    pub(super) static AHEAD: std::cell::Cell<std::time::Duration> = const {
        std::cell::Cell::new(std::time::Duration::ZERO)
    };
}

/// How peers may sign: what BoringSSL takes by default, in its order.
fn schemes(algorithms: &WebPkiSupportedAlgorithms) -> Vec<SignatureScheme> {
    const ALL: [SignatureScheme; 8] = [
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PKCS1_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PSS_SHA512,
        SignatureScheme::RSA_PKCS1_SHA512,
    ];
    let supported = algorithms.supported_schemes();
    ALL.into_iter().filter(|scheme| supported.contains(scheme)).collect()
}

/// An instant at which the certificate is valid: that of the chain is then checked there.
fn inside_validity(leaf: &[u8]) -> Option<UnixTime> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let end = super::material::time(leaf.validity().not_after.timestamp());
    let now = SystemTime::now().min(end);
    let since = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(UnixTime::since_unix_epoch(since))
}

/// The key usages that BoringSSL wants of a TLS peer; a certificate without the extension has all.
fn check_usage(leaf: &[u8], peer: Peer) -> Result<(), Refusal> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Err(purpose()) };
    let usage = match leaf.key_usage() {
        Ok(Some(usage)) => usage.value,
        Ok(None) => return Ok(()),
        Err(_) => return Err(purpose()),
    };
    let fits = usage.digital_signature()
        || usage.key_agreement()
        || (peer == Peer::Server && usage.key_encipherment());
    if !fits {
        return Err(purpose());
    }
    if usage.digital_signature() { Ok(()) } else { Err(usage_of_key()) }
}

/// Whether the key may sign, as in every handshake: keys are exchanged by (EC)DHE alone.
fn signs(leaf: &[u8]) -> Result<(), Refusal> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Ok(()) };
    match leaf.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.digital_signature() => Ok(()),
        Ok(Some(_)) | Err(_) => Err(usage_of_key()),
    }
}

/// What stands for no server name: rustls wants one.
pub(super) fn nobody() -> ServerName<'static> {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()
}

fn is_nobody(name: &ServerName<'_>) -> bool {
    *name == nobody()
}

/// The names that matchers look at, as text. What is no text is no name.
fn subject_alt_names(leaf: &[u8]) -> Vec<(SanType, Box<str>)> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(san)) = leaf.subject_alternative_name() else { return Vec::new() };
    let names = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((SanType::Dns, Box::from(*name))),
        GeneralName::URI(uri) => Some((SanType::Uri, Box::from(*uri))),
        GeneralName::RFC822Name(name) => Some((SanType::Email, Box::from(*name))),
        GeneralName::IPAddress(bytes) => {
            let ip = match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
                _ => None,
            };
            ip.map(|ip| (SanType::Ip, ip.to_string().into()))
        }
        _ => None,
    });
    names.collect()
}

/// Whether a DNS name of a certificate covers a host: equal without regard to case, or by a wildcard that stands for
/// one whole label (RFC 9525, 6.3).
fn covers(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(pattern), Some((label, rest))) = (pattern.strip_prefix("*."), host.split_once('.'))
    else {
        return false;
    };
    !label.is_empty() && pattern.contains('.') && pattern.eq_ignore_ascii_case(rest)
}

impl ClientCertVerifier for PeerVerifier {
    fn offer_client_auth(&self) -> bool {
        self.asks()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.decide(end_entity, intermediates, None, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        SIGNATURE.set(Some(dss.scheme));
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        SIGNATURE.set(Some(dss.scheme));
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes(&self.algorithms)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.decide(end_entity, intermediates, Some(server_name), now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        SIGNATURE.set(Some(dss.scheme));
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        SIGNATURE.set(Some(dss.scheme));
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes(&self.algorithms)
    }
}
