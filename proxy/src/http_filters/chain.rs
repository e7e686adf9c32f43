//! The filters of one stream, in configuration order, and the registry of the built-in ones.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::{FilterContext, FilterFactory, Flow, HttpFilter};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::config::compile::core::any_type;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::route::CompilePerRoute;
use crate::config::extension::DiscoveredFilter;
use crate::config::hcm::HttpFilter as HttpFilterConfig;
use crate::config::name::NameId;
use crate::config::pb::google::protobuf::Any;
use crate::hcm::HcmScope;
use crate::hcm::local_reply::LocalReply;
use crate::router::RouteState;
use crate::stream_info::ResponseFlags;

/// One line for each filter: its variant and its module. A module has `TYPE` and `PER_ROUTE_TYPE` (message names),
/// `Config`, `Filter: HttpFilter` with `new(&Arc<Config>)`, `compile(any, stat_prefix, path) -> Option<Arc<Config>>`
/// and `compile_per_route(any, path) -> Option<PerRouteConfig>`; `Config` has `declare(&self, &HcmScope)`, which
/// makes its statistics exist at zero.
macro_rules! registry {
    ($($variant:ident = $module:ident,)*) => {
        /// A compiled HTTP filter.
        pub enum FilterConfig {
            $($variant(Arc<super::$module::Config>),)*
            /// From outside.
            Extra(Arc<dyn FilterFactory>),
            /// Found by name while the proxy runs.
            Discovered(Arc<DiscoveredFilter>),
            /// Not built: answers 500 and names its type.
            Unsupported(Arc<str>),
        }

        /// A filter of one stream.
        enum Filter {
            $($variant(super::$module::Filter),)*
            Extra(Box<dyn HttpFilter>),
            Missing(Missing),
            Unsupported(Unsupported),
        }

        impl FilterConfig {
            /// `None` where the type is not a built-in filter's; `Some(None)` where it does not compile (reported).
            pub fn compile(any: &Any, stat_prefix: &str, path: &FieldPath<'_>) -> Option<Option<Self>> {
                match any_type(any) {
                    $(super::$module::TYPE => {
                        Some(super::$module::compile(any, stat_prefix, path).map(Self::$variant))
                    })*
                    _ => None,
                }
            }

            /// The compile function of a type in `typed_per_filter_config`.
            pub fn per_route(type_name: &str) -> Option<CompilePerRoute> {
                match type_name {
                    $(super::$module::PER_ROUTE_TYPE => Some(super::$module::compile_per_route),)*
                    _ => None,
                }
            }

            /// Makes the filter's statistics exist at zero, as they do in Envoy before the first request.
            pub fn declare(&self, stats: &HcmScope) {
                match self {
                    $(Self::$variant(config) => config.declare(stats),)*
                    Self::Discovered(filter) => {
                        if let Some(config) = &*filter.load() {
                            config.declare(stats);
                        }
                    }
                    Self::Extra(_) | Self::Unsupported(_) => {}
                }
            }

            fn create(&self) -> Filter {
                match self {
                    $(Self::$variant(config) => Filter::$variant(super::$module::Filter::new(config)),)*
                    Self::Extra(factory) => Filter::Extra(factory.create()),
                    Self::Discovered(filter) => match &*filter.load() {
                        Some(config) => config.create(),
                        None => Filter::Missing(Missing),
                    },
                    Self::Unsupported(name) => Filter::Unsupported(Unsupported(name.clone())),
                }
            }
        }

        impl Filter {
            fn as_dyn(&mut self) -> &mut dyn HttpFilter {
                match self {
                    $(Self::$variant(filter) => filter,)*
                    Self::Extra(filter) => filter.as_mut(),
                    Self::Missing(filter) => filter,
                    Self::Unsupported(filter) => filter,
                }
            }
        }
    };
}

registry! {
    Cors = cors,
    HeaderMutation = header_mutation,
    HeaderToMetadata = header_to_metadata,
    Rbac = rbac,
    Buffer = buffer,
    Fault = fault,
    LocalRateLimit = local_ratelimit,
    GrpcStats = grpc_stats,
    Compressor = compressor,
}

impl std::fmt::Debug for FilterConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FilterConfig")
    }
}

/// Stands in for a filter that is not built: nothing may pass unchecked.
struct Unsupported(Arc<str>);

impl HttpFilter for Unsupported {
    fn on_request_head(&mut self, _cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        let body = format!("http filter {} is not supported", self.0);
        Flow::Reply(Box::new(
            LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "unsupported_filter").body(body),
        ))
    }
}

/// Stands in for a filter whose configuration has not come.
struct Missing;

