//! Header additions and removals of one configuration level (`request_headers_to_add`, …), compiled.
//!
//! Order as in Envoy's `HeaderParser`: removals first, then additions in the order of the
//! configuration. A mutation list (`HeaderMutation`) runs strictly in its own order.

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::stream_info::StreamInfo;

/// Compiled header operations of one level. Empty by default.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {}

impl HeaderOps {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        true
    }

    /// Changes a request's head; operators read that head as it is before each operation.
    pub fn apply_request(&self, _head: &mut RequestHead, _info: &StreamInfo) {}

    /// Changes a response's head; `request` is what `%REQ()%` reads.
    pub fn apply_response(
        &self,
        _head: &mut ResponseHead,
        _request: Option<&RequestHead>,
        _info: &StreamInfo,
    ) {
    }

    /// Changes trailers (either direction).
    pub fn apply_trailers(
        &self,
        _trailers: &mut HeaderList,
        _request: Option<&RequestHead>,
        _response: Option<&ResponseHead>,
        _info: &StreamInfo,
    ) {
    }
}
