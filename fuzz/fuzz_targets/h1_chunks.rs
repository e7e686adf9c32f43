//! A chunked body, whole and a byte at a time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{assert_same, serve, server_settings};

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

fuzz_target!(|bytes: &[u8]| {
    let settings = server_settings(2);
    let message = [HEAD, bytes].concat();
    let whole = serve(&settings, &[&message]);
    let mut pieces = vec![HEAD];
    pieces.extend(bytes.chunks(1));
    let pieces = serve(&settings, &pieces);
    assert_same(&whole, &pieces);
});
