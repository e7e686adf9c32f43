//! Message heads: one arena of bytes and ranges into it.
//!
//! A decoder copies the wire's head into the arena once; a header that nothing touches stays there,
//! case and order kept, until an encoder writes it out. Added values go to the arena's end. Arenas
//! and entry lists are given back by `recycle`, so that a warm worker allocates none.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use http::{Method, StatusCode};

use super::name::{HeaderName, NameSet, id_of, names};

/// A range of a head's arena.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Span,
    value: Span,
    id: u8,
    /// Whoever passes it on must not let a table of compression have it (RFC 7541 §6.2.3).
    sensitive: bool,
}

/// A set of numbers of names. Not a `u128`, whose alignment would cost every head room.
#[derive(Debug, Clone, Copy, Default)]
struct Seen([u64; 2]);

impl Seen {
    fn add(&mut self, id: u8) {
        self.0[usize::from(id >> 6 & 1)] |= 1 << (id & 63);
    }

    fn has(self, id: u8) -> bool {
        self.0[usize::from(id >> 6 & 1)] & (1 << (id & 63)) != 0
    }
}

/// Header fields in wire order, names in the case they came in.
#[derive(Default)]
pub struct HeaderList {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// A bit for the number of each known name that was ever added: most questions are about names that never were.
    seen: Seen,
}

/// Spare arenas kept by a thread, so that a warm worker does not allocate for heads.
const SPARE_LISTS: usize = 64;
/// An arena larger than this is freed, not kept: one large head must not stay for ever.
const SPARE_ARENA_BYTES: usize = 8 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<(Vec<u8>, Vec<Entry>)>> = const { RefCell::new(Vec::new()) };
}

impl HeaderList {
    /// An empty list, on a recycled arena where there is one.
    pub fn new() -> Self {
        match SPARE.with_borrow_mut(Vec::pop) {
            Some((arena, entries)) => Self { arena, entries, seen: Seen::default() },
            None => Self {
                arena: Vec::with_capacity(1024),
                entries: Vec::with_capacity(24),
                seen: Seen::default(),
            },
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all names and values plus four a line (`: ` and CRLF), as limits count them.
    pub fn byte_size(&self) -> usize {
        self.entries.iter().map(|e| (e.name.len + e.value.len) as usize + 4).sum()
    }

    /// The arena's bytes at a range taken from this list.
    pub fn slice(&self, span: Span) -> &[u8] {
        &self.arena[span.start as usize..(span.start + span.len) as usize]
    }

    /// Copies bytes to the arena's end.
    pub fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    /// For decoders: a range of bytes that `store` copied before (offset from its start).
    pub fn sub_span(of: Span, offset: usize, len: usize) -> Span {
        debug_assert!(offset + len <= of.len as usize);
        Span { start: of.start + offset as u32, len: len as u32 }
    }

    /// For decoders: an entry over ranges already stored.
    pub fn push_spans(&mut self, name: Span, value: Span) {
        let id = id_of(self.slice(name));
        self.push_known(name, value, id);
    }

    /// For decoders that have looked the name's number up already.
    pub(super) fn push_known(&mut self, name: Span, value: Span, id: u8) {
        self.seen.add(id);
        self.entries.push(Entry { name, value, id, sensitive: false });
    }

    /// Of the line that was added last: see `Entry`.
    pub(super) fn mark_sensitive(&mut self) {
        if let Some(last) = self.entries.last_mut() {
            last.sensitive = true;
        }
    }

    /// `(number of the name, name, value)` in order, as ranges of `arena`: for encoders.
    pub(super) fn iter_ranges(&self) -> impl Iterator<Item = (u8, Range<usize>, Range<usize>)> {
        self.entries.iter().map(|e| (e.id, e.name.range(), e.value.range()))
    }

    /// As `iter_ranges`, and whether the line is sensitive.
    pub(super) fn iter_sensitive(
        &self,
    ) -> impl Iterator<Item = (u8, Range<usize>, Range<usize>, bool)> {
        self.entries.iter().map(|e| (e.id, e.name.range(), e.value.range(), e.sensitive))
    }

    /// The bytes that ranges refer to.
    pub(super) fn arena(&self) -> &[u8] {
        &self.arena
    }

    /// Keeps the lines whose name (a range of the arena) passes.
    pub(super) fn retain_names(&mut self, mut keep: impl FnMut(&Self, Span) -> bool) {
        self.retain(|list, e| keep(list, e.name));
    }

    /// An entry with the name as written (any case).
    pub fn push_raw(&mut self, name: &[u8], value: &[u8]) {
        let (name, value) = (self.store(name), self.store(value));
        self.push_spans(name, value);
    }

    /// Adds a line, beside those of the same name that are there.
    pub fn append(&mut self, name: &HeaderName, value: &[u8]) {
        self.append_line(name.id, name.as_str().as_bytes(), value);
    }

    /// As `append`, for decoders that know the name's number.
    pub(super) fn append_line(&mut self, id: u8, name: &[u8], value: &[u8]) {
        // As a line on the wire: an encoder copies those that stand together in one go.
        self.arena.reserve(name.len() + value.len() + 4);
        let name = self.store(name);
        self.arena.extend_from_slice(b": ");
        let value = self.store(value);
        self.arena.extend_from_slice(b"\r\n");
        self.push_known(name, value, id);
    }

    /// Joins the lines of each name that has a bit in `names` and several lines, by commas, in the place of the
    /// first: what is one list to Envoy is one line to filters, logs and peers.
    pub(super) fn join(&mut self, names: u128) {
        let (mut seen, mut twice) = (0_u128, 0);
        for e in &self.entries {
            let bit = 1 << e.id;
            twice |= seen & bit;
            seen |= bit;
        }
        twice &= names;
        while twice != 0 {
            let id = twice.trailing_zeros() as u8;
            twice &= twice - 1;
            let values: Vec<_> =
                self.entries.iter().filter(|e| e.id == id).map(|e| self.slice(e.value)).collect();
            let joined = values.join(&b","[..]);
            let joined = self.store(&joined);
            let mut first = true;
            self.entries.retain_mut(|e| {
                if e.id != id {
                    return true;
                }
                e.value = joined;
                std::mem::take(&mut first)
            });
        }
    }

    /// Replaces all lines of the name by one, in the place of the first.
    pub fn set(&mut self, name: &HeaderName, value: &[u8]) {
        match self.position(name) {
            Some(first) => {
                let value = self.store(value);
                self.entries[first].value = value;
                let mut at = 0;
                self.retain(|list, e| {
                    at += 1;
                    at - 1 <= first || !list.matches(e, name)
                });
            }
            None => self.append(name, value),
        }
    }

    /// Replaces the value of the first line of the name; the others stay.
    pub fn replace_first(&mut self, name: &HeaderName, value: &[u8]) {
        match self.position(name) {
            Some(first) => self.entries[first].value = self.store(value),
            None => self.append(name, value),
        }
    }

    /// Removes all lines of the name; how many there were.
    #[inline]
    pub fn remove(&mut self, name: &HeaderName) -> usize {
        if self.position(name).is_none() {
            return 0;
        }
        self.remove_present(name)
    }

    fn remove_present(&mut self, name: &HeaderName) -> usize {
        let before = self.entries.len();
        self.retain(|list, e| !list.matches(e, name));
        before - self.entries.len()
    }

    /// Keeps the lines for which `keep(name, value)` says so.
    pub fn retain_lines(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        self.retain(|list, e| keep(list.slice(e.name), list.slice(e.value)));
    }

    fn retain(&mut self, mut keep: impl FnMut(&Self, &Entry) -> bool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|e| keep(self, e));
        self.entries = entries;
    }

    /// The first line's value.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.position(name).map(|i| self.slice(self.entries[i].value))
    }

