//! `HTTPFault` compiled, and what it decides for one request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use crate::codec::head::RequestHead;
use crate::codec::name::names;
use crate::config::compile::core::{compile_fraction, compile_positive_duration, struct_to_json};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::compile_header_matchers;
use crate::config::core::{Fraction, RuntimeFraction};
use crate::config::matcher::header::{HeaderMatcher, all_match};
use crate::config::pb::envoy::extensions::filters::common::fault::v3 as common_pb;
use crate::config::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use crate::config::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::LimitType;
use crate::config::pb::envoy::extensions::filters::http::fault::v3 as pb;
use crate::config::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use crate::config::pb::envoy::r#type::v3::FractionalPercent;
use crate::config::runtime;
use crate::http_filters::FilterContext;

/// `HTTPFault`, also per route.
#[derive(Debug)]
pub(super) struct Settings {
    delay: Option<(Delay, RuntimeFraction)>,
    abort: Option<(Abort, RuntimeFraction)>,
    response_rate: Option<(ResponseRate, RuntimeFraction)>,
    pub(super) response_body: Bytes,
    upstream_cluster: Box<str>,
    headers: Box<[HeaderMatcher]>,
    downstream_nodes: Box<[Box<[u8]>]>,
    /// `None`: without limit.
    pub(super) max_active: Option<u64>,
    keys: Keys,
    pub(super) cluster_stats: bool,
    pub(super) metadata: Map<String, Value>,
}

#[derive(Debug)]
enum Delay {
    Fixed(Duration),
    Header,
}

#[derive(Debug)]
enum Abort {
    Http(StatusCode),
    Grpc(u32),
    Header,
}

#[derive(Debug)]
enum ResponseRate {
    /// KiB per second.
    Fixed(u64),
    Header,
}

/// Runtime keys of what is no percentage.
#[derive(Debug)]
struct Keys {
    delay_duration: Box<str>,
    abort_http_status: Box<str>,
    abort_grpc_status: Box<str>,
    max_active: Box<str>,
}

pub(super) fn compile_settings(pb: &pb::HttpFault, path: &FieldPath<'_>) -> Option<Settings> {
    let key = |given: &str, default: &str| -> Box<str> {
        if given.is_empty() { default.into() } else { given.into() }
    };
    let percent =
        |pb: Option<&FractionalPercent>, given: &str, default: &str, path: &FieldPath<'_>| {
            let default_percent = match pb {
                Some(pb) => compile_fraction(pb, &path.field("percentage"))?,
                None => Fraction::NEVER,
            };
            let runtime_key = Some(Arc::from(&*key(given, default)));
            Some(RuntimeFraction { runtime_key, default: default_percent })
        };
    let delay = match &pb.delay {
        None => Some(None),
        Some(delay) => {
            let path = path.field("delay");
            let given = percent(
                delay.percentage.as_ref(),
                &pb.delay_percent_runtime,
                "fault.http.delay.fixed_delay_percent",
                &path,
            );
            compile_delay(delay, &path).zip(given).map(Some)
        }
    };
    let abort = match &pb.abort {
        None => Some(None),
        Some(abort) => {
            let path = path.field("abort");
            let given = percent(
                abort.percentage.as_ref(),
                &pb.abort_percent_runtime,
                "fault.http.abort.abort_percent",
                &path,
            );
            compile_abort(abort, &path).zip(given).map(Some)
        }
    };
    let response_rate = match &pb.response_rate_limit {
        None => Some(None),
        Some(limit) => {
            let path = path.field("response_rate_limit");
            let given = percent(
                limit.percentage.as_ref(),
                &pb.response_rate_limit_percent_runtime,
                "fault.http.rate_limit.response_percent",
                &path,
            );
            compile_response_rate(limit, &path).zip(given).map(Some)
        }
    };
    let body = pb.abort.as_ref().map_or("", |abort| &abort.response_body);
    let body = if body.is_empty() { "fault filter abort" } else { body };
    Some(Settings {
        delay: delay?,
        abort: abort?,
        response_rate: response_rate?,
        response_body: Bytes::copy_from_slice(body.as_bytes()),
        upstream_cluster: pb.upstream_cluster.as_str().into(),
        headers: compile_header_matchers(&pb.headers, "headers", path)?,
        downstream_nodes: pb.downstream_nodes.iter().map(|n| n.as_bytes().into()).collect(),
        max_active: pb.max_active_faults.as_ref().map(|max| max.value.into()),
        keys: Keys {
            delay_duration: key(&pb.delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
            abort_http_status: key(&pb.abort_http_status_runtime, "fault.http.abort.http_status"),
            abort_grpc_status: key(&pb.abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
            max_active: key(&pb.max_active_faults_runtime, "fault.http.max_active_faults"),
        },
        cluster_stats: !pb.disable_downstream_cluster_stats,
        metadata: pb.filter_metadata.as_ref().map(struct_to_json).unwrap_or_default(),
    })
}

fn compile_delay(pb: &common_pb::FaultDelay, path: &FieldPath<'_>) -> Option<Delay> {
    match &pb.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(delay)) => {
            compile_positive_duration(delay, &path.field("fixed_delay")).map(Delay::Fixed)
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => Some(Delay::Header),
        None => {
            path.field("fault_delay_secifier").error("is required");
            None
        }
    }
}

