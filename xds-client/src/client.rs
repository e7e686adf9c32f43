//! The state machine of one stream and of everything that is asked for on it.
//!
//! Events go in by method calls, each with the time; `poll_action` gives what to do. Responses are delivered one at a
//! time: from `Action::Deliver` until `judge` nothing is sent, so that what the update makes its receiver want goes
//! out in one request per type and before the update's own acknowledgement, as Envoy's requests do.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use crate::backoff::{Backoff, BackoffOptions, Bucket, RateLimit};
use crate::interest::{Ack, Held, Interest};
use crate::resource::{ResourceType, Update, Verdict, WILDCARD};
use crate::response::Intake;

/// The longest text of a NACK, in bytes: what Envoy cuts it to.
const MAX_MESSAGE: usize = 4096;

/// Which of the protocol's two variants a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `DeltaDiscoveryRequest` and `DeltaDiscoveryResponse`
    Delta,
    /// `DiscoveryRequest` and `DiscoveryResponse`
    StateOfTheWorld,
}

/// What a client is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the stream speaks.
    pub variant: Variant,
    /// Who asks.
    pub node: Node,
    /// `set_node_on_first_message_only`: later requests of a stream go without the node.
    pub node_on_first_message_only: bool,
    /// Between streams.
    pub backoff: BackoffOptions,
    /// `rate_limit_settings`; `None`: requests are not bounded.
    pub rate_limit: Option<RateLimit>,
    /// How long a request may stay without any response before the stream counts as dead; `None`: for ever. Servers
    /// need not answer a name that they do not know.
    pub watchdog: Option<Duration>,
    /// For the jitter.
    pub seed: u64,
}

impl Options {
    /// Envoy's defaults.
    pub fn new(variant: Variant, node: Node) -> Self {
        Self {
            variant,
            node,
            node_on_first_message_only: false,
            backoff: BackoffOptions::default(),
            rate_limit: None,
            watchdog: None,
            seed: 0,
        }
    }
}

/// A request to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// On a stream of [`Variant::Delta`].
    Delta(Box<DeltaDiscoveryRequest>),
    /// On a stream of [`Variant::StateOfTheWorld`].
    StateOfTheWorld(Box<DiscoveryRequest>),
}

/// A response that has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// On a stream of [`Variant::Delta`].
    Delta(DeltaDiscoveryResponse),
    /// On a stream of [`Variant::StateOfTheWorld`].
    StateOfTheWorld(DiscoveryResponse),
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Open a stream and say so by `opened`, or by `ended` when that failed.
    Open,
    /// The stream has been silent for too long: drop it. The client counts it as ended already.
    Close,
    /// Send it on the open stream.
    Send(Request),
    /// Apply it, subscribe to what it refers to, and say what came of it by `judge`.
    Deliver(Update),
    /// The server has said nothing of these names within their time. They stay subscribed.
    TimedOut {
        /// Their type.
        resource_type: ResourceType,
        /// At least one.
        names: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    /// To be opened at this time.
    Waiting(Instant),
    Opening,
    Open,
}

/// An update that is being applied.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) stream: u64,
    pub(crate) index: usize,
    /// `None`: made here, by the end of a resource's life; nobody waits for its verdict.
    pub(crate) nonce: Option<String>,
    pub(crate) version: String,
    pub(crate) held: Vec<(String, Held)>,
    pub(crate) removed: Vec<String>,
    /// What is said of `Update::malformed`.
    pub(crate) malformed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Fetch,
    Expiry,
}

/// Subscriptions of any number of types on one stream.
#[derive(Debug)]
pub struct Client {
    options: Options,
    connection: Connection,
    /// Counts streams, so that a verdict finds out whether its own is still there.
    stream: u64,
    node_sent: bool,
    /// In the order in which they were first asked for: they are asked for in this order on every new stream.
    types: Vec<Interest>,
    /// Types that have something to say, in order.
    queue: VecDeque<usize>,
    arrived: VecDeque<Response>,
    in_flight: Option<InFlight>,
    actions: VecDeque<Action>,
    /// Entries whose name has another time by now, or none, are passed over.
    timers: BinaryHeap<Reverse<(Instant, Timer, usize, String)>>,
    backoff: Backoff,
    bucket: Option<Bucket>,
    /// Until when the bucket is empty.
    limited: Option<Instant>,
    rate_limited: u64,
    unanswered: Option<Instant>,
}