impl HttpFilter for Missing {
    fn on_request_head(&mut self, _cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        let reply = LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "");
        Flow::Reply(Box::new(reply.flag(ResponseFlags::NO_FILTER_CONFIG_FOUND)))
    }
}

struct Entry {
    filter: Filter,
    slot: NameId,
    wants_request: bool,
    wants_response: bool,
}

/// The filters of one stream. Empty lists cost nothing.
#[derive(Default)]
pub struct FilterChain {
    entries: Vec<Entry>,
    /// A filter wants to see request (response) frames: without, bodies pass untouched.
    request_frames: bool,
    response_frames: bool,
    /// And one of them wants to see where they end.
    request_end: bool,
    response_end: bool,
}

impl FilterChain {
    /// Makes every filter that is on for the route. `spare` is an emptied list of an earlier stream.
    pub fn create(&mut self, configs: &[HttpFilterConfig], route: &RouteState) {
        self.entries.reserve(configs.len());
        for config in configs {
            if route.filter_disabled(config.slot).unwrap_or(config.disabled) {
                continue;
            }
            self.entries.push(Entry {
                filter: config.config.create(),
                slot: config.slot,
                wants_request: false,
                wants_response: false,
            });
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A filter wants request frames.
    pub fn reads_request(&self) -> bool {
        self.request_frames
    }

    /// A filter wants response frames.
    pub fn reads_response(&self) -> bool {
        self.response_frames
    }

    /// A filter wants to see the request's end.
    pub fn reads_request_end(&self) -> bool {
        self.request_end
    }

    /// A filter wants to see the response's end.
    pub fn reads_response_end(&self) -> bool {
        self.response_end
    }

    /// What is left of the response passes without the filters.
    pub fn pass_response(&mut self) {
        (self.response_frames, self.response_end) = (false, false);
    }

    pub fn request_head(&mut self, at: usize, cx: &mut FilterContext<'_>, end: bool) -> Flow {
        let entry = &mut self.entries[at];
        cx.slot = entry.slot;
        let filter = entry.filter.as_dyn();
        let flow = filter.on_request_head(cx, end);
        entry.wants_request = filter.wants_request_frames();
        self.request_frames |= entry.wants_request;
        self.request_end |= entry.wants_request && filter.wants_end();
        flow
    }

    pub fn request_data(
        &mut self,
        at: usize,
        cx: &mut FilterContext<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Flow {
        let entry = &mut self.entries[at];
        if !entry.wants_request {
            return Flow::Continue;
        }
        cx.slot = entry.slot;
        entry.filter.as_dyn().on_request_data(cx, data, end)
    }

    pub fn request_trailers(
        &mut self,
        at: usize,
        cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        let entry = &mut self.entries[at];
        if !entry.wants_request {
            return Flow::Continue;
        }
        cx.slot = entry.slot;
        entry.filter.as_dyn().on_request_trailers(cx, trailers)
    }

    /// Bytes that filter `at` puts before the request's trailers.
    pub fn request_tail(&mut self, at: usize) -> Bytes {
        let entry = &mut self.entries[at];
        if entry.wants_request { entry.filter.as_dyn().request_tail() } else { Bytes::new() }
    }

    /// As `request_tail`.
    pub fn response_tail(&mut self, at: usize) -> Bytes {
        let entry = &mut self.entries[at];
        if entry.wants_response { entry.filter.as_dyn().response_tail() } else { Bytes::new() }
    }

    pub fn response_head(
        &mut self,
        at: usize,
        cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        end: bool,
    ) -> Flow {
        let entry = &mut self.entries[at];
        cx.slot = entry.slot;
        let filter = entry.filter.as_dyn();
        let flow = filter.on_response_head(cx, head, end);
        entry.wants_response = filter.wants_response_frames();
        self.response_frames |= entry.wants_response;
        self.response_end |= entry.wants_response && filter.wants_end();
        flow
    }

    pub fn response_data(
        &mut self,
        at: usize,
        cx: &mut FilterContext<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Flow {
        let entry = &mut self.entries[at];
        if !entry.wants_response {
            return Flow::Continue;
        }
        cx.slot = entry.slot;
        entry.filter.as_dyn().on_response_data(cx, data, end)
    }

    pub fn response_trailers(
        &mut self,
        at: usize,
        cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        let entry = &mut self.entries[at];
        if !entry.wants_response {
            return Flow::Continue;
        }
        cx.slot = entry.slot;
        entry.filter.as_dyn().on_response_trailers(cx, trailers)
    }

    /// `on_end` of every filter.
    pub fn end(&mut self, cx: &mut FilterContext<'_>) {
        for entry in &mut self.entries {
            cx.slot = entry.slot;
            entry.filter.as_dyn().on_end(cx);
        }
    }
}
