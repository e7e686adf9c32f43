//! Compiled filter chains and the tree that finds the chain of a connection. From pb `FilterChain`.
//!
//! The tree has Envoy's levels in Envoy's fixed order (pb `FilterChainMatch`): destination port, destination
//! IP, server name, transport protocol, application protocol, directly connected IP, source type, source IP,
//! source port. At each level the most specific entry wins and the search never goes back: a connection that
//! fails below it gets the default chain.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;

use super::cidr::Cidr;
use super::hcm::HttpConnectionManager;
use super::tcp_proxy::TcpProxy;
use crate::tls::ServerContext;

/// One chain: transport socket (plain), network filters, one terminal filter.
#[derive(Debug)]
pub struct FilterChain {
    /// Unique in the process; a later version of its listener keeps it for a chain that stays.
    pub id: u64,
    /// Of its match, its transport socket and its network filters without the connection manager's body: where these are
    /// the same, a later version's chain is the same, and keeps its connections.
    pub identity: u64,
    pub name: Arc<str>,
    /// `None`: plain.
    pub transport: Option<Arc<ServerContext>>,
    pub filters: Vec<NetworkFilter>,
    pub terminal: Terminal,
    /// Time for the transport socket's handshake.
    pub transport_socket_connect_timeout: Option<Duration>,
}

impl FilterChain {
    /// An `id` that no other chain has had.
    pub fn next_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

/// A network filter before the terminal one.
#[derive(Debug)]
pub enum NetworkFilter {
    Rbac(Arc<crate::filter_chain::network_rbac::NetworkRbac>),
}

/// What a connection ends in.
#[derive(Debug)]
pub enum Terminal {
    TcpProxy(Arc<TcpProxy>),
    /// Each new stream takes the newest one: a change of routes or filters closes no connection.
    Http(Arc<ArcSwap<HttpConnectionManager>>),
    /// A chain without filters: the connection is closed at once, as in Envoy.
    Close,
}

/// pb `FilterChainMatch.source_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceType {
    Any,
    SameIpOrLoopback,
    External,
}

/// The criteria of one chain; empty means any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub destination: Vec<Cidr>,
    /// Lower case; `*.x` for a wildcard.
    pub server_names: Vec<String>,
    pub transport_protocol: String,
    pub application_protocols: Vec<String>,
    pub direct_source: Vec<Cidr>,
    pub source_type: SourceType,
    pub source: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

impl Default for ChainMatch {
    fn default() -> Self {
        Self {
            destination_port: None,
            destination: Vec::new(),
            server_names: Vec::new(),
            transport_protocol: String::new(),
            application_protocols: Vec::new(),
            direct_source: Vec::new(),
            source_type: SourceType::Any,
            source: Vec::new(),
            source_ports: Vec::new(),
        }
    }
}

/// What the listener filters found out about a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionFacts<'a> {
    /// `None` for unix sockets, which match only chains without IP criteria.
    pub destination: Option<(IpAddr, u16)>,
    pub source: Option<(IpAddr, u16)>,
    /// The socket's peer, whatever a PROXY header says.
    pub direct_source: Option<IpAddr>,
    /// Lower case; empty when unknown.
    pub server_name: &'a str,
    /// `raw_buffer` or `tls`.
    pub transport_protocol: &'a str,
    pub application_protocols: &'a [&'a str],
}

type ByName<T> = BTreeMap<String, T>;
type ByPrefix<T> = Vec<(Cidr, T)>;
type SourcePorts = BTreeMap<Option<u16>, u32>;
type SourceIps = ByPrefix<SourcePorts>;
type SourceTypes = BTreeMap<SourceType, SourceIps>;
type DirectSources = ByPrefix<SourceTypes>;
type Alpns = ByName<DirectSources>;
type Transports = ByName<Alpns>;
type ServerNames = ByName<Transports>;
type DestinationIps = ByPrefix<ServerNames>;

/// All chains of a listener.
#[derive(Debug, Default)]
pub struct FilterChains {
    chains: Vec<Arc<FilterChain>>,
    default: Option<Arc<FilterChain>>,
    ports: BTreeMap<Option<u16>, DestinationIps>,
}

/// What a listener's earlier version leaves behind.
#[derive(Debug)]
pub struct TakenOver {
    /// Numbers of the chains that no longer exist.
    pub gone: Vec<u64>,
    /// Connection managers that were replaced.
    pub retired: Vec<Arc<HttpConnectionManager>>,
}

/// Two chains of a listener with equal criteria.
#[derive(Debug, thiserror::Error)]
#[error("filter chain '{second}' has the same matching rules defined as '{first}'")]
pub struct SameMatch {
    pub first: Arc<str>,
    pub second: Arc<str>,
}

