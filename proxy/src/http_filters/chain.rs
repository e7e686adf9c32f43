//! The filters of one stream, in configuration order.
