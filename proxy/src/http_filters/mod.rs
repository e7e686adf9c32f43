//! HTTP filters, a file each.
