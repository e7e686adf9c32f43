//! The sample HTTP service: a page, an echo, a mirror of the request's headers, and an endpoint that
//! fails two times out of three.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Accepts for ever.
pub(super) async fn serve(listener: TcpListener) {
    loop {
        // A failed accept concerns that one connection.
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Small frames are not to wait for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        tokio::spawn(
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let path = request.uri().path().to_owned();
    let (status, text) = match path.as_str() {
        "/echo" => return Ok(Response::new(request.into_body().boxed())),
        "/headers" => (StatusCode::OK, headers(&request)),
        "/flaky" if CALLS.fetch_add(1, Ordering::Relaxed) % 3 != 2 => {
            (StatusCode::SERVICE_UNAVAILABLE, "not this time\n".to_owned())
        }
        path => (StatusCode::OK, format!("hello from the HTTP service; you asked for {path}\n")),
    };
    let body = Full::from(text).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

fn headers(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}
