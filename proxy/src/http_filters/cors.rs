//! `envoy.filters.http.cors`: answers preflights, and tells browsers which origins may read responses.
//!
//! What holds for a request is in its route's policies, most specific level first; a field that the first
//! does not say is looked for in the next. Only forwarding routes have CORS.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::name::{HeaderName, names};
use crate::config::compile::core::unpack_any;
use crate::config::compile::cors::compile_cors;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::envoy::extensions::filters::http::cors::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::route::CorsPolicy;
use crate::hcm::HcmScope;
use crate::hcm::local_reply::LocalReply;
use crate::stats::{FilterStats, Scope};

pub const TYPE: &str = "envoy.extensions.filters.http.cors.v3.Cors";
pub const PER_ROUTE_TYPE: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";

crate::metrics! {
    /// `http.<stat_prefix>.cors.`
    pub enum CorsStat {
        OriginValid: counter "origin_valid",
        OriginInvalid: counter "origin_invalid",
    }
}

/// The message is empty.
#[derive(Debug, Default)]
pub struct Config {
    stats: FilterStats<CorsStat>,
}

impl Config {
    /// See `chain::FilterConfig::declare`.
    pub fn declare(&self, hcm: &HcmScope) {
        self.stats.declare(|| scope(hcm));
    }
}

fn scope(hcm: &HcmScope) -> Scope {
    hcm.scope.scope("cors")
}

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    let _: pb::Cors = unpack_any(any, path)?;
    Some(Arc::default())
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    Some(Arc::new(compile_cors(&unpack_any(any, path)?, path)?))
}

/// One stream's CORS.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    /// What the response says, for a request from an origin that is allowed.
    response: Option<ResponseHeaders>,
}

#[derive(Debug)]
struct ResponseHeaders {
    origin: Box<[u8]>,
    allow_credentials: bool,
    expose_headers: Box<[u8]>,
}

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self { config: config.clone(), response: None }
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        // Most requests come without an origin: they need no policy.
        if !cx.request.headers.contains(&names::ORIGIN) {
            return Flow::Continue;
        }
        if cx.request.headers.get_all(&names::ORIGIN).count() > 1 {
            // Several are one list, and no list is an origin.
            let origins: Vec<&[u8]> = cx.request.headers.get_all(&names::ORIGIN).collect();
            let joined = origins.join(&b","[..]);
            cx.request.headers.set(&names::ORIGIN, &joined);
        }
        cx.route.resolve(cx.request);
        let Some(origin) = cx.request.headers.get(&names::ORIGIN).filter(|o| !o.is_empty()) else {
            return Flow::Continue;
        };
        let Some(policies) = Policies::of(cx) else { return Flow::Continue };
        let random = cx.worker.random();
        let (enabled, shadow_enabled) = policies.enabled(random);
        if !enabled && !shadow_enabled {
            return Flow::Continue;
        }
        let allowed = policies.allows(origin);
        let stats = self.config.stats.block(cx.worker.index, || cx.hcm_stats.scope.scope("cors"));
        stats.inc(if allowed { CorsStat::OriginValid } else { CorsStat::OriginInvalid });
        if !enabled {
            return Flow::Continue;
        }
        if allowed {
            self.response = Some(ResponseHeaders {
                origin: origin.into(),
                allow_credentials: policies.flag(|policy| policy.allow_credentials),
                expose_headers: policies.text(|policy| &policy.expose_headers).into(),
            });
        }
        let asks = |name: &HeaderName| cx.request.headers.get(name).unwrap_or_default();
        let method = asks(&names::ACCESS_CONTROL_REQUEST_METHOD);
        let is_preflight = cx.request.method == Method::OPTIONS && !method.is_empty();
        if !is_preflight || (!allowed && policies.forward_not_matching_preflights()) {
            return Flow::Continue;
        }
        let mut headers = HeaderList::new();
        if allowed {
            headers.append(&names::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        if policies.flag(|policy| policy.allow_credentials) {
            headers.append(&names::ACCESS_CONTROL_ALLOW_CREDENTIALS, b"true");
        }
        let requested = asks(&names::ACCESS_CONTROL_REQUEST_HEADERS);
        let allow_methods = policies.text(|policy| &policy.allow_methods);
        append_allowed(&mut headers, &names::ACCESS_CONTROL_ALLOW_METHODS, allow_methods, method);
        let allow_headers = policies.text(|policy| &policy.allow_headers);
        append_allowed(
            &mut headers,
            &names::ACCESS_CONTROL_ALLOW_HEADERS,
            allow_headers,
            requested,
        );
        let max_age = policies.text(|policy| &policy.max_age);
        if !max_age.is_empty() {
            headers.append(&names::ACCESS_CONTROL_MAX_AGE, max_age);
        }
        if policies.flag(|policy| policy.allow_private_network_access)
            && asks(&names::ACCESS_CONTROL_REQUEST_PRIVATE_NETWORK) == b"true"
        {
            headers.append(&names::ACCESS_CONTROL_ALLOW_PRIVATE_NETWORK, b"true");
        }
        let mut reply = LocalReply::new(StatusCode::OK, "cors_response");
        reply.headers = Some(headers);
        Flow::Reply(Box::new(reply))
    }

    fn on_response_head(
        &mut self,
        _cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        _end: bool,
    ) -> Flow {
        if let Some(response) = &self.response {
            head.headers.set(&names::ACCESS_CONTROL_ALLOW_ORIGIN, &response.origin);
            if response.allow_credentials {
                head.headers.set(&names::ACCESS_CONTROL_ALLOW_CREDENTIALS, b"true");
            }
            if !response.expose_headers.is_empty() {
                let exposed = &response.expose_headers;
                head.headers.set(&names::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            }
        }
        Flow::Continue
    }
}

/// `*` allows what was asked for; nothing configured says nothing.
fn append_allowed(headers: &mut HeaderList, name: &HeaderName, allowed: &[u8], asked: &[u8]) {
    match allowed {
        b"" => {}
        b"*" => headers.append(name, asked),
        allowed => headers.append(name, allowed),
    }
}

/// The policies of a request, most specific first; there is one at least.
struct Policies<'a>(smallvec::SmallVec<[&'a CorsPolicy; 4]>);

