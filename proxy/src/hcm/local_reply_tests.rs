use super::*;
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::local_reply::compile_local_reply_config;
use crate::config::pb::envoy::config::accesslog::v3 as log_pb;
use crate::config::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::config::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;
use crate::config::pb::google::protobuf as wkt;
use crate::format::fixture;

fn text(text: &str) -> core_pb::DataSource {
    core_pb::DataSource {
        specifier: Some(core_pb::data_source::Specifier::InlineString(text.into())),
        ..Default::default()
    }
}

fn text_format(format: &str) -> core_pb::SubstitutionFormatString {
    core_pb::SubstitutionFormatString {
        format: Some(core_pb::substitution_format_string::Format::TextFormatSource(text(format))),
        ..Default::default()
    }
}

fn json_format(fields: &[(&str, &str)]) -> core_pb::SubstitutionFormatString {
    let fields = fields.iter().map(|(key, value)| {
        let kind = Some(wkt::value::Kind::StringValue((*value).into()));
        ((*key).to_owned(), wkt::Value { kind })
    });
    core_pb::SubstitutionFormatString {
        format: Some(core_pb::substitution_format_string::Format::JsonFormat(wkt::Struct {
            fields: fields.collect(),
        })),
        ..Default::default()
    }
}

fn on_status(code: u32) -> hcm_pb::ResponseMapper {
    let value = core_pb::RuntimeUInt32 { default_value: code, runtime_key: "k".into() };
    let comparison = Some(log_pb::ComparisonFilter { op: 0, value: Some(value) });
    hcm_pb::ResponseMapper {
        filter: Some(log_pb::AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::StatusCodeFilter(log_pb::StatusCodeFilter {
                comparison,
            })),
        }),
        ..Default::default()
    }
}

