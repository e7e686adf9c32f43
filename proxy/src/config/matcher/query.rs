//! Query parameters and cookies: `envoy.config.route.v3.{QueryParameterMatcher,CookieMatcher}`.

use super::StringMatcher;
use crate::codec::head::RequestHead;
use crate::codec::name::names;

/// A condition on the first parameter of that name; nothing is percent-decoded.
#[derive(Debug, Clone)]
pub struct QueryParameterMatcher {
    pub name: Box<[u8]>,
    pub value: QueryParameterMatch,
}

#[derive(Debug, Clone)]
pub enum QueryParameterMatch {
    Present(bool),
    String(StringMatcher),
}

impl QueryParameterMatcher {
    /// `path` is `:path` as it came.
    pub fn matches(&self, path: &[u8]) -> bool {
        let first = parameters(path).find(|(name, _)| *name == &*self.name).map(|(_, value)| value);
        match (&self.value, first) {
            (QueryParameterMatch::Present(present), value) => value.is_some() == *present,
            (QueryParameterMatch::String(matcher), Some(value)) => matcher.matches(value),
            (QueryParameterMatch::String(_), None) => false,
        }
    }
}

/// `(name, value)` of each parameter after the first `?`; one without `=` has an empty value.
pub fn parameters(path: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let query = memchr::memchr(b'?', path).map_or(&b""[..], |at| &path[at + 1..]);
    query.split(|b| *b == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        }
    })
}

/// A condition on a request's cookie; one that is not there matches nothing, inverted everything.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    pub name: Box<[u8]>,
    pub value: StringMatcher,
    pub invert: bool,
}

impl CookieMatcher {
    pub fn matches(&self, head: &RequestHead) -> bool {
        let matched = cookie(head, &self.name).is_some_and(|value| self.value.matches(value));
        matched != self.invert
    }
}

/// The value of the first cookie of that name, without the quotes around it.
pub fn cookie<'a>(head: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    head.headers.get_all(&names::COOKIE).find_map(|line| {
        line.split(|b| *b == b';').find_map(|pair| {
            let pair = pair.trim_ascii_start();
            let at = memchr::memchr(b'=', pair)?;
            let value = &pair[at + 1..];
            let unquoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
            (&pair[..at] == name).then_some(unquoted.unwrap_or(value))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::head::Protocol;

    fn of(name: &str, value: QueryParameterMatch) -> QueryParameterMatcher {
        QueryParameterMatcher { name: name.as_bytes().into(), value }
    }

    #[test]
    fn the_first_value_counts() {
        let exact = |v: &str| QueryParameterMatch::String(StringMatcher::exact(v.as_bytes()));
        assert!(of("a", exact("1")).matches(b"/?a=1&a=2"));
        assert!(!of("a", exact("2")).matches(b"/?a=1&a=2"));
        assert!(of("a", exact("")).matches(b"/?a&b"));
        assert!(of("a", exact("x=y")).matches(b"/?a=x=y"));
        assert!(!of("a", exact("")).matches(b"/"));
    }

    #[test]
    fn presence() {
        assert!(of("a", QueryParameterMatch::Present(true)).matches(b"/?b=1&a"));
        assert!(of("a", QueryParameterMatch::Present(false)).matches(b"/?b=1"));
        assert!(!of("a", QueryParameterMatch::Present(false)).matches(b"/?a="));
    }

    #[test]
    fn cookies_of_all_lines() {
        let mut head = RequestHead::new(http::Method::GET, Protocol::Http2);
        head.headers.push_raw(b"cookie", b"a=1; b=\"2\"");
        head.headers.push_raw(b"cookie", b"c=3");
        assert_eq!(cookie(&head, b"b"), Some(&b"2"[..]));
        assert_eq!(cookie(&head, b"c"), Some(&b"3"[..]));
        let matcher = |name: &str, invert| CookieMatcher {
            name: name.as_bytes().into(),
            value: StringMatcher::prefix(b""),
            invert,
        };
        assert!(matcher("a", false).matches(&head) && !matcher("d", false).matches(&head));
        assert!(!matcher("a", true).matches(&head) && matcher("d", true).matches(&head));
    }
}