impl<'a> Policies<'a> {
    fn of(cx: &'a FilterContext<'_>) -> Option<Self> {
        let action = cx.route.action()?;
        let table = cx.route.table();
        let mut policies: smallvec::SmallVec<[&CorsPolicy; 4]> = table
            .filter_configs(cx.route.matched()?, cx.slot)
            .filter_map(|config| config.downcast_ref())
            .collect();
        policies.reverse();
        if policies.is_empty() {
            policies.extend(action.cors.as_deref());
            policies.extend(cx.route.virtual_host().and_then(|host| host.cors.as_deref()));
        }
        (!policies.is_empty()).then_some(Self(policies))
    }

    /// Whether the policy holds, and whether origins are counted all the same: the most specific level says.
    fn enabled(&self, random: u64) -> (bool, bool) {
        let first = self.0[0];
        let hit = |fraction: &crate::config::core::RuntimeFraction| fraction.is_hit(random);
        (first.enabled.as_ref().is_none_or(hit), first.shadow_enabled.as_ref().is_some_and(hit))
    }

    fn allows(&self, origin: &[u8]) -> bool {
        let origins = self.0.iter().map(|policy| &policy.allow_origin).find(|o| !o.is_empty());
        // A pattern that matches `*` is meant for every origin.
        origins.is_some_and(|o| o.iter().any(|m| m.matches(b"*") || m.matches(origin)))
    }

    fn text(&self, field: impl Fn(&'a CorsPolicy) -> &'a [u8]) -> &'a [u8] {
        self.0.iter().map(|policy| field(policy)).find(|text| !text.is_empty()).unwrap_or_default()
    }

    fn flag(&self, field: impl Fn(&CorsPolicy) -> Option<bool>) -> bool {
        self.0.iter().find_map(|policy| field(policy)).unwrap_or(false)
    }

    fn forward_not_matching_preflights(&self) -> bool {
        self.0.iter().find_map(|policy| policy.forward_not_matching_preflights).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::head::Protocol;
    use crate::config::pb::envoy::config::core::v3::RuntimeFractionalPercent;
    use crate::config::pb::envoy::r#type::matcher::v3::StringMatcher;
    use crate::config::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    use crate::config::pb::envoy::r#type::v3::FractionalPercent;
    use crate::config::pb::google::protobuf::BoolValue;
    use crate::http_filters::testing::{TestStream, any, compiled, print};

    fn percent(numerator: u32) -> Option<RuntimeFractionalPercent> {
        let default_value = Some(FractionalPercent { numerator, denominator: 0 });
        Some(RuntimeFractionalPercent { default_value, runtime_key: String::new() })
    }

    fn policy() -> pb::CorsPolicy {
        let pattern = MatchPattern::Suffix(".good".into());
        pb::CorsPolicy {
            allow_origin_string_match: vec![StringMatcher {
                match_pattern: Some(pattern),
                ignore_case: false,
            }],
            allow_methods: "GET,PUT".into(),
            allow_headers: "*".into(),
            expose_headers: "x-e".into(),
            max_age: "9".into(),
            allow_credentials: Some(BoolValue { value: true }),
            ..Default::default()
        }
    }

    struct Seen {
        flow: String,
        reply: Vec<String>,
        response: Vec<String>,
        valid: u64,
        invalid: u64,
    }

    fn lines(headers: &HeaderList) -> Vec<String> {
        let line = |(name, value)| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            format!("{}: {}", text(name), text(value))
        };
        headers.iter().map(line).collect()
    }

