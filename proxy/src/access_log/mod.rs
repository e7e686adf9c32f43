//! Access logs: when to log, what, and where to; written off the workers, bounded, losses counted.
