//! What a verifier found, on its way past rustls, which carries no more than yes or no.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::{Error, SignatureScheme};

use super::info::CertificateChain;
use super::sessions;

/// Which check refused a certificate: what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Chain,
    San,
    Hash,
    /// The handshake's use of the key: no verdict about the certificate as such.
    KeyUsage,
}

/// A certificate that was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub check: Check,
    /// As Envoy words it.
    pub detail: String,
    pub(super) error: Error,
    /// What was refused.
    pub(super) peer: Option<Arc<CertificateChain>>,
}

thread_local! {
    pub(super) static REFUSAL: RefCell<Option<Refusal>> = const { RefCell::new(None) };
    pub(super) static VALIDATED: Cell<bool> = const { Cell::new(false) };
    pub(super) static OVERLOOKED: Cell<Option<Check>> = const { Cell::new(None) };
    pub(super) static SIGNATURE: Cell<Option<SignatureScheme>> = const { Cell::new(None) };
}

/// What the verifiers of this thread have seen in one turn of a handshake: rustls does not hand it through.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) validated: bool,
    /// The same of the session that was offered, where the handshake is one that resumes it.
    pub(super) admitted: Option<bool>,
    /// What was wrong with a certificate that is let in all the same (`ACCEPT_UNTRUSTED`).
    pub(super) overlooked: Option<Check>,
    pub(super) refusal: Option<Refusal>,
    /// How the peer signed.
    pub(super) signature: Option<SignatureScheme>,
    /// Which certificate we presented, of several.
    pub(super) picked: Option<usize>,
}

impl Verdict {
    /// Takes what was seen since the last call.
    pub(super) fn take() -> Self {
        Self {
            validated: VALIDATED.take(),
            overlooked: OVERLOOKED.take(),
            refusal: REFUSAL.take(),
            signature: SIGNATURE.take(),
            picked: None,
            admitted: sessions::take_admitted(),
        }
    }
}
