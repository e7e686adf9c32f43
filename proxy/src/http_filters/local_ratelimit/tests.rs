use super::*;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as route_pb;
use crate::config::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use crate::config::pb::google::protobuf as wkt;
use crate::http_filters::testing::{TestStream, any, compiled, print};

fn always() -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent {
        default_value: Some(type_pb::FractionalPercent { numerator: 100, denominator: 0 }),
        runtime_key: String::new(),
    })
}

fn tokens(max: u32) -> Option<type_pb::TokenBucket> {
    Some(type_pb::TokenBucket {
        max_tokens: max,
        tokens_per_fill: None,
        fill_interval: Some(wkt::Duration { seconds: 1000, nanos: 0 }),
    })
}

fn limit(max: u32) -> pb::LocalRateLimit {
    pb::LocalRateLimit {
        stat_prefix: "rl".into(),
        token_bucket: tokens(max),
        filter_enabled: always(),
        filter_enforced: always(),
        ..Default::default()
    }
}

fn config(pb: &pb::LocalRateLimit) -> Arc<Config> {
    compiled(|path| compile(&any(pb), "", path)).unwrap()
}

fn head(stream: &mut TestStream, config: &Arc<Config>) -> (String, Filter) {
    let mut filter = Filter::new(config);
    (print(&stream.with(|cx| filter.on_request_head(cx, true))), filter)
}

fn stats(stream: &TestStream, prefix: &str) -> [u64; 4] {
    use LocalRateLimitStat::{Enabled, Enforced, Ok, RateLimited};
    let scope = stream.registry.scope(&format!("{prefix}.http_local_rate_limit"));
    [Enabled, Enforced, Ok, RateLimited].map(|stat| scope.value(stat))
}

const LIMITED: &str = "429 None local_rate_limited local_rate_limited";

#[test]
fn the_third_of_two_is_limited() {
    let (mut stream, config) = (TestStream::new(None), config(&limit(2)));
    let answers: Vec<String> = (0..3).map(|_| head(&mut stream, &config).0).collect();
    assert_eq!(answers, ["continue", "continue", LIMITED]);
    assert_eq!(stats(&stream, "rl"), [3, 1, 2, 1]);
    stream.advance(Duration::from_secs(1001));
    assert_eq!(head(&mut stream, &config).0, "continue");
}

