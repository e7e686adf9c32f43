//! A downstream connection in its manager's statistics, from its first gauge to its last: they fall when it is dropped,
//! also where its task is ended by force or panics.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use super::connection::{Closed, HttpConnection};
use super::live::WorkerHcm;
use super::stream::ActiveStream;
use crate::codec::head::Protocol;
use crate::codec::{ServerStream, h1};
use crate::stats::declare_http2;
use crate::stats::names::HttpStat;

/// See the module.
pub(super) struct ActiveConnection {
    pub(super) connection: HttpConnection,
    /// What it began with.
    pub(super) hcm: Rc<WorkerHcm>,
    /// Not of HTTP/2, once that is known.
    pub(super) conn: Option<h1::ServerConn>,
    /// The gauge of its codec, once that is known.
    codec: Option<HttpStat>,
    /// Who ended it, once it has been.
    pub(super) closed: Cell<Option<Closed>>,
}

impl ActiveConnection {
    pub(super) fn new(
        connection: HttpConnection,
        hcm: Rc<WorkerHcm>,
        conn: h1::ServerConn,
    ) -> Self {
        hcm.stats.inc(HttpStat::DownstreamCxTotal);
        hcm.stats.gauge_inc(HttpStat::DownstreamCxActive);
        // Nothing stays in it; but it has been used.
        hcm.stats.gauge_add(HttpStat::DownstreamCxRxBytesBuffered, 0);
        if connection.info.is_tls {
            hcm.stats.inc(HttpStat::DownstreamCxSslTotal);
            hcm.stats.gauge_inc(HttpStat::DownstreamCxSslActive);
        }
        Self { connection, hcm, conn: Some(conn), codec: None, closed: Cell::new(None) }
    }

    /// The codec is known.
    pub(super) fn speaks(&mut self, total: HttpStat, active: HttpStat) {
        self.hcm.stats.inc(total);
        self.hcm.stats.gauge_inc(active);
        self.codec = Some(active);
    }

    /// Boxed: a connection of HTTP/1 has no room for it.
    pub(super) fn box_h2(&mut self) -> Option<Pin<Box<dyn Future<Output = Closed> + '_>>> {
        declare_http2(&self.connection.worker.registry);
        self.speaks(HttpStat::DownstreamCxHttp2Total, HttpStat::DownstreamCxHttp2Active);
        let (io, read) = self.conn.take()?.into_parts();
        Some(Box::pin(self.connection.serve_h2(io, read, &self.hcm)))
    }

    /// A request whose head was on its way has been one, as in Envoy.
    fn cut_head(&mut self) {
        let Some(conn) = self.conn.as_mut().filter(|conn| conn.is_reusable()) else { return };
        if !conn.request_was_begun() {
            return;
        }
        let unread = super::request_head::unread(Protocol::Http11);
        let hcm = self.connection.slot.current(&self.connection.worker);
        let setup = self.connection.setup(hcm, ServerStream::H1(conn), unread, false);
        let mut stream = ActiveStream::new(setup);
        stream.head_read = false;
        stream.count_request();
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        if self.closed.get().is_none() && !std::thread::panicking() {
            self.connection.note_cut();
            self.cut_head();
        }
        let stats = &self.hcm.stats;
        if let Some(codec) = self.codec {
            stats.gauge_dec(codec);
        }
        stats.gauge_dec(HttpStat::DownstreamCxActive);
        let info = &self.connection.info;
        if info.is_tls {
            stats.gauge_dec(HttpStat::DownstreamCxSslActive);
        }
        stats.inc(HttpStat::DownstreamCxDestroy);
        stats.inc(match self.closed.get() {
            Some(Closed::Remote) => HttpStat::DownstreamCxDestroyRemote,
            Some(Closed::Local) | None => HttpStat::DownstreamCxDestroyLocal,
        });
        stats.record(HttpStat::DownstreamCxLengthMs, info.started.elapsed().as_millis() as u64);
    }
}
