//! How a call ended: gRPC status codes, and where a response carries them.

use std::fmt;

use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::name::names;
use crate::format::grpc;

/// A status code of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    pub const OK: Self = Self(0);
    pub const UNKNOWN: Self = Self(2);
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    pub const INTERNAL: Self = Self(13);
    pub const UNAVAILABLE: Self = Self(14);
}

/// The end of a call that did not end well, or the server's own status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Status {
    pub code: Code,
    pub message: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.code.0, self.message)
    }
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Of the trailers, or of a head that is all of a response.
    pub(super) fn of_fields(fields: &HeaderList) -> Option<Self> {
        let code = match grpc::status_field(fields)? {
            grpc::INVALID => Code::UNKNOWN,
            code => Code(u32::try_from(code).unwrap_or(Code::UNKNOWN.0)),
        };
        let message = fields.get(&names::GRPC_MESSAGE).map(percent_decoded).unwrap_or_default();
        Some(Self { code, message })
    }

    /// Of a head that is no gRPC response.
    pub(super) fn of_head(head: &ResponseHead) -> Self {
        let message = format!("HTTP status {}", head.status.as_u16());
        Self::new(Code(grpc::from_http(head.status)), message)
    }
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2, "Responses"); what is not stays as it is.
fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = match hex {
            Some(byte) => {
                bytes.push(byte);
                &after[2..]
            }
            None => {
                bytes.push(first);
                after
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded() {
        assert_eq!(percent_decoded(b"a%20b%zz%2"), "a b%zz%2");
        assert_eq!(percent_decoded("%E2%82%AC".as_bytes()), "\u{20ac}");
    }

    #[test]
    fn a_status_is_read_from_fields() {
        let mut fields = HeaderList::new();
        assert_eq!(Status::of_fields(&fields), None);
        fields.push_raw(b"grpc-status", b"14");
        fields.push_raw(b"grpc-message", b"gone");
        assert_eq!(Status::of_fields(&fields), Some(Status::new(Code::UNAVAILABLE, "gone")));
        fields.set(&names::GRPC_STATUS, b"x");
        assert_eq!(Status::of_fields(&fields).map(|status| status.code), Some(Code::UNKNOWN));
    }
}
