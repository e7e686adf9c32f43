//! `outrigger-init`: the command line's job, done once, and the exit code that says how it went.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use iptables_init::args::Arguments;
use iptables_init::backend::{BackendError, Installer};
use iptables_init::host::{self, Host};
use iptables_init::plan::Plan;
use iptables_init::settings::{Action, Job, SettingsError, parse_switch};
use iptables_init::validate::{ValidationError, validate};
use iptables_init::{lock, print};
use nix::sched::{CloneFlags, setns};

/// Why the job is not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("validation failed: {0}")]
    Validation(#[from] ValidationError),
    #[error("--network-namespace {path:?}: {source}")]
    Namespace {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{what}: {source}")]
    Host {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(arguments) => arguments,
        Err(exit) => {
            let _ = match exit.code {
                0 => io::stdout().write_all(exit.message.as_bytes()),
                _ => io::stderr().write_all(exit.message.as_bytes()),
            };
            return exit.code.into();
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("error: {failure}"));
            ExitCode::from(if matches!(failure, Failure::Validation(_)) { 126 } else { 1 })
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let on_node = parse_switch(arguments.flag("cni-mode")) == Some(true);
    if on_node && let Err(error) = host::hide_name_services() {
        say(&format!("warning: names may be looked up over the network: {error}"));
    }
    // The variable alone says where a node's agent is to work, and a pod may have it by chance.
    if on_node || arguments.is_given("network-namespace") {
        enter(arguments.flag("network-namespace"))?;
    }
    let host = Host::read().map_err(|source| Failure::Host {
        what: "cannot read the addresses of this host",
        source,
    })?;
    let job = Job::new(arguments, &host)?;
    for notice in &job.notices {
        say(&format!("warning: {notice}"));
    }
    if job.dry_run {
        io::stdout()
            .write_all(print::text(&job).as_bytes())
            .map_err(|source| Failure::Host { what: "cannot print", source })?;
    } else if job.action != Action::Nothing {
        let lock = lock::take().map_err(|source| Failure::Host {
            what: "cannot lock the network namespace",
            source,
        })?;
        let plan = Plan::new(&job.settings);
        let installer = Installer::new(lock, job.own_lock, &plan)?;
        match job.action {
            Action::Cleanup => installer.clean()?,
            _ => {
                if let Some(left) = installer.apply(&plan, job.backend)? {
                    say(&format!("warning: left of an earlier run: {left}"));
                }
            }
        }
    }
    if let Some(validation) = job.validation {
        validate(&job.settings, validation)?;
    }
    Ok(())
}

/// Goes to the namespace of a path, if there is one.
fn enter(path: &str) -> Result<(), Failure> {
    if path.is_empty() {
        return Ok(());
    }
    let entered = File::open(path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
    entered.map_err(|source| Failure::Namespace { path: path.to_owned(), source })
}

fn say(text: &str) {
    // Without a stderr there is nobody to tell.
    let _ = writeln!(io::stderr(), "outrigger-init: {text}");
}
