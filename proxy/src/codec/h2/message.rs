//! Header blocks of the peer: a new request, a response, or trailers, and what becomes of those that break the
//! rules of HTTP.

use super::connection::{Broken, Connection, Event, Going};
use super::decode::{RequestSink, ResponseSink, TrailersSink};
use super::fault::Http2Fault;
use super::frame::{Header, code, flag, kind};
use super::hpack::Name;
use super::stream::{EndedBy, Key};
use crate::codec::{Fault, ParseFault};
use crate::stats::names::Http2Stat;

/// As for HTTP/1: an endless row of interim responses is an attack or a loop.
const MAX_INFORMATIONAL: u8 = 100;

impl Connection {
    /// A whole header block.
    pub(super) fn block(
        &mut self,
        header: Header,
        block: &[u8],
        bad_priority: bool,
    ) -> Result<Option<Event>, Broken> {
        let id = header.stream;
        let end = header.has(flag::END_STREAM);
        if self.is_server && id > self.newest {
            return self.request(header, block, bad_priority);
        }
        let Some(key) = self.streams.key_of(id) else {
            self.skip(block)?;
            return match self.recent.find(id) {
                Some(EndedBy::Us) => Ok(None),
                _ if !self.is_server => Ok(None),
                _ => Err(Broken::silent(Http2Fault::Codec)),
            };
        };
        let Some(stream) = self.streams.get(key) else { return Ok(None) };
        if stream.incoming.ended {
            return Err(Broken::silent(Http2Fault::Codec));
        }
        if self.is_server || stream.incoming.answered {
            self.trailers(key, block, end)?;
        } else {
            self.response(key, block, end)?;
        }
        Ok(None)
    }

    /// The stream of a request whose head has begun and is not whole.
    pub(super) fn begun_head(&self) -> Option<u32> {
        let block = self.block.as_ref().filter(|block| self.is_server && !block.given_up)?;
        Some(block.header.stream).filter(|stream| *stream > self.newest)
    }

    /// The rest of that head is not waited for: the stream is there without it, unless it would be refused.
    pub(super) fn give_up_head(&mut self) -> Option<Key> {
        let id = self.begun_head()?;
        if let Some(block) = &mut self.block {
            block.given_up = true;
        }
        self.newest = id;
        let is_full = self.streams.open() >= self.settings.options.max_concurrent_streams as usize;
        if self.going == Going::Final {
            self.recent.note(id, EndedBy::Us);
            return None;
        }
        if is_full {
            self.recent.note(id, EndedBy::Us);
            self.counters.codec.inc(Http2Stat::StreamRefusedErrors);
            self.put_reset(id, code::REFUSED_STREAM);
            self.wake();
            return None;
        }
        self.budget.opened += 1;
        self.accepted = id;
        Some(self.add_stream(id))
    }

    /// Decodes for the table's sake alone.
    pub(super) fn skip(&mut self, block: &[u8]) -> Result<(), Broken> {
        let decoded = self.decoder.decode(block, &mut |_: Name<'_>, _: &[u8], _: bool| {});
        decoded.map_err(|_| Broken::told(code::COMPRESSION_ERROR))
    }

    fn request(
        &mut self,
        header: Header,
        block: &[u8],
        bad_priority: bool,
    ) -> Result<Option<Event>, Broken> {
        let id = header.stream;
        let end = header.has(flag::END_STREAM);
        self.newest = id;
        if self.going == Going::Final {
            self.skip(block)?;
            self.recent.note(id, EndedBy::Us);
            return Ok(None);
        }
        if self.streams.open() >= self.settings.options.max_concurrent_streams as usize {
            self.skip(block)?;
            self.recent.note(id, EndedBy::Us);
            self.counters.codec.inc(Http2Stat::StreamRefusedErrors);
            self.counters.codec.inc(Http2Stat::TxReset);
            self.put_control(kind::RST_STREAM, 0, id, &code::REFUSED_STREAM.to_be_bytes())?;
            return Ok(None);
        }
        self.budget.opened += 1;
        let mut sink = RequestSink::new(&self.settings);
        if self.decoder.decode(block, &mut sink).is_err() {
            return Err(Broken { by_request: true, ..Broken::told(code::COMPRESSION_ERROR) });
        }
        let request = sink.finish(end);
        self.accepted = id;
        match request {
            Ok(_) if bad_priority => self.refuse(id, end, Http2Fault::HeaderField),
            Err(fault) => self.refuse(id, end, fault),
            Ok(request) => {
                let key = self.add_stream(id);
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.incoming.ended = end;
                    stream.incoming.length = request.length;
                }
                self.ended_messages += u32::from(end);
                Ok(Some(Event::Request { key, head: request.head, end }))
            }
        }
    }

