//! Scalars: what YAML's and JSON's plain text means, and how protobuf writes it.
//!
//! YAML's rules are those of yaml-cpp, which Envoy reads with (booleans as in YAML 1.1, octal and hexadecimal
//! integers); the conversions are those of protobuf's JSON mapping.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::schema::Kind;

/// What a plain scalar says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plain {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    /// In YAML a word without quotes.
    Word,
}

pub fn classify(text: &str, yaml: bool) -> Plain {
    match text {
        "null" => return Plain::Null,
        "true" => return Plain::Bool(true),
        "false" => return Plain::Bool(false),
        _ => (),
    }
    if yaml {
        match text {
            "" | "~" | "Null" | "NULL" => return Plain::Null,
            "y" | "Y" | "yes" | "Yes" | "YES" | "True" | "TRUE" | "on" | "On" | "ON" => {
                return Plain::Bool(true);
            }
            "n" | "N" | "no" | "No" | "NO" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
                return Plain::Bool(false);
            }
            _ => (),
        }
    }
    let first = text.as_bytes().first().copied().unwrap_or(0);
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return Plain::Word;
    }
    if let Some(integer) = parse_integer(text, yaml) {
        return Plain::Integer(integer);
    }
    if yaml {
        // Envoy leaves fractions in YAML to whoever reads the string: in a Struct they stay one.
        return Plain::Word;
    }
    // Rust also reads "inf" and "nan", which a number here never is.
    let numeric =
        text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    match text.parse::<f64>() {
        Ok(float) if numeric => Plain::Float(float),
        _ => Plain::Word,
    }
}

fn parse_integer(text: &str, yaml: bool) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let radix = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] if yaml => 16,
        [b'0', _, ..] if yaml => 8,
        _ => 10,
    };
    let digits = if radix == 16 { &digits[2..] } else { digits };
    if !digits.bytes().next()?.is_ascii_hexdigit() {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

/// A value on its way to the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    /// From a string, as JSON writes 64-bit numbers.
    pub fn from_text(text: &str) -> Option<Self> {
        match classify(text, false) {
            Plain::Integer(integer) => Some(Self::Integer(integer)),
            Plain::Float(float) => Some(Self::Float(float)),
            _ => match text {
                "NaN" => Some(Self::Float(f64::NAN)),
                "Infinity" => Some(Self::Float(f64::INFINITY)),
                "-Infinity" => Some(Self::Float(f64::NEG_INFINITY)),
                _ => None,
            },
        }
    }

    pub fn to_f64(self) -> f64 {
        match self {
            Self::Integer(integer) => integer as f64,
            Self::Float(float) => float,
        }
    }

    /// `1.0` and `1e3` are integers too.
    fn to_integer(self) -> Option<i128> {
        match self {
            Self::Integer(integer) => Some(integer),
            Self::Float(float) if float.fract() == 0.0 && float.abs() < 2f64.powi(64) => {
                Some(float as i128)
            }
            Self::Float(_) => None,
        }
    }

    /// Writes the value, without a tag; whether it is the default.
    ///
    /// # Errors
    /// The number does not fit the kind.
    pub fn write(self, kind: Kind, out: &mut Vec<u8>) -> Result<bool, String> {
        use prost::encoding::encode_varint;
        let integer = |range: std::ops::RangeInclusive<i128>, name: &str| match self.to_integer() {
            None => Err(format!("an integer is expected, not {}", self.to_f64())),
            Some(integer) if range.contains(&integer) => Ok(integer),
            Some(integer) => Err(format!("{integer} is out of range for {name}")),
        };
        let int32 =
            || integer(i32::MIN.into()..=i32::MAX.into(), "int32").map(|value| value as i32);
        let int64 =
            || integer(i64::MIN.into()..=i64::MAX.into(), "int64").map(|value| value as i64);
        let uint32 = || integer(0..=u32::MAX.into(), "uint32").map(|value| value as u32);
        let uint64 = || integer(0..=u64::MAX.into(), "uint64").map(|value| value as u64);
        Ok(match kind {
            Kind::Double => {
                out.extend(self.to_f64().to_le_bytes());
                self.to_f64().to_bits() == 0
            }
            Kind::Float => {
                out.extend((self.to_f64() as f32).to_le_bytes());
                self.to_f64().to_bits() == 0
            }
            Kind::Int64 => {
                encode_varint(int64()?.cast_unsigned(), out);
                int64()? == 0
            }
            Kind::Uint64 => {
                encode_varint(uint64()?, out);
                uint64()? == 0
            }
            Kind::Int32 | Kind::Enum(_) => {
                encode_varint(i64::from(int32()?).cast_unsigned(), out);
                int32()? == 0
            }
            Kind::Uint32 => {
                encode_varint(uint32()?.into(), out);
                uint32()? == 0
            }
            Kind::Fixed64 => {
                out.extend(uint64()?.to_le_bytes());
                uint64()? == 0
            }
            Kind::Fixed32 => {
                out.extend(uint32()?.to_le_bytes());
                uint32()? == 0
            }
            Kind::Sfixed32 => {
                out.extend(int32()?.to_le_bytes());
                int32()? == 0
            }
            Kind::Sfixed64 => {
                out.extend(int64()?.to_le_bytes());
                int64()? == 0
            }
            Kind::Sint32 => {
                let value = int32()?;
                encode_varint(((value << 1) ^ (value >> 31)).cast_unsigned().into(), out);
                value == 0
            }
            Kind::Sint64 => {
                let value = int64()?;
                encode_varint(((value << 1) ^ (value >> 63)).cast_unsigned(), out);
                value == 0
            }
            Kind::Bool | Kind::String | Kind::Bytes | Kind::Message(_) => {
                return Err("not a number".to_owned());
            }
        })
    }
}

