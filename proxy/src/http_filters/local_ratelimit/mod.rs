//! `envoy.filters.http.local_ratelimit`: token buckets over all workers (or per connection), with
//! descriptors; 429 where one is empty.

mod bucket;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use smallvec::SmallVec;

use self::bucket::TokenBucket;
use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::codec::head::{Protocol, ResponseHead};
use crate::codec::name::names;
use crate::config::compile::core::{compile_duration, compile_runtime_fraction, unpack_any};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::header_ops::compile_header_ops;
use crate::config::compile::rate_limit::compile_rate_limits;
use crate::config::core::{Fraction, RuntimeFraction};
use crate::config::header_ops::HeaderOps;
use crate::config::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use crate::config::pb::envoy::extensions::common::ratelimit::v3 as common_pb;
use crate::config::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use crate::config::pb::envoy::r#type::v3 as type_pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::rate_limit::{Descriptor, RateLimit, RateLimitSubject};
use crate::format::grpc;
use crate::hcm::HcmScope;
use crate::hcm::local_reply::LocalReply;
use crate::metrics;
use crate::stats::{FilterStats, Scope};
use crate::stream_info::ResponseFlags;

pub const TYPE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
pub const PER_ROUTE_TYPE: &str = TYPE;

/// Envoy's lower bound of `fill_interval`.
const MIN_FILL_INTERVAL: Duration = Duration::from_millis(50);
const RESOURCE_EXHAUSTED: u32 = 8;

metrics! {
    /// Decisions of a local rate limit (`<stat_prefix>.http_local_rate_limit`).
    pub enum LocalRateLimitStat {
        Enabled: counter "enabled",
        Enforced: counter "enforced",
        Ok: counter "ok",
        RateLimited: counter "rate_limited",
        ShadowMode: counter "shadow_mode",
    }
}

/// `LocalRateLimit`, also per route; its buckets are its own.
#[derive(Debug)]
pub struct Config {
    stat_prefix: Box<str>,
    status: StatusCode,
    enabled: RuntimeFraction,
    enforced: RuntimeFraction,
    request_headers: HeaderOps,
    response_headers: HeaderOps,
    shape: Arc<Shape>,
    /// The buckets of the process; each connection has its own where `per_connection`.
    buckets: Buckets,
    per_connection: bool,
    rate_limits: Box<[RateLimit]>,
    /// Those of routes and virtual hosts with this stage are read, where the filter has none of its own.
    stage: u32,
    host_limits: HostLimits,
    rate_limit_headers: bool,
    retry_after: bool,
    grpc_status: Option<u32>,
    stats: FilterStats<LocalRateLimitStat>,
}

/// The entries of a configured descriptor: keys and values.
type Entries = Box<[(Box<str>, Box<[u8]>)]>;

/// When a virtual host's rate limits hold: `vh_rate_limits`.
#[derive(Debug, Clone, Copy)]
enum HostLimits {
    /// Where the route has none.
    Override,
    /// Beside the route's.
    Include,
    Ignore,
}

/// What buckets are made of.
#[derive(Debug)]
struct Shape {
    default: Option<BucketShape>,
    /// The slowest first, so that one that is empty keeps the others' tokens.
    descriptors: Box<[DescriptorShape]>,
    always_default: bool,
}

#[derive(Debug, Clone, Copy)]
struct BucketShape {
    max: u32,
    per_fill: u32,
    interval: Duration,
}

#[derive(Debug)]
struct DescriptorShape {
    entries: Entries,
    bucket: BucketShape,
    shadow: bool,
}

/// Live buckets of a shape.
#[derive(Debug)]
struct Buckets {
    shape: Arc<Shape>,
    default: Option<Arc<TokenBucket>>,
    descriptors: Box<[Arc<TokenBucket>]>,
}

/// A descriptor of a request.
struct Found {
    entries: Descriptor,
    /// Tokens that it takes.
    hits: u64,
    /// Or that it gives.
    gives: bool,
    /// Whether the response says what is left; `None`: as the filter wants it.
    headers: Option<bool>,
}

/// The outcome for one request: the bucket that `x-ratelimit-*` speaks of.
struct Decision {
    allowed: bool,
    /// See `Found`.
    headers: Option<bool>,
    /// Its bucket only says what it would have done.
    shadow: bool,
    bucket: Option<Arc<TokenBucket>>,
}

impl Buckets {
    fn new(shape: &Arc<Shape>) -> Self {
        Self {
            shape: shape.clone(),
            default: shape.default.map(|bucket| Arc::new(bucket.build())),
            descriptors: shape.descriptors.iter().map(|d| Arc::new(d.bucket.build())).collect(),
        }
    }