impl Client {
    /// A client that opens its first stream at once.
    pub fn new(options: Options, now: Instant) -> Self {
        Self {
            connection: Connection::Waiting(now),
            stream: 0,
            node_sent: false,
            types: Vec::new(),
            queue: VecDeque::new(),
            arrived: VecDeque::new(),
            in_flight: None,
            actions: VecDeque::new(),
            timers: BinaryHeap::new(),
            backoff: Backoff::new(options.backoff, options.seed),
            bucket: options.rate_limit.map(Bucket::new),
            limited: None,
            rate_limited: 0,
            unanswered: None,
            options,
        }
    }

    /// Wants a name, or all of the type ([`WILDCARD`]). When `patience` has passed without a word of it from the
    /// server, that is told once, by [`Action::TimedOut`]. Asking again for what is wanted changes nothing.
    pub fn subscribe(
        &mut self,
        resource_type: &ResourceType,
        name: &str,
        patience: Option<Duration>,
        now: Instant,
    ) {
        let index = self.index_or_insert(resource_type);
        let deadline = patience.filter(|patience| !patience.is_zero()).map(|p| now + p);
        let interest = &mut self.types[index];
        let is_new = interest.subscribe(name, deadline);
        if let Some(at) = deadline
            && interest.wanted.get(name).is_some_and(|wanted| wanted.deadline == deadline)
        {
            self.timers.push(Reverse((at, Timer::Fetch, index, name.to_owned())));
        }
        if is_new {
            self.enqueue(index);
        }
    }

    /// Wants a name, or the wildcard, no longer. What was delivered under it is not removed by an update.
    pub fn unsubscribe(&mut self, resource_type: &ResourceType, name: &str) {
        let Some(index) = self.index(resource_type) else { return };
        if self.types[index].unsubscribe(name) {
            self.enqueue(index);
        }
    }

    /// Keeps everything that is to be said of a type to itself, acknowledgements too, until it is called again with
    /// `false`; but for the first request of a stream, without which its server would never say what ends the hold.
    /// Updates are delivered all the same. Nothing happens for a type that was never asked for.
    pub fn hold(&mut self, resource_type: &ResourceType, held: bool) {
        if let Some(index) = self.index(resource_type) {
            self.types[index].on_hold = held;
        }
    }

    /// The stream that `Action::Open` asked for is open.
    pub fn opened(&mut self) {
        self.connection = Connection::Open;
        self.queue.clear();
        self.node_sent = false;
        self.unanswered = None;
        for index in 0..self.types.len() {
            self.types[index].restart();
            self.enqueue(index);
        }
    }

    /// The stream has ended, or could not be opened. Responses that were not delivered yet are dropped: the server
    /// sends them again.
    pub fn ended(&mut self, now: Instant) {
        self.connection = Connection::Waiting(now + self.backoff.next());
        self.stream += 1;
        self.queue.clear();
        self.arrived.clear();
        self.unanswered = None;
        self.types.iter_mut().for_each(Interest::restart);
    }

    /// A response has come on the open stream. One of the other variant, or of a type that was never asked for, is
    /// passed over.
    pub fn received(&mut self, response: Response) {
        if self.connection != Connection::Open {
            return;
        }
        self.backoff.reset();
        self.unanswered = None;
        self.arrived.push_back(response);
    }

    /// What came of the update that was delivered last.
    pub fn judge(&mut self, verdict: Verdict) {
        let Some(done) = self.in_flight.take() else { return };
        let is_current = done.stream == self.stream;
        let is_whole = verdict.rejected.is_empty() && done.malformed.is_none();
        let interest = &mut self.types[done.index];
        // There may be thousands of either.
        let rejected: HashSet<&str> = verdict.rejected.iter().map(String::as_str).collect();
        for name in &done.removed {
            interest.held.remove(name);
            interest.refused.remove(name);
        }
        for (name, held) in done.held {
            if !interest.wants(&name) {
                continue;
            }
            if rejected.contains(&*name) {
                if !interest.held.contains_key(&name) {
                    interest.refused.insert(name);
                }
                continue;
            }
            interest.refused.remove(&name);
            if let Some(at) = held.expires {
                self.timers.push(Reverse((at, Timer::Expiry, done.index, name.clone())));
            }
            interest.held.insert(name, held);
        }
        let Some(nonce) = done.nonce else { return };
        if is_whole {
            interest.version = done.version;
        }
        if !is_current {
            return;
        }
        let said = Some(verdict.message).filter(|_| !verdict.rejected.is_empty());
        let texts: Vec<String> = [said, done.malformed].into_iter().flatten().collect();
        let error = (!is_whole).then(|| truncated(texts.join("; ")));
        if self.options.variant == Variant::StateOfTheWorld {
            // An older one is stale by now.
            interest.acks.clear();
        }
        interest.acks.push(Ack { nonce, error });
        self.enqueue(done.index);
    }

