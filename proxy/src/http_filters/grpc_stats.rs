//! `envoy.filters.http.grpc_stats`: counts calls, their statuses and their messages with the cluster that they go to, and
//! leaves the numbers of messages for the access log (`%FILTER_STATE(envoy.filters.http.grpc_stats)%`).

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use rustc_hash::FxHashSet;

use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::cluster::grpc::{GrpcCounters, GrpcStat};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::name::names;
use crate::config::compile::core::unpack_any;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::envoy::extensions::filters::http::grpc_stats::v3 as pb;
use crate::config::pb::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use crate::config::pb::google::protobuf::Any;
use crate::format::grpc::{is_grpc_content_type, is_grpc_request};
use crate::stream_info::GrpcMessages;

pub const TYPE: &str = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
pub const PER_ROUTE_TYPE: &str = TYPE;

/// `FilterConfig`.
#[derive(Debug)]
pub struct Config {
    emit_filter_state: bool,
    upstream_stats: bool,
    replace_dots: bool,
    methods: Methods,
}

/// Which methods have statistics of their own.
#[derive(Debug)]
enum Methods {
    All,
    /// `service/method`.
    Listed(FxHashSet<Box<str>>),
}

impl Config {
    /// Its statistics are the clusters', made with the first call.
    pub fn declare(&self, _hcm: &crate::hcm::HcmScope) {}
}

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    let config: pb::FilterConfig = unpack_any(any, path)?;
    let methods = match &config.per_method_stat_specifier {
        Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if all.value => Methods::All,
        Some(PerMethodStatSpecifier::StatsForAllMethods(_)) | None => {
            Methods::Listed(FxHashSet::default())
        }
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
            let of = |service: &str, method: &str| format!("{service}/{method}").into_boxed_str();
            let services = list.services.iter();
            Methods::Listed(
                services
                    .flat_map(|s| s.method_names.iter().map(|method| of(&s.name, method)))
                    .collect(),
            )
        }
    };
    Some(Arc::new(Config {
        emit_filter_state: config.emit_filter_state,
        upstream_stats: config.enable_upstream_stats,
        replace_dots: config.replace_dots_in_grpc_service_name,
        methods,
    }))
}

pub fn compile_per_route(_any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    path.error(
        "the filter envoy.filters.http.grpc_stats has no virtual host or route specific configurations",
    );
    None
}

/// One stream's call, if it is one.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    /// `None` where there is no cluster, or no method in the path.
    counters: Option<Rc<GrpcCounters>>,
    is_grpc: bool,
    answers_grpc: bool,
    request: Messages,
    response: Messages,
}

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self {
            config: config.clone(),
            counters: None,
            is_grpc: false,
            answers_grpc: false,
            request: Messages::default(),
            response: Messages::default(),
        }
    }

    /// Counts what began in one direction.
    fn count(&self, cx: &mut FilterContext<'_>, begun: u64, stat: GrpcStat) {
        if begun == 0 {
            return;
        }
        if let Some(counters) = &self.counters {
            counters.stats.add(stat, begun);
        }
        if self.config.emit_filter_state {
            let (request, response) = (self.request.count, self.response.count);
            cx.info.grpc_messages = Some(GrpcMessages { request, response });
        }
    }

    fn charge(&self, fields: &HeaderList) {
        if let (Some(counters), Some(status)) = (&self.counters, fields.get(&names::GRPC_STATUS)) {
            counters.charge(status);
        }
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        self.is_grpc = cx.request.path().is_some() && is_grpc_request(cx.request);
        if !self.is_grpc {
            return Flow::Continue;
        }
        let (Some(cluster), Some(path)) = (cx.cluster, method_path(cx.request.path())) else {
            return Flow::Continue;
        };
        let told_apart = match &self.config.methods {
            Methods::All => true,
            Methods::Listed(methods) => methods.contains(path),
        };
        self.counters = Some(match told_apart {
            true => cluster.grpc().method(path, self.config.replace_dots),
            false => cluster.grpc().all(),
        });
        Flow::Continue
    }

    fn on_request_data(&mut self, cx: &mut FilterContext<'_>, data: &mut Bytes, _: bool) -> Flow {
        let begun = self.request.read(data);
        self.count(cx, begun, GrpcStat::RequestMessages);
        Flow::Continue
    }

    fn on_response_head(
        &mut self,
        _cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        end: bool,
    ) -> Flow {
        self.answers_grpc = if end {
            head.headers.contains(&names::GRPC_STATUS)
        } else {
            head.status == StatusCode::OK
                && is_grpc_content_type(head.headers.get(&names::CONTENT_TYPE))
        };
        self.charge(&head.headers);
        Flow::Continue
    }

    fn on_response_data(&mut self, cx: &mut FilterContext<'_>, data: &mut Bytes, _: bool) -> Flow {
        if self.answers_grpc {
            let begun = self.response.read(data);
            self.count(cx, begun, GrpcStat::ResponseMessages);
        }
        Flow::Continue
    }

    fn on_response_trailers(
        &mut self,
        _cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        self.charge(trailers);
        Flow::Continue
    }

    fn on_end(&mut self, cx: &mut FilterContext<'_>) {
        let timing = &cx.info.timing;
        if self.config.upstream_stats
            && let Some(counters) = &self.counters
            && let (Some(sent), Some(received)) = (timing.last_upstream_tx, timing.last_upstream_rx)
        {
            let took = received.saturating_duration_since(sent).as_millis() as u64;
            counters.stats.record(GrpcStat::UpstreamRqTime, took);
        }
    }

    fn wants_request_frames(&self) -> bool {
        self.is_grpc
    }

    fn wants_response_frames(&self) -> bool {
        self.answers_grpc || self.counters.is_some()
    }

    fn wants_end(&self) -> bool {
        false
    }
}

