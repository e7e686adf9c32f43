//! Network namespaces: one for each thread, so that a test has its own addresses, ports and redirect rules. They go
//! with the threads and processes in them. Needs root.

use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A thread in a namespace of its own; what it is given to run has its sockets there.
#[derive(Debug)]
pub struct Namespace {
    jobs: mpsc::UnboundedSender<Job>,
    /// Its number, as `ip link … netns` takes it.
    pub thread: i32,
}

impl Namespace {
    /// Makes a namespace whose loopback is up, and starts its thread.
    ///
    /// # Errors
    /// Without the right to make namespaces.
    pub fn new() -> Result<Self> {
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("namespace".into()).spawn(move || {
            let entered = enter();
            let ok = entered.is_ok();
            let _ = tell.send(entered);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let (true, Ok(runtime)) = (ok, runtime) else { return };
            LocalSet::new().block_on(&runtime, async move {
                while let Some(job) = inbox.recv().await {
                    tokio::task::spawn_local(job());
                }
            });
        })?;
        let thread = told.recv().context("the namespace's thread is gone")??;
        Ok(Self { jobs, thread })
    }

    /// Runs a future there and waits for what it gives.
    ///
    /// # Errors
    /// When its thread has ended.
    pub async fn run<F, T>(&self, job: impl FnOnce() -> F + Send + 'static) -> Result<T>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let _ = tell.send(job().await);
            })
        });
        self.jobs.send(job).ok().context("the namespace's thread is gone")?;
        told.await.context("the job was dropped")
    }
}

/// Puts the calling thread into a new namespace and brings its loopback up; gives the thread's number.
///
/// # Errors
/// Without the right to make namespaces.
pub fn enter() -> Result<i32> {
    unshare(CloneFlags::CLONE_NEWNET).context("network namespaces need root")?;
    // Paths of /proc/sys/net lead to the namespace of the thread that opens them.
    File::open("/proc/thread-self/ns/net").context("no /proc")?;
    shell("ip link set lo up")?;
    Ok(nix::unistd::gettid().as_raw())
}

/// Runs a script in the namespace of the calling thread; fails with what it says.
///
/// # Errors
/// When a command of it fails.
pub fn shell(script: &str) -> Result<()> {
    let done = Command::new("sh").arg("-euc").arg(script).output()?;
    if !done.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
