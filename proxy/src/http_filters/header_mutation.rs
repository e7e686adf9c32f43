//! `envoy.filters.http.header_mutation`: changes headers, query parameters and trailers; the filter's own
//! mutations first, then those of every level of the route.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::config::compile::core::unpack_any;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::header_ops::compile_header_mutations;
use crate::config::header_ops::HeaderOps;
use crate::config::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::hcm::HcmScope;
use crate::http_filters::query_mutation::{QueryMutation, compile_query_mutations, mutate_query};

pub const TYPE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
pub const PER_ROUTE_TYPE: &str =
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";

/// `HeaderMutation`.
#[derive(Debug)]
pub struct Config {
    mutations: Mutations,
    most_specific_wins: bool,
}

impl Config {
    /// It has no statistics.
    pub fn declare(&self, _hcm: &HcmScope) {}
}

/// `Mutations`, of the filter or of one level of a route.
#[derive(Debug, Default)]
struct Mutations {
    request: HeaderOps,
    query: Box<[QueryMutation]>,
    request_trailers: HeaderOps,
    response: HeaderOps,
    response_trailers: HeaderOps,
}

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    let config: pb::HeaderMutation = unpack_any(any, path)?;
    Some(Arc::new(Config {
        mutations: compile_mutations(config.mutations.as_ref(), path)?,
        most_specific_wins: config.most_specific_header_mutations_wins,
    }))
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    let config: pb::HeaderMutationPerRoute = unpack_any(any, path)?;
    Some(Arc::new(compile_mutations(config.mutations.as_ref(), path)?))
}

fn compile_mutations(mutations: Option<&pb::Mutations>, path: &FieldPath<'_>) -> Option<Mutations> {
    let Some(mutations) = mutations else { return Some(Mutations::default()) };
    let path = path.field("mutations");
    let ops = |list, field| compile_header_mutations(list, field, &path);
    Some(Mutations {
        request: ops(&mutations.request_mutations, "request_mutations"),
        query: compile_query_mutations(
            &mutations.query_parameter_mutations,
            "query_parameter_mutations",
            &path,
        )?,
        request_trailers: ops(&mutations.request_trailers_mutations, "request_trailers_mutations"),
        response: ops(&mutations.response_mutations, "response_mutations"),
        response_trailers: ops(
            &mutations.response_trailers_mutations,
            "response_trailers_mutations",
        ),
    })
}

/// One stream's mutations.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    /// The route's levels in the order in which they run; found once, as the route is at the request's head.
    levels: Option<SmallVec<[PerRouteConfig; 2]>>,
}

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self { config: config.clone(), levels: None }
    }

    fn find_levels(&mut self, cx: &FilterContext<'_>) {
        let most_specific_wins = self.config.most_specific_wins;
        self.levels.get_or_insert_with(|| {
            let Some(matched) = cx.route.matched() else { return SmallVec::new() };
            let mut levels: SmallVec<[PerRouteConfig; 2]> =
                cx.route.table().filter_configs(matched, cx.slot).cloned().collect();
            if !most_specific_wins {
                levels.reverse();
            }
            levels
        });
    }

    fn all(&self) -> impl Iterator<Item = &Mutations> {
        let levels = self.levels.iter().flatten();
        std::iter::once(&self.config.mutations)
            .chain(levels.filter_map(|level| level.downcast_ref::<Mutations>()))
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        cx.route.resolve(cx.request);
        self.find_levels(cx);
        for mutations in self.all() {
            mutations.request.apply_request(cx.request, cx.info);
            mutate_query(&mutations.query, cx.request, cx.info);
        }
        Flow::Continue
    }

    fn on_request_trailers(
        &mut self,
        cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        for mutations in self.all() {
            mutations.request_trailers.apply_trailers(trailers, Some(cx.request), None, cx.info);
        }
        Flow::Continue
    }

    fn on_response_head(
        &mut self,
        cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        _end: bool,
    ) -> Flow {
        // A local reply may come before the request's head was seen.
        self.find_levels(cx);
        for mutations in self.all() {
            mutations.response.apply_response(head, Some(cx.request), cx.info);
        }
        Flow::Continue
    }

    fn on_response_trailers(
        &mut self,
        cx: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        for mutations in self.all() {
            mutations.response_trailers.apply_trailers(trailers, Some(cx.request), None, cx.info);
        }
        Flow::Continue
    }

    fn wants_request_frames(&self) -> bool {
        self.all().any(|mutations| !mutations.request_trailers.is_empty())
    }

    fn wants_response_frames(&self) -> bool {
        self.all().any(|mutations| !mutations.response_trailers.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::codec::head::Protocol;
    use crate::config::pb::envoy::config::common::mutation_rules::v3 as rules_pb;
    use crate::config::pb::envoy::config::core::v3 as core_pb;
    use crate::http_filters::testing::{TestStream, any, compiled};

    fn set(name: &str, value: &str) -> rules_pb::HeaderMutation {
        use core_pb::header_value_option::HeaderAppendAction;
        let header =
            core_pb::HeaderValue { key: name.into(), value: value.into(), ..Default::default() };
        let option = core_pb::HeaderValueOption {
            header: Some(header),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
            ..Default::default()
        };
        rules_pb::HeaderMutation { action: Some(rules_pb::header_mutation::Action::Append(option)) }
    }

    fn mutations(value: &str) -> pb::Mutations {
        pb::Mutations {
            request_mutations: vec![set("x-m", value)],
            response_mutations: vec![set("x-m", value)],
            response_trailers_mutations: vec![set("x-t", value)],
            ..Default::default()
        }
    }

    #[test]
    fn the_route_comes_after_the_filter() {
        let per_route = pb::HeaderMutationPerRoute { mutations: Some(mutations("route")) };
        let mut stream = TestStream::new(Some(any(&per_route)));
        let config =
            pb::HeaderMutation { mutations: Some(mutations("filter")), ..Default::default() };
        let config = compiled(|path| compile(&any(&config), "", path)).unwrap();
        let mut filter = Filter::new(&config);
        stream.with(|cx| filter.on_request_head(cx, true));
        let name = crate::codec::name::HeaderName::parse("x-m").unwrap();
        assert_eq!(stream.request.headers.get_str(&name), Some("route"));
        let mut head = ResponseHead::new(StatusCode::OK, Protocol::Http11);
        stream.with(|cx| filter.on_response_head(cx, &mut head, false));
        assert_eq!(head.headers.get_str(&name), Some("route"));
        assert!(filter.wants_response_frames() && !filter.wants_request_frames());
        let mut trailers = HeaderList::new();
        stream.with(|cx| filter.on_response_trailers(cx, &mut trailers));
        assert_eq!(trailers.len(), 1);
    }

    #[test]
    fn a_filter_without_mutations_does_nothing() {
        let mut stream = TestStream::new(None);
        let config = compiled(|path| compile(&any(&pb::HeaderMutation::default()), "", path));
        let mut filter = Filter::new(&config.unwrap());
        let before = stream.request.headers.len();
        stream.with(|cx| filter.on_request_head(cx, true));
        assert_eq!(stream.request.headers.len(), before);
        assert!(!filter.wants_response_frames());
    }
}
