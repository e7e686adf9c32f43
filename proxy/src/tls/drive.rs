//! One session over an `Io`: records in and out, step by step, until rustls has what it needs.
//!
//! Crypto costs a fraction of a millisecond a step: at most a few steps are taken in one turn of a worker, so that a
//! burst of handshakes does not keep its other connections waiting. Who is silent holds no buffer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{CommonState, Error, PeerMisbehaved, ProtocolVersion};
use tokio::sync::Semaphore;

use super::choice;
use super::early_data;
use super::failure::{self, HandshakeFailure};
use super::record;
use super::session_id::{self, SessionId};
use super::verdict::Verdict;
use crate::io::Io;

/// Room of one read.
const READ_BYTES: usize = 16 * 1024;
/// Steps of handshakes in one turn of a worker.
const STEPS: usize = 4;
/// Handshake bytes of a peer that are kept undigested.
const MAX_INCOMING: usize = 64 * 1024;

thread_local! {
    static GATE: Rc<Semaphore> = Rc::new(Semaphore::new(STEPS));
    static INPUT: RefCell<BytesMut> = RefCell::default();
}

/// The two ends of rustls' interface without buffers.
pub(super) trait Session {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    /// Which of the buffers may tell the session's id.
    fn note_session(buffers: &mut Buffers, before: bool);
}

impl Session for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn note_session(buffers: &mut Buffers, before: bool) {
        if !before && buffers.session.is_none() {
            buffers.session = session_id::note(&buffers.outgoing, None);
        }
    }

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records(self, incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl Session for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn note_session(buffers: &mut Buffers, before: bool) {
        if before {
            buffers.session = session_id::note(&buffers.incoming, buffers.session);
        }
    }

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records(self, incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// A handshake's buffers.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) incoming: BytesMut,
    pub(super) outgoing: Vec<u8>,
    written: usize,
    /// How many bytes of `incoming`, in whole records, the session has seen.
    given: usize,
    /// Bytes of refused 0-RTT data, in whole records.
    passed_over: usize,
    pub(super) session: Option<SessionId>,
    pub(super) seen: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Done,
    PeerClosed,
}

/// One step: digests what came, and prepares what is to be sent.
///
/// Record by record, so that the session never sees what comes behind the handshake: it would answer a key update there
/// itself, and its answer would be lost with it.
fn step<S: Session>(session: &mut S, buffers: &mut Buffers) -> Result<Step, Error> {
    let mut end = buffers.given;
    // Another handshake of this thread may have failed on one.
    early_data::take_unreadable();
    loop {
        let UnbufferedStatus { discard, state } = session.process(&mut buffers.incoming[..end]);
        let done = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let at = buffers.outgoing.len();
                if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                    buffers.outgoing.resize(at + size.required_size, 0);
                    let _ = data.encode(&mut buffers.outgoing[at..]);
                }
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(Step::More)),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Step::Done)),
            Ok(_) => Some(Ok(Step::PeerClosed)),
            Err(error) => Some(Err(error)),
        };
        let unreadable = early_data::take_unreadable();
        // A record that is not all there yet is looked at, but never taken.
        let discard = if unreadable && matches!(done, Some(Ok(Step::More))) {
            buffers.passed_over += buffers.given;
            discard.max(buffers.given)
        } else {
            discard
        };
        buffers.incoming.advance(discard);
        buffers.given = buffers.given.saturating_sub(discard);
        end = end.saturating_sub(discard);
        // rustls counts what is in the records only, and there may be nothing in them.
        let done = if buffers.passed_over > MAX_INCOMING {
            Some(Err(PeerMisbehaved::TooMuchEarlyDataReceived.into()))
        } else {
            done
        };
        if let Some(Ok(Step::More)) = done {
            let (next, is_whole) = record::end(&buffers.incoming, buffers.given);
            if is_whole {
                buffers.given = next;
            }
            if next > end {
                end = next;
                continue;
            }
        }
        if let Some(done) = done {
            if let Err(error) = &done {
                take_alert(session, buffers);
                if session.common().protocol_version() == Some(ProtocolVersion::TLSv1_2) {
                    failure::amend_alert(error, &mut buffers.outgoing);
                }
            }
            return done;
        }
    }
}

