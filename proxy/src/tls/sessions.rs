//! Sessions that clients of a downstream context come back with: taken only while what admitted them would admit them
//! today.
//!
//! Tickets and kept sessions end with the context that gave them, so that nothing but time can speak against one:
//! certificates, trusted CAs and revocation lists end. rustls asks here before its first flight: a session that is not
//! given becomes a full handshake, in which the client says anew who it is. Envoy resumes without a look.

use std::cell::Cell;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::{ProducesTickets, StoresServerSessions};

use super::verdict::OVERLOOKED;
use super::verify::PeerVerifier;

thread_local! {
    static ADMITTED: Cell<Option<bool>> = const { Cell::new(None) };
    static JUDGED: Cell<usize> = const { Cell::new(0) };
}

/// Sessions that are judged of all that a ClientHello offers: to judge one is to verify a chain of certificates.
const MAX_JUDGED: usize = 2;

/// Whether the client's chain was found good in the session that the last step of a handshake on this thread took up,
/// if it looked at one.
pub(super) fn take_admitted() -> Option<bool> {
    JUDGED.set(0);
    ADMITTED.take()
}

/// Tickets whose client would be admitted today.
#[derive(Debug)]
pub(super) struct JudgedTickets {
    pub(super) tickets: Arc<dyn ProducesTickets>,
    pub(super) verifier: Arc<PeerVerifier>,
}

impl ProducesTickets for JudgedTickets {
    fn enabled(&self) -> bool {
        self.tickets.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.tickets.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.tickets.decrypt(cipher).filter(|session| admits(&self.verifier, session))
    }
}

/// Kept sessions whose client would be admitted today; others are dropped.
#[derive(Debug)]
pub(super) struct JudgedSessions {
    pub(super) sessions: Arc<dyn StoresServerSessions>,
    pub(super) verifier: Arc<PeerVerifier>,
}

impl StoresServerSessions for JudgedSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.sessions.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let session = self.sessions.get(key)?;
        if admits(&self.verifier, &session) {
            return Some(session);
        }
        self.sessions.take(key);
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.sessions.take(key).filter(|session| admits(&self.verifier, session))
    }

    fn can_cache(&self) -> bool {
        self.sessions.can_cache()
    }
}

/// One that cannot be read is no session.
fn admits(verifier: &PeerVerifier, session: &[u8]) -> bool {
    let Some(chain) = client_chain(session) else { return false };
    if JUDGED.replace(JUDGED.get() + 1) >= MAX_JUDGED || (chain.is_empty() && verifier.mandatory) {
        return false;
    }
    let judged = verifier.judge_resumed(&chain, None);
    // What was let in untrusted was counted with its first handshake.
    OVERLOOKED.set(None);
    ADMITTED.set(judged.as_ref().ok().copied());
    judged.is_ok()
}

/// The client's certificates, the leaf first, in a session as rustls writes it down (0.23, `ServerSessionValue`). It
/// has no words for asking: what does not fit to the last byte is not taken.
fn client_chain(session: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    let mut rest = Reader(session);
    if rest.is_there()? {
        // The server's name.
        rest.prefixed(1)?;
    }
    // Version, cipher suite, master secret, and whether it is the extended one.
    rest.take(2 + 2)?;
    rest.prefixed(1)?;
    rest.is_there()?;
    let mut chain = Vec::new();
    if rest.is_there()? {
        let mut certificates = Reader(rest.prefixed(3)?);
        while !certificates.0.is_empty() {
            chain.push(CertificateDer::from(certificates.prefixed(3)?));
        }
    }
    if rest.is_there()? {
        // The application protocol.
        rest.prefixed(1)?;
    }
    // The application's data, when it was made, and what its age is hidden by.
    rest.prefixed(2)?;
    rest.take(8 + 4)?;
    rest.0.is_empty().then_some(chain)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// What stands behind its length of `width` bytes.
    fn prefixed(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.take(width)?.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        self.take(length)
    }

    fn is_there(&mut self) -> Option<bool> {
        match self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_to_its_last_byte() {
        let mut session = vec![1, 2, b'a', b'b', 3, 4, 0x13, 1, 2, 7, 7, 1];
        let without = session.len();
        session.extend([1, 0, 0, 9, 0, 0, 2, 8, 8, 0, 0, 1, 9, 1, 2, b'h', b'2', 0, 0]);
        session.extend([0; 12]);
        let chain = client_chain(&session).unwrap();
        assert_eq!(chain, [CertificateDer::from(&[8, 8][..]), CertificateDer::from(&[9][..])]);
        for end in 0..session.len() {
            assert!(client_chain(&session[..end]).is_none());
        }
        session.push(0);
        assert!(client_chain(&session).is_none());
        session.truncate(without);
        session.extend([0, 0, 0, 0]);
        session.extend([0; 12]);
        assert!(client_chain(&session).unwrap().is_empty());
    }
}
