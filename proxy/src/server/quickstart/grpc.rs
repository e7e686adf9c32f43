//! The sample gRPC service: `grpc.health.v1.Health` (Check and Watch) and an echo that sends each
//! message back as it came, unary or streaming, under any other method.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// A message frame (gRPC's five-byte prefix, then protobuf): `HealthCheckResponse { status: SERVING }`.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];

/// Accepts for ever.
pub(super) async fn serve(listener: TcpListener) {
    loop {
        // A failed accept concerns that one connection.
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Small frames are not to wait for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let body = match request.uri().path() {
        "/grpc.health.v1.Health/Check" => Messages::one(SERVING).boxed(),
        "/grpc.health.v1.Health/Watch" => Messages::one_and_stay(SERVING).boxed(),
        _ => Messages::same(request.into_body()).boxed(),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// A stream of gRPC messages that ends with `grpc-status: 0`.
struct Messages {
    first: Option<Bytes>,
    rest: Rest,
}

/// What follows the first message.
enum Rest {
    Request(Incoming),
    /// Nothing more, ever: the call stays open.
    Silence,
    Status,
    End,
}

impl Messages {
    fn one(message: &'static [u8]) -> Self {
        Self { first: Some(Bytes::from_static(message)), rest: Rest::Status }
    }

    fn one_and_stay(message: &'static [u8]) -> Self {
        Self { first: Some(Bytes::from_static(message)), rest: Rest::Silence }
    }

    fn same(request: Incoming) -> Self {
        Self { first: None, rest: Rest::Request(request) }
    }
}

impl Body for Messages {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(message) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        loop {
            match &mut self.rest {
                Rest::Request(request) => match Pin::new(request).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => self.rest = Rest::Status,
                    Poll::Pending => return Poll::Pending,
                },
                Rest::Silence => return Poll::Pending,
                Rest::Status => {
                    self.rest = Rest::End;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Rest::End => return Poll::Ready(None),
            }
        }
    }
}
