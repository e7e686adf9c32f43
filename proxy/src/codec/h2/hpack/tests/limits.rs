//! What is refused, sizes of tables, and what an encoder puts where.

use super::{Decoder, Encoder, decode, encode, field, hex};
use crate::codec::h2::hpack::{HpackError, Name};

fn refused(block: &[u8]) -> HpackError {
    decode(&mut Decoder::new(4096), block).unwrap_err()
}

#[test]
fn malformed_blocks_say_what_is_wrong() {
    assert_eq!(refused(&[0x80]), HpackError::Index(0));
    assert_eq!(refused(&[0x80 | 62]), HpackError::Index(62));
    assert_eq!(refused(&[0x40 | 62, 0]), HpackError::Index(62));
    assert_eq!(refused(&[0xff]), HpackError::Truncated);
    assert_eq!(refused(&[0xff, 0x80]), HpackError::Truncated);
    assert_eq!(refused(&[0xff, 0xff, 0xff, 0xff, 0xff, 0x10]), HpackError::IntegerOverflow);
    assert_eq!(refused(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0]), HpackError::IntegerOverflow);
    assert_eq!(refused(&[0x40]), HpackError::Truncated);
    assert_eq!(refused(&[0x40, 1, b'a']), HpackError::Truncated);
    assert_eq!(refused(&[0x40, 2, b'a']), HpackError::Truncated);
    assert_eq!(refused(&[0x04, 0x7f, 0xff, 0xff, 0xff, 0x7f, b'/']), HpackError::Truncated);
    assert_eq!(refused(&[0x04, 0x81, 0]), HpackError::Huffman);
    assert_eq!(refused(&[0x82, 0x20]), HpackError::SizeUpdateMisplaced);
    assert_eq!(refused(&[0x20, 0x20, 0x20]), HpackError::SizeUpdateMisplaced);
    assert_eq!(refused(&hex("3fe2 1f")), HpackError::SizeUpdateTooLarge(4097));
    // Zeros that make an integer longer than it has to be are allowed (RFC 7541 §5.1).
    let block = [0xff, 0x80, 0x80, 0x80, 0x80, 0];
    assert_eq!(refused(&block), HpackError::Index(127));
}

#[test]
fn names_are_known_only_in_lower_case() {
    let block = b"\x00\x04Host\x01a\x00\x05:path\x01/\x00\x04:foo\x01b\x00\x00\x00";
    let mut names = Vec::new();
    let mut sink = |name: Name<'_>, _: &[u8], _: bool| names.push(format!("{name:?}"));
    Decoder::new(0).decode(block, &mut sink).unwrap();
    assert_eq!(
        names,
        [
            format!("{:?}", Name::Other(b"Host")),
            "Pseudo(Path)".to_owned(),
            format!("{:?}", Name::Other(b":foo")),
            format!("{:?}", Name::Other(b"")),
        ]
    );
}

#[test]
fn a_smaller_setting_holds_from_its_acknowledgement_on() {
    let mut decoder = Decoder::new(100);
    assert!(decode(&mut decoder, &[0x82]).is_ok());
    decoder.acknowledged();
    assert_eq!(decode(&mut decoder, &[0x82]), Err(HpackError::SizeUpdateMissing));
    assert_eq!(decode(&mut decoder, &[0x3f, 70]), Err(HpackError::SizeUpdateTooLarge(101)));
    assert!(decode(&mut decoder, &[0x3f, 69, 0x82]).is_ok());
    let mut decoder = Decoder::new(10_000);
    assert!(decode(&mut decoder, &hex("3ff1 4d 82")).is_ok());
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, b"\x3f\x31\x40\x01a\x01b").unwrap();
    assert_eq!(decode(&mut decoder, &[0x80 | 62]).unwrap(), [field("a", "b")]);
    let long = "x".repeat(48);
    let mut block = b"\x40\x01a\x30".to_vec();
    block.extend_from_slice(long.as_bytes());
    assert_eq!(decode(&mut decoder, &block).unwrap(), [field("a", &long)]);
    assert_eq!(decode(&mut decoder, &[0x80 | 62]), Err(HpackError::Index(62)));
}