    fn take(&self, found: &[Found], now: std::time::Instant) -> Decision {
        let mut first = None;
        for (shape, bucket) in self.shape.descriptors.iter().zip(&self.descriptors) {
            // Two descriptors of a request that are equal take their tokens twice.
            for one in found.iter().filter(|one| equal(&shape.entries, &one.entries)) {
                let headers = one.headers;
                if one.gives {
                    bucket.give(now, one.hits);
                } else if !bucket.consume(now, one.hits) {
                    let (shadow, bucket) = (shape.shadow, Some(bucket.clone()));
                    return Decision { allowed: false, shadow, headers, bucket };
                }
                first.get_or_insert((bucket, headers));
            }
        }
        if (first.is_none() || self.shape.always_default)
            && let Some(default) = &self.default
            && !default.consume(now, 1)
        {
            let bucket = Some(default.clone());
            return Decision { allowed: false, shadow: false, headers: None, bucket };
        }
        let (bucket, headers) = match first {
            Some((bucket, headers)) => (Some(bucket), headers),
            None => (self.default.as_ref(), None),
        };
        Decision { allowed: true, shadow: false, headers, bucket: bucket.cloned() }
    }
}

impl BucketShape {
    fn build(self) -> TokenBucket {
        TokenBucket::new(self.max, self.per_fill, self.interval)
    }

    fn compile(pb: &type_pb::TokenBucket, path: &FieldPath<'_>) -> Option<Self> {
        let per_fill = pb.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
        for (value, field) in [(pb.max_tokens, "max_tokens"), (per_fill, "tokens_per_fill")] {
            if value == 0 {
                path.field(field).error("must be greater than 0");
                return None;
            }
        }
        let path = path.field("fill_interval");
        let Some(interval) = &pb.fill_interval else {
            path.error("is required");
            return None;
        };
        let interval = compile_duration(interval, &path)?;
        if interval < MIN_FILL_INTERVAL {
            path.error("must be at least 50ms");
            return None;
        }
        Some(Self { max: pb.max_tokens, per_fill, interval })
    }
}

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    compile_config(&unpack_any(any, path)?, path).map(Arc::new)
}

/// Makes the statistics of a route's configuration exist at zero, where it is one of this filter's.
pub fn declare_per_route(config: &PerRouteConfig, hcm: &HcmScope) {
    if let Some(config) = config.downcast_ref::<Config>() {
        config.declare(hcm);
    }
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    let config: pb::LocalRateLimit = unpack_any(any, path)?;
    if config.token_bucket.is_none() {
        path.field("token_bucket").error("must be set for per filter configs");
        return None;
    }
    Some(Arc::new(compile_config(&config, path)?))
}

fn compile_config(pb: &pb::LocalRateLimit, path: &FieldPath<'_>) -> Option<Config> {
    if pb.stat_prefix.is_empty() {
        path.field("stat_prefix").error("is empty");
        return None;
    }
    if pb.local_cluster_rate_limit.is_some() {
        path.field("local_cluster_rate_limit").error("is not implemented");
        return None;
    }
    if pb.stage > 10 {
        path.field("stage").error("must be at most 10");
        return None;
    }
    let host_limits = match common_pb::VhRateLimitsOptions::try_from(pb.vh_rate_limits) {
        Ok(common_pb::VhRateLimitsOptions::Override) => HostLimits::Override,
        Ok(common_pb::VhRateLimitsOptions::Include) => HostLimits::Include,
        Ok(common_pb::VhRateLimitsOptions::Ignore) => HostLimits::Ignore,
        Err(_) => {
            path.field("vh_rate_limits").error("unknown enum value");
            return None;
        }
    };
    let share = |pb: Option<&RuntimeFractionalPercent>, field| match pb {
        Some(pb) => compile_runtime_fraction(pb, &path.field(field)),
        None => Some(RuntimeFraction::fixed(Fraction::NEVER)),
    };
    let shape = compile_shape(pb, path);
    let headers = |list, field| compile_header_ops(list, field, &[], "", path);
    let code = pb.status.as_ref().map_or(0, |status| status.code);
    if pb.status.is_some()
        && !type_pb::StatusCode::try_from(code).is_ok_and(|c| c != type_pb::StatusCode::Empty)
    {
        path.field("status").field("code").error("value must be one of the defined enum values");
    }
    let status = u16::try_from(code).ok().filter(|code| *code >= 400);
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    let shape = Arc::new(shape?);
    Some(Config {
        stat_prefix: pb.stat_prefix.as_str().into(),
        status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
        enabled: share(pb.filter_enabled.as_ref(), "filter_enabled")?,
        enforced: share(pb.filter_enforced.as_ref(), "filter_enforced")?,
        request_headers: headers(
            &pb.request_headers_to_add_when_not_enforced,
            "request_headers_to_add_when_not_enforced",
        ),
        response_headers: headers(&pb.response_headers_to_add, "response_headers_to_add"),
        buckets: Buckets::new(&shape),
        shape,
        per_connection: pb.local_rate_limit_per_downstream_connection,
        rate_limits: compile_rate_limits(&pb.rate_limits, path)?,
        stage: pb.stage,
        host_limits,
        rate_limit_headers: pb.enable_x_ratelimit_headers
            == common_pb::XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
        retry_after: pb.enable_retry_after_header,
        grpc_status: pb.rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED),
        stats: FilterStats::default(),
    })
}

