//! Connections of the admin port: HTTP/1 by hyper, on the control thread.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Admin;
use super::access_log::{self, Entry};
use super::answer::{AdminBody, Answer};
use super::bind::AdminListener;
use super::endpoints;
use super::query::Query;
use crate::stats::names::{HttpStat, ListenerHttpStat, ListenerStat, ListenerWorkerStat};
use crate::stream_info::{Address, ConnectionInfo};

/// A posted form is read up to here.
const MAX_FORM: usize = 64 * 1024;

impl Admin {
    /// Accepts connections for as long as it is polled; must run inside of a `LocalSet`. Cancel safe: dropping it
    /// closes the listener, connections go on until their peers leave.
    pub async fn serve(self: Rc<Self>, listener: AdminListener) {
        loop {
            let accepted = match &listener {
                AdminListener::Tcp(listener) => listener.accept().await.map(|(stream, remote)| {
                    // Delayed small answers are worse than small packets here; a failure changes nothing.
                    let _ = stream.set_nodelay(true);
                    let local = stream.local_addr().unwrap_or(remote);
                    self.spawn(stream, Address::Ip(remote), Address::Ip(local));
                }),
                AdminListener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    let path = || stream.local_addr().ok()?.as_pathname()?.to_str().map(Arc::from);
                    let local = Address::Pipe(path().unwrap_or_default());
                    self.spawn(stream, Address::Pipe(Arc::default()), local);
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "cannot accept an admin connection");
                // Out of descriptors: do not spin until one is free.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }

    fn spawn(
        self: &Rc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        remote: Address,
        local: Address,
    ) {
        let admin = self.clone();
        tokio::task::spawn_local(async move { admin.connection(stream, remote, local).await });
    }

    /// Serves one connection to its end.
    pub(super) async fn connection(
        self: Rc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        remote: Address,
        local: Address,
    ) {
        let started = Instant::now();
        self.connection_begins();
        self.connections.set(self.connections.get() + 1);
        let info = access_log::connection(self.connections.get(), remote, local);
        let admin = self.clone();
        let service = service_fn(move |request| {
            let (admin, info) = (admin.clone(), info.clone());
            async move { admin.respond(request, info).await }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection failed");
        }
        self.connection_ends(started.elapsed().as_millis() as u64);
    }

    fn connection_begins(&self) {
        self.listener.inc(ListenerStat::DownstreamCxTotal);
        self.listener.gauge_inc(ListenerStat::DownstreamCxActive);
        self.thread.inc(ListenerWorkerStat::DownstreamCxTotal);
        self.thread.gauge_inc(ListenerWorkerStat::DownstreamCxActive);
        self.http.inc(HttpStat::DownstreamCxTotal);
        self.http.inc(HttpStat::DownstreamCxHttp1Total);
        self.http.gauge_inc(HttpStat::DownstreamCxActive);
        self.http.gauge_inc(HttpStat::DownstreamCxHttp1Active);
    }

    fn connection_ends(&self, length: u64) {
        self.listener.inc(ListenerStat::DownstreamCxDestroy);
        self.listener.gauge_dec(ListenerStat::DownstreamCxActive);
        self.listener.record(ListenerStat::DownstreamCxLengthMs, length);
        self.thread.gauge_dec(ListenerWorkerStat::DownstreamCxActive);
        self.http.inc(HttpStat::DownstreamCxDestroy);
        self.http.gauge_dec(HttpStat::DownstreamCxActive);
        self.http.gauge_dec(HttpStat::DownstreamCxHttp1Active);
        self.http.record(HttpStat::DownstreamCxLengthMs, length);
    }

    async fn respond(
        self: Rc<Self>,
        request: Request<Incoming>,
        connection: Rc<ConnectionInfo>,
    ) -> Result<Response<AdminBody>, Infallible> {
        let started = Instant::now();
        self.http.inc(HttpStat::DownstreamRqTotal);
        self.http.inc(HttpStat::DownstreamRqHttp1Total);
        self.http.gauge_inc(HttpStat::DownstreamRqActive);
        self.requests.set(self.requests.get() + 1);
        let (head, body) = request.into_parts();
        let mut entry = self
            .access_log
            .as_ref()
            .map(|logs| Entry::begin(logs.clone(), connection, self.requests.get(), &head));
        let answer = self.answer(&head, body).await;
        self.count(answer.status);
        let (head, mut body) = answer.into_response().into_parts();
        if let Some(entry) = &mut entry {
            entry.answered(&head);
        }
        body.on_end(move |sent| {
            self.http.gauge_dec(HttpStat::DownstreamRqActive);
            self.http.record(HttpStat::DownstreamRqTime, started.elapsed().as_millis() as u64);
            if let Some(entry) = entry {
                entry.end(sent);
            }
        });
        Ok(Response::from_parts(head, body))
    }

    async fn answer(&self, head: &request::Parts, body: Incoming) -> Answer {
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let allowed = self.allow_paths.is_empty()
            || self.allow_paths.iter().any(|matcher| matcher.matches(target.as_bytes()));
        if !allowed {
            let reason = format!("request to path {target} not allowed");
            return Answer::refuse(StatusCode::FORBIDDEN, reason);
        }
        let mut query = Query::parse(head.uri.query().unwrap_or_default());
        let is_form = head.headers.get(header::CONTENT_TYPE).is_some_and(|value| {
            value.as_bytes().starts_with(b"application/x-www-form-urlencoded")
        });
        if is_form && head.method == http::Method::POST {
            let form = Limited::new(body, MAX_FORM).collect().await;
            let form = form.map(|form| form.to_bytes()).unwrap_or_else(|_| Bytes::new());
            query.extend(Query::parse(&String::from_utf8_lossy(&form)));
        }
        endpoints::answer(self, &head.method, head.uri.path(), &query)
    }

    fn count(&self, status: StatusCode) {
        let (http, listener) = match status.as_u16() / 100 {
            1 => (HttpStat::DownstreamRq1xx, ListenerHttpStat::DownstreamRq1xx),
            2 => (HttpStat::DownstreamRq2xx, ListenerHttpStat::DownstreamRq2xx),
            3 => (HttpStat::DownstreamRq3xx, ListenerHttpStat::DownstreamRq3xx),
            4 => (HttpStat::DownstreamRq4xx, ListenerHttpStat::DownstreamRq4xx),
            _ => (HttpStat::DownstreamRq5xx, ListenerHttpStat::DownstreamRq5xx),
        };
        self.http.inc(http);
        self.http.inc(HttpStat::DownstreamRqCompleted);
        self.listener_http.inc(listener);
        self.listener_http.inc(ListenerHttpStat::DownstreamRqCompleted);
    }
}
