//! `envoy.filters.http.compressor`: compresses responses for clients that accept it, and requests where it is asked to.
//!
//! A long body is compressed in pieces, other streams having their turn in between.

mod choice;
mod encoder;
mod heads;
mod settings;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use self::choice::{Offer, Reason, Registry, choose};
use self::encoder::{Encoder, Library};
use self::settings::{Direction, PerRoute, Response};
pub use self::settings::{PER_ROUTE_TYPE, TYPE, compile, compile_per_route};
use super::{FilterContext, Flow, HttpFilter};
use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::name::names;
use crate::hcm::HcmScope;
use crate::stats::{Block, FilterStats};

/// Compressed before others have their turn.
const PIECE: usize = 16 * 1024;

crate::metrics! {
    /// `http.<stat_prefix>.compressor.<library's name>.<library>.[response.|request.]`
    pub enum CompressorStat {
        Compressed: counter "compressed",
        NotCompressed: counter "not_compressed",
        TotalUncompressedBytes: counter "total_uncompressed_bytes",
        TotalCompressedBytes: counter "total_compressed_bytes",
        ContentLengthTooSmall: counter "content_length_too_small",
    }
}

crate::metrics! {
    /// What clients accept: `http.<stat_prefix>.compressor.<library's name>.<library>.`
    pub enum AcceptStat {
        NoAcceptHeader: counter "no_accept_header",
        HeaderIdentity: counter "header_identity",
        HeaderCompressorUsed: counter "header_compressor_used",
        HeaderCompressorOvershadowed: counter "header_compressor_overshadowed",
        HeaderWildcard: counter "header_wildcard",
        HeaderNotValid: counter "header_not_valid",
        NotCompressedEtag: counter "not_compressed_etag",
    }
}

/// `Compressor`.
#[derive(Debug)]
pub struct Config {
    library: Library,
    /// `compressor.<name>.<library>`.
    stat_prefix: String,
    choose_first: bool,
    request: Direction,
    response: Response,
    accept_stats: FilterStats<AcceptStat>,
}

impl Config {
    /// See `chain::FilterConfig::declare`.
    pub fn declare(&self, hcm: &HcmScope) {
        for direction in [&self.request, &self.response.direction] {
            direction.stats.declare(|| hcm.scope.scope(&self.stat_name(direction)));
        }
        self.accept_stats.declare(|| hcm.scope.scope(&self.stat_prefix));
    }

    fn library_for<'a>(&'a self, route: Option<&'a PerRoute>) -> &'a Library {
        route.and_then(|route| route.library.as_ref()).unwrap_or(&self.library)
    }

    fn stat_name(&self, direction: &Direction) -> String {
        format!("{}{}", self.stat_prefix, direction.stat_suffix)
    }

    fn stats(&self, direction: &Direction, cx: &FilterContext<'_>) -> Block<CompressorStat> {
        let scope = || cx.hcm_stats.scope.scope(&self.stat_name(direction));
        direction.stats.block(cx.worker.index, scope)
    }

    fn accept_stats(&self, cx: &FilterContext<'_>) -> Block<AcceptStat> {
        let scope = || cx.hcm_stats.scope.scope(&self.stat_prefix);
        self.accept_stats.block(cx.worker.index, scope)
    }
}

/// A body that is being compressed.
#[derive(Debug)]
struct Body {
    encoder: Encoder,
    out: Vec<u8>,
    stats: Block<CompressorStat>,
}

impl Body {
    /// A frame's turn: `Wait` while there is more of it.
    fn frame(&mut self, data: &mut Bytes, end: bool) -> Flow {
        let piece = data.split_to(data.len().min(PIECE));
        self.stats.add(CompressorStat::TotalUncompressedBytes, piece.len() as u64);
        if !piece.is_empty() && self.encoder.write(&piece, &mut self.out).is_err() {
            return Flow::Reset;
        }
        if !data.is_empty() {
            return Flow::Wait(Box::pin(tokio::task::yield_now()));
        }
        if end && self.encoder.finish(&mut self.out).is_err() {
            return Flow::Reset;
        }
        *data = self.take();
        Flow::Continue
    }

    fn take(&mut self) -> Bytes {
        self.stats.add(CompressorStat::TotalCompressedBytes, self.out.len() as u64);
        // A small piece must not keep the room of a large one while it waits to be sent.
        if self.out.len() < self.out.capacity() / 2 {
            let piece = Bytes::copy_from_slice(&self.out);
            self.out.clear();
            return piece;
        }
        std::mem::take(&mut self.out).into()
    }

    /// What is left before trailers.
    fn tail(&mut self) -> Bytes {
        // A library that fails here has no more to give: the peer sees that the body is cut.
        let _ = self.encoder.finish(&mut self.out);
        self.take()
    }
}