    fn run(policy: pb::CorsPolicy, method: Method, headers: &[(&str, &str)]) -> Seen {
        let mut stream = TestStream::new(Some(any(&policy)));
        let config = compiled(|path| compile(&any(&pb::Cors {}), "", path)).unwrap();
        let mut filter = Filter::new(&config);
        stream.request.method = method;
        for (name, value) in headers {
            stream.request.headers.push_raw(name.as_bytes(), value.as_bytes());
        }
        let flow = stream.with(|cx| filter.on_request_head(cx, true));
        let reply = match &flow {
            Flow::Reply(reply) => lines(reply.headers.as_ref().unwrap()),
            _ => Vec::new(),
        };
        let mut head = ResponseHead::new(StatusCode::OK, Protocol::Http11);
        stream.with(|cx| filter.on_response_head(cx, &mut head, true));
        let scope = stream.registry.scope("http.in.cors");
        Seen {
            flow: print(&flow),
            reply,
            response: lines(&head.headers),
            valid: scope.value(CorsStat::OriginValid),
            invalid: scope.value(CorsStat::OriginInvalid),
        }
    }

    const PREFLIGHT: [(&str, &str); 3] = [
        ("origin", "a.good"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a,x-b"),
    ];

    #[test]
    fn a_preflight_is_answered() {
        let seen = run(policy(), Method::OPTIONS, &PREFLIGHT);
        assert_eq!(seen.flow, "200 None cors_response ");
        let expected = [
            "access-control-allow-origin: a.good",
            "access-control-allow-credentials: true",
            "access-control-allow-methods: GET,PUT",
            "access-control-allow-headers: x-a,x-b",
            "access-control-max-age: 9",
        ];
        assert_eq!(seen.reply, expected);
        assert_eq!((seen.valid, seen.invalid), (1, 0));
    }

    #[test]
    fn a_preflight_of_a_stranger_goes_on_unless_it_may_not() {
        let mut headers = PREFLIGHT;
        headers[0].1 = "a.bad";
        let seen = run(policy(), Method::OPTIONS, &headers);
        assert_eq!((seen.flow.as_str(), seen.invalid), ("continue", 1));
        let strict = pb::CorsPolicy {
            forward_not_matching_preflights: Some(BoolValue { value: false }),
            ..policy()
        };
        let seen = run(strict, Method::OPTIONS, &headers);
        assert!(seen.flow.starts_with("200"));
        assert!(!seen.reply.iter().any(|line| line.contains("allow-origin")));
        assert!(seen.response.is_empty());
    }

    #[test]
    fn responses_say_who_may_read_them() {
        let seen = run(policy(), Method::GET, &PREFLIGHT[..1]);
        let expected = [
            "access-control-allow-origin: a.good",
            "access-control-allow-credentials: true",
            "access-control-expose-headers: x-e",
        ];
        assert_eq!(seen.response, expected);
        assert_eq!(run(policy(), Method::GET, &[]).valid, 0);
        assert!(run(policy(), Method::GET, &[("origin", "a.bad")]).response.is_empty());
    }

    #[test]
    fn a_shadowed_policy_only_counts() {
        let off = pb::CorsPolicy { filter_enabled: percent(0), ..policy() };
        let seen = run(off.clone(), Method::OPTIONS, &PREFLIGHT);
        assert_eq!((seen.flow.as_str(), seen.valid), ("continue", 0));
        let shadow = pb::CorsPolicy { shadow_enabled: percent(100), ..off };
        let seen = run(shadow, Method::OPTIONS, &PREFLIGHT);
        assert_eq!((seen.flow.as_str(), seen.valid), ("continue", 1));
        assert!(seen.response.is_empty());
    }
}
