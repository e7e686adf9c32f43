//! pb RetryPolicy to `config::route::retry`.

use std::time::Duration;

use crate::codec::name::HeaderName;
use crate::config::compile::core::{
    any_type, compile_optional_duration, compile_positive_duration,
};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::compile_header_matchers;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::google::protobuf as google_pb;
use crate::config::route::retry::{
    RateLimitedBackOff, ResetHeader, ResetHeaderFormat, RetryOn, RetryPolicy,
};

/// Shorter back-offs are made this long: Envoy counts in milliseconds.
const SHORTEST_BACK_OFF: Duration = Duration::from_millis(1);
/// `rate_limited_retry_back_off.max_interval` when nothing is said.
const DEFAULT_MAX_RATE_LIMITED_WAIT: Duration = Duration::from_secs(300);

pub(super) fn compile_retry_policy(
    policy: &pb::RetryPolicy,
    path: &FieldPath<'_>,
) -> Option<RetryPolicy> {
    if policy.retry_priority.as_ref().is_some_and(|priority| !priority.name.is_empty()) {
        path.field("retry_priority").error("retry priorities are not supported");
    }
    if !policy.retry_options_predicates.is_empty() {
        path.field("retry_options_predicates").error("not supported");
    }
    if policy.refresh_cluster_on_retry {
        path.field("refresh_cluster_on_retry").ignored("not supported");
    }
    let predicates = compile_host_predicates(policy, path);
    let per_try = |duration: &Option<google_pb::Duration>, field: &str| {
        compile_optional_duration(duration.as_ref(), &path.field(field))
            .filter(|duration| !duration.is_zero())
    };
    let (base_interval, max_interval) = match &policy.retry_back_off {
        Some(back_off) => compile_back_off(back_off, &path.field("retry_back_off"))?,
        None => (RetryPolicy::DEFAULT_BASE_INTERVAL, RetryPolicy::DEFAULT_BASE_INTERVAL * 10),
    };
    Some(RetryPolicy {
        retry_on: RetryOn::parse(&policy.retry_on),
        num_retries: policy.num_retries.as_ref().map_or(1, |n| n.value),
        per_try_timeout: per_try(&policy.per_try_timeout, "per_try_timeout"),
        per_try_idle_timeout: per_try(&policy.per_try_idle_timeout, "per_try_idle_timeout"),
        base_interval,
        max_interval,
        rate_limited: policy.rate_limited_retry_back_off.as_ref().and_then(|back_off| {
            compile_rate_limited(back_off, &path.field("rate_limited_retry_back_off"))
        }),
        // A code that no answer can have is no error in Envoy; it never matches.
        retriable_status_codes: policy
            .retriable_status_codes
            .iter()
            .filter_map(|code| u16::try_from(*code).ok())
            .collect(),
        retriable_headers: compile_header_matchers(
            &policy.retriable_headers,
            "retriable_headers",
            path,
        )?,
        retriable_request_headers: compile_header_matchers(
            &policy.retriable_request_headers,
            "retriable_request_headers",
            path,
        )?,
        avoid_previous_hosts: predicates.previous_hosts,
        omit_canary_hosts: predicates.omit_canary,
        host_selection_max_attempts: match policy.host_selection_retry_max_attempts {
            0 => 1,
            attempts => u32::try_from(attempts).unwrap_or(u32::MAX),
        },
    })
}

#[derive(Default)]
struct HostPredicates {
    previous_hosts: bool,
    omit_canary: bool,
}

fn compile_host_predicates(policy: &pb::RetryPolicy, path: &FieldPath<'_>) -> HostPredicates {
    use pb::retry_policy::retry_host_predicate::ConfigType;
    const EXTENSIONS: &str = "envoy.extensions.retry.host";
    let mut predicates = HostPredicates::default();
    for (i, predicate) in policy.retry_host_predicate.iter().enumerate() {
        let path = path.index("retry_host_predicate", i);
        let Some(ConfigType::TypedConfig(any)) = &predicate.config_type else {
            path.field("typed_config").error("value is required");
            continue;
        };
        match any_type(any).strip_prefix(EXTENSIONS) {
            Some(".previous_hosts.v3.PreviousHostsPredicate") => predicates.previous_hosts = true,
            Some(".omit_canary_hosts.v3.OmitCanaryHostsPredicate") => predicates.omit_canary = true,
            _ => path.error(format_args!(
                "host predicate {:?} of type {:?} is not supported",
                predicate.name, any.type_url
            )),
        }
    }
    predicates
}

fn compile_back_off(
    back_off: &pb::retry_policy::RetryBackOff,
    path: &FieldPath<'_>,
) -> Option<(Duration, Duration)> {
    let Some(base) = &back_off.base_interval else {
        path.field("base_interval").error("value is required");
        return None;
    };
    let base = compile_positive_duration(base, &path.field("base_interval"))?;
    let base = base.max(SHORTEST_BACK_OFF);
    let max = match &back_off.max_interval {
        None => base * 10,
        Some(max) => {
            compile_positive_duration(max, &path.field("max_interval"))?.max(SHORTEST_BACK_OFF)
        }
    };
    if max < base {
        path.field("max_interval")
            .error("retry_policy.max_interval must greater than or equal to the base_interval");
        return None;
    }
    Some((base, max))
}

fn compile_rate_limited(
    back_off: &pb::retry_policy::RateLimitedRetryBackOff,
    path: &FieldPath<'_>,
) -> Option<RateLimitedBackOff> {
    use pb::retry_policy::ResetHeaderFormat as PbFormat;
    if back_off.reset_headers.is_empty() {
        path.field("reset_headers").error("value must contain at least 1 item(s)");
        return None;
    }
    let headers = back_off.reset_headers.iter().enumerate().filter_map(|(i, header)| {
        let path = path.index("reset_headers", i);
        let format = match PbFormat::try_from(header.format) {
            Ok(PbFormat::Seconds) => ResetHeaderFormat::Seconds,
            Ok(PbFormat::UnixTimestamp) => ResetHeaderFormat::UnixTimestamp,
            Err(_) => {
                path.field("format").error("unknown enum value");
                return None;
            }
        };
        let name = path.field("name").ok_or_error(HeaderName::parse(&header.name))?;
        Some(ResetHeader { name, format })
    });
    let reset_headers = headers.collect();
    let max_interval = match &back_off.max_interval {
        None => DEFAULT_MAX_RATE_LIMITED_WAIT,
        Some(max) => {
            compile_positive_duration(max, &path.field("max_interval"))?.max(SHORTEST_BACK_OFF)
        }
    };
    Some(RateLimitedBackOff { reset_headers, max_interval })
}
