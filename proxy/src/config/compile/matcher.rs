//! pb string, header, query, cookie, path and address matchers to `config::matcher`.

use std::net::IpAddr;

use super::diagnostic::FieldPath;
use crate::codec::name::HeaderName;
use crate::config::cidr::Cidr;
use crate::config::matcher::header::{HeaderMatcher, HeaderValueMatch};
use crate::config::matcher::query::{CookieMatcher, QueryParameterMatch, QueryParameterMatcher};
use crate::config::matcher::re2::{Regex, RegexReplace};
use crate::config::matcher::{ListStringMatcher, PathMatcher, StringMatcher, StringPattern};
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as route_pb;
use crate::config::pb::envoy::r#type::matcher::v3 as pb;

/// `RegexMatcher`: a whole value.
pub fn compile_regex(regex: &pb::RegexMatcher, path: &FieldPath<'_>) -> Option<Regex> {
    check_regex(regex, path)?;
    path.field("regex").ok_or_error(Regex::new(&regex.regex))
}

/// `RegexMatchAndSubstitute`.
pub fn compile_regex_replace(
    replace: &pb::RegexMatchAndSubstitute,
    path: &FieldPath<'_>,
) -> Option<RegexReplace> {
    let Some(pattern) = &replace.pattern else {
        path.field("pattern").error("value is required");
        return None;
    };
    check_regex(pattern, &path.field("pattern"))?;
    path.ok_or_error(RegexReplace::new(&pattern.regex, &replace.substitution))
}

#[expect(deprecated, reason = "max_program_size is reported")]
fn check_regex(regex: &pb::RegexMatcher, path: &FieldPath<'_>) -> Option<()> {
    if regex.regex.is_empty() {
        path.field("regex").error("value length must be at least 1 characters");
        return None;
    }
    if let Some(pb::regex_matcher::EngineType::GoogleRe2(re2)) = &regex.engine_type
        && re2.max_program_size.is_some()
    {
        let path = path.field("google_re2");
        path.field("max_program_size").ignored("the size of regexes has a fixed limit");
    }
    Some(())
}

/// `StringMatcher`.
pub fn compile_string_matcher(
    matcher: &pb::StringMatcher,
    path: &FieldPath<'_>,
) -> Option<StringMatcher> {
    use pb::string_matcher::MatchPattern;
    let at_least_one = |text: &str, field: &str| {
        if text.is_empty() {
            path.field(field).error("value length must be at least 1 characters");
            return None;
        }
        Some(Box::from(text.as_bytes()))
    };
    let pattern = match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => StringPattern::Exact(text.as_bytes().into()),
        Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(at_least_one(text, "prefix")?),
        Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(at_least_one(text, "suffix")?),
        Some(MatchPattern::Contains(text)) => {
            StringPattern::Contains(at_least_one(text, "contains")?)
        }
        Some(MatchPattern::SafeRegex(regex)) => {
            let path = path.field("safe_regex");
            if matcher.ignore_case {
                path.error("ignore_case has no effect for safe_regex.");
                return None;
            }
            StringPattern::Regex(compile_regex(regex, &path)?)
        }
        Some(MatchPattern::Custom(_)) => {
            path.field("custom").error("custom string matchers are not supported");
            return None;
        }
        None => {
            path.field("match_pattern").error("value is required");
            return None;
        }
    };
    Some(StringMatcher::new(pattern, matcher.ignore_case))
}

/// `ListStringMatcher`; `path` is the message.
pub fn compile_list_string_matcher(
    list: &pb::ListStringMatcher,
    path: &FieldPath<'_>,
) -> Option<ListStringMatcher> {
    if list.patterns.is_empty() {
        path.field("patterns").error("value must contain at least 1 item(s)");
        return None;
    }
    let patterns = compile_string_matchers(&list.patterns, "patterns", path)?;
    Some(ListStringMatcher { patterns })
}

