//! Listening sockets, accept, listener filters.
