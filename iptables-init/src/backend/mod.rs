//! How a plan gets into the kernel: iptables-restore of either flavour, or nft. What an earlier run left goes with it,
//! whatever backend it had; when anything fails, what was there before is there again.

pub mod iptables;
pub mod nft;
mod program;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use self::iptables::Contents;
pub use self::program::ProgramError;
use crate::netlink::{self, NftChain, NftTable};
use crate::plan::Plan;
use crate::routing;
use crate::rule::{Family, Table};
use crate::settings::Backend;

const NFT_ADVICE: &str = "install nftables, or leave out --native-nftables";

/// A file that each program has for itself: iptables locks it in place of the node's lock. (Not the namespace's file,
/// as for Istio: that is locked already, by us.)
const OWN_LOCK: (&str, &str) = ("XTABLES_LOCKFILE", "/proc/self/status");

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
}

impl Flavour {
    const ALL: [Self; 2] = [Self::Legacy, Self::Nft];
}

/// One thing to change. All of them are read, and their programs found, before the first one changes.
#[derive(Debug)]
enum Step {
    Iptables { family: Family, flavour: Flavour, before: Contents, after: Contents },
    Nft { script: String, undo: String },
}

/// Installs and removes, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Installer {
    /// Of nftables; None where the kernel has none.
    tables: Option<Vec<NftTable>>,
    /// Their chains.
    chains: Vec<NftChain>,
    /// What a plan has, of each family: of Istio's rules in the kernel's chains, those are removed.
    planned: Vec<(Family, Contents)>,
    /// Held by this process and every program that it runs.
    lock: File,
    /// Whether iptables leaves the node's lock alone: ours is enough.
    own_lock: bool,
}

