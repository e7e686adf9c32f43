//! What the kernel knows about a process tree: CPU time, memory, wake-ups (proc(5)).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of a process tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// In user space, to the clock tick (10 ms).
    pub user: Duration,
    /// In the kernel, to the clock tick (10 ms).
    pub system: Duration,
    /// Both, to the nanosecond, from the scheduler; zero when the kernel does not keep it.
    pub scheduled: Duration,
}

impl Cpu {
    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            scheduled: self.scheduled.saturating_sub(earlier.scheduled),
        }
    }

    /// The sum of two trees.
    pub fn and(self, other: Self) -> Self {
        Self {
            user: self.user + other.user,
            system: self.system + other.system,
            scheduled: self.scheduled + other.scheduled,
        }
    }

    /// The best total there is.
    pub fn total(self) -> Duration {
        if self.scheduled.is_zero() { self.user + self.system } else { self.scheduled }
    }
}

/// Memory of a process tree, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident, file-backed pages included (`Rss` of smaps_rollup).
    pub resident: u64,
    /// Highest resident size so far (`VmHWM`).
    pub peak: u64,
    /// Anonymous pages: heaps and stacks, what user space allocated.
    pub anonymous: u64,
}

/// The process and all its descendants, parents first.
pub fn tree(root: u32) -> Vec<u32> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            pids.extend(
                children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    pids
}

/// CPU time of the tree so far.
pub fn cpu(root: u32) -> Result<Cpu> {
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    let tick = Duration::from_secs(1) / u32::try_from(hertz)?;
    let mut cpu = Cpu::default();
    for pid in tree(root) {
        let stat = read(pid, "stat")?;
        // The command name may hold spaces and parentheses; fields are counted after the last one.
        let fields = stat.rsplit_once(')').context("stat without a name")?.1;
        let mut ticks = fields.split_ascii_whitespace().skip(11).map(|field| field.parse::<u32>());
        let (user, system) = (ticks.next().context("utime")??, ticks.next().context("stime")??);
        cpu.user += tick * user;
        cpu.system += tick * system;
        for task in tasks(pid) {
            let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let nanoseconds = schedstat.split_ascii_whitespace().next().unwrap_or("0").parse()?;
            cpu.scheduled += Duration::from_nanos(nanoseconds);
        }
    }
    Ok(cpu)
}

/// Memory of the tree now.
pub fn memory(root: u32) -> Result<Memory> {
    let mut memory = Memory::default();
    for pid in tree(root) {
        let rollup = read(pid, "smaps_rollup")?;
        memory.resident += kilobytes(&rollup, "Rss:")?;
        memory.anonymous += kilobytes(&rollup, "Anonymous:")?;
        memory.peak += kilobytes(&read(pid, "status")?, "VmHWM:")?;
    }
    Ok(memory)
}

/// How often any thread of the tree left a CPU so far: each is a wake-up to come.
pub fn context_switches(root: u32) -> u64 {
    tree(root)
        .into_iter()
        .flat_map(tasks)
        .filter_map(|task| fs::read_to_string(task.join("status")).ok())
        .flat_map(|status| {
            status
                .lines()
                .filter(|line| line.contains("ctxt_switches:"))
                .filter_map(|line| line.rsplit(char::is_whitespace).next()?.parse::<u64>().ok())
                .collect::<Vec<_>>()
        })
        .sum()
}

/// Threads of the tree.
pub fn threads(root: u32) -> usize {
    tree(root).into_iter().map(|pid| tasks(pid).len()).sum()
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

fn kilobytes(text: &str, key: &str) -> Result<u64> {
    let line =
        text.lines().find(|line| line.starts_with(key)).with_context(|| format!("no {key}"))?;
    let value = line.split_ascii_whitespace().nth(1).context("no value")?;
    Ok(value.parse::<u64>()? * 1024)
}
