//! Connection authorisation. pb `extensions.filters.network.rbac.v3.RBAC`.
//!
//! Decided once, before the terminal filter sees the connection, so that what is denied never reaches an upstream and
//! hears nothing of it (Envoy decides at the first byte, with the upstream connection already open).

use std::borrow::Cow;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::config::compile::core::{compile_optional_duration, unpack_any};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::rbac::compile_rbac;
use crate::config::compile::rbac_matcher::compile_rbac_matcher;
use crate::config::pb::envoy::extensions::filters::network::rbac::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::rbac::{RbacEngine, RbacSubject, RbacVerdict};
use crate::http_filters::rbac::{Left, RbacShadowStat, RbacStat, Side, denied_details, leave_hint};
use crate::io::Io;
use crate::stats::Block;
use crate::stream_info::{ConnectionInfo, Metadata};
use crate::worker::WorkerContext;
use crate::worker::connections::{ConnectionHandle, Drain, LastCall};

/// Full name of the filter's message.
pub const TYPE: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

/// The namespace of what the shadow rules leave.
const METADATA: &str = "envoy.filters.network.rbac";

/// How long a denied connection may be silent before it is closed.
const SILENCE: Duration = Duration::from_secs(15);

/// What is read of a denied connection.
const FIRST_READ: usize = 16 * 1024;

/// A compiled filter.
#[derive(Debug)]
pub struct NetworkRbac {
    rules: Option<RbacEngine>,
    shadow_rules: Option<RbacEngine>,
    stat_prefix: String,
    shadow_stat_prefix: String,
    shadow: Side,
    shadow_left: Left,
    delay_deny: Option<Duration>,
}

/// Compiles the filter.
pub fn compile(any: &Any, path: &FieldPath<'_>) -> Option<Arc<NetworkRbac>> {
    let pb = unpack_any::<pb::Rbac>(any, path)?;
    if pb.stat_prefix.is_empty() {
        path.field("stat_prefix").error("value length must be at least 1 characters");
    }
    // A matcher takes the place of rules, as in Envoy.
    for (name, replaced) in [
        ("rules", pb.matcher.is_some() && pb.rules.is_some()),
        ("shadow_rules", pb.shadow_matcher.is_some() && pb.shadow_rules.is_some()),
    ] {
        if replaced {
            path.field(name).ignored("a matcher takes its place");
        }
    }
    let rules = match (&pb.matcher, &pb.rules) {
        (Some(matcher), _) => Some(compile_rbac_matcher(matcher, false, &path.field("matcher"))),
        (None, rules) => rules.as_ref().map(|rules| compile_rbac(rules, &path.field("rules"))),
    };
    let shadow_rules = match (&pb.shadow_matcher, &pb.shadow_rules) {
        (Some(matcher), _) => {
            Some(compile_rbac_matcher(matcher, false, &path.field("shadow_matcher")))
        }
        (None, rules) => {
            rules.as_ref().map(|rules| compile_rbac(rules, &path.field("shadow_rules")))
        }
    };
    let dotted = |prefix: &str| format!("{}.", prefix.trim_end_matches('.'));
    Some(Arc::new(NetworkRbac {
        rules: rules.map_or(Some(None), |e| e.map(Some))?,
        shadow_rules: shadow_rules.map_or(Some(None), |e| e.map(Some))?,
        stat_prefix: dotted(&pb.stat_prefix),
        shadow_stat_prefix: match pb.shadow_rules_stat_prefix.as_str() {
            "" => String::new(),
            prefix => dotted(prefix),
        },
        shadow: Side::new(METADATA, &pb.shadow_rules_stat_prefix, "shadow"),
        shadow_left: Left::default(),
        delay_deny: compile_optional_duration(pb.delay_deny.as_ref(), &path.field("delay_deny")),
    }))
}

/// A filter on one worker.
pub struct WorkerRbac {
    config: Arc<NetworkRbac>,
    stats: Block<RbacStat>,
    shadow_stats: Block<RbacShadowStat>,
}

impl fmt::Debug for WorkerRbac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerRbac").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A connection that may not go on.
#[derive(Debug)]
pub struct Denial {
    rbac: Rc<WorkerRbac>,
    details: Cow<'static, str>,
    left: bool,
}

