//! The exchanges of the suite with hyper on the other side.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame as HyperFrame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::spawn_local;

use crate::io::Io;

use super::{Exchange, VERSIONS, Version, ask, exchanges, open, piece, run, serve, spawn_server};

type Frames = std::collections::VecDeque<HyperFrame<Bytes>>;

/// A body of ready frames.
struct Ready(Frames);

impl Body for Ready {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HyperFrame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn body(sizes: &[usize], trailers: &[(&str, &str)]) -> Ready {
    let mut frames: Frames =
        sizes.iter().filter(|n| **n > 0).map(|n| HyperFrame::data(piece(*n))).collect();
    if !trailers.is_empty() {
        frames.push_back(HyperFrame::trailers(map(trailers)));
    }
    Ready(frames)
}

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

async fn collect(incoming: Incoming) -> (usize, HeaderMap) {
    let collected = incoming.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    (collected.to_bytes().len(), trailers)
}

/// hyper sends no informational responses, and HTTP/1 trailers only where they are declared.
fn for_hyper(version: Version) -> Vec<Exchange> {
    exchanges()
        .into_iter()
        .filter(|x| x.informational.is_empty())
        .map(|x| match version {
            Version::H1 => Exchange { request_trailers: &[], ..x },
            Version::H2 => x,
        })
        .collect()
}

#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

#[test]
fn hypers_client_is_served() {
    for version in VERSIONS {
        for x in for_hyper(version) {
            let served = x.clone();
            run(async || {
                let (a, b) = Io::pair(16 * 1024);
                let server = spawn_server(version, a, async move |head, end, stream| {
                    serve(&served, head, end, stream).await;
                });
                let mut request = Request::new(body(x.request_body, x.request_trailers));
                *request.method_mut() = x.method.clone();
                *request.headers_mut() = map(x.request_fields);
                let response = match version {
                    Version::H1 => {
                        *request.uri_mut() = "/path?query".parse().unwrap();
                        request
                            .headers_mut()
                            .insert("host", HeaderValue::from_static("example.com:80"));
                        let (mut send, conn) =
                            hyper::client::conn::http1::handshake(TokioIo::new(b)).await.unwrap();
                        spawn_local(conn);
                        send.send_request(request).await.unwrap()
                    }
                    Version::H2 => {
                        *request.uri_mut() = "http://example.com:80/path?query".parse().unwrap();
                        let (mut send, conn) =
                            hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(b))
                                .await
                                .unwrap();
                        spawn_local(conn);
                        send.send_request(request).await.unwrap()
                    }
                };
                assert_eq!(response.status().as_u16(), x.status, "{}", x.name);
                for (name, value) in x.response_fields {
                    let mut all = response.headers().get_all(*name).iter();
                    assert!(all.any(|v| v == value), "{}: {name}", x.name);
                }
                let (got, trailers) = collect(response.into_body()).await;
                assert_eq!(got, x.response_body.iter().sum::<usize>(), "{}", x.name);
                assert_eq!(trailers.len(), x.response_trailers.len(), "{}", x.name);
                server.await.unwrap();
            });
        }
    }
}

#[test]
fn hypers_server_is_asked() {
    for version in VERSIONS {
        for x in for_hyper(version) {
            // Over HTTP/1, hyper writes trailers only when the response declares them.
            let x = match version {
                Version::H1 => Exchange { response_trailers: &[], ..x },
                Version::H2 => x,
            };
            let answer = Rc::new(x.clone());
            run(async || {
                let (a, b) = Io::pair(16 * 1024);
                let service = service_fn(move |request: Request<Incoming>| {
                    let x = Rc::clone(&answer);
                    async move {
                        assert_eq!(request.method(), x.method);
                        assert_eq!(request.uri().path(), "/path");
                        for (name, value) in x.request_fields {
                            let mut all = request.headers().get_all(*name).iter();
                            assert!(all.any(|v| v == value), "{}: {name}", x.name);
                        }
                        let (got, trailers) = collect(request.into_body()).await;
                        assert_eq!(got, x.request_body.iter().sum::<usize>(), "{}", x.name);
                        assert_eq!(trailers.len(), x.request_trailers.len());
                        let mut response =
                            Response::new(body(x.response_body, x.response_trailers));
                        *response.status_mut() = StatusCode::from_u16(x.status).unwrap();
                        *response.headers_mut() = map(x.response_fields);
                        Ok::<_, Infallible>(response)
                    }
                });
                let io = TokioIo::new(a);
                match version {
                    Version::H1 => {
                        spawn_local(
                            hyper::server::conn::http1::Builder::new()
                                .serve_connection(io, service),
                        );
                    }
                    Version::H2 => {
                        spawn_local(
                            hyper::server::conn::http2::Builder::new(LocalExecutor)
                                .serve_connection(io, service),
                        );
                    }
                }
                let (mut stream, conn) = open(version, b).await;
                let heard = match (version, x.status, x.method == Method::HEAD) {
                    (_, 204 | 304, _) | (_, _, true) => Some(0),
                    _ => None,
                };
                // hyper leaves the length of an empty body out.
                let x = if x.status == 304 {
                    Exchange { response_fields: &[("etag", "x")], ..x }
                } else {
                    x
                };
                ask(&Exchange { heard_response_body: heard, ..x }, &mut stream).await;
                drop((stream, conn));
            });
        }
    }
}
