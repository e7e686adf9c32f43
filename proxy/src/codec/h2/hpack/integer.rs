//! Integers with a prefix (RFC 7541 §5.1), at most 32 bits.

use super::HpackError;

/// The integer whose first byte has `bits` bits of it, taken off `block`.
#[inline]
pub(super) fn take(block: &mut &[u8], bits: u32) -> Result<u32, HpackError> {
    let (&first, rest) = block.split_first().ok_or(HpackError::Truncated)?;
    let mask = (1_u32 << bits) - 1;
    let value = u32::from(first) & mask;
    *block = rest;
    if value < mask { Ok(value) } else { take_rest(block, value) }
}

/// The bytes after a full prefix. Five of them reach 32 bits; zeros that only make it longer count too.
fn take_rest(block: &mut &[u8], prefix: u32) -> Result<u32, HpackError> {
    let mut value = u64::from(prefix);
    for shift in [0, 7, 14, 21, 28] {
        let (&byte, rest) = block.split_first().ok_or(HpackError::Truncated)?;
        *block = rest;
        value += u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| HpackError::IntegerOverflow);
        }
    }
    Err(HpackError::IntegerOverflow)
}

/// Writes `value` with a prefix of `bits` bits behind the bits of `first`.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let mask = (1_usize << bits) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
