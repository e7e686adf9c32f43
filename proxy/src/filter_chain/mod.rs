//! The filter chain of one connection: match, transport socket, network filters.
