//! Runs an area through both proxies and compares line by line.
//!
//! `CASE=text` runs only cases whose name contains the text, `SHOW=1` prints what Envoy did,
//! `SHOW=brief` the outcome only.
//! A difference must show three times, with more patience each time, before it counts; one that
//! [`crate::ledger`] lists counts as open at once. An area with a difference that counts is run once more, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::area::{Area, Case};
use crate::ledger::{self, Ledger};
use crate::observe::Observation;
use crate::proxy::Kind;
use crate::sandbox::Sandbox;

const ATTEMPTS: u32 = 3;

/// The comparison of the names of all statistics after the last case, as a case of its own.
const STAT_NAMES: &str = "names of statistics";

/// A case that takes longer is named, so that the whole stays short.
const SLOW: Duration = Duration::from_secs(2);

/// Runs one area through Envoy and `ours`; an error lists every difference.
///
/// # Errors
/// When a proxy does not start, a case cannot run, or anything differs.
pub fn run(name: &str, ours: Kind) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let first = runtime.block_on(compare(name, ours));
    match first {
        Err(error) if !ledger::updating() => {
            // What a case that went wrong by chance leaves behind (names of statistics, empty buckets) is gone with the
            // processes.
            eprintln!("{name}: whole area once more: {error:#}");
            runtime.block_on(compare(name, ours))
        }
        first => first,
    }
}

async fn compare(name: &str, kind: Kind) -> Result<()> {
    let area = Area::load(name)?;
    let names = crate::config::upstream_names(&area);
    for case in &area.cases {
        crate::upstream::check_script(&case.upstream, &names)
            .with_context(|| format!("{name}: {}", case.name))?;
    }
    let (envoy, ours) =
        tokio::join!(Sandbox::start(Kind::Envoy, &area, &[]), Sandbox::start(kind, &area, &[]));
    let (mut envoy, mut ours) = (envoy?, ours?);
    let only = std::env::var("CASE").ok();
    let mut tally = Tally::new(name)?;
    for case in &area.cases {
        if only.as_ref().is_some_and(|text| !case.name.contains(text.as_str())) {
            continue;
        }
        let begin = Instant::now();
        let finding = repeatedly(case, &area, &mut envoy, &mut ours, &mut tally).await?;
        if begin.elapsed() > SLOW {
            eprintln!("{name}: {}: takes {:?}", case.name, begin.elapsed());
        }
        tally.count(&case.name, case.differs.is_some(), &finding);
    }
    if only.is_none() {
        let (theirs, mine) = tokio::join!(envoy.stat_names(), ours.stat_names());
        let theirs = Observation { lines: theirs?, h2: false };
        let difference = diff(&theirs, &Observation { lines: mine?, h2: false });
        tally.count(STAT_NAMES, false, &Finding { difference, fatal: false });
        let known = area.cases.iter().map(|case| case.name.clone());
        tally.unknown_lines(&known.chain([STAT_NAMES.to_owned()]).collect());
    }
    tally.finish(only.is_some())
}

/// Runs a case until it agrees, at most [`ATTEMPTS`] times; one time if the ledger lists it.
async fn repeatedly(
    case: &Case,
    area: &Area,
    envoy: &mut Sandbox,
    ours: &mut Sandbox,
    tally: &mut Tally,
) -> Result<Finding> {
    let mut finding = Finding::default();
    for attempt in 0..ATTEMPTS {
        let before = finding.difference;
        finding = one(case, envoy, ours, 1 << (2 * attempt)).await;
        if finding.difference.is_empty() {
            if attempt > 0 {
                tally.again += 1;
                eprintln!("{}: {}: not again:\n{before}", tally.area, case.name);
            }
            break;
        }
        if !ours.proxy.alive() {
            write!(finding.difference, "\n  outrigger died: {}", ours.proxy.log_tail())?;
            finding.fatal = true;
            *ours = Sandbox::start(ours.proxy.kind(), area, &[]).await?;
            break;
        }
        if tally.ledger.lists(&case.name) && !finding.fatal && !ledger::updating() {
            break;
        }
    }
    Ok(finding)
}

/// What came of a case.
#[derive(Debug, Default)]
struct Finding {
    /// Empty when the two agree.
    difference: String,
    /// The process died or Envoy could not be observed: no ledger excuses that.
    fatal: bool,
}

/// The sums of an area.
#[derive(Debug, Default)]
struct Tally {
    area: String,
    ledger: Ledger,
    agree: usize,
    on_purpose: usize,
    open: usize,
    again: usize,
    /// Cases that ran, and those of them that differ.
    ran: BTreeSet<String>,
    differ: BTreeSet<String>,
    /// Every difference, for `target/differential`, and those that fail the area.
    all: String,
    faults: Vec<String>,
}

impl Tally {
    fn new(area: &str) -> Result<Self> {
        Ok(Self { area: area.to_owned(), ledger: Ledger::load(area)?, ..Self::default() })
    }

