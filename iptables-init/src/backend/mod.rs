//! How a plan gets into the kernel: iptables-restore of either flavour, or nft. What an earlier run left goes with it,
//! whatever backend it had; when anything fails, what was there before is there again.

pub mod iptables;
pub mod nft;
mod program;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use self::iptables::Contents;
pub use self::program::ProgramError;
use crate::netlink::{self, NftTable};
use crate::plan::Plan;
use crate::routing;
use crate::rule::{Family, Table};
use crate::settings::{self, Backend};

/// Why nothing was installed, in one line.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(
        "not allowed to change this network namespace: the container needs the capabilities NET_ADMIN and NET_RAW \
         (or let Istio's CNI plugin install the rules)"
    )]
    Privilege,
    #[error("{program} is not installed: {advice}")]
    Missing { program: String, advice: &'static str },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("{command}: {source}{hint}")]
    Routing {
        command: String,
        #[source]
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot ask the kernel for its tables: {0}")]
    Tables(#[source] io::Error),
}

/// The two kinds of tables that iptables may write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Legacy,
    Nft,
    /// What the distribution calls iptables: one of the two.
    Plain,
}

/// Installs and removes, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Installer {
    /// Of nftables; None where the kernel has none.
    tables: Option<Vec<NftTable>>,
    /// Held by this process and every program that it runs.
    lock: File,
    /// In place of the node's lock of iptables.
    iptables_lock: Option<PathBuf>,
}

