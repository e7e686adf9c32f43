# Short names for what CONTRIBUTING.md describes.

default:
    @just --list

fmt:
    cargo fmt

lint:
    cargo fmt --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo deny --offline check bans licenses sources

# Unit and property tests.
test:
    cargo test --package outrigger

# The property tests with cases never seen before: just properties 100000
properties cases="20000":
    PROPTEST_CASES={{cases}} cargo test --package xds-client --test convergence
    PROPTEST_CASES={{cases}} cargo test --package outrigger --lib -- config::json codec::h2::tests::peers router::route_table

# Everything, after installing the peers that it needs.
test-all:
    tests/run

# The HTTP/1 decoder against random bytes, for as long as the arguments say.
fuzz *args:
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{args}}

# The differential suite against real Envoy: just conformance routing
conformance *areas:
    tests/run {{areas}}

bench:
    cargo bench --package benches

# Side by side with Envoy and HAProxy: just compare --only router
compare *args:
    cargo run --release --package benches --bin compare -- {{args}}

quickstart:
    cargo run --release -- quickstart

doc:
    cargo doc --package outrigger --no-deps --document-private-items

ci:
    .ci/run