#[test]
fn without_a_bucket_or_enforcement_everything_passes() {
    let header = core_pb::HeaderValueOption {
        header: Some(core_pb::HeaderValue {
            key: "x-q".into(),
            value: "1".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let unenforced = pb::LocalRateLimit {
        filter_enforced: None,
        request_headers_to_add_when_not_enforced: vec![header],
        ..limit(1)
    };
    let (mut stream, unenforced) = (TestStream::new(None), config(&unenforced));
    head(&mut stream, &unenforced);
    assert_eq!(head(&mut stream, &unenforced).0, "continue");
    let name = crate::codec::name::HeaderName::parse("x-q").unwrap();
    assert_eq!(stream.request.headers.get(&name), Some(&b"1"[..]));
    assert_eq!(stats(&stream, "rl"), [2, 0, 1, 1]);

    let mut stream = TestStream::new(None);
    let no_bucket = config(&pb::LocalRateLimit { token_bucket: None, ..limit(1) });
    assert_eq!(head(&mut stream, &no_bucket).0, "continue");
    assert_eq!(stats(&stream, "rl"), [1, 0, 1, 0]);
    let disabled = config(&pb::LocalRateLimit { filter_enabled: None, ..limit(1) });
    head(&mut stream, &disabled);
    assert_eq!(head(&mut stream, &disabled).0, "continue");
}

#[test]
fn responses_show_the_bucket() {
    let limit = pb::LocalRateLimit {
        enable_x_ratelimit_headers: 1,
        enable_retry_after_header: true,
        rate_limited_as_resource_exhausted: true,
        ..limit(1)
    };
    let (mut stream, config) = (TestStream::new(None), config(&limit));
    let (_, mut filter) = head(&mut stream, &config);
    let mut response = crate::format::fixture::response();
    stream.with(|cx| filter.on_response_head(cx, &mut response, true));
    let lines: Vec<(&[u8], &[u8])> = response.headers.iter().collect();
    assert_eq!(lines[1], (&b"x-ratelimit-limit"[..], &b"1"[..]));
    assert_eq!(lines[2], (&b"x-ratelimit-remaining"[..], &b"0"[..]));
    assert_eq!(lines[3].0, b"x-ratelimit-reset");

    stream.request.headers.push_raw(b"content-type", b"application/grpc");
    let mut filter = Filter::new(&config);
    let flow = stream.with(|cx| filter.on_request_head(cx, true));
    assert_eq!(print(&flow), "429 Some(8) local_rate_limited local_rate_limited");
    let Flow::Reply(reply) = flow else { panic!("limited") };
    assert!(reply.headers.unwrap().contains(&names::RETRY_AFTER));
}

#[test]
fn a_route_has_its_own_bucket_and_status() {
    let per_route = pb::LocalRateLimit {
        stat_prefix: "route".into(),
        status: Some(type_pb::HttpStatus { code: 503 }),
        ..limit(1)
    };
    let mut stream = TestStream::new(Some(any(&per_route)));
    let config = config(&limit(100));
    head(&mut stream, &config);
    assert!(head(&mut stream, &config).0.starts_with("503"));
    assert_eq!(stats(&stream, "route"), [2, 1, 1, 1]);
    assert_eq!(stats(&stream, "rl"), [0; 4]);
}

#[test]
fn connections_have_their_own_buckets() {
    let limit = pb::LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..limit(1) };
    let config = config(&limit);
    let (mut one, mut other) = (TestStream::new(None), TestStream::new(None));
    for stream in [&mut one, &mut other] {
        assert_eq!(head(stream, &config).0, "continue");
        assert_eq!(head(stream, &config).0, LIMITED);
    }
}

#[test]
fn descriptors_have_their_own_buckets() {
    let action = route_pb::rate_limit::Action {
        action_specifier: Some(ActionSpecifier::RequestHeaders(
            route_pb::rate_limit::action::RequestHeaders {
                header_name: "x-k".into(),
                descriptor_key: "k".into(),
                skip_if_absent: false,
            },
        )),
    };
    let descriptor = common_pb::LocalRateLimitDescriptor {
        entries: vec![common_pb::rate_limit_descriptor::Entry {
            key: "k".into(),
            value: "v".into(),
        }],
        token_bucket: tokens(1),
        shadow_mode: false,
    };
    let limit = pb::LocalRateLimit {
        descriptors: vec![descriptor],
        rate_limits: vec![route_pb::RateLimit { actions: vec![action], ..Default::default() }],
        ..limit(10)
    };
    let config = config(&limit);
    let mut stream = TestStream::new(None);
    assert_eq!(head(&mut stream, &config).0, "continue");
    stream.request.headers.push_raw(b"x-k", b"v");
    assert_eq!(head(&mut stream, &config).0, "continue");
    assert_eq!(head(&mut stream, &config).0, LIMITED);
    let name = crate::codec::name::HeaderName::parse("x-k").unwrap();
    stream.request.headers.set(&name, b"w");
    assert_eq!(head(&mut stream, &config).0, "continue");
}

#[test]
fn wrong_configurations_name_their_field() {
    let mut fast = limit(1);
    fast.token_bucket.as_mut().unwrap().fill_interval =
        Some(wkt::Duration { seconds: 0, nanos: 49_000_000 });
    for (config, reason) in [
        (fast, "token_bucket.fill_interval"),
        (limit(0), "token_bucket.max_tokens"),
        (pb::LocalRateLimit { stat_prefix: String::new(), ..limit(1) }, "stat_prefix"),
        (
            pb::LocalRateLimit { local_cluster_rate_limit: Some(Default::default()), ..limit(1) },
            "local_cluster_rate_limit",
        ),
    ] {
        let error = compiled(|path| compile(&any(&config), "", path)).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let no_bucket = pb::LocalRateLimit { token_bucket: None, ..limit(1) };
    assert!(compiled(|path| compile_per_route(&any(&no_bucket), path)).is_err());
}
