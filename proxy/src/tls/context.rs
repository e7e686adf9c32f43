//! TLS contexts: compiled settings, the secrets' slots, and what rustls needs, made anew with every new secret.
//!
//! A context is shared by all workers. One whose secrets are not all there yet makes no handshakes; its connections
//! are closed and counted, as in Envoy. Sessions are resumed only by what admitted them: a new secret is a new ticket
//! key and a new session cache. Envoy: `DownstreamTlsContext`, `UpstreamTlsContext`.

use std::fmt;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, CommonState, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::choice::ServerBuilt;
use super::inventory::TlsContext;
use super::material::TlsCertificate;
use super::secrets::{Secret, SecretUse, SecretUser};
use super::stats::ContextStats;
use super::suites::TLS13_SUITES;
use super::validation::ValidationContext;
use super::verify::{Expected, Peer, PeerVerifier};
use crate::stats::Scope;

/// What both sides of `CommonTlsContext` have.
#[derive(Debug, Clone)]
pub struct CommonTls {
    pub tls12: bool,
    pub tls13: bool,
    /// Of TLS 1.2, in our order; those of one group are equal, and the peer's order decides.
    pub suites: Vec<Vec<SupportedCipherSuite>>,
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub alpn: Vec<Vec<u8>>,
    pub certificates: Vec<SecretUse>,
    pub validation: Validation,
}

/// Where the validation context comes from.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// `validation_context`, or `default_validation_context` of a combined one.
    pub fixed: Option<Arc<ValidationContext>>,
    /// What is merged into it.
    pub secret: Option<SecretUse>,
}

impl CommonTls {
    /// With these suites of TLS 1.2.
    pub(super) fn provider(&self, tls12: &[SupportedCipherSuite]) -> Arc<CryptoProvider> {
        let tls13: &[SupportedCipherSuite] = if self.tls13 { &TLS13_SUITES } else { &[] };
        let tls12 = if self.tls12 { tls12 } else { &[] };
        Arc::new(CryptoProvider {
            cipher_suites: [tls13, tls12].concat(),
            kx_groups: self.groups.clone(),
            ..aws_lc_rs::default_provider()
        })
    }

    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [(self.tls13, &TLS13), (self.tls12, &TLS12)];
        all.into_iter().filter_map(|(on, version)| on.then_some(version)).collect()
    }

    /// Every slot that has to be filled.
    pub fn slots(&self) -> impl Iterator<Item = &SecretUse> + Clone {
        self.certificates.iter().chain(&self.validation.secret)
    }

    /// The certificates; `None` while one is missing.
    pub(super) fn certificates(&self) -> Option<Vec<Arc<TlsCertificate>>> {
        let value = |slot: &SecretUse| match &*slot.get()? {
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

    /// Whether two that were written alike hold the same: the same slots, or the same bytes of files read by now.
    fn holds_the_same(&self, other: &Self) -> bool {
        let files = |common: &Self| {
            let fixed = common.validation.fixed.clone().unwrap_or_default();
            (fixed.trusted_ca.clone(), fixed.ca_crl.clone(), fixed.crl.clone())
        };
        let (slots, others) = (self.slots(), other.slots());
        slots.clone().count() == others.clone().count()
            && slots.zip(others).all(|(one, other)| one.is_same(other))
            && files(self) == files(other)
    }

    fn subscribe(&self, user: &Arc<impl SecretUser + 'static>) {
        for slot in self.slots() {
            let user: Arc<dyn SecretUser> = user.clone();
            slot.subscribe(Arc::downgrade(&user));
        }
    }
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

impl ServerContext {
    /// Every secret that it needs.
    pub fn slots(&self) -> impl Iterator<Item = &SecretUse> {
        self.settings.common.slots()
    }

    /// # Errors
    /// The settings and the secrets that are there do not work together.
    pub fn new(settings: ServerSettings) -> Result<Arc<Self>, String> {
        let built = ServerBuilt::new(&settings)?;
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

    /// Whether a context that was written like this one would also do the same.
    pub fn does_the_same(&self, other: &Self) -> bool {
        self.settings.common.holds_the_same(&other.settings.common)
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
        match ServerBuilt::new(&self.settings) {
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
    sessions: Arc<dyn ClientSessionStore>,
    /// Of the last handshake that had a key exchange: 0 before.
    last_group: AtomicU16,
}

impl ClientContext {
    /// Every secret that it needs.
    pub fn slots(&self) -> impl Iterator<Item = &SecretUse> {
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
    let provider = common.provider(&common.suites.concat());
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
    let sessions: Arc<dyn ClientSessionStore> =
        Arc::new(ClientSessionMemoryCache::new(settings.max_session_keys));
    config.resumption = match settings.max_session_keys {
        0 => Resumption::disabled(),
        _ => Resumption::store(sessions.clone()),
    };
    let last_group = AtomicU16::new(0);
    let config = Arc::new(config);
    Ok(Some(ClientBuilt { config, verifier, certificate, sessions, last_group }))
}

impl ClientBuilt {
    /// Drops every session of a server.
    pub(super) fn forget(&self, name: &ServerName<'static>) {
        self.sessions.remove_tls12_session(name);
        while self.sessions.take_tls13_ticket(name).is_some() {}
    }

    /// The group of the session that was resumed, as far as that is known: rustls does not keep it.
    pub(super) fn session_group(&self, common: &CommonState) -> Option<NamedGroup> {
        match common.negotiated_key_exchange_group() {
            Some(group) => {
                self.last_group.store(group.name().into(), Relaxed);
                None
            }
            None => Some(self.last_group.load(Relaxed)).filter(|last| *last != 0).map(Into::into),
        }
    }

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
