//! Bytes of a client: whole and cut in two, they are the same requests or the same fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{assert_same, serve, server_settings};

fuzz_target!(|input: &[u8]| {
    let [choice, cut, bytes @ ..] = input else { return };
    let settings = server_settings(*choice);
    let whole = serve(&settings, &[bytes]);
    let at = usize::from(*cut) * bytes.len() / 256;
    let pieces = serve(&settings, &[&bytes[..at], &bytes[at..]]);
    assert_same(&whole, &pieces);
});
