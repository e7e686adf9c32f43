//! What an endpoint answers: a status, a content type and a body that may come in pieces.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame};

/// Types that Envoy sends.
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";
/// Refusals of the configuration dump.
pub(super) const PLAIN: &str = "text/plain";
pub(super) const JSON: &str = "application/json";
pub(super) const HTML: &str = "text/html; charset=UTF-8";

/// An answer before its headers are written.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: AdminBody,
}

impl Answer {
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self::new(StatusCode::OK, TEXT, body)
    }

    pub(super) fn json(body: impl Into<String>) -> Self {
        Self::new(StatusCode::OK, JSON, body)
    }

    pub(super) fn new(
        status: StatusCode,
        content_type: &'static str,
        body: impl Into<String>,
    ) -> Self {
        Self { status, content_type, body: AdminBody::whole(body.into()) }
    }

    /// A refusal in words.
    pub(super) fn refuse(status: StatusCode, body: impl Into<String>) -> Self {
        Self::new(status, TEXT, body)
    }

    /// A body that is made while it is sent.
    pub(super) fn pieces(
        content_type: &'static str,
        pieces: impl Iterator<Item = String> + 'static,
    ) -> Self {
        let body = AdminBody::new(Source::Pieces { pieces: Box::new(pieces), pause: None });
        Self { status: StatusCode::OK, content_type, body }
    }

    pub(super) fn into_response(self) -> Response<AdminBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::SERVER, HeaderValue::from_static("envoy"));
        response
    }
}

/// Body of an answer, of unknown length as Envoy's are. Between two pieces the task gives way to others, so that a
/// long dump does not hold up `/ready`.
pub(super) struct AdminBody {
    source: Source,
    sent: u64,
    /// Told the number of bytes when the body is through or given up.
    on_end: Option<Box<dyn FnOnce(u64)>>,
}

enum Source {
    Whole(Option<Bytes>),
    Pieces {
        pieces: Box<dyn Iterator<Item = String>>,
        /// Until the runtime has looked at its sockets; waking oneself would not let it.
        pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
    },
}

impl AdminBody {
    fn new(source: Source) -> Self {
        Self { source, sent: 0, on_end: None }
    }

    fn whole(body: String) -> Self {
        Self::new(Source::Whole((!body.is_empty()).then(|| Bytes::from(body))))
    }

    pub(super) fn on_end(&mut self, then: impl FnOnce(u64) + 'static) {
        self.on_end = Some(Box::new(then));
    }
}

impl std::fmt::Debug for AdminBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminBody").finish_non_exhaustive()
    }
}

impl Drop for AdminBody {
    fn drop(&mut self) {
        if let Some(then) = self.on_end.take() {
            then(self.sent);
        }
    }
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = match &mut self.source {
            Source::Whole(body) => body.take(),
            Source::Pieces { pieces, pause } => loop {
                if let Some(waiting) = pause {
                    std::task::ready!(waiting.as_mut().poll(cx));
                }
                *pause = Some(Box::pin(tokio::task::yield_now()));
                match pieces.next() {
                    // Work without output: pause, too.
                    Some(piece) if piece.is_empty() => {}
                    piece => break piece.map(Bytes::from),
                }
            },
        };
        self.sent += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}
