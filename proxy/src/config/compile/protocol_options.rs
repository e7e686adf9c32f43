//! pb HttpProtocolOptions, Http1ProtocolOptions, Http2ProtocolOptions to their compiled form; used by
//! connection managers and clusters.

use std::time::Duration;

use super::core::{any_type, compile_duration_at_least, compile_optional_duration};
use super::diagnostic::FieldPath;
use crate::config::pb::envoy::config::core::v3 as pb;
use crate::config::pb::google::protobuf::UInt32Value;
use crate::config::protocol_options::{
    CommonHttpOptions, HeaderKeyFormat, HeadersWithUnderscoresAction, Http1Options, Http2Options,
    KeepaliveSettings,
};

/// Compiles options of every HTTP version; unset gives the defaults.
pub fn compile_common_http_options(
    pb: Option<&pb::HttpProtocolOptions>,
    path: &FieldPath<'_>,
) -> CommonHttpOptions {
    let mut out = CommonHttpOptions::default();
    let Some(pb) = pb else { return out };
    if pb.idle_timeout.is_some() {
        out.idle_timeout =
            compile_optional_duration(pb.idle_timeout.as_ref(), &path.field("idle_timeout"))
                .filter(|d| !d.is_zero());
    }
    out.max_connection_duration = compile_optional_duration(
        pb.max_connection_duration.as_ref(),
        &path.field("max_connection_duration"),
    );
    out.max_stream_duration = compile_optional_duration(
        pb.max_stream_duration.as_ref(),
        &path.field("max_stream_duration"),
    )
    .filter(|d| !d.is_zero());
    if let Some(count) = &pb.max_headers_count {
        if count.value == 0 {
            path.field("max_headers_count").error("value must be greater than or equal to 1");
        }
        out.max_headers_count = count.value;
    }
    if let Some(kb) = &pb.max_response_headers_kb {
        if !(1..=8192).contains(&kb.value) {
            path.field("max_response_headers_kb").error("value must be inside range (0, 8192]");
        }
        out.max_response_headers_kb = Some(kb.value);
    }
    // Zero is no limit, as unset.
    out.max_requests_per_connection =
        pb.max_requests_per_connection.map(|v| v.value).filter(|v| *v > 0);
    out.headers_with_underscores_action = match pb.headers_with_underscores_action {
        1 => HeadersWithUnderscoresAction::RejectRequest,
        2 => HeadersWithUnderscoresAction::DropHeader,
        _ => HeadersWithUnderscoresAction::Allow,
    };
    out
}

/// Compiles HTTP/1 options; unset gives the defaults.
pub fn compile_http1_options(
    pb: Option<&pb::Http1ProtocolOptions>,
    path: &FieldPath<'_>,
) -> Http1Options {
    let mut out = Http1Options::default();
    let Some(pb) = pb else { return out };
    if pb.allow_chunked_length {
        // Two framings in one message are how requests are smuggled (RFC 9112 §6.3): never served.
        path.field("allow_chunked_length").error("is not supported: such messages are refused");
    }
    out.allow_absolute_url = pb.allow_absolute_url.is_none_or(|v| v.value);
    out.accept_http_10 = pb.accept_http_10;
    out.default_host_for_http_10 = super::core::some_str(&pb.default_host_for_http_10);
    out.enable_trailers = pb.enable_trailers;
    out.override_stream_error_on_invalid_http_message =
        pb.override_stream_error_on_invalid_http_message.is_some_and(|v| v.value);
    out.send_fully_qualified_url = pb.send_fully_qualified_url;
    out.allow_custom_methods = pb.allow_custom_methods;
    if let Some(format) = &pb.header_key_format {
        out.header_key_format = compile_key_format(format, &path.field("header_key_format"));
    }
    out
}

fn compile_key_format(
    pb: &pb::http1_protocol_options::HeaderKeyFormat,
    path: &FieldPath<'_>,
) -> HeaderKeyFormat {
    use pb::http1_protocol_options::header_key_format::HeaderFormat;
    match &pb.header_format {
        Some(HeaderFormat::ProperCaseWords(_)) => HeaderKeyFormat::ProperCaseWords,
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            let known = "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
            match &extension.typed_config {
                Some(any) if any_type(any) == known => {}
                _ => path
                    .field("stateful_formatter")
                    .error(format_args!("formatter {:?} is not supported", extension.name)),
            }
            HeaderKeyFormat::PreserveCase
        }
        None => {
            path.field("header_format").error("is required");
            HeaderKeyFormat::Lower
        }
    }
}