impl Installer {
    /// Looks at what there is, under the lock of [`crate::lock`].
    ///
    /// # Errors
    /// Without the right to change anything.
    pub fn new(lock: File, iptables_lock: Option<PathBuf>) -> Result<Self, BackendError> {
        let tables = netlink::nft_tables().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => BackendError::Privilege,
            _ => BackendError::Tables(error),
        })?;
        Ok(Self { tables, lock, iptables_lock })
    }

    /// Installs a plan in place of whatever an earlier run has installed.
    ///
    /// # Errors
    /// When it could not be installed; then nothing has changed.
    pub fn apply(&self, plan: &Plan, backend: Backend) -> Result<(), BackendError> {
        let added = routing::add(&plan.routing).map_err(|(command, source)| {
            let ipv6 = command.contains("-6");
            let hint =
                if ipv6 { "; is IPv6 disabled (net.ipv6.conf.lo.disable_ipv6)?" } else { "" };
            BackendError::Routing { command, source, hint }
        })?;
        let applied = match backend {
            Backend::Nftables => self.apply_nft(plan),
            _ => self.apply_iptables(plan, backend),
        };
        applied.inspect_err(|_| routing::remove(&added))
    }

    /// Removes everything that is ours, of every backend and both families.
    ///
    /// # Errors
    /// When something is left.
    pub fn clean(&self, settings: &settings::Settings) -> Result<(), BackendError> {
        for family in [Family::V4, Family::V6] {
            for flavour in [Flavour::Legacy, Flavour::Nft] {
                self.empty(family, flavour)?;
            }
        }
        self.clean_nft()?;
        routing::clean(settings.route);
        Ok(())
    }

    fn apply_nft(&self, plan: &Plan) -> Result<(), BackendError> {
        let there = self.tables.as_deref().unwrap_or_default();
        self.run_nft(&nft::script(there, Some(plan)))?;
        // Both sets of rules redirect the same until the other is gone.
        for family in [Family::V4, Family::V6] {
            for flavour in [Flavour::Legacy, Flavour::Nft] {
                self.empty(family, flavour)?;
            }
        }
        Ok(())
    }

    fn clean_nft(&self) -> Result<(), BackendError> {
        let script = nft::script(self.tables.as_deref().unwrap_or_default(), None);
        if script.is_empty() { Ok(()) } else { self.run_nft(&script) }
    }

    fn run_nft(&self, script: &str) -> Result<(), BackendError> {
        let program = find("nft", "install nftables, or leave out --native-nftables")?;
        Ok(program::run(&program, &["-f", "-"], &[], script, self.held()?)?)
    }

    fn apply_iptables(&self, plan: &Plan, backend: Backend) -> Result<(), BackendError> {
        let mut changed = Vec::new();
        let mut apply = || {
            for rules in &plan.families {
                let flavour = self.choose(rules.family, backend)?;
                let before = self.contents(rules.family, flavour)?;
                changed.push((rules.family, flavour, before.clone()));
                let script = before.script(&Contents::of_plan(rules));
                self.restore(rules.family, flavour, &script)?;
            }
            Ok(())
        };
        if let Err(error) = apply() {
            for (family, flavour, before) in changed.iter().rev() {
                // As far as it goes: the first error is the one to tell.
                let _ = self.go_back(*family, *flavour, before);
            }
            return Err(error);
        }
        for family in [Family::V4, Family::V6] {
            let used = changed.iter().find(|(f, ..)| *f == family).map(|(_, flavour, _)| *flavour);
            for flavour in [Flavour::Legacy, Flavour::Nft] {
                if used != Some(flavour) && used != Some(Flavour::Plain) {
                    self.empty(family, flavour)?;
                }
            }
        }
        self.clean_nft()
    }

    fn go_back(&self, family: Family, flavour: Flavour, to: &Contents) -> Result<(), BackendError> {
        let program = find_flavour(family, flavour, "save")?;
        let now = Contents::of_save(&program::ask(&program, &[])?);
        let script = now.script(to);
        if now == *to || script.is_empty() {
            return Ok(());
        }
        self.restore(family, flavour, &script)
    }

    /// Removes what is ours from one flavour, if there is anything. Without its programs, nobody has put it there.
    fn empty(&self, family: Family, flavour: Flavour) -> Result<(), BackendError> {
        if find_flavour(family, flavour, "save").is_err() {
            return Ok(());
        }
        let there = self.contents(family, flavour)?;
        if there.is_empty() {
            return Ok(());
        }
        self.restore(family, flavour, &there.script(&Contents::default()))
    }

    /// What is ours; no program is asked where the kernel has no table of this flavour.
    fn contents(&self, family: Family, flavour: Flavour) -> Result<Contents, BackendError> {
        let any = match flavour {
            Flavour::Legacy => has_legacy_tables(family),
            Flavour::Nft => self.has_nft_tables(family),
            Flavour::Plain => true,
        };
        if !any {
            return Ok(Contents::default());
        }
        let program = find_flavour(family, flavour, "save")?;
        Ok(Contents::of_save(&program::ask(&program, &[])?))
    }

    fn restore(&self, family: Family, flavour: Flavour, script: &str) -> Result<(), BackendError> {
        let program = find_flavour(family, flavour, "restore")?;
        let lock = self.iptables_lock.as_deref().map(|path| ("XTABLES_LOCKFILE", path));
        let environment: Vec<(&str, &Path)> = lock.into_iter().collect();
        // Seconds for whoever else holds the lock of iptables; there is none in nftables.
        let arguments: &[&str] =
            if flavour == Flavour::Nft { &["--noflush"] } else { &["--noflush", "--wait=30"] };
        Ok(program::run(&program, arguments, &environment, script, self.held()?)?)
    }

    fn held(&self) -> Result<OwnedFd, BackendError> {
        let lock = self.lock.try_clone().map_err(BackendError::Tables)?;
        Ok(lock.into())
    }

    /// The flavour that was asked for, or the one whose rules are in force: legacy where it has any.
    fn choose(&self, family: Family, backend: Backend) -> Result<Flavour, BackendError> {
        match backend {
            Backend::IptablesLegacy => return Ok(Flavour::Legacy),
            Backend::IptablesNft => return Ok(Flavour::Nft),
            Backend::Iptables | Backend::Nftables => {}
        }
        if has_legacy_tables(family)
            && let Ok(program) = find_flavour(family, Flavour::Legacy, "save")
            && program::ask(&program, &[])?.lines().any(|line| line.starts_with("-A"))
        {
            return Ok(Flavour::Legacy);
        }
        let flavours = match self.tables {
            Some(_) => [Flavour::Nft, Flavour::Plain, Flavour::Legacy],
            None => [Flavour::Legacy, Flavour::Plain, Flavour::Nft],
        };
        let there = |flavour: &Flavour| find_flavour(family, *flavour, "restore").is_ok();
        let found = flavours.into_iter().find(there);
        found.map_or_else(
            || find_flavour(family, Flavour::Plain, "restore").map(|_| Flavour::Plain),
            Ok,
        )
    }

    fn has_nft_tables(&self, family: Family) -> bool {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let is_iptables = |name: &String| Table::ALL.iter().any(|table| table.name() == name);
        let tables = self.tables.as_deref().unwrap_or_default();
        tables.iter().any(|(family, name)| *family == number && is_iptables(name))
    }
}

/// Whether this namespace has tables of legacy iptables, empty or not.
fn has_legacy_tables(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty())
}

fn find_flavour(family: Family, flavour: Flavour, what: &str) -> Result<PathBuf, BackendError> {
    let flavour = match flavour {
        Flavour::Legacy => "-legacy",
        Flavour::Nft => "-nft",
        Flavour::Plain => "",
    };
    let program = match family {
        Family::V4 => format!("iptables{flavour}-{what}"),
        Family::V6 => format!("ip6tables{flavour}-{what}"),
    };
    find(&program, "install iptables, or give --native-nftables")
}

fn find(program: &str, advice: &'static str) -> Result<PathBuf, BackendError> {
    program::find(program)
        .ok_or_else(|| BackendError::Missing { program: program.to_owned(), advice })
}