/// What rustls has for the peer after an error. It is not asked for more than that: it would look at the same bytes
/// again, and find the same fault.
fn take_alert<S: Session>(session: &mut S, buffers: &mut Buffers) {
    while session.common().wants_write() {
        let UnbufferedStatus { discard, state } = session.process(&mut buffers.incoming);
        let at = buffers.outgoing.len();
        let is_taken = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => {
                    buffers.outgoing.resize(at + size.required_size, 0);
                    data.encode(&mut buffers.outgoing[at..]).is_ok()
                }
                _ => false,
            },
            _ => false,
        };
        buffers.incoming.advance(discard);
        if !is_taken {
            return;
        }
    }
}

/// Waits for this thread's turn, then takes the step and lets everybody else have one.
pub(super) async fn in_turn<T>(step: impl FnOnce() -> T) -> T {
    let gate = GATE.with(Rc::clone);
    let place = gate.acquire().await;
    let result = step();
    tokio::task::yield_now().await;
    drop(place);
    result
}

impl Buffers {
    /// `incoming` has been read already.
    pub(super) fn of(incoming: BytesMut) -> Self {
        Self { incoming, ..Self::default() }
    }

    /// Reads once, to the end of `incoming`; false at the end of the stream.
    pub(super) async fn read(&mut self, io: &mut Io) -> io::Result<bool> {
        poll_fn(|cx| self.poll_read(io, cx)).await
    }

    fn poll_read(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        ready!(io.poll_read_ready(cx));
        let mut input = INPUT.take();
        input.clear();
        input.reserve(READ_BYTES);
        let result = io.poll_read_limited(cx, &mut input, READ_BYTES);
        if let Poll::Ready(Ok(_)) = result {
            self.incoming.extend_from_slice(&input);
        }
        INPUT.set(input);
        result.map_ok(|n| n > 0)
    }

    async fn flush(&mut self, io: &mut Io) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(io, cx)).await
    }

    fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let n = ready!(io.poll_write(cx, &self.outgoing[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.outgoing.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Tells the peer what the kernel takes now; nobody waits for a peer that failed.
    pub(super) fn flush_now(&mut self, io: &mut Io) {
        let _ = self.poll_flush(io, &mut Context::from_waker(Waker::noop()));
        let _ = io.poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }

    /// Runs a session until it is established.
    pub(super) async fn drive<S: Session>(
        &mut self,
        session: &mut S,
        io: &mut Io,
    ) -> Result<(), HandshakeFailure> {
        loop {
            let outcome = in_turn(|| {
                let _ = (Verdict::take(), choice::take_picked());
                S::note_session(self, true);
                let outcome = step(session, self).map_err(|error| HandshakeFailure::new(&error));
                S::note_session(self, false);
                let (verdict, seen) = (Verdict::take(), &mut self.seen);
                seen.validated |= verdict.validated;
                seen.admitted = verdict.admitted.or(seen.admitted);
                seen.overlooked = verdict.overlooked.or(seen.overlooked);
                seen.signature = verdict.signature.or(seen.signature);
                seen.picked = choice::take_picked().or(seen.picked);
                outcome
            })
            .await;
            match outcome {
                Ok(Step::Done) => {
                    self.flush(io).await?;
                    return Ok(());
                }
                Ok(Step::More) => self.flush(io).await?,
                Ok(Step::PeerClosed) => return Err(HandshakeFailure::closed()),
                Err(failure) => {
                    self.flush_now(io);
                    return Err(failure);
                }
            }
            if self.incoming.len() > MAX_INCOMING || !self.read(io).await? {
                return Err(HandshakeFailure::closed());
            }
        }
    }
}
