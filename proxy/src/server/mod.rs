//! The process: flags and bootstrap here, workers, control thread and life cycle in `serve` and `lifecycle`.
//!
//! `run` reads and compiles everything before it starts anything: a wrong configuration leaves nothing half
//! started. The calling thread becomes the control thread: DNS, admin, signals.

pub mod admin_state;
pub mod args;
pub mod control;
pub mod cpu;
pub mod lifecycle;
pub mod quickstart;
mod serve;
mod signals;
pub mod version;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Instant;

use tokio::task::LocalSet;

use crate::config::compile::CompileContext;
use crate::config::compile::configuration::load_configuration;
use crate::config::compile::slots::Slots;
use crate::config::runtime;
use crate::http_filters::ExtraFilters;
use crate::stats::Registry;
use crate::telemetry::{Log, LogOptions};
use crate::tls::Secrets;
use admin_state::ServerAdmin;
use args::{Command, Mode, Options};
use serve::{Prepared, serve};

/// Runs a command line to its end. `extra_filters` are HTTP filters beside the built-in ones.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    extra_filters: &ExtraFilters,
) -> ExitCode {
    let command = match Command::parse(arguments) {
        Ok(command) => command,
        Err(exit) => {
            let write = |out: &mut dyn io::Write| out.write_all(exit.message.as_bytes());
            // Nobody is left to hear of a closed terminal.
            let _ =
                if exit.code == 0 { write(&mut io::stdout()) } else { write(&mut io::stderr()) };
            return ExitCode::from(exit.code);
        }
    };
    let outcome = match command {
        Command::Run(options) => run(&options, extra_filters, |_| Ok(())),
        Command::Quickstart(quickstart) => run_quickstart(&quickstart, extra_filters),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("{error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run_quickstart(
    quickstart: &args::QuickstartOptions,
    extra_filters: &ExtraFilters,
) -> anyhow::Result<()> {
    let mut line: Vec<OsString> = vec!["outrigger".into(), "-l".into(), "warn".into()];
    line.extend(["--file-flush-interval-msec".into(), "100".into()]);
    match &quickstart.config_path {
        Some(path) => line.extend(["-c".into(), path.into()]),
        None => line.extend(["--config-yaml".into(), quickstart::BOOTSTRAP.into()]),
    }
    let Ok(Command::Run(options)) = Command::parse(line) else {
        anyhow::bail!("the quickstart's own command line is wrong");
    };
    quickstart::start_services()?;
    run(&options, extra_filters, |_| {
        io::Write::write_all(&mut io::stdout(), quickstart::INTRODUCTION.as_bytes())?;
        quickstart::start_traffic()
    })
}

/// Starts the server and serves until it is told to end. `ready` is called once, when it serves.
///
/// # Errors
/// The configuration is wrong, or something it asks for cannot be had.
pub fn run(
    options: &Options,
    extra_filters: &ExtraFilters,
    ready: impl FnOnce(&ServerAdmin) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let log = Log::install(&LogOptions {
        level: options.log_level,
        components: options.component_log_level.0.clone(),
        format: options.log_format.clone().unwrap_or_else(|| args::DEFAULT_LOG_FORMAT.to_owned()),
        escaped: options.log_format_escaped,
        path: options.log_path.clone(),
    })?;
    let (slots, secrets) = (Slots::default(), Secrets::default());
    let cx = CompileContext { extra_filters, slots: &slots, secrets: &secrets };
    let mut configuration = load_configuration(options, &cx)?;
    for unknown in &configuration.unknown_fields {
        tracing::warn!("unknown field passed over: {unknown}");
    }
    for ignored in &configuration.ignored {
        tracing::warn!("applied without: {ignored}");
    }
    if options.mode == Mode::Validate {
        let source = options
            .config_path
            .as_ref()
            .map_or_else(|| "--config-yaml".to_owned(), |path| path.display().to_string());
        io::Write::write_all(
            &mut io::stdout(),
            format!("configuration '{source}' OK\n").as_bytes(),
        )?;
        return Ok(());
    }
    if options.log_format.is_none()
        && let Some(pattern) = configuration.bootstrap.log_pattern.take()
    {
        log.set_pattern(pattern);
    }
    let workers = match options.concurrency {
        Some(n) => n.max(1),
        None => cpu::default_concurrency(options.cpuset_threads),
    } as usize;
    let registry = Registry::new(std::mem::take(&mut configuration.bootstrap.stats));
    runtime::publish(std::mem::take(&mut configuration.bootstrap.runtime));
    let extra_filters = extra_filters.clone();
    let prepared =
        Prepared { configuration, extra_filters, slots, secrets, registry, workers, started };
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    control.block_on(local.run_until(serve(prepared, options, log, ready)))
}
