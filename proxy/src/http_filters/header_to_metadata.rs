//! `envoy.filters.http.header_to_metadata`: values of headers and cookies become dynamic metadata of the stream, for
//! filters behind it and for logs. What a route says takes the place of the filter's own rules.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use prost::Message as _;
use serde_json::Value;

use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::name::{HeaderName, names};
use crate::config::compile::core::{unpack_any, value_to_json};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::compile_regex_replace;
use crate::config::matcher::re2::RegexReplace;
use crate::config::pb::envoy::extensions::filters::http::header_to_metadata::v3 as pb;
use crate::config::pb::envoy::extensions::filters::http::header_to_metadata::v3::config as pb_config;
use crate::config::pb::google::protobuf as pb_google;
use crate::config::pb::google::protobuf::Any;
use crate::hcm::HcmScope;
use crate::stream_info::StreamInfo;

pub const TYPE: &str = "envoy.extensions.filters.http.header_to_metadata.v3.Config";
/// A route's configuration is the filter's message, too.
pub const PER_ROUTE_TYPE: &str = TYPE;

/// The namespace where a rule has none.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

/// Values as long as this are left out, as in Envoy.
const MAX_VALUE: usize = 8 * 1024;

/// Standard alphabet, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `Config`, of the filter or of one level of a route.
#[derive(Debug)]
pub struct Config {
    request: Box<[Rule]>,
    response: Box<[Rule]>,
}

impl Config {
    /// It has no statistics.
    pub fn declare(&self, _hcm: &HcmScope) {}
}

#[derive(Debug)]
struct Rule {
    source: Source,
    present: Option<Entry>,
    missing: Option<Entry>,
}

#[derive(Debug)]
enum Source {
    Header { name: HeaderName, remove: bool },
    Cookie(Box<[u8]>),
}

/// What is left, and where.
#[derive(Debug)]
struct Entry {
    namespace: Arc<str>,
    key: Box<str>,
    value: EntryValue,
    kind: pb_config::ValueType,
    is_base64: bool,
}

#[derive(Debug)]
enum EntryValue {
    /// As it was found.
    Found,
    Fixed(Box<str>),
    Rewritten(RegexReplace),
}

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    compile_config(&unpack_any(any, path)?, path).map(Arc::new)
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    let pb: pb::Config = unpack_any(any, path)?;
    if pb.request_rules.is_empty() && pb.response_rules.is_empty() {
        path.error("must at least specify either request or response rules");
    }
    Some(Arc::new(compile_config(&pb, path)?))
}

fn compile_config(pb: &pb::Config, path: &FieldPath<'_>) -> Option<Config> {
    let rules = |rules: &[pb_config::Rule], field| -> Option<Box<[Rule]>> {
        let rules = rules.iter().enumerate();
        let rules: Vec<_> =
            rules.map(|(i, rule)| compile_rule(rule, &path.index(field, i))).collect();
        rules.into_iter().collect()
    };
    let (request, response) =
        (rules(&pb.request_rules, "request_rules"), rules(&pb.response_rules, "response_rules"));
    Some(Config { request: request?, response: response? })
}

fn compile_rule(pb: &pb_config::Rule, path: &FieldPath<'_>) -> Option<Rule> {
    let source = match (&*pb.header, &*pb.cookie) {
        ("", "") => {
            path.error("One of Cookie or Header option needs to be specified");
            return None;
        }
        (name, "") => {
            let name = path.field("header").ok_or_error(HeaderName::parse(name))?;
            if pb.remove && (name.is_pseudo() || name == names::HOST) {
                path.field("remove").ignored("what a request is made of stays");
            }
            Source::Header { name, remove: pb.remove }
        }
        ("", cookie) => {
            if pb.remove {
                path.field("remove").error("Cannot specify remove for cookie");
            }
            Source::Cookie(cookie.as_bytes().into())
        }
        _ => {
            path.error("Cannot specify both header and cookie");
            return None;
        }
    };
    if pb.on_header_present.is_none() && pb.on_header_missing.is_none() {
        path.error("neither `on_header_present` nor `on_header_missing` set");
    }
    if pb.on_header_missing.as_ref().is_some_and(|missing| missing.value.is_empty()) {
        path.field("on_header_missing")
            .error("Cannot specify on_header_missing rule with an empty value");
    }
    let entry = |pb: &Option<pb_config::KeyValuePair>, field| match pb {
        Some(pb) => compile_entry(pb, &path.field(field)).map(Some),
        None => Some(None),
    };
    let (present, missing) = (
        entry(&pb.on_header_present, "on_header_present"),
        entry(&pb.on_header_missing, "on_header_missing"),
    );
    Some(Rule { source, present: present?, missing: missing? })
}

