//! PINGs of `connection_keepalive`: one each interval, and the connection is given up when its answer
//! does not come.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::config::protocol_options::KeepaliveSettings;

#[derive(Debug)]
pub(super) struct Keepalive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Keepalive {
    /// `None` where no interval is configured.
    pub(super) fn new(
        settings: Option<KeepaliveSettings>,
        pings: impl FnOnce() -> Option<PingPong>,
    ) -> Option<Self> {
        let settings = settings?;
        let interval = settings.interval?;
        // Up to so many percent are added, so that connections made together do not ping together.
        let jitter = rand::random::<f64>() * settings.interval_jitter / 100.0;
        let interval = interval.mul_f64(1.0 + jitter.clamp(0.0, 1.0));
        let timer = Box::pin(sleep(interval));
        Some(Self { pings: pings()?, interval, timeout: settings.timeout, timer, waiting: false })
    }

    /// Ready when the peer did not answer in time.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                    }
                    // The connection has ended: its own poll says so.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.waiting = true;
            self.timer.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
