//! What a fault test does to a mesh and looks at: istiod killed and started, Kubernetes objects changed and acknowledged,
//! certificates, counters and memory of a pod's proxy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::{Mesh, PATIENCE, PAUSE, PROXIED, text};

/// What istiod has sent to each proxy and what came back, by proxy and type.
pub type Sync = BTreeMap<String, BTreeMap<String, (String, String)>>;

impl Mesh {
    /// Kills istiod as a crash would.
    ///
    /// # Errors
    /// It is not there.
    pub fn kill_istiod(&self) -> Result<()> {
        self.control(&["kill-istiod"])
    }

    /// Starts istiod again and waits until it serves.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_istiod(&self) -> Result<()> {
        self.control(&["start-istiod"])
    }

    /// Puts Kubernetes objects in the place of those of `file`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn kube(&self, file: &str, objects: &str) -> Result<()> {
        self.replace(&format!("kube/{file}"), objects)
    }

    /// Puts Istio resources in the place of those of `file`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, file: &str, resources: &str) -> Result<()> {
        self.replace(&format!("config/{file}"), resources)
    }

    /// Starts one more pod; `more` are flags of `mesh.py add-pod`.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn add_pod(&self, pod: &str, address: &str, more: &[&str]) -> Result<()> {
        self.control(&[&["add-pod", pod, address], more].concat())
    }

    /// Ends a pod, as kubelet does.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        self.control(&["remove-pod", pod])
    }

    /// Looks until `done` gives something.
    ///
    /// # Errors
    /// It gives nothing in time; the message has what the last look found, or could not find.
    pub fn eventually<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<std::result::Result<T, String>>,
    ) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            let began = Instant::now();
            let missing = match look() {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(missing)) => missing,
                Err(error) => format!("{error:#}"),
            };
            ensure!(Instant::now() < until, "{what}: {missing}\n{}", self.logs());
            // As long again as the look itself has taken of the processor.
            std::thread::sleep(began.elapsed().max(PAUSE));
        }
    }

    /// Waits until every proxy has acknowledged all that istiod has sent.
    ///
    /// # Errors
    /// Some have not in time.
    pub fn settled(&self) -> Result<()> {
        self.eventually("acknowledgements", || {
            let missing = self.unacknowledged()?;
            Ok(if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) })
        })
    }

    /// The nonces of istiod's last responses and acknowledgements.
    ///
    /// # Errors
    /// istiod's debug page is not what it should be.
    pub fn sync(&self) -> Result<Sync> {
        let page: Value = serde_json::from_str(&self.istiod("/debug/syncz")?)?;
        let mut all = Sync::new();
        for proxy in page.as_array().context("syncz: not a list")? {
            let nonces = all.entry(proxy["proxy"].to_string()).or_default();
            for (kind, state) in proxy["resources"].as_object().into_iter().flatten() {
                let nonce = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
                nonces.insert(kind.clone(), (nonce("sent"), nonce("acked")));
            }
        }
        Ok(all)
    }

    /// Waits until istiod has sent clusters and listeners again to every proxy since `before`, and has an
    /// acknowledgement of everything.
    ///
    /// # Errors
    /// Something is not sent or acknowledged in time.
    pub fn acknowledged(&self, before: &Sync) -> Result<Sync> {
        self.eventually("an acknowledgement", || {
            let now = self.sync()?;
            let mut missing = Vec::new();
            for (proxy, types) in &now {
                for (kind, (sent, acked)) in types {
                    let old = before.get(proxy).and_then(|types| types.get(kind));
                    let pushed = kind.ends_with(".Cluster") || kind.ends_with(".Listener");
                    if sent != acked || pushed && old.is_some_and(|(old, _)| old == sent) {
                        missing.push(format!("{proxy} {kind} {sent} {acked}"));
                    }
                }
            }
            if now.len() < PROXIED.len() {
                missing.push(format!("{} proxies", now.len()));
            }
            Ok(if missing.is_empty() { Ok(now) } else { Err(missing.join(", ")) })
        })
    }

    /// The certificate that a pod was given last.
    ///
    /// # Errors
    /// There is none.
    pub fn certificate(&self, pod: &str) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_file(self.credential(pod, "cert-chain.pem"))?)
    }

    /// A file of a pod's credentials.
    #[must_use]
    pub fn credential(&self, pod: &str, file: &str) -> PathBuf {
        self.folder(pod).join("var/run/secrets/workload-spiffe-credentials").join(file)
    }

    /// The serial number of the certificate that a pod was given last, in lower-case hexadecimal without leading zeros.
    ///
    /// # Errors
    /// openssl does not understand it.
    pub fn serial(&self, pod: &str) -> Result<String> {
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-serial", "-in"])
            .arg(self.credential(pod, "cert-chain.pem"))
            .output()
            .context("openssl")?;
        let printed = text(&output);
        let serial = printed.trim().strip_prefix("serial=").context(printed.clone())?;
        Ok(serial.to_ascii_lowercase().trim_start_matches('0').to_owned())
    }

    /// A number of a proxy's `/memory`.
    ///
    /// # Errors
    /// It has none of that name.
    pub fn memory(&self, pod: &str, name: &str) -> Result<u64> {
        let page: Value = serde_json::from_str(&self.admin(pod, "/memory")?)?;
        page[name].as_str().and_then(|n| n.parse().ok()).context("memory")
    }

    /// The sum of a proxy's counters and gauges whose names match.
    ///
    /// # Errors
    /// The page cannot be read.
    pub fn stat(&self, pod: &str, pattern: &str) -> Result<u64> {
        let page = self.admin(pod, &format!("/stats?filter={pattern}"))?;
        let values = page.lines().filter_map(|line| line.rsplit_once(": "));
        values.map(|(name, value)| value.parse::<u64>().with_context(|| name.to_owned())).sum()
    }

    /// Private pages of a pod's proxy, in KiB.
    ///
    /// # Errors
    /// It does not run.
    pub fn anonymous_kib(&self, pod: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy(pod)?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next()).context("RssAnon")?;
        Ok(number.parse()?)
    }

    /// The process of a pod's proxy.
    fn proxy(&self, pod: &str) -> Result<u32> {
        let (binaries, home) = (self.folder("bin"), self.folder(pod));
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let points = |link: &str| std::fs::read_link(entry.path().join(link));
            let Ok((exe, cwd)) = points("exe").and_then(|exe| Ok((exe, points("cwd")?))) else {
                continue;
            };
            if exe.starts_with(&binaries) && cwd == home {
                return Ok(pid);
            }
        }
        anyhow::bail!("{pod} has no proxy")
    }
}
