//! Bytes of a client: whole and cut in two, they are the same requests or the same fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::codec::{Fault, ParseFault};
use outrigger_fuzz::{serve, server_settings};

fuzz_target!(|input: &[u8]| {
    let [choice, cut, bytes @ ..] = input else { return };
    let settings = server_settings(*choice);
    let whole = serve(&settings, &[bytes]);
    let at = usize::from(*cut) * bytes.len() / 256;
    let pieces = serve(&settings, &[&bytes[..at], &bytes[at..]]);
    // A head over its limit is refused when it is seen, which may be before or after another fault in it.
    let too_large = Some(Fault::Parse(ParseFault::HeadersTooLarge));
    if whole.fault != too_large && pieces.fault != too_large {
        assert_eq!(whole, pieces);
    }
});
