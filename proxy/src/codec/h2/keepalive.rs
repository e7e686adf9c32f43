//! PINGs of `connection_keepalive`: one each interval, and the connection is given up when its answer
//! does not come.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use crate::config::protocol_options::KeepaliveSettings;

#[derive(Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Keepalive {
    /// `None` where no interval is configured.
    pub(super) fn new(settings: Option<KeepaliveSettings>) -> Option<Self> {
        let settings = settings?;
        let interval = settings.interval?;
        // Up to so many percent are added, so that connections made together do not ping together.
        let jitter = rand::random::<f64>() * settings.interval_jitter / 100.0;
        let interval = interval.mul_f64(1.0 + jitter.clamp(0.0, 1.0));
        let timer = Box::pin(sleep(interval));
        Some(Self { interval, timeout: settings.timeout, timer, waiting: false })
    }

    /// Ready when the peer did not answer in time.
    pub(super) fn poll_dead(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.waiting && !connection.pinging {
            self.waiting = false;
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.waiting {
                return Poll::Ready(());
            }
            connection.ping();
            self.waiting = true;
            self.timer.as_mut().reset(Instant::now() + self.timeout);
        }
        Poll::Pending
    }
}
