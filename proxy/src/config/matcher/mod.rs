//! Compiled matchers: strings, headers, query parameters, cookies and address ranges.
//!
//! Built by `config::compile::matcher` from `envoy.type.matcher.v3` and `envoy.config.route.v3`
//! messages; pure and free of allocation (a header with several lines excepted: they are joined).
//! Values are bytes: a request may carry any.

pub mod header;
pub mod query;
pub mod re2;

use memchr::memmem;

use self::re2::Regex;

/// `envoy.type.matcher.v3.StringMatcher`.
#[derive(Debug, Clone)]
pub struct StringMatcher {
    pattern: StringPattern,
    ignore_case: bool,
}

/// What a string is compared with; with `ignore_case` the text is lower case already.
#[derive(Debug, Clone)]
pub enum StringPattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    /// Matches the whole value; `ignore_case` has no say.
    Regex(Regex),
}

impl StringMatcher {
    /// `ignore_case` is for ASCII letters only, as in Envoy, and not for regexes.
    pub fn new(mut pattern: StringPattern, ignore_case: bool) -> Self {
        if ignore_case {
            match &mut pattern {
                StringPattern::Exact(text)
                | StringPattern::Prefix(text)
                | StringPattern::Suffix(text)
                | StringPattern::Contains(text) => text.make_ascii_lowercase(),
                StringPattern::Regex(_) => {}
            }
        }
        Self { pattern, ignore_case }
    }

    pub fn exact(text: &[u8]) -> Self {
        Self::new(StringPattern::Exact(text.into()), false)
    }

    pub fn prefix(text: &[u8]) -> Self {
        Self::new(StringPattern::Prefix(text.into()), false)
    }

    pub fn pattern(&self) -> &StringPattern {
        &self.pattern
    }

    pub fn matches(&self, value: &[u8]) -> bool {
        match (&self.pattern, self.ignore_case) {
            (StringPattern::Exact(text), false) => value == &**text,
            (StringPattern::Exact(text), true) => value.eq_ignore_ascii_case(text),
            (StringPattern::Prefix(text), ignore_case) => {
                value.get(..text.len()).is_some_and(|head| eq(head, text, ignore_case))
            }
            (StringPattern::Suffix(text), ignore_case) => value
                .len()
                .checked_sub(text.len())
                .is_some_and(|at| eq(&value[at..], text, ignore_case)),
            (StringPattern::Contains(text), false) => memmem::find(value, text).is_some(),
            (StringPattern::Contains(text), true) => {
                text.is_empty()
                    || value.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text))
            }
            (StringPattern::Regex(regex), _) => regex.matches(value),
        }
    }
}

fn eq(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// `envoy.type.matcher.v3.ListStringMatcher`: true when any pattern matches.
#[derive(Debug, Clone, Default)]
pub struct ListStringMatcher {
    pub patterns: Box<[StringMatcher]>,
}

impl ListStringMatcher {
    pub fn matches(&self, value: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(value))
    }
}

/// `envoy.type.matcher.v3.PathMatcher`: a string matcher that sees `:path` without query and fragment.
#[derive(Debug, Clone)]
pub struct PathMatcher(pub StringMatcher);

impl PathMatcher {
    pub fn matches(&self, path: &[u8]) -> bool {
        self.0.matches(without_query(path))
    }
}

/// `:path` up to the first `?` or `#`.
pub fn without_query(path: &[u8]) -> &[u8] {
    match memchr::memchr2(b'?', b'#', path) {
        Some(at) => &path[..at],
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pattern_with_and_without_case() {
        let of = |pattern: fn(Box<[u8]>) -> StringPattern, text: &str, ignore_case| {
            StringMatcher::new(pattern(text.as_bytes().into()), ignore_case)
        };
        assert!(of(StringPattern::Exact, "aB", false).matches(b"aB"));
        assert!(!of(StringPattern::Exact, "aB", false).matches(b"ab"));
        assert!(of(StringPattern::Exact, "aB", true).matches(b"Ab"));
        assert!(of(StringPattern::Prefix, "/Api", true).matches(b"/apI/x"));
        assert!(!of(StringPattern::Prefix, "/api", false).matches(b"/ap"));
        assert!(of(StringPattern::Suffix, ".JPG", true).matches(b"x.jpg"));
        assert!(!of(StringPattern::Suffix, "long", false).matches(b"ng"));
        assert!(of(StringPattern::Contains, "b", false).matches(b"abc"));
        assert!(of(StringPattern::Contains, "BC", true).matches(b"abcd"));
        assert!(!of(StringPattern::Contains, "BC", true).matches(b"acbd"));
    }

    #[test]
    fn path_matchers_do_not_see_query_and_fragment() {
        let matcher = PathMatcher(StringMatcher::exact(b"/a"));
        assert!(matcher.matches(b"/a?b#c"));
        assert!(matcher.matches(b"/a#c"));
        assert!(!matcher.matches(b"/a/"));
    }
}