fn compile_entry(pb: &pb_config::KeyValuePair, path: &FieldPath<'_>) -> Option<Entry> {
    if pb.key.is_empty() {
        path.field("key").error("value length must be at least 1 characters");
    }
    let value = match &pb.regex_value_rewrite {
        Some(_) if !pb.value.is_empty() => {
            path.error("Cannot specify both value and regex_value_rewrite");
            return None;
        }
        Some(rewrite) => EntryValue::Rewritten(compile_regex_replace(
            rewrite,
            &path.field("regex_value_rewrite"),
        )?),
        None if pb.value.is_empty() => EntryValue::Found,
        None => EntryValue::Fixed(pb.value.as_str().into()),
    };
    let Ok(kind) = pb_config::ValueType::try_from(pb.r#type) else {
        path.field("type").error("unknown enum value");
        return None;
    };
    let namespace =
        if pb.metadata_namespace.is_empty() { NAMESPACE } else { &pb.metadata_namespace };
    Some(Entry {
        namespace: namespace.into(),
        key: pb.key.as_str().into(),
        value,
        kind,
        is_base64: pb.encode == pb_config::ValueEncode::Base64 as i32,
    })
}

impl Rule {
    /// Leaves what it has to say of `found`.
    fn apply(&self, found: Option<Vec<u8>>, info: &mut StreamInfo) {
        let entry = if found.is_some() { &self.present } else { &self.missing };
        let Some(entry) = entry else { return };
        if let Some(value) = entry.value_of(&found.unwrap_or_default()) {
            info.metadata_mut(&entry.namespace).insert((*entry.key).to_owned(), value);
        }
    }
}

impl Entry {
    /// `None` for what is empty, too long or not of its type.
    fn value_of(&self, found: &[u8]) -> Option<Value> {
        let mut value = match &self.value {
            EntryValue::Found => Cow::Borrowed(found),
            EntryValue::Fixed(value) => Cow::Borrowed(value.as_bytes()),
            EntryValue::Rewritten(rewrite) => {
                let mut out = Vec::new();
                rewrite.replace_all(found, &mut out);
                Cow::Owned(out)
            }
        };
        if value.is_empty() || value.len() >= MAX_VALUE {
            return None;
        }
        if self.is_base64 {
            value = Cow::Owned(BASE64.decode(&value).ok().filter(|value| !value.is_empty())?);
        }
        match self.kind {
            pb_config::ValueType::String => {
                Some(Value::String(String::from_utf8_lossy(&value).into_owned()))
            }
            pb_config::ValueType::Number => {
                let number = std::str::from_utf8(&value).ok()?.trim().parse::<f64>().ok()?;
                let kind = Some(pb_google::value::Kind::NumberValue(number));
                Some(value_to_json(&pb_google::Value { kind }))
            }
            pb_config::ValueType::ProtobufValue => {
                pb_google::Value::decode(&*value).ok().map(|value| value_to_json(&value))
            }
        }
    }
}

/// All lines of a header, joined by commas; `None` where there is none.
fn joined(headers: &HeaderList, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = headers.get_all(name);
    let mut all = lines.next()?.to_vec();
    for line in lines {
        all.push(b',');
        all.extend_from_slice(line);
    }
    Some(all)
}

/// The value of a cookie, without the quotes around it; `None` where it is empty or not there.
fn cookie(headers: &HeaderList, key: &[u8]) -> Option<Vec<u8>> {
    let mut cookies =
        headers.get_all(&names::COOKIE).flat_map(|line| line.split(|byte| *byte == b';'));
    let value = cookies.find_map(|cookie| {
        let at = cookie.iter().position(|byte| *byte == b'=')?;
        (cookie[..at].trim_ascii() == key).then(|| cookie[at + 1..].trim_ascii())
    })?;
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some(unquoted.unwrap_or(value).to_vec()).filter(|value| !value.is_empty())
}

/// One stream's filter; it keeps nothing.
#[derive(Debug)]
pub struct Filter(Arc<Config>);

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self(config.clone())
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        cx.route.resolve(cx.request);
        let per_route = cx.route.per_filter_config(cx.slot).cloned();
        let per_route = per_route.as_ref().and_then(|config| config.downcast_ref::<Config>());
        for rule in &per_route.unwrap_or(&self.0).request {
            let found = match &rule.source {
                Source::Cookie(key) => cookie(&cx.request.headers, key),
                Source::Header { name, .. } if name.is_pseudo() || *name == names::HOST => {
                    cx.request.get(name).map(<[u8]>::to_vec)
                }
                Source::Header { name, remove } => {
                    let found = joined(&cx.request.headers, name);
                    if *remove {
                        cx.request.headers.remove(name);
                    }
                    found
                }
            };
            rule.apply(found, cx.info);
        }
        Flow::Continue
    }

    fn on_response_head(
        &mut self,
        cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        _end: bool,
    ) -> Flow {
        let per_route = cx.route.per_filter_config(cx.slot).cloned();
        let per_route = per_route.as_ref().and_then(|config| config.downcast_ref::<Config>());
        for rule in &per_route.unwrap_or(&self.0).response {
            let found = match &rule.source {
                Source::Cookie(key) => cookie(&head.headers, key),
                Source::Header { name, .. } if name.is_pseudo() => {
                    head.get(name).map(<[u8]>::to_vec)
                }
                Source::Header { name, remove } => {
                    let found = joined(&head.headers, name);
                    if *remove {
                        head.headers.remove(name);
                    }
                    found
                }
            };
            rule.apply(found, cx.info);
        }
        Flow::Continue
    }
}