/// Compiles HTTP/2 options; unset gives the defaults.
pub fn compile_http2_options(
    pb: Option<&pb::Http2ProtocolOptions>,
    path: &FieldPath<'_>,
) -> Http2Options {
    let mut out = Http2Options::default();
    let Some(pb) = pb else { return out };
    let set = |to: &mut u32, value: &Option<UInt32Value>, name: &str, low: u32, high: u32| {
        if let Some(value) = value {
            if (low..=high).contains(&value.value) {
                *to = value.value;
            } else {
                path.field(name).error(format_args!("value must be inside range [{low}, {high}]"));
            }
        }
    };
    const WINDOW: (u32, u32) = (65_535, 0x7fff_ffff);
    set(&mut out.hpack_table_size, &pb.hpack_table_size, "hpack_table_size", 0, u32::MAX);
    set(
        &mut out.max_concurrent_streams,
        &pb.max_concurrent_streams,
        "max_concurrent_streams",
        1,
        0x7fff_ffff,
    );
    set(
        &mut out.initial_stream_window_size,
        &pb.initial_stream_window_size,
        "initial_stream_window_size",
        WINDOW.0,
        WINDOW.1,
    );
    set(
        &mut out.initial_connection_window_size,
        &pb.initial_connection_window_size,
        "initial_connection_window_size",
        WINDOW.0,
        WINDOW.1,
    );
    set(&mut out.max_outbound_frames, &pb.max_outbound_frames, "max_outbound_frames", 1, u32::MAX);
    set(
        &mut out.max_outbound_control_frames,
        &pb.max_outbound_control_frames,
        "max_outbound_control_frames",
        1,
        u32::MAX,
    );
    set(
        &mut out.max_consecutive_inbound_frames_with_empty_payload,
        &pb.max_consecutive_inbound_frames_with_empty_payload,
        "max_consecutive_inbound_frames_with_empty_payload",
        0,
        u32::MAX,
    );
    set(
        &mut out.max_inbound_priority_frames_per_stream,
        &pb.max_inbound_priority_frames_per_stream,
        "max_inbound_priority_frames_per_stream",
        0,
        u32::MAX,
    );
    set(
        &mut out.max_inbound_window_update_frames_per_data_frame_sent,
        &pb.max_inbound_window_update_frames_per_data_frame_sent,
        "max_inbound_window_update_frames_per_data_frame_sent",
        1,
        u32::MAX,
    );
    out.allow_connect = pb.allow_connect;
    #[expect(deprecated, reason = "the field it gave way to is not in every configuration")]
    let deprecated = pb.stream_error_on_invalid_http_messaging;
    out.override_stream_error_on_invalid_http_message =
        pb.override_stream_error_on_invalid_http_message.map_or(deprecated, |v| v.value);
    if pb.allow_metadata {
        path.field("allow_metadata").error("METADATA frames are not supported");
    }
    out.connection_keepalive = pb
        .connection_keepalive
        .as_ref()
        .and_then(|k| compile_keepalive(k, &path.field("connection_keepalive")));
    out
}

fn compile_keepalive(
    pb: &pb::KeepaliveSettings,
    path: &FieldPath<'_>,
) -> Option<KeepaliveSettings> {
    let Some(timeout) = &pb.timeout else {
        path.field("timeout").error("is required");
        return None;
    };
    let least = Duration::from_millis(1);
    let timeout = compile_duration_at_least(timeout, least, &path.field("timeout"))?;
    let floor = |d: Option<Duration>, name: &str| {
        if d.is_some_and(|d| d < least) {
            path.field(name).error("value must be greater than or equal to 1ms");
        }
        d
    };
    Some(KeepaliveSettings {
        interval: floor(
            compile_optional_duration(pb.interval.as_ref(), &path.field("interval")),
            "interval",
        ),
        timeout,
        interval_jitter: super::core::compile_percent(
            pb.interval_jitter.as_ref(),
            &path.field("interval_jitter"),
        )
        .unwrap_or(15.0),
        connection_idle_interval: floor(
            compile_optional_duration(
                pb.connection_idle_interval.as_ref(),
                &path.field("connection_idle_interval"),
            ),
            "connection_idle_interval",
        ),
    })
}
