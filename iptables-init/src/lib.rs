//! The rules that lead a pod's traffic through its proxy. What [istio-iptables] installs, `outrigger-init` installs, by
//! the same flags; every chain carries Istio's name.
//!
//! ```text
//! arguments ─ args: flags and variables, as text
//!   └ settings ─ checked values, with what the host says of itself (host)
//!       └ plan ─ rules of each family, and routing; pure, golden-tested (tests/golden)
//!           └ backend ─ iptables-restore or nft: the rules as text, from what is there to what is wanted
//!               └ validate ─ connections that must be redirected
//! ```
//!
//! In short (`nat`): PREROUTING → ISTIO_INBOUND → ISTIO_IN_REDIRECT (port 15006), OUTPUT → ISTIO_OUTPUT →
//! ISTIO_REDIRECT (port 15001); the proxy's own traffic, by its user and group, goes where it wants.
//!
//! [istio-iptables]: https://github.com/istio/istio/tree/master/tools/istio-iptables

pub mod args;
pub mod backend;
pub mod host;
pub mod lock;
pub mod netlink;
pub mod plan;
pub mod print;
pub mod routing;
pub mod rule;
pub mod settings;
pub mod validate;
