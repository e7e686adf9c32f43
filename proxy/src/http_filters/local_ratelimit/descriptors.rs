//! Rate limit descriptors: made of a request by `rate_limits`, and matched with the configured ones.

use smallvec::SmallVec;

use crate::codec::head::RequestHead;
use crate::codec::name::HeaderName;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::compile_header_matchers;
use crate::config::matcher::header::{HeaderMatcher, all_match};
use crate::config::matcher::query::parameters;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use crate::http_filters::FilterContext;
use crate::stream_info::Address;

/// The entries of a configured descriptor: keys and values.
pub(super) type Entries = Box<[(Box<str>, Box<[u8]>)]>;

/// One descriptor of a request.
pub(super) type Descriptor = SmallVec<[(Box<str>, Vec<u8>); 2]>;

/// A compiled `RateLimit`: each action adds an entry, or the descriptor is not made.
#[derive(Debug)]
pub(super) struct RateLimit(Box<[Action]>);

#[derive(Debug)]
enum Action {
    DestinationCluster,
    RequestHeader {
        name: HeaderName,
        key: Box<str>,
        skip_if_absent: bool,
    },
    QueryParameter {
        name: Box<[u8]>,
        key: Box<str>,
        skip_if_absent: bool,
    },
    RemoteAddress,
    GenericKey {
        key: Box<str>,
        value: Box<[u8]>,
    },
    HeaderValueMatch {
        key: Box<str>,
        value: Box<[u8]>,
        headers: Box<[HeaderMatcher]>,
        expect: bool,
    },
}

impl RateLimit {
    pub(super) fn compile(pb: &pb::RateLimit, path: &FieldPath<'_>) -> Option<Self> {
        for (set, field) in [
            (pb.stage.is_some(), "stage"),
            (!pb.disable_key.is_empty(), "disable_key"),
            (pb.limit.is_some(), "limit"),
            (pb.hits_addend.is_some(), "hits_addend"),
        ] {
            if set {
                path.field(field).ignored("has no effect in local rate limits");
            }
        }
        let actions: Vec<Option<Action>> = pb
            .actions
            .iter()
            .enumerate()
            .map(|(i, action)| Action::compile(action, &path.index("actions", i)))
            .collect();
        let actions: Box<[Action]> = actions.into_iter().collect::<Option<_>>()?;
        if actions.is_empty() {
            path.field("actions").error("needs at least one");
            return None;
        }
        Some(Self(actions))
    }

    /// The descriptor of a request; `None` where an action has nothing to add.
    pub(super) fn descriptor(&self, cx: &FilterContext<'_>) -> Option<Descriptor> {
        let mut descriptor = Descriptor::new();
        for action in &self.0 {
            action.add(cx, &mut descriptor)?;
        }
        (!descriptor.is_empty()).then_some(descriptor)
    }
}

impl Action {
    fn compile(pb: &pb::rate_limit::Action, path: &FieldPath<'_>) -> Option<Self> {
        let or = |given: &str, default: &str| -> Box<str> {
            if given.is_empty() { default.into() } else { given.into() }
        };
        let required = |text: &str, field: &str| {
            if text.is_empty() {
                path.field(field).error("is empty");
            }
            !text.is_empty()
        };
        match &pb.action_specifier {
            Some(ActionSpecifier::DestinationCluster(_)) => Some(Self::DestinationCluster),
            Some(ActionSpecifier::RemoteAddress(_)) => Some(Self::RemoteAddress),
            Some(ActionSpecifier::RequestHeaders(header)) => {
                let name = path
                    .field("header_name")
                    .ok_or_error(HeaderName::parse(&header.header_name))?;
                required(&header.descriptor_key, "descriptor_key").then(|| Self::RequestHeader {
                    name,
                    key: header.descriptor_key.as_str().into(),
                    skip_if_absent: header.skip_if_absent,
                })
            }
            Some(ActionSpecifier::QueryParameters(query)) => {
                let complete = required(&query.query_parameter_name, "query_parameter_name")
                    && required(&query.descriptor_key, "descriptor_key");
                complete.then(|| Self::QueryParameter {
                    name: query.query_parameter_name.as_bytes().into(),
                    key: query.descriptor_key.as_str().into(),
                    skip_if_absent: query.skip_if_absent,
                })
            }
            Some(ActionSpecifier::GenericKey(generic)) => {
                required(&generic.descriptor_value, "descriptor_value").then(|| Self::GenericKey {
                    key: or(&generic.descriptor_key, "generic_key"),
                    value: generic.descriptor_value.as_bytes().into(),
                })
            }
            Some(ActionSpecifier::HeaderValueMatch(header)) => {
                let headers = compile_header_matchers(&header.headers, "headers", path)?;
                required(&header.descriptor_value, "descriptor_value").then(|| {
                    Self::HeaderValueMatch {
                        key: or(&header.descriptor_key, "header_match"),
                        value: header.descriptor_value.as_bytes().into(),
                        headers,
                        expect: header.expect_match.as_ref().is_none_or(|expect| expect.value),
                    }
                })
            }
            other => {
                let name = format!("{other:?}");
                let name = name.trim_start_matches("Some(").split('(').next().unwrap_or("");
                path.error(format_args!("action {name} is not implemented"));
                None
            }
        }
    }

    /// `None`: no descriptor. An action that may be absent adds nothing.
    fn add(&self, cx: &FilterContext<'_>, descriptor: &mut Descriptor) -> Option<()> {
        let request: &RequestHead = cx.request;
        let (key, value): (&str, Vec<u8>) = match self {
            Self::DestinationCluster => {
                let matched = cx.route.matched()?;
                let cluster = cx.route.table().cluster_name(matched, request)?;
                ("destination_cluster", cluster.into())
            }
            Self::RemoteAddress => match &cx.info.remote {
                Address::Ip(address) => ("remote_address", address.ip().to_string().into()),
                Address::Pipe(_) | Address::Internal(_) => return None,
            },
            Self::RequestHeader { name, key, skip_if_absent } => match request.get(name) {
                Some(value) => (key, value.into()),
                None => return skip_if_absent.then_some(()),
            },
            Self::QueryParameter { name, key, skip_if_absent } => {
                let mut found = parameters(request.path().unwrap_or_default());
                match found.find(|(parameter, _)| *parameter == &**name) {
                    Some((_, value)) => (key, value.into()),
                    None => return skip_if_absent.then_some(()),
                }
            }
            Self::GenericKey { key, value } => (key, value.to_vec()),
            Self::HeaderValueMatch { key, value, headers, expect } => {
                if all_match(headers, request) != *expect {
                    return None;
                }
                (key, value.to_vec())
            }
        };
        descriptor.push((key.into(), value));
        Some(())
    }
}

/// Whether a configured descriptor is this one of the request: all entries, in order.
pub(super) fn equal(configured: &[(Box<str>, Box<[u8]>)], found: &Descriptor) -> bool {
    configured.len() == found.len()
        && configured
            .iter()
            .zip(found)
            .all(|((key, value), (k, v))| key == k && **value == *v.as_slice())
}
