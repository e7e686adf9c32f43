//! The examples of RFC 7541 appendix C.

use super::{Decoder, Field, decode, field, hex};
use crate::codec::h2::hpack::{HpackError, integer};

#[test]
fn integers_of_c1() {
    for (bits, first, value, bytes) in
        [(5, 0, 10, "0a"), (5, 0, 1337, "1f9a0a"), (8, 0, 42, "2a"), (5, 0xa0, 1337, "bf9a0a")]
    {
        let mut out = Vec::new();
        integer::put(&mut out, first, bits, value);
        assert_eq!(out, hex(bytes));
        let mut rest = &out[..];
        assert_eq!(integer::take(&mut rest, bits), Ok(value as u32));
        assert!(rest.is_empty());
    }
}

#[test]
fn fields_of_c2() {
    let one = |block: &str| decode(&mut Decoder::new(4096), &hex(block)).unwrap();
    assert_eq!(
        one("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572"),
        [field("custom-key", "custom-header")]
    );
    assert_eq!(one("040c 2f73 616d 706c 652f 7061 7468"), [field(":path", "/sample/path")]);
    assert_eq!(
        one("1008 7061 7373 776f 7264 0673 6563 7265 74"),
        [(b"password".to_vec(), b"secret".to_vec(), true)]
    );
    assert_eq!(one("82"), [field(":method", "GET")]);
}

fn requests(blocks: [&str; 3]) {
    let mut decoder = Decoder::new(4096);
    let begin = |path, scheme| -> Vec<Field> {
        vec![
            field(":method", "GET"),
            field(":scheme", scheme),
            field(":path", path),
            field(":authority", "www.example.com"),
        ]
    };
    let mut expected = [begin("/", "http"), begin("/", "http"), begin("/index.html", "https")];
    expected[1].push(field("cache-control", "no-cache"));
    expected[2].push(field("custom-key", "custom-value"));
    for (block, expected) in blocks.into_iter().zip(expected) {
        assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), expected);
    }
    // The table has the three fields that were put into it, newest first, and no more.
    assert_eq!(
        decode(&mut decoder, &[0x80 | 62, 0x80 | 63, 0x80 | 64]).unwrap(),
        [
            field("custom-key", "custom-value"),
            field("cache-control", "no-cache"),
            field(":authority", "www.example.com")
        ]
    );
    assert_eq!(decode(&mut decoder, &[0x80 | 65]), Err(HpackError::Index(65)));
}

#[test]
fn requests_of_c3() {
    requests([
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]);
}

#[test]
fn requests_of_c4_in_the_code_of_huffman() {
    requests([
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]);
}

/// With a table of 256 bytes, so that entries go.
fn responses(blocks: [&str; 3]) {
    let mut decoder = Decoder::new(256);
    // The examples do not have the update that the setting demands.
    decode(&mut decoder, &hex("3fe1 01")).unwrap();
    decoder.acknowledged();
    let (date, later) = ("Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT");
    let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let begin = |status, date| -> Vec<Field> {
        vec![
            field(":status", status),
            field("cache-control", "private"),
            field("date", date),
            field("location", "https://www.example.com"),
        ]
    };
    let mut expected = [begin("302", date), begin("307", date), begin("200", later)];
    expected[2].push(field("content-encoding", "gzip"));
    expected[2].push(field("set-cookie", cookie));
    for (block, expected) in blocks.into_iter().zip(expected) {
        assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), expected);
    }
    assert_eq!(
        decode(&mut decoder, &[0x80 | 62, 0x80 | 63, 0x80 | 64]).unwrap(),
        [field("set-cookie", cookie), field("content-encoding", "gzip"), field("date", later)]
    );
    assert_eq!(decode(&mut decoder, &[0x80 | 65]), Err(HpackError::Index(65)));
}

#[test]
fn responses_of_c5() {
    responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
         2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
         6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
         54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
         5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
         3d31",
    ]);
}

#[test]
fn responses_of_c6_in_the_code_of_huffman() {
    responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
         2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
         77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
         9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]);
}