fn compile_abort(pb: &pb::FaultAbort, path: &FieldPath<'_>) -> Option<Abort> {
    match &pb.error_type {
        Some(ErrorType::HttpStatus(code)) => {
            let status = valid_status(u64::from(*code));
            if status.is_none() {
                path.field("http_status").error("is not in [200, 600)");
            }
            status.map(Abort::Http)
        }
        Some(ErrorType::GrpcStatus(status)) => Some(Abort::Grpc(*status)),
        Some(ErrorType::HeaderAbort(_)) => Some(Abort::Header),
        None => {
            path.field("error_type").error("is required");
            None
        }
    }
}

fn compile_response_rate(
    pb: &common_pb::FaultRateLimit,
    path: &FieldPath<'_>,
) -> Option<ResponseRate> {
    match &pb.limit_type {
        Some(LimitType::FixedLimit(limit)) if limit.limit_kbps > 0 => {
            Some(ResponseRate::Fixed(limit.limit_kbps))
        }
        Some(LimitType::FixedLimit(_)) => {
            path.field("fixed_limit").field("limit_kbps").error("must be at least 1");
            None
        }
        Some(LimitType::HeaderLimit(_)) => Some(ResponseRate::Header),
        None => {
            path.field("limit_type").error("is required");
            None
        }
    }
}

fn valid_status(code: u64) -> Option<StatusCode> {
    let code = u16::try_from(code).ok().filter(|code| (200..600).contains(code))?;
    StatusCode::from_u16(code).ok()
}

