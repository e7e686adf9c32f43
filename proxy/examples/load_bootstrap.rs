//! What it costs to read a bootstrap: `load_bootstrap FILE` prints time and memory of reading it and of handing its static
//! resources over; `load_bootstrap --generate N FILE` writes one with N clusters of ten endpoints and N virtual hosts.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use outrigger::config::json::{Sources, load_with};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--generate", count, file] => {
            let mut text = String::new();
            generate(count.parse()?, &mut text)?;
            std::fs::write(file, text).context("cannot write")
        }
        [file] => measure(file),
        _ => bail!("usage: load_bootstrap [--generate N] FILE"),
    }
}

fn measure(file: &str) -> Result<()> {
    let before = memory("VmRSS:")?;
    let start = Instant::now();
    let sources = Sources { config_path: Some(file.into()), ..Sources::default() };
    let (mut kept, mut bytes) = (Vec::new(), 0);
    load_with(&sources, |resource| {
        bytes += resource.bytes.len();
        kept.push(resource);
    })?;
    let took = start.elapsed();
    let mut out = std::io::stdout();
    writeln!(out, "{} resources, {bytes} bytes, in {took:?}", kept.len())?;
    writeln!(
        out,
        "RSS {before} kB before, {} kB now, {} kB at most",
        memory("VmRSS:")?,
        memory("VmHWM:")?
    )?;
    Ok(())
}

fn memory(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).context("no such line")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

fn generate(count: usize, out: &mut String) -> Result<()> {
    out.push_str(
        "static_resources:
  listeners:
  - name: ingress
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            name: all
            virtual_hosts:
",
    );
    for i in 0..count {
        writeln!(
            out,
            "            - name: host-{i}\n              domains: [\"host-{i}.example.com\", \"host-{i}.example.com:8080\"]\n              \
             routes:\n              - match: {{prefix: /}}\n                route: {{cluster: cluster-{i}, timeout: 15s}}"
        )?;
    }
    out.push_str("  clusters:\n");
    for i in 0..count {
        writeln!(
            out,
            "  - name: cluster-{i}\n    connect_timeout: 0.25s\n    type: STATIC\n    load_assignment:\n      \
             cluster_name: cluster-{i}\n      endpoints:\n      - lb_endpoints:"
        )?;
        for j in 1..=10 {
            writeln!(
                out,
                "        - endpoint: {{address: {{socket_address: {{address: 10.{}.{}.{j}, port_value: 8080}}}}}}",
                i / 250,
                i % 250
            )?;
        }
    }
    Ok(())
}
