//! pb of DNS clusters to `DnsOptions`: the fields of a `Cluster` of type `STRICT_DNS` or `LOGICAL_DNS`, and the extension
//! `envoy.clusters.dns` (`clusters.dns.v3.DnsCluster`), which says the same in a message of its own.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::cluster::{DnsLookupFamily, DnsOptions};
use crate::config::compile::core::{
    any_type, compile_duration, compile_duration_at_least, compile_ip_address, unpack_any,
};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::envoy::config::cluster::v3 as pb;
use crate::config::pb::envoy::config::cluster::v3::cluster as pb_cluster;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::clusters::common::dns::v3 as pb_common;
use crate::config::pb::envoy::extensions::clusters::dns::v3::{DnsCluster, dns_cluster};
use crate::config::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use crate::config::pb::google::protobuf::Duration as PbDuration;

const DNS_CLUSTER: &str = "envoy.extensions.clusters.dns.v3.DnsCluster";

/// `dns_refresh_rate` where it is not set.
const REFRESH_RATE: Duration = Duration::from_secs(5);

/// The least refresh rate.
const LEAST: Duration = Duration::from_millis(1);

/// What both forms say, in the words of the protos.
struct Fields<'a> {
    refresh_rate: Option<&'a PbDuration>,
    /// `dns_failure_refresh_rate`: its two intervals.
    failure: Option<(Option<&'a PbDuration>, Option<&'a PbDuration>)>,
    jitter: Option<&'a PbDuration>,
    respect_ttl: bool,
    min_refresh_rate: Option<&'a PbDuration>,
    lookup_family: Option<DnsLookupFamily>,
    single_endpoint: bool,
}

/// The DNS fields of a cluster of type `STRICT_DNS` or, with `single_endpoint`, `LOGICAL_DNS`.
#[expect(deprecated, reason = "the older places of DNS settings are still read, as Envoy does")]
pub fn compile_dns_options(
    pb: &pb::Cluster,
    single_endpoint: bool,
    path: &FieldPath<'_>,
) -> Option<DnsOptions> {
    use pb_cluster::DnsLookupFamily as Pb;
    let lookup_family = Pb::try_from(pb.dns_lookup_family).ok().map(|family| match family {
        Pb::Auto => DnsLookupFamily::Auto,
        Pb::V4Only => DnsLookupFamily::V4Only,
        Pb::V6Only => DnsLookupFamily::V6Only,
        Pb::V4Preferred => DnsLookupFamily::V4Preferred,
        Pb::All => DnsLookupFamily::All,
    });
    let failure = pb.dns_failure_refresh_rate.as_ref();
    let fields = Fields {
        refresh_rate: pb.dns_refresh_rate.as_ref(),
        failure: failure.map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref())),
        jitter: pb.dns_jitter.as_ref(),
        respect_ttl: pb.respect_dns_ttl,
        min_refresh_rate: None,
        lookup_family,
        single_endpoint,
    };
    check_single_endpoint(pb, single_endpoint, path);
    compile_fields(&fields, compile_resolvers(pb, path), path)
}

/// A cluster with a `cluster_type`, of which `envoy.clusters.dns` is the one that is known.
pub fn compile_dns_cluster(
    pb: &pb::Cluster,
    custom: &pb_cluster::CustomClusterType,
    path: &FieldPath<'_>,
) -> Option<DnsOptions> {
    use pb_common::DnsLookupFamily as Pb;
    let type_path = path.field("cluster_type");
    let any = custom.typed_config.as_ref().filter(|any| any_type(any) == DNS_CLUSTER);
    let Some(any) = any else {
        type_path.error(format_args!("cluster type {:?} is not supported", custom.name));
        return None;
    };
    let type_path = type_path.field("typed_config");
    let dns = unpack_any::<DnsCluster>(any, &type_path)?;
    let lookup_family = Pb::try_from(dns.dns_lookup_family).ok().map(|family| match family {
        Pb::Unspecified | Pb::Auto => DnsLookupFamily::Auto,
        Pb::V4Only => DnsLookupFamily::V4Only,
        Pb::V6Only => DnsLookupFamily::V6Only,
        Pb::V4Preferred => DnsLookupFamily::V4Preferred,
        Pb::All => DnsLookupFamily::All,
    });
    let failure = dns.dns_failure_refresh_rate.as_ref();
    let fields = Fields {
        refresh_rate: dns.dns_refresh_rate.as_ref(),
        failure: failure.map(|rate: &dns_cluster::RefreshRate| {
            (rate.base_interval.as_ref(), rate.max_interval.as_ref())
        }),
        jitter: dns.dns_jitter.as_ref(),
        respect_ttl: dns.respect_dns_ttl,
        min_refresh_rate: dns.dns_min_refresh_rate.as_ref(),
        lookup_family,
        single_endpoint: dns.all_addresses_in_single_endpoint,
    };
    check_single_endpoint(pb, dns.all_addresses_in_single_endpoint, path);
    let resolvers = match &dns.typed_dns_resolver_config {
        Some(typed) => compile_typed_resolver(typed, &type_path.field("typed_dns_resolver_config")),
        None => Default::default(),
    };
    compile_fields(&fields, resolvers, &type_path)
}