/// A number in a header that is not among the known names.
fn header_number(request: &RequestHead, name: &str) -> Option<u64> {
    let mut lines = request.headers.iter();
    let (_, value) = lines.find(|(have, _)| have.eq_ignore_ascii_case(name.as_bytes()))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The cluster that a client says it is of.
pub(super) fn downstream_cluster(request: &RequestHead) -> Option<&str> {
    let name = request.headers.get_str(&names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER);
    name.filter(|name| !name.is_empty())
}

/// A runtime key of the client's own cluster, where there are such keys.
fn cluster_key(request: &RequestHead, what: &str) -> Option<String> {
    if !runtime::has(runtime::Own::Faults) {
        return None;
    }
    downstream_cluster(request).map(|cluster| format!("fault.http.{cluster}.{what}"))
}

/// A number from the runtime, the client's cluster's before everybody's.
fn integer(request: &RequestHead, what: &str, key: &str) -> Option<u64> {
    let own = cluster_key(request, what).and_then(|key| runtime::integer(&key));
    own.or_else(|| runtime::integer(key))
}

/// The share of requests: runtime keys of the client's cluster come before the configured one, and a header may
/// lower it where the fault itself is asked for by header.
fn share(
    request: &RequestHead,
    percent: &RuntimeFraction,
    key: Option<String>,
    by_header: bool,
    name: &str,
) -> Fraction {
    let share = match key {
        Some(key) => {
            RuntimeFraction { runtime_key: Some(key.into()), ..percent.clone() }.in_force()
        }
        None => percent.in_force(),
    };
    match by_header.then(|| header_number(request, name)).flatten() {
        Some(asked) => Fraction {
            numerator: share.numerator.min(u32::try_from(asked).unwrap_or(u32::MAX)),
            ..share
        },
        None => share,
    }
}

impl Settings {
    pub(super) fn is_idle(&self) -> bool {
        self.delay.is_none() && self.abort.is_none() && self.response_rate.is_none()
    }

    /// Whether faults are for this request at all.
    pub(super) fn wants(&self, cx: &FilterContext<'_>) -> bool {
        let cluster_matches = self.upstream_cluster.is_empty()
            || cx.route.matched().is_some_and(|matched| {
                cx.route.table().cluster_name(matched, cx.request) == Some(&*self.upstream_cluster)
            });
        let node_matches = self.downstream_nodes.is_empty()
            || cx
                .request
                .headers
                .get(&names::X_ENVOY_DOWNSTREAM_SERVICE_NODE)
                .is_some_and(|node| self.downstream_nodes.iter().any(|n| **n == *node));
        cluster_matches && node_matches && all_match(&self.headers, &*cx.request)
    }

    pub(super) fn max_active(&self) -> u64 {
        runtime::integer(&self.keys.max_active).or(self.max_active).unwrap_or(u64::MAX)
    }

    /// How long to hold the request back.
    pub(super) fn delay(&self, request: &RequestHead, random: u64) -> Option<Duration> {
        let (delay, percent) = self.delay.as_ref()?;
        let by_header = matches!(delay, Delay::Header);
        let key = cluster_key(request, "delay.fixed_delay_percent");
        let name = "x-envoy-fault-delay-request-percentage";
        let share = share(request, percent, key, by_header, name);
        if !share.hits(random) {
            return None;
        }
        let asked = match delay {
            Delay::Fixed(delay) => *delay,
            Delay::Header => {
                Duration::from_millis(header_number(request, "x-envoy-fault-delay-request")?)
            }
        };
        let delay = integer(request, "delay.fixed_duration_ms", &self.keys.delay_duration)
            .map_or(asked, Duration::from_millis);
        (!delay.is_zero()).then_some(delay)
    }

    /// The status to answer with, and the gRPC status where one is asked for.
    pub(super) fn abort(
        &self,
        request: &RequestHead,
        random: u64,
    ) -> Option<(StatusCode, Option<u32>)> {
        let (abort, percent) = self.abort.as_ref()?;
        let by_header = matches!(abort, Abort::Header);
        let key = cluster_key(request, "abort.abort_percent");
        let name = "x-envoy-fault-abort-request-percentage";
        let share = share(request, percent, key, by_header, name);
        if !share.hits(random) {
            return None;
        }
        let http = match abort {
            Abort::Http(status) => Some(*status),
            Abort::Grpc(_) => None,
            Abort::Header => {
                header_number(request, "x-envoy-fault-abort-request").and_then(valid_status)
            }
        };
        let http = integer(request, "abort.http_status", &self.keys.abort_http_status)
            .and_then(valid_status)
            .or(http);
        if let Some(status) = http {
            return Some((status, None));
        }
        let grpc = match abort {
            Abort::Http(_) => None,
            Abort::Grpc(status) => Some(*status),
            Abort::Header => header_number(request, "x-envoy-fault-abort-grpc-request")
                .and_then(|status| u32::try_from(status).ok()),
        };
        let grpc = integer(request, "abort.grpc_status", &self.keys.abort_grpc_status)
            .and_then(|status| u32::try_from(status).ok())
            .or(grpc)?;
        Some((StatusCode::OK, Some(grpc)))
    }

    /// Bytes per second that the response's body may take.
    pub(super) fn response_rate(&self, request: &RequestHead, random: u64) -> Option<u64> {
        let (rate, percent) = self.response_rate.as_ref()?;
        let by_header = matches!(rate, ResponseRate::Header);
        let share = share(
            request,
            percent,
            None,
            by_header,
            "x-envoy-fault-throughput-response-percentage",
        );
        if !share.hits(random) {
            return None;
        }
        let kib = match rate {
            ResponseRate::Fixed(kib) => *kib,
            ResponseRate::Header => header_number(request, "x-envoy-fault-throughput-response")?,
        };
        (kib > 0).then_some(kib.saturating_mul(1024))
    }
}
