//! Load balancers: host set to host.
