//! gRPC status codes: their names, where a response carries one, and what HTTP statuses map to.

use http::StatusCode;

use super::Ctx;
use crate::codec::head::{HeaderList, RequestHead};
use crate::codec::name::names;

const CAMEL: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const SNAKE: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// `grpc-status` with a value that is no number.
pub const INVALID: i64 = -1;

pub(super) fn camel(status: i64) -> Option<&'static str> {
    CAMEL.get(usize::try_from(status).ok()?).copied()
}

pub(super) fn snake(status: i64) -> Option<&'static str> {
    SNAKE.get(usize::try_from(status).ok()?).copied()
}

/// The content type says gRPC (`application/grpc`, `application/grpc+proto`, …).
pub fn is_grpc_request(head: &RequestHead) -> bool {
    is_grpc_content_type(head.headers.get(&names::CONTENT_TYPE))
}

/// As `is_grpc_request`, for a value.
pub fn is_grpc_content_type(value: Option<&[u8]>) -> bool {
    value
        .and_then(|v| v.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

/// The `grpc-status` field: `None` where there is none, `INVALID` where it is no number.
pub fn status_field(list: &HeaderList) -> Option<i64> {
    let value = list
        .get_str(&names::GRPC_STATUS)
        .or_else(|| list.contains(&names::GRPC_STATUS).then_some(""))?;
    if value.is_empty() {
        return None;
    }
    Some(value.parse::<u32>().map_or(INVALID, i64::from))
}

/// The status of a response: its trailers', its head's, or what the HTTP status maps to.
pub fn response_status(ctx: &Ctx<'_>) -> Option<i64> {
    ctx.trailers
        .and_then(status_field)
        .or_else(|| ctx.response.and_then(|head| status_field(&head.headers)))
        .or_else(|| ctx.info.response_code.map(|code| from_http(code).into()))
}

/// For `%GRPC_STATUS%`: only where the request was gRPC.
pub(super) fn logged_status(ctx: &Ctx<'_>) -> Option<i64> {
    ctx.request.filter(|request| is_grpc_request(request)).and_then(|_| response_status(ctx))
}

/// Envoy's `httpToGrpcStatus` (grpc: doc/http-grpc-status-mapping.md).
pub fn from_http(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
