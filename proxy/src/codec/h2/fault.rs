//! What a peer can do wrong in HTTP/2 alone, with Envoy's words for it and what it ends.

/// A fault of a message or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Http2Fault {
    /// A field, or pseudo-header, that RFC 9113 §8.2 and §8.3 forbid.
    HeaderField,
    /// A head or trailers that are wrong as a whole: something is missing, or too much.
    Messaging,
    TooManyHeaders,
    HeaderListTooLarge,
    /// A name with an underscore, where `headers_with_underscores_action` rejects it.
    Underscore,
    /// Anything that makes the connection unreadable.
    Codec,
    /// More frames of a kind than the connection's budget.
    Flood,
    /// Frames without payload, one after the other.
    EmptyFrames,
}

impl Http2Fault {
    /// `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            Self::HeaderField => "http2.invalid.header.field",
            Self::Messaging => "http2.violation.of.messaging.rule",
            Self::TooManyHeaders => "http2.too_many_headers",
            Self::HeaderListTooLarge => "http2.header_list_size_too_large",
            Self::Underscore => "http2.unexpected_underscore",
            Self::Codec => "codec_error:The_user_callback_function_failed",
            Self::Flood => "http2.inbound_frames_flood",
            Self::EmptyFrames => "http2.inbound_empty_frames_flood",
        }
    }

    /// Whether it is a rule of HTTP that was broken (RFC 9113 §8.1.1), not one of frames.
    pub fn is_messaging(self) -> bool {
        matches!(self, Self::HeaderField | Self::Messaging)
    }

    /// Whether the connection cannot go on; otherwise the stream is reset.
    pub fn ends_connection(self) -> bool {
        !matches!(self, Self::TooManyHeaders | Self::HeaderListTooLarge | Self::Underscore)
    }
}
