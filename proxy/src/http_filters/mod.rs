//! Stage 4: HTTP filters, a file each; the trait that they implement, and what a hook may do.
//!
//! All filters of a stream are made before the first runs. Request hooks run in configuration order,
//! response hooks in the opposite one. The stream pulls: a body frame is read only when whoever stands
//! behind the filters wants it, so a filter that waits holds the peer back by not reading.

pub mod buffer;
pub mod chain;
pub mod compressor;
pub mod cors;
pub mod fault;
pub mod grpc_stats;
pub mod header_mutation;
pub mod header_to_metadata;
pub mod local_ratelimit;
pub mod query_mutation;
pub mod rbac;
#[cfg(test)]
pub(crate) mod testing;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use crate::cluster::WorkerCluster;
use crate::codec::head::HeaderList;
use crate::codec::head::{RequestHead, ResponseHead};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::google::protobuf::Any as PbAny;
use crate::hcm::local_reply::LocalReply;
use crate::router::RouteState;
use crate::stream_info::StreamInfo;
use crate::worker::WorkerContext;

/// What a hook wants next.
pub enum Flow {
    /// On to the next filter.
    Continue,
    /// Head hooks only: hold the head back until the whole body is here, then go on. The data and trailer
    /// hooks of this filter run while it is collected. More than `limit` bytes: 413 for a request
    /// (`request_payload_too_large`), 500 for a response (`response_payload_too_large`), as in Envoy.
    BufferBody { limit: usize },
    /// Answer now. The reply passes the response hooks of every filter, reached or not. In a response hook
    /// before the head is sent it takes the response's place; after that it resets the stream.
    Reply(Box<LocalReply>),
    /// End the stream without an answer.
    Reset,
    /// Nothing moves in this direction until the future is done; then the same hook is called again with the
    /// same arguments.
    Wait(LocalBoxFuture<'static, ()>),
}

/// What hooks see of their stream.
pub struct FilterContext<'a> {
    /// The request head; hooks of the response may read it, its changes have no effect then.
    pub request: &'a mut RequestHead,
    pub info: &'a mut StreamInfo,
    /// The cluster of the matched route, where there is one.
    pub cluster: Option<&'a WorkerCluster>,
    /// The matched route, if any; `clear` makes the router match again.
    pub route: &'a mut RouteState,
    pub worker: &'a WorkerContext,
    pub now: Instant,
    /// Statistics prefix of the connection manager, as in `http.<stat_prefix>.`.
    pub hcm_stats: &'a crate::hcm::HcmScope,
    pub(crate) slot: NameId,
}

impl<'a> FilterContext<'a> {
    pub(crate) fn new(
        request: &'a mut RequestHead,
        info: &'a mut StreamInfo,
        cluster: Option<&'a WorkerCluster>,
        route: &'a mut RouteState,
        worker: &'a WorkerContext,
        now: Instant,
        hcm_stats: &'a crate::hcm::HcmScope,
    ) -> Self {
        Self { request, info, cluster, route, worker, now, hcm_stats, slot: NameId::NONE }
    }

    /// This filter's configuration for the matched route, most specific level first.
    pub fn per_route<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.route.per_filter_config(self.slot).and_then(|config| config.downcast_ref())
    }
}

pub use crate::config::name::NameId;

/// A filter of one stream. Every hook defaults to doing nothing.
#[expect(unused_variables, reason = "the names of ignored arguments document the hooks")]
pub trait HttpFilter {
    /// Once, before anything of the body; `end` says that nothing follows.
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, end: bool) -> Flow {
        Flow::Continue
    }

    /// For each frame, only where `wants_request_frames`. The filter may change or empty `data`.
    fn on_request_data(&mut self, cx: &mut FilterContext<'_>, data: &mut Bytes, end: bool) -> Flow {
        Flow::Continue
    }

    /// Once, where the request has trailers and `wants_request_frames`.
    fn on_request_trailers(
        &mut self,
        cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        Flow::Continue
    }

    /// Bytes that go before the request's trailers, which this filter has just let pass.
    fn request_tail(&mut self) -> Bytes {
        Bytes::new()
    }

    /// Once, for the response that the client will see: the upstream's or a local reply.
    fn on_response_head(
        &mut self,
        cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        end: bool,
    ) -> Flow {
        Flow::Continue
    }

    /// As `on_request_data`, where `wants_response_frames`.
    fn on_response_data(
        &mut self,
        cx: &mut FilterContext<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Flow {
        Flow::Continue
    }

    /// As `on_request_trailers`, where `wants_response_frames`.
    fn on_response_trailers(
        &mut self,
        cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        Flow::Continue
    }

    /// As `request_tail`.
    fn response_tail(&mut self) -> Bytes {
        Bytes::new()
    }

    /// Once for every filter of every stream, reached or not, when the stream has ended; before the access log.
    fn on_end(&mut self, cx: &mut FilterContext<'_>) {}

    /// Whether the request's data and trailers are shown to this filter; asked once, after its head hook.
    fn wants_request_frames(&self) -> bool {
        false
    }

    /// Whether the response's data and trailers are shown to this filter; asked once, after its head hook.
    fn wants_response_frames(&self) -> bool {
        false
    }

    /// Whether the data hooks of a filter that sees frames are to be called for the end of a body, too. Without, an end
    /// that came with the last frame leaves with it.
    fn wants_end(&self) -> bool {
        true
    }
}

/// A compiled filter configuration that makes a filter for each stream. The built-in ones go through the enum
/// of `chain`, without an allocation; this is the door for filters from outside (tests, extensions).
pub trait FilterFactory: Send + Sync {
    /// A filter for a new stream.
    fn create(&self) -> Box<dyn HttpFilter>;
}

/// Compiles a filter's `typed_config` of one type URL.
pub type CompileFactory = fn(&PbAny, &FieldPath<'_>) -> Option<Arc<dyn FilterFactory>>;

/// Filters that are not built in, by type URL.
#[derive(Default, Clone)]
pub struct ExtraFilters(pub Vec<(&'static str, CompileFactory)>);

/// A per-route configuration, opaque to the route table.
pub type PerRouteConfig = Arc<dyn Any + Send + Sync>;