impl WorkerRbac {
    pub fn new(config: Arc<NetworkRbac>, worker: &WorkerContext) -> Self {
        let scope = |below: &str| {
            let name = format!("{}rbac.{below}", config.stat_prefix);
            worker.registry.scope(name.trim_end_matches('.'))
        };
        Self {
            stats: scope("").block(worker.index),
            shadow_stats: scope(&config.shadow_stat_prefix).block(worker.index),
            config,
        }
    }

    /// Why the connection may not go on, if so. What passes is counted, and what the shadow rules say; they and the
    /// action LOG leave it in the connection's metadata.
    pub fn denial(
        self: &Rc<Self>,
        info: &ConnectionInfo,
        metadata: &mut Metadata,
    ) -> Option<Denial> {
        let subject = RbacSubject::of_connection(info);
        let config = &self.config;
        if let Some(engine) = &config.shadow_rules {
            let RbacVerdict { allowed, at, .. } = engine.evaluate(&subject);
            let stat = if allowed { RbacShadowStat::Allowed } else { RbacShadowStat::Denied };
            self.shadow_stats.inc(stat);
            config.shadow_left.leave(&config.shadow, engine, at, metadata);
        }
        let verdict = config.rules.as_ref()?.evaluate(&subject);
        if let Some(log) = verdict.log {
            leave_hint(log, metadata);
        }
        if verdict.allowed {
            self.stats.inc(RbacStat::Allowed);
            return None;
        }
        let details = denied_details(verdict.policy.map(|name| &**name)).into();
        Some(Denial { rbac: self.clone(), details, left: false })
    }
}

impl Denial {
    /// A denied client is told at its first byte, as by Envoy: closed before, a connection whose bytes are on their
    /// way would end by RST. Silent ones are not waited for longer than listener filters by default are. Whether
    /// there was a byte.
    pub async fn wait_for_a_byte(
        &mut self,
        io: &mut Io,
        read: &mut BytesMut,
        handle: &ConnectionHandle,
        worker: &WorkerContext,
    ) -> bool {
        let mut limit = worker.timers.timer();
        limit.arm(Instant::now() + SILENCE);
        let mut last_call = LastCall::new(handle, &worker.timers);
        poll_fn(|cx| {
            if !read.is_empty() || poll_more(io, cx, read).is_ready() {
                return Poll::Ready(());
            }
            if last_call.poll(cx).is_ready() { Poll::Ready(()) } else { limit.poll(cx) }
        })
        .await;
        !read.is_empty()
    }

    /// `delay_deny` after the first byte. A drain or the client's leaving cuts it short; a FIN is none where
    /// `half_close` holds.
    pub async fn delay(
        &mut self,
        io: &mut Io,
        read: &mut BytesMut,
        handle: &ConnectionHandle,
        worker: &WorkerContext,
        half_close: bool,
    ) {
        let Some(delay) = self.rbac.config.delay_deny else { return };
        let mut timer = worker.timers.timer();
        timer.arm(Instant::now() + delay);
        let mut finished = false;
        self.left = poll_fn(|cx| {
            while !finished && read.len() < FIRST_READ {
                match poll_more(io, cx, read) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) if half_close => finished = true,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(true),
                    Poll::Ready(Ok(_)) => {}
                }
            }
            if handle.poll_drain(Drain::No, cx).is_ready() {
                return Poll::Ready(false);
            }
            timer.poll(cx).map(|()| false)
        })
        .await;
    }

    /// Whether the client left while its denial was delayed.
    pub fn client_left(&self) -> bool {
        self.left
    }

    /// Why the connection is closed; `told` is false for one that left before it could be.
    pub fn close(self, told: bool) -> Option<Cow<'static, str>> {
        if told {
            self.rbac.stats.inc(RbacStat::Denied);
        }
        (told && !self.left).then_some(self.details)
    }
}

/// Reads once; who is silent holds no buffer.
fn poll_more(io: &mut Io, cx: &mut Context<'_>, read: &mut BytesMut) -> Poll<io::Result<usize>> {
    ready!(io.poll_read_ready(cx));
    read.reserve(FIRST_READ);
    io.poll_read(cx, read)
}
