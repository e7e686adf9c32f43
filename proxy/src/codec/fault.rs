//! What can go wrong with a message on its wire, with the status and the `response_code_details` that
//! Envoy gives for it (`http1.*` from its HTTP/1 codec, `http2.*` from its HTTP/2 codec).

use std::io;

use http::StatusCode;

use super::h2::Http2Fault;

/// A malformed or oversized message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", self.details())]
pub enum ParseFault {
    /// Grammar: request line, field names, line ends, chunks, Content-Length values.
    CodecError,
    /// A field name with letters of another alphabet.
    NonAsciiName,
    /// A byte that a field value cannot have.
    InvalidCharacters,
    HeadersTooLarge,
    TooManyHeaders,
    ContentLengthAndChunked,
    /// Transfer-Encoding that is not exactly `chunked`, or where it cannot be.
    InvalidTransferEncoding,
    /// The request target.
    InvalidUrl,
    /// An absolute-form target whose scheme is neither http nor https.
    InvalidScheme,
    /// An absolute-form https target on a plaintext connection, where the edge forbids it.
    HttpsInPlaintext,
    /// HTTP/1.0 that is not accepted.
    LowVersion,
    /// CONNECT with Content-Length.
    BodyDisallowed,
    /// `Connection` names a field that may not be stripped, or too many.
    ConnectionHeaderRejected,
    /// A name with an underscore, where `headers_with_underscores_action` rejects it.
    UnexpectedUnderscore,
    /// Host or `:authority` with bytes that it cannot have, empty, or twice.
    InvalidAuthority,
    /// Response with Transfer-Encoding to which none is allowed (1xx, 204).
    TransferEncodingNotAllowed,
    /// Response with Content-Length to which none is allowed (1xx, 204).
    ContentLengthNotAllowed,
    /// A response that was not asked for, or bytes behind one.
    ExtraneousData,
    /// An upstream that closed in the middle of its response.
    Truncated,
    /// More informational responses than anyone needs.
    TooManyInformational,
    /// What only HTTP/2 has.
    Http2(Http2Fault),
}

impl ParseFault {
    /// The status of the answer to a request with this fault.
    pub fn status(self) -> StatusCode {
        match self {
            Self::HeadersTooLarge | Self::TooManyHeaders => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::InvalidTransferEncoding => StatusCode::NOT_IMPLEMENTED,
            Self::HttpsInPlaintext => StatusCode::FORBIDDEN,
            Self::LowVersion => StatusCode::UPGRADE_REQUIRED,
            Self::CodecError
            | Self::NonAsciiName
            | Self::InvalidCharacters
            | Self::ContentLengthAndChunked
            | Self::InvalidUrl
            | Self::InvalidScheme
            | Self::BodyDisallowed
            | Self::ConnectionHeaderRejected
            | Self::UnexpectedUnderscore
            | Self::InvalidAuthority
            | Self::TransferEncodingNotAllowed
            | Self::ContentLengthNotAllowed
            | Self::ExtraneousData
            | Self::Truncated
            | Self::TooManyInformational
            | Self::Http2(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// Whether lines of the head were understood before the fault showed. Only then do they count as
    /// header bytes received.
    pub fn head_was_read(self) -> bool {
        !matches!(self, Self::CodecError | Self::InvalidCharacters | Self::HeadersTooLarge)
    }

    /// `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            Self::CodecError
            | Self::NonAsciiName
            | Self::ExtraneousData
            | Self::Truncated
            | Self::TooManyInformational => "http1.codec_error",
            Self::InvalidCharacters => "http1.invalid_characters",
            Self::HeadersTooLarge => "http1.headers_too_large",
            Self::TooManyHeaders => "http1.too_many_headers",
            Self::ContentLengthAndChunked => "http1.content_length_and_chunked_not_allowed",
            Self::InvalidTransferEncoding => "http1.invalid_transfer_encoding",
            Self::InvalidUrl => "http1.invalid_url",
            Self::InvalidScheme => "http1.invalid_scheme",
            Self::HttpsInPlaintext => "http1.https_url_on_plaintext_connection",
            Self::LowVersion => "low_version",
            Self::BodyDisallowed => "http1.body_disallowed",
            Self::ConnectionHeaderRejected => "http1.connection_header_rejected",
            Self::UnexpectedUnderscore => "http1.unexpected_underscore",
            Self::InvalidAuthority => "http.invalid_authority",
            Self::TransferEncodingNotAllowed => "http1.transfer_encoding_not_allowed",
            Self::ContentLengthNotAllowed => "http1.content_length_not_allowed",
            Self::Http2(fault) => fault.details(),
        }
    }
}

/// Why a message or a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The peer broke the protocol. A server answers `status()` and closes; an upstream is a
    /// protocol error.
    #[error("protocol error: {0}")]
    Parse(#[from] ParseFault),
    /// The peer closed its side in the middle of a message, or before one that was due.
    #[error("connection closed")]
    Eof,
    /// The stream was reset with an HTTP/2 error code (RFC 9113 §7).
    #[error("stream reset with code {code}")]
    Reset { code: u32, remote: bool },
    /// The connection is going away and the stream was not and will not be processed.
    #[error("connection going away with code {code}")]
    GoAway { code: u32, remote: bool },
    #[error("i/o error: {0}")]
    Io(io::ErrorKind),
}

impl Fault {
    /// The status a server answers, for what the peer did wrong.
    pub fn status(self) -> Option<StatusCode> {
        match self {
            Self::Parse(fault) => Some(fault.status()),
            Self::Eof | Self::Reset { .. } | Self::GoAway { .. } | Self::Io(_) => None,
        }
    }

    /// Whether it was the peer that ended the connection or stream.
    pub fn is_remote(self) -> bool {
        !matches!(self, Self::Reset { remote: false, .. } | Self::Parse(_))
            || self == Self::Parse(ParseFault::Truncated)
    }

    /// Whether the peer says that it has not begun to process the request (REFUSED_STREAM, or a
    /// GOAWAY before it): a replay is safe for any method.
    pub fn is_unprocessed(self) -> bool {
        match self {
            Self::Reset { code, remote: true } => code == H2_REFUSED_STREAM,
            Self::GoAway { remote, .. } => remote,
            Self::Reset { .. } | Self::Parse(_) | Self::Eof | Self::Io(_) => false,
        }
    }
}

/// RFC 9113 §7.
pub const H2_REFUSED_STREAM: u32 = 7;

impl From<Http2Fault> for Fault {
    fn from(fault: Http2Fault) -> Self {
        Self::Parse(ParseFault::Http2(fault))
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind())
    }
}
