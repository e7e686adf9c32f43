//! `envoy.config.route.v3.HeaderMatcher`, over request heads, response heads and plain header lists.

use smallvec::SmallVec;

use super::StringMatcher;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::name::{HeaderName, names};

/// Anything that has header values by name.
pub trait HeaderSource {
    /// Whether `test` holds for any value of the header; `None` when it is not there at all.
    ///
    /// Each line is a value of its own, as in Envoy since CVE-2026-26308; but headers that Envoy keeps
    /// as one line are joined by commas.
    fn any_value(&self, name: &HeaderName, test: impl FnMut(&[u8]) -> bool) -> Option<bool>;
}

impl HeaderSource for HeaderList {
    fn any_value(&self, name: &HeaderName, test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        any_line(self, name, HeaderName::is_inline_in_requests, test)
    }
}

impl HeaderSource for RequestHead {
    fn any_value(&self, name: &HeaderName, mut test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        if name.is_pseudo() || *name == names::HOST {
            return self.get(name).map(test);
        }
        any_line(&self.headers, name, HeaderName::is_inline_in_requests, &mut test)
    }
}

impl HeaderSource for ResponseHead {
    fn any_value(&self, name: &HeaderName, mut test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        if name.is_pseudo() {
            return (name.as_str() == ":status").then(|| test(self.status.as_str().as_bytes()));
        }
        any_line(&self.headers, name, HeaderName::is_inline_in_responses, &mut test)
    }
}

/// A request that is not there has no headers: network filters ask of connections.
impl<H: HeaderSource> HeaderSource for Option<&H> {
    fn any_value(&self, name: &HeaderName, test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        self.and_then(|headers| headers.any_value(name, test))
    }
}

fn any_line(
    list: &HeaderList,
    name: &HeaderName,
    is_joined: fn(&HeaderName) -> bool,
    mut test: impl FnMut(&[u8]) -> bool,
) -> Option<bool> {
    let mut lines = list.get_all(name);
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(test(first)) };
    if is_joined(name) {
        let mut joined = SmallVec::<[u8; 256]>::from_slice(first);
        for line in std::iter::once(second).chain(lines) {
            joined.push(b',');
            joined.extend_from_slice(line);
        }
        return Some(test(&joined));
    }
    Some(test(first) || test(second) || lines.any(test))
}

/// One condition on one header.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    pub name: HeaderName,
    pub value: HeaderValueMatch,
    pub invert: bool,
    /// A header that is not there counts as an empty one. Default false: it matches nothing,
    /// inverted or not (`present_match` excepted).
    pub treat_missing_as_empty: bool,
}

/// What the value must be.
#[derive(Debug, Clone)]
pub enum HeaderValueMatch {
    /// `present_match`; also the default when nothing is said.
    Present(bool),
    /// `range_match`: a decimal number in `[start, end)`.
    Range { start: i64, end: i64 },
    /// `string_match` and the deprecated forms of it.
    String(StringMatcher),
}

impl HeaderMatcher {
    pub fn matches(&self, headers: &impl HeaderSource) -> bool {
        let test = |value: &[u8]| match &self.value {
            HeaderValueMatch::Present(present) => *present,
            HeaderValueMatch::Range { start, end } => {
                parse_decimal(value).is_some_and(|number| (*start..*end).contains(&number))
            }
            HeaderValueMatch::String(matcher) => matcher.matches(value),
        };
        let matched = match (headers.any_value(&self.name, test), &self.value) {
            (Some(matched), _) => matched,
            (None, _) if self.treat_missing_as_empty => test(b""),
            (None, HeaderValueMatch::Present(present)) => !present,
            (None, _) => return false,
        };
        matched != self.invert
    }
}

/// True when every matcher matches, so also for none.
pub fn all_match(matchers: &[HeaderMatcher], headers: &impl HeaderSource) -> bool {
    matchers.iter().all(|matcher| matcher.matches(headers))
}

/// A decimal number with an optional sign, blanks around it allowed, as `absl::SimpleAtoi` reads it.
fn parse_decimal(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> HeaderList {
        let mut list = HeaderList::new();
        list.push_raw(b"X-A", b"1");
        list.push_raw(b"x-a", b"2");
        list.push_raw(b"x-n", b" 7 ");
        list.push_raw(b"x-empty", b"");
        list
    }

    fn matcher(name: &str, value: HeaderValueMatch) -> HeaderMatcher {
        HeaderMatcher {
            name: HeaderName::parse(name).unwrap(),
            value,
            invert: false,
            treat_missing_as_empty: false,
        }
    }

    fn exact(text: &str) -> HeaderValueMatch {
        HeaderValueMatch::String(StringMatcher::exact(text.as_bytes()))
    }

    #[test]
    fn each_line_is_a_value() {
        assert!(matcher("x-a", exact("1")).matches(&list()));
        assert!(matcher("x-a", exact("2")).matches(&list()));
        assert!(!matcher("x-a", exact("1,2")).matches(&list()));
        let none_is_2 = HeaderMatcher { invert: true, ..matcher("x-a", exact("2")) };
        assert!(!none_is_2.matches(&list()));
    }

    #[test]
    fn some_headers_are_joined() {
        let mut list = HeaderList::new();
        list.push_raw(b"x-forwarded-for", b"1");
        list.push_raw(b"X-Forwarded-For", b"2");
        assert!(matcher("x-forwarded-for", exact("1,2")).matches(&list));
        assert!(!matcher("x-forwarded-for", exact("1")).matches(&list));
    }

    #[test]
    fn presence_and_inversion() {
        let there = matcher("x-a", HeaderValueMatch::Present(true));
        let gone = matcher("x-b", HeaderValueMatch::Present(false));
        assert!(there.matches(&list()) && gone.matches(&list()));
        assert!(!HeaderMatcher { invert: true, ..there }.matches(&list()));
        assert!(!HeaderMatcher { invert: true, ..gone }.matches(&list()));
        let missing = HeaderMatcher { invert: true, ..matcher("x-b", exact("1")) };
        assert!(!missing.matches(&list()), "a header that is not there matches nothing");
        assert!(HeaderMatcher { treat_missing_as_empty: true, ..missing }.matches(&list()));
        assert!(
            HeaderMatcher { treat_missing_as_empty: true, ..matcher("x-b", exact("")) }
                .matches(&list())
        );
    }

    #[test]
    fn ranges_are_half_open_and_need_a_number() {
        let of = |start, end| matcher("x-n", HeaderValueMatch::Range { start, end });
        assert!(of(7, 8).matches(&list()));
        assert!(!of(6, 7).matches(&list()));
        let text = HeaderMatcher {
            invert: true,
            ..matcher("x-empty", HeaderValueMatch::Range { start: 0, end: 9 })
        };
        assert!(text.matches(&list()));
    }

    #[test]
    fn status_is_a_header_of_responses() {
        let head =
            ResponseHead::new(http::StatusCode::NOT_FOUND, crate::codec::head::Protocol::Http11);
        assert!(matcher(":status", exact("404")).matches(&head));
        assert!(!matcher(":path", exact("404")).matches(&head));
    }
}
