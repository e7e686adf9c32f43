use super::*;
use crate::codec::name::names;
use crate::config::pb::envoy::extensions::filters::common::fault::v3 as common_pb;
use crate::config::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use crate::config::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::LimitType;
use crate::config::pb::envoy::extensions::filters::http::fault::v3 as pb;
use crate::config::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use crate::config::pb::envoy::r#type::v3::FractionalPercent;
use crate::config::pb::google::protobuf as wkt;
use crate::http_filters::testing::{TestStream, any, compiled, print};

fn always() -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator: 100, denominator: 0 })
}

fn abort(error: ErrorType) -> pb::HttpFault {
    pb::HttpFault {
        abort: Some(pb::FaultAbort {
            error_type: Some(error),
            percentage: always(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn delay(secifier: FaultDelaySecifier) -> Option<common_pb::FaultDelay> {
    Some(common_pb::FaultDelay { fault_delay_secifier: Some(secifier), percentage: always() })
}

fn by_header() -> pb::HttpFault {
    pb::HttpFault {
        delay: delay(FaultDelaySecifier::HeaderDelay(Default::default())),
        ..abort(ErrorType::HeaderAbort(Default::default()))
    }
}

fn filter(pb: &pb::HttpFault) -> Filter {
    Filter::new(&compiled(|path| compile(&any(pb), "", path)).unwrap())
}

fn head(stream: &mut TestStream, filter: &mut Filter) -> String {
    print(&stream.with(|cx| filter.on_request_head(cx, true)))
}

fn stat(stream: &TestStream, stat: FaultStat) -> u64 {
    stream.registry.scope("http.in.fault").value(stat)
}

#[test]
fn headers_ask_for_faults() {
    // Answers are Envoy 1.40's.
    let body = "fault_filter_abort fault filter abort";
    for (lines, expected) in [
        (&[][..], "continue".to_owned()),
        (&[("x-envoy-fault-abort-request", "503")], format!("503 None {body}")),
        (&[("x-envoy-fault-abort-request", "100")], "continue".into()),
        (&[("X-Envoy-Fault-Abort-Grpc-Request", "5")], format!("200 Some(5) {body}")),
        (
            &[
                ("x-envoy-fault-abort-request", "503"),
                ("x-envoy-fault-abort-request-percentage", "0"),
            ],
            "continue".into(),
        ),
        (&[("x-envoy-fault-delay-request", "300")], "wait".into()),
        (&[("x-envoy-fault-delay-request", "0")], "continue".into()),
    ] {
        let mut stream = TestStream::new(None);
        for (name, value) in lines {
            stream.request.headers.push_raw(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(head(&mut stream, &mut filter(&by_header())), expected, "{lines:?}");
    }
}

#[test]
fn a_delay_goes_on_to_an_abort_and_counts_as_one_active_fault() {
    let mut config = abort(ErrorType::HttpStatus(418));
    config.delay = delay(FaultDelaySecifier::FixedDelay(wkt::Duration { seconds: 1, nanos: 0 }));
    config.abort.as_mut().unwrap().response_body = "teapot".into();
    config.filter_metadata = Some(wkt::Struct::default());
    let (mut stream, mut filter) = (TestStream::new(None), filter(&config));
    let cluster = names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER;
    stream.request.headers.append(&cluster, b"dsc");
    assert_eq!(head(&mut stream, &mut filter), "wait");
    assert_eq!(stat(&stream, FaultStat::ActiveFaults), 1);
    assert!(stream.info.flags.contains(ResponseFlags::DELAY_INJECTED));
    assert_eq!(head(&mut stream, &mut filter), "418 None fault_filter_abort teapot");
    assert_eq!(stat(&stream, FaultStat::DelaysInjected), 1);
    assert_eq!(stat(&stream, FaultStat::AbortsInjected), 1);
    assert_eq!(stat(&stream, FaultStat::ActiveFaults), 1);
    stream.with(|cx| filter.on_end(cx));
    assert_eq!(stat(&stream, FaultStat::ActiveFaults), 0);
    assert!(stream.info.metadata.iter().any(|(ns, _)| &**ns == "envoy.filters.http.fault"));
}

#[test]
fn conditions_and_limits_keep_faults_away() {
    let fault = abort(ErrorType::HttpStatus(503));
    let matcher = crate::config::pb::envoy::config::route::v3::HeaderMatcher {
        name: "x-nope".into(),
        ..Default::default()
    };
    for config in [
        pb::HttpFault { upstream_cluster: "other".into(), ..fault.clone() },
        pb::HttpFault { headers: vec![matcher], ..fault.clone() },
        pb::HttpFault { downstream_nodes: vec!["n".into()], ..fault.clone() },
        pb::HttpFault { max_active_faults: Some(wkt::UInt32Value { value: 0 }), ..fault.clone() },
        pb::HttpFault::default(),
    ] {
        assert_eq!(head(&mut TestStream::new(None), &mut filter(&config)), "continue");
    }
    let here = pb::HttpFault { upstream_cluster: "c".into(), ..fault };
    assert!(head(&mut TestStream::new(None), &mut filter(&here)).starts_with("503"));
}

#[test]
fn a_route_has_its_own_faults() {
    let per_route = any(&abort(ErrorType::GrpcStatus(7)));
    let mut stream = TestStream::new(Some(per_route));
    let mut filter = filter(&pb::HttpFault::default());
    let answer = head(&mut stream, &mut filter);
    assert_eq!(answer, "200 Some(7) fault_filter_abort fault filter abort");
    assert_eq!(stat(&stream, FaultStat::AbortsInjected), 1);
}

#[test]
fn a_slow_response_waits_for_its_bytes() {
    let limit = LimitType::FixedLimit(common_pb::fault_rate_limit::FixedLimit { limit_kbps: 1 });
    let config = pb::HttpFault {
        response_rate_limit: Some(common_pb::FaultRateLimit {
            limit_type: Some(limit),
            percentage: always(),
        }),
        ..Default::default()
    };
    let (mut stream, mut filter) = (TestStream::new(None), filter(&config));
    assert_eq!(head(&mut stream, &mut filter), "continue");
    assert!(filter.wants_response_frames());
    assert_eq!(stat(&stream, FaultStat::ResponseRlInjected), 1);
    let mut data = Bytes::from(vec![0; 2048]);
    let mut frame = |stream: &mut TestStream| {
        print(&stream.with(|cx| filter.on_response_data(cx, &mut data, false)))
    };
    assert_eq!(frame(&mut stream), "wait");
    stream.advance(Duration::from_secs(1));
    assert_eq!(frame(&mut stream), "wait");
    stream.advance(Duration::from_secs(1));
    assert_eq!(frame(&mut stream), "continue");
    assert_eq!(frame(&mut stream), "wait");
}

#[test]
fn wrong_configurations_name_their_field() {
    let no_kind = pb::HttpFault { abort: Some(Default::default()), ..Default::default() };
    for (config, reason) in [
        (abort(ErrorType::HttpStatus(199)), "abort.http_status"),
        (no_kind, "abort.error_type"),
        (pb::HttpFault { delay: Some(Default::default()), ..Default::default() }, "delay."),
        (
            pb::HttpFault { response_rate_limit: Some(Default::default()), ..Default::default() },
            "response_rate_limit.limit_type",
        ),
    ] {
        let error = compiled(|path| compile(&any(&config), "", path)).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn clusters_are_counted_apart_up_to_a_number_and_a_length() {
    let abort = abort(ErrorType::HttpStatus(503));
    let config = compiled(|path| compile(&any(&abort), "", path)).unwrap();
    let mut stream = TestStream::new(None);
    let mut ask = |cluster: &str| {
        let names = &mut stream.request.headers;
        names.set(&names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, cluster.as_bytes());
        head(&mut stream, &mut Filter::new(&config));
    };
    ask(&"x".repeat(MAX_CLUSTER_NAME + 1));
    assert!(config.clusters.load().is_empty());
    for n in 0..=MAX_CLUSTERS {
        ask(&n.to_string());
    }
    ask("0");
    assert_eq!(config.clusters.load().len(), MAX_CLUSTERS);
    assert_eq!(stat(&stream, FaultStat::AbortsInjected), MAX_CLUSTERS as u64 + 3);
}