/// A cluster of one endpoint has to have it.
fn check_single_endpoint(pb: &pb::Cluster, single_endpoint: bool, path: &FieldPath<'_>) {
    let localities = pb.load_assignment.as_ref().map(|assignment| &*assignment.endpoints);
    let is_one = matches!(localities, Some([one]) if one.lb_endpoints.len() == 1);
    if single_endpoint && !is_one {
        path.field("load_assignment").error(
            "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
        );
    }
}

fn compile_fields(
    pb: &Fields<'_>,
    (resolvers, use_tcp): (Box<[SocketAddr]>, bool),
    path: &FieldPath<'_>,
) -> Option<DnsOptions> {
    let refresh_rate = match pb.refresh_rate {
        Some(rate) => compile_duration_at_least(rate, LEAST, &path.field("dns_refresh_rate"))?,
        None => REFRESH_RATE,
    };
    let failure_refresh_rate = match pb.failure {
        None => (refresh_rate, refresh_rate),
        Some((base, max)) => {
            let path = path.field("dns_failure_refresh_rate");
            let Some(base) = base else {
                path.field("base_interval").error("value is required");
                return None;
            };
            let base = compile_duration_at_least(base, LEAST, &path.field("base_interval"))?;
            let max = match max {
                Some(max) => compile_duration_at_least(max, LEAST, &path.field("max_interval"))?,
                None => base * 10,
            };
            if max < base {
                path.error("max_interval must be greater than or equal to the base_interval");
            }
            (base, max)
        }
    };
    let Some(lookup_family) = pb.lookup_family else {
        path.field("dns_lookup_family").error("unknown enum value");
        return None;
    };
    let min_refresh_rate = pb.min_refresh_rate.map_or(Some(Duration::ZERO), |rate| {
        const SECOND: Duration = Duration::from_secs(1);
        compile_duration_at_least(rate, SECOND, &path.field("dns_min_refresh_rate"))
    });
    let jitter = pb
        .jitter
        .map_or(Some(Duration::ZERO), |jitter| compile_duration(jitter, &path.field("dns_jitter")));
    Some(DnsOptions {
        refresh_rate,
        failure_refresh_rate,
        jitter: jitter?,
        respect_ttl: pb.respect_ttl,
        min_refresh_rate: min_refresh_rate?,
        single_endpoint: pb.single_endpoint,
        lookup_family,
        use_tcp,
        resolvers,
    })
}

fn use_tcp(options: Option<&pb_core::DnsResolverOptions>) -> bool {
    options.is_some_and(|options| options.use_tcp_for_dns_lookups)
}

/// Name servers and whether they are asked over TCP; the newest of a `Cluster`'s three places wins.
#[expect(deprecated, reason = "the older places of DNS settings are still read, as Envoy does")]
fn compile_resolvers(pb: &pb::Cluster, path: &FieldPath<'_>) -> (Box<[SocketAddr]>, bool) {
    if let Some(typed) = &pb.typed_dns_resolver_config {
        return compile_typed_resolver(typed, &path.field("typed_dns_resolver_config"));
    }
    if let Some(config) = &pb.dns_resolution_config {
        let path = path.field("dns_resolution_config");
        let resolvers = compile_resolver_addresses(&config.resolvers, "resolvers", &path);
        return (resolvers, use_tcp(config.dns_resolver_options.as_ref()));
    }
    (
        compile_resolver_addresses(&pb.dns_resolvers, "dns_resolvers", path),
        pb.use_tcp_for_dns_lookups,
    )
}

fn compile_typed_resolver(
    typed: &pb_core::TypedExtensionConfig,
    path: &FieldPath<'_>,
) -> (Box<[SocketAddr]>, bool) {
    const CARES: &str = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig";
    const GETADDRINFO: &str =
        "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig";
    let Some(any) = &typed.typed_config else {
        path.field("typed_config").error("value is required");
        return Default::default();
    };
    match any_type(any) {
        GETADDRINFO => Default::default(),
        CARES => {
            let path = path.field("typed_config");
            let Some(cares) = unpack_any::<CaresDnsResolverConfig>(any, &path) else {
                return Default::default();
            };
            let resolvers = compile_resolver_addresses(&cares.resolvers, "resolvers", &path);
            (resolvers, use_tcp(cares.dns_resolver_options.as_ref()))
        }
        _ => {
            path.error(format_args!("DNS resolver {:?} is not supported", typed.name));
            Default::default()
        }
    }
}

fn compile_resolver_addresses(
    pb: &[pb_core::Address],
    field: &str,
    path: &FieldPath<'_>,
) -> Box<[SocketAddr]> {
    use pb_core::address::Address;
    let compile = |(i, address): (usize, &pb_core::Address)| {
        let path = path.index(field, i);
        match &address.address {
            Some(Address::SocketAddress(socket)) => {
                // Envoy's own examples mark name servers as UDP.
                let tcp = pb_core::SocketAddress { protocol: 0, ..socket.clone() };
                compile_ip_address(&tcp, &path.field("socket_address"))
            }
            _ => {
                path.error("a DNS resolver needs a socket_address");
                None
            }
        }
    };
    pb.iter().enumerate().filter_map(compile).collect()
}
