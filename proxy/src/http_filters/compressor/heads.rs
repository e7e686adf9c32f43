//! What a message's head says about compressing its body, and what compression changes in it.

use crate::codec::head::HeaderList;
use crate::codec::name::{HeaderName, names};

const STATUS: &[u8] = b"x-envoy-compression-status";

/// `content-type` without its parameters.
pub(super) fn media_type(headers: &HeaderList) -> Option<&[u8]> {
    let value = headers.get(&names::CONTENT_TYPE)?;
    Some(value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii())
}

/// All lines of a field as one.
pub(super) fn joined(headers: &HeaderList, name: &HeaderName) -> Option<Box<[u8]>> {
    let mut lines = headers.get_all(name);
    let mut value = lines.next()?.to_vec();
    for line in lines {
        value.push(b',');
        value.extend_from_slice(line);
    }
    Some(value.into())
}

/// `content-length`; one that is no number is zero, and so too short.
pub(super) fn length(headers: &HeaderList) -> Option<u64> {
    let length = headers.get_str(&names::CONTENT_LENGTH)?;
    Some(length.parse().unwrap_or(0))
}

/// `transfer-encoding` names a compression.
pub(super) fn is_transfer_encoded(headers: &HeaderList) -> bool {
    const KNOWN: [&[u8]; 5] = [b"gzip", b"br", b"deflate", b"compress", b"zstd"];
    members(headers, &names::TRANSFER_ENCODING)
        .any(|coding| KNOWN.iter().any(|known| coding.eq_ignore_ascii_case(known)))
}

/// Envoy takes what only offers an upgrade for one.
pub(super) fn is_upgrade(headers: &HeaderList) -> bool {
    headers.contains(&names::UPGRADE)
        && members(headers, &names::CONNECTION)
            .any(|member| member.eq_ignore_ascii_case(b"upgrade"))
}

/// `cache-control: no-transform`, RFC 9111 §5.2.2.6.
pub(super) fn forbids_transforming(headers: &HeaderList) -> bool {
    members(headers, &names::CACHE_CONTROL)
        .any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

fn members<'a>(headers: &'a HeaderList, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .flat_map(|line| line.split(|b| *b == b','))
        .map(|member| member.trim_ascii())
}

/// A strong validator is not true of what is compressed (RFC 9110 §8.8.1): it goes, or becomes a weak one.
pub(super) fn change_etag(headers: &mut HeaderList, weaken: bool) {
    let Some(etag) = headers.get(&names::ETAG) else { return };
    if matches!(etag, [b'w' | b'W', b'/', ..]) {
        return;
    }
    if weaken {
        let weak = [b"W/", etag].concat();
        headers.set(&names::ETAG, &weak);
    } else {
        headers.remove(&names::ETAG);
    }
}

/// Caches must know that other clients get something else. Names are compared with their case, as in Envoy.
pub(super) fn add_vary(headers: &mut HeaderList) {
    const NAME: &[u8] = b"Accept-Encoding";
    if members(headers, &names::VARY).any(|member| member == NAME) {
        return;
    }
    let vary = match joined(headers, &names::VARY) {
        None => NAME.to_vec(),
        Some(vary) => [&vary, NAME].join(&b", "[..]),
    };
    headers.set(&names::VARY, &vary);
}

/// Why a compressor did nothing.
pub(super) fn add_status(headers: &mut HeaderList, encoding: &str, reason: &str) {
    headers.push_raw(STATUS, format!("{encoding};{reason}").as_bytes());
}

/// Called while the length is still there.
pub(super) fn add_compressed_status(headers: &mut HeaderList, encoding: &str) {
    let length = headers.get_str(&names::CONTENT_LENGTH).unwrap_or_default();
    let status = format!("{encoding};Compressed;OriginalLength={length}");
    headers.push_raw(STATUS, status.as_bytes());
}
