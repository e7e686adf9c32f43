//! The filters themselves: each does what the script does beside which it is named in the area file.

use std::net::SocketAddr;

use bytes::Bytes;
use http::StatusCode;
use outrigger::codec::head::{HeaderList, ResponseHead};
use outrigger::codec::name::HeaderName;
use outrigger::hcm::local_reply::LocalReply;
use outrigger::http_filters::{FilterContext, FilterFactory, Flow, HttpFilter};

use crate::ask::Question;

/// Which filter, and its settings.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// Asks the side server before each head goes on, and notes the answer in it.
    PauseHead(SocketAddr),
    /// Asks the side server when the first piece of a body has come.
    PauseData(SocketAddr),
    /// 413 to a request as soon as its body is longer; its head has gone on by then.
    TooLarge(usize),
    /// Routes again after a change of the head.
    Reroute,
    /// Holds the request's head back for the whole body, notes its length and routes again.
    Body(usize),
    /// Changes trailers.
    Trailers,
}

impl Probe {
    /// `NAME` or `NAME ARGUMENT`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, argument) = text.split_once(' ').unwrap_or((text, ""));
        Some(match name {
            "pause_head" => Self::PauseHead(argument.parse().ok()?),
            "pause_data" => Self::PauseData(argument.parse().ok()?),
            "too_large" => Self::TooLarge(argument.parse().ok()?),
            "reroute" => Self::Reroute,
            "body" => Self::Body(argument.parse().ok()?),
            "trailers" => Self::Trailers,
            _ => return None,
        })
    }
}

impl FilterFactory for Probe {
    fn create(&self) -> Box<dyn HttpFilter> {
        match *self {
            Self::PauseHead(side) => Box::new(PauseHead {
                side,
                request: Question::default(),
                response: Question::default(),
            }),
            Self::PauseData(side) => Box::new(PauseData {
                side,
                request: Some(Question::default()),
                response: Some(Question::default()),
            }),
            Self::TooLarge(limit) => Box::new(TooLarge { left: limit }),
            Self::Reroute => Box::new(Reroute),
            Self::Body(limit) => Box::new(Body { limit, length: 0 }),
            Self::Trailers => Box::new(Trailers),
        }
    }
}

fn name(text: &str) -> HeaderName {
    HeaderName::parse(text).expect("the names of this file are tokens")
}

fn set(headers: &mut HeaderList, text: &str, value: &[u8]) {
    headers.set(&name(text), value);
}

struct PauseHead {
    side: SocketAddr,
    request: Question,
    response: Question,
}

impl HttpFilter for PauseHead {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        match self.request.ask(self.side, "/request") {
            Ok(answer) => set(&mut cx.request.headers, "x-asked", &answer),
            Err(wait) => return wait,
        }
        Flow::Continue
    }

    fn on_response_head(
        &mut self,
        _cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        _end: bool,
    ) -> Flow {
        match self.response.ask(self.side, "/response") {
            Ok(answer) => set(&mut head.headers, "x-asked", &answer),
            Err(wait) => return wait,
        }
        Flow::Continue
    }
}

struct PauseData {
    side: SocketAddr,
    request: Option<Question>,
    response: Option<Question>,
}

impl PauseData {
    fn first(side: SocketAddr, question: &mut Option<Question>, path: &'static str) -> Flow {
        if let Some(pending) = question {
            if let Err(wait) = pending.ask(side, path) {
                return wait;
            }
            *question = None;
        }
        Flow::Continue
    }
}

impl HttpFilter for PauseData {
    fn on_request_data(&mut self, _: &mut FilterContext<'_>, _: &mut Bytes, _: bool) -> Flow {
        Self::first(self.side, &mut self.request, "/request")
    }

    fn on_response_data(&mut self, _: &mut FilterContext<'_>, _: &mut Bytes, _: bool) -> Flow {
        Self::first(self.side, &mut self.response, "/response")
    }

    fn wants_request_frames(&self) -> bool {
        true
    }

    fn wants_response_frames(&self) -> bool {
        true
    }
}

struct TooLarge {
    left: usize,
}

impl HttpFilter for TooLarge {
    fn on_request_data(&mut self, _: &mut FilterContext<'_>, data: &mut Bytes, _: bool) -> Flow {
        let Some(left) = self.left.checked_sub(data.len()) else {
            let reply = LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "request_payload_too_large")
                .body("Payload Too Large");
            return Flow::Reply(Box::new(reply));
        };
        self.left = left;
        Flow::Continue
    }

    fn wants_request_frames(&self) -> bool {
        true
    }
}

struct Reroute;

impl HttpFilter for Reroute {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        let wanted = |cx: &FilterContext<'_>, text: &str| {
            cx.request.headers.get(&name(text)).map(<[u8]>::to_vec)
        };
        if let Some(to) = wanted(cx, "x-want") {
            set(&mut cx.request.headers, "x-to", &to);
            cx.route.clear();
        }
        if let Some(path) = wanted(cx, "x-path") {
            cx.request.set_path(&path);
            cx.route.clear();
        }
        if let Some(host) = wanted(cx, "x-host") {
            cx.request.set_authority(&host);
            cx.route.clear();
        }
        Flow::Continue
    }
}

struct Body {
    limit: usize,
    length: usize,
}

impl Body {
    fn note(&self, cx: &mut FilterContext<'_>) -> Flow {
        set(&mut cx.request.headers, "x-length", self.length.to_string().as_bytes());
        cx.route.clear();
        Flow::Continue
    }
}

impl HttpFilter for Body {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, end: bool) -> Flow {
        if end { self.note(cx) } else { Flow::BufferBody { limit: self.limit } }
    }

    fn on_request_data(&mut self, cx: &mut FilterContext<'_>, data: &mut Bytes, end: bool) -> Flow {
        self.length += data.len();
        if end { self.note(cx) } else { Flow::Continue }
    }

    fn on_request_trailers(&mut self, cx: &mut FilterContext<'_>, _: &mut HeaderList) -> Flow {
        self.note(cx)
    }

    fn wants_request_frames(&self) -> bool {
        true
    }
}

struct Trailers;

impl Trailers {
    fn change(trailers: &mut HeaderList) -> Flow {
        set(trailers, "x-changed", b"by filter");
        trailers.remove(&name("x-gone"));
        trailers.append(&name("x-new"), b"1");
        Flow::Continue
    }
}

impl HttpFilter for Trailers {
    fn on_request_trailers(
        &mut self,
        _: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        Self::change(trailers)
    }

    fn on_response_trailers(
        &mut self,
        _: &mut FilterContext<'_>,
        trailers: &mut HeaderList,
    ) -> Flow {
        Self::change(trailers)
    }

    fn wants_request_frames(&self) -> bool {
        true
    }

    fn wants_response_frames(&self) -> bool {
        true
    }
}