    /// A request that never becomes a stream.
    fn refuse(&mut self, id: u32, end: bool, fault: Http2Fault) -> Result<Option<Event>, Broken> {
        let code = self.count_bad_message(fault);
        if fault.ends_connection() && !self.stream_errors {
            return Err(Broken { by_request: true, ..Broken::silent(fault) });
        }
        self.put_reset(id, code);
        self.recent.note(id, if end { EndedBy::Peer } else { EndedBy::Us });
        if fault.is_messaging() {
            self.budget.count_stream_error().map_err(|flood| self.flood(flood))?;
        }
        Ok(Some(Event::Refused { fault, told: true }))
    }

    /// The code of the reset that answers it.
    fn count_bad_message(&self, fault: Http2Fault) -> u32 {
        let (stat, code) = match fault {
            Http2Fault::TooManyHeaders => (Http2Stat::HeaderOverflow, code::INTERNAL_ERROR),
            Http2Fault::HeaderListTooLarge => {
                (Http2Stat::HeaderListSizeTooLarge, code::INTERNAL_ERROR)
            }
            Http2Fault::Underscore => {
                (Http2Stat::RequestsRejectedWithUnderscoresInHeaders, code::INTERNAL_ERROR)
            }
            _ => (Http2Stat::RxMessagingError, code::PROTOCOL_ERROR),
        };
        self.counters.codec.inc(stat);
        code
    }

    fn trailers(&mut self, key: Key, block: &[u8], end: bool) -> Result<(), Broken> {
        let mut sink = TrailersSink::new(&self.settings);
        if self.decoder.decode(block, &mut sink).is_err() {
            return Err(Broken::told(code::COMPRESSION_ERROR));
        }
        let mut trailers = sink.finish();
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let is_short = stream.incoming.length.is_some_and(|left| left > 0);
        if !end || is_short && !stream.incoming.bodiless {
            trailers = trailers.and(Err(Http2Fault::Messaging));
        }
        match trailers {
            Ok(trailers) => {
                stream.incoming.trailers = Some(trailers);
                self.end_of_message(key);
                Ok(())
            }
            Err(fault) => {
                if self.is_server {
                    self.counters.codec.inc(Http2Stat::Trailers);
                }
                self.bad_message(key, fault)
            }
        }
    }

    /// A message that breaks the rules behind its beginning, or a response: its stream ends, and a client's
    /// connection with it, unless errors are to end streams alone.
    fn bad_message(&mut self, key: Key, fault: Http2Fault) -> Result<(), Broken> {
        let code = self.count_bad_message(fault);
        if self.is_server && fault.ends_connection() && !self.stream_errors {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.fault.get_or_insert(fault.into());
            }
            return Err(Broken::silent(fault));
        }
        self.stream_error(key, code, fault.into())
    }

    fn response(&mut self, key: Key, block: &[u8], end: bool) -> Result<(), Broken> {
        let mut sink = ResponseSink::new(&self.settings);
        if self.decoder.decode(block, &mut sink).is_err() {
            return Err(Broken::told(code::COMPRESSION_ERROR));
        }
        let (head, length) = match sink.finish() {
            Ok(response) => response,
            Err(fault) => return self.bad_message(key, fault),
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let incoming = &mut stream.incoming;
        if head.is_informational() {
            incoming.informational += 1;
            if end {
                return self.bad_message(key, Http2Fault::Messaging);
            }
            if incoming.informational > MAX_INFORMATIONAL {
                let fault = Fault::Parse(ParseFault::TooManyInformational);
                return self.stream_error(key, code::ENHANCE_YOUR_CALM, fault);
            }
            incoming.heads.push_back(head);
            stream.wake();
            return Ok(());
        }
        incoming.answered = true;
        incoming.bodiless |= matches!(head.status.as_u16(), 204 | 304);
        let is_tunnel = incoming.tunnel && head.status.is_success();
        incoming.length = length.filter(|_| !incoming.bodiless && !is_tunnel);
        if end && incoming.length.is_some_and(|length| length > 0) {
            return self.bad_message(key, Http2Fault::Messaging);
        }
        incoming.heads.push_back(head);
        stream.wake();
        if end {
            self.end_of_message(key);
        }
        Ok(())
    }
}