    /// The first line's value where it is UTF-8.
    pub fn get_str(&self, name: &HeaderName) -> Option<&str> {
        self.get(name).and_then(|v| std::str::from_utf8(v).ok())
    }

    /// Every line's value, in order.
    pub fn get_all<'a, 'n>(
        &'a self,
        name: &'n HeaderName,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.entries.iter().filter(move |e| self.matches(e, name)).map(|e| self.slice(e.value))
    }

    /// Whether any of the names may be there: false where none ever was.
    pub fn may_contain(&self, names: NameSet) -> bool {
        (self.seen.0[0] & names.0[0]) | (self.seen.0[1] & names.0[1]) != 0
    }

    pub fn contains(&self, name: &HeaderName) -> bool {
        self.position(name).is_some()
    }

    /// `(name as written, value)` in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|e| (self.slice(e.name), self.slice(e.value)))
    }

    #[inline]
    fn position(&self, name: &HeaderName) -> Option<usize> {
        if !self.seen.has(name.id) {
            return None;
        }
        self.find(name)
    }

    fn find(&self, name: &HeaderName) -> Option<usize> {
        self.entries.iter().position(|e| self.matches(e, name))
    }

    fn matches(&self, e: &Entry, name: &HeaderName) -> bool {
        e.id == name.id
            && (e.id != 0 || self.slice(e.name).eq_ignore_ascii_case(name.as_str().as_bytes()))
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        if self.arena.capacity() == 0 || self.arena.capacity() > SPARE_ARENA_BYTES {
            return;
        }
        let mut arena = std::mem::take(&mut self.arena);
        let mut entries = std::mem::take(&mut self.entries);
        arena.clear();
        entries.clear();
        // The thread-local may be gone when a thread ends: then the memory is freed.
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < SPARE_LISTS
            {
                spare.push((arena, entries));
            }
        });
    }
}

impl Clone for HeaderList {
    fn clone(&self) -> Self {
        let mut list = Self::new();
        list.arena.extend_from_slice(&self.arena);
        list.entries.extend_from_slice(&self.entries);
        list.seen = self.seen;
        list
    }
}

impl fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))),
            )
            .finish()
    }
}

/// Version of the message on its wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

