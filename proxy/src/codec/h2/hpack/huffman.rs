//! The Huffman code of RFC 7541 appendix B.
//!
//! The code is canonical: of the codes of one length the order is that of the symbols, so that the lengths alone
//! say everything and the compiler makes all tables from them. Decoding looks at eight bits at a time, which is a
//! whole code for whatever a usual head has; longer codes are found by comparing with the last one of each length.

use super::HpackError;

/// Bits of the code of each byte, and of the end of a string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
    30,
];

const LONGEST: usize = 30;
const END: u16 = 256;

/// All codes of one length.
#[derive(Clone, Copy)]
struct Class {
    /// The first of them.
    first: u32,
    /// Where its symbol stands in `SYMBOLS`.
    at: u32,
    /// One beyond the last of them, followed by zeros up to 32 bits. Rises with the length.
    beyond: u64,
}

/// Symbols by their codes.
static SYMBOLS: [u16; 257] = {
    let mut symbols = [0; 257];
    let mut n = 0;
    let mut length = 0;
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                symbols[n] = symbol as u16;
                n += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
};

/// By length.
static CLASSES: [Class; LONGEST + 1] = {
    let mut classes = [Class { first: 0, at: 0, beyond: 0 }; LONGEST + 1];
    let (mut code, mut at) = (0_u64, 0);
    let mut length = 1;
    while length <= LONGEST {
        code <<= 1;
        let first = code;
        let begin = at;
        while at < 257 && LENGTHS[SYMBOLS[at] as usize] as usize == length {
            code += 1;
            at += 1;
        }
        let beyond = code << (32 - length);
        classes[length] = Class { first: first as u32, at: begin as u32, beyond };
        length += 1;
    }
    classes
};

/// The code of each byte, in the low bits.
static CODES: [u32; 256] = {
    let mut codes = [0; 256];
    let mut at = 0;
    while at < 257 {
        let symbol = SYMBOLS[at] as usize;
        if symbol < 256 {
            let class = CLASSES[LENGTHS[symbol] as usize];
            codes[symbol] = class.first + (at as u32 - class.at);
        }
        at += 1;
    }
    codes
};

/// By the next eight bits: the symbol and the length of a code that is no longer, or length 0.
static SHORT: [(u8, u8); 256] = {
    let mut short = [(0, 0); 256];
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol] as usize;
        if length <= 8 {
            let from = (CODES[symbol] as usize) << (8 - length);
            let mut i = 0;
            while i < 1 << (8 - length) {
                short[from + i] = (symbol as u8, length as u8);
                i += 1;
            }
        }
        symbol += 1;
    }
    short
};

/// Bytes that `text` has in this code.
#[inline]
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|b| usize::from(LENGTHS[usize::from(*b)])).sum();
    bits.div_ceil(8)
}

pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    // The lower `waiting` bits are still to be written, always less than 32.
    let (mut bits, mut waiting) = (0_u64, 0_u32);
    for b in text {
        let length = u32::from(LENGTHS[usize::from(*b)]);
        bits = bits << length | u64::from(CODES[usize::from(*b)]);
        waiting += length;
        if waiting >= 32 {
            waiting -= 32;
            out.extend_from_slice(&((bits >> waiting) as u32).to_be_bytes());
        }
    }
    // The end's code begins with as many ones as can be needed.
    let pad = waiting.wrapping_neg() % 8;
    bits = bits << pad | ((1 << pad) - 1);
    waiting += pad;
    let last = ((bits << (32 - waiting)) as u32).to_be_bytes();
    out.extend_from_slice(&last[..(waiting / 8) as usize]);
}

/// Appends the text of `code` to `out`: at most eight fifths of its length.
pub(super) fn decode(mut code: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    out.reserve(code.len() * 8 / 5 + 1);
    // The upper `held` bits are to be decoded; those below may already have some of what follows in `code`.
    let (mut bits, mut held) = (0_u64, 0_u32);
    loop {
        if let Some(next) = code.first_chunk::<8>() {
            bits |= u64::from_be_bytes(*next) >> held;
            let taken = (63 - held) / 8;
            code = &code[taken as usize..];
            held += taken * 8;
        } else {
            while held <= 56
                && let Some((next, rest)) = code.split_first()
            {
                bits |= u64::from(*next) << (56 - held);
                held += 8;
                code = rest;
            }
            if held < LONGEST as u32 {
                return decode_last(bits, held, out);
            }
        }
        while held >= LONGEST as u32 {
            let (symbol, length) = next_symbol(bits)?;
            out.push(symbol);
            bits <<= length;
            held -= length;
        }
    }
}

