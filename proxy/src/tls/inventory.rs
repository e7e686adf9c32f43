//! The certificates in force, context by context: `/certs` and `server.days_until_first_cert_expiring`.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use super::certificate::Certificate;
use super::context::CommonTls;

/// A TLS context, of a filter chain or a cluster.
pub trait TlsContext: Send + Sync {
    fn common(&self) -> &CommonTls;
}

/// What one context shows and trusts at this moment.
#[derive(Debug, Clone, Default)]
pub struct InForce {
    /// The leaf of each certificate chain.
    pub chains: Vec<Held>,
    /// The first of the trusted certificates.
    pub ca: Option<Held>,
}

/// A certificate and the file it came from.
#[derive(Debug, Clone)]
pub struct Held {
    /// `<inline>` where it came otherwise.
    pub path: Arc<str>,
    pub certificate: Certificate,
}

/// All contexts that are in use.
#[derive(Default)]
pub struct Inventory(Mutex<Vec<Weak<dyn TlsContext>>>);

impl std::fmt::Debug for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inventory")
    }
}

impl Inventory {
    /// Lists a context for as long as somebody else holds it.
    pub fn add(&self, context: &Arc<impl TlsContext + 'static>) {
        let context: Arc<dyn TlsContext> = context.clone();
        let mut contexts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.retain(|context| context.strong_count() > 0);
        contexts.push(Arc::downgrade(&context));
    }

    /// What each context holds, the oldest first.
    pub fn in_force(&self) -> Vec<InForce> {
        let contexts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = contexts.iter().filter_map(Weak::upgrade);
        live.map(|context| in_force(context.common())).collect()
    }

    /// Whole days until the first certificate expires, 0 once it has; `None` where there is none.
    pub fn days_until_first_expires(&self, now: SystemTime) -> Option<u64> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let held = |context: InForce| context.chains.into_iter().chain(context.ca);
        let ends = self.in_force().into_iter().flat_map(held).map(|h| h.certificate.not_after);
        ends.min().map(|end| u64::try_from(end.saturating_sub(now)).unwrap_or(0) / 86_400)
    }
}

fn in_force(common: &CommonTls) -> InForce {
    let chains = common.certificates().unwrap_or_default().into_iter().filter_map(|own| {
        let certificate = own.chain.certificate()?.clone();
        Some(Held { path: own.path.clone(), certificate })
    });
    let validation = common.validation().flatten();
    let ca = validation.as_deref().and_then(|context| {
        let first = context.trusted_ca.as_deref()?.first()?;
        let certificate = Certificate::parse(first)?;
        Some(Held { path: context.ca_path.clone(), certificate })
    });
    InForce { chains: chains.collect(), ca }
}
