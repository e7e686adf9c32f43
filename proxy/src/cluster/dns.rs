//! DNS discovery of `STRICT_DNS` and `LOGICAL_DNS` clusters, on the control thread.
//!
//! Each endpoint's name is asked for again at its refresh rate, or when its records expire (`respect_dns_ttl`); every
//! change is a new host set. A failed query keeps the hosts that are there; an answer without addresses removes them, but
//! for a cluster of a single endpoint (`LOGICAL_DNS`), which stays at the last answer's first address.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, NameServerConfigGroup, ResolverConfig, ResolverOpts,
};
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::proto::ProtoErrorKind;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::xfer::Protocol;
use hickory_resolver::{ResolveError, ResolveErrorKind, system_conf};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::SharedCluster;
use super::host::{HostSet, HostSpec};
use crate::config::cluster::{Discovery, DnsLookupFamily, DnsOptions};
use crate::config::core::ConfigAddress;
use crate::load_balancer::Rng;
use crate::stats::names::{ClusterEndpointStat, ClusterUpdateStat};
use crate::stream_info::Address;

/// What makes two clusters share a resolver.
type ResolverKey = (Box<[SocketAddr]>, bool, u8);

/// Resolvers by their settings. `!Send`: belongs to the control thread.
#[derive(Default)]
pub struct Resolvers {
    known: RefCell<HashMap<ResolverKey, Rc<TokioResolver>>>,
}

impl fmt::Debug for Resolvers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolvers({})", self.known.borrow().len())
    }
}

impl Resolvers {
    fn get(&self, options: &DnsOptions) -> Rc<TokioResolver> {
        let key = (options.resolvers.clone(), options.use_tcp, options.lookup_family as u8);
        self.known.borrow_mut().entry(key).or_insert_with(|| Rc::new(make(options))).clone()
    }
}

fn make(options: &DnsOptions) -> TokioResolver {
    // Without a readable resolv.conf there is no name server and every query fails, as it should be reported.
    let (system, mut opts) =
        system_conf::read_system_conf().unwrap_or((ResolverConfig::new(), ResolverOpts::default()));
    let servers = if options.resolvers.is_empty() {
        system.name_servers().to_vec()
    } else {
        let both = [Protocol::Udp, Protocol::Tcp];
        let servers = options.resolvers.iter();
        servers.flat_map(|at| both.map(|protocol| NameServerConfig::new(*at, protocol))).collect()
    };
    let servers: Vec<_> = servers
        .into_iter()
        .filter(|server| !options.use_tcp || server.protocol == Protocol::Tcp)
        .collect();
    let config = ResolverConfig::from_parts(
        system.domain().cloned(),
        system.search().to_vec(),
        NameServerConfigGroup::from(servers),
    );
    // The refresh rate says how often to ask; a cache would answer with what is to be refreshed.
    opts.cache_size = 0;
    opts.ip_strategy = match options.lookup_family {
        DnsLookupFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsLookupFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsLookupFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsLookupFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsLookupFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    let provider = TokioConnectionProvider::default();
    TokioResolver::builder_with_config(config, provider).with_options(opts).build()
}

/// The running discovery of one cluster; dropping it ends it.
#[derive(Debug)]
pub struct DnsDiscovery {
    tasks: Vec<JoinHandle<()>>,
    initialised: watch::Receiver<bool>,
}

impl DnsDiscovery {
    /// Starts the discovery of a DNS cluster on the current `LocalSet`; `None` for other types. `seed` starts
    /// the random numbers of jitter and back-off.
    /// `changed` is called after each new host set.
    pub fn start(
        cluster: &Arc<SharedCluster>,
        resolvers: &Resolvers,
        seed: u64,
        changed: impl Fn() + 'static,
    ) -> Option<Self> {
        let Discovery::Dns(options) = &cluster.config.discovery else { return None };
        let count = cluster.config.load_assignment.endpoints().count();
        // As in Envoy, a cluster without endpoints is initialised at once.
        let (done, initialised) = watch::channel(count == 0);
        let state = Rc::new(State {
            cluster: cluster.clone(),
            resolver: resolvers.get(options),
            found: RefCell::new(vec![Vec::new(); count]),
            rng: RefCell::new(Rng::new(seed)),
            failure_interval: Cell::new(options.failure_refresh_rate.0),
            done,
            changed: Box::new(changed),
        });
        let tasks = (0..count).map(|target| {
            let state = state.clone();
            tokio::task::spawn_local(async move { state.keep_resolving(target).await })
        });
        Some(Self { tasks: tasks.collect(), initialised })
    }

    /// Whether the first answer, good or bad, has come.
    pub fn is_initialised(&self) -> bool {
        *self.initialised.borrow()
    }

    /// As `initialised`, for who does not hold the discovery; ends with it too.
    pub fn wait(&self) -> impl Future<Output = ()> + 'static {
        let mut initialised = self.initialised.clone();
        async move {
            let _ = initialised.wait_for(|done| *done).await;
        }
    }

    /// Waits for the first answer, good or bad. Cancel-safe.
    pub async fn initialised(&mut self) {
        // The sender lives as long as the tasks; without tasks the value is true from the start.
        let _ = self.initialised.wait_for(|done| *done).await;
    }
}

