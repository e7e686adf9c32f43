//! RE2's syntax and meaning on the crate regex: both are automata without look-around or
//! back-references, so that a match takes linear time whatever the input.
//!
//! Where the two dialects differ the pattern is rewritten: RE2's `\d`, `\w`, `\s`, `\b` are ASCII,
//! `[`, `&&`, `--`, `~~` mean nothing inside a class, a `{` that opens no repetition is itself,
//! `\Q…\E` quotes. Source: RE2's syntax page; `envoy.type.matcher.v3.RegexMatcher`.

use std::fmt;

use regex::bytes;

/// Bytes of compiled program that a pattern may have; larger ones are refused.
const PROGRAM_BYTES: usize = 1 << 20;
/// Bytes of lazily built automaton kept per regex and thread.
const CACHE_BYTES: usize = 256 << 10;

/// A pattern that must match a whole value.
#[derive(Clone)]
pub struct Regex {
    /// Anchored at both ends.
    whole: bytes::Regex,
    source: Box<str>,
}

impl Regex {
    /// # Errors
    /// The pattern is not RE2's, uses what no automaton has, or is too large.
    pub fn new(pattern: &str) -> Result<Self, InvalidRegex> {
        let translated = translate(pattern);
        // Compiled alone first: `a)(b` must not pass because the group around it closes it.
        compile(pattern, &translated)?;
        let whole = compile(pattern, &format!(r"\A(?:{translated})\z"))?;
        Ok(Self { whole, source: pattern.into() })
    }

    /// RE2's FullMatch.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.whole.is_match(value)
    }

    /// As written in the configuration.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Regex({:?})", self.source)
    }
}

/// `envoy.type.matcher.v3.RegexMatchAndSubstitute`: RE2's GlobalReplace.
#[derive(Debug, Clone)]
pub struct RegexReplace {
    pattern: bytes::Regex,
    parts: Box<[Part]>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<[u8]>),
    Group(usize),
}

impl RegexReplace {
    /// `substitution` may have `\0`…`\9` and `\\`.
    ///
    /// # Errors
    /// The pattern is refused, the substitution has another escape, or names a group that is not there
    /// (Envoy takes the last two, and then replaces nothing).
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, InvalidRegex> {
        let compiled = compile(pattern, &translate(pattern))?;
        let parts = parse_substitution(substitution, compiled.captures_len() - 1)
            .map_err(|reason| InvalidRegex { pattern: substitution.into(), reason })?;
        Ok(Self { pattern: compiled, parts })
    }

    /// Appends `value` with every match replaced to `out`.
    pub fn replace_all(&self, value: &[u8], out: &mut Vec<u8>) {
        let mut done = 0;
        for captures in self.pattern.captures_iter(value) {
            let Some(all) = captures.get(0) else { continue };
            out.extend_from_slice(&value[done..all.start()]);
            for part in &self.parts {
                match part {
                    Part::Literal(text) => out.extend_from_slice(text),
                    Part::Group(group) => {
                        out.extend_from_slice(captures.get(*group).map_or(b"", |m| m.as_bytes()));
                    }
                }
            }
            done = all.end();
        }
        out.extend_from_slice(&value[done..]);
    }
}

/// Why a pattern or a substitution is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid regex '{pattern}': {reason}")]
pub struct InvalidRegex {
    pub pattern: String,
    pub reason: String,
}

fn compile(pattern: &str, translated: &str) -> Result<bytes::Regex, InvalidRegex> {
    bytes::RegexBuilder::new(translated)
        .size_limit(PROGRAM_BYTES)
        .dfa_size_limit(CACHE_BYTES)
        .build()
        .map_err(|error| {
            // The crate's text is several lines with a drawing; its last line is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim();
            InvalidRegex {
                pattern: pattern.into(),
                reason: reason.trim_start_matches("error: ").into(),
            }
        })
}

fn parse_substitution(text: &str, groups: usize) -> Result<Box<[Part]>, String> {
    let mut parts = Vec::new();
    let mut literal = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            literal.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'\\') => literal.push(b'\\'),
            Some(digit @ b'0'..=b'9') => {
                let group = usize::from(digit - b'0');
                if group > groups {
                    return Err(format!("the pattern has no group {group}"));
                }
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Group(group));
            }
            _ => return Err("after a backslash comes a digit or a backslash".to_owned()),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(parts.into())
}

