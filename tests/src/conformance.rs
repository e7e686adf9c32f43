//! Suites that nobody here wrote, pointed at a listener: which of their cases fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde::Deserialize;
use tokio::process::Command;

use crate::area::Area;
use crate::proxy::Kind;
use crate::sandbox::Sandbox;

/// A suite's verdict.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub passed: usize,
    /// Names of failed cases with what the suite says about each.
    pub failed: BTreeMap<String, String>,
}

/// Cases that may fail, each with its reason: `tests/configs/conformance-allowed.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    #[serde(default)]
    pub h2spec: BTreeMap<String, String>,
    #[serde(default)]
    pub httpwg: BTreeMap<String, String>,
}

impl Allowed {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/conformance-allowed.yaml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_yaml_ng::from_str(&text)?)
    }
}

/// The tool from `target/tools/bin`, where `tests/run` puts it, or else from the path.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin").join(name);
    if built.exists() { built } else { name.into() }
}

/// Starts a proxy with `tests/configs/conformance.yaml`.
///
/// # Errors
/// When it does not start.
pub async fn target(kind: Kind) -> Result<(Sandbox, u16)> {
    let area = Area::load("../conformance")?;
    let sandbox = Sandbox::start(kind, &area, &[]).await?;
    let port = sandbox.port("main")?;
    Ok((sandbox, port))
}

/// Runs h2spec.
///
/// # Errors
/// When it cannot be run or says nothing.
pub async fn h2spec(port: u16, dir: &Path) -> Result<Verdict> {
    let report = dir.join("h2spec.xml");
    Command::new(tool("h2spec"))
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-o", "2", "-j"])
        .arg(&report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .context("h2spec is missing: tests/run builds it")?;
    let xml = std::fs::read_to_string(&report).context("h2spec wrote no report")?;
    let case =
        Regex::new(r#"(?s)<testcase package="([^"]*)" classname="([^"]*)"[^>]*>(.*?)</testcase>"#)?;
    let markup = Regex::new(r"<[^>]*>|\s+")?;
    let mut verdict = Verdict::default();
    for found in case.captures_iter(&xml) {
        if found[3].contains("<failure") || found[3].contains("<error") {
            let text = markup.replace_all(&found[3], " ").trim().to_owned();
            verdict.failed.insert(format!("{} {}", &found[1], &found[2]), text);
        } else {
            verdict.passed += 1;
        }
    }
    ensure!(verdict.passed > 0, "h2spec passed nothing");
    Ok(verdict)
}

/// Runs httpwg-cli.
///
/// # Errors
/// When it cannot be run or says nothing.
pub async fn httpwg(port: u16) -> Result<Verdict> {
    let output = Command::new(tool("httpwg"))
        .args(["-a", &format!("127.0.0.1:{port}"), "--frame-timeout", "3000"])
        .stdin(Stdio::null())
        .output()
        .await
        .context("httpwg is missing: tests/run installs it")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let text = Regex::new("\x1b\\[[0-9;]*m")?.replace_all(&text, "").into_owned();
    parse_httpwg(&text)
}

fn parse_httpwg(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for line in text.lines() {
        if let Some((_, case)) = line.split_once("Test failed: ") {
            verdict.failed.insert(case.trim().to_owned(), String::new());
        } else if line.contains("Test passed: ") {
            verdict.passed += 1;
        }
    }
    ensure!(verdict.passed > 0, "httpwg passed nothing: {text}");
    Ok(verdict)
}

impl Verdict {
    /// What is left when a suite has run a second time: its cases wait for fixed times, and a busy machine is late.
    #[must_use]
    pub fn again(mut self, second: &Self) -> Self {
        let before = self.failed.len();
        self.failed.retain(|case, _| second.failed.contains_key(case));
        self.passed += before - self.failed.len();
        self
    }
}

/// What speaks against a verdict: failures that nobody allowed, allowances that nothing needs, and
/// fewer passes than Envoy, allowed failures aside.
#[must_use]
pub fn judge(ours: &Verdict, envoy: &Verdict, allowed: &BTreeMap<String, String>) -> Vec<String> {
    let mut out = Vec::new();
    for (case, why) in &ours.failed {
        if !allowed.contains_key(case) {
            out.push(format!("fails: {case}: {why}"));
        }
    }
    for (case, why) in allowed {
        if !ours.failed.contains_key(case) {
            let line = format!("is allowed to fail but passes: {case}");
            eprintln!("{line}");
            if crate::ledger::strict() || !why.starts_with("open") {
                out.push(line);
            }
        }
    }
    let excused = ours.failed.keys().filter(|case| allowed.contains_key(*case)).count();
    if ours.passed + excused < envoy.passed {
        out.push(format!(
            "passes {} cases and may fail {excused}, Envoy passes {}",
            ours.passed, envoy.passed
        ));
    }
    out
}