impl Protocol {
    /// As `%PROTOCOL%` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// `:scheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A request's head. `host` is never in `headers`: it is `authority`.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    pub protocol: Protocol,
    /// `None` until the connection manager has decided it.
    pub scheme: Option<Scheme>,
    /// Extended CONNECT's `:protocol` (RFC 8441), or the `Upgrade` value of an HTTP/1 upgrade, once
    /// the codec has recognised it; the `upgrade` and `connection` fields stay in `headers` too.
    pub upgrade: Option<Span>,
    path: Option<Span>,
    authority: Option<Span>,
    pub headers: HeaderList,
}

impl RequestHead {
    pub fn new(method: Method, protocol: Protocol) -> Self {
        Self {
            method,
            protocol,
            scheme: None,
            upgrade: None,
            path: None,
            authority: None,
            headers: HeaderList::new(),
        }
    }

    /// `:path`, query included; `None` for CONNECT in authority form.
    pub fn path(&self) -> Option<&[u8]> {
        self.path.map(|s| self.headers.slice(s))
    }

    /// `:path` as text; decoders admit only bytes 0x21–0x7E there.
    pub fn path_str(&self) -> &str {
        self.path().and_then(|p| std::str::from_utf8(p).ok()).unwrap_or("")
    }

    pub fn set_path(&mut self, path: &[u8]) {
        self.path = Some(self.headers.store(path));
    }

    /// For decoders: a range of bytes that are in the arena already.
    pub fn set_path_span(&mut self, path: Span) {
        self.path = Some(path);
    }

    pub fn clear_path(&mut self) {
        self.path = None;
    }

    /// `:authority`, which is also `Host`.
    pub fn authority(&self) -> Option<&[u8]> {
        self.authority.map(|s| self.headers.slice(s))
    }

    pub fn authority_str(&self) -> &str {
        self.authority().and_then(|p| std::str::from_utf8(p).ok()).unwrap_or("")
    }

    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = Some(self.headers.store(authority));
    }

    pub fn clear_authority(&mut self) {
        self.authority = None;
    }

    pub fn set_authority_span(&mut self, authority: Span) {
        self.authority = Some(authority);
    }

    /// The value of `upgrade`, case as sent.
    pub fn upgrade_str(&self) -> Option<&[u8]> {
        self.upgrade.map(|s| self.headers.slice(s))
    }

    /// Any name that matchers and formatters may use: a pseudo-header, `host`, or a field (its first line).
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        if name.is_pseudo() {
            return match name.as_str() {
                ":method" => Some(self.method.as_str().as_bytes()),
                ":path" => self.path(),
                ":authority" => self.authority(),
                ":scheme" => self.scheme.map(|s| s.as_str().as_bytes()),
                ":protocol" => self.upgrade_str(),
                _ => None,
            };
        }
        if *name == names::HOST {
            return self.authority();
        }
        self.headers.get(name)
    }
}

/// A response's head.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub protocol: Protocol,
    pub headers: HeaderList,
}

impl ResponseHead {
    pub fn new(status: StatusCode, protocol: Protocol) -> Self {
        Self { status, protocol, headers: HeaderList::new() }
    }

    /// Any name that matchers and formatters may use: `:status` or a field (its first line).
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        if name.is_pseudo() {
            return (name.as_str() == ":status").then(|| self.status.as_str().as_bytes());
        }
        self.headers.get(name)
    }

    /// 1xx other than 101: another head follows.
    pub fn is_informational(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HeaderList {
        let mut list = HeaderList::new();
        list.push_raw(b"Accept", b"a");
        list.push_raw(b"X-Foo", b"1");
        list.push_raw(b"x-foo", b"2");
        list.push_raw(b"Host", b"h");
        list
    }

    #[test]
    fn keeps_case_and_order_and_finds_in_any_case() {
        let list = sample();
        let foo = HeaderName::parse("X-FOO").unwrap();
        assert_eq!(list.get(&foo), Some(&b"1"[..]));
        assert_eq!(list.get_all(&foo).collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(list.get(&names::HOST), Some(&b"h"[..]));
        assert_eq!(list.iter().map(|(n, _)| n.to_vec()).collect::<Vec<_>>()[1], b"X-Foo");
    }

    #[test]
    fn set_replaces_all_lines_in_the_first_place() {
        let mut list = sample();
        let foo = HeaderName::parse("x-foo").unwrap();
        list.set(&foo, b"3");
        let lines: Vec<_> = list.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], (b"X-Foo".to_vec(), b"3".to_vec()));
        assert_eq!(list.remove(&foo), 1);
        assert_eq!(list.remove(&foo), 0);
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn host_is_the_authority() {
        let mut head = RequestHead::new(Method::GET, Protocol::Http11);
        head.set_authority(b"a.b");
        head.set_path(b"/x");
        assert_eq!(head.get(&names::HOST), Some(&b"a.b"[..]));
        assert_eq!(head.get(&HeaderName::parse(":path").unwrap()), Some(&b"/x"[..]));
    }
}