/// RE2's pattern in the crate's dialect.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    // Inside a class: how many of its own characters have been seen.
    let mut class: Option<usize> = None;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match (c, class) {
            ('\\', _) => {
                rest = translate_escape(after, class.is_some(), &mut out);
                class = class.map(|n| n + 1);
                continue;
            }
            ('[', None) => {
                out.push('[');
                rest = after;
                if let Some(negated) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = negated;
                }
                class = Some(0);
                continue;
            }
            ('[', Some(n)) => {
                if after.starts_with(':')
                    && let Some(end) = after.find(":]")
                {
                    out.push('[');
                    out.push_str(&after[..end + 2]);
                    rest = &after[end + 2..];
                    class = Some(n + 1);
                    continue;
                }
                out.push_str(r"\[");
                class = Some(n + 1);
            }
            // A `]` that comes first is itself.
            (']', Some(0)) => {
                out.push_str(r"\]");
                class = Some(1);
            }
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('&' | '~' | '-', Some(n)) => {
                if n > 0 && out.ends_with(c) {
                    out.push('\\');
                }
                out.push(c);
                class = Some(n + 1);
            }
            (_, Some(n)) => {
                out.push(c);
                class = Some(n + 1);
            }
            ('{', None) if !opens_repetition(after) => out.push_str(r"\{"),
            (_, None) => out.push(c),
        }
        rest = after;
    }
    out
}

/// What follows a backslash; returns the rest.
fn translate_escape<'a>(after: &'a str, in_class: bool, out: &mut String) -> &'a str {
    let Some(c) = after.chars().next() else {
        out.push('\\');
        return after;
    };
    let rest = &after[c.len_utf8()..];
    match c {
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str(r"[\t\n\f\r ]"),
        'S' => out.push_str(r"[^\t\n\f\r ]"),
        'b' if !in_class => out.push_str(r"(?-u:\b)"),
        // RE2's negated boundary is ASCII too; the crate has it only where it cannot split a character.
        'B' if !in_class => out.push_str(r"\B"),
        'C' if !in_class => out.push_str("(?s-u:.)"),
        '<' | '>' => out.push(c),
        'Q' if !in_class => {
            let (quoted, rest) = rest.split_once(r"\E").unwrap_or((rest, ""));
            out.push_str(&regex::escape(quoted));
            return rest;
        }
        _ => {
            out.push('\\');
            out.push(c);
        }
    }
    rest
}

/// Whether the text after `{` is `n}`, `n,}` or `n,m}`.
fn opens_repetition(after: &str) -> bool {
    let Some((bounds, _)) = after.split_once('}') else { return false };
    let (low, high) = bounds.split_once(',').unwrap_or((bounds, ""));
    !low.is_empty()
        && low.bytes().all(|b| b.is_ascii_digit())
        && high.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(pattern: &str, value: &str) -> bool {
        Regex::new(pattern).unwrap().matches(value.as_bytes())
    }

    #[test]
    fn the_whole_value_must_match() {
        assert!(full("/a.*", "/abc"));
        assert!(!full("a", "ab"));
        assert!(full("a|ab", "ab"));
        assert!(!full("a|b", "ab"));
        assert!(full("", ""));
        assert!(!Regex::new(".*").unwrap().matches(b"a\nb"));
    }

    #[test]
    fn re2s_dialect() {
        assert!(!full(r"\d", "\u{664}"), "ASCII digits only");
        assert!(full(r"[\d\-_]+", "1-_"));
        assert!(full(r"[^\s]+", "ab"));
        assert!(full("[[a]+", "[a"));
        assert!(full("[]a]+", "]a"));
        assert!(full("[^]a]+", "bc"));
        assert!(full("[a&&b]+", "a&b"));
        assert!(full("[!--]+", "#-"));
        assert!(full("[[:alpha:]_]+", "ab_"));
        assert!(full("/{id}", "/{id}"));
        assert!(full("a{2}", "aa"));
        assert!(full(r"\Qa.b\E.", "a.bc"));
        assert!(full(r"\<\/", "</"));
        assert!(full(r"a\b", "a"));
    }

    #[test]
    fn what_no_automaton_has_is_refused() {
        assert!(Regex::new("(?=a)").is_err());
        assert!(Regex::new(r"(a)\1").is_err());
        assert!(Regex::new("a)(b").is_err());
        assert!(Regex::new("(a{1000}){1000}").is_err());
        assert!(Regex::new("*").is_err());
    }

    #[test]
    fn replaces_every_match() {
        let replace = |pattern, substitution, value: &str| {
            let mut out = Vec::new();
            RegexReplace::new(pattern, substitution)
                .unwrap()
                .replace_all(value.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            replace("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1"),
            "/v1/instance/foo"
        );
        assert_eq!(replace("one", "two", "/one/one"), "/two/two");
        assert_eq!(replace("b*", "X", "abc"), "XaXcX");
        assert_eq!(replace("a", r"\\\0", "a"), r"\a");
        assert!(RegexReplace::new("a", r"\1").is_err());
        assert!(RegexReplace::new("a", r"\x").is_err());
    }
}
