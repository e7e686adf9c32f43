//! The router: route match, attempts, retries, mirrors.
