//! Path and host normalisation of a request, before anything matches on them: dot segments, escapes,
//! slashes, fragments, ports, dots at the end. What later stations match is what the upstream gets.
//!
//! `HttpConnectionManager.{normalize_path,merge_slashes,path_with_escaped_slashes_action,strip_*}`. The
//! results are Envoy 1.40's byte for byte (it uses Chromium's URL canonicaliser), but for one hole closed
//! in `strip_dot_parameters`.

use http::Method;
use smallvec::SmallVec;

use crate::codec::head::RequestHead;
use crate::config::hcm::{EscapedSlashes, StripPort};
use crate::router::route_table::without_port;

/// What becomes of a request after its path was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathOutcome {
    /// The path is as it is to be used.
    Continue,
    /// 307 to the path, which has been normalised (`downstream_rq_redirected_with_normalized_path`).
    Redirect,
    /// 400 (`downstream_rq_failed_path_normalization`).
    Reject,
}

/// Envoy's `response_code_details` for `Redirect` and for `Reject`.
pub const PATH_NORMALIZATION_FAILED: &str = "path_normalization_failed";
/// Envoy's `response_code_details` for a path that does not begin with `/` (`OPTIONS *` too): 404.
pub const ABSOLUTE_PATH_REJECTED: &str = "absolute_path_rejected";

/// Normalises the request's path in place; a request without one continues.
pub fn normalize_path(
    head: &mut RequestHead,
    normalize: bool,
    merge_slashes: bool,
    escaped_slashes: EscapedSlashes,
) -> PathOutcome {
    let Some(path) = head.path() else { return PathOutcome::Continue };
    // A fragment is not for servers (RFC 3986 §3.5); some origins cut it off, some do not.
    if path.contains(&b'#') {
        return PathOutcome::Reject;
    }
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    let mut buffer = Buffer::new();
    let mut outcome = PathOutcome::Continue;
    let mut changed = false;
    if escaped_slashes != EscapedSlashes::KeepUnchanged
        && unescape_slashes(&path[..end], &mut buffer)
    {
        changed = true;
        match escaped_slashes {
            EscapedSlashes::RejectRequest => outcome = PathOutcome::Reject,
            EscapedSlashes::UnescapeAndRedirect => outcome = PathOutcome::Redirect,
            EscapedSlashes::UnescapeAndForward | EscapedSlashes::KeepUnchanged => {}
        }
    }
    if outcome != PathOutcome::Reject {
        let now =
            if changed { std::mem::take(&mut buffer) } else { Buffer::from_slice(&path[..end]) };
        if normalize && needs_normalizing(&now) {
            let stripped = strip_dot_parameters(&now);
            if !canonicalize(stripped.as_deref().unwrap_or(&now), &mut buffer) {
                return PathOutcome::Reject;
            }
            changed = true;
        } else {
            buffer = now;
        }
        if merge_slashes && memchr::memmem::find(&buffer, b"//").is_some() {
            merge(&mut buffer);
            changed = true;
        }
    }
    if changed {
        buffer.extend_from_slice(&path[end..]);
        head.set_path(&buffer);
    }
    outcome
}

/// Long enough for nearly every path.
type Buffer = SmallVec<[u8; 512]>;

/// `%2F`, `%5C` to `/`, `\`; false, with `out` empty, when there is none.
fn unescape_slashes(path: &[u8], out: &mut Buffer) -> bool {
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'%', rest) {
        let slash = match rest.get(at + 1..at + 3) {
            Some(b"2f" | b"2F") => b'/',
            Some(b"5c" | b"5C") => b'\\',
            _ => {
                out.extend_from_slice(&rest[..=at]);
                rest = &rest[at + 1..];
                continue;
            }
        };
        out.extend_from_slice(&rest[..at]);
        out.push(slash);
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    if out.len() == path.len() {
        out.clear();
        return false;
    }
    true
}

/// False for paths that canonicalising leaves as they are, which are nearly all.
fn needs_normalizing(path: &[u8]) -> bool {
    let mut after_slash = false;
    path.iter().any(|byte| {
        let special = *byte == b'\\'
            || *byte == b'%'
            || must_be_escaped(*byte)
            || (*byte == b'.' && after_slash);
        after_slash = *byte == b'/';
        special
    })
}

/// Segments `..;x` and `.;x` to `..` and `.`, as servers with path parameters read them (CVE-2026-73551).
/// Where dots are escaped or slashes are backslashes, too: Envoy overlooks those, makes `/..;x` of
/// `/%2e%2e;x`, and an origin then climbs.
fn strip_dot_parameters(path: &[u8]) -> Option<Buffer> {
    memchr::memchr(b';', path)?;
    let mut out = Buffer::new();
    for segment in path.split_inclusive(|b| matches!(b, b'/' | b'\\')) {
        let end = segment.len() - usize::from(matches!(segment.last(), Some(b'/' | b'\\')));
        let first = dot_len(segment).unwrap_or(0);
        let dots = first + dot_len(&segment[first..]).unwrap_or(0);
        let has_parameters = first > 0 && segment.get(dots) == Some(&b';');
        out.extend_from_slice(&segment[..if has_parameters { dots } else { end }]);
        out.extend_from_slice(&segment[end..]);
    }
    Some(out)
}