    /// The next thing to do at this time; to be asked until there is none, after every event and when
    /// `next_deadline` has come.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.advance(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Connection::Waiting(at) = self.connection
            && at <= now
        {
            self.connection = Connection::Opening;
            return Some(Action::Open);
        }
        if self.in_flight.is_some() {
            return None;
        }
        if let Some(request) = self.next_request(now) {
            return Some(Action::Send(request));
        }
        while let Some(response) = self.arrived.pop_front() {
            if let Some((update, in_flight)) = self.take_in(response, now) {
                self.in_flight = Some(in_flight);
                return Some(Action::Deliver(update));
            }
        }
        None
    }

    /// When `poll_action` has to be asked even though nothing has happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        let opens = match self.connection {
            Connection::Waiting(at) => Some(at),
            Connection::Opening | Connection::Open => None,
        };
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let limited = self.limited.filter(|_| self.in_flight.is_none());
        [opens, timer, limited, self.dead_at()].into_iter().flatten().min()
    }

    /// How often a request had to wait for the rate limit so far.
    pub fn rate_limited(&self) -> u64 {
        self.rate_limited
    }

    /// Types that have a request waiting; those on hold are not counted.
    pub fn pending_requests(&self) -> usize {
        self.queue.iter().filter(|index| !self.types[**index].is_held_back()).count()
    }

    /// The names that are wanted of a type, in order.
    pub fn wanted(&self, resource_type: &ResourceType) -> impl Iterator<Item = &str> {
        let interest = self.index(resource_type).map(|index| &self.types[index]);
        interest.into_iter().flat_map(|interest| interest.wanted.keys().map(String::as_str))
    }

    fn index(&self, resource_type: &ResourceType) -> Option<usize> {
        self.types.iter().position(|interest| interest.resource_type == *resource_type)
    }

    fn index_or_insert(&mut self, resource_type: &ResourceType) -> usize {
        self.index(resource_type).unwrap_or_else(|| {
            self.types.push(Interest::new(resource_type.clone()));
            self.types.len() - 1
        })
    }

    fn enqueue(&mut self, index: usize) {
        if self.connection == Connection::Open && !self.types[index].queued {
            self.types[index].queued = true;
            self.queue.push_back(index);
        }
    }

    fn dead_at(&self) -> Option<Instant> {
        Some(self.unanswered? + self.options.watchdog?)
    }

    /// What time alone brings about.
    fn advance(&mut self, now: Instant) {
        if self.dead_at().is_some_and(|at| at <= now) {
            self.ended(now);
            self.actions.push_back(Action::Close);
        }
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
        {
            // An update in flight decides first what is held.
            if self.in_flight.is_some()
                && matches!(self.timers.peek(), Some(Reverse((_, Timer::Expiry, ..))))
            {
                break;
            }
            let Some(Reverse((at, timer, index, name))) = self.timers.pop() else { break };
            match timer {
                Timer::Fetch => self.time_out(at, index, name),
                Timer::Expiry => self.expire(at, index, name),
            }
        }
    }

    fn time_out(&mut self, at: Instant, index: usize, name: String) {
        let interest = &mut self.types[index];
        let Some(wanted) = interest.wanted.get_mut(&name) else { return };
        if wanted.deadline != Some(at) {
            return;
        }
        wanted.deadline = None;
        if let Some(Action::TimedOut { resource_type, names }) = self.actions.back_mut()
            && *resource_type == interest.resource_type
        {
            names.push(name);
            return;
        }
        let resource_type = interest.resource_type.clone();
        self.actions.push_back(Action::TimedOut { resource_type, names: vec![name] });
    }

    fn expire(&mut self, at: Instant, index: usize, name: String) {
        let interest = &mut self.types[index];
        if interest.held.get(&name).is_none_or(|held| held.expires != Some(at)) {
            return;
        }
        interest.held.remove(&name);
        self.in_flight = Some(InFlight {
            stream: self.stream,
            index,
            nonce: None,
            version: String::new(),
            held: Vec::new(),
            removed: Vec::new(),
            malformed: None,
        });
        self.actions.push_back(Action::Deliver(Update {
            resource_type: interest.resource_type.clone(),
            version: String::new(),
            control_plane: None,
            resources: Vec::new(),
            removed: vec![name],
            malformed: Vec::new(),
        }));
    }

    fn take_in(&mut self, response: Response, now: Instant) -> Option<(Update, InFlight)> {
        let url = match &response {
            Response::Delta(response) => &response.type_url,
            Response::StateOfTheWorld(response) => &response.type_url,
        };
        let index = self.types.iter().position(|interest| interest.resource_type.url() == url)?;
        let interest = &mut self.types[index];
        let intake = match (response, self.options.variant) {
            (Response::Delta(response), Variant::Delta) => Intake::delta(interest, response, now),
            (Response::StateOfTheWorld(response), Variant::StateOfTheWorld) => {
                interest.nonce.clone_from(&response.nonce);
                let mut intake = Intake::full(interest, response, now);
                interest.passed_over.extend(intake.passed_over.drain(..));
                intake
            }
            _ => return None,
        };
        interest.note_answer(WILDCARD);
        for (name, at) in intake.refreshed {
            if let Some(held) = interest.held.get_mut(&name) {
                held.expires = at;
            }
            if let Some(at) = at {
                self.timers.push(Reverse((at, Timer::Expiry, index, name)));
            }
        }
        let update = intake.update;
        let names = update.resources.iter().map(|one| &one.name).chain(&update.removed);
        names.for_each(|name| interest.note_answer(name));
        let malformed =
            (!update.malformed.is_empty()).then(|| Verdict::of(&update.malformed, "").message);
        let in_flight = InFlight {
            stream: self.stream,
            index,
            nonce: Some(intake.nonce),
            version: update.version.clone(),
            held: intake.held,
            removed: update.removed.clone(),
            malformed,
        };
        Some((update, in_flight))
    }

    fn next_request(&mut self, now: Instant) -> Option<Request> {
        let mut at = 0;
        while let Some(&index) = self.queue.get(at) {
            if self.types[index].is_held_back() || self.is_superseded(index) {
                at += 1;
                continue;
            }
            if !self.types[index].is_pending(self.options.variant == Variant::Delta) {
                self.queue.remove(at);
                self.types[index].queued = false;
                continue;
            }
            if let Some(bucket) = &mut self.bucket
                && let Err(until) = bucket.take(now)
            {
                self.limited = Some(until);
                self.rate_limited += 1;
                return None;
            }
            self.limited = None;
            self.queue.remove(at);
            self.types[index].queued = false;
            let request = self.make_request(index, now);
            if self.types[index].is_pending(self.options.variant == Variant::Delta) {
                self.enqueue(index);
            }
            return Some(request);
        }
        self.limited = None;
        None
    }

    /// Whether what would be said now of a type is stale: a newer response of it waits to be delivered.
    fn is_superseded(&self, index: usize) -> bool {
        let url = self.types[index].resource_type.url();
        let is_newer = |response: &Response| match response {
            Response::StateOfTheWorld(response) => response.type_url == url,
            Response::Delta(_) => false,
        };
        self.arrived.iter().any(is_newer)
    }

    fn make_request(&mut self, index: usize, now: Instant) -> Request {
        let node = (!self.node_sent || !self.options.node_on_first_message_only)
            .then(|| self.options.node.clone());
        self.node_sent = true;
        let interest = &mut self.types[index];
        let (request, asks) = match self.options.variant {
            Variant::Delta => {
                let (request, asks) = crate::request::delta(interest, node);
                (Request::Delta(Box::new(request)), asks)
            }
            Variant::StateOfTheWorld => {
                let (request, asks) = crate::request::full(interest, node);
                (Request::StateOfTheWorld(Box::new(request)), asks)
            }
        };
        if asks {
            self.unanswered.get_or_insert(now);
        }
        request
    }
}

fn truncated(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - 3;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}