/// `service/method` of a path that has just these two.
fn method_path(path: Option<&[u8]>) -> Option<&str> {
    let path = std::str::from_utf8(path?).ok()?.strip_prefix('/')?;
    let path = path.split('?').next().unwrap_or_default();
    let (service, method) = path.split_once('/')?;
    let one_of_each = !service.is_empty() && !method.is_empty() && !method.contains('/');
    one_of_each.then_some(path)
}

/// Finds where length-prefixed messages begin (gRPC over HTTP/2: `Compressed-Flag`, four bytes of length, message).
#[derive(Debug, Default)]
struct Messages {
    /// Begun so far.
    count: u64,
    /// Bytes of a prefix that have come.
    prefix: u8,
    length: u32,
    /// Bytes of a message that are to come.
    left: u32,
}

impl Messages {
    /// Goes over bytes; how many messages begin in them.
    fn read(&mut self, mut data: &[u8]) -> u64 {
        let before = self.count;
        while let Some((first, rest)) = data.split_first() {
            if self.left > 0 {
                let n = data.len().min(self.left as usize);
                self.left -= n as u32;
                data = &data[n..];
                continue;
            }
            match self.prefix {
                0 => self.count += 1,
                _ => self.length = self.length << 8 | u32::from(*first),
            }
            self.prefix += 1;
            if self.prefix == 5 {
                self.left = std::mem::take(&mut self.length);
                self.prefix = 0;
            }
            data = rest;
        }
        self.count - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_filters::testing::{TestStream, any, compiled};

    #[test]
    fn paths_that_name_a_method() {
        for (path, expected) in [
            ("/pkg.Svc/Call", Some("pkg.Svc/Call")),
            ("/pkg.Svc/Call?a=/b", Some("pkg.Svc/Call")),
            ("/pkg.Svc/", None),
            ("//Call", None),
            ("/pkg.Svc", None),
            ("/a/b/c", None),
            ("pkg.Svc/Call", None),
        ] {
            assert_eq!(method_path(Some(path.as_bytes())), expected, "{path}");
        }
    }

    #[test]
    fn messages_are_counted_where_they_begin_however_they_are_cut() {
        let stream = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0]].concat();
        for size in 1..=stream.len() {
            let mut messages = Messages::default();
            let begun: u64 = stream.chunks(size).map(|part| messages.read(part)).sum();
            assert_eq!((begun, messages.count, messages.left), (3, 3, 256), "{size}");
        }
        assert_eq!(Messages::default().read(&[]), 0);
    }

    #[test]
    fn numbers_of_messages_are_left_for_logs() {
        let config = pb::FilterConfig { emit_filter_state: true, ..Default::default() };
        let config = compiled(|path| compile(&any(&config), "", path)).unwrap();
        let (mut stream, mut filter) = (TestStream::new(None), Filter::new(&config));
        stream.request.headers.set(&names::CONTENT_TYPE, b"application/grpc+proto");
        stream.with(|cx| filter.on_request_head(cx, false));
        assert!(filter.wants_request_frames());
        let mut data = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        stream.with(|cx| filter.on_request_data(cx, &mut data, false));
        let mut head = ResponseHead::new(StatusCode::OK, stream.request.protocol);
        head.headers.set(&names::CONTENT_TYPE, b"application/grpc");
        stream.with(|cx| filter.on_response_head(cx, &mut head, false));
        let mut data = Bytes::from_static(&[0]);
        stream.with(|cx| filter.on_response_data(cx, &mut data, false));
        let left = stream.info.grpc_messages.unwrap();
        assert_eq!((left.request, left.response), (2, 1));
    }

    #[test]
    fn what_is_no_call_passes_unseen() {
        let config =
            compiled(|path| compile(&any(&pb::FilterConfig::default()), "", path)).unwrap();
        let (mut stream, mut filter) = (TestStream::new(None), Filter::new(&config));
        stream.with(|cx| filter.on_request_head(cx, false));
        assert!(!filter.wants_request_frames() && !filter.wants_response_frames());
        assert!(
            compiled(|path| compile_per_route(&any(&pb::FilterConfig::default()), path)).is_err()
        );
    }
}