/// One stream.
#[derive(Debug)]
pub struct Filter {
    config: Arc<Config>,
    registry: Option<Rc<RefCell<Registry>>>,
    /// `accept-encoding`, as it came.
    accept: Option<Box<[u8]>>,
    request: Option<Box<Body>>,
    response: Option<Box<Body>>,
}

/// Where the compressors of a stream find one another.
static REGISTRY: u8 = 0;

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self { config: config.clone(), registry: None, accept: None, request: None, response: None }
    }

    /// Makes itself known to the stream's other compressors.
    fn register(&mut self, cx: &FilterContext<'_>) {
        let key = std::ptr::from_ref(&REGISTRY).addr();
        let registry = cx.info.state.keyed(key, RefCell::<Registry>::default);
        registry.borrow_mut().compressors.push(self.config.clone());
        self.registry = Some(registry);
    }

    fn body(
        &self,
        library: &Library,
        direction: &Direction,
        cx: &FilterContext<'_>,
    ) -> Option<Box<Body>> {
        let encoder = library.encoder().ok()?;
        let stats = self.config.stats(direction, cx);
        Some(Box::new(Body { encoder, out: Vec::new(), stats }))
    }

    fn compresses_request(&self, cx: &FilterContext<'_>, end: bool) -> bool {
        let direction = &self.config.request;
        let headers = &cx.request.headers;
        !end && direction.is_enabled()
            && cx.request.upgrade_str().is_none()
            && self.is_long_enough(direction, headers, cx)
            && direction.takes_type_of(headers)
            && !headers.contains(&names::CONTENT_ENCODING)
            && !heads::is_transfer_encoded(headers)
    }

    /// A body whose length is known; one that is too short is counted.
    fn is_long_enough(
        &self,
        direction: &Direction,
        headers: &HeaderList,
        cx: &FilterContext<'_>,
    ) -> bool {
        let enough = heads::length(headers).is_none_or(|length| length >= direction.min_length);
        if !enough {
            self.config.stats(direction, cx).inc(CompressorStat::ContentLengthTooSmall);
        }
        enough
    }

    /// Whether the response is compressed, and whether it would be for another client.
    fn judge(
        &self,
        cx: &FilterContext<'_>,
        head: &ResponseHead,
        encoding: &'static str,
        enabled: bool,
        end: bool,
    ) -> (bool, bool) {
        let response = &self.config.response;
        let headers = &head.headers;
        let asks = enabled && self.is_long_enough(&response.direction, headers, cx);
        let compressible = asks
            && !heads::is_upgrade(headers)
            && response.direction.takes_type_of(headers)
            && !heads::forbids_transforming(headers)
            && !self.is_kept_for_etag(cx, headers)
            && !headers.contains(&names::CONTENT_ENCODING)
            && response.takes_status(head.status);
        let takes = !end
            && asks
            && self.is_chosen(cx, head, encoding)
            && compressible
            && !heads::is_transfer_encoded(headers);
        (takes, compressible)
    }

    /// The same for a filter that names its reason, in the order in which Envoy then asks.
    fn judge_aloud(
        &self,
        cx: &FilterContext<'_>,
        head: &mut ResponseHead,
        encoding: &'static str,
        enabled: bool,
        end: bool,
    ) -> (bool, bool) {
        let response = &self.config.response;
        let headers = &head.headers;
        let open = enabled
            && !heads::is_upgrade(headers)
            && !heads::forbids_transforming(headers)
            && !headers.contains(&names::CONTENT_ENCODING);
        if !open {
            return (false, false);
        }
        let reason = if !self.is_long_enough(&response.direction, headers, cx) {
            Some("ContentLengthTooSmall")
        } else if !response.direction.takes_type_of(headers) {
            Some("ContentTypeNotAllowed")
        } else if response.keeps_for_etag(headers) {
            Some("EtagNotAllowed")
        } else if !response.takes_status(head.status) {
            Some("StatusCodeNotAllowed")
        } else {
            None
        };
        let Some(reason) = reason else {
            let takes = !end
                && self.is_chosen(cx, head, encoding)
                && !heads::is_transfer_encoded(&head.headers);
            return (takes, true);
        };
        if !end {
            // Envoy counts a length when it asks and when it says so, a validator only then.
            self.is_long_enough(&response.direction, headers, cx);
            if reason == "EtagNotAllowed" {
                self.is_kept_for_etag(cx, headers);
            }
            heads::add_status(&mut head.headers, encoding, reason);
        }
        (false, false)
    }

    /// The validator would not be true of what is compressed, and must stay.
    fn is_kept_for_etag(&self, cx: &FilterContext<'_>, headers: &HeaderList) -> bool {
        let kept = self.config.response.keeps_for_etag(headers);
        if kept {
            self.config.accept_stats(cx).inc(AcceptStat::NotCompressedEtag);
        }
        kept
    }

    /// Whether the client accepts this compressor, and of all in the chain this one first.
    fn is_chosen(
        &self,
        cx: &FilterContext<'_>,
        head: &ResponseHead,
        encoding: &'static str,
    ) -> bool {
        let stats = self.config.accept_stats(cx);
        let (Some(accept), Some(registry)) = (&self.accept, &self.registry) else {
            stats.inc(AcceptStat::NoAcceptHeader);
            return false;
        };
        let Registry { compressors, decision } = &mut *registry.borrow_mut();
        let decision = *decision.get_or_insert_with(|| {
            // The compressor that decides knows of its own route's library only, as in Envoy.
            let offers = compressors.iter().map(|one| Offer {
                encoding: if Arc::ptr_eq(one, &self.config) {
                    encoding
                } else {
                    one.library.content_encoding()
                },
                compressor: one,
            });
            let accept = String::from_utf8_lossy(accept);
            choose(offers, &accept, heads::media_type(&head.headers))
        });
        let chosen = decision.encoding == encoding;
        stats.inc(match decision.reason {
            Reason::Named if chosen => AcceptStat::HeaderCompressorUsed,
            Reason::Named => AcceptStat::HeaderCompressorOvershadowed,
            Reason::Identity => AcceptStat::HeaderIdentity,
            Reason::Wildcard => AcceptStat::HeaderWildcard,
            Reason::NotValid => AcceptStat::HeaderNotValid,
        });
        chosen
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, end: bool) -> Flow {
        self.register(cx);
        self.accept = heads::joined(&cx.request.headers, &names::ACCEPT_ENCODING);
        cx.route.resolve(cx.request);
        let config = self.config.clone();
        let route = cx.per_route::<PerRoute>();
        let removes_accept =
            config.response.is_enabled(route) && config.response.removes_accept_encoding(route);
        let direction = &config.request;
        let library = config.library_for(route);
        let encoding = library.content_encoding();
        if self.compresses_request(cx, end) {
            self.request = self.body(library, direction, cx);
        }
        if removes_accept {
            cx.request.headers.remove(&names::ACCEPT_ENCODING);
        }
        if let Some(body) = &self.request {
            cx.request.headers.remove(&names::CONTENT_LENGTH);
            cx.request.headers.set(&names::CONTENT_ENCODING, encoding.as_bytes());
            body.stats.inc(CompressorStat::Compressed);
        } else {
            config.stats(direction, cx).inc(CompressorStat::NotCompressed);
        }
        Flow::Continue
    }

    fn on_request_data(&mut self, _: &mut FilterContext<'_>, data: &mut Bytes, end: bool) -> Flow {
        self.request.as_mut().map_or(Flow::Continue, |body| body.frame(data, end))
    }

    fn request_tail(&mut self) -> Bytes {
        self.request.as_mut().map(|body| body.tail()).unwrap_or_default()
    }

    fn on_response_head(
        &mut self,
        cx: &mut FilterContext<'_>,
        head: &mut ResponseHead,
        end: bool,
    ) -> Flow {
        let config = self.config.clone();
        let response = &config.response;
        let route = cx.per_route::<PerRoute>();
        let library = config.library_for(route);
        let encoding = library.content_encoding();
        let enabled = response.is_enabled(route);
        let (takes, compressible) = if response.shows_status {
            self.judge_aloud(cx, head, encoding, enabled, end)
        } else {
            self.judge(cx, head, encoding, enabled, end)
        };
        if takes && let Some(body) = self.body(library, &response.direction, cx) {
            if response.shows_status {
                heads::add_compressed_status(&mut head.headers, encoding);
            }
            heads::change_etag(&mut head.headers, response.weaken_etag);
            head.headers.remove(&names::CONTENT_LENGTH);
            head.headers.set(&names::CONTENT_ENCODING, encoding.as_bytes());
            body.stats.inc(CompressorStat::Compressed);
            self.response = Some(body);
        } else {
            config.stats(&response.direction, cx).inc(CompressorStat::NotCompressed);
        }
        if compressible {
            heads::add_vary(&mut head.headers);
        }
        Flow::Continue
    }

    fn on_response_data(&mut self, _: &mut FilterContext<'_>, data: &mut Bytes, end: bool) -> Flow {
        self.response.as_mut().map_or(Flow::Continue, |body| body.frame(data, end))
    }

    fn response_tail(&mut self) -> Bytes {
        self.response.as_mut().map(|body| body.tail()).unwrap_or_default()
    }

    fn wants_request_frames(&self) -> bool {
        self.request.is_some()
    }

    fn wants_response_frames(&self) -> bool {
        self.response.is_some()
    }
}

#[cfg(test)]
mod tests;
