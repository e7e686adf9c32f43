//! Child processes that never outlive the comparison.
//!
//! Each child leads a process group which is killed when its handle is dropped, when `compare`
//! ends or is interrupted, and by the kernel (`PR_SET_PDEATHSIG`) should `compare` be killed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A running child, killed with all its descendants on drop.
#[derive(Debug)]
pub struct Child {
    process: process::Child,
}

impl Child {
    /// Starts `program` on the given cores (as `taskset -c` takes them), output to `log`.
    pub fn start<S: AsRef<OsStr>>(
        cores: &str,
        program: &Path,
        args: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let process = pinned(cores, program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        lock(&GROUPS).push(group(&process));
        Ok(Self { process })
    }

    /// Process id of the child; a script's descendant may do the work.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether the child has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let group = group(&self.process);
        // ESRCH when all of the group have ended already.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.process.wait();
        lock(&GROUPS).retain(|known| *known != group);
    }
}

/// A command that runs on the given cores and dies with its parent.
pub fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", cores]).arg(program);
    command
}

/// Removes this directory when the comparison ends.
pub fn remove_at_end(directory: &Path) {
    lock(&DIRECTORIES).push(directory.to_path_buf());
}

/// Kills every child that still runs and removes the working directories.
pub fn kill_all() {
    for group in lock(&GROUPS).drain(..) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    for directory in lock(&DIRECTORIES).drain(..) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// On SIGINT and SIGTERM: cleans up and exits with 130.
pub fn kill_all_on_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            kill_all();
            process::exit(130);
        });
    })?;
    Ok(())
}

fn group(process: &process::Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).unwrap_or(i32::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
