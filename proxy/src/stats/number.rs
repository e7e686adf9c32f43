//! Floating-point numbers in the forms that Envoy's printers use: `{}` of fmt, `%g`, `%.32g` and the shortest of
//! `std::to_chars`.

use std::fmt::Write;

/// fmt's `{}`: shortest digits, an exponent outside 10^-4 … 10^16; `nan`.
pub(super) fn shortest(value: f64) -> String {
    general(&format!("{value:e}"), value, -4..16)
}

/// `%g`: six significant digits.
pub(super) fn six_digits(value: f64) -> String {
    general(&format!("{value:.5e}"), value, -4..6)
}

/// `%.32g`: 32 significant digits of the exact value.
pub(super) fn exact(value: f64) -> String {
    general(&format!("{value:.31e}"), value, -4..32)
}

/// `std::to_chars`: shortest digits, and of plain and exponent form the shorter, plain when equal.
pub(super) fn to_chars(value: f64) -> String {
    let scientific = general(&format!("{value:e}"), value, 0..0);
    let plain = general(&format!("{value:e}"), value, i32::MIN..i32::MAX);
    if scientific.len() < plain.len() { scientific } else { plain }
}

/// Turns Rust's `1.5e3` into C's plain or exponent form; trailing zeros go. Plain when the exponent is in `plain`.
fn general(scientific: &str, value: f64, plain: std::ops::Range<i32>) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return if value > 0.0 { "inf".to_owned() } else { "-inf".to_owned() };
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let digits = mantissa.replace('.', "");
    let digits = match digits.trim_end_matches('0') {
        "" => "0",
        digits => digits,
    };
    let mut out = sign.to_owned();
    if plain.contains(&exponent) {
        if exponent < 0 {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
            out.push_str(digits);
        } else {
            let whole = exponent as usize + 1;
            if digits.len() <= whole {
                out.push_str(digits);
                out.extend(std::iter::repeat_n('0', whole - digits.len()));
            } else {
                out.push_str(&digits[..whole]);
                out.push('.');
                out.push_str(&digits[whole..]);
            }
        }
    } else {
        out.push_str(&digits[..1]);
        if digits.len() > 1 {
            out.push('.');
            out.push_str(&digits[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "e{sign}{:02}", exponent.abs());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_c() {
        assert_eq!(shortest(0.0), "0");
        assert_eq!(shortest(1.05), "1.05");
        assert_eq!(shortest(1e16), "1e+16");
        assert_eq!(shortest(0.000_01), "1e-05");
        assert_eq!(shortest(f64::NAN), "nan");
        assert_eq!(six_digits(1_800_000.0), "1.8e+06");
        assert_eq!(six_digits(600_000.0), "600000");
        assert_eq!(six_digits(0.5), "0.5");
        assert_eq!(exact(4.144_018_583_042_973), "4.1440185830429729918478187755682");
        assert_eq!(exact(3_600_000.0), "3600000");
        assert_eq!(exact(5.238_095_238_095_238), "5.238095238095238137532305700006");
        assert_eq!(to_chars(300_000.0), "3e+05");
        assert_eq!(to_chars(1_800_000.0), "1800000");
        assert_eq!(to_chars(60_000.0), "60000");
        assert_eq!(to_chars(2.05), "2.05");
    }
}
