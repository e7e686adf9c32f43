//! The named timers of one stream, on one entry of the worker's wheel.
//!
//! Deadlines are kept as instants; the wheel holds the earliest. Activity moves the idle deadline without
//! touching the wheel: when that entry fires too early it is armed again.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::worker::timers::{Timer, Timers};

/// Which wait has lasted too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// `request_timeout`: the request did not arrive whole.
    Request,
    /// `stream_idle_timeout` or the route's `idle_timeout`: nothing moved in either direction.
    StreamIdle,
    /// `max_stream_duration`.
    MaxStreamDuration,
    /// The route's `timeout`: no whole response.
    Route,
    /// `per_try_timeout`.
    PerTry,
    /// `per_try_idle_timeout`.
    PerTryIdle,
    /// `max_stream_duration` of the cluster, of one try.
    UpstreamMaxDuration,
}

/// Deadlines by name.
#[derive(Debug)]
pub struct StreamTimers {
    wheel: Timer,
    /// What the wheel is armed for.
    armed: Option<Instant>,
    /// A deadline was set since the wheel was armed. A poll arms it once for all that were.
    changed: bool,
    request: Option<Instant>,
    max_duration: Option<Instant>,
    route: Option<Instant>,
    per_try: Option<Instant>,
    upstream_max: Option<Instant>,
    idle: Option<Duration>,
    per_try_idle: Option<Duration>,
    /// The try's timers run from here: what moved before was another's.
    per_try_since: Instant,
    last_activity: Instant,
}

impl StreamTimers {
    pub fn new(timers: &Timers, now: Instant) -> Self {
        Self {
            wheel: timers.timer(),
            armed: None,
            changed: false,
            request: None,
            max_duration: None,
            route: None,
            per_try: None,
            upstream_max: None,
            idle: None,
            per_try_idle: None,
            per_try_since: now,
            last_activity: now,
        }
    }

    pub fn set_request(&mut self, deadline: Option<Instant>) {
        self.request = deadline;
        self.changed = true;
    }

    pub fn set_idle(&mut self, idle: Option<Duration>) {
        self.idle = idle;
        self.changed = true;
    }

    pub fn set_max_duration(&mut self, deadline: Option<Instant>) {
        self.max_duration = deadline;
        self.changed = true;
    }

    pub fn set_route(&mut self, deadline: Option<Instant>) {
        self.route = deadline;
        self.changed = true;
    }

    /// The timers of a try, which run from `now`.
    pub fn set_per_try(&mut self, now: Instant, whole: Option<Duration>, idle: Option<Duration>) {
        self.per_try = whole.map(|whole| now + whole);
        self.per_try_idle = idle;
        self.per_try_since = now;
        self.changed = true;
    }

    pub fn set_upstream_max(&mut self, deadline: Option<Instant>) {
        self.upstream_max = deadline;
        self.rearm();
    }

    /// Something moved.
    pub fn touch(&mut self, now: Instant) {
        self.last_activity = now;
    }

    /// There is an answer: that the request be whole in time is asked no more.
    pub fn response_began(&mut self, now: Instant) {
        self.request = None;
        self.touch(now);
    }

    pub fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// All of the response is on its way: only a client that does not take it can last too long.
    pub fn response_ended(&mut self) {
        (self.request, self.max_duration, self.route, self.per_try) = (None, None, None, None);
        (self.per_try_idle, self.upstream_max) = (None, None);
    }

    /// All off: the stream has ended.
    pub fn clear(&mut self) {
        (self.request, self.max_duration, self.route, self.per_try) = (None, None, None, None);
        (self.idle, self.per_try_idle, self.upstream_max) = (None, None, None);
        self.armed = None;
        self.changed = false;
        self.wheel.disarm();
    }

    fn deadlines(&self) -> [(Option<Instant>, Expired); 7] {
        let of_try = self.last_activity.max(self.per_try_since);
        [
            (self.max_duration, Expired::MaxStreamDuration),
            (self.request, Expired::Request),
            (self.route, Expired::Route),
            (self.per_try, Expired::PerTry),
            (self.upstream_max, Expired::UpstreamMaxDuration),
            (self.per_try_idle.map(|idle| of_try + idle), Expired::PerTryIdle),
            (self.idle.map(|idle| self.last_activity + idle), Expired::StreamIdle),
        ]
    }

    /// Arms the wheel where a deadline is earlier than what it waits for.
    fn rearm(&mut self) {
        let Some(earliest) = self.deadlines().into_iter().filter_map(|(at, _)| at).min() else {
            return;
        };
        if self.armed.is_none_or(|armed| earliest < armed) {
            self.armed = Some(earliest);
            self.wheel.arm(earliest);
        }
    }

    /// Ready with the timer that has run out; it is off afterwards.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        if std::mem::take(&mut self.changed) {
            self.rearm();
        }
        while self.wheel.poll(cx).is_ready() {
            self.armed = None;
            let now = Instant::now();
            let due = self.deadlines().into_iter().find(|(at, _)| at.is_some_and(|at| at <= now));
            let Some((_, expired)) = due else {
                self.rearm();
                continue;
            };
            match expired {
                Expired::Request => self.request = None,
                Expired::StreamIdle => self.idle = None,
                Expired::MaxStreamDuration => self.max_duration = None,
                Expired::Route => self.route = None,
                Expired::PerTry => self.per_try = None,
                Expired::PerTryIdle => self.per_try_idle = None,
                Expired::UpstreamMaxDuration => self.upstream_max = None,
            }
            self.rearm();
            return Poll::Ready(expired);
        }
        Poll::Pending
    }
}
