//! A real Istio mesh in network namespaces (`tests/mesh/`), with the proxies of our choice in its pods.
//!
//! [`Mesh::up`] starts it by `mesh.py`; [`request`] sends what an application in a pod would send, from that pod's
//! namespace; [`Mesh::push`] changes istiod's configuration and waits until every proxy has it.

pub mod capture;
pub mod cases;
pub mod control;
pub mod handshakes;
pub mod load;
pub mod netns;
pub mod network;
pub mod open_loop;
pub mod request;
pub mod streams;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::proxy::Kind;
use network::Network;
use request::{Answer, Request};

/// Pods with a proxy, in the order in which `mesh.py` starts them.
pub const PROXIED: [&str; 8] = [
    "client-v1",
    "reviews-v1",
    "reviews-v2",
    "reviews-v3",
    "ratings-v1",
    "details-v1",
    "mongodb-v1",
    "gateway-v1",
];

/// How long istiod and the proxies may take to come to rest after a push, on a busy machine and with a proxy that has
/// just begun to wait before it connects again.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at something that takes its time, so that whoever is looked at has the processor.
const PAUSE: Duration = Duration::from_millis(5);

/// Where the marker is served. Before there is one, nobody listens there: the answer comes at once.
const MARKER: &str = "http://10.77.0.1:79/";

/// A running mesh; taken down when dropped.
#[derive(Debug)]
pub struct Mesh {
    name: String,
    dir: TempDir,
    pushes: u32,
    pub network: Network,
}

/// How a mesh differs from the usual one.
#[derive(Debug, Default)]
pub struct Setup<'a> {
    /// Settings of istiod (`PILOT_…`) and of every pilot-agent (`ISTIO_…`).
    pub environment: &'a [(&'a str, &'a str)],
    /// More of Istio's ProxyConfig, JSON; nothing by default.
    pub proxy_config: Option<&'a str>,
    /// The command that installs a pod's redirect rules; Istio's own by default.
    pub redirect: Option<&'a str>,
    /// IPv4 and REDIRECT by default.
    pub network: Network,
}

/// The folder of the rig.
fn rig() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh")
}

/// A binary that `build.sh` has built.
fn tool(name: &str) -> PathBuf {
    std::env::var_os("MESH_BIN")
        .map_or_else(|| name.into(), |folder| PathBuf::from(folder).join(name))
}

/// The real binary behind `kind`: the package's `envoy` is a script that a pod's user cannot read.
fn binary(kind: Kind) -> Result<PathBuf> {
    if kind == Kind::Envoy
        && let Some(path) = std::env::var_os("MESH_ENVOY").filter(|path| !path.is_empty())
    {
        return Ok(path.into());
    }
    let path = kind.binary();
    ensure!(path.exists() || kind == Kind::Envoy, "{} does not exist: build it", path.display());
    Ok(path)
}

impl Mesh {
    /// Starts a mesh named `name` whose proxies are all `others`, but those of `pods`, which are `ours`.
    ///
    /// # Errors
    /// Something does not become ready; the message holds the ends of the logs.
    pub fn up(name: &str, others: Kind, pods: &[&str], ours: Kind) -> Result<Self> {
        Self::up_with(name, others, pods, ours, &Setup::default())
    }

    /// Starts a mesh of Outrigger alone.
    ///
    /// # Errors
    /// See [`Mesh::up`].
    pub fn of_outriggers(name: &str, setup: &Setup<'_>) -> Result<Self> {
        Self::up_with(name, Kind::Outrigger, &[], Kind::Outrigger, setup)
    }

    /// Starts a mesh with everything said.
    ///
    /// # Errors
    /// See [`Mesh::up`].
    pub fn up_with(
        name: &str,
        others: Kind,
        pods: &[&str],
        ours: Kind,
        setup: &Setup<'_>,
    ) -> Result<Self> {
        // Processes of a pod may have as many files as they like.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let dir = TempDir::with_prefix(format!("outrigger-{name}-"))?;
        // The pods' user has to get in.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mesh = Self { name: name.to_owned(), dir, pushes: 0, network: setup.network };
        let mut arguments = vec!["up".to_owned(), "--stock-envoy".to_owned()];
        arguments.extend(setup.network.arguments().map(str::to_owned));
        arguments.extend(["--proxy".to_owned(), binary(others)?.display().to_string()]);
        for pod in pods {
            arguments.push("--proxy".to_owned());
            arguments.push(format!("{pod}={}", binary(ours)?.display()));
        }
        if let Some(more) = setup.proxy_config {
            arguments.extend(["--proxy-config".to_owned(), more.to_owned()]);
        }
        if let Some(command) = setup.redirect {
            arguments.extend(["--redirect".to_owned(), command.to_owned()]);
        }
        let output = mesh.command(&arguments).envs(setup.environment.iter().copied()).output()?;
        if !output.status.success() {
            bail!("mesh {name} does not start: {}\n{}", text(&output), mesh.logs());
        }
        Ok(mesh)
    }

    fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new("python3");
        command
            .arg(rig().join("mesh.py"))
            .args(arguments)
            .env("MESH_NAME", &self.name)
            .env("MESH_DIR", self.dir.path());
        command
    }

    fn control(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command(arguments).output().context("mesh.py")?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output));
        Ok(())
    }

    /// Renews the certificates of pods.
    ///
    /// # Errors
    /// openssl fails.
    pub fn rotate(&self, pods: &[&str]) -> Result<()> {
        self.control(&[&["rotate"], pods].concat())
    }

    /// The end of every pod's log, for messages.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for pod in PROXIED {
            let log = self.log(pod);
            let lines: Vec<_> = log.lines().rev().take(12).collect();
            all += &format!("--- {pod}\n");
            for line in lines.iter().rev() {
                all += line;
                all.push('\n');
            }
        }
        all
    }

    /// What pilot-agent and the proxy of a pod have printed.
    #[must_use]
    pub fn log(&self, pod: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(pod).join("agent.log")).unwrap_or_default()
    }

    /// What istiod has printed.
    #[must_use]
    pub fn istiod_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("istiod.log")).unwrap_or_default()
    }

    /// Sends a request from its pod, to IPv6 addresses where the mesh has no others.
    ///
    /// # Errors
    /// The pod's namespace cannot be entered; what the request itself meets is part of the answer.
    pub fn ask(&self, request: &Request) -> Result<Answer> {
        let mut request = request.clone();
        request.ipv6 |= self.network.ipv6_only();
        netns::within(&self.name, &request.from.clone(), move || request.send())
    }

    /// Like [`Mesh::ask`], as a user and a group, by which redirect rules know who owns a connection.
    ///
    /// # Errors
    /// See [`Mesh::ask`].
    pub fn ask_as(&self, (user, group): (u32, u32), request: &Request) -> Result<Answer> {
        let request = request.clone();
        netns::within(&self.name, &request.from.clone(), move || {
            // The thread's own, which ends with the request.
            setfsgid(Gid::from_raw(group));
            setfsuid(Uid::from_raw(user));
            request.send()
        })
    }

    /// A page of a pod's proxy's admin interface.
    ///
    /// # Errors
    /// It does not answer 200.
    pub fn admin(&self, pod: &str, path: &str) -> Result<String> {
        self.page(pod, 15000, path)
    }

    /// What `istioctl proxy-config KIND --file` prints of a pod's proxy. Certificates belong to one mesh: what differs
    /// between two by that alone (serial numbers, dates) is taken out.
    ///
    /// # Errors
    /// istioctl does not understand the proxy's answer.
    pub fn proxy_config(&self, pod: &str, kind: &str) -> Result<Vec<String>> {
        let page = match kind {
            "endpoints" => "/clusters?format=json",
            _ => "/config_dump?include_eds",
        };
        let file = self.dir.path().join(format!("{pod}-{kind}.json"));
        std::fs::write(&file, self.admin(pod, page)?)?;
        let output = Command::new(tool("istioctl"))
            .args(["proxy-config", kind, "--file"])
            .arg(&file)
            .output()
            .context("istioctl")?;
        ensure!(output.status.success(), "{pod} {kind}: {}", text(&output));
        let ours = Regex::new(r"[0-9a-f]{30,40}|[0-9]{4}-[0-9-]*T[0-9:]*Z")?;
        let printed = text(&output).replace(&self.dir.path().display().to_string(), "DIR");
        let rows = printed.lines().map(|row| {
            let row = ours.replace_all(row, "*");
            row.split_whitespace().collect::<Vec<_>>().join(" ")
        });
        let mut rows: Vec<_> = rows.collect();
        // Those of one name come in the order of the proxy's hash table.
        rows.sort();
        Ok(rows)
    }

    /// A page of istiod's debug interface.
    ///
    /// # Errors
    /// It does not answer 200.
    pub fn istiod(&self, path: &str) -> Result<String> {
        self.page("istiod", 8080, path)
    }

    fn page(&self, pod: &str, port: u16, path: &str) -> Result<String> {
        // A proxy without IPv4 serves it on IPv6's loopback address; istiod is the same everywhere.
        let v6 = self.network.ipv6_only() && pod != "istiod";
        let host = if v6 { "[::1]" } else { "127.0.0.1" };
        let request = Request::get(pod, &format!("http://{host}:{port}{path}"));
        let answer = self.ask(&request)?;
        ensure!(answer.status == 200, "{pod} {path}: {answer:?}");
        Ok(answer.body)
    }

    /// What istiod believes each proxy to have, where it differs from what was sent.
    ///
    /// # Errors
    /// istiod's debug page is not what it should be.
    pub fn unacknowledged(&self) -> Result<Vec<String>> {
        let page: Value = serde_json::from_str(&self.istiod("/debug/syncz")?)?;
        let proxies = page.as_array().context("syncz: not a list")?;
        let mut missing = Vec::new();
        if proxies.len() < PROXIED.len() {
            missing.push(format!("{} proxies of {} are connected", proxies.len(), PROXIED.len()));
        }
        for proxy in proxies {
            // One that has just come has asked for nothing yet.
            let Some(resources) = proxy["resources"].as_object() else {
                missing.push(format!("{} resources", proxy["proxy"]));
                continue;
            };
            for (kind, state) in resources {
                if state["sent"] != state["acked"] {
                    missing.push(format!("{} {kind}: {state}", proxy["proxy"]));
                }
            }
        }
        Ok(missing)
    }

    /// Puts `resources` in the place of those of the last push and waits until every proxy serves them.
    ///
    /// # Errors
    /// They do not arrive in time.
    pub fn push(&mut self, resources: &str) -> Result<()> {
        let name = self.write(resources)?;
        self.arrived(&name)
    }

    /// Puts `resources` in the place of those of the last push, for an istiod that may not run; gives the push's name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, resources: &str) -> Result<String> {
        self.pushes += 1;
        let name = format!("push-{}", self.pushes);
        self.replace("config/pushed.yaml", &format!("{}\n---\n{resources}", marker(&name)))?;
        Ok(name)
    }

    /// Writes a file that istiod watches, at once and whole.
    fn replace(&self, file: &str, content: &str) -> Result<()> {
        let temporary = self.dir.path().join("file.new");
        std::fs::write(&temporary, content)?;
        Ok(std::fs::rename(&temporary, self.dir.path().join(file))?)
    }

    /// Waits until every proxy serves a push.
    ///
    /// # Errors
    /// Some do not in time.
    pub fn arrived(&self, name: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let missing = self.behind(name)?;
            if missing.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{name} did not arrive: {missing:?}\n{}", self.logs());
            std::thread::sleep(PAUSE);
        }
    }

    /// Who does not serve the marker yet.
    fn behind(&self, name: &str) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for pod in PROXIED.iter().filter(|pod| **pod != "gateway-v1") {
            if self.ask(&Request::get(pod, MARKER))?.body != name {
                missing.push((*pod).to_owned());
            }
        }
        let mut gateway = Request::get("legacy-v1", "http://10.77.0.20/");
        gateway.headers = BTreeMap::from([("host".to_owned(), "marker.mesh".to_owned())]);
        if self.ask(&gateway)?.body != name {
            missing.push("gateway-v1".to_owned());
        }
        missing.extend(self.unacknowledged()?);
        Ok(missing)
    }

    /// Where the mesh keeps a pod's files.
    #[must_use]
    pub fn folder(&self, pod: &str) -> PathBuf {
        self.dir.path().join(pod)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(kept) = std::env::var_os("MESH_KEEP") {
            let _ = Command::new("cp").arg("-r").arg(self.dir.path()).arg(kept).status();
        }
        let _ = self.control(&["down"]);
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A service that answers with the push's name: who serves it has all that was sent before.
fn marker(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {{name: marker, namespace: default}}\n\
         spec: {{hosts: [marker.mesh], addresses: [10.77.0.1], ports: [{{number: 79, name: http, protocol: HTTP}}], resolution: NONE}}\n\
         ---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: Gateway\n\
         metadata: {{name: marker, namespace: default}}\n\
         spec:\n  selector: {{app: gateway}}\n  servers:\n  - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [marker.mesh]}}\n\
         ---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{name: marker, namespace: default}}\n\
         spec:\n  hosts: [marker.mesh]\n  gateways: [mesh, marker]\n  http:\n  - directResponse: {{status: 200, body: {{string: {name}}}}}\n"
    )
}
