//! CDS: clusters by name, each with the version in force and the one that still warms.
//!
//! A version is put in force once its endpoints, its names and its secrets are there, or have not come in time; until
//! then the one before serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::secrets::{self, SecretEntries};
use super::version::{Problem, Raw, Refused, next_serial};
use crate::cluster::SharedCluster;
use crate::cluster::dns::DnsDiscovery;
use crate::config::cluster::{Cluster, Discovery};
use crate::config::source::Source;
use crate::tls::SecretUse;

/// How long a cluster waits for the first answers of DNS.
const DNS_TIMEOUT: Duration = Duration::from_secs(15);

/// A compiled version of a cluster.
#[derive(Debug)]
pub struct ClusterVersion {
    pub raw: Raw,
    pub serial: u64,
    pub shared: Arc<SharedCluster>,
    pub dns: Option<DnsDiscovery>,
    /// Something has come for its endpoints.
    pub has_endpoints: bool,
    /// Fetches that take no longer than this have timed out.
    pub waited: Option<Duration>,
}

impl ClusterVersion {
    pub fn new(raw: Raw, shared: Arc<SharedCluster>) -> Self {
        let serial = next_serial();
        Self { raw, serial, shared, dns: None, has_endpoints: false, waited: None }
    }

    pub fn config(&self) -> &Arc<Cluster> {
        &self.shared.config
    }

    /// Source and name of its endpoints.
    pub fn endpoints_key(&self) -> Option<(Source, Arc<str>)> {
        endpoints_key(self.config())
    }

    /// The times after which it no longer waits for something.
    pub fn timeouts(&self) -> Vec<Duration> {
        let mut all: Vec<_> = secrets::timeouts(self.slots()).collect();
        match &self.config().discovery {
            Discovery::Eds(eds) => all.extend(eds.source.initial_fetch_timeout),
            Discovery::Dns(_) => all.push(DNS_TIMEOUT),
            Discovery::Static | Discovery::OriginalDst(_) => {}
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The secrets of its transport sockets.
    pub fn slots(&self) -> impl Iterator<Item = &SecretUse> {
        self.config().transport.contexts().flat_map(|context| context.slots())
    }

    /// Whether it may be put in force.
    pub fn is_warm(&self, secrets: &SecretEntries) -> bool {
        self.has_hosts() && secrets.are_answered(self.slots(), self.waited)
    }

    /// Its hosts are known, or nobody waits for them any longer.
    fn has_hosts(&self) -> bool {
        let in_time = |timeout: Option<Duration>| {
            timeout.is_none_or(|timeout| self.waited.is_none_or(|waited| waited < timeout))
        };
        match &self.config().discovery {
            Discovery::Eds(eds) => self.has_endpoints || !in_time(eds.source.initial_fetch_timeout),
            Discovery::Dns(_) => {
                self.dns.as_ref().is_none_or(DnsDiscovery::is_initialised)
                    || !in_time(Some(DNS_TIMEOUT))
            }
            Discovery::Static | Discovery::OriginalDst(_) => true,
        }
    }
}

/// Source and name of a cluster's endpoints.
pub fn endpoints_key(config: &Cluster) -> Option<(Source, Arc<str>)> {
    match &config.discovery {
        Discovery::Eds(eds) => Some((eds.source.source.clone(), eds.service_name.clone())),
        Discovery::Static | Discovery::Dns(_) | Discovery::OriginalDst(_) => None,
    }
}

/// What is known of one cluster.
#[derive(Debug, Default)]
pub struct ClusterEntry {
    /// From the bootstrap: no update changes it.
    pub is_static: bool,
    /// Its place in the order of all, until it is removed; 0 for one that was only refused.
    pub number: u64,
    pub active: Option<ClusterVersion>,
    pub warming: Option<ClusterVersion>,
    pub refused: Option<Refused>,
    /// Versions that streams may still hold: their picks see new endpoints too.
    earlier: Vec<Weak<SharedCluster>>,
}

/// What is to be done with the bytes of an update.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are those that are in force, or warming, or are not to be taken.
    Nothing,
    /// They are new, or were refused before: what a file holds changes without them.
    Compile,
}

impl ClusterEntry {
    /// Looks at the bytes of an update.
    pub fn judge(&self, raw: &Raw) -> Verdict {
        let newest = self.warming.as_ref().or(self.active.as_ref());
        if self.is_static || newest.is_some_and(|newest| newest.raw.hash == raw.hash) {
            return Verdict::Nothing;
        }
        Verdict::Compile
    }

    pub fn refuse(&mut self, raw: Raw, problems: Vec<Problem>) -> &Refused {
        let refused = Refused::new(raw, self.refused.as_ref(), problems);
        self.refused.insert(refused)
    }

    /// All versions, in force, warming or still held by streams.
    pub fn versions(&self) -> impl Iterator<Item = Arc<SharedCluster>> + '_ {
        let current = self.active.iter().chain(&self.warming).map(|version| version.shared.clone());
        current.chain(self.earlier.iter().filter_map(Weak::upgrade))
    }

    /// Puts the warming version in force; gives the one before.
    pub fn promote(&mut self) -> Option<ClusterVersion> {
        let before = std::mem::replace(&mut self.active, self.warming.take());
        self.earlier.retain(|one| one.strong_count() > 0);
        self.earlier.extend(before.as_ref().map(|before| Arc::downgrade(&before.shared)));
        before
    }
}

/// All clusters.
#[derive(Debug, Default)]
pub struct Clusters {
    pub entries: BTreeMap<Arc<str>, ClusterEntry>,
    /// How many are in force, and how many warm.
    pub active: usize,
    pub warming: usize,
    /// Static ones first, in order; then as they came.
    pub order: BTreeMap<u64, Arc<str>>,
    pub last_number: u64,
}

impl Clusters {
    /// Whether a route may name the cluster.
    pub fn knows(&self, name: &str) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|entry| entry.active.is_some() || entry.warming.is_some())
    }

    /// The names of clusters that came by an update and are in force or warming.
    pub fn dynamic_names(&self) -> Vec<Arc<str>> {
        let dynamic = self.entries.iter().filter(|(_, entry)| !entry.is_static);
        dynamic.map(|(name, _)| name.clone()).collect()
    }
}
