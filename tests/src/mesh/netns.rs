//! Work inside a pod's network namespace.

use std::fs::File;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread of its own inside the namespace of `mesh`'s pod.
///
/// # Errors
/// There is no such namespace, or we are not root.
pub fn within<T: Send + 'static>(
    mesh: &str,
    pod: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let path = format!("/run/netns/{mesh}-{pod}");
    let namespace = File::open(&path).with_context(|| path.clone())?;
    let thread = std::thread::spawn(move || -> Result<T> {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")?;
        Ok(work())
    });
    thread.join().map_err(|_| anyhow!("{path}: the work panicked"))?
}
