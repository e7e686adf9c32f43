//! Access logs of a worker: filter, format into the worker's buffer, hand over to the one writer
//! thread. Nothing here blocks or locks; what the writer cannot take is dropped and counted.

pub mod filter;
mod writer;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::access_log::{AccessLogConfig, AccessLogConfigs, Target};
use crate::format::Ctx;
use crate::stats::Block;
use crate::stats::names::FilesystemStat;
use writer::{Batch, LogFile};

pub use writer::{AccessLogWriter, FlushOptions};

/// A worker's side: one buffer per file, shared by the logs that name the same file.
pub struct WorkerAccessLogs {
    writer: Arc<AccessLogWriter>,
    buffers: RefCell<Vec<Rc<Buffer>>>,
    stats: Block<FilesystemStat>,
    /// A flush is due: a timer runs only while there is something to flush.
    timer: Cell<bool>,
    this: std::rc::Weak<Self>,
}

impl fmt::Debug for WorkerAccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerAccessLogs").finish_non_exhaustive()
    }
}

/// Lines of one file that are not handed over yet.
struct Buffer {
    target: Target,
    file: Arc<LogFile>,
    bytes: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    /// What the last batch took, so that the next one grows without copying.
    last_size: Cell<usize>,
}

impl WorkerAccessLogs {
    /// `worker` is its number, for statistics.
    pub fn new(writer: Arc<AccessLogWriter>, worker: usize) -> Rc<Self> {
        let stats = writer.scope().block(worker);
        Rc::new_cyclic(|this| Self {
            writer,
            buffers: RefCell::default(),
            stats,
            timer: Cell::new(false),
            this: this.clone(),
        })
    }

    /// The live form of compiled access logs on this worker.
    pub fn bind(self: &Rc<Self>, configs: &AccessLogConfigs) -> AccessLogs {
        AccessLogs {
            configs: configs.0.clone(),
            buffers: configs.0.iter().map(|config| self.buffer(&config.target)).collect(),
            worker: self.clone(),
        }
    }

    /// Hands every buffer over: when the worker ends.
    pub fn flush(&self) {
        let mut buffers = self.buffers.borrow_mut();
        for buffer in &*buffers {
            self.hand_over(buffer);
        }
        // Files that no log of this worker names any more.
        buffers.retain(|buffer| Rc::strong_count(buffer) > 1);
    }

    fn buffer(&self, target: &Target) -> Rc<Buffer> {
        let mut buffers = self.buffers.borrow_mut();
        if let Some(buffer) = buffers.iter().find(|buffer| buffer.target == *target) {
            return buffer.clone();
        }
        let buffer = Rc::new(Buffer {
            target: target.clone(),
            file: self.writer.file(target),
            bytes: RefCell::default(),
            lines: Cell::new(0),
            last_size: Cell::new(0),
        });
        buffers.push(buffer.clone());
        buffer
    }

    fn hand_over(&self, buffer: &Buffer) {
        let bytes = buffer.bytes.take();
        if bytes.is_empty() {
            return;
        }
        buffer.last_size.set(bytes.len());
        self.stats.gauge_add(FilesystemStat::WriteTotalBuffered, -(bytes.len() as i64));
        let lines = buffer.lines.take();
        self.writer.hand_over(Batch { file: buffer.file.clone(), bytes, lines });
    }

    /// Starts the timer where none runs.
    fn arm(&self) {
        if self.timer.replace(true) {
            return;
        }
        let (this, interval) = (self.this.clone(), self.writer.options().interval);
        // Cancel-safe: lines stay in their buffers, and `flush` is called when the worker ends.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(interval).await;
            if let Some(this) = this.upgrade() {
                this.timer.set(false);
                let waiting = this.buffers.borrow().iter().filter(|b| b.lines.get() > 0).count();
                this.stats.add(FilesystemStat::FlushedByTimer, waiting as u64);
                this.flush();
            }
        });
    }
}

impl Drop for WorkerAccessLogs {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The access logs of one listener, connection manager or TCP proxy on one worker.
#[derive(Clone)]
pub struct AccessLogs {
    configs: Arc<[AccessLogConfig]>,
    /// In the order of `configs`.
    buffers: Rc<[Rc<Buffer>]>,
    worker: Rc<WorkerAccessLogs>,
}

impl fmt::Debug for AccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AccessLogs").field(&self.configs.len()).finish()
    }
}

impl AccessLogs {
    pub fn is_empty(&self) -> bool {
        self.configs.is_empty()
    }

    /// Writes a line to each log whose filter lets it through. Must run on a worker (in its `LocalSet`).
    pub fn log(&self, ctx: &Ctx<'_>) {
        for (config, buffer) in self.configs.iter().zip(&*self.buffers) {
            if config.filter.as_ref().is_none_or(|f| filter::matches(f, ctx)) {
                self.write(config, buffer, ctx);
            }
        }
    }

    fn write(&self, config: &AccessLogConfig, buffer: &Buffer, ctx: &Ctx<'_>) {
        let stats = &self.worker.stats;
        let (before, after) = {
            let mut bytes = buffer.bytes.borrow_mut();
            let before = bytes.len();
            if before == 0 {
                bytes.reserve(buffer.last_size.get().max(512));
            }
            config.format.write_line(ctx, &mut bytes);
            (before, bytes.len())
        };
        buffer.lines.set(buffer.lines.get() + 1);
        stats.inc(FilesystemStat::WriteBuffered);
        stats.gauge_add(FilesystemStat::WriteTotalBuffered, (after - before) as i64);
        if after >= self.worker.writer.options().min_size {
            self.worker.hand_over(buffer);
        } else if before == 0 {
            self.worker.arm();
        }
    }
}

#[cfg(test)]
mod tests;
