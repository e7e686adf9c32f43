//! Bytes of a client of TLS: what is said of them stays so when more come, and it is said of what has come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::listener::tls_inspector::{Inspected, inspect, protocols};

const LIMIT: usize = 1024;

fuzz_target!(|input: &[u8]| {
    let [cut, bytes @ ..] = input else { return };
    let (whole, seen) = inspect(bytes, LIMIT);
    assert!(seen <= bytes.len().min(LIMIT));
    let at = usize::from(*cut) * bytes.len() / 256;
    let early = inspect(&bytes[..at], LIMIT).0;
    assert!(early == Inspected::More || same(&early, &whole), "{early:?} became {whole:?}");
    if let Inspected::Tls(hello) = whole {
        assert!(hello.server_name.is_none_or(|name| !name.is_empty()));
        assert!(hello.alpn.is_none_or(|list| protocols(&list).all(|name| !name.is_empty())));
    }
});

/// Plain is plain: the reason may become clearer with more bytes.
fn same(a: &Inspected, b: &Inspected) -> bool {
    a == b || matches!((a, b), (Inspected::NotTls(_), Inspected::NotTls(_)))
}
