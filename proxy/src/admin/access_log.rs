//! The admin interface's own access log (`admin.access_log`): a request's facts in the form that formatters read.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, StatusCode, request, response};

use crate::access_log::AccessLogs;
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::format::{AccessLogType, Ctx};
use crate::stream_info::{Address, ConnectionInfo, FilterState, StreamInfo};

/// The facts of one admin connection.
pub(super) fn connection(id: u64, remote: Address, local: Address) -> Rc<ConnectionInfo> {
    Rc::new(ConnectionInfo {
        id,
        direct_remote: remote.clone(),
        remote,
        direct_local: local.clone(),
        local,
        requested_server_name: None,
        is_tls: false,
        started: Instant::now(),
        filter_chain_name: Arc::from("admin"),
        listener_name: Arc::from("admin"),
        state: FilterState::default(),
        found: Default::default(),
        ..ConnectionInfo::default()
    })
}

/// One request, from its head until its body is sent or given up.
pub(super) struct Entry {
    logs: AccessLogs,
    info: StreamInfo,
    request: RequestHead,
    response: Option<ResponseHead>,
}

impl Entry {
    pub(super) fn begin(
        logs: AccessLogs,
        connection: Rc<ConnectionInfo>,
        stream_id: u64,
        head: &request::Parts,
    ) -> Self {
        let now = Instant::now();
        let protocol = match head.version {
            http::Version::HTTP_10 => Protocol::Http10,
            _ => Protocol::Http11,
        };
        let mut request = RequestHead::new(head.method.clone(), protocol);
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        request.set_path(target.as_bytes());
        if let Some(host) = head.headers.get(http::header::HOST) {
            request.set_authority(host.as_bytes());
        }
        copy(&head.headers, &mut request.headers);
        let mut info = StreamInfo::new(connection, stream_id, now, SystemTime::now());
        info.protocol = Some(protocol);
        Self { logs, info, request, response: None }
    }

    pub(super) fn answered(&mut self, head: &response::Parts) {
        let mut response = ResponseHead::new(head.status, Protocol::Http11);
        copy(&head.headers, &mut response.headers);
        self.info.response_code = Some(head.status);
        self.info.timing.first_downstream_tx = Some(Instant::now());
        self.response = Some(response);
    }

    /// Writes the line; `sent` is the body's length.
    pub(super) fn end(mut self, sent: u64) {
        self.info.bytes_sent = sent;
        self.info.timing.end = Some(Instant::now());
        self.info.response_code.get_or_insert(StatusCode::OK);
        self.logs.log(&Ctx {
            request: Some(&self.request),
            response: self.response.as_ref(),
            access_log_type: AccessLogType::DownstreamEnd,
            ..Ctx::new(&self.info)
        });
    }
}

/// All fields but `host`, which is the authority.
fn copy(from: &HeaderMap, to: &mut HeaderList) {
    for (name, value) in from {
        if name != http::header::HOST {
            to.push_raw(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}