impl Installer {
    /// Looks at what there is, under the lock of [`crate::lock`].
    ///
    /// # Errors
    /// Without the right to change anything.
    pub fn new(lock: File, own_lock: bool, plan: &Plan) -> Result<Self, BackendError> {
        let asked = netlink::nft_tables().and_then(|tables| Ok((tables, netlink::nft_chains()?)));
        let (tables, chains) = asked.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => BackendError::Privilege,
            _ => BackendError::Tables(error),
        })?;
        let planned = plan.families.iter().map(|rules| (rules.family, Contents::of_plan(rules)));
        Ok(Self { tables, chains, planned: planned.collect(), lock, own_lock })
    }

    /// Installs a plan in place of whatever an earlier run has installed. Gives what of that could not be removed, and
    /// does no harm where it is.
    ///
    /// Where neither flavour of iptables was asked for, and the kernel does not take the rules of the one that is
    /// chosen, the other one's are tried: Istio tries a rule of no effect before it chooses.
    ///
    /// # Errors
    /// When it could not be installed; then nothing has changed.
    pub fn apply(
        &self,
        plan: &Plan,
        backend: Backend,
    ) -> Result<Option<BackendError>, BackendError> {
        let first = self.install(plan, backend);
        let (Backend::Iptables, Err(BackendError::Program(_))) = (backend, &first) else {
            return first;
        };
        let chosen = self.choose(Family::V4, backend)?;
        let other =
            if chosen == Flavour::Nft { Backend::IptablesLegacy } else { Backend::IptablesNft };
        // The first error is that of the flavour that should be there.
        self.install(plan, other).or(first)
    }

    fn install(&self, plan: &Plan, backend: Backend) -> Result<Option<BackendError>, BackendError> {
        let steps = self.steps(Some((plan, backend)));
        let steps = steps.into_iter().collect::<Result<Vec<_>, _>>()?;
        let added = routing::add(&plan.routing).map_err(routing_error)?;
        for (number, step) in steps.iter().enumerate() {
            if let Err(error) = self.take(step) {
                for step in steps[..=number].iter().rev() {
                    // As far as it goes: the first error is the one to tell.
                    let _ = self.take_back(step);
                }
                routing::remove(&added);
                return Err(error);
            }
        }
        Ok(routing::clean(&routing::wanted(&plan.routing)).map_err(routing_error).err())
    }

    /// Removes everything that is ours, of every backend and both families, as far as it can; routes only after all
    /// rules, which need them.
    ///
    /// # Errors
    /// When something is left.
    pub fn clean(&self) -> Result<(), BackendError> {
        let mut first = Ok(());
        for step in self.steps(None) {
            first = first.and(step.and_then(|step| self.take(&step)));
        }
        first.and_then(|()| routing::clean(&[]).map_err(routing_error))
    }

    /// What leads to a plan, or to nothing of ours; what is to be in force comes first, since two sets of rules do no
    /// harm and none lets connections pass.
    fn steps(&self, plan: Option<(&Plan, Backend)>) -> Vec<Result<Step, BackendError>> {
        let mut steps = Vec::new();
        let mut used = Vec::new();
        match plan {
            None => {}
            Some((plan, Backend::Nftables)) => steps.push(self.nft_step(Some(plan))),
            Some((plan, backend)) => {
                for rules in &plan.families {
                    let step = self.choose(rules.family, backend).and_then(|flavour| {
                        used.push((rules.family, flavour));
                        let before = self.contents(rules.family, flavour)?;
                        step(rules.family, flavour, before, Contents::of_plan(rules))
                    });
                    steps.push(step);
                }
            }
        }
        for family in [Family::V4, Family::V6] {
            for flavour in Flavour::ALL {
                if used.contains(&(family, flavour)) {
                    continue;
                }
                let there = match self.contents(family, flavour) {
                    // Older kernels make empty legacy tables in every namespace.
                    Err(BackendError::Missing { .. })
                        if plan.is_some() && flavour == Flavour::Legacy =>
                    {
                        continue;
                    }
                    there => there,
                };
                steps.push(
                    there.and_then(|there| step(family, flavour, there, Contents::default())),
                );
            }
        }
        if !matches!(plan, Some((_, Backend::Nftables))) {
            steps.push(self.nft_step(None));
        }
        steps.retain(|step| !step.as_ref().is_ok_and(Step::is_empty));
        steps
    }

    fn nft_step(&self, plan: Option<&Plan>) -> Result<Step, BackendError> {
        let there = self.tables.as_deref().unwrap_or_default();
        let script = nft::script(there, plan);
        if script.is_empty() {
            return Ok(Step::Nft { script, undo: String::new() });
        }
        let program = find("nft", NFT_ADVICE)?;
        let mut saved = String::new();
        for (family, table) in nft::ours(there) {
            saved += &program::ask(&program, &["-n", "list", "table", family, table])?;
        }
        Ok(Step::Nft { undo: nft::removal(there, plan) + &saved, script })
    }

    fn take(&self, step: &Step) -> Result<(), BackendError> {
        match step {
            Step::Iptables { family, flavour, before, after } => {
                self.restore(*family, *flavour, &before.script(after))
            }
            Step::Nft { script, .. } => self.run_nft(script),
        }
    }

    fn take_back(&self, step: &Step) -> Result<(), BackendError> {
        match step {
            Step::Iptables { family, flavour, before, .. } => {
                let now = self.saved(*family, *flavour)?;
                let script = now.script(before);
                if now == *before || script.is_empty() {
                    return Ok(());
                }
                self.restore(*family, *flavour, &script)
            }
            Step::Nft { undo, .. } => self.run_nft(undo),
        }
    }

    fn run_nft(&self, script: &str) -> Result<(), BackendError> {
        let program = find("nft", NFT_ADVICE)?;
        Ok(program::run(&program, &["-f", "-"], &[], script, self.held()?)?)
    }

    /// What is ours; no program is asked where the kernel has nothing that could be.
    fn contents(&self, family: Family, flavour: Flavour) -> Result<Contents, BackendError> {
        let any = match flavour {
            Flavour::Legacy => has_legacy_tables(family),
            Flavour::Nft => self.has_nft_chains(family),
        };
        if !any {
            return Ok(Contents::default());
        }
        self.saved(family, flavour)
    }

    fn saved(&self, family: Family, flavour: Flavour) -> Result<Contents, BackendError> {
        let program = find_flavour(family, flavour, "save")?;
        let text = program::ask(&program, &[])?;
        let contents = Contents::of_save(&text);
        let planned = self.planned.iter().find(|(of, _)| *of == family);
        Ok(planned.map_or(contents.clone(), |(_, plan)| contents.with_istios(&text, plan)))
    }

    fn restore(&self, family: Family, flavour: Flavour, script: &str) -> Result<(), BackendError> {
        let program = find_flavour(family, flavour, "restore")?;
        let environment: &[_] = if self.own_lock { &[OWN_LOCK] } else { &[] };
        // Seconds for whoever else holds the lock of iptables; there is none in nftables.
        let arguments: &[&str] =
            if flavour == Flavour::Nft { &["--noflush"] } else { &["--noflush", "--wait=30"] };
        Ok(program::run(&program, arguments, environment, script, self.held()?)?)
    }

    fn held(&self) -> Result<OwnedFd, BackendError> {
        let lock = self.lock.try_clone().map_err(BackendError::Tables)?;
        Ok(lock.into())
    }

    /// The flavour that was asked for, or the one whose rules are in force: legacy where it has any
    /// tables, as Istio has it.
    fn choose(&self, family: Family, backend: Backend) -> Result<Flavour, BackendError> {
        match backend {
            Backend::IptablesLegacy => return Ok(Flavour::Legacy),
            Backend::IptablesNft => return Ok(Flavour::Nft),
            Backend::Iptables | Backend::Nftables => {}
        }
        if has_legacy_tables(family)
            && let Ok(program) = find_flavour(family, Flavour::Legacy, "save")
            && program::ask(&program, &[])?.lines().count() >= 3
        {
            return Ok(Flavour::Legacy);
        }
        let flavours = match self.tables {
            Some(_) => [Flavour::Nft, Flavour::Legacy],
            None => [Flavour::Legacy, Flavour::Nft],
        };
        let there = |flavour: &Flavour| find_flavour(family, *flavour, "restore").is_ok();
        flavours.into_iter().find(there).ok_or_else(|| missing(family, "", "restore"))
    }

    fn has_nft_chains(&self, family: Family) -> bool {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        self.chains.iter().any(|((family, table), chain)| {
            *family == number
                && Table::ALL.iter().any(|t| t.name() == table)
                && iptables::is_ours(chain)
        })
    }
}

