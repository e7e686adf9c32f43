//! The one thread that writes access logs, and its files.
//!
//! Workers hand it whole lines through a bounded channel and never wait for it: a full pipe or disk
//! stops this thread only, and what does not fit is dropped and counted.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::access_log::Target;
use crate::stats::names::FilesystemStat;
use crate::stats::{Registry, Scope, SharedBlock, SharedCounter};

/// Batches under way at most; with the default flush size that is 8 MB when a disk stalls.
const QUEUED_BATCHES: usize = 128;
/// How long the end of the process waits for a pipe that nobody reads.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// `--file-flush-interval-msec` and `--file-flush-min-size-kb`.
#[derive(Debug, Clone, Copy)]
pub struct FlushOptions {
    /// How long a line may stay in a worker's buffer. Default 10 s.
    pub interval: Duration,
    /// A buffer of at least so many bytes is handed over at once. Default 64 KiB.
    pub min_size: usize,
}

impl Default for FlushOptions {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), min_size: 64 * 1024 }
    }
}

/// The process's log files and the thread that writes them. Shared by all workers.
pub struct AccessLogWriter {
    options: FlushOptions,
    queue: SyncSender<Message>,
    reopen: Arc<AtomicBool>,
    next_file: AtomicU32,
    /// Files by target, so that logs of the same path share one. Changed when a worker binds logs.
    files: ArcSwap<HashMap<Target, Weak<LogFile>>>,
    scope: Scope,
    stats: SharedBlock<FilesystemStat>,
    dropped: SharedCounter,
}

impl std::fmt::Debug for AccessLogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLogWriter").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A file as workers name it.
#[derive(Debug)]
pub(super) struct LogFile {
    id: u32,
    target: Target,
}

/// Whole lines for one file.
pub(super) struct Batch {
    pub(super) file: Arc<LogFile>,
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

enum Message {
    Batch(Batch),
    /// Look at the reopen flag.
    Wake,
    /// Everything before this is written when the sender hears back.
    Drain(SyncSender<()>),
}

impl AccessLogWriter {
    /// Starts the writer thread. Its statistics are `filesystem.*` and `access_logs.dropped`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(options: FlushOptions, registry: &Registry) -> io::Result<Arc<Self>> {
        let (queue, messages) = sync_channel(QUEUED_BATCHES);
        let scope = registry.scope("filesystem");
        let stats = scope.shared::<FilesystemStat>();
        let reopen = Arc::new(AtomicBool::new(false));
        let writer = Arc::new(Self {
            options,
            queue,
            reopen: reopen.clone(),
            next_file: AtomicU32::new(0),
            files: ArcSwap::default(),
            dropped: registry.scope("access_logs").shared_counter("dropped"),
            scope,
            stats: stats.clone(),
        });
        let thread = Thread { messages, reopen, files: HashMap::new(), stats };
        std::thread::Builder::new().name("access-log".into()).spawn(move || thread.run())?;
        Ok(writer)
    }

