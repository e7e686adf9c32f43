use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixture;
use super::*;
use crate::config::compile::diagnostic::Diagnostics;

fn compile(format: &str) -> Result<Formatter, String> {
    compile_with(format, Options::default())
}

fn compile_with(format: &str, options: Options) -> Result<Formatter, String> {
    let found = Diagnostics::new("test");
    let formatter = Formatter::compile(format, options, &found.root());
    formatter.ok_or_else(|| found.into_vec()[0].reason.clone())
}

fn with_ctx<T>(then: impl FnOnce(&Ctx<'_>) -> T) -> T {
    let (info, request) = (fixture::stream(), fixture::request());
    let (response, trailers) = (fixture::response(), fixture::trailers());
    then(&Ctx {
        request: Some(&request),
        response: Some(&response),
        trailers: Some(&trailers),
        access_log_type: AccessLogType::DownstreamEnd,
        ..Ctx::new(&info)
    })
}

fn print(format: &str) -> String {
    let formatter = compile(format).unwrap_or_else(|error| panic!("{format}: {error}"));
    with_ctx(|ctx| {
        let mut out = Vec::new();
        formatter.write(ctx, &mut out);
        String::from_utf8(out).unwrap()
    })
}

fn print_json(format: Value, options: Options) -> String {
    let found = Diagnostics::new("test");
    let formatter =
        JsonFormatter::compile(format.as_object().unwrap(), options, &found.root()).unwrap();
    with_ctx(|ctx| {
        let mut out = Vec::new();
        formatter.write(ctx, &mut out);
        String::from_utf8(out).unwrap()
    })
}

/// What Envoy 1.40 printed for the same facts.
const OPERATORS: &[(&str, &str)] = &[
    ("START_TIME", "2026-11-21T09:24:57.671Z"),
    ("START_TIME(%s.%3f)", "1795253097.671"),
    ("BYTES_RECEIVED", "3"),
    ("BYTES_SENT", "2"),
    ("BYTES_RETRANSMITTED", "0"),
    ("PROTOCOL", "HTTP/1.1"),
    ("UPSTREAM_PROTOCOL", "HTTP/2"),
    ("RESPONSE_CODE", "200"),
    ("RESPONSE_CODE_DETAILS", "via_upstream"),
    ("CONNECTION_TERMINATION_DETAILS", "-"),
    ("RESPONSE_FLAGS", "-"),
    ("RESPONSE_FLAGS_LONG", "-"),
    ("RESPONSE_HEADERS_BYTES", "25"),
    ("RESPONSE_TRAILERS_BYTES", "5"),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "1"),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", "134"),
    ("DOWNSTREAM_HEADER_BYTES_SENT", "132"),
    ("UPSTREAM_WIRE_BYTES_SENT", "0"),
    ("DURATION", "7"),
    ("REQUEST_DURATION", "1"),
    ("REQUEST_TX_DURATION", "2"),
    ("RESPONSE_DURATION", "5"),
    ("RESPONSE_TX_DURATION", "1"),
    ("ROUNDTRIP_DURATION", "-"),
    ("COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)", "6000"),
    ("COMMON_DURATION(DS_TX_END:DS_RX_BEG)", "-"),
    ("COMMON_DURATION(US_CX_BEG:US_CX_END)", "-"),
    ("COMMON_DURATION(A:B)", "-"),
    ("ROUTE_NAME", "rt"),
    ("VIRTUAL_CLUSTER_NAME", "-"),
    ("UPSTREAM_HOST", "127.0.0.1:46101"),
    ("UPSTREAM_HOST_NAME", "hn:99"),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", "hn"),
    ("UPSTREAM_HOSTS_ATTEMPTED", "127.0.0.1:46101"),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", "hn"),
    ("UPSTREAM_CONNECTION_IDS_ATTEMPTED", "2"),
    ("UPSTREAM_CLUSTER", "alt"),
    ("UPSTREAM_CLUSTER_RAW", "c"),
    ("UPSTREAM_LOCAL_ADDRESS", "127.0.0.1:35894"),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "127.0.0.1"),
    ("UPSTREAM_LOCAL_PORT", "35894"),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", "-"),
    ("UPSTREAM_CONNECTION_ID", "2"),
    ("DOWNSTREAM_LOCAL_ADDRESS", "127.0.0.1:8080"),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", "[::1]:8081"),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", "::1"),
    ("DOWNSTREAM_REMOTE_ADDRESS", "10.1.10.23:41000"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)", "10.1.0.0/16"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)", "0.0.0.0/0"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(40)", "10.1.10.23/32"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(x)", "10.1.10.23"),
    ("DOWNSTREAM_REMOTE_PORT", "41000"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "10.9.9.9:50000"),
    ("CONNECTION_ID", "7"),
    ("STREAM_ID", "e9011966-1652-4622-ba3a-3f4e590de33b"),
    ("REQUESTED_SERVER_NAME", "-"),
    ("REQUESTED_SERVER_NAME(SNI_FIRST)", "ex:80"),
    ("REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)", "-"),
    ("DOWNSTREAM_PEER_SUBJECT", "-"),
    ("DOWNSTREAM_PEER_CERT_V_START(%s)", "-"),
    ("UPSTREAM_TLS_CIPHER", "-"),
    ("DYNAMIC_METADATA(a)", "-"),
    (
        "DYNAMIC_METADATA(m)",
        r#"{"b":true,"f":"1.5","l":[1,"2.5"],"n":5,"o":{"i":"in","k":[1,"x",null,{"q":1}]},"s":"str","z":null}"#,
    ),
    ("DYNAMIC_METADATA(m:s)", "str"),
    ("DYNAMIC_METADATA(m:n)", "5"),
    ("DYNAMIC_METADATA(m:f)", "1.5"),
    ("DYNAMIC_METADATA(m:b)", "true"),
    ("DYNAMIC_METADATA(m:o:i)", "in"),
    ("DYNAMIC_METADATA(m:z)", "-"),
    ("DYNAMIC_METADATA(m:s):2", "st"),
    ("DYNAMIC_METADATA(m:o):2", "{\""),
    ("CLUSTER_METADATA(m:s)", "str"),
    ("METADATA(ROUTE:m:s)", "str"),
    ("METADATA(VIRTUAL_HOST:m:s)", "-"),
    ("UPSTREAM_METADATA(m:s)", "-"),
    ("FILTER_STATE(a)", "-"),
    ("FILTER_STATE(fs:PLAIN)", "fsval \"q\""),
    ("FILTER_STATE(fs)", r#""fsval \"q\"""#),
    ("FILTER_CHAIN_NAME", "chain1"),
    ("LOCAL_REPLY_BODY", ""),
    ("GRPC_STATUS", "-"),
    ("ENVIRONMENT(OUTRIGGER_NO_SUCH_VARIABLE)", "-"),
    ("TRACE_ID", "-"),
    ("PATH", "/p?a=1%202&b=%0a"),
    ("PATH(NQ)", "/p"),
    ("PATH(WQ:ORIG)", "-"),
    ("PATH(NQ:PATH):1", "/"),
    ("QUERY_PARAM(a)", "1 2"),
    ("QUERY_PARAM(nope)", "-"),
    ("QUERY_PARAMS", "a=1%202&b=%0a"),
    ("QUERY_PARAMS(DECODED):3", "a=1"),
    ("ACCESS_LOG_TYPE", "DownstreamEnd"),
    ("CUSTOM_FLAGS", ""),
    ("REQ(x-a)", "hello"),
    ("REQUEST_HEADER(X-A):2", "he"),
    ("REQ(nope)", "-"),
    ("REQ(nope?x-a)", "hello"),
    ("REQ(?x-a)", "hello"),
    ("REQ(x-empty)", ""),
    ("REQ(:method)", "POST"),
    ("REQ(:scheme)", "http"),
    ("REQ(host)", "ex:80"),
    ("REQ(:authority)", "ex:80"),
    ("REQ(:method):0", ""),
    ("REQ_WITHOUT_QUERY(:path)", "/p"),
    ("RESP(content-length)", "2"),
    ("RESP(:status)", "200"),
    ("TRAILER(x-t)", "tv"),
    (
        r#"COALESCE({"operators":["REQUESTED_SERVER_NAME",{"command":"REQ","param":":authority","max_length":2}]})"#,
        "ex",
    ),
    (r#"COALESCE({"operators":["RESPONSE_CODE"]}):2"#, "20"),
    (r#"COALESCE({"operators":["TRACE_ID",{"command":"REQ","param":"x-empty"}]})"#, "-"),
];

#[test]
fn operators_print_what_envoy_prints() {
    for (operator, expected) in OPERATORS {
        assert_eq!(print(&format!("%{operator}%")), *expected, "{operator}");
    }
}

#[test]
fn ids_and_host_names_have_their_shape() {
    assert_eq!(print("%UNIQUE_ID%").len(), 36);
    assert!(!print("%HOSTNAME%").is_empty());
    let info = StreamInfo::new(
        fixture::connection(),
        9,
        std::time::Instant::now(),
        std::time::SystemTime::now(),
    );
    let print = || {
        let mut out = Vec::new();
        compile("%STREAM_ID% %PROTOCOL%").unwrap().write(&Ctx::new(&info), &mut out);
        out
    };
    assert_eq!(print(), print());
    assert!(print().ends_with(b" -"));
}

#[test]
fn literals_and_escapes() {
    assert_eq!(print("%%a%%"), "%a%");
    assert_eq!(print("x %REQ(x-a)%%% y"), "x hello% y");
    assert_eq!(compile("a%%b").unwrap().as_literal(), Some(&b"a%b"[..]));
    assert_eq!(compile("").unwrap().as_literal(), Some(&b""[..]));
    let options = Options { omit_empty_values: true };
    let formatter = compile_with("[%REQ(nope)%%RESPONSE_FLAGS%]", options).unwrap();
    with_ctx(|ctx| {
        let mut out = Vec::new();
        formatter.write(ctx, &mut out);
        assert_eq!(out, b"[-]");
    });
}

#[test]
fn grpc_statuses() {
    let info = fixture::stream();
    let (mut request, mut response) = (fixture::request(), fixture::response());
    request.headers.push_raw(b"content-type", b"application/grpc+proto");
    let mut check = |status: &[u8], expected: &str| {
        let grpc_status = crate::codec::name::names::GRPC_STATUS;
        response.headers.set(&grpc_status, status);
        let format = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%";
        let ctx = Ctx { request: Some(&request), response: Some(&response), ..Ctx::new(&info) };
        let mut out = Vec::new();
        compile(format).unwrap().write(&ctx, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    };
    check(b"0", "OK OK 0");
    check(b"1", "Canceled CANCELLED 1");
    check(b"3", "InvalidArgument INVALID_ARGUMENT 3");
    check(b"99", "99 99 99");
    check(b"x", "-1 -1 -1");
    // Without the field, the HTTP status decides.
    check(b"", "Unknown UNKNOWN 2");
}

#[test]
fn what_envoy_refuses_is_refused() {
    let table = [
        ("%", "valid command at position 0"),
        ("%%%", "valid command at position 2"),
        ("%REQ()%", "REQ requires parameters"),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ(a?b?c)%", "more than 1 alternative"),
        ("%REQ(a:b)%", "invalid characters"),
        ("%REQ(a)b)%", "invalid characters"),
        ("%REQ(a):x%", "position 0"),
        ("%REQ(x\ny)%", "position 0"),
        ("%REQ(a)", "position 0"),
        ("%PROTOCOL(x)%", "PROTOCOL does not take any"),
        ("%PROTOCOL:3%", "PROTOCOL does not take any"),
        ("%FOO%", "not supported field in StreamInfo: FOO"),
        ("%foo%", "position 0"),
        ("%START_TIME(%Y%n)%", "newline"),
        ("%START_TIME:5%", "START_TIME does not allow length"),
        ("%GRPC_STATUS(X)%", "CAMEL_STRING"),
        ("%PATH(X)%", "WQ and NQ"),
        ("%QUERY_PARAM%", "QUERY_PARAM requires parameters"),
        ("%QUERY_PARAMS(X)%", "ORIG and DECODED"),
        ("%COMMON_DURATION(a)%", "invalid common duration configuration: a"),
        ("%COMMON_DURATION(a:b:ss)%", "precision: ss"),
        ("%DYNAMIC_METADATA()%", "requires parameters"),
        ("%CLUSTER_METADATA(a):3%", "does not allow length"),
        ("%FILTER_STATE%", "key cannot be empty"),
        ("%FILTER_STATE(a:X)%", "PLAIN/TYPED/FIELD"),
        ("%FILTER_STATE(a:FIELD)%", "field name"),
        ("%REQUESTED_SERVER_NAME(X)%", "SNI_ONLY"),
        ("%DOWNSTREAM_REMOTE_PORT(16)%", "does not take any"),
        ("%METADATA(X:a)%", "X is not supported type"),
        ("%CEL(a)%", "CEL is not implemented"),
        ("%COALESCE({})%", "'operators' array"),
        (r#"%COALESCE({"operators":[]})%"#, "must not be empty"),
        (r#"%COALESCE({"operators":["XX"]})%"#, "index 0"),
        ("%VIRTUAL_HOST_NAME%", "not supported field"),
    ];
    for (format, reason) in table {
        let error = compile(format).expect_err(format);
        assert!(error.contains(reason), "{format:?}: {error}");
    }
    for format in ["%PROTOCOL()%", "%START_TIME(%q)%", "%RESPONSE_CODE_DETAILS(X)%"] {
        assert!(compile(format).is_ok(), "{format}");
    }
}

fn nested() -> Value {
    json!({"z": "%PROTOCOL%", "a": {"x": "%TRACE_ID%", "deep": {"y": "%TRACE_ID%"}},
        "l": ["%TRACE_ID%", "%RESPONSE_CODE%", {"q": "%TRACE_ID%"}, ["%TRACE_ID%"]],
        "num": 5.0, "f": 1.5, "t": true, "n": null, "mix": "%TRACE_ID%-%RESPONSE_CODE%",
        "mix2": "%TRACE_ID%%TRACE_ID%", "lit": "lit", "e": "", "pc": "%%", "el": [], "eo": {},
        "q\"k\n": "a\"b\n\u{e9}", "fl": "%RESPONSE_FLAGS%", "dur": "%DURATION%",
        "em": "%REQ(x-empty)%"})
}

/// Both lines are Envoy 1.40's for this format.
#[test]
fn json_is_envoys_byte_for_byte() {
    let expected = concat!(
        r#"{"a":{"deep":{"y":null},"x":null},"dur":7,"e":"","el":[],"em":"","eo":{},"f":"1.5","#,
        r#""fl":"-","l":[null,200,{"q":null},[null]],"lit":"lit","mix":"--200","mix2":"--","#,
        r#""n":null,"num":5,"pc":"%","q\"k\n":"a\"b\né","t":true,"z":"HTTP/1.1"}"#,
        "\n"
    );
    assert_eq!(print_json(nested(), Options::default()), expected);
    let expected = concat!(
        r#"{"dur":7,"e":"","el":[],"em":"","f":"1.5","fl":"-","l":[200,[]],"lit":"lit","#,
        r#""mix":"-200","mix2":"","num":5,"pc":"%","q\"k\n":"a\"b\né","t":true,"z":"HTTP/1.1"}"#,
        "\n"
    );
    assert_eq!(print_json(nested(), Options { omit_empty_values: true }), expected);
}

#[test]
fn json_values_keep_their_type() {
    let format = json!({"1": "%DYNAMIC_METADATA(m:n):2%", "2": "%DYNAMIC_METADATA(m:f)%",
        "3": "%DYNAMIC_METADATA(m:o):2%", "4": "%DOWNSTREAM_REMOTE_PORT%",
        "5": "%DYNAMIC_METADATA(m:b)%", "6": "%DYNAMIC_METADATA(m:s):2%", "7": "%FILTER_STATE(fs)%",
        "8": "%COALESCE({\"operators\":[\"RESPONSE_CODE\"]}):2%", "9": "%DYNAMIC_METADATA(m:z)%"});
    let expected = concat!(
        r#"{"1":5,"2":"1.5","3":{"i":"in","k":[1,"x",null,{"q":1}]},"4":41000,"5":true,"6":"st","#,
        r#""7":"fsval \"q\"","8":200,"9":null}"#,
        "\n"
    );
    assert_eq!(print_json(format, Options::default()), expected);
}

fn line_with_header(value: &[u8]) -> Vec<u8> {
    with_header(value, JsonFormatter::write_line)
}

fn with_header(value: &[u8], write: fn(&JsonFormatter, &Ctx<'_>, &mut Vec<u8>)) -> Vec<u8> {
    let found = Diagnostics::new("test");
    let format = json!({"raw": "%REQ(x-raw)%", "mix": "a %REQ(x-raw)% b", "s": "%RESPONSE_CODE%"});
    let formatter =
        JsonFormatter::compile(format.as_object().unwrap(), Options::default(), &found.root())
            .unwrap();
    let (info, mut request) = (fixture::stream(), fixture::request());
    request.headers.push_raw(b"x-raw", value);
    let mut out = Vec::new();
    write(&formatter, &Ctx { request: Some(&request), ..Ctx::new(&info) }, &mut out);
    out
}

#[test]
fn a_body_of_json_is_whole_however_long() {
    let value = [b'x'; 20_000];
    let body = with_header(&value, JsonFormatter::write);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["raw"].as_str().map(str::len), Some(value.len()));
}

#[test]
fn bytes_that_are_not_utf8_are_escaped_as_in_envoy() {
    let line = line_with_header(b"a\"\\\x80\xc3\xa9\xff\t<>/&\xe2\x28\xa1");
    let expected = r#""raw":"a\u0022\u005c\u0080\u00c3\u00a9\u00ff\u0009<>/&\u00e2(\u00a1""#;
    assert!(String::from_utf8(line).unwrap().contains(expected));
    let line = line_with_header("é€😀\"\u{1b}[0m".as_bytes());
    assert!(String::from_utf8(line).unwrap().contains(r#""raw":"é€😀\"\u001b[0m""#));
}

#[test]
fn a_huge_header_cannot_make_a_huge_line() {
    for value in [vec![b'a'; 64 * 1024], vec![0xff; 64 * 1024], "é".repeat(32 * 1024).into()] {
        let line = line_with_header(&value);
        assert!(line.len() <= 8 * 1024, "{}", line.len());
        let parsed: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(parsed["s"], 200);
        assert!(parsed["raw"].as_str().unwrap().len() > 100);
    }
}

proptest! {
    #[test]
    fn a_json_line_is_one_line_of_json_whatever_a_header_holds(
        value in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let line = line_with_header(&value);
        prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        let parsed: Value = serde_json::from_slice(&line).unwrap();
        if let Ok(text) = std::str::from_utf8(&value) {
            prop_assert_eq!(parsed["raw"].as_str(), Some(text));
        }
    }

    #[test]
    fn any_format_either_compiles_or_is_refused(format in "[%A-Z(){}:?a-z0-9_ \"]{0,60}") {
        let _ = compile(&format);
    }
}
