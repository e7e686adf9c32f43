//! A stream for tests: one of every fact that operators print.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::{Method, StatusCode};
use serde_json::json;

use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead, Scheme};
use crate::stream_info::{Address, ConnectionInfo, FilterState, StreamInfo};

/// `host:port`, brackets around IPv6.
pub(crate) fn ip(text: &str) -> Address {
    Address::Ip(text.parse().expect("a socket address"))
}

/// A connection from 10.1.10.23:41000 to 127.0.0.1:8080.
pub(crate) fn connection() -> Rc<ConnectionInfo> {
    Rc::new(ConnectionInfo {
        id: 7,
        remote: ip("10.1.10.23:41000"),
        direct_remote: ip("10.9.9.9:50000"),
        local: ip("127.0.0.1:8080"),
        direct_local: ip("[::1]:8081"),
        requested_server_name: None,
        is_tls: false,
        started: Instant::now(),
        filter_chain_name: "chain1".into(),
        listener_name: "l".into(),
        state: FilterState::default(),
        found: Default::default(),
        ..ConnectionInfo::default()
    })
}

/// A finished GET that an upstream answered.
pub(crate) fn stream() -> StreamInfo {
    let start = Instant::now();
    let at = |ms| Some(start + Duration::from_millis(ms));
    let time = UNIX_EPOCH + Duration::new(1_795_253_097, 671_928_000);
    let mut info = StreamInfo::new(connection(), 42, start, time);
    info.protocol = Some(Protocol::Http11);
    info.response_code = Some(StatusCode::OK);
    info.response_code_details = Some("via_upstream".into());
    info.bytes_received = 3;
    info.bytes_sent = 2;
    info.downstream_bytes.wire_received = 134;
    info.downstream_bytes.header_sent = 132;
    info.timing.last_downstream_rx = at(1);
    info.timing.last_upstream_tx = at(2);
    info.timing.first_upstream_rx = at(5);
    info.timing.last_downstream_tx = at(6);
    info.timing.end = at(7);
    info.route_name = Some("rt".into());
    info.upstream.cluster = Some("c".into());
    info.upstream.cluster_observability_name = Some("alt".into());
    info.upstream.host = Some(ip("127.0.0.1:46101"));
    info.upstream.hostname = Some("hn:99".into());
    info.upstream.local = Some(ip("127.0.0.1:35894"));
    info.upstream.remote = Some(ip("127.0.0.1:46101"));
    info.upstream.connection_id = Some(2);
    info.upstream.protocol = Some(Protocol::Http2);
    info.upstream.attempts = 1;
    let value = json!({"s": "str", "n": 5.0, "f": 1.5, "b": true, "z": null, "l": [1.0, 2.5],
        "o": {"i": "in", "k": [1.0, "x", null, {"q": 1.0}]}});
    *info.metadata_mut("m") = value.as_object().expect("an object").clone();
    let compiled = json!({ "m": value });
    info.route_metadata = compiled.as_object().cloned().map(Arc::new);
    info.upstream.cluster_metadata = info.route_metadata.clone();
    info.state.set_string("fs", "fsval \"q\"");
    info
}

pub(crate) fn request() -> RequestHead {
    let mut head = RequestHead::new(Method::POST, Protocol::Http11);
    head.scheme = Some(Scheme::Http);
    head.set_path(b"/p?a=1%202&b=%0a");
    head.set_authority(b"ex:80");
    head.headers.push_raw(b"X-A", b"hello");
    head.headers.push_raw(b"x-empty", b"");
    head.headers.push_raw(b"x-request-id", b"e9011966-1652-4622-ba3a-3f4e590de33b");
    head
}

pub(crate) fn response() -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK, Protocol::Http11);
    head.headers.push_raw(b"content-length", b"2");
    head
}

pub(crate) fn trailers() -> HeaderList {
    let mut list = HeaderList::new();
    list.push_raw(b"x-t", b"tv");
    list
}