impl Step {
    fn is_empty(&self) -> bool {
        match self {
            Self::Iptables { before, after, .. } => before.is_empty() && after.is_empty(),
            Self::Nft { script, .. } => script.is_empty(),
        }
    }
}

/// A step that has a program.
fn step(
    family: Family,
    flavour: Flavour,
    before: Contents,
    after: Contents,
) -> Result<Step, BackendError> {
    let step = Step::Iptables { family, flavour, before, after };
    if !step.is_empty() {
        find_flavour(family, flavour, "restore")?;
        find_flavour(family, flavour, "save")?;
    }
    Ok(step)
}

fn routing_error((command, source): (String, io::Error)) -> BackendError {
    let ipv6 = command.contains("-6");
    let hint = if ipv6 { "; is IPv6 disabled (net.ipv6.conf.lo.disable_ipv6)?" } else { "" };
    BackendError::Routing { command, source, hint }
}

/// Whether this namespace has tables of legacy iptables, empty or not.
fn has_legacy_tables(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty())
}

/// The program of a flavour: the one that is called so, or the plain one where it is that.
fn find_flavour(family: Family, flavour: Flavour, what: &str) -> Result<PathBuf, BackendError> {
    let suffix = match flavour {
        Flavour::Legacy => "-legacy",
        Flavour::Nft => "-nft",
    };
    if let Some(path) = program::find(&program_name(family, suffix, what)) {
        return Ok(path);
    }
    let save = program::find(&program_name(family, "", "save"));
    // Those before 1.8 do not tell, and are legacy.
    let is_nft = |save: &PathBuf| {
        program::ask(save, &["--version"]).is_ok_and(|version| version.contains("nf_tables"))
    };
    let plain = save.filter(|save| is_nft(save) == (flavour == Flavour::Nft));
    plain
        .and_then(|_| program::find(&program_name(family, "", what)))
        .ok_or_else(|| missing(family, suffix, what))
}

fn missing(family: Family, suffix: &str, what: &str) -> BackendError {
    let advice = "install iptables, or give --native-nftables";
    BackendError::Missing { program: program_name(family, suffix, what), advice }
}

fn program_name(family: Family, suffix: &str, what: &str) -> String {
    let version = if family == Family::V6 { "6" } else { "" };
    format!("ip{version}tables{suffix}-{what}")
}

fn find(program: &str, advice: &'static str) -> Result<PathBuf, BackendError> {
    program::find(program)
        .ok_or_else(|| BackendError::Missing { program: program.to_owned(), advice })
}
