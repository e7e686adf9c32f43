//! One type's side of a client: the names that are wanted, what the server has been told of them on this stream, and
//! the versions that are held.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use crate::resource::{ResourceType, WILDCARD};

/// A name that is wanted.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// The server has been told on this stream.
    pub(crate) sent: bool,
    /// Until when the first answer has to have come; `None` once it has, or where nobody waits.
    pub(crate) deadline: Option<Instant>,
    /// Whether the server has ever said something about it.
    pub(crate) answered: bool,
}

/// A resource that was applied.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) version: String,
    pub(crate) expires: Option<Instant>,
}

/// `response_nonce` and, for a NACK, its message.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) nonce: String,
    pub(crate) error: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Interest {
    pub(crate) resource_type: ResourceType,
    /// The wildcard is a name among them.
    pub(crate) wanted: BTreeMap<String, Wanted>,
    pub(crate) held: HashMap<String, Held>,
    /// Names of which no version is held, but one was rejected: their end is to be told all the same.
    pub(crate) refused: HashSet<String>,
    /// A request for the type has gone on this stream.
    pub(crate) started: bool,
    /// What the server has not been told yet on this stream (delta).
    pub(crate) to_subscribe: BTreeSet<String>,
    pub(crate) to_unsubscribe: BTreeSet<String>,
    /// The names have changed (state of the world).
    pub(crate) changed: bool,
    /// Names that were given up and wanted again before the server heard of it (state of the world). The next request
    /// goes without them: a list that has not changed asks for nothing, and what came of them is forgotten.
    pub(crate) anew: BTreeSet<String>,
    /// Names in responses since the last request that nobody wanted (state of the world): the server may not have
    /// heard yet that they were given up.
    pub(crate) passed_over: HashSet<String>,
    /// Names have been sent on this stream, so that an empty list is no wildcard any more.
    pub(crate) explicit: bool,
    pub(crate) acks: Vec<Ack>,
    /// Of the last response on this stream (state of the world).
    pub(crate) nonce: String,
    /// Of the last response that was applied as a whole (state of the world).
    pub(crate) version: String,
    /// A request waits in the client's queue.
    pub(crate) queued: bool,
    /// Requests wait there until `Client::hold` lets them go.
    pub(crate) on_hold: bool,
}

impl Interest {
    pub(crate) fn new(resource_type: ResourceType) -> Self {
        Self {
            resource_type,
            wanted: BTreeMap::new(),
            held: HashMap::new(),
            refused: HashSet::new(),
            started: false,
            to_subscribe: BTreeSet::new(),
            to_unsubscribe: BTreeSet::new(),
            changed: false,
            anew: BTreeSet::new(),
            passed_over: HashSet::new(),
            explicit: false,
            acks: Vec::new(),
            nonce: String::new(),
            version: String::new(),
            queued: false,
            on_hold: false,
        }
    }

    /// Whether its next request has to wait.
    pub(crate) fn is_held_back(&self) -> bool {
        self.on_hold && self.started
    }

    /// Whether the name is new among the wanted.
    pub(crate) fn subscribe(&mut self, name: &str, deadline: Option<Instant>) -> bool {
        if let Some(wanted) = self.wanted.get_mut(name) {
            if !wanted.answered {
                wanted.deadline = wanted.deadline.or(deadline);
            }
            return false;
        }
        // One that was given up before the server heard of it is asked for anew: what came of it is forgotten.
        let sent = self.to_unsubscribe.remove(name);
        if sent || self.passed_over.contains(name) {
            self.anew.insert(name.to_owned());
        }
        self.wanted.insert(name.to_owned(), Wanted { sent, deadline, answered: false });
        self.to_subscribe.insert(name.to_owned());
        self.changed = true;
        true
    }

    /// Whether the name was wanted.
    pub(crate) fn unsubscribe(&mut self, name: &str) -> bool {
        let Some(wanted) = self.wanted.remove(name) else { return false };
        self.to_subscribe.remove(name);
        self.anew.remove(name);
        if wanted.sent {
            self.to_unsubscribe.insert(name.to_owned());
        }
        if name == WILDCARD {
            self.held.retain(|name, _| self.wanted.contains_key(name));
            self.refused.retain(|name| self.wanted.contains_key(name));
        } else if !self.is_wildcard() {
            self.held.remove(name);
            self.refused.remove(name);
        }
        self.changed = true;
        true
    }

    pub(crate) fn is_wildcard(&self) -> bool {
        self.wanted.contains_key(WILDCARD)
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.is_wildcard() || self.wanted.contains_key(name)
    }

    /// All that the server knows of this stream's subscriptions is forgotten.
    pub(crate) fn restart(&mut self) {
        self.started = false;
        self.explicit = false;
        self.acks.clear();
        self.nonce.clear();
        self.to_unsubscribe.clear();
        self.to_subscribe.clear();
        self.anew.clear();
        self.passed_over.clear();
        self.queued = false;
        self.changed = true;
        self.wanted.values_mut().for_each(|wanted| wanted.sent = false);
    }

    /// Whether there is something to say.
    pub(crate) fn is_pending(&self, is_delta: bool) -> bool {
        if !self.acks.is_empty() {
            return true;
        }
        if !self.started {
            return !self.wanted.is_empty();
        }
        if is_delta {
            !self.to_subscribe.is_empty() || !self.to_unsubscribe.is_empty()
        } else {
            // A wildcard that was asked for by an empty list cannot be taken back by one.
            self.changed && (self.explicit || !self.wanted.is_empty())
        }
    }

    /// Every name that the server has to be told on a new stream, or in the state of the world; none for a lone
    /// wildcard.
    pub(crate) fn all_names(&mut self) -> Vec<String> {
        self.wanted.values_mut().for_each(|wanted| wanted.sent = true);
        let left_out = std::mem::take(&mut self.anew);
        self.changed = !left_out.is_empty();
        self.to_subscribe.clone_from(&left_out);
        self.to_unsubscribe.clear();
        self.passed_over.clear();
        let lone = self.wanted.len() == 1 && self.is_wildcard();
        if lone && !self.explicit {
            self.changed = false;
            return Vec::new();
        }
        self.explicit = true;
        self.wanted.keys().filter(|name| !left_out.contains(*name)).cloned().collect()
    }

    /// The changes since the last request, as (subscribe, unsubscribe).
    pub(crate) fn changes(&mut self) -> (Vec<String>, Vec<String>) {
        let add: Vec<_> = std::mem::take(&mut self.to_subscribe).into_iter().collect();
        for name in &add {
            if let Some(wanted) = self.wanted.get_mut(name) {
                wanted.sent = true;
            }
        }
        self.changed = false;
        self.anew.clear();
        (add, std::mem::take(&mut self.to_unsubscribe).into_iter().collect())
    }

    /// The server has said something about the name.
    pub(crate) fn note_answer(&mut self, name: &str) {
        if let Some(wanted) = self.wanted.get_mut(name) {
            wanted.deadline = None;
            wanted.answered = true;
        }
    }
}
