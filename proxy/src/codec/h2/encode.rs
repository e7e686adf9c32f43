//! Our heads as field sections. What RFC 9113 §8.2.2 forbids, and what a filter made up and is no field, stays
//! behind.

use http::{Method, StatusCode};

use super::hpack::{Encoder, Name, Pseudo};
use crate::codec::h1;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead, Scheme};
use crate::codec::name::{ids, is_tchar};

/// Whether the head can be said in HTTP/2.
pub(super) fn can_be_said(head: &RequestHead) -> bool {
    head.authority().is_none_or(|a| a.is_empty() || h1::check_authority(a).is_ok())
        && head.upgrade_str().is_none_or(|protocol| protocol.iter().all(|b| is_tchar(*b)))
}

/// A request's head; an upgrade goes as an extended CONNECT.
pub(super) fn request(encoder: &mut Encoder, out: &mut Vec<u8>, head: &RequestHead) {
    let is_connect = head.method == Method::CONNECT;
    let upgrade = head.upgrade_str().filter(|_| !is_connect);
    let method = if upgrade.is_some() { "CONNECT" } else { head.method.as_str() };
    let mut pseudo = |name, value: &[u8]| encoder.encode(out, Name::Pseudo(name), value, false);
    pseudo(Pseudo::Method, method.as_bytes());
    if let Some(authority) = head.authority().filter(|authority| !authority.is_empty()) {
        pseudo(Pseudo::Authority, authority);
    }
    if !is_connect {
        let scheme = head.scheme.unwrap_or(Scheme::Http);
        pseudo(Pseudo::Scheme, scheme.as_str().as_bytes());
        let path = head.path().unwrap_or(b"/");
        if path.iter().all(|b| matches!(b, 0x21..=0x7e)) {
            pseudo(Pseudo::Path, path);
        } else {
            pseudo(Pseudo::Path, &percent_encoded(path));
        }
    }
    if let Some(protocol) = upgrade {
        pseudo(Pseudo::Protocol, protocol);
    }
    list(encoder, out, &head.headers, upgrade.is_some() || is_connect);
}

/// A path that a rewrite has put together from what cannot stand in one.
fn percent_encoded(path: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(path.len() + 16);
    for &b in path {
        if matches!(b, 0x21..=0x7e) {
            encoded.push(b);
        } else {
            encoded.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
    encoded
}

/// A response's head. A 101 answers an extended CONNECT as 200; what opens a `tunnel` has no length (RFC 9113 §8.5).
pub(super) fn response(
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
    head: &ResponseHead,
    tunnel: bool,
) {
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let status = if switching { StatusCode::OK } else { head.status };
    encoder.encode(out, Name::Pseudo(Pseudo::Status), status.as_str().as_bytes(), false);
    list(encoder, out, &head.headers, switching || tunnel);
}

/// Trailers.
pub(super) fn trailers(encoder: &mut Encoder, out: &mut Vec<u8>, trailers: &HeaderList) {
    list(encoder, out, trailers, true);
}

fn list(encoder: &mut Encoder, out: &mut Vec<u8>, list: &HeaderList, without_length: bool) {
    let arena = list.arena();
    for (id, name, value, sensitive) in list.iter_sensitive() {
        let value = &arena[value];
        match id {
            ids::CONNECTION
            | ids::UPGRADE
            | ids::KEEP_ALIVE
            | ids::PROXY_CONNECTION
            | ids::TRANSFER_ENCODING
            | ids::HTTP2_SETTINGS
            | ids::HOST => continue,
            ids::CONTENT_LENGTH if without_length => continue,
            ids::TE if !value.eq_ignore_ascii_case(b"trailers") => continue,
            _ => {}
        }
        let name = Name::new(id, &arena[name]);
        if let Name::Other(text) = name
            && (text.is_empty() || !text.iter().all(|b| is_tchar(*b)))
        {
            continue;
        }
        if value.iter().fold(false, |bad, b| bad | (*b < 0x20 && *b != b'\t') | (*b == 0x7f)) {
            continue;
        }
        encoder.encode(out, name, value, sensitive);
    }
}
