//! Statistics as text, and which of them a case changed.

use std::collections::BTreeMap;

use regex::Regex;

/// Statistics that are not compared, each with its reason. Patterns match whole names.
pub const IGNORED: &[(&str, &str)] = &[
    (r"server\..*", "process facts: memory, uptime, watchdog"),
    (
        r"(listener_manager|cluster_manager|main_thread|workers?|thread_local_cluster_manager)\..*",
        "process facts, not caused by requests",
    ),
    (
        r"(runtime|filesystem|access_logs|dns|envoy|vhds)\..*",
        "not caused by requests, or timing of flushes",
    ),
    (r"http\.admin\..*|listener\.admin\..*", "the harness itself asks the admin port"),
    (r".*\.worker_\d+\..*", "per-worker names depend on thread ids"),
    (r".*\.dispatcher\..*", "event loop timing"),
    (
        r"cluster\..*\.(default\.)?total_match_count",
        "lazily filled by Envoy's thread-local cluster",
    ),
    (r".*\.upstream_cx_length_ms|.*\.downstream_cx_length_ms", "durations"),
    (r"cluster\..*\.update_.*", "DNS refreshes come when they come"),
    (
        r"http\..*\.downstream_cx_delayed_close_timeout",
        "after the last response Outrigger sends FIN at once and closes when the peer does; Envoy \
         waits for its timer",
    ),
    (
        r"lua\..*|http\.[^.]*\.lua\..*|wasm.*",
        "Envoy counts scripts and modules; their stand-ins have none",
    ),
    (
        r"http\.async-client\..*|cluster\.side\..*",
        "Lua asks through a cluster, its stand-ins through a socket of their own",
    ),
    (r".*buffered", "bytes at the moment of the scrape"),
    (r".*\.(downstream|upstream)_flow_control_.*", "depends on how the kernel cuts reads"),
    (
        r"(.*\.)?http2\.(outbound_(control_)?frames_active|deferred_.*|streams_active|pending_send_bytes)",
        "frame queues of the codec",
    ),
];

/// Byte counters: compared only for having changed or not, unless the area says otherwise.
const BYTES: &str = r".*_bytes_(total|buffered)|.*_bytes";

/// One scrape.
pub type Snapshot = BTreeMap<String, i64>;

/// What to leave out, compiled.
#[derive(Debug)]
pub struct Filter {
    ignored: Regex,
    bytes: Regex,
}

impl Filter {
    /// From the tables above.
    ///
    /// # Errors
    /// When a pattern of the table is malformed.
    pub fn new() -> anyhow::Result<Self> {
        let all: Vec<_> = IGNORED.iter().map(|(pattern, _)| *pattern).collect();
        Ok(Self {
            ignored: Regex::new(&format!("^(?:{})$", all.join("|")))?,
            bytes: Regex::new(&format!("^(?:{BYTES})$"))?,
        })
    }

    /// Whether a name is compared.
    #[must_use]
    pub fn compares(&self, name: &str) -> bool {
        !self.ignored.is_match(name)
    }

    /// The changes between two scrapes, sorted by name.
    #[must_use]
    pub fn diff(&self, before: &Snapshot, after: &Snapshot, exact_bytes: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, value) in after {
            let change = value - before.get(name).unwrap_or(&0);
            if change == 0 || !self.compares(name) {
                continue;
            }
            if !exact_bytes && self.bytes.is_match(name) {
                lines.push(format!("stat {name} changed"));
            } else {
                lines.push(format!("stat {name} {change:+}"));
            }
        }
        lines
    }
}

/// Reads `/stats` text; histograms and text readouts are left out.
#[must_use]
pub fn parse(text: &str) -> Snapshot {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// Names of all statistics, histograms and text readouts included.
#[must_use]
pub fn names(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect()
}