/// Removes dot segments, unescapes letters, digits and `-._~`, escapes what a path cannot have; `\` is a
/// slash. False for `%00`.
fn canonicalize(path: &[u8], out: &mut Buffer) -> bool {
    out.clear();
    let mut i = 0;
    while let Some(&byte) = path.get(i) {
        if let Some(dot) = dot_len(&path[i..]) {
            let starts_segment = out.last() == Some(&b'/');
            i += dot;
            match after_dot(&path[i..]) {
                DotSegment::Current(len) if starts_segment => i += len,
                DotSegment::Up(len) if starts_segment => {
                    i += len;
                    remove_last_segment(out);
                }
                _ => out.push(b'.'),
            }
            continue;
        }
        i += 1;
        match byte {
            b'\\' => out.push(b'/'),
            b'%' => match escaped_byte(&path[i..]) {
                Some(0) => return false,
                Some(value) if is_unreserved(value) => {
                    out.push(value);
                    i += 2;
                }
                // Kept as it is, the case of its digits too; a bad escape likewise.
                _ => out.push(b'%'),
            },
            byte if must_be_escaped(byte) => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.push(b'%');
                out.extend_from_slice(&digits);
            }
            byte => out.push(byte),
        }
    }
    true
}

/// What a dot at a segment's beginning is followed by.
enum DotSegment {
    /// The segment is `.`; so many bytes belong to it, its slash included.
    Current(usize),
    /// The segment is `..`.
    Up(usize),
    /// The dot is the beginning of a name.
    Name,
}

fn after_dot(rest: &[u8]) -> DotSegment {
    let end_len = |rest: &[u8]| match rest.first() {
        None => Some(0),
        Some(b'/' | b'\\') => Some(1),
        Some(_) => None,
    };
    if let Some(len) = end_len(rest) {
        return DotSegment::Current(len);
    }
    match dot_len(rest).and_then(|dot| Some(dot + end_len(&rest[dot..])?)) {
        Some(len) => DotSegment::Up(len),
        None => DotSegment::Name,
    }
}

/// Length of the dot, escaped or not, that `rest` begins with.
fn dot_len(rest: &[u8]) -> Option<usize> {
    match rest {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'e' | b'E', ..] => Some(3),
        _ => None,
    }
}

/// `/a/b/` to `/a/`; the first slash stays.
fn remove_last_segment(out: &mut Buffer) {
    let before = out.len().saturating_sub(1);
    let keep = memchr::memrchr(b'/', &out[..before]).map_or(out.len().min(1), |at| at + 1);
    out.truncate(keep);
}

/// The value of the two hexadecimal digits that `digits` begins with.
fn escaped_byte(digits: &[u8]) -> Option<u8> {
    let digit = |i: usize| char::from(*digits.get(i)?).to_digit(16);
    Some((digit(0)? * 16 + digit(1)?) as u8)
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn must_be_escaped(byte: u8) -> bool {
    matches!(byte, 0..=0x20 | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f..)
}

/// Several slashes in a row to one; `//` alone stays, as in Envoy.
fn merge(path: &mut Buffer) {
    if path.iter().all(|byte| *byte == b'/') {
        path.truncate(2);
        return;
    }
    let mut last = 0;
    path.retain(|byte| {
        let repeated = *byte == b'/' && last == b'/';
        last = *byte;
        !repeated
    });
}

/// Normalises the request's host: a dot at its end, then its port. Returns the port that was removed, since a
/// CONNECT gets it back before it goes upstream.
pub fn normalize_host(
    head: &mut RequestHead,
    strip_trailing_dot: bool,
    strip_port: StripPort,
    listener_port: Option<u16>,
) -> Option<u32> {
    if strip_trailing_dot {
        strip_trailing_host_dot(head);
    }
    match strip_port {
        StripPort::No => None,
        StripPort::Any => strip_host_port(head, None),
        StripPort::Matching => strip_host_port(head, Some(u32::from(listener_port?))),
    }
}

fn strip_trailing_host_dot(head: &mut RequestHead) {
    let Some(host) = head.authority() else { return };
    let bare = without_port(host);
    let Some(stripped) = bare.strip_suffix(b".") else { return };
    let mut new = SmallVec::<[u8; 256]>::from_slice(stripped);
    new.extend_from_slice(&host[bare.len()..]);
    head.set_authority(&new);
}

/// `only`: the one port that is removed.
fn strip_host_port(head: &mut RequestHead, only: Option<u32>) -> Option<u32> {
    let host = head.authority()?;
    let bare = without_port(host);
    let port: u32 = std::str::from_utf8(host.get(bare.len() + 1..)?).ok()?.parse().ok()?;
    if only.is_some_and(|only| only != port) {
        return None;
    }
    let bare = SmallVec::<[u8; 256]>::from_slice(bare);
    head.set_authority(&bare);
    Some(port)
}

/// Whether the path may be routed: there is none (CONNECT), or it begins with `/`. Else the answer is 404 with
/// `ABSOLUTE_PATH_REJECTED`.
pub fn is_routable_path(head: &RequestHead) -> bool {
    match head.path() {
        None => head.method == Method::CONNECT,
        Some(path) => path.first() == Some(&b'/'),
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
