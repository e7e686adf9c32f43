//! HPACK as a whole.

use super::{Decoder, Encoder, HpackError, Name, Pseudo, Sink};

mod appendix;
mod limits;
mod properties;

/// Name, value, sensitive.
type Field = (Vec<u8>, Vec<u8>, bool);

#[derive(Debug, Default)]
struct Fields(Vec<Field>);

impl Sink for Fields {
    fn field(&mut self, name: Name<'_>, value: &[u8], sensitive: bool) {
        // What has a number or a variant is given out as such.
        assert_eq!(Name::parse(name.text()), name);
        self.0.push((name.text().to_vec(), value.to_vec(), sensitive));
    }
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, HpackError> {
    let mut fields = Fields::default();
    decoder.decode(block, &mut fields).map(|()| fields.0)
}

fn encode(encoder: &mut Encoder, fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value, sensitive) in fields {
        encoder.encode(&mut out, Name::parse(name), value, *sensitive);
    }
    out
}

fn field(name: &str, value: &str) -> Field {
    (name.into(), value.into(), false)
}

/// Of digits, white space between them.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn pseudo_headers_have_their_codes() {
    for name in [
        Pseudo::Authority,
        Pseudo::Method,
        Pseudo::Path,
        Pseudo::Protocol,
        Pseudo::Scheme,
        Pseudo::Status,
    ] {
        let name = Name::Pseudo(name);
        assert_eq!(Name::parse(name.text()), name);
        assert_eq!(Name::from_code(name.code(), b""), name);
    }
}
