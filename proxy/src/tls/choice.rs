//! What a ClientHello chooses of a downstream context: certificate, application protocols, cipher suites, and where
//! its session is kept.
//!
//! rustls has one order of suites and one place for sessions in a configuration, so that each choice is a
//! configuration of its own, made when it is first wanted.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
    ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::sign::CertifiedKey;
use rustls::{
    NamedGroup, ProtocolVersion, ServerConfig, SignatureAlgorithm, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};

use super::context::ServerSettings;
use super::early_data;
use super::hello::Seen;
use super::info::CertificateChain;
use super::material::TlsCertificate;
use super::sessions::{JudgedSessions, JudgedTickets};
use super::verify::{Expected, Peer, PeerVerifier};

/// Sessions that are kept for clients of TLS 1.2 which take no tickets, or where tickets are off.
const STATEFUL_SESSIONS: usize = 1024;
/// Session tickets sent with a handshake of TLS 1.3, as BoringSSL does.
const TICKETS: usize = 2;

thread_local! {
    /// Which certificate a step of a handshake took: rustls does not say.
    static PICKED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which of its context's certificates the last step of a handshake on this thread took, if it took any.
pub(super) fn take_picked() -> Option<usize> {
    PICKED.take()
}

/// What handshakes use until a secret changes.
#[derive(Debug)]
pub(super) struct ServerBuilt {
    suites: Vec<Vec<SupportedCipherSuite>>,
    tls13: bool,
    versions: Vec<&'static SupportedProtocolVersion>,
    /// With the suites of all groups.
    provider: Arc<CryptoProvider>,
    alpn: Vec<Vec<u8>>,
    prefer_client_ciphers: bool,
    tickets: Option<Arc<dyn ProducesTickets>>,
    stateful: bool,
    sessions: OnceLock<Arc<dyn StoresServerSessions>>,
    /// By `Choice::index`.
    configs: Box<[OnceLock<Arc<ServerConfig>>]>,
    certificates: Arc<ServerCertificates>,
    verifier: Option<Arc<PeerVerifier>>,
}

/// What distinguishes configurations.
#[derive(Debug, Clone, Copy)]
struct Choice {
    /// Our protocols are offered.
    alpn: bool,
    /// Sessions are kept here.
    keeps: bool,
    /// This group of suites of TLS 1.2 alone.
    group: Option<usize>,
}

impl Choice {
    fn index(self) -> usize {
        let group = self.group.map_or(0, |group| group + 1);
        group << 2 | usize::from(self.keeps) << 1 | usize::from(self.alpn)
    }
}

impl ServerBuilt {
    /// `None` while a secret is missing.
    ///
    /// # Errors
    /// The settings and the secrets do not work together.
    pub(super) fn new(settings: &ServerSettings) -> Result<Option<Self>, String> {
        let common = &settings.common;
        let Some(certificates) = common.certificates() else { return Ok(None) };
        let Some(validation) = common.validation() else { return Ok(None) };
        let provider = early_data::telling(&common.provider(&common.suites.concat()));
        let mandatory = settings.require_client_certificate;
        let verifier = match validation {
            None if !mandatory => None,
            validation => Some(Arc::new(PeerVerifier::new(
                validation.unwrap_or_default(),
                Peer::Client,
                mandatory,
                Expected::default(),
                provider.signature_verification_algorithms,
            )?)),
        };
        let certificates = Arc::new(ServerCertificates {
            all: certificates,
            full_scan: settings.full_scan_certs_on_sni_mismatch,
        });
        let tickets = match settings.tickets {
            true => {
                let tickets = aws_lc_rs::Ticketer::new().map_err(|e| e.to_string())?;
                Some(match &verifier {
                    Some(verifier) => {
                        Arc::new(JudgedTickets { tickets, verifier: verifier.clone() })
                    }
                    None => tickets,
                })
            }
            false => None,
        };
        let built = Self {
            suites: common.suites.clone(),
            tls13: common.tls13,
            versions: common.versions(),
            provider,
            alpn: common.alpn.clone(),
            prefer_client_ciphers: settings.prefer_client_ciphers,
            tickets,
            stateful: settings.stateful,
            sessions: OnceLock::new(),
            configs: (0..(common.suites.len() + 1) << 2).map(|_| OnceLock::new()).collect(),
            certificates,
            verifier,
        };
        let usual = Choice { alpn: true, keeps: false, group: None };
        let config = built.make(usual).map_err(|e| e.to_string())?;
        let _ = built.configs[usual.index()].set(config);
        Ok(Some(built))
    }

    fn make(&self, choice: Choice) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = match choice.group {
            None => self.provider.clone(),
            Some(group) => {
                let mut provider = (*self.provider).clone();
                provider
                    .cipher_suites
                    .retain(|suite| suite.tls13().is_some() || self.suites[group].contains(suite));
                Arc::new(provider)
            }
        };
        let builder =
            ServerConfig::builder_with_provider(provider).with_protocol_versions(&self.versions)?;
        let builder = match &self.verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(self.certificates.clone());
        config.enable_secret_extraction = true;
        config.session_storage = if choice.keeps {
            let make = || -> Arc<dyn StoresServerSessions> {
                let sessions = ServerSessionMemoryCache::new(STATEFUL_SESSIONS);
                match &self.verifier {
                    Some(verifier) => {
                        Arc::new(JudgedSessions { sessions, verifier: verifier.clone() })
                    }
                    None => sessions,
                }
            };
            self.sessions.get_or_init(make).clone()
        } else {
            Arc::new(NoServerSessionStorage {})
        };
        config.send_tls13_tickets = 0;
        if let Some(tickets) = &self.tickets {
            config.ticketer = tickets.clone();
            config.send_tls13_tickets = TICKETS;
        }
        if choice.alpn {
            config.alpn_protocols.clone_from(&self.alpn);
        }
        Ok(Arc::new(config))
    }

    /// The configuration for a ClientHello. No protocol in common is no protocol, not an alert.
    ///
    /// # Errors
    /// None that the context's making would not have had.
    pub(super) fn config_for(
        &self,
        hello: &ClientHello<'_>,
        seen: &Seen,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let alpn = hello
            .alpn()
            .is_some_and(|mut theirs| theirs.any(|name| self.alpn.iter().any(|our| our == name)));
        // In TLS 1.3 BoringSSL goes by the client's order.
        let is_tls13 = self.tls13 && seen.offers_tls13;
        let takes_tickets = self.gives_tickets() && seen.ticket.is_some();
        let choice = Choice {
            alpn,
            keeps: self.stateful && !is_tls13 && !takes_tickets,
            group: match is_tls13 || self.prefer_client_ciphers {
                true => None,
                false => self.group_for(hello),
            },
        };
        let slot = &self.configs[choice.index()];
        if let Some(config) = slot.get() {
            return Ok(config.clone());
        }
        let config = self.make(choice)?;
        Ok(slot.get_or_init(|| config).clone())
    }

    /// The first group of suites that the client and the certificate it gets can use.
    fn group_for(&self, hello: &ClientHello<'_>) -> Option<usize> {
        let offered = |suite: &SupportedCipherSuite| hello.cipher_suites().contains(&suite.suite());
        let offers_ecdsa = self.suites.iter().flatten().any(|suite| {
            suite.usable_for_signature_algorithm(SignatureAlgorithm::ECDSA) && offered(suite)
        });
        let at = self.certificates.pick_for(hello, offers_ecdsa);
        let algorithm = self.certificates.all.get(at)?.key.key.algorithm();
        let fits = |suite: &SupportedCipherSuite| {
            suite.usable_for_signature_algorithm(algorithm) && offered(suite)
        };
        self.suites.iter().position(|group| group.iter().any(fits))
    }

    /// The group of a full handshake of TLS 1.2, and so most likely of the session that is resumed.
    pub(super) fn group_of_tls12(&self, hello: &ClientHello<'_>) -> Option<NamedGroup> {
        let theirs = hello.named_groups()?;
        let ours = self.provider.kx_groups.iter();
        let usable = ours.filter(|group| group.usable_for_version(ProtocolVersion::TLSv1_2));
        usable.map(|group| group.name()).find(|name| theirs.contains(name))
    }

    /// Whether clients that take session tickets get them.
    pub(super) fn gives_tickets(&self) -> bool {
        self.tickets.is_some()
    }

    /// The certificate that a handshake presented; a resumed one goes by the first.
    pub(super) fn presented(&self, picked: Option<usize>) -> Option<Arc<CertificateChain>> {
        self.certificates.all.get(picked.unwrap_or(0)).map(|certificate| certificate.chain.clone())
    }
}

