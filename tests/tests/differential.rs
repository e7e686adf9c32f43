//! The same configuration and the same requests through Envoy and Outrigger, area by area.

use tests::proxy::Kind;

/// Outrigger with the filters of `tests/src/bin/probes`.
const PROBES: Kind = Kind::Variant(env!("CARGO_BIN_EXE_probes"));

macro_rules! areas {
    ($($name:ident $(with $kind:expr)?),* $(,)?) => {
        const AREAS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let kind = [$($kind,)? Kind::Outrigger][0];
                if let Err(e) = tests::differential::run(stringify!($name), kind) {
                    panic!("{e:#}");
                }
            }
        )*
    };
}

areas! {
    access_logs,
    admin,
    bad_input,
    combinations,
    compressor,
    filter_chains,
    filter_levels,
    filter_settings,
    filters,
    forwarded,
    grpc_stats,
    header_ops,
    headers,
    http1,
    http2,
    limits,
    listeners,
    load_balancing,
    local_replies,
    paths,
    probes with PROBES,
    responses,
    retries,
    rewrites,
    router_options,
    routing,
    runtime,
    stats_config,
    tcp,
    timeouts,
    tls,
    tls_inspector,
    upgrades,
    upstreams,
    virtual_clusters,
}

/// No file is forgotten.
#[test]
fn every_area_is_run() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/areas");
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let area = name.trim_end_matches(".yaml");
        assert!(AREAS.contains(&area), "{name} is not in the list of areas");
    }
    for area in tests::ledger::areas().unwrap() {
        assert!(AREAS.contains(&area.as_str()), "the ledger names {area}, which is no area");
    }
}
