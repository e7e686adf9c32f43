//! TLS contexts: compiled settings, the secrets' slots, and what rustls needs, made anew with every new secret.
//!
//! A context is shared by all workers. One whose secrets are not all there yet makes no handshakes; its connections
//! are closed and counted, as in Envoy. Sessions are resumed only by what admitted them: a new secret is a new ticket
//! key and a new session cache. Envoy: `DownstreamTlsContext`, `UpstreamTlsContext`.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, ServerConfig, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
};

use super::info::CertificateChain;
use super::inventory::TlsContext;
use super::material::TlsCertificate;
use super::secrets::{Secret, SecretSlot, SecretUser};
use super::stats::ContextStats;
use super::suites::TLS13_SUITES;
use super::validation::ValidationContext;
use super::verify::{Expected, Peer, PeerVerifier};
use crate::stats::Scope;

/// Sessions that are kept for clients of TLS 1.2 where tickets are off.
const STATEFUL_SESSIONS: usize = 1024;
/// Session tickets sent with a handshake of TLS 1.3, as BoringSSL does.
const TICKETS: usize = 2;

/// What both sides of `CommonTlsContext` have.
#[derive(Debug, Clone)]
pub struct CommonTls {
    pub tls12: bool,
    pub tls13: bool,
    /// Of TLS 1.2.
    pub suites: Vec<SupportedCipherSuite>,
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub alpn: Vec<Vec<u8>>,
    pub certificates: Vec<Arc<SecretSlot>>,
    pub validation: Validation,
}

/// Where the validation context comes from.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// `validation_context`, or `default_validation_context` of a combined one.
    pub fixed: Option<Arc<ValidationContext>>,
    /// What is merged into it.
    pub secret: Option<Arc<SecretSlot>>,
}

impl CommonTls {
    fn provider(&self) -> Arc<CryptoProvider> {
        let tls13: &[SupportedCipherSuite] = if self.tls13 { &TLS13_SUITES } else { &[] };
        let tls12: &[SupportedCipherSuite] = if self.tls12 { &self.suites } else { &[] };
        Arc::new(CryptoProvider {
            cipher_suites: [tls13, tls12].concat(),
            kx_groups: self.groups.clone(),
            ..aws_lc_rs::default_provider()
        })
    }

    fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [(self.tls13, &TLS13), (self.tls12, &TLS12)];
        all.into_iter().filter_map(|(on, version)| on.then_some(version)).collect()
    }

    /// Every slot that has to be filled.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<SecretSlot>> {
        self.certificates.iter().chain(&self.validation.secret)
    }

    /// The certificates; `None` while one is missing.
    pub(super) fn certificates(&self) -> Option<Vec<Arc<TlsCertificate>>> {
        let value = |slot: &Arc<SecretSlot>| match &*slot.get()? {
            Secret::Certificate(certificate) => Some(certificate.clone()),
            Secret::Validation(_) => None,
        };
        self.certificates.iter().map(value).collect()
    }

    /// The validation context; `None` while its secret is missing.
    pub(super) fn validation(&self) -> Option<Option<Arc<ValidationContext>>> {
        let Some(slot) = &self.validation.secret else {
            return Some(self.validation.fixed.clone());
        };
        let Secret::Validation(secret) = &*slot.get()? else { return None };
        Some(Some(match &self.validation.fixed {
            Some(fixed) => Arc::new(fixed.merged(secret)),
            None => secret.clone(),
        }))
    }

    fn subscribe(&self, user: &Arc<impl SecretUser + 'static>) {
        for slot in self.slots() {
            let user: Arc<dyn SecretUser> = user.clone();
            slot.subscribe(Arc::downgrade(&user));
        }
    }
}

thread_local! {
    /// Which certificate a step of a handshake took: rustls does not say.
    static PICKED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which of its context's certificates the last step of a handshake on this thread took, if it took any.
pub(super) fn take_picked() -> Option<usize> {
    PICKED.take()
}

/// Settings of `DownstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub common: CommonTls,
    pub require_client_certificate: bool,
    /// `disable_stateless_session_resumption` turned round.
    pub tickets: bool,
    /// `disable_stateful_session_resumption` turned round.
    pub stateful: bool,
    pub prefer_client_ciphers: bool,
    pub full_scan_certs_on_sni_mismatch: bool,
}

/// A downstream context.
pub struct ServerContext {
    settings: ServerSettings,
    built: ArcSwapOption<ServerBuilt>,
    stats: OnceLock<ContextStats>,
}

impl fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerContext").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl TlsContext for ServerContext {
    fn common(&self) -> &CommonTls {
        &self.settings.common
    }
}