impl FilterChains {
    /// All chains, the default one last.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(self.default.as_ref())
    }

    pub fn set_default(&mut self, chain: Arc<FilterChain>) {
        self.default = Some(chain);
    }

    /// Puts these chains in the place of a listener's earlier ones. A chain that is the same takes over the other's number
    /// and hands its connections the newest connection manager; its TLS context stays, and with it the sessions to resume,
    /// where what it counts stays, too (`same_scope`). What the others leave behind is given back.
    pub fn take_over(&mut self, before: &Self, same_scope: bool) -> TakenOver {
        let mut retired = Vec::new();
        let mut left: FxHashMap<u64, &FilterChain> =
            before.iter().map(|chain| (chain.identity, &**chain)).collect();
        for chain in self.chains.iter_mut().chain(self.default.as_mut()) {
            // Nobody else has a chain of a listener that was not yet published.
            let Some(chain) = Arc::get_mut(chain) else { continue };
            let Some(same) = left.remove(&chain.identity) else { continue };
            chain.id = same.id;
            if let (true, Some(new), Some(old)) =
                (same_scope, &mut chain.transport, &same.transport)
                && old.does_the_same(new)
            {
                *new = old.clone();
            }
            if let (Terminal::Http(new), Terminal::Http(old)) =
                (&mut chain.terminal, &same.terminal)
            {
                retired.push(old.swap(new.load_full()));
                *new = old.clone();
            }
        }
        TakenOver { gone: left.into_values().map(|chain| chain.id).collect(), retired }
    }

    /// Adds a chain.
    ///
    /// # Errors
    /// One of its combinations of criteria belongs to an earlier chain.
    pub fn add(&mut self, criteria: &ChainMatch, chain: Arc<FilterChain>) -> Result<(), SameMatch> {
        let index = self.chains.len() as u32;
        self.chains.push(chain);
        let destination = self.ports.entry(criteria.destination_port).or_default();
        let mut clash = None;
        for_prefix(destination, &criteria.destination, |names| {
            for_name(names, &criteria.server_names, |transports| {
                let alpns = transports.entry(criteria.transport_protocol.clone()).or_default();
                for_name(alpns, &criteria.application_protocols, |direct| {
                    for_prefix(direct, &criteria.direct_source, |types| {
                        let sources = types.entry(criteria.source_type).or_default();
                        for_prefix(sources, &criteria.source, |ports| {
                            insert_ports(ports, &criteria.source_ports, index, &mut clash);
                        });
                    });
                });
            });
        });
        match clash {
            Some(first) => Err(SameMatch {
                first: self.chains[first as usize].name.clone(),
                second: self.chains[index as usize].name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The chain of a connection, else the default one, else `None`: the connection is closed and counted as
    /// `no_filter_chain_match`.
    pub fn find(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        let port = facts.destination.map(|(_, port)| port);
        let destinations = match port.and_then(|p| self.ports.get(&Some(p))) {
            Some(exact) => Some(exact),
            None => self.ports.get(&None),
        };
        destinations
            .and_then(|d| find_in(d, facts))
            .map(|index| &self.chains[index as usize])
            .or(self.default.as_ref())
    }
}

fn for_prefix<T: Default>(level: &mut ByPrefix<T>, wanted: &[Cidr], mut each: impl FnMut(&mut T)) {
    let any = [Cidr::ANY];
    for cidr in if wanted.is_empty() { &any } else { wanted } {
        let at = match level.iter().position(|(have, _)| have == cidr) {
            Some(at) => at,
            None => {
                // Longest prefix first, so that the first that contains an address is the most specific.
                let at = level.partition_point(|(have, _)| have.len() >= cidr.len());
                level.insert(at, (*cidr, T::default()));
                at
            }
        };
        each(&mut level[at].1);
    }
}

fn for_name<T: Default>(level: &mut ByName<T>, wanted: &[String], mut each: impl FnMut(&mut T)) {
    if wanted.is_empty() {
        return each(level.entry(String::new()).or_default());
    }
    for name in wanted {
        each(level.entry(name.clone()).or_default());
    }
}

fn insert_ports(ports: &mut SourcePorts, wanted: &[u16], index: u32, clash: &mut Option<u32>) {
    let mut insert = |port| {
        let have = *ports.entry(port).or_insert(index);
        if have != index {
            *clash = Some(have);
        }
    };
    if wanted.is_empty() {
        return insert(None);
    }
    for port in wanted {
        insert(Some(*port));
    }
}

fn by_prefix<T>(level: &ByPrefix<T>, ip: Option<IpAddr>) -> Option<&T> {
    level
        .iter()
        .find(|(cidr, _)| ip.map_or(cidr.is_any(), |ip| cidr.contains(ip)))
        .map(|(_, below)| below)
}

fn find_in(destinations: &DestinationIps, facts: &ConnectionFacts<'_>) -> Option<u32> {
    let names = by_prefix(destinations, facts.destination.map(|(ip, _)| ip))?;
    let transports = by_server_name(names, facts.server_name)?;
    let alpns = transports.get(facts.transport_protocol).or_else(|| transports.get(""))?;
    let direct = facts
        .application_protocols
        .iter()
        .find_map(|alpn| alpns.get(*alpn))
        .or_else(|| alpns.get(""))?;
    let types = by_prefix(direct, facts.direct_source)?;
    let sources = by_source_type(types, facts)?;
    let ports = by_prefix(sources, facts.source.map(|(ip, _)| ip))?;
    let port = facts.source.map(|(_, port)| port);
    ports.get(&port).or_else(|| ports.get(&None)).copied()
}

fn by_server_name<'a>(names: &'a ServerNames, server_name: &str) -> Option<&'a Transports> {
    if !server_name.is_empty() {
        if let Some(exact) = names.get(server_name) {
            return Some(exact);
        }
        let mut rest = server_name;
        while let Some(dot) = rest.get(1..).and_then(|r| r.find('.')) {
            rest = &rest[dot + 1..];
            if let Some(wildcard) = names.get(&format!("*{rest}")) {
                return Some(wildcard);
            }
        }
    }
    names.get("")
}

fn by_source_type<'a>(
    types: &'a SourceTypes,
    facts: &ConnectionFacts<'_>,
) -> Option<&'a SourceIps> {
    let local = types.get(&SourceType::SameIpOrLoopback);
    let external = types.get(&SourceType::External);
    let is_local = match (facts.source, facts.destination) {
        (Some((source, _)), Some((destination, _))) => {
            source == destination || source.is_loopback()
        }
        // Both ends of a unix socket are on this host.
        _ => true,
    };
    if is_local { local } else { external }.or_else(|| types.get(&SourceType::Any))
}

#[cfg(test)]
#[path = "filter_chain_tests.rs"]
mod tests;
