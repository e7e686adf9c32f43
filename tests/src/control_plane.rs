//! A real control plane: `tests/tools/xds-server`, which is go-control-plane, serves the resources of one file and says
//! what it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// A running control plane; killed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    child: Child,
    resources: PathBuf,
    log: PathBuf,
    /// How much of its log belongs to what is over.
    read: usize,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ControlPlane {
    /// Starts one on a port with its files in a directory, and waits until it listens; `XDS_SERVER` is the program.
    ///
    /// # Errors
    /// The program is missing or a file cannot be written.
    pub async fn start(dir: &Path, port: u16, resources: &[Value]) -> Result<Self> {
        let program = std::env::var_os("XDS_SERVER").unwrap_or_else(|| "xds-server".into());
        let (file, log) = (dir.join("resources.json"), dir.join("control-plane.log"));
        write(&file, resources)?;
        let mut child = Command::new(&program)
            .args(["-listen", &format!("127.0.0.1:{port}"), "-after-refusal", "200ms"])
            .arg("-resources")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log)?)
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {}", Path::new(&program).display()))?;
        // Its first line is its address.
        while std::fs::metadata(&log)?.len() == 0 {
            ensure!(child.try_wait()?.is_none(), "{} ends at once", Path::new(&program).display());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Self { child, resources: file, log, read: 0 })
    }

    /// Serves these from now on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&mut self, resources: &[Value]) -> Result<()> {
        self.read = std::fs::metadata(&self.log)?.len() as usize;
        write(&self.resources, resources)
    }

    /// What it was asked and told since the last `put`, by type: the names of which more or fewer are wanted (the names
    /// wanted last, of the state of the world), whether what came last was refused, and whether clusters were acknowledged.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn asked(&self) -> Result<BTreeSet<String>> {
        let text = std::fs::read_to_string(&self.log)?;
        let mut facts = BTreeSet::new();
        let mut refused: BTreeMap<String, bool> = BTreeMap::new();
        let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in text.get(self.read..).unwrap_or_default().lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let Some(kind) = line["type"].as_str() else { continue };
            for field in ["subscribe", "unsubscribe"] {
                let names = names(&line[field]);
                facts.extend(names.iter().map(|name| format!("{kind} {field} {name}")));
            }
            if line.get("names").is_some() {
                wanted.insert(kind.to_owned(), names(&line["names"]));
            }
            if line.get("nonce").is_some() {
                refused.insert(kind.to_owned(), line.get("error").is_some());
            }
        }
        if refused.get("Cluster") == Some(&false) {
            facts.insert("Cluster acknowledged".to_owned());
        }
        // The state of the world is sent again when it is refused: the last word counts.
        let refused = refused.into_iter().filter(|(_, refused)| *refused);
        facts.extend(refused.map(|(kind, _)| format!("{kind} refused")));
        for (kind, names) in wanted {
            facts.extend(names.iter().map(|name| format!("{kind} wants {name}")));
        }
        Ok(facts)
    }
}

fn names(list: &Value) -> BTreeSet<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// Moves a new file into its place.
fn write(path: &Path, resources: &[Value]) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, json!({ "resources": resources }).to_string())?;
    Ok(std::fs::rename(new, path)?)
}