#[test]
fn an_entry_may_take_its_name_from_the_one_that_goes_for_it() {
    let mut decoder = Decoder::new(4096);
    // Room for one entry of this size only.
    decode(&mut decoder, b"\x3f\x11\x40\x04name\x0512345").unwrap();
    assert_eq!(decode(&mut decoder, b"\x7e\x0567890").unwrap(), [field("name", "67890")]);
    assert_eq!(decode(&mut decoder, b"\xbe").unwrap(), [field("name", "67890")]);
    assert_eq!(decode(&mut decoder, b"\xbf"), Err(HpackError::Index(63)));
}

#[test]
fn a_field_that_returns_is_an_index() {
    let mut encoder = Encoder::new(4096);
    let fields = [
        field(":method", "GET"),
        field("x-forwarded-proto", "https"),
        field("custom", "value"),
        field("user-agent", "curl"),
    ];
    assert!(encode(&mut encoder, &fields).len() > 20);
    assert_eq!(encode(&mut encoder, &fields), [0x82, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
    let mut out = Vec::new();
    encoder.encode(&mut out, Name::Other(b"Custom"), b"value", false);
    encoder.encode(&mut out, Name::Other(b"X-Forwarded-Proto"), b"https", false);
    assert_eq!(out, [0x80 | 63, 0x80 | 64]);
}

#[test]
fn values_that_never_return_do_not_push_others_out() {
    let mut encoder = Encoder::new(4096);
    encode(&mut encoder, &[field("stays", "here")]);
    for i in 0..300 {
        let id = format!("{i:036}");
        let block = encode(
            &mut encoder,
            &[field("x-request-id", &id), field("etag", &id), field("cookie", &id)],
        );
        // The name of the first is an index, after the first time.
        assert!(i == 0 || block[0] & 0xf0 == 0, "{block:x?}");
    }
    assert_eq!(encode(&mut encoder, &[field("stays", "here")]), [0x80 | 63]);
    // A name that nothing is known of is tried now and then.
    let tried = (0..80)
        .filter(|i| encode(&mut encoder, &[field("x-serial", &i.to_string())])[0] & 0x40 != 0);
    assert_eq!(tried.count(), 10);
    // Once a value has returned, the next new one is tried at once.
    let at = |encoder: &mut Encoder, value| encode(encoder, &[field("x-serial", value)])[0];
    assert_eq!(at(&mut encoder, "72"), 0x80 | 62);
    assert_eq!(at(&mut encoder, "A"), 0x40 | 62);
    assert_eq!(at(&mut encoder, "A"), 0x80 | 62);
}

#[test]
fn secrets_are_never_indexed() {
    let mut encoder = Encoder::new(4096);
    for _ in 0..2 {
        for name in ["authorization", "proxy-authorization", "cookie", "set-cookie"] {
            let block = encode(&mut encoder, &[field(name, "secret")]);
            assert_eq!(block[0] & 0xf0, 0x10);
            assert!(decode(&mut Decoder::new(4096), &block).unwrap()[0].2);
        }
        let block = encode(&mut encoder, &[(b"custom".to_vec(), b"secret".to_vec(), true)]);
        assert_eq!(block[0], 0x10);
        // Even where the static table has the whole field.
        let block = encode(&mut encoder, &[(b":method".to_vec(), b"GET".to_vec(), true)]);
        assert_eq!(block[0], 0x12);
    }
}

#[test]
fn a_block_begins_with_what_the_peer_has_changed() {
    let get = [field(":method", "GET")];
    let mut encoder = Encoder::new(4096);
    assert_eq!(encode(&mut encoder, &get), [0x82]);
    encoder.set_max_table(65_536);
    assert_eq!(encode(&mut encoder, &get), [0x82]);
    encoder.set_max_table(10);
    encoder.set_max_table(0);
    encoder.set_max_table(30);
    assert_eq!(encode(&mut encoder, &get), [0x20, 0x3e, 0x82]);
    assert_eq!(encode(&mut encoder, &get), [0x82]);
    // No room for anything.
    for _ in 0..2 {
        assert_eq!(encode(&mut encoder, &[field("a", "b")]), [0, 1, b'a', 1, b'b']);
    }
    encoder.set_max_table(u32::MAX);
    assert_eq!(encode(&mut encoder, &get), hex("3fe1 1f 82"));
    // Of our own accord.
    assert_eq!(encode(&mut Encoder::new(0), &get), [0x20, 0x82]);
}
