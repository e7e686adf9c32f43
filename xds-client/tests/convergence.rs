//! Random interleavings of a client with a model of a server: whatever happens on the way, once things calm down the
//! client holds what the server has of what is wanted, and it never says what is not so.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use model::{Server, Value};
use proptest::prelude::*;
use xds_client::{
    Action, Client, Options, Request, ResourceType, Update, Variant, Verdict, WILDCARD,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    Wildcard(usize, bool),
    /// A resource changes at the server; odd values are rejected by the client.
    Change(usize, usize, u8),
    Delete(usize, usize),
    /// The server answers what it has to.
    Serve,
    /// One message moves from the server to the client.
    Arrive,
    /// The client does one thing.
    Act,
    /// The update in flight is judged.
    Judge,
    Cut,
    Hold(usize, bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let of = 0..2_usize;
    let name = 0..NAMES.len();
    prop_oneof![
        3 => (of.clone(), name.clone()).prop_map(|(t, n)| Step::Subscribe(t, n)),
        2 => (of.clone(), name.clone()).prop_map(|(t, n)| Step::Unsubscribe(t, n)),
        1 => (of.clone(), any::<bool>()).prop_map(|(t, on)| Step::Wildcard(t, on)),
        3 => (of.clone(), name.clone(), 0..6_u8).prop_map(|(t, n, v)| Step::Change(t, n, v)),
        1 => (of.clone(), name).prop_map(|(t, n)| Step::Delete(t, n)),
        1 => (of, any::<bool>()).prop_map(|(t, held)| Step::Hold(t, held)),
        4 => Just(Step::Serve),
        4 => Just(Step::Arrive),
        6 => Just(Step::Act),
        4 => Just(Step::Judge),
        1 => Just(Step::Cut),
        1 => (0..40_000_u64).prop_map(Step::Wait),
    ]
}

/// A client with who applies its updates.
struct Bench {
    variant: Variant,
    types: [ResourceType; 2],
    client: Client,
    server: Server,
    now: Instant,
    /// What is applied, by type and name.
    applied: [BTreeMap<String, u8>; 2],
    /// What was rejected last.
    refused: [BTreeSet<String>; 2],
    wanted: [BTreeSet<String>; 2],
    in_flight: Option<Update>,
    /// Nonces whose updates were judged, on the stream that is open.
    judged: BTreeSet<String>,
    held: [bool; 2],
    /// A request of the type has gone on the stream that is open.
    asked: [bool; 2],
}

impl Bench {
    fn new(variant: Variant) -> Self {
        let now = Instant::now();
        let node = Node { id: "n".into(), ..Node::default() };
        let mut options = Options::new(variant, node);
        options.node_on_first_message_only = true;
        Self {
            variant,
            types: [ResourceType::cluster(), ResourceType::endpoints()],
            client: Client::new(options, now),
            server: Server::new(variant),
            now,
            applied: Default::default(),
            refused: Default::default(),
            wanted: Default::default(),
            in_flight: None,
            judged: BTreeSet::new(),
            held: [false; 2],
            asked: [false; 2],
        }
    }

    fn want(&mut self, kind: usize, name: &str, on: bool) {
        // A wildcard that was asked for without a name cannot be taken back in the state of the world; endpoints have
        // no wildcard there.
        let is_wildcard = name == WILDCARD;
        if is_wildcard && self.variant == Variant::StateOfTheWorld && (kind == 1 || !on) {
            return;
        }
        let resource_type = self.types[kind].clone();
        if on {
            self.client.subscribe(&resource_type, name, None, self.now);
            self.wanted[kind].insert(name.to_owned());
        } else {
            self.client.unsubscribe(&resource_type, name);
            self.wanted[kind].remove(name);
            // Who gives a name up forgets what it had of it.
            let wanted = &self.wanted[kind];
            if !wanted.contains(WILDCARD) {
                self.applied[kind].retain(|name, _| wanted.contains(name));
                self.refused[kind].retain(|name| wanted.contains(name));
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Subscribe(kind, name) => self.want(kind, NAMES[name], true),
            Step::Unsubscribe(kind, name) => self.want(kind, NAMES[name], false),
            Step::Wildcard(kind, on) => self.want(kind, WILDCARD, on),
            Step::Change(kind, name, value) => {
                self.server.set(self.types[kind].url(), NAMES[name], Some(value));
            }
            Step::Delete(kind, name) => self.server.set(self.types[kind].url(), NAMES[name], None),
            Step::Serve => self.server.serve(),
            Step::Arrive => {
                if let Some(response) = self.server.next_response() {
                    self.client.received(response);
                }
            }
            Step::Act => {
                self.act();
            }
            Step::Judge => {
                self.judge();
            }
            Step::Cut => {
                if self.server.close() {
                    self.judged.clear();
                    self.client.ended(self.now);
                }
            }
            Step::Hold(kind, held) => self.hold(kind, held),
            Step::Wait(ms) => self.now += Duration::from_millis(ms),
        }
    }

    fn hold(&mut self, kind: usize, held: bool) {
        // What was never asked for is not held.
        if !self.wanted[kind].is_empty() {
            self.client.hold(&self.types[kind], held);
            self.held[kind] = held;
        }
    }

    /// Whether there was something to do.
    fn act(&mut self) -> bool {
        match self.client.poll_action(self.now) {
            None => return false,
            Some(Action::Open) => {
                self.server.open();
                self.client.opened();
                self.asked = [false; 2];
            }
            Some(Action::Send(request)) => {
                assert!(self.in_flight.is_none(), "a request between delivery and verdict");
                let nonce = match &request {
                    Request::Delta(request) => request.response_nonce.clone(),
                    Request::StateOfTheWorld(request) => request.response_nonce.clone(),
                };
                let url = match &request {
                    Request::Delta(request) => &request.type_url,
                    Request::StateOfTheWorld(request) => &request.type_url,
                };
                let kind = usize::from(url != self.types[0].url());
                let first = !std::mem::replace(&mut self.asked[kind], true);
                assert!(!self.held[kind] || first, "a request of a type on hold");
                let known = nonce.is_empty() || self.judged.contains(&nonce);
                assert!(known, "an acknowledgement of what was not judged");
                self.server.take(request);
            }
            Some(Action::Deliver(update)) => {
                assert!(update.malformed.is_empty());
                assert!(self.in_flight.replace(update).is_none());
            }
            Some(Action::Close | Action::TimedOut { .. }) => unreachable!("nothing is timed"),
        }
        true
    }

    fn judge(&mut self) -> bool {
        let Some(update) = self.in_flight.take() else { return false };
        let kind = usize::from(update.resource_type != self.types[0]);
        let wanted = &self.wanted[kind];
        let wants = |name: &str| wanted.contains(name) || wanted.contains(WILDCARD);
        for name in &update.removed {
            self.applied[kind].remove(name);
            self.refused[kind].remove(name);
        }
        let mut rejected: Vec<String> = Vec::new();
        for resource in &update.resources {
            let Value { name, value } = Value::of(&resource.body);
            assert_eq!(name, resource.name);
            if value % 2 == 1 {
                if wants(&name) {
                    self.refused[kind].insert(name.clone());
                }
                rejected.push(name);
            } else if wants(&name) {
                self.refused[kind].remove(&name);
                self.applied[kind].insert(name, value);
            }
        }
        self.judged.extend(self.server.nonce_of(update.resource_type.url()));
        let message = format!("rejected: {}", rejected.join(", "));
        self.client.judge(Verdict { rejected, message });
        true
    }

    /// Lets everything that is under way arrive.
    fn calm_down(&mut self) {
        for kind in &self.types {
            self.client.hold(kind, false);
        }
        self.held = [false; 2];
        for _ in 0..10_000 {
            let mut busy = self.judge();
            busy |= self.act();
            self.server.serve();
            if let Some(response) = self.server.next_response() {
                self.client.received(response);
                busy = true;
            }
            if !busy {
                match self.client.next_deadline() {
                    Some(at) => self.now = self.now.max(at),
                    None => return,
                }
            }
        }
        panic!("it does not calm down");
    }

    fn check(&self) {
        for (kind, resource_type) in self.types.iter().enumerate() {
            let told = self.server.subscribed(resource_type.url());
            assert_eq!(told, self.wanted[kind], "what the server knows of {resource_type}");
            let has = self.server.resources(resource_type.url());
            let wants_all = self.wanted[kind].contains(WILDCARD);
            for name in NAMES {
                if !wants_all && !self.wanted[kind].contains(name) {
                    continue;
                }
                let applied = self.applied[kind].get(name).copied();
                match has.get(name) {
                    Some(value) if value % 2 == 0 => assert_eq!(applied, Some(*value), "{name}"),
                    // The last good version, if there was one.
                    Some(_) => assert!(applied.is_none_or(|value| value % 2 == 0)),
                    None => {
                        // Absence says nothing of endpoints in the state of the world.
                        let is_said = self.variant == Variant::Delta || kind == 0;
                        assert!(!is_said || applied.is_none(), "{name} is gone");
                        let is_known = self.refused[kind].contains(name);
                        assert!(!is_said || !is_known, "{name}, refused, is gone");
                    }
                }
            }
        }
    }
}

fn run(variant: Variant, steps: Vec<Step>) {
    let mut bench = Bench::new(variant);
    for step in steps {
        bench.step(step);
    }
    bench.calm_down();
    bench.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn delta_converges(steps in prop::collection::vec(step(), 0..80)) {
        run(Variant::Delta, steps);
    }

    #[test]
    fn state_of_the_world_converges(steps in prop::collection::vec(step(), 0..80)) {
        run(Variant::StateOfTheWorld, steps);
    }
}

/// A list of names that has not changed asks for nothing, though what came of one of them was not taken.
#[test]
fn a_name_given_up_and_wanted_again_is_asked_for_again() {
    use Step::{Act, Arrive, Change, Judge, Serve, Subscribe, Unsubscribe};
    let start = [Subscribe(0, 0), Change(0, 1, 2), Subscribe(0, 1), Act, Act, Serve];
    let between: [&[Step]; 4] = [
        &[Arrive, Unsubscribe(0, 1), Act, Subscribe(0, 1)],
        &[Arrive, Act, Unsubscribe(0, 1), Subscribe(0, 1), Judge],
        &[Arrive, Act, Judge, Act, Unsubscribe(0, 1), Subscribe(0, 1)],
        // The server has not heard it: its answer was on its way.
        &[Unsubscribe(0, 1), Act, Arrive, Act, Subscribe(0, 1)],
    ];
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        for steps in between {
            run(variant, start.iter().chain(steps).cloned().collect());
        }
    }
}
