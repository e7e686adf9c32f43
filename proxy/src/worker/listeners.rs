//! The listeners of one worker: added, updated and removed as control says, and the connections that have to end for it.
//!
//! An update keeps its sockets: the accept loops look for the newest version of their listener at each connection.

use std::collections::hash_map::Entry;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::task::{JoinError, JoinSet};

use super::WorkerContext;
use super::closing::ListenerDrain;
use super::connections::{Cut, Drain};
use crate::config::listener::Listener;
use crate::listener::sockets::SocketHandle;
use crate::listener::{ListenerSlot, StopSignal};

/// What control says about one listener.
#[derive(Debug)]
pub enum ListenerCommand {
    /// A new one, or a new version of the one of its number. `sockets`: in place of those it had; `None` keeps them.
    Put { config: Arc<Listener>, sockets: Option<Vec<SocketHandle>> },
    /// Takes no more connections and is forgotten; its sockets close once their queues are empty.
    Remove,
    /// Ends connections.
    Retire(Retire),
}

/// Connections that are to end because of a change.
#[derive(Debug, Clone)]
pub struct Retire {
    /// Of these filter chains; `None`: all of the listener.
    pub chains: Option<Arc<[u64]>>,
    /// Who is left then is closed.
    pub within: Duration,
    /// Spread over the time; else all are told at once.
    pub gradually: bool,
}

struct Active {
    slot: Rc<ListenerSlot>,
    stop: StopSignal,
}

/// See the module. `!Send`.
pub struct Listeners {
    worker: Rc<WorkerContext>,
    active: FxHashMap<usize, Active>,
    /// The accept loops, of which some drain the queue of a socket that is no longer wanted.
    loops: JoinSet<()>,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listeners({})", self.active.len())
    }
}

impl Listeners {
    pub fn new(worker: Rc<WorkerContext>) -> Self {
        Self { worker, active: FxHashMap::default(), loops: JoinSet::new() }
    }

    /// Carries out a command about the listener of a number.
    pub fn apply(&mut self, number: usize, command: ListenerCommand) {
        match command {
            ListenerCommand::Put { config, sockets } => self.put(number, config, sockets),
            ListenerCommand::Remove => {
                if let Some(active) = self.active.remove(&number) {
                    active.stop.stop();
                    self.worker.listeners.remove(&active.slot.current());
                }
            }
            ListenerCommand::Retire(retire) => {
                tokio::task::spawn_local(end_connections(self.worker.clone(), number, retire));
            }
        }
    }

    fn put(&mut self, number: usize, config: Arc<Listener>, sockets: Option<Vec<SocketHandle>>) {
        let worker = self.worker.clone();
        let (active, before) = match self.active.entry(number) {
            Entry::Occupied(active) => {
                let active = active.into_mut();
                let before = active.slot.update(config);
                (active, Some(before))
            }
            Entry::Vacant(place) => {
                let slot = ListenerSlot::new(config, number, worker);
                (place.insert(Active { slot, stop: StopSignal::default() }), None)
            }
        };
        let listener = active.slot.current();
        let by_address = &self.worker.listeners;
        let Some(sockets) = sockets else {
            return before.iter().for_each(|before| by_address.replace(before, &listener));
        };
        before.iter().for_each(|before| by_address.remove(before));
        by_address.add(&listener, &sockets);
        std::mem::take(&mut active.stop).stop();
        for socket in sockets {
            let (slot, stop) = (active.slot.clone(), active.stop.clone());
            self.loops.spawn_local(async move {
                let name = slot.current().config.name.clone();
                if let Err(error) = slot.accept_loop(socket, stop).await {
                    tracing::error!(listener = %name, %error, "cannot accept");
                }
            });
        }
    }

    /// Waits for an accept loop that panicked; the worker serves nobody without. Cancel-safe.
    pub async fn failed(&mut self) -> JoinError {
        loop {
            match self.loops.join_next().await {
                Some(Ok(())) => {}
                Some(Err(failed)) => return failed,
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until every accept loop has ended: those of listeners that are stopped do, once their queues are empty.
    /// Cancel-safe.
    pub async fn closed(&mut self) {
        while self.loops.join_next().await.is_some() {}
    }

    /// Tells their connections to end: at once; gradually, it is their answers that tell them (`Closing`), and the end of
    /// the time those that had none.
    pub fn drain(&self, drain: ListenerDrain) {
        let worker = self.worker.clone();
        let (at, gradually) = (drain.began + drain.within, drain.gradually);
        let tell = move |worker: &WorkerContext| {
            worker.connections.drain(Drain::Graceful, |number| drain.numbers.contains(&number));
        };
        if gradually {
            tokio::task::spawn_local(async move {
                worker.timers.sleep_until(at).await;
                tell(&worker);
            });
        } else {
            tell(&worker);
        }
    }

    /// Stops accepting on the listeners of which `wanted` is true.
    pub fn stop(&self, wanted: impl Fn(usize) -> bool) {
        for (_, active) in self.active.iter().filter(|(number, _)| wanted(**number)) {
            active.stop.stop();
            self.worker.listeners.remove(&active.slot.current());
        }
    }
}

/// Tells connections one after another, evenly over the time, and closes who is left at its end.
async fn end_connections(worker: Rc<WorkerContext>, number: usize, retire: Retire) {
    let wanted = |listener: usize, chain: u64| {
        listener == number && retire.chains.as_ref().is_none_or(|chains| chains.contains(&chain))
    };
    let began = Instant::now();
    let keys = worker.connections.keys(wanted);
    let steps = keys.len() as u32;
    for (i, key) in keys.into_iter().enumerate() {
        if retire.gradually {
            let at = began + retire.within * i as u32 / steps;
            worker.timers.sleep_until(at).await;
        }
        worker.connections.drain_one(key, Drain::Graceful);
    }
    worker.timers.sleep_until(began + retire.within).await;
    let why = if retire.chains.is_some() { Cut::FilterChain } else { Cut::Listener };
    for key in worker.connections.keys(wanted) {
        worker.connections.abort(key, why);
    }
}