/// A boolean in quotes, in any of the words that protobuf's reader takes.
pub fn parse_bool(text: &str) -> Option<bool> {
    let is_one_of =
        |words: [&str; 5]| words.into_iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["true", "t", "yes", "y", "1"]) {
        return Some(true);
    }
    is_one_of(["false", "f", "no", "n", "0"]).then_some(false)
}

/// Standard or URL-safe, padded or not.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if text.bytes().any(|byte| matches!(byte, b'-' | b'_')) {
        &alphabet::URL_SAFE
    } else {
        &alphabet::STANDARD
    };
    GeneralPurpose::new(alphabet, config)
        .decode(text)
        .map_err(|error| format!("base64 is expected: {error}"))
}

pub fn encode_base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// `1.5s` as seconds and nanoseconds.
pub fn parse_duration(text: &str) -> Result<(i64, i32), String> {
    let wrong = || format!("a duration like 1.5s is expected, not {text:?}");
    let digits = text.strip_suffix('s').ok_or_else(wrong)?;
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, digits),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let decimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || !decimal(whole)
        || !decimal(fraction)
        || fraction.len() > 9
        || digits.ends_with('.')
    {
        return Err(wrong());
    }
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    if seconds > 315_576_000_000 {
        return Err(format!("{text} is out of range for a duration"));
    }
    let nanos: i32 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    Ok(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// With 0, 3, 6 or 9 digits after the point, as protobuf prints it.
pub fn write_duration(out: &mut String, seconds: i64, nanos: i32) {
    use std::fmt::Write;
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let _ = write!(out, "{sign}{}", seconds.unsigned_abs());
    write_fraction(out, nanos.unsigned_abs());
    out.push('s');
}

fn write_fraction(out: &mut String, nanos: u32) {
    use std::fmt::Write;
    let _ = match nanos {
        0 => Ok(()),
        _ if nanos.is_multiple_of(1_000_000) => write!(out, ".{:03}", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => write!(out, ".{:06}", nanos / 1_000),
        _ => write!(out, ".{nanos:09}"),
    };
}

/// RFC 3339 as seconds and nanoseconds since 1970.
pub fn parse_timestamp(text: &str) -> Result<(i64, i32), String> {
    let timestamp: jiff::Timestamp = text
        .parse()
        .map_err(|_| format!("a time like 2026-01-31T12:00:00Z is expected, not {text:?}"))?;
    let nanos = timestamp.as_nanosecond();
    Ok((nanos.div_euclid(1_000_000_000) as i64, nanos.rem_euclid(1_000_000_000) as i32))
}

pub fn write_timestamp(out: &mut String, seconds: i64, nanos: i32) {
    use std::fmt::Write;
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let _ = write!(out, "{}", time.strftime("%Y-%m-%dT%H:%M:%S"));
    write_fraction(out, nanos.unsigned_abs());
    out.push('Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_yaml_cpp_makes_of_them() {
        assert_eq!(classify("~", true), Plain::Null);
        assert_eq!(classify("On", true), Plain::Bool(true));
        assert_eq!(classify("oN", true), Plain::Word);
        assert_eq!(classify("0x10", true), Plain::Integer(16));
        assert_eq!(classify("010", true), Plain::Integer(8));
        assert_eq!(classify("-5", true), Plain::Integer(-5));
        assert_eq!(classify("0", true), Plain::Integer(0));
        assert_eq!(classify("1.5", true), Plain::Word);
        assert_eq!(classify("1s", true), Plain::Word);
        assert_eq!(classify("127.0.0.1", true), Plain::Word);
        assert_eq!(classify("-", true), Plain::Word);
        assert_eq!(classify("--5", true), Plain::Word);
        assert_eq!(classify("1e3", false), Plain::Float(1000.0));
    }

    #[test]
    fn durations_go_both_ways() {
        for (text, seconds, nanos) in [
            ("0.250s", 0, 250_000_000),
            ("1s", 1, 0),
            ("-1.000001s", -1, -1000),
            ("0.000000001s", 0, 1),
        ] {
            assert_eq!(parse_duration(text), Ok((seconds, nanos)));
            let mut out = String::new();
            write_duration(&mut out, seconds, nanos);
            assert_eq!(out, text);
        }
        for wrong in ["1", "s", "1.s", ".5s", "1ms", "1.0000000001s", "+1s", "400000000000s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_go_both_ways() {
        let (seconds, nanos) = parse_timestamp("2026-01-31T12:00:00.5Z").unwrap();
        let mut out = String::new();
        write_timestamp(&mut out, seconds, nanos);
        assert_eq!(out, "2026-01-31T12:00:00.500Z");
    }

    #[test]
    fn base64_is_read_in_all_forms() {
        for text in ["aGk_", "aGk/", "aGk"] {
            assert!(decode_base64(text).is_ok(), "{text}");
        }
        assert!(decode_base64("a b").is_err());
    }

    #[test]
    fn ranges_are_kept() {
        let mut out = Vec::new();
        assert!(Number::Integer(1 << 32).write(Kind::Uint32, &mut out).is_err());
        assert!(Number::Integer(-1).write(Kind::Uint64, &mut out).is_err());
        assert!(Number::Float(1.5).write(Kind::Int32, &mut out).is_err());
        assert_eq!(Number::Float(2.0).write(Kind::Int32, &mut out), Ok(false));
        assert_eq!(out, [2]);
    }
}
