//! The process's own log: `tracing` events in, Envoy's lines out (`--log-format`, `--log-path`), levels by Envoy's
//! logger names (`--component-log-level`, `/logging`).
//!
//! One subscriber for the process, without spans: an event becomes one line, written at once. What workers say per
//! request is access log, not this.

mod loggers;
mod pattern;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span, subscriber};

pub use crate::server::args::LogLevel;
pub use loggers::{LOGGERS, UnknownLogger, level_of, set_all_levels, set_level};
pub use pattern::{InvalidPattern, Line, Pattern};

/// How the process logs.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// `--log-level`.
    pub level: LogLevel,
    /// `--component-log-level`; names that are no logger are left out, as the command line accepts any.
    pub components: Vec<(String, LogLevel)>,
    /// `--log-format`.
    pub format: String,
    /// `--log-format-escaped`.
    pub escaped: bool,
    /// `--log-path`; stderr without one.
    pub path: Option<PathBuf>,
}

/// The installed log.
#[derive(Clone, Debug)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pattern: ArcSwap<Pattern>,
    escaped: bool,
    /// The file behind `--log-path`.
    file: Option<(PathBuf, Mutex<File>)>,
}

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot open log file {path}: {source}", path = path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("the log was set up twice")]
    Installed,
}

fn open(path: &Path) -> Result<File, LogError> {
    let opened = File::options().append(true).create(true).open(path);
    opened.map_err(|source| LogError::Open { path: path.to_owned(), source })
}

impl Log {
    /// Installs the process's log; once.
    ///
    /// # Errors
    /// The log file cannot be opened, or a log is installed already.
    pub fn install(options: &LogOptions) -> Result<Self, LogError> {
        let file = match &options.path {
            Some(path) => Some((path.clone(), Mutex::new(open(path)?))),
            None => None,
        };
        set_all_levels(options.level);
        for (name, level) in &options.components {
            // Envoy accepts any name on its command line.
            let _ = set_level(name, *level);
        }
        let log = Self(Arc::new(Inner {
            pattern: ArcSwap::from_pointee(Pattern::new(&options.format)),
            escaped: options.escaped,
            file,
        }));
        subscriber::set_global_default(Bridge(log.clone())).map_err(|_| LogError::Installed)?;
        Ok(log)
    }

    /// Takes another format: `application_log_config` of the bootstrap, read after the first lines were written.
    pub fn set_pattern(&self, pattern: Pattern) {
        self.0.pattern.store(Arc::new(pattern));
    }

    /// Opens the log file anew (`/reopen_logs`, SIGUSR1); nothing to do on stderr.
    ///
    /// # Errors
    /// The file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> Result<(), LogError> {
        if let Some((path, file)) = &self.0.file {
            let fresh = open(path)?;
            *file.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Ok(())
    }

    fn write(&self, line: &Line<'_>) {
        let mut text = String::with_capacity(160);
        self.0.pattern.load().render(line, self.0.escaped, &mut text);
        text.push('\n');
        // A log that cannot be written has nobody to tell.
        let _ = match &self.0.file {
            Some((_, file)) => {
                file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes())
            }
            None => std::io::stderr().lock().write_all(text.as_bytes()),
        };
    }
}

struct Bridge(Log);

fn level(level: &Level) -> LogLevel {
    match *level {
        Level::TRACE => LogLevel::Trace,
        Level::DEBUG => LogLevel::Debug,
        Level::INFO => LogLevel::Info,
        Level::WARN => LogLevel::Warning,
        Level::ERROR => LogLevel::Error,
    }
}

impl Subscriber for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && level(metadata.level()) >= loggers::level_of_target(metadata.target())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        self.0.write(&Line {
            level: level(metadata.level()),
            logger: loggers::name_of_target(metadata.target()),
            message: &message.text,
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
            function: metadata.module_path().unwrap_or_default(),
        });
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The sentence first, then ` key=value` for each field.
#[derive(Default)]
struct Message {
    text: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let fields = std::mem::take(&mut self.text);
            let _ = write!(self.text, "{value:?}");
            self.text.push_str(&fields);
        } else {
            let _ = write!(self.text, " {}={value:?}", field.name());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            let _ = write!(self.text, " {}={value}", field.name());
        }
    }
}