fn header(key: &str, value: &str, action: HeaderAppendAction) -> core_pb::HeaderValueOption {
    core_pb::HeaderValueOption {
        header: Some(core_pb::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action.into(),
        ..Default::default()
    }
}

fn config() -> LocalReplyConfig {
    use HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
    let format = "%RESPONSE_CODE% %RESP(:status)% %RESPONSE_FLAGS% [%RESPONSE_CODE_DETAILS%]";
    let pb = hcm_pb::LocalReplyConfig {
        mappers: vec![
            hcm_pb::ResponseMapper {
                status_code: Some(wkt::UInt32Value { value: 410 }),
                body: Some(text("gone")),
                headers_to_add: vec![
                    header("x-m", format, AppendIfExistsOrAdd),
                    header("content-type", "x/y", OverwriteIfExistsOrAdd),
                ],
                ..on_status(404)
            },
            hcm_pb::ResponseMapper {
                body_format_override: Some(core_pb::SubstitutionFormatString {
                    content_type: "text/html; charset=UTF-8".into(),
                    ..text_format("<%LOCAL_REPLY_BODY%|%RESPONSE_CODE%|%RESP(x-r)%>")
                }),
                ..on_status(401)
            },
            hcm_pb::ResponseMapper {
                body_format_override: Some(json_format(&[
                    ("c", "%RESPONSE_CODE%"),
                    ("b", "%LOCAL_REPLY_BODY%"),
                ])),
                ..on_status(402)
            },
            hcm_pb::ResponseMapper { body: Some(text("")), ..on_status(403) },
        ],
        body_format: Some(text_format("[%LOCAL_REPLY_BODY%]")),
    };
    let found = Diagnostics::new("test");
    let config = compile_local_reply_config(&pb, &found.root());
    assert!(!found.has_errors(), "{:?}", found.into_vec());
    config
}

/// The response as one line.
fn print(
    status: u16,
    body: &'static str,
    config: &LocalReplyConfig,
    change: impl FnOnce(&mut RequestHead),
) -> String {
    let (mut request, mut info) = (fixture::request(), fixture::stream());
    change(&mut request);
    let mut headers = HeaderList::new();
    headers.push_raw(b"x-r", b"rr");
    let reply = LocalReply {
        headers: Some(headers),
        ..LocalReply::new(StatusCode::from_u16(status).unwrap(), "direct_response")
            .body(body)
            .flag(ResponseFlags::FAULT_INJECTED)
    };
    let (head, body) = respond(reply, config, Some(&request), &mut info);
    if !grpc::is_grpc_request(&request) {
        assert_eq!(info.response_code, Some(head.status));
    }
    assert_eq!(info.response_code_details.as_deref(), Some("direct_response"));
    let mut line = head.status.as_str().to_owned();
    for (name, value) in head.headers.iter() {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        line += &format!("~{name}: {value}");
    }
    line + "~~" + std::str::from_utf8(&body).unwrap()
}

fn grpc_request(request: &mut RequestHead) {
    request.headers.push_raw(b"content-type", b"application/grpc");
}

/// Each line is Envoy 1.40's, less what the connection manager adds later.
#[test]
fn replies_are_envoys() {
    let (plain, mapped) = (LocalReplyConfig::default(), config());
    let get = |status, body, config| print(status, body, config, |_| {});
    let head = |status, body, config| print(status, body, config, |r| r.method = Method::HEAD);
    let grpc = |status, body, config| print(status, body, config, grpc_request);

    assert_eq!(
        get(401, "b401", &plain),
        "401~x-r: rr~content-length: 4~content-type: text/plain~~b401"
    );
    assert_eq!(
        head(500, "b500", &plain),
        "500~x-r: rr~content-length: 4~content-type: text/plain~~"
    );
    assert_eq!(get(500, "", &plain), "500~x-r: rr~~");
    assert_eq!(
        grpc(404, "b404", &plain),
        "200~x-r: rr~content-type: application/grpc~grpc-status: 12~grpc-message: b404~~"
    );
    assert_eq!(
        grpc(200, "", &plain),
        "200~x-r: rr~content-type: application/grpc~grpc-status: 2~~"
    );

    assert_eq!(
        get(401, "b401", &mapped),
        "401~x-r: rr~content-length: 13~content-type: text/html; charset=UTF-8~~<b401|401|rr>"
    );
    assert_eq!(
        get(402, "b402", &mapped),
        "402~x-r: rr~content-length: 21~content-type: application/json~~{\"b\":\"b402\",\"c\":402}\n"
    );
    assert_eq!(
        get(403, "b403", &mapped),
        "403~x-r: rr~content-length: 2~content-type: text/plain~~[]"
    );
    assert_eq!(
        get(404, "b404", &mapped),
        "410~x-r: rr~content-type: x/y~x-m: 404 404 FI [direct_response]~content-length: 6~~[gone]"
    );
    assert_eq!(
        get(500, "b500", &mapped),
        "500~x-r: rr~content-length: 6~content-type: text/plain~~[b500]"
    );
    assert_eq!(
        grpc(404, "b404", &mapped),
        "200~x-r: rr~content-type: application/grpc~x-m: 404 404 FI [direct_response]\
         ~grpc-status: 2~grpc-message: [gone]~~"
    );
    assert_eq!(
        grpc(402, "b402", &mapped),
        "200~x-r: rr~content-type: application/grpc~grpc-status: 2\
         ~grpc-message: {\"b\":\"b402\",\"c\":402}~~"
    );
}

#[test]
fn grpc_messages_are_percent_encoded_and_a_given_status_wins() {
    let mut request = fixture::request();
    grpc_request(&mut request);
    let mut reply = LocalReply::new(StatusCode::FORBIDDEN, "x").body("a b%~\u{e9}\n\u{7f}");
    reply.grpc_status = Some(9);
    let (head, body) =
        respond(reply, &LocalReplyConfig::default(), Some(&request), &mut fixture::stream());
    assert_eq!(head.headers.get(&names::GRPC_STATUS), Some(&b"9"[..]));
    assert_eq!(head.headers.get(&names::GRPC_MESSAGE), Some(&b"a b%25%7E%C3%A9%0A%7F"[..]));
    assert!(body.is_empty());
}

#[test]
fn problems_name_their_field() {
    let found = Diagnostics::new("test");
    let mapper = hcm_pb::ResponseMapper {
        status_code: Some(wkt::UInt32Value { value: 600 }),
        body_format_override: Some(text_format("%NOPE%")),
        ..Default::default()
    };
    let pb = hcm_pb::LocalReplyConfig { mappers: vec![mapper], body_format: None };
    compile_local_reply_config(&pb, &found.root());
    let paths: Vec<_> = found.into_vec().into_iter().map(|d| d.path).collect();
    assert_eq!(
        paths,
        [
            "mappers[0].filter",
            "mappers[0].status_code",
            "mappers[0].body_format_override.text_format_source"
        ]
    );
}