    fn count(&mut self, case: &str, on_purpose: bool, finding: &Finding) {
        let area = self.area.clone();
        let listed = self.ledger.lists(case);
        self.ran.insert(case.to_owned());
        if finding.difference.is_empty() {
            if on_purpose {
                self.on_purpose += 1;
            } else {
                self.agree += 1;
            }
            if listed && !ledger::updating() {
                let line = format!("{area}: {case}: agrees now: remove its line");
                eprintln!("{line}");
                if ledger::strict() {
                    self.faults.push(line);
                }
            }
            return;
        }
        let text = format!("\n{area}: {case}\n{}", finding.difference);
        self.all.push_str(&text);
        if finding.fatal {
            self.faults.push(text);
            return;
        }
        self.differ.insert(case.to_owned());
        if listed || ledger::updating() {
            self.open += 1;
            eprintln!("{area}: {case}: open");
        } else {
            self.faults.push(text);
        }
    }

    fn unknown_lines(&mut self, cases: &BTreeSet<String>) {
        for case in self.ledger.unknown(cases) {
            if ledger::updating() {
                self.ran.insert(case);
            } else {
                self.faults.push(format!("{}: {case}: in the ledger, but no case", self.area));
            }
        }
    }

    fn finish(self, filtered: bool) -> Result<()> {
        let Self { area, agree, on_purpose, open, again, faults, .. } = &self;
        let failed = faults.len();
        eprintln!(
            "{area}: {agree} cases agree, {on_purpose} differ on purpose, {open} open, \
             {failed} failed, {again} repeated"
        );
        let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/differential");
        std::fs::create_dir_all(&out)?;
        std::fs::write(out.join(format!("{area}.txt")), &self.all)?;
        if ledger::updating() {
            self.ledger.update(&self.ran, &self.differ)?;
        }
        ensure!(faults.is_empty(), "{failed} cases of {area} fail\n{}", faults.join("\n"));
        ensure!(agree + on_purpose > 0 || filtered, "{area}: nothing agrees");
        Ok(())
    }
}

/// What differs in one case; empty when nothing does.
async fn one(case: &Case, envoy: &mut Sandbox, ours: &mut Sandbox, patience: u32) -> Finding {
    let (theirs, mine) =
        tokio::join!(envoy.run_case(case, patience), ours.run_case(case, patience));
    let theirs = match theirs {
        Ok(observation) => observation,
        Err(e) => return Finding { difference: format!("  envoy: {e:#}\n"), fatal: true },
    };
    if let Ok(how) = std::env::var("SHOW") {
        show(&case.name, &theirs, how == "brief");
    }
    let mine = match mine {
        Ok(observation) => observation,
        Err(e) => return Finding { difference: format!("  outrigger: {e:#}\n"), fatal: false },
    };
    let difference = match &case.differs {
        Some(differs) => on_purpose(&differs.ours, &theirs, &mine),
        None => diff(&theirs, &mine),
    };
    Finding { difference, fatal: false }
}

fn show(name: &str, observation: &Observation, brief: bool) {
    eprintln!("== {name}");
    for line in &observation.lines {
        let what = line.split(' ').nth(1).unwrap_or_default();
        let shown = line.starts_with("client") && what != "header"
            || what.starts_with("FLAGS=")
            || what.starts_with("DETAILS=")
            || line.starts_with("upstream") && !["header", "at", "end", "body"].contains(&what);
        if !brief || shown {
            eprintln!("  {line}");
        }
    }
}

/// The lines that only one side has, Envoy's with `-`, ours with `+`.
fn diff(theirs: &Observation, mine: &Observation) -> String {
    let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
    for line in &theirs.lines {
        *counts.entry(line).or_default() += 1;
    }
    for line in &mine.lines {
        *counts.entry(line).or_default() -= 1;
    }
    let mut out = String::new();
    let mut only = |lines: &[String], sign: i32, mark: char| {
        let mut left = counts.clone();
        for line in lines {
            if let Some(count) = left.get_mut(line.as_str())
                && *count * sign > 0
            {
                *count -= sign;
                let _ = writeln!(out, "  {mark} {line}");
            }
        }
    };
    only(&theirs.lines, 1, '-');
    only(&mine.lines, -1, '+');
    out
}

/// A declared difference must be there, on our side and not on Envoy's.
fn on_purpose(expected: &[String], theirs: &Observation, mine: &Observation) -> String {
    let holds = |observation: &Observation, want: &String| {
        observation.lines.iter().any(|line| line.starts_with(want.as_str()))
    };
    let missing: Vec<_> = expected.iter().filter(|want| !holds(mine, want)).collect();
    if Kind::Envoy.binary() == Kind::Outrigger.binary() {
        // A run of the harness against itself has nothing to tell apart.
        return String::new();
    }
    if !missing.is_empty() {
        return format!(
            "  declared but not seen: {missing:?}\n  ours:\n    {}\n",
            mine.lines.join("\n    ")
        );
    }
    if expected.iter().all(|want| holds(theirs, want)) {
        return "  declared as different, but Envoy does the same\n".into();
    }
    String::new()
}
