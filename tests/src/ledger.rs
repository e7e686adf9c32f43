//! The ledger of open differences: `tests/configs/open-differences.txt`.
//!
//! One line `area: case name` for each case that differs from Envoy and is not yet explained or
//! mended. What is listed is counted as open; what differs and is not listed fails.
//! `UPDATE_LEDGER=1` writes what a run found, `STRICT_LEDGER=1` refuses lines that are no longer
//! needed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};

const HEADER: &str = "\
# Cases where Outrigger still differs from Envoy without a reason. A case listed here that agrees
# fails the suite until its line is removed (with STRICT_LEDGER=1; some differ by chance); a case
# that differs and is not listed fails it. Written by
#   UPDATE_LEDGER=1 cargo test -p tests --test differential
";

/// Areas run in threads of one process and share the file.
static FILE: Mutex<()> = Mutex::new(());

/// The lines of one area.
#[derive(Debug, Default)]
pub struct Ledger {
    area: String,
    listed: BTreeSet<String>,
}

impl Ledger {
    /// Reads the lines of an area.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(area: &str) -> Result<Self> {
        let _held = FILE.lock();
        let prefix = format!("{area}: ");
        let names = read()?;
        let listed = names.iter().filter_map(|line| line.strip_prefix(&prefix));
        Ok(Self { area: area.to_owned(), listed: listed.map(str::to_owned).collect() })
    }

    /// Whether a case is known to differ.
    #[must_use]
    pub fn lists(&self, case: &str) -> bool {
        self.listed.contains(case)
    }

    /// Lines that name no case of the area.
    #[must_use]
    pub fn unknown(&self, cases: &BTreeSet<String>) -> Vec<String> {
        self.listed.difference(cases).cloned().collect()
    }

    /// Writes what a run found: of the cases that ran, those that differ are listed; lines of
    /// cases that did not run stay.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn update(&self, ran: &BTreeSet<String>, differ: &BTreeSet<String>) -> Result<()> {
        let _held = FILE.lock();
        let prefix = format!("{}: ", self.area);
        let mut lines = read()?;
        lines.retain(|line| line.strip_prefix(&prefix).is_none_or(|case| !ran.contains(case)));
        lines.extend(differ.iter().map(|case| format!("{prefix}{case}")));
        let mut text = HEADER.to_owned();
        for line in &lines {
            text.push_str(line);
            text.push('\n');
        }
        let path = path();
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

/// Whether the run writes the ledger instead of being judged by it.
#[must_use]
pub fn updating() -> bool {
    std::env::var_os("UPDATE_LEDGER").is_some()
}

/// Whether a listed case that agrees is a failure.
#[must_use]
pub fn strict() -> bool {
    std::env::var_os("STRICT_LEDGER").is_some()
}

/// The areas that lines name.
///
/// # Errors
/// When the file cannot be read.
pub fn areas() -> Result<BTreeSet<String>> {
    let _held = FILE.lock();
    let lines = read()?;
    Ok(lines.iter().map(|line| line.split(": ").next().unwrap_or_default().to_owned()).collect())
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/open-differences.txt")
}

fn read() -> Result<BTreeSet<String>> {
    let path = path();
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text.lines().map(str::trim_end);
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}
