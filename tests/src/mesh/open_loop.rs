//! An open loop of GETs from inside of a pod: requests begin by the clock, whatever became of those before, over kept
//! connections and new ones in turns. All that is not a 200 is told by its kind.
//!
//! No more than [`IN_FLIGHT`] are under way at a time: a machine that cannot keep up gets a lower rate, not a heap.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Mesh, netns};
use crate::load::peek;
use crate::wire::{End, Framing, Wire};

/// Longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// At most, at a time.
const IN_FLIGHT: usize = 64;
/// One request in so many has a connection of its own.
const NEW_CONNECTION: u64 = 4;

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Target {
    pub to: SocketAddr,
    pub host: String,
    pub path: String,
}

/// What came of all requests.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub sent: u64,
    /// 200s by the application that gave them.
    pub answered: BTreeMap<String, u64>,
    /// All others, by what was there in place of a 200.
    pub failures: BTreeMap<String, u64>,
    /// Kept connections that had ended, between two requests, when they were to be used again.
    pub ended: u64,
    pub elapsed: Duration,
}

impl Report {
    /// How many requests failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// One line of figures.
    #[must_use]
    pub fn text(&self) -> String {
        let rate = f64::from(u32::try_from(self.sent).unwrap_or(u32::MAX))
            / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        format!(
            "{} requests in {:.1} s, {rate:.0} a second, {} failed {:?}; {} kept connections ended",
            self.sent,
            self.elapsed.as_secs_f64(),
            self.failed(),
            self.failures,
            self.ended
        )
    }
}

/// A load at work.
#[derive(Debug)]
pub struct OpenLoop {
    report: Arc<Mutex<Report>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl OpenLoop {
    /// Lets a pod send `rate` requests a second, to its targets in turns.
    #[must_use]
    pub fn start(mesh: &Mesh, pod: &str, rate: u32, targets: Vec<Target>) -> Self {
        let (report, stop) = (Arc::<Mutex<Report>>::default(), Arc::<AtomicBool>::default());
        let (tally, until) = (report.clone(), stop.clone());
        let (mesh, pod) = (mesh.name.clone(), pod.to_owned());
        let thread = std::thread::spawn(move || {
            netns::within(&mesh, &pod, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let began = Instant::now();
                LocalSet::new().block_on(&runtime, send_all(rate, targets, &tally, &until))?;
                locked(&tally).elapsed = began.elapsed();
                Ok(())
            })?
        });
        Self { report, stop, thread }
    }

    /// What has come of it by now; without the time that it has taken.
    #[must_use]
    pub fn so_far(&self) -> Report {
        locked(&self.report).clone()
    }

    /// Ends it, once all requests have an answer.
    ///
    /// # Errors
    /// It could not enter its pod.
    pub fn stop(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load panicked"))??;
        Ok(locked(&self.report).clone())
    }
}

fn locked(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Connections of one target that wait for a request.
type Idle = Rc<RefCell<Vec<TcpStream>>>;

async fn send_all(
    rate: u32,
    targets: Vec<Target>,
    report: &Arc<Mutex<Report>>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut tick = interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let targets: Vec<(Target, Idle)> = targets.into_iter().map(|t| (t, Idle::default())).collect();
    // New connections and kept ones, to each target.
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tick.tick().await;
        let place = places.clone().acquire_owned().await?;
        let turn = usize::try_from(number)? % targets.len();
        let (target, idle) = targets[turn].clone();
        let fresh = (number / targets.len() as u64).is_multiple_of(NEW_CONNECTION);
        let report = report.clone();
        locked(&report).sent += 1;
        spawn_local(async move {
            let answered = exchange(&target, &idle, fresh, &report).await;
            let mut report = locked(&report);
            match answered {
                Ok(by) => *report.answered.entry(by).or_default() += 1,
                Err(kind) => {
                    let kind = format!("{} {kind:#}", target.host);
                    *report.failures.entry(kind).or_default() += 1;
                }
            }
            drop(place);
        });
    }
    // Those that are under way.
    let all = u32::try_from(IN_FLIGHT)?;
    let _ = places.acquire_many(all).await?;
    Ok(())
}

/// One request; gives the name of the application that answered.
async fn exchange(
    target: &Target,
    idle: &Idle,
    fresh: bool,
    report: &Mutex<Report>,
) -> Result<String> {
    let mut kept = None;
    while let (false, None, Some(io)) = (fresh, &kept, idle.borrow_mut().pop()) {
        match peek(&io) {
            Err(Errno::EAGAIN) => kept = Some(io),
            Ok(1..) => bail!("an answer that nobody asked for"),
            _ => locked(report).ended += 1,
        }
    }
    let how = if kept.is_some() { "kept connection" } else { "new connection" };
    let io = match kept {
        Some(io) => io,
        None => match timeout(PATIENCE, TcpStream::connect(target.to)).await {
            Ok(io) => io?,
            Err(_) => bail!("nobody answers a connection"),
        },
    };
    io.set_nodelay(true)?;
    let mut wire = Wire::new(io, PATIENCE);
    let Target { host, path, .. } = target;
    let connection = if fresh { "close" } else { "keep-alive" };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: {connection}\r\n\r\n");
    let ended = |end: End, when| anyhow!("{how}: {} {when}", end.text());
    wire.send(head.as_bytes()).await.map_err(|end| ended(end, "while sending"))?;
    let head = wire.head().await.map_err(|end| ended(end, "before the answer"))?;
    let body = wire.body(head.framing(Framing::None)).await;
    let text = String::from_utf8_lossy(&body.data);
    if head.status() != 200 || body.end != End::Complete {
        bail!("{how}: {}, body {} {text:?}", head.first, body.end.text());
    }
    if !fresh && head.get("connection").is_none_or(|v| !v.eq_ignore_ascii_case("close")) {
        idle.borrow_mut().push(wire.into_inner());
    }
    let by = text.split_once(r#""pod": ""#).and_then(|(_, rest)| rest.split_once('"'));
    by.map(|(name, _)| name.to_owned()).ok_or_else(|| anyhow!("no application's answer: {text:?}"))
}