/// What handshakes use until a secret changes.
#[derive(Debug)]
pub(super) struct ServerBuilt {
    /// By whether a protocol of ours is offered, and whether our order of cipher suites counts.
    configs: [Arc<ServerConfig>; 4],
    certificates: Arc<ServerCertificates>,
    pub(super) verifier: Option<Arc<PeerVerifier>>,
}

impl ServerContext {
    /// Every secret that it needs.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<SecretSlot>> {
        self.settings.common.slots()
    }

    /// # Errors
    /// The settings and the secrets that are there do not work together.
    pub fn new(settings: ServerSettings) -> Result<Arc<Self>, String> {
        let built = build_server(&settings)?;
        let context = Arc::new(Self {
            settings,
            built: ArcSwapOption::from(built.map(Arc::new)),
            stats: OnceLock::new(),
        });
        context.settings.common.subscribe(&context);
        Ok(context)
    }

    pub fn settings(&self) -> &ServerSettings {
        &self.settings
    }

    /// Where its updates are counted; the first scope counts.
    pub fn count_in(&self, scope: &Scope) {
        let stats = self.stats.get_or_init(|| ContextStats::new(scope, true));
        stats.write_ends(&self.settings.common);
    }

    /// `None` while a secret is missing.
    pub(super) fn current(&self) -> Option<Arc<ServerBuilt>> {
        self.built.load_full()
    }

    /// Whether all secrets are there.
    pub fn is_ready(&self) -> bool {
        self.built.load().is_some()
    }
}

impl SecretUser for ServerContext {
    fn secret_changed(&self) {
        match build_server(&self.settings) {
            Ok(Some(built)) => {
                self.built.store(Some(Arc::new(built)));
                if let Some(stats) = self.stats.get() {
                    stats.updated();
                    stats.write_ends(&self.settings.common);
                }
            }
            Ok(None) => {}
            Err(reason) => tracing::warn!(%reason, "a downstream TLS context stays as it was"),
        }
    }
}

fn build_server(settings: &ServerSettings) -> Result<Option<ServerBuilt>, String> {
    let common = &settings.common;
    let Some(certificates) = common.certificates() else { return Ok(None) };
    let Some(validation) = common.validation() else { return Ok(None) };
    let provider = common.provider();
    let algorithms = provider.signature_verification_algorithms;
    let mandatory = settings.require_client_certificate;
    let verifier = match validation {
        None if !mandatory => None,
        validation => Some(Arc::new(PeerVerifier::new(
            validation.unwrap_or_default(),
            Peer::Client,
            mandatory,
            Expected::default(),
            algorithms,
        )?)),
    };
    let certificates = Arc::new(ServerCertificates {
        all: certificates,
        full_scan: settings.full_scan_certs_on_sni_mismatch,
    });
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&common.versions())
        .map_err(|e| e.to_string())?;
    let builder = match &verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut base = builder.with_cert_resolver(certificates.clone());
    base.enable_secret_extraction = true;
    base.session_storage = if settings.tickets || !settings.stateful {
        Arc::new(NoServerSessionStorage {})
    } else {
        ServerSessionMemoryCache::new(STATEFUL_SESSIONS)
    };
    if settings.tickets {
        base.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| e.to_string())?;
        base.send_tls13_tickets = TICKETS;
    } else {
        base.send_tls13_tickets = 0;
    }
    let variant = |alpn: bool, our_order: bool| {
        let mut config = base.clone();
        config.ignore_client_order = our_order;
        if alpn {
            config.alpn_protocols.clone_from(&common.alpn);
        }
        Arc::new(config)
    };
    let configs =
        [variant(false, false), variant(true, false), variant(false, true), variant(true, true)];
    Ok(Some(ServerBuilt { configs, certificates, verifier }))
}

impl ServerBuilt {
    /// The configuration for a ClientHello. No protocol in common is no protocol, not an alert.
    pub(super) fn config_for(
        &self,
        hello: &ClientHello<'_>,
        settings: &ServerSettings,
    ) -> Arc<ServerConfig> {
        let ours = &settings.common.alpn;
        let alpn = hello
            .alpn()
            .is_some_and(|mut theirs| theirs.any(|name| ours.iter().any(|our| our == name)));
        // In TLS 1.3 BoringSSL goes by the client's order.
        let is_tls13 = settings.common.tls13
            && hello.cipher_suites().iter().any(|suite| {
                matches!(
                    suite,
                    CipherSuite::TLS13_AES_128_GCM_SHA256
                        | CipherSuite::TLS13_AES_256_GCM_SHA384
                        | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                )
            });
        let our_order = !is_tls13 && !settings.prefer_client_ciphers;
        self.configs[usize::from(alpn) | usize::from(our_order) << 1].clone()
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
}

impl ResolvesServerCert for ServerCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let at = if self.all.len() == 1 {
            0
        } else {
            let ecdsa = hello.signature_schemes().iter().any(|scheme| {
                matches!(
                    scheme,
                    SignatureScheme::ECDSA_NISTP256_SHA256
                        | SignatureScheme::ECDSA_NISTP384_SHA384
                        | SignatureScheme::ECDSA_NISTP521_SHA512
                )
            });
            self.pick(hello.server_name(), ecdsa)
        };
        PICKED.set(Some(at));
        self.all.get(at).map(|certificate| certificate.key.clone())
    }
}