impl Drop for DnsDiscovery {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct State {
    cluster: Arc<SharedCluster>,
    resolver: Rc<TokioResolver>,
    /// Addresses by target: by endpoint, in configuration order.
    found: RefCell<Vec<Vec<SocketAddr>>>,
    rng: RefCell<Rng>,
    /// Base of the next back-off.
    failure_interval: Cell<Duration>,
    done: watch::Sender<bool>,
    changed: Box<dyn Fn()>,
}

/// Addresses of a name and the least time to live on the way to them.
struct Answer {
    addresses: Vec<SocketAddr>,
    ttl: Duration,
}

impl State {
    fn options(&self) -> &DnsOptions {
        match &self.cluster.config.discovery {
            Discovery::Dns(options) => options,
            Discovery::Static | Discovery::Eds(_) | Discovery::OriginalDst(_) => {
                unreachable!("discovery runs for DNS clusters only")
            }
        }
    }

    async fn keep_resolving(&self, target: usize) {
        let config = self.cluster.config.clone();
        let Some((_, endpoint)) = config.load_assignment.endpoints().nth(target) else { return };
        let (host, port) = match &endpoint.address {
            ConfigAddress::Dns { host, port } => (host.to_string(), *port),
            ConfigAddress::Ip { addr, .. } => (addr.ip().to_string(), addr.port()),
            ConfigAddress::Pipe { .. } => return,
        };
        loop {
            let stats = self.cluster.update_stats();
            stats.inc(ClusterUpdateStat::UpdateAttempt);
            let wait = match self.resolve(&host, port).await {
                Ok(answer) if answer.addresses.is_empty() && self.options().single_endpoint => {
                    stats.inc(ClusterUpdateStat::UpdateFailure);
                    self.next_failure_interval()
                }
                Ok(answer) => {
                    stats.inc(ClusterUpdateStat::UpdateSuccess);
                    self.succeeded(target, answer)
                }
                Err(error) => {
                    stats.inc(ClusterUpdateStat::UpdateFailure);
                    tracing::debug!(cluster = %config.name, host, %error, "DNS query failed");
                    self.next_failure_interval()
                }
            };
            self.done.send_replace(true);
            tokio::time::sleep(wait).await;
        }
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Answer, ResolveError> {
        match self.resolver.lookup_ip(host).await {
            Ok(lookup) => {
                let mut seen = HashSet::new();
                let mut addresses: Vec<_> = lookup.iter().filter(|ip| seen.insert(*ip)).collect();
                if self.options().single_endpoint {
                    // Of two families asked for at once, the one that was quicker would come first, now this, now that.
                    if self.options().lookup_family == DnsLookupFamily::All {
                        addresses.sort_by_key(IpAddr::is_ipv6);
                    }
                    addresses.truncate(1);
                }
                let ttls = lookup.as_lookup().records().iter().map(|record| record.ttl());
                Ok(Answer {
                    addresses: addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
                    ttl: Duration::from_secs(ttls.min().unwrap_or(0).into()),
                })
            }
            Err(error) if is_empty_answer(&error) => {
                Ok(Answer { addresses: Vec::new(), ttl: Duration::ZERO })
            }
            Err(error) => Err(error),
        }
    }

    /// Takes an answer; the time until the next query.
    fn succeeded(&self, target: usize, answer: Answer) -> Duration {
        let options = self.options();
        self.failure_interval.set(options.failure_refresh_rate.0);
        let changed = {
            let mut found = self.found.borrow_mut();
            let before: HashSet<_> = found[target].iter().collect();
            let changed = before != answer.addresses.iter().collect();
            if changed {
                found[target] = answer.addresses.clone();
            }
            changed
        };
        // Envoy chooses a transport socket for each address of each answer, and counts that.
        let stats = self.cluster.scope.shared::<ClusterEndpointStat>();
        stats.add(ClusterEndpointStat::DefaultTotalMatchCount, answer.addresses.len() as u64);
        if changed {
            self.publish();
        } else {
            self.cluster.update_stats().inc(ClusterUpdateStat::UpdateNoRebuild);
        }
        let has_ttl = options.respect_ttl && !answer.addresses.is_empty() && !answer.ttl.is_zero();
        let ttl = answer.ttl.max(options.min_refresh_rate);
        let rate = if has_ttl { ttl } else { options.refresh_rate };
        rate + self.random_below(options.jitter)
    }

    fn publish(&self) {
        let config = &self.cluster.config;
        let found = self.found.borrow();
        let targets = config.load_assignment.endpoints().zip(found.iter());
        let specs = targets.flat_map(|((locality, endpoint), addresses)| {
            let name = match &endpoint.address {
                ConfigAddress::Dns { host, .. } => Some(host.clone()),
                ConfigAddress::Ip { addr, .. } => Some(Arc::from(addr.ip().to_string())),
                ConfigAddress::Pipe { .. } => None,
            };
            let hostname = endpoint.hostname.clone().or(name);
            addresses.iter().map(move |address| HostSpec {
                address: Address::Ip(*address),
                hostname: hostname.clone(),
                locality: locality.locality.clone(),
                metadata: endpoint.metadata.clone(),
                priority: locality.priority,
                weight: endpoint.weight,
                health: endpoint.health,
            })
        });
        let old = self.cluster.hosts();
        let (set, change) =
            HostSet::build(config, &config.load_assignment, Some(&old), specs.collect());
        self.cluster.publish(set, change);
        (self.changed)();
        if self.options().single_endpoint {
            return;
        }
        let stats = self.cluster.scope.shared::<ClusterEndpointStat>();
        let heaviest = self.cluster.hosts().hosts.iter().map(|host| host.weight()).max();
        stats.gauge_set(ClusterEndpointStat::MaxHostWeight, heaviest.unwrap_or(0).into());
    }

    /// Envoy's jittered exponential back-off; the plain rate where base and maximum are the same.
    fn next_failure_interval(&self) -> Duration {
        let (base, max) = self.options().failure_refresh_rate;
        if base == max {
            return base;
        }
        let interval = self.failure_interval.get();
        self.failure_interval.set((interval * 2).min(max));
        self.random_below(interval)
    }

    fn random_below(&self, bound: Duration) -> Duration {
        let bound = bound.as_millis() as u64;
        if bound == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.rng.borrow_mut().next() % bound)
    }
}

/// The name does not exist or has no addresses: an answer, not a failure.
fn is_empty_answer(error: &ResolveError) -> bool {
    let ResolveErrorKind::Proto(error) = error.kind() else { return false };
    match error.kind() {
        ProtoErrorKind::NoRecordsFound { response_code, .. } => {
            matches!(response_code, ResponseCode::NoError | ResponseCode::NXDomain)
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
