//! Life and end of the process: live, draining, exit. One deadline.
//!
//! SIGTERM and SIGINT: stop accepting, close idle connections, GOAWAY, exit when nothing is in flight, at the
//! latest after min(`--drain-time-s`, 25 s). A second signal exits at once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use super::args::{DrainStrategy, Options};
use crate::admin::{DrainListeners, ServerState};
use crate::worker::closing::{Closing, ListenerDrain};
use crate::worker::run::{Command, WorkerHandle};

/// Kubernetes kills after 30 s: what is in flight ends before.
const LONGEST_DRAIN: Duration = Duration::from_secs(25);

/// The process's state and its workers, on the control thread.
#[derive(Debug, Clone)]
pub struct Lifecycle(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Cell<ServerState>,
    /// The process ends.
    draining: Cell<bool>,
    closing: Arc<Closing>,
    drain_gradually: bool,
    workers: RefCell<Vec<WorkerHandle>>,
    ended: mpsc::UnboundedSender<usize>,
    quit: Notify,
    drain_time: Duration,
}

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Clean,
    WorkerDied,
}

/// Waits for the end.
#[derive(Debug)]
pub struct ExitWait {
    ended: mpsc::UnboundedReceiver<usize>,
}

impl Lifecycle {
    pub fn new(options: &Options) -> (Self, ExitWait) {
        let (ended, receiver) = mpsc::unbounded_channel();
        let inner = Inner {
            stage: Cell::new(ServerState::PreInitializing),
            draining: Cell::new(false),
            closing: Arc::default(),
            drain_gradually: options.drain_strategy == DrainStrategy::Gradual,
            workers: RefCell::default(),
            ended,
            quit: Notify::new(),
            drain_time: options.drain_time(),
        };
        (Self(Rc::new(inner)), ExitWait { ended: receiver })
    }

    pub fn worker_ended(&self) -> mpsc::UnboundedSender<usize> {
        self.0.ended.clone()
    }

    /// What answers of all workers ask.
    pub fn closing(&self) -> Arc<Closing> {
        self.0.closing.clone()
    }

    pub fn add_worker(&self, worker: WorkerHandle) {
        self.0.workers.borrow_mut().push(worker);
    }

    /// How far the start has come: `PreInitializing`, `Initializing`, `Live`.
    pub fn set_stage(&self, stage: ServerState) {
        self.0.stage.set(stage);
    }

    pub fn state(&self) -> ServerState {
        if self.0.closing.is_unhealthy() || self.0.draining.get() {
            ServerState::Draining
        } else {
            self.0.stage.get()
        }
    }

    /// The operator's word: answers tell clients to go while it holds.
    pub fn fail_health_checks(&self, fail: bool) {
        self.0.closing.fail_health(fail);
    }

    /// `/quitquitquit`, and the end of `--mode init_only`.
    pub fn quit(&self) {
        self.0.quit.notify_one();
    }

    /// Says the same to every worker that has started, in order.
    pub fn tell(&self, command: impl Fn() -> Command) {
        for worker in self.0.workers.borrow().iter() {
            // A worker that has ended needs no command.
            let _ = worker.commands.send(command());
        }
    }

    /// Says something to every worker by its number.
    pub fn tell_each(&self, mut command: impl FnMut(usize) -> Command) {
        for (index, worker) in self.0.workers.borrow().iter().enumerate() {
            let _ = worker.commands.send(command(index));
        }
    }

    /// `--drain-time-s`
    pub fn drain_time(&self) -> Duration {
        self.0.drain_time
    }

    /// `/drain_listeners` for the listeners of these numbers: connections are told to end. `stop` is for now;
    /// gracefully for the end of the drain time, until which new ones are served; with `skip_exit` never. `/ready` does
    /// not change, as in Envoy.
    pub fn drain_listeners(
        &self,
        numbers: Vec<usize>,
        how: DrainListeners,
        stop: impl FnOnce() + 'static,
    ) {
        let drain = ListenerDrain {
            numbers: numbers.into(),
            began: Instant::now(),
            within: self.0.drain_time,
            gradually: self.0.drain_gradually,
        };
        let begins = self.0.closing.start(drain.clone(), how.inbound_only);
        if begins {
            self.tell(|| Command::Drain(drain.clone()));
        }
        if how.skip_exit {
            return;
        }
        if !how.graceful {
            stop();
        } else if begins {
            let within = self.0.drain_time;
            tokio::task::spawn_local(async move {
                tokio::time::sleep(within).await;
                stop();
            });
        }
    }
}

impl ExitWait {
    /// Serves until a signal, `/quitquitquit` or a worker's death ends it; workers have ended afterwards.
    pub async fn wait(mut self, lifecycle: &Lifecycle) -> Exit {
        let (Ok(mut term), Ok(mut int)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return Exit::WorkerDied;
        };
        let exit = tokio::select! {
            _ = term.recv() => Exit::Clean,
            _ = int.recv() => Exit::Clean,
            () = lifecycle.0.quit.notified() => Exit::Clean,
            _ = self.ended.recv() => Exit::WorkerDied,
        };
        tracing::info!("draining");
        lifecycle.0.draining.set(true);
        lifecycle.tell(|| Command::Exit);
        let all = lifecycle.0.workers.borrow().len();
        let mut left = all - usize::from(exit == Exit::WorkerDied);
        let deadline = tokio::time::sleep(lifecycle.0.drain_time.min(LONGEST_DRAIN));
        tokio::pin!(deadline);
        while left > 0 {
            tokio::select! {
                _ = self.ended.recv() => left -= 1,
                _ = term.recv() => break,
                _ = int.recv() => break,
                () = lifecycle.0.quit.notified() => break,
                () = &mut deadline => break,
            }
        }
        lifecycle.tell(|| Command::Abort);
        for worker in lifecycle.0.workers.borrow_mut().iter_mut() {
            worker.join();
        }
        exit
    }
}
