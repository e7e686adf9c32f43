//! `envoy.config.route.v3.HeaderMatcher`, over request heads, response heads and plain header lists.

use smallvec::SmallVec;

use super::StringMatcher;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::name::HeaderName;

/// Several lines of one header, joined.
pub type JoinBuffer = SmallVec<[u8; 128]>;

/// Anything that has header values by name.
pub trait HeaderSource {
    /// The value of the header; several lines are joined by `,` in `buffer`, as Envoy's
    /// `getAllOfHeaderAsString` does.
    fn joined<'a>(&'a self, name: &HeaderName, buffer: &'a mut JoinBuffer) -> Option<&'a [u8]>;
}

impl HeaderSource for HeaderList {
    fn joined<'a>(&'a self, name: &HeaderName, buffer: &'a mut JoinBuffer) -> Option<&'a [u8]> {
        let mut lines = self.get_all(name);
        let first = lines.next()?;
        let Some(second) = lines.next() else { return Some(first) };
        buffer.clear();
        buffer.extend_from_slice(first);
        for line in std::iter::once(second).chain(lines) {
            buffer.push(b',');
            buffer.extend_from_slice(line);
        }
        Some(buffer)
    }
}

impl HeaderSource for RequestHead {
    fn joined<'a>(&'a self, name: &HeaderName, buffer: &'a mut JoinBuffer) -> Option<&'a [u8]> {
        if name.is_pseudo() || name.as_str() == "host" {
            return self.get(name);
        }
        self.headers.joined(name, buffer)
    }
}

impl HeaderSource for ResponseHead {
    fn joined<'a>(&'a self, name: &HeaderName, buffer: &'a mut JoinBuffer) -> Option<&'a [u8]> {
        if name.is_pseudo() {
            if name.as_str() != ":status" {
                return None;
            }
            buffer.clear();
            buffer.extend_from_slice(self.status.as_str().as_bytes());
            return Some(buffer);
        }
        self.headers.joined(name, buffer)
    }
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
        let mut buffer = JoinBuffer::new();
        let value = headers.joined(&self.name, &mut buffer);
        let value = if self.treat_missing_as_empty { value.or(Some(b"")) } else { value };
        let matched = match (&self.value, value) {
            (HeaderValueMatch::Present(present), value) => value.is_some() == *present,
            (_, None) => return false,
            (HeaderValueMatch::Range { start, end }, Some(value)) => {
                parse_decimal(value).is_some_and(|number| (*start..*end).contains(&number))
            }
            (HeaderValueMatch::String(matcher), Some(value)) => matcher.matches(value),
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
    fn lines_are_joined_by_commas() {
        assert!(matcher("x-a", exact("1,2")).matches(&list()));
        assert!(!matcher("x-a", exact("1")).matches(&list()));
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
