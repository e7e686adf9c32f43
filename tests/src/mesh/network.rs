//! The network of a sample mesh: which addresses its pods and services have, and how their traffic comes to the proxies.
//!
//! Rows and tests are written in IPv4 (10.77.0.N for pods, 10.78.0.N for services); [`ipv6`] says the same in IPv6.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;

/// Cluster addresses of the sample mesh's services, as its DNS would give them.
const SERVICES: [(&str, &str); 5] = [
    ("reviews", "10.78.0.1"),
    ("ratings", "10.78.0.2"),
    ("details", "10.78.0.3"),
    ("mongodb", "10.78.0.4"),
    ("legacy", "10.78.0.5"),
];

/// Addresses of the sample mesh's pods.
const PODS: [(&str, &str); 9] = [
    ("client-v1", "10.77.0.10"),
    ("reviews-v1", "10.77.0.11"),
    ("reviews-v2", "10.77.0.12"),
    ("reviews-v3", "10.77.0.13"),
    ("ratings-v1", "10.77.0.14"),
    ("details-v1", "10.77.0.15"),
    ("mongodb-v1", "10.77.0.16"),
    ("gateway-v1", "10.77.0.20"),
    ("legacy-v1", "10.77.0.30"),
];

/// What addresses pods and services have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Families {
    #[default]
    Ipv4,
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

/// How traffic comes to the proxies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Interception {
    #[default]
    Redirect,
    Tproxy,
}

/// Both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Network {
    pub families: Families,
    pub interception: Interception,
}

impl Network {
    /// The arguments of `mesh.py up` for it.
    #[must_use]
    pub fn arguments(self) -> [&'static str; 4] {
        let families = match self.families {
            Families::Ipv4 => "ipv4",
            Families::Ipv6 => "ipv6",
            Families::Dual => "dual",
        };
        ["--family", families, "--interception", self.mode()]
    }

    /// Istio's word for the interception, as redirect rules are asked for.
    #[must_use]
    pub fn mode(self) -> &'static str {
        match self.interception {
            Interception::Redirect => "REDIRECT",
            Interception::Tproxy => "TPROXY",
        }
    }

    /// Whether there is no IPv4 but on loopback.
    #[must_use]
    pub fn ipv6_only(self) -> bool {
        self.families == Families::Ipv6
    }

    /// Whom an application behind a proxy sees as its peer, of a connection to its own address from the pod `from`.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn peer(self, from: &str, over_ipv6: bool) -> Result<String> {
        Ok(match (self.interception, over_ipv6) {
            (Interception::Redirect, false) => "127.0.0.6".to_owned(),
            (Interception::Redirect, true) => "::6".to_owned(),
            (Interception::Tproxy, false) => pod(from)?.to_owned(),
            (Interception::Tproxy, true) => ipv6(pod(from)?).replace(['[', ']'], ""),
        })
    }

    /// User and group that rules take for the proxy's.
    #[must_use]
    pub fn proxy_user(self) -> (u32, u32) {
        match self.interception {
            Interception::Redirect => (1337, 1337),
            Interception::Tproxy => (0, 1337),
        }
    }
}

/// The IPv4 address of a pod.
///
/// # Errors
/// There is no such pod.
pub fn pod(name: &str) -> Result<&'static str> {
    let found = PODS.iter().find(|(pod, _)| *pod == name);
    Ok(found.with_context(|| name.to_owned())?.1)
}

/// The IPv4 address of a service by its short or full name; any other host is its own.
pub(super) fn resolve(host: &str) -> &str {
    let short = host.split('.').next().unwrap_or(host);
    SERVICES.iter().find(|(name, _)| *name == short).map_or(host, |(_, ip)| ip)
}

/// A text with the IPv6 addresses of the sample mesh in the place of the IPv4 ones, as a URL has them.
#[must_use]
pub fn ipv6(text: &str) -> String {
    static ADDRESS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"10\.(77|78)\.0\.(\d+)").ok());
    ADDRESS.as_ref().map_or_else(
        || text.to_owned(),
        |address| address.replace_all(text, "[fd$1::$2]").into_owned(),
    )
}
