//! What is counted of handshakes (`ssl.*`): once made, a name is a handle.

use std::cell::RefCell;
use std::fmt;
use std::time::SystemTime;

use rustls::{CommonState, NamedGroup};

use super::context::CommonTls;
use super::failure::{Cause, HandshakeFailure};
use super::info::TlsInfo;
use super::secrets::Secret;
use super::suites;
use super::verdict::{Check, Verdict};
use crate::stats::names::{SslFactoryStat, SslStat};
use crate::stats::{Block, Counter, Scope, SharedBlock};

/// What is counted by name of an established connection.
#[derive(Debug, Clone, Copy)]
pub struct Established {
    version: &'static str,
    cipher: &'static str,
    curve: Option<&'static str>,
    signature: Option<&'static str>,
    resumed: bool,
    has_peer: bool,
    overlooked: Option<Check>,
}

impl Established {
    /// `group` is that of the session where this handshake had no key exchange of its own.
    pub(super) fn new(
        common: &CommonState,
        info: &TlsInfo,
        seen: &Verdict,
        group: Option<NamedGroup>,
    ) -> Self {
        let own = common.negotiated_key_exchange_group().map(|group| group.name());
        Self {
            version: info.version,
            cipher: info.cipher,
            curve: own.or(group).map(suites::group_name),
            signature: seen.signature.map(suites::signature_name),
            overlooked: seen.overlooked,
            resumed: info.resumed,
            has_peer: info.peer.is_some(),
        }
    }
}

/// What the control thread counts of a context.
#[derive(Debug)]
pub struct ContextStats {
    factory: SharedBlock<SslFactoryStat>,
    ssl: Scope,
}

impl ContextStats {
    /// `owner` is the scope of the listener or the cluster.
    pub(super) fn new(owner: &Scope, is_server: bool) -> Self {
        let factory = owner.scope(factory_name(is_server)).shared();
        Self { factory, ssl: owner.scope("ssl") }
    }

    /// A new secret has come.
    pub(super) fn updated(&self) {
        self.factory.inc(SslFactoryStat::SslContextUpdateBySds);
    }

    /// Writes when the certificates end, by the names of their secrets.
    pub(super) fn write_ends(&self, common: &CommonTls) {
        // As Envoy names what has none: by the hash of nothing.
        let write = |name: &str, unnamed: &str, end: SystemTime| {
            let name = if name.is_empty() { format!("{unnamed}_e3b0c442") } else { name.into() };
            let seconds = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let name = format!("certificate.{name}.expiration_unix_time_seconds");
            self.ssl.shared_gauge(&name).set(seconds);
        };
        for slot in &common.certificates {
            if let Some(Secret::Certificate(certificate)) = slot.get().as_deref() {
                write(slot.name(), "unnamed_cert", certificate.not_after());
            }
        }
        let fixed = common.validation.fixed.as_ref().and_then(|fixed| fixed.first_end());
        if let Some(end) = fixed {
            write("", "unnamed_ca_cert", end);
        }
        if let Some(slot) = &common.validation.secret
            && let Some(Secret::Validation(context)) = slot.get().as_deref()
            && let Some(end) = context.first_end()
        {
            write(slot.name(), "unnamed_ca_cert", end);
        }
    }
}

fn factory_name(is_server: bool) -> &'static str {
    if is_server { "server_ssl_socket_factory" } else { "client_ssl_socket_factory" }
}

/// The statistics of one listener's or cluster's TLS on one worker.
pub struct SslStats {
    block: Block<SslStat>,
    factory: Block<SslFactoryStat>,
    scope: Scope,
    worker: usize,
    /// `ciphers.X`, `curves.X`, `sigalgs.X`, `versions.X`: a handful.
    named: RefCell<Vec<(&'static str, &'static str, Counter)>>,
}

impl fmt::Debug for SslStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SslStats").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl SslStats {
    /// `owner` is the scope of the listener or the cluster.
    pub fn new(owner: &Scope, is_server: bool, worker: usize) -> Self {
        let scope = owner.scope("ssl");
        Self {
            block: scope.block(worker),
            factory: owner.scope(factory_name(is_server)).block(worker),
            scope,
            worker,
            named: RefCell::default(),
        }
    }

    /// Makes the names exist before anything is counted.
    pub fn declare(owner: &Scope, is_server: bool) {
        owner.scope("ssl").declare::<SslStat>();
        owner.scope(factory_name(is_server)).declare::<SslFactoryStat>();
    }

    /// A handshake is done.
    pub fn established(&self, facts: &Established) {
        self.block.inc(SslStat::Handshake);
        if facts.resumed {
            self.block.inc(SslStat::SessionReused);
        }
        if !facts.has_peer {
            self.block.inc(SslStat::NoCertificate);
        }
        if let Some(check) = facts.overlooked {
            self.block.inc(of_check(check));
        }
        self.count("ciphers", facts.cipher);
        self.count("versions", facts.version);
        for (kind, name) in [("curves", facts.curve), ("sigalgs", facts.signature)] {
            if let Some(name) = name {
                self.count(kind, name);
            }
        }
    }

    /// A client asks for a stapled OCSP response, of which there is none.
    pub(super) fn asked_for_staple(&self) {
        self.block.inc(SslStat::OcspStapleRequests);
        self.block.inc(SslStat::OcspStapleOmitted);
    }

    fn count(&self, kind: &'static str, name: &'static str) {
        let mut named = self.named.borrow_mut();
        if let Some((.., counter)) = named.iter().find(|(k, n, _)| *k == kind && *n == name) {
            counter.inc();
            return;
        }
        let counter = self.scope.counter(self.worker, &format!("{kind}.{name}"));
        counter.inc();
        named.push((kind, name, counter));
    }

    /// A handshake has failed.
    pub fn failed(&self, failure: &HandshakeFailure, is_server: bool) {
        let stat = match failure.cause {
            Cause::NotReady if is_server => {
                self.factory.inc(SslFactoryStat::DownstreamContextSecretsNotReady);
                return;
            }
            Cause::NotReady => {
                self.factory.inc(SslFactoryStat::UpstreamContextSecretsNotReady);
                return;
            }
            Cause::Closed => return,
            Cause::NoCertificate => SslStat::FailVerifyNoCert,
            Cause::Refused(check) => of_check(check),
            Cause::Protocol => SslStat::ConnectionError,
        };
        self.block.inc(stat);
    }

    /// The peer broke the protocol after the handshake, or said that we did.
    pub fn broken(&self) {
        self.block.inc(SslStat::ConnectionError);
    }
}

/// What a failed check counts.
fn of_check(check: Check) -> SslStat {
    match check {
        Check::Chain => SslStat::FailVerifyError,
        Check::San => SslStat::FailVerifySan,
        Check::Hash => SslStat::FailVerifyCertHash,
        Check::KeyUsage => SslStat::ConnectionError,
    }
}