    /// SIGUSR1: closes and opens every file again, so that a rotated one is let go.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.queue.try_send(Message::Wake);
    }

    /// Waits until everything handed over before is written, or for two seconds. Called after the
    /// workers have ended, or by tests. The thread ends when the last owner of the writer is gone.
    pub fn drain(&self) {
        let (done, wait) = sync_channel(1);
        let mut message = Message::Drain(done);
        let give_up = std::time::Instant::now() + SHUTDOWN_WAIT;
        while let Err(error) = self.queue.try_send(message) {
            if std::time::Instant::now() > give_up {
                return;
            }
            message = match error {
                TrySendError::Full(message) => message,
                TrySendError::Disconnected(_) => return,
            };
            std::thread::yield_now();
        }
        let _ = wait.recv_timeout(SHUTDOWN_WAIT);
    }

    pub fn options(&self) -> FlushOptions {
        self.options
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The file of a target, the same for all that name it.
    pub(super) fn file(&self, target: &Target) -> Arc<LogFile> {
        let fresh = Arc::new(LogFile {
            id: self.next_file.fetch_add(1, Ordering::Relaxed),
            target: target.clone(),
        });
        let mut found = fresh.clone();
        self.files.rcu(|files| {
            if let Some(file) = files.get(target).and_then(Weak::upgrade) {
                found = file;
                return files.clone();
            }
            found = fresh.clone();
            let mut files = HashMap::clone(files);
            files.retain(|_, file| file.strong_count() > 0);
            files.insert(target.clone(), Arc::downgrade(&fresh));
            Arc::new(files)
        });
        found
    }

    /// Takes lines, or drops and counts them: never waits.
    pub(super) fn hand_over(&self, batch: Batch) {
        let size = batch.bytes.len() as i64;
        match self.queue.try_send(Message::Batch(batch)) {
            Ok(()) => self.stats.gauge_add(FilesystemStat::WriteTotalBuffered, size),
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                if let Message::Batch(batch) = message {
                    self.dropped.add(batch.lines);
                }
            }
        }
    }
}

/// The state of the writer thread.
struct Thread {
    messages: Receiver<Message>,
    reopen: Arc<AtomicBool>,
    files: HashMap<u32, OpenFile>,
    stats: SharedBlock<FilesystemStat>,
}

struct OpenFile {
    /// Gone when no configuration names the file any more: then it is closed.
    owner: Weak<LogFile>,
    file: Option<File>,
}

impl Thread {
    fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            if self.reopen.swap(false, Ordering::AcqRel) {
                self.files.retain(|_, open| open.owner.strong_count() > 0);
                for open in self.files.values_mut() {
                    open.file = None;
                }
            }
            match message {
                Message::Batch(batch) => self.write(&batch),
                Message::Wake => {}
                Message::Drain(done) => {
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn write(&mut self, batch: &Batch) {
        let size = batch.bytes.len() as i64;
        self.stats.gauge_add(FilesystemStat::WriteTotalBuffered, -size);
        let stats = &self.stats;
        if !self.files.contains_key(&batch.file.id) {
            self.files.retain(|_, open| open.owner.strong_count() > 0);
        }
        let open = self
            .files
            .entry(batch.file.id)
            .or_insert_with(|| OpenFile { owner: Arc::downgrade(&batch.file), file: None });
        if open.file.is_none() {
            match open_target(&batch.file.target) {
                Ok(file) => open.file = Some(file),
                Err(error) => {
                    stats.inc(FilesystemStat::ReopenFailed);
                    tracing::warn!(target = ?batch.file.target, %error, "cannot open access log");
                }
            }
        }
        let Some(file) = &mut open.file else {
            stats.inc(FilesystemStat::WriteFailed);
            return;
        };
        match write_lines(file, &batch.bytes) {
            Ok(()) => stats.inc(FilesystemStat::WriteCompleted),
            Err(error) => {
                stats.inc(FilesystemStat::WriteFailed);
                tracing::debug!(target = ?batch.file.target, %error, "cannot write access log");
            }
        }
    }
}

fn open_target(target: &Target) -> io::Result<File> {
    match target {
        Target::File(path) => OpenOptions::new().append(true).create(true).open(&**path),
        Target::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        Target::Stderr => io::stderr().as_fd().try_clone_to_owned().map(File::from),
    }
}

/// Writes all of it. When a disk is full in the middle, the file is cut back to whole lines.
fn write_lines(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    let whole = bytes;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let written = &whole[..whole.len() - bytes.len()];
                let torn = written.iter().rev().take_while(|b| **b != b'\n').count() as u64;
                if torn > 0
                    && let Ok(meta) = file.metadata()
                    && meta.is_file()
                {
                    let _ = file.set_len(meta.len().saturating_sub(torn));
                }
                return Err(error);
            }
        }
    }
    Ok(())
}