/// What is left when fewer bits are held than the longest code has, and none follow.
fn decode_last(mut bits: u64, mut held: u32, out: &mut Vec<u8>) -> Result<(), HpackError> {
    while held > 0 {
        // Behind what is held ones follow: of a code that is cut off none is taken for a shorter one, since
        // no code begins another.
        let padded = bits | u64::MAX >> held;
        if held < 8 && padded == u64::MAX {
            break;
        }
        let (symbol, length) = next_symbol(padded)?;
        if length > held {
            return Err(HpackError::Huffman);
        }
        out.push(symbol);
        bits <<= length;
        held -= length;
    }
    Ok(())
}

/// The symbol whose code the bits begin with, and the length of that.
#[inline]
fn next_symbol(bits: u64) -> Result<(u8, u32), HpackError> {
    let (symbol, length) = SHORT[(bits >> 56) as usize];
    if length != 0 { Ok((symbol, u32::from(length))) } else { next_rare_symbol(bits >> 32) }
}

/// A code of more than eight bits, in the upper ones of 32.
fn next_rare_symbol(bits: u64) -> Result<(u8, u32), HpackError> {
    let found = CLASSES.iter().enumerate().skip(9).find(|(_, class)| bits < class.beyond);
    // The last class goes up to all ones: one is always found.
    let (length, class) = found.ok_or(HpackError::Huffman)?;
    let code = (bits >> (32 - length)) as u32;
    match SYMBOLS[(class.at + code - class.first) as usize] {
        END => Err(HpackError::Huffman),
        symbol => Ok((symbol as u8, length as u32)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};

    use super::*;

    fn decoded(code: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut out = Vec::new();
        decode(code, &mut out).map(|()| out)
    }

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(text, &mut out);
        out
    }

    #[test]
    fn the_code_is_that_of_the_appendix() {
        assert_eq!(CODES[usize::from(b'0')], 0);
        assert_eq!(CODES[usize::from(b'/')], 0x18);
        assert_eq!(CODES[usize::from(b'Z')], 0xfd);
        assert_eq!(CODES[0], 0x1ff8);
        assert_eq!(CODES[usize::from(b'\\')], 0x7fff0);
        assert_eq!(CODES[249], 0x0fff_fffe);
        assert_eq!(CODES[22], 0x3fff_fffe);
        // The end is all ones: the code is complete.
        assert_eq!(CLASSES[LONGEST].beyond, 1 << 32);
    }

    #[test]
    fn every_byte_comes_back() {
        for byte in 0..=255_u8 {
            for n in 1..10 {
                let text = vec![byte; n];
                let code = encoded(&text);
                assert_eq!(code.len(), encoded_len(&text));
                assert_eq!(decoded(&code).unwrap(), text);
            }
        }
    }

    #[test]
    fn padding_is_ones_and_less_than_a_byte() {
        // "a" is 00011, followed by three ones.
        assert_eq!(encoded(b"a"), [0b0001_1111]);
        for wrong in [&[0b0001_1110_u8][..], &[0b0001_1111, 0xff], &[0xff], &[0xff; 4], &[0xff; 9]]
        {
            assert_eq!(decoded(wrong), Err(HpackError::Huffman), "{wrong:x?}");
        }
        assert_eq!(decoded(b"").unwrap(), b"");
    }

    #[test]
    fn the_end_within_a_string_is_refused() {
        // '0', the end, and more of '0'.
        let mut code = vec![0b0000_0111, 0xff, 0xff, 0xff, 0b1110_0000, 0, 0, 0, 0, 0];
        assert_eq!(decoded(&code), Err(HpackError::Huffman));
        code.truncate(5);
        assert_eq!(decoded(&code), Err(HpackError::Huffman));
    }

    proptest! {
        #[test]
        fn texts_come_back(text in vec(any::<u8>(), 0..200)) {
            assert_eq!(decoded(&encoded(&text)).unwrap(), text);
        }

        #[test]
        fn what_decodes_is_the_code_of_its_text(code in vec(any::<u8>(), 0..40)) {
            if let Ok(text) = decoded(&code) {
                assert_eq!(encoded(&text), code);
            }
        }
    }
}
