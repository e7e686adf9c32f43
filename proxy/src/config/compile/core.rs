//! pb addresses, durations, socket options and their kin to its compiled form.