/// Settings of `UpstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    pub common: CommonTls,
    /// Sent as it is; empty for none.
    pub sni: Arc<str>,
    /// Send the host's `hostname` instead.
    pub auto_host_sni: bool,
    /// The certificate must have the SNI among its DNS names.
    pub auto_sni_san_validation: bool,
    /// Sessions kept for resumption; 0 for none.
    pub max_session_keys: usize,
}

/// An upstream context.
pub struct ClientContext {
    settings: ClientSettings,
    built: ArcSwapOption<ClientBuilt>,
    stats: OnceLock<ContextStats>,
}

impl fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientContext").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl TlsContext for ClientContext {
    fn common(&self) -> &CommonTls {
        &self.settings.common
    }
}

/// What handshakes use until a secret changes.
#[derive(Debug)]
pub(super) struct ClientBuilt {
    pub(super) config: Arc<ClientConfig>,
    pub(super) verifier: Arc<PeerVerifier>,
    pub(super) certificate: Option<Arc<TlsCertificate>>,
}

impl ClientContext {
    /// Every secret that it needs.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<SecretSlot>> {
        self.settings.common.slots()
    }

    /// # Errors
    /// The settings and the secrets that are there do not work together.
    pub fn new(settings: ClientSettings) -> Result<Arc<Self>, String> {
        let built = build_client(&settings)?;
        let context = Arc::new(Self {
            settings,
            built: ArcSwapOption::from(built.map(Arc::new)),
            stats: OnceLock::new(),
        });
        context.settings.common.subscribe(&context);
        Ok(context)
    }

    pub fn settings(&self) -> &ClientSettings {
        &self.settings
    }

    /// See `ServerContext::count_in`.
    pub fn count_in(&self, scope: &Scope) {
        let stats = self.stats.get_or_init(|| ContextStats::new(scope, false));
        stats.write_ends(&self.settings.common);
    }

    /// `None` while a secret is missing.
    pub(super) fn current(&self) -> Option<Arc<ClientBuilt>> {
        self.built.load_full()
    }

    /// Whether all secrets are there.
    pub fn is_ready(&self) -> bool {
        self.built.load().is_some()
    }
}

impl SecretUser for ClientContext {
    fn secret_changed(&self) {
        match build_client(&self.settings) {
            Ok(Some(built)) => {
                self.built.store(Some(Arc::new(built)));
                if let Some(stats) = self.stats.get() {
                    stats.updated();
                    stats.write_ends(&self.settings.common);
                }
            }
            Ok(None) => {}
            Err(reason) => tracing::warn!(%reason, "an upstream TLS context stays as it was"),
        }
    }
}

fn build_client(settings: &ClientSettings) -> Result<Option<ClientBuilt>, String> {
    let common = &settings.common;
    let Some(certificates) = common.certificates() else { return Ok(None) };
    let Some(validation) = common.validation() else { return Ok(None) };
    let provider = common.provider();
    let expected = Expected { sni: settings.auto_sni_san_validation, ..Expected::default() };
    let verifier = Arc::new(PeerVerifier::new(
        validation.unwrap_or_default(),
        Peer::Server,
        false,
        expected,
        provider.signature_verification_algorithms,
    )?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&common.versions())
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let certificate = certificates.into_iter().next();
    let mut config = match &certificate {
        Some(certificate) => {
            let key = SingleCertAndKey::from((*certificate.key).clone());
            builder.with_client_cert_resolver(Arc::new(key))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&common.alpn);
    config.enable_secret_extraction = true;
    config.resumption = match settings.max_session_keys {
        0 => Resumption::disabled(),
        sessions => Resumption::in_memory_sessions(sessions),
    };
    Ok(Some(ClientBuilt { config: Arc::new(config), verifier, certificate }))
}

impl ClientBuilt {
    /// The configuration for a connection whose peer has to have one of these names, instead of the context's.
    pub(super) fn with_names(&self, names: &[Box<str>]) -> Arc<ClientConfig> {
        if names.is_empty() {
            return self.config.clone();
        }
        let mut config = (*self.config).clone();
        config.dangerous().set_certificate_verifier(Arc::new(self.verifier.expecting(names)));
        // A session does not tell which names its certificate was checked for.
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}