/// The certificates of a downstream context.
#[derive(Debug)]
struct ServerCertificates {
    all: Vec<Arc<TlsCertificate>>,
    full_scan: bool,
}

impl ServerCertificates {
    /// By name, exactly then by wildcard, and ECDSA before RSA where the client takes it; the first where no name
    /// fits.
    fn pick(&self, name: Option<&str>, ecdsa: bool) -> usize {
        let fits = |certificate: &TlsCertificate| ecdsa || !certificate.is_ecdsa;
        let best = |named: &dyn Fn(&TlsCertificate) -> bool| {
            let mut found = self.all.iter().enumerate().filter(|(_, c)| named(c) && fits(c));
            let first = found.next()?;
            let better = found.find(|(_, c)| ecdsa && c.is_ecdsa && !first.1.is_ecdsa);
            Some(better.unwrap_or(first).0)
        };
        let Some(name) = name else { return best(&|_| true).unwrap_or(0) };
        let name = name.to_ascii_lowercase();
        let has = |c: &TlsCertificate, wanted: &str| c.server_names.iter().any(|n| **n == *wanted);
        let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        best(&|c| has(c, &name))
            .or_else(|| wildcard.and_then(|wildcard| best(&|c| has(c, &wildcard))))
            .or_else(|| self.full_scan.then(|| best(&|_| true)).flatten())
            .unwrap_or(0)
    }

    /// For a client that takes ECDSA as far as suites go.
    fn pick_for(&self, hello: &ClientHello<'_>, ecdsa: bool) -> usize {
        if self.all.len() == 1 {
            return 0;
        }
        let signs = hello.signature_schemes().iter().any(|scheme| {
            matches!(
                scheme,
                SignatureScheme::ECDSA_NISTP256_SHA256
                    | SignatureScheme::ECDSA_NISTP384_SHA384
                    | SignatureScheme::ECDSA_NISTP521_SHA512
            )
        });
        self.pick(hello.server_name(), ecdsa && signs)
    }
}

impl ResolvesServerCert for ServerCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has taken out the schemes that no suite goes with.
        let at = self.pick_for(&hello, true);
        PICKED.set(Some(at));
        self.all.get(at).map(|certificate| certificate.key.clone())
    }
}
