//! Header blocks of a peer: whatever can be decoded is the same after our encoder and another decoder, with
//! tables of any size, for as long as the connection lasts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::codec::h2::hpack::{Decoder, Encoder, Name};

/// Lower-case name, value, never indexed.
type Field = (Vec<u8>, Vec<u8>, bool);

fuzz_target!(|input: &[u8]| {
    let [table, limit, rest @ ..] = input else { return };
    let mut rest = rest;
    let mut peer = Decoder::new(u32::from(*table) * 64);
    let mut encoder = Encoder::new(u32::from(*limit) * 64);
    // Its size updates are bounded by what the encoder is told, which the encoder obeys at once.
    let mut ours = Decoder::new(u32::MAX);
    while let Some((length, more)) = rest.split_first() {
        if *length == 0 {
            let Some((size, more)) = more.split_first() else { return };
            encoder.set_max_table(u32::from(*size) * 32);
            rest = more;
            continue;
        }
        if *length == 255 {
            peer.acknowledged();
        }
        let (block, more) = more.split_at(usize::from(*length).min(more.len()));
        rest = more;
        let mut sent: Vec<Field> = Vec::new();
        let mut out = Vec::new();
        let decoded = peer.decode(block, &mut |name: Name<'_>, value: &[u8], sensitive: bool| {
            sent.push((name.text().to_ascii_lowercase(), value.to_vec(), sensitive));
            encoder.encode(&mut out, name, value, sensitive);
        });
        let mut received: Vec<Field> = Vec::new();
        let again = ours.decode(&out, &mut |name: Name<'_>, value: &[u8], sensitive: bool| {
            received.push((name.text().to_vec(), value.to_vec(), sensitive));
        });
        assert_eq!(again, Ok(()));
        assert_eq!(received.len(), sent.len());
        for (received, sent) in received.iter().zip(&sent) {
            assert_eq!((&received.0, &received.1), (&sent.0, &sent.1));
            assert!(received.2 || !sent.2, "what nobody may index stays so");
        }
        if decoded.is_err() {
            return;
        }
    }
});
