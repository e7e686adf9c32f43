//! Whatever an encoder makes of any fields a decoder gives back, and no bytes make a decoder panic.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::{Decoder, Encoder, Field, decode, encode};

#[derive(Debug, Clone)]
enum Step {
    Block(Vec<Field>),
    /// The decoder's side allows another size.
    Settings(u32),
}

/// Few enough names and values that they return, and some that do not.
fn any_field() -> impl Strategy<Value = Field> {
    let name = prop_oneof![
        8 => prop_oneof![
            Just(":path"), Just(":authority"), Just(":status"), Just(":protocol"), Just("user-agent"),
            Just("x-request-id"), Just("cookie"), Just("range"), Just("etag"), Just("x-a"), Just("x-bb"),
            Just("x-ccc"), Just("authorization"), Just("accept"), Just("date")
        ].prop_map(|name| name.as_bytes().to_vec()),
        1 => "[a-z0-9_-]{1,40}".prop_map(String::into_bytes),
    ];
    let value = prop_oneof![
        6 => "[a-d]{0,2}".prop_map(String::into_bytes),
        2 => vec(any::<u8>(), 0..60),
        1 => vec(any::<u8>(), 0..1500),
    ];
    (name, value, proptest::bool::weighted(0.05))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => vec(any_field(), 1..12).prop_map(Step::Block),
        1 => prop_oneof![Just(0), 0..200_u32, 0..5000_u32, Just(100_000)].prop_map(Step::Settings),
    ]
}

fn never_indexed(field: &Field) -> bool {
    let (name, value, sensitive) = field;
    *sensitive || name == b"authorization" || (name == b"cookie" && value.len() < 20)
}

proptest! {
    #[test]
    fn fields_come_back(limit in prop_oneof![Just(4096), 0..5000_u32, Just(70_000)], steps in vec(any_step(), 1..40)) {
        let mut encoder = Encoder::new(limit);
        let mut decoder = Decoder::new(100_000);
        for step in steps {
            match step {
                Step::Block(fields) => {
                    let block = encode(&mut encoder, &fields);
                    let mut given = decode(&mut decoder, &block).unwrap();
                    for (given, sent) in given.iter_mut().zip(&fields) {
                        assert_eq!(given.2, never_indexed(sent));
                        given.2 = sent.2;
                    }
                    assert_eq!(given, fields);
                }
                Step::Settings(max) => {
                    encoder.set_max_table(max);
                }
            }
        }
    }

    #[test]
    fn no_bytes_panic(blocks in vec(vec(any::<u8>(), 0..80), 1..20), max in 0..5000_u32) {
        let mut decoder = Decoder::new(max);
        for block in blocks {
            let _ = decode(&mut decoder, &block);
        }
    }

    #[test]
    fn no_damage_panics(
        blocks in vec(vec(any_field(), 1..8), 1..8),
        damage in vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let mut encoder = Encoder::new(4096);
        let mut decoder = Decoder::new(4096);
        for fields in blocks {
            let mut block = encode(&mut encoder, &fields);
            for (at, byte) in &damage {
                let at = at % block.len();
                block[at] = *byte;
            }
            let _ = decode(&mut decoder, &block);
        }
    }
}
