//! Command operators (`%REQ(X)%`): one formatter for access logs, headers and local replies.
