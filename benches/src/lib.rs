//! Benches of the hot path (`benches/*.rs`, criterion) and the side-by-side comparison with other
//! proxies (`src/bin/compare`). Nothing is shared between the two.
