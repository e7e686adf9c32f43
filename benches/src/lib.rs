//! Side-by-side comparison with other proxies.
