//! Small byte work of the operators: queries, percent codes, ports, UUIDs.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

use memchr::memchr;

/// The part before `?`.
pub(super) fn before_query(path: &[u8]) -> &[u8] {
    memchr(b'?', path).map_or(path, |at| &path[..at])
}

/// What follows `?`, where there is one.
pub(super) fn query(path: &[u8]) -> Option<&[u8]> {
    Some(&path[memchr(b'?', path)? + 1..])
}

/// The first value of a parameter, still encoded.
pub(super) fn query_param<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let (key, value) = match memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        let same = if memchr(b'%', key).is_some() {
            let mut decoded = Vec::new();
            percent_decode(key, &mut decoded);
            decoded == name
        } else {
            key == name
        };
        same.then_some(value)
    })
}

/// Appends with `%xx` decoded; anything else stays, `+` too.
pub(super) fn percent_decode(value: &[u8], out: &mut Vec<u8>) {
    decode(value, |_| true, out);
}

/// As `percent_decode`, but only codes of visible ASCII: what `%QUERY_PARAMS(DECODED)%` shows.
pub(super) fn percent_decode_visible(value: &[u8], out: &mut Vec<u8>) {
    decode(value, |byte| byte.is_ascii_graphic(), out);
}

fn decode(value: &[u8], admit: fn(u8) -> bool, out: &mut Vec<u8>) {
    let mut at = 0;
    while at < value.len() {
        let hex = |i: usize| value.get(i).and_then(|b| (*b as char).to_digit(16));
        if value[at] == b'%'
            && let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2))
            && admit((high * 16 + low) as u8)
        {
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(value[at]);
            at += 1;
        }
    }
}

pub(super) fn whitespace_to_underscore(text: &mut [u8]) {
    for byte in text {
        if byte.is_ascii_whitespace() || *byte == 0x0b {
            *byte = b'_';
        }
    }
}

/// Bytes that no host name has become `_`: a server name comes from the peer.
pub(super) fn sanitise_host(text: &mut [u8]) {
    for byte in text {
        if !byte.is_ascii_alphanumeric() && !matches!(byte, b'.' | b'-') {
            *byte = b'_';
        }
    }
}

/// A host without its port; brackets stay.
pub(super) fn strip_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// A version 4 UUID of these bits.
pub(super) fn write_uuid(bits: u128, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (bits & !(0xf << 76) | (4 << 76)) & !(3 << 62) | (2 << 62);
    for (i, byte) in bits.to_be_bytes().into_iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// Bits that differ between numbers and between processes.
pub(super) fn process_unique(number: u64) -> u128 {
    static SEED: OnceLock<(RandomState, RandomState)> = OnceLock::new();
    let (high, low) = SEED.get_or_init(|| (RandomState::new(), RandomState::new()));
    let hash = |state: &RandomState| {
        let mut hasher = state.build_hasher();
        hasher.write_u64(number);
        hasher.finish()
    };
    u128::from(hash(high)) << 64 | u128::from(hash(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters() {
        let query = query(b"/p?a=1%202&b&a=3&%63=x").unwrap();
        assert_eq!(query, b"a=1%202&b&a=3&%63=x");
        assert_eq!(query_param(query, b"a"), Some(&b"1%202"[..]));
        assert_eq!(query_param(query, b"b"), Some(&b""[..]));
        assert_eq!(query_param(query, b"c"), Some(&b"x"[..]));
        assert_eq!(query_param(query, b"d"), None);
        let mut out = Vec::new();
        percent_decode(b"1%202%zz%4", &mut out);
        assert_eq!(out, b"1 2%zz%4");
        out.clear();
        percent_decode_visible(b"1%202%41%0a%3d", &mut out);
        assert_eq!(out, b"1%202A%0a=");
        assert_eq!(super::query(b"/p?"), Some(&b""[..]));
        assert_eq!(super::query(b"/p"), None);
    }

    #[test]
    fn ports_are_cut() {
        for (host, bare) in
            [("a:1", "a"), ("a", "a"), ("[::1]:2", "[::1]"), ("::1", "::1"), ("a:b", "a:b")]
        {
            assert_eq!(strip_port(host), bare);
        }
    }

    #[test]
    fn uuids_are_version_four() {
        let mut out = Vec::new();
        write_uuid(u128::MAX, &mut out);
        assert_eq!(out, b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(process_unique(7), process_unique(7));
        assert_ne!(process_unique(7), process_unique(8));
    }
}
