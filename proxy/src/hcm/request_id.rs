//! `x-request-id`: a version 4 UUID whose 14th digit may carry the reason for a trace.
//!
//! Envoy's `UuidRequestIdConfig` extension: `4` not traced, `9` sampled, `a` forced by the service, `b` by the client.

use crate::codec::head::RequestHead;
use crate::codec::name::names;
use crate::config::hcm::{RequestIdConfig, Tracing};
use crate::stream_info::TraceReason;

/// Length of a UUID in text.
const LEN: usize = 36;
/// The digit that says the version, and the trace reason.
const REASON_AT: usize = 14;
const NO_TRACE: u8 = b'4';
const SAMPLED: u8 = b'9';
const SERVICE_FORCED: u8 = b'a';
const CLIENT_FORCED: u8 = b'b';

/// Makes an id where there is none, or where the request comes from the edge and ids from there are not kept.
pub fn ensure(head: &mut RequestHead, is_edge: bool, config: &RequestIdConfig, random: (u64, u64)) {
    let replace = is_edge && !config.preserve_external;
    let missing = head.headers.get(&names::X_REQUEST_ID).is_none_or(<[u8]>::is_empty);
    if replace || missing {
        head.headers.set(&names::X_REQUEST_ID, &uuid(random));
    } else if is_edge && config.pack_trace_reason {
        // A kept id must not carry an outsider's wish for a trace.
        set_reason(head, NO_TRACE);
    }
}

/// A version 4 UUID of two random numbers.
pub fn uuid((high, low): (u64, u64)) -> [u8; LEN] {
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let [a, b] = [hex((high >> 32) as u32), hex(high as u32)];
    let [c, d] = [hex((low >> 32) as u32), hex(low as u32)];
    let mut out = [b'-'; LEN];
    out[..8].copy_from_slice(&a);
    out[9..13].copy_from_slice(&b[..4]);
    out[14..18].copy_from_slice(&b[4..]);
    out[19..23].copy_from_slice(&c[..4]);
    out[24..28].copy_from_slice(&c[4..]);
    out[28..].copy_from_slice(&d);
    out
}

/// Eight digits at once: each half byte is moved into a byte of its own, to which `0`, or the way to `a`, is added.
fn hex(number: u32) -> [u8; 8] {
    let mut digits = u64::from(number);
    digits = (digits << 16 | digits) & 0x0000_ffff_0000_ffff;
    digits = (digits << 8 | digits) & 0x00ff_00ff_00ff_00ff;
    digits = (digits << 4 | digits) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((digits + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (digits + 0x3030_3030_3030_3030 + letters * 0x27).to_be_bytes()
}

fn set_reason(head: &mut RequestHead, reason: u8) {
    let Some(id) = head.headers.get(&names::X_REQUEST_ID) else { return };
    let Ok(mut id) = <[u8; LEN]>::try_from(id) else { return };
    if id[REASON_AT] != reason {
        id[REASON_AT] = reason;
        head.headers.set(&names::X_REQUEST_ID, &id);
    }
}

/// Decides whether a request is traced and packs the reason into its id.
pub fn decide_trace(
    head: &mut RequestHead,
    config: &RequestIdConfig,
    tracing: &Tracing,
) -> Option<TraceReason> {
    if !config.use_for_trace_sampling {
        return Some(TraceReason::Sampling);
    }
    let id = head.headers.get(&names::X_REQUEST_ID)?;
    let digits = id.get(..8).and_then(|digits| std::str::from_utf8(digits).ok())?;
    let point = (u64::from_str_radix(digits, 16).ok()? % 10_000) as u32;
    let have = match id.get(REASON_AT) {
        Some(&SAMPLED) => Some(TraceReason::Sampling),
        Some(&SERVICE_FORCED) => Some(TraceReason::ServiceForced),
        Some(&CLIENT_FORCED) => Some(TraceReason::ClientForced),
        _ => None,
    };
    let mut reason = have;
    if reason.is_none() {
        if head.headers.contains(&names::X_CLIENT_TRACE_ID) && point < tracing.client_sampling {
            reason = Some(TraceReason::ClientForced);
        } else if head.headers.contains(&names::X_ENVOY_FORCE_TRACE) {
            reason = Some(TraceReason::ServiceForced);
        } else if point < tracing.random_sampling {
            reason = Some(TraceReason::Sampling);
        }
    }
    if point >= tracing.overall_sampling {
        reason = None;
    }
    if config.pack_trace_reason && reason != have {
        let digit = match reason {
            None => NO_TRACE,
            Some(TraceReason::Sampling) => SAMPLED,
            Some(TraceReason::ServiceForced) => SERVICE_FORCED,
            Some(TraceReason::ClientForced) => CLIENT_FORCED,
        };
        set_reason(head, digit);
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_version_and_variant() {
        let id = uuid((u64::MAX, u64::MAX));
        assert_eq!(&id, b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        let id = uuid((0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef));
        assert_eq!(&id, b"01234567-89ab-4def-8123-456789abcdef");
        for number in [0, 0x9a0f_f0a9, u32::MAX, 0x1020_b0c0] {
            assert_eq!(hex(number), format!("{number:08x}").as_bytes());
        }
    }
}