fn compile_shape(pb: &pb::LocalRateLimit, path: &FieldPath<'_>) -> Option<Shape> {
    let default = match &pb.token_bucket {
        Some(bucket) => Some(BucketShape::compile(bucket, &path.field("token_bucket"))?),
        None => None,
    };
    let compiled: Vec<Option<DescriptorShape>> = pb
        .descriptors
        .iter()
        .enumerate()
        .map(|(i, descriptor)| compile_descriptor(descriptor, &path.index("descriptors", i)))
        .collect();
    let mut descriptors: Vec<DescriptorShape> = compiled.into_iter().collect::<Option<_>>()?;
    for (i, one) in descriptors.iter().enumerate() {
        if descriptors[..i].iter().any(|other| other.entries == one.entries) {
            path.index("descriptors", i).error("duplicate descriptor");
            return None;
        }
    }
    descriptors.sort_by(|a, b| a.bucket.build().rate().total_cmp(&b.bucket.build().rate()));
    let always_default =
        pb.always_consume_default_token_bucket.as_ref().is_none_or(|always| always.value);
    Some(Shape { default, descriptors: descriptors.into(), always_default })
}

fn compile_descriptor(
    pb: &common_pb::LocalRateLimitDescriptor,
    path: &FieldPath<'_>,
) -> Option<DescriptorShape> {
    if pb.entries.is_empty() {
        path.field("entries").error("needs at least one");
        return None;
    }
    for (i, entry) in pb.entries.iter().enumerate() {
        if entry.value.is_empty() {
            path.index("entries", i).field("value").error("wildcards are not implemented");
            return None;
        }
    }
    let bucket_path = path.field("token_bucket");
    let Some(bucket) = &pb.token_bucket else {
        bucket_path.error("is required");
        return None;
    };
    let entries = pb.entries.iter().map(|e| (e.key.as_str().into(), e.value.as_bytes().into()));
    Some(DescriptorShape {
        entries: entries.collect(),
        bucket: BucketShape::compile(bucket, &bucket_path)?,
        shadow: pb.shadow_mode,
    })
}

impl Config {
    /// See `chain::FilterConfig::declare`.
    pub fn declare(&self, hcm: &HcmScope) {
        self.stats.declare(|| self.scope(hcm));
    }

    fn scope(&self, hcm: &HcmScope) -> Scope {
        hcm.registry.scope(&format!("{}.http_local_rate_limit", self.stat_prefix))
    }

    fn decide(&self, cx: &FilterContext<'_>) -> Decision {
        let found = self.descriptors(cx);
        if self.per_connection {
            let key = Arc::as_ptr(&self.shape) as usize;
            let buckets: Rc<Buckets> =
                cx.info.connection.state.keyed(key, || Buckets::new(&self.shape));
            return buckets.take(&found, cx.now);
        }
        self.buckets.take(&found, cx.now)
    }

