//! Runs an area through both proxies and compares line by line.
//!
//! `CASE=text` runs only cases whose name contains the text, `SHOW=1` prints what Envoy did,
//! `SHOW=brief` the outcome only.
//! A difference must show three times, with more patience each time, before it counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::area::{Area, Case};
use crate::observe::Observation;
use crate::proxy::Kind;
use crate::sandbox::Sandbox;

const ATTEMPTS: u32 = 3;

/// A case that takes longer is named, so that the whole stays short.
const SLOW: Duration = Duration::from_secs(2);

/// Runs one area; an error lists every difference.
///
/// # Errors
/// When a proxy does not start, a case cannot run, or anything differs.
pub fn run(name: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(name))
}

async fn compare(name: &str) -> Result<()> {
    let area = Area::load(name)?;
    let names = crate::config::upstream_names(&area);
    for case in &area.cases {
        crate::upstream::check_script(&case.upstream, &names)
            .with_context(|| format!("{name}: {}", case.name))?;
    }
    let (envoy, ours) = tokio::join!(
        Sandbox::start(Kind::Envoy, &area, &[]),
        Sandbox::start(Kind::Outrigger, &area, &[])
    );
    let (mut envoy, mut ours) = (envoy?, ours?);
    let only = std::env::var("CASE").ok();
    let mut report = String::new();
    let (mut passed, mut failed, mut again) = (0, 0, 0);
    for case in &area.cases {
        if only.as_ref().is_some_and(|text| !case.name.contains(text.as_str())) {
            continue;
        }
        let mut difference = String::new();
        let begin = Instant::now();
        for attempt in 0..ATTEMPTS {
            let before = difference;
            difference = one(case, &mut envoy, &mut ours, 1 << (2 * attempt)).await;
            if difference.is_empty() {
                again += attempt.min(1);
                if attempt > 0 {
                    eprintln!("{name}: {}: not again:\n{before}", case.name);
                }
                break;
            }
            if !ours.proxy.alive() {
                write!(difference, "\n  outrigger died: {}", ours.proxy.log_tail())?;
                ours = Sandbox::start(Kind::Outrigger, &area, &[]).await?;
                break;
            }
        }
        if begin.elapsed() > SLOW {
            eprintln!("{name}: {}: takes {:?}", case.name, begin.elapsed());
        }
        if difference.is_empty() {
            passed += 1;
        } else {
            failed += 1;
            write!(report, "\n{name}: {}\n{difference}", case.name)?;
        }
    }
    if only.is_none() {
        let (theirs, mine) = tokio::join!(envoy.stat_names(), ours.stat_names());
        let theirs = Observation { lines: theirs?, h2: false };
        let difference = diff(&theirs, &Observation { lines: mine?, h2: false });
        if difference.is_empty() {
            passed += 1;
        } else {
            failed += 1;
            write!(report, "\n{name}: names of statistics\n{difference}")?;
        }
    }
    eprintln!("{name}: {passed} cases agree, {failed} differ, {again} repeated");
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/differential");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join(format!("{name}.txt")), &report)?;
    if failed > 0 {
        bail!("{failed} of {} cases differ\n{report}", passed + failed);
    }
    ensure!(passed > 0 || only.is_some(), "{name} has no cases");
    Ok(())
}

/// What differs in one case; empty when nothing does.
async fn one(case: &Case, envoy: &mut Sandbox, ours: &mut Sandbox, patience: u32) -> String {
    let (theirs, mine) =
        tokio::join!(envoy.run_case(case, patience), ours.run_case(case, patience));
    let theirs = match theirs {
        Ok(observation) => observation,
        Err(e) => return format!("  envoy: {e:#}\n"),
    };
    if let Ok(how) = std::env::var("SHOW") {
        show(&case.name, &theirs, how == "brief");
    }
    let mine = match mine {
        Ok(observation) => observation,
        Err(e) => return format!("  outrigger: {e:#}\n"),
    };
    match &case.differs {
        Some(differs) => on_purpose(&differs.ours, &theirs, &mine),
        None => diff(&theirs, &mine),
    }
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