/// A repeated `StringMatcher` field of `path`'s message; reports every bad one.
pub fn compile_string_matchers(
    list: &[pb::StringMatcher],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[StringMatcher]>> {
    compile_all(list, |i, m| compile_string_matcher(m, &path.index(field, i)))
}

/// `PathMatcher`.
pub fn compile_path_matcher(
    matcher: &pb::PathMatcher,
    path: &FieldPath<'_>,
) -> Option<PathMatcher> {
    match &matcher.rule {
        Some(pb::path_matcher::Rule::Path(matcher)) => {
            compile_string_matcher(matcher, &path.field("path")).map(PathMatcher)
        }
        None => {
            path.field("rule").error("value is required");
            None
        }
    }
}

/// `MetadataMatcher`: what it looks at is written by filters that do not exist yet, so it could only
/// be guessed at.
pub fn reject_metadata_matcher<T>(path: &FieldPath<'_>) -> Option<T> {
    path.error("metadata matchers are not supported");
    None
}

/// A repeated `HeaderMatcher` field of `path`'s message; reports every bad one.
pub fn compile_header_matchers(
    list: &[route_pb::HeaderMatcher],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[HeaderMatcher]>> {
    compile_all(list, |i, m| compile_header_matcher(m, &path.index(field, i)))
}

/// `HeaderMatcher`, its deprecated forms too.
#[expect(deprecated, reason = "configurations still have the older forms")]
pub fn compile_header_matcher(
    matcher: &route_pb::HeaderMatcher,
    path: &FieldPath<'_>,
) -> Option<HeaderMatcher> {
    use route_pb::header_matcher::HeaderMatchSpecifier as Specifier;
    let name = path.field("name").ok_or_error(HeaderName::parse(&matcher.name));
    let text = |pattern| Some(HeaderValueMatch::String(StringMatcher::new(pattern, false)));
    let bytes = |text: &str| Box::from(text.as_bytes());
    let at_least_one = |text: &str, field: &str| {
        if text.is_empty() {
            path.field(field).error("value length must be at least 1 characters");
        }
    };
    let value = match &matcher.header_match_specifier {
        None => Some(HeaderValueMatch::Present(true)),
        Some(Specifier::PresentMatch(present)) => Some(HeaderValueMatch::Present(*present)),
        // Envoy takes the empty text for any value here, though not in `string_match`.
        Some(Specifier::ExactMatch(exact)) if exact.is_empty() => {
            text(StringPattern::Prefix(Box::default()))
        }
        Some(Specifier::ExactMatch(exact)) => text(StringPattern::Exact(bytes(exact))),
        Some(Specifier::PrefixMatch(prefix)) => {
            at_least_one(prefix, "prefix_match");
            text(StringPattern::Prefix(bytes(prefix)))
        }
        Some(Specifier::SuffixMatch(suffix)) => {
            at_least_one(suffix, "suffix_match");
            text(StringPattern::Suffix(bytes(suffix)))
        }
        Some(Specifier::ContainsMatch(contains)) => {
            at_least_one(contains, "contains_match");
            text(StringPattern::Contains(bytes(contains)))
        }
        Some(Specifier::SafeRegexMatch(regex)) => {
            compile_regex(regex, &path.field("safe_regex_match"))
                .and_then(|regex| text(StringPattern::Regex(regex)))
        }
        Some(Specifier::RangeMatch(range)) => {
            Some(HeaderValueMatch::Range { start: range.start, end: range.end })
        }
        Some(Specifier::StringMatch(matcher)) => {
            compile_string_matcher(matcher, &path.field("string_match"))
                .map(HeaderValueMatch::String)
        }
    };
    Some(HeaderMatcher {
        name: name?,
        value: value?,
        invert: matcher.invert_match,
        treat_missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

/// A repeated `QueryParameterMatcher` field of `path`'s message; reports every bad one.
pub fn compile_query_parameter_matchers(
    list: &[route_pb::QueryParameterMatcher],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[QueryParameterMatcher]>> {
    use route_pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    compile_all(list, |i, matcher| {
        let path = path.index(field, i);
        if matcher.name.is_empty() || matcher.name.len() > 1024 {
            path.field("name").error("value length must be between 1 and 1024 bytes");
            return None;
        }
        let value = match &matcher.query_parameter_match_specifier {
            None => QueryParameterMatch::Present(true),
            Some(Specifier::PresentMatch(present)) => QueryParameterMatch::Present(*present),
            Some(Specifier::StringMatch(matcher)) => QueryParameterMatch::String(
                compile_string_matcher(matcher, &path.field("string_match"))?,
            ),
        };
        Some(QueryParameterMatcher { name: matcher.name.as_bytes().into(), value })
    })
}

/// A repeated `CookieMatcher` field of `path`'s message; reports every bad one.
pub fn compile_cookie_matchers(
    list: &[route_pb::CookieMatcher],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[CookieMatcher]>> {
    compile_all(list, |i, matcher| {
        let path = path.index(field, i);
        if matcher.name.is_empty() || matcher.name.len() > 1024 {
            path.field("name").error("value length must be between 1 and 1024 bytes");
            return None;
        }
        let Some(string_match) = &matcher.string_match else {
            path.field("string_match").error("value is required");
            return None;
        };
        Some(CookieMatcher {
            name: matcher.name.as_bytes().into(),
            value: compile_string_matcher(string_match, &path.field("string_match"))?,
            invert: matcher.invert_match,
        })
    })
}

/// `core.v3.CidrRange`; a missing `prefix_len` is 0.
pub fn compile_cidr(range: &core_pb::CidrRange, path: &FieldPath<'_>) -> Option<Cidr> {
    let address = range.address_prefix.parse::<IpAddr>();
    let address = path.field("address_prefix").ok_or_error(
        address.map_err(|_| format!("malformed IP address: {}", range.address_prefix)),
    )?;
    let prefix_len = range.prefix_len.as_ref().map_or(0, |len| len.value);
    match u8::try_from(prefix_len) {
        Ok(len @ 0..=128) => Some(Cidr::new(address, len)),
        _ => {
            path.field("prefix_len").error("value must be less than or equal to 128");
            None
        }
    }
}

/// Every item compiled, or `None` when one was not; all are tried, so that all problems are reported.
fn compile_all<T, U>(
    list: &[T],
    mut compile: impl FnMut(usize, &T) -> Option<U>,
) -> Option<Box<[U]>> {
    let compiled: Vec<_> = list.iter().enumerate().map(|(i, item)| compile(i, item)).collect();
    compiled.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::head::HeaderList;
    use crate::config::compile::diagnostic::Diagnostics;
    use crate::config::pb::envoy::r#type::v3::Int64Range;
    use route_pb::header_matcher::HeaderMatchSpecifier as Specifier;

    fn header(specifier: Option<Specifier>) -> route_pb::HeaderMatcher {
        route_pb::HeaderMatcher {
            name: "x-a".into(),
            header_match_specifier: specifier,
            ..Default::default()
        }
    }

    #[test]
    #[expect(deprecated, reason = "the older forms are under test")]
    fn every_header_form() {
        let regex = pb::RegexMatcher { regex: "v[0-9]+".into(), engine_type: None };
        let forms = [
            (None, true),
            (Some(Specifier::PresentMatch(false)), false),
            (Some(Specifier::ExactMatch(String::new())), true),
            (Some(Specifier::ExactMatch("v12".into())), true),
            (Some(Specifier::PrefixMatch("v1".into())), true),
            (Some(Specifier::SuffixMatch("1".into())), false),
            (Some(Specifier::ContainsMatch("1".into())), true),
            (Some(Specifier::SafeRegexMatch(regex)), true),
            (Some(Specifier::RangeMatch(Int64Range { start: 0, end: 20 })), false),
        ];
        let mut headers = HeaderList::new();
        headers.push_raw(b"x-a", b"v12");
        for (specifier, expected) in forms {
            let found = Diagnostics::new("t");
            let matcher = compile_header_matcher(&header(specifier.clone()), &found.root());
            assert_eq!(matcher.unwrap().matches(&headers), expected, "{specifier:?}");
        }
    }

    #[test]
    #[expect(deprecated, reason = "the older forms are under test")]
    fn every_problem_has_its_path() {
        let found = Diagnostics::new("t");
        let regex = pb::RegexMatcher { regex: "(".into(), engine_type: None };
        let list = [
            route_pb::HeaderMatcher { name: "a b".into(), ..Default::default() },
            header(Some(Specifier::SafeRegexMatch(regex))),
            header(Some(Specifier::PrefixMatch(String::new()))),
        ];
        assert!(compile_header_matchers(&list, "headers", &found.root()).is_none());
        let paths: Vec<_> = found.into_vec().into_iter().map(|d| d.path).collect();
        let expected =
            ["headers[0].name", "headers[1].safe_regex_match.regex", "headers[2].prefix_match"];
        assert_eq!(paths, expected);
    }
}
