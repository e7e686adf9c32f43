//! `envoy.filters.http.buffer`: holds a request back until its body is complete, 413 for one that is too
//! large; a body without a length gets one.

use std::sync::Arc;

use bytes::Bytes;

use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::codec::head::{HeaderList, RequestHead};
use crate::codec::name::names;
use crate::config::compile::core::unpack_any;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::envoy::extensions::filters::http::buffer::v3 as pb;
use crate::config::pb::envoy::extensions::filters::http::buffer::v3::buffer_per_route::Override;
use crate::config::pb::google::protobuf::Any;

pub const TYPE: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
pub const PER_ROUTE_TYPE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";

/// `Buffer`.
#[derive(Debug)]
pub struct Config {
    max_request_bytes: usize,
}

impl Config {
    /// It has no statistics.
    pub fn declare(&self, _hcm: &crate::hcm::HcmScope) {}
}

/// `BufferPerRoute`: `None` switches the filter off.
#[derive(Debug)]
struct PerRoute(Option<Config>);

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    compile_buffer(&unpack_any(any, path)?, path).map(Arc::new)
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    let config: pb::BufferPerRoute = unpack_any(any, path)?;
    let config = match &config.r#override {
        Some(Override::Disabled(true)) => PerRoute(None),
        Some(Override::Disabled(false)) => {
            path.field("disabled").error("can only be true");
            return None;
        }
        Some(Override::Buffer(buffer)) => {
            PerRoute(Some(compile_buffer(buffer, &path.field("buffer"))?))
        }
        None => {
            path.field("override").error("is required");
            return None;
        }
    };
    Some(Arc::new(config))
}

fn compile_buffer(config: &pb::Buffer, path: &FieldPath<'_>) -> Option<Config> {
    match config.max_request_bytes.as_ref().map(|max| max.value) {
        Some(max) if max > 0 => Some(Config { max_request_bytes: max as usize }),
        _ => {
            path.field("max_request_bytes").error("is required and greater than 0");
            None
        }
    }
}

/// One stream.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    /// Bytes seen of a body that has no length yet.
    counted: Option<usize>,
}

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self { config: config.clone(), counted: None }
    }

    fn add_length(&self, request: &mut RequestHead) {
        if let Some(counted) = self.counted {
            request.headers.remove(&names::TRANSFER_ENCODING);
            let mut length = itoa::Buffer::new();
            request.headers.set(&names::CONTENT_LENGTH, length.format(counted).as_bytes());
        }
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, end: bool) -> Flow {
        cx.route.resolve(cx.request);
        let limit = match cx.per_route::<PerRoute>() {
            Some(PerRoute(None)) => return Flow::Continue,
            Some(PerRoute(Some(config))) => config.max_request_bytes,
            None => self.config.max_request_bytes,
        };
        if end {
            return Flow::Continue;
        }
        self.counted = (!cx.request.headers.contains(&names::CONTENT_LENGTH)).then_some(0);
        Flow::BufferBody { limit }
    }

    fn on_request_data(&mut self, cx: &mut FilterContext<'_>, data: &mut Bytes, end: bool) -> Flow {
        self.counted = self.counted.map(|counted| counted + data.len());
        if end {
            self.add_length(cx.request);
        }
        Flow::Continue
    }

    fn on_request_trailers(&mut self, cx: &mut FilterContext<'_>, _: &mut HeaderList) -> Flow {
        self.add_length(cx.request);
        Flow::Continue
    }

    fn wants_request_frames(&self) -> bool {
        self.counted.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::google::protobuf::UInt32Value;
    use crate::http_filters::testing::{TestStream, any, compiled, print};

    fn buffer(max: u32) -> pb::Buffer {
        pb::Buffer { max_request_bytes: Some(UInt32Value { value: max }) }
    }

    fn filter() -> Filter {
        Filter::new(&compiled(|path| compile(&any(&buffer(5)), "", path)).unwrap())
    }

    #[test]
    fn a_body_without_a_length_gets_one() {
        let (mut stream, mut filter) = (TestStream::new(None), filter());
        stream.request.headers.push_raw(b"transfer-encoding", b"chunked");
        let flow = stream.with(|cx| filter.on_request_head(cx, false));
        assert_eq!(print(&flow), "buffer 5");
        assert!(filter.wants_request_frames());
        for (part, end) in [("ab", false), ("c", true)] {
            let mut part = Bytes::from_static(part.as_bytes());
            stream.with(|cx| filter.on_request_data(cx, &mut part, end));
        }
        assert_eq!(stream.request.headers.get(&names::CONTENT_LENGTH), Some(&b"3"[..]));
        assert!(!stream.request.headers.contains(&names::TRANSFER_ENCODING));
    }

    #[test]
    fn requests_without_body_and_with_a_length_are_left_alone() {
        let (mut stream, mut filter) = (TestStream::new(None), filter());
        assert_eq!(print(&stream.with(|cx| filter.on_request_head(cx, true))), "continue");
        stream.request.headers.push_raw(b"content-length", b"3");
        assert_eq!(print(&stream.with(|cx| filter.on_request_head(cx, false))), "buffer 5");
        assert!(!filter.wants_request_frames());
    }

    #[test]
    fn routes_switch_it_off_or_set_another_limit() {
        let off = pb::BufferPerRoute { r#override: Some(Override::Disabled(true)) };
        let more = pb::BufferPerRoute { r#override: Some(Override::Buffer(buffer(9))) };
        for (per_route, expected) in [(off, "continue"), (more, "buffer 9")] {
            let mut stream = TestStream::new(Some(any(&per_route)));
            let flow = stream.with(|cx| filter().on_request_head(cx, false));
            assert_eq!(print(&flow), expected);
        }
        assert!(compiled(|path| compile(&any(&pb::Buffer::default()), "", path)).is_err());
        let empty = pb::BufferPerRoute::default();
        assert!(compiled(|path| compile_per_route(&any(&empty), path)).is_err());
    }
}
