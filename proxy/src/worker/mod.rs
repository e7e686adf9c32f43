//! One data-plane thread.
