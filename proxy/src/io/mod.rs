//! Byte streams: TCP, unix, in-memory.
