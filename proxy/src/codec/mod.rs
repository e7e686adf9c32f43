//! HTTP codecs: HTTP/1 of our own on httparse, HTTP/2 on the crate h2, one interface over both.

pub mod head;
pub mod name;
