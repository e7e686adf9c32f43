//! Pieces of `/config_dump` that are put together from raw resources.

use bytes::Bytes;
use prost::Message as _;

use super::RawResource;
use super::wire::{Fields, Value, close, open, string_field, write_bytes};
use crate::config::pb::envoy::config::bootstrap::v3::Bootstrap;

/// `Bootstrap.static_resources`, and its lists.
const STATIC_RESOURCES: u32 = 2;
const LISTENERS: u32 = 1;
const CLUSTERS: u32 = 2;

/// A bootstrap with its listeners and clusters in it again, and `node` in the place of its own.
pub fn whole_bootstrap(
    rest: &[u8],
    node: &[u8],
    listeners: &[RawResource],
    clusters: &[RawResource],
) -> Bytes {
    let lists = listeners.iter().chain(clusters).map(|raw| raw.bytes.len() + 8).sum::<usize>();
    let mut out = Vec::with_capacity(rest.len() + node.len() + lists + 16);
    // Two nodes would be merged, and their lists joined.
    let rest = Bootstrap { node: None, ..Bootstrap::decode(rest).unwrap_or_default() };
    out.extend(rest.encode_to_vec());
    write_bytes(&mut out, 1, node);
    if !listeners.is_empty() || !clusters.is_empty() {
        let start = open(&mut out, STATIC_RESOURCES);
        listeners.iter().for_each(|raw| write_bytes(&mut out, LISTENERS, &raw.bytes));
        clusters.iter().for_each(|raw| write_bytes(&mut out, CLUSTERS, &raw.bytes));
        close(&mut out, start);
    }
    out.into()
}

/// The route configurations that stand in a listener's connection managers: name and bytes, in order.
pub fn static_routes(listener: &RawResource) -> Vec<(String, Bytes)> {
    const HCM: &str =
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    // Listener.filter_chains and default_filter_chain, FilterChain.filters, Filter.typed_config.
    let chains = fields(&listener.bytes, &[3, 25]);
    let filters = chains.flat_map(|chain| fields(chain, &[3]));
    let configs = filters.flat_map(|filter| fields(filter, &[4]));
    let managers = configs.filter(|any| string_field(any, 1).rsplit('/').next() == Some(HCM));
    // Any.value, HttpConnectionManager.route_config.
    let routes = managers.flat_map(|any| fields(any, &[2])).flat_map(|hcm| fields(hcm, &[4]));
    routes
        .map(|route| (string_field(route, 1).to_owned(), listener.bytes.slice_ref(route)))
        .collect()
}

/// The contents of length-delimited fields with one of the numbers.
fn fields<'a>(message: &'a [u8], numbers: &'a [u32]) -> impl Iterator<Item = &'a [u8]> {
    Fields(message).flatten().filter_map(|(number, value)| match value {
        Value::Bytes(bytes) if numbers.contains(&number) => Some(bytes),
        _ => None,
    })
}