    /// The request's descriptors: by the filter's own rate limits, or by those of its route and virtual host.
    fn descriptors(&self, cx: &FilterContext<'_>) -> SmallVec<[Found; 2]> {
        let mut found = SmallVec::new();
        if self.shape.descriptors.is_empty() {
            return found;
        }
        let matched = cx.route.matched();
        let subject = RateLimitSubject {
            request: cx.request,
            remote: &cx.info.remote,
            cluster: matched.and_then(|m| cx.route.table().cluster_name(m, cx.request)),
        };
        let make = |limit: &RateLimit| {
            if limit.late {
                return None;
            }
            let entries = limit.descriptor(&subject)?;
            let hits = limit.hits.of(cx.request, cx.info)?;
            Some(Found { entries, hits, gives: limit.gives, headers: limit.headers })
        };
        if !self.rate_limits.is_empty() {
            found.extend(self.rate_limits.iter().filter_map(make));
            return found;
        }
        let (Some(action), Some(host)) = (cx.route.action(), cx.route.virtual_host()) else {
            return found;
        };
        let with_host = match self.host_limits {
            _ if action.include_vh_rate_limits => true,
            HostLimits::Override => action.rate_limits.is_empty(),
            HostLimits::Include => true,
            HostLimits::Ignore => false,
        };
        let of_host = if with_host { &*host.rate_limits } else { &[] };
        let all = action.rate_limits.iter().chain(of_host);
        let mine = all.filter(|limit| limit.stage == self.stage);
        found.extend(mine.filter_map(make));
        found
    }

    /// The answer to a limited request.
    fn reply(&self, cx: &FilterContext<'_>, bucket: Option<&TokenBucket>) -> LocalReply {
        let mut head = ResponseHead::new(self.status, Protocol::Http11);
        self.response_headers.apply_response(&mut head, Some(cx.request), cx.info);
        if self.retry_after
            && self.status == StatusCode::TOO_MANY_REQUESTS
            && !head.headers.contains(&names::RETRY_AFTER)
            && let Some(bucket) = bucket
        {
            let seconds = bucket.reset_seconds(cx.now).max(1);
            head.headers
                .append(&names::RETRY_AFTER, itoa::Buffer::new().format(seconds).as_bytes());
        }
        let mut reply = LocalReply::new(self.status, "local_rate_limited")
            .body("local_rate_limited")
            .flag(ResponseFlags::RATE_LIMITED);
        reply.headers = Some(head.headers);
        reply.grpc_status = self.grpc_status.filter(|_| grpc::is_grpc_request(cx.request));
        reply
    }
}

/// Whether a configured descriptor is this one of the request: all entries, in order.
fn equal(configured: &Entries, found: &Descriptor) -> bool {
    configured.len() == found.len()
        && configured
            .iter()
            .zip(found)
            .all(|((key, value), (k, v))| key == k && **value == *v.as_slice())
}

/// One stream.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    /// The bucket that answered, where its state goes into the response.
    bucket: Option<Arc<TokenBucket>>,
}

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self { config: config.clone(), bucket: None }
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        cx.route.resolve(cx.request);
        let config = cx.per_route::<Config>().unwrap_or(&self.config);
        if !config.enabled.is_hit(cx.worker.random()) {
            return Flow::Continue;
        }
        let stats = config.stats.block(cx.worker.index, || config.scope(cx.hcm_stats));
        stats.inc(LocalRateLimitStat::Enabled);
        let decision = config.decide(cx);
        let are_shown = decision.headers.unwrap_or(config.rate_limit_headers);
        let shown = decision.bucket.clone().filter(|_| are_shown);
        if decision.allowed {
            stats.inc(LocalRateLimitStat::Ok);
            self.bucket = shown;
            return Flow::Continue;
        }
        stats.inc(LocalRateLimitStat::RateLimited);
        if decision.shadow {
            stats.inc(LocalRateLimitStat::ShadowMode);
            self.bucket = shown;
            return Flow::Continue;
        }
        if !config.enforced.is_hit(cx.worker.random()) {
            // The head and the route's table are both the context's: the operations have to be let go first.
            let headers = config.request_headers.clone();
            headers.apply_request(cx.request, cx.info);
            self.bucket = shown;
            return Flow::Continue;
        }
        stats.inc(LocalRateLimitStat::Enforced);
        let reply = config.reply(cx, decision.bucket.as_deref());
        self.bucket = shown;
        Flow::Reply(Box::new(reply))
    }

    fn on_response_head(
        &mut self,
        cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        _end: bool,
    ) -> Flow {
        if let Some(bucket) = self.bucket.take() {
            for (name, value) in [
                ("x-ratelimit-limit", bucket.max_tokens()),
                ("x-ratelimit-remaining", bucket.remaining(cx.now)),
                ("x-ratelimit-reset", bucket.reset_seconds(cx.now)),
            ] {
                let mut digits = itoa::Buffer::new();
                head.headers.push_raw(name.as_bytes(), digits.format(value).as_bytes());
            }
        }
        Flow::Continue
    }
}

#[cfg(test)]
mod tests;
