//! 0-RTT data, which is never taken (RFC 8446 §4.2.10). Clients that send it with another server's ticket have it passed
//! over: records that do not decrypt, up to a limit of rustls' that is BoringSSL's too.
//!
//! rustls tries such a record, charges it against the limit, and tries and charges it again with whatever comes behind it.
//! Its decrypters are wrapped, so that whoever gives it the records knows which of them it is done with.

use std::cell::Cell;
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::{
    CipherSuiteCommon, ConnectionTrafficSecrets, Error, SupportedCipherSuite, Tls13CipherSuite,
};

use super::suites::TLS13_SUITES;

thread_local! {
    static UNREADABLE: Cell<bool> = const { Cell::new(false) };
}

/// Whether a record of TLS 1.3 did not decrypt since the last call on this thread.
pub(super) fn take_unreadable() -> bool {
    UNREADABLE.take()
}

/// `TLS13_SUITES`, but that they tell by `take_unreadable`. They live as long as the process.
static TELLING: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
    let suites = TLS13_SUITES.iter().filter_map(SupportedCipherSuite::tls13);
    let telling = suites.map(|suite| {
        let common = CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        };
        let aead_alg: &'static Telling = Box::leak(Box::new(Telling(suite.aead_alg)));
        let hkdf_provider = suite.hkdf_provider;
        let suite = Tls13CipherSuite { common, hkdf_provider, aead_alg, quic: None };
        SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))
    });
    telling.collect()
});

/// The same provider, with suites of TLS 1.3 that tell.
pub(super) fn telling(provider: &CryptoProvider) -> Arc<CryptoProvider> {
    let mut provider = provider.clone();
    for suite in &mut provider.cipher_suites {
        if let Some(telling) = TELLING.iter().find(|telling| *telling == suite) {
            *suite = *telling;
        }
    }
    Arc::new(provider)
}

struct Telling(&'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for Telling {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(TellingDecrypter(self.0.decrypter(key, iv)))
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct TellingDecrypter(Box<dyn MessageDecrypter>);

impl MessageDecrypter for TellingDecrypter {
    fn decrypt<'a>(
        &mut self,
        message: InboundOpaqueMessage<'a>,
        sequence: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let result = self.0.decrypt(message, sequence);
        if result.is_err() {
            UNREADABLE.set(true);
        }
        result
    }
}
