//! What is wrong with a regular expression, in the words of RE2, which Envoy's answers have.

/// The reason and the part of the pattern that it is about.
pub(super) fn of(error: &regex::Error, pattern: &str) -> String {
    let text = error.to_string();
    let mut lines = text.lines().rev();
    let last = lines.next().unwrap_or_default();
    let last = last.strip_prefix("error: ").unwrap_or(last);
    // The line before points at the place, behind an indent of four.
    let marks = lines.next().unwrap_or_default();
    // It counts characters.
    let column = marks.find('^').map_or(0, |at| at.saturating_sub(4));
    let length = marks.bytes().filter(|b| *b == b'^').count();
    let start = offset(pattern, column);
    let (before, from) = pattern.split_at(start);
    let part = &from[..offset(from, length)];
    let (reason, part) = match last {
        "unclosed character class" => ("missing ]", from),
        "unclosed group" => ("missing )", pattern),
        "unopened group" => ("unexpected )", pattern),
        "repetition operator missing expression" => ("no argument for repetition operator", part),
        "unrecognized escape sequence" => ("invalid escape sequence", part),
        "invalid character class range, the start must be <= the end" => {
            ("invalid character class range", part)
        }
        "incomplete escape sequence, reached end of pattern prematurely" => {
            return "trailing \\".to_owned();
        }
        "invalid repetition count range, the start must be <= the end" => {
            ("invalid repetition size", part)
        }
        "unclosed capture group name" | "empty capture group name" => {
            let group = before.rfind("(?P").unwrap_or(start);
            ("invalid named capture group", &pattern[group..])
        }
        "look-around, including look-ahead and look-behind, is not supported" => {
            ("invalid perl operator", part)
        }
        _ => (last, pattern),
    };
    format!("{reason}: {part}")
}

/// Where the character with this number begins; the end where there are fewer.
fn offset(text: &str, characters: usize) -> usize {
    text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_re2s() {
        for (pattern, reason) in [
            ("[", "missing ]: ["),
            ("a[bc", "missing ]: [bc"),
            ("a(b", "missing ): a(b"),
            ("a)b", "unexpected ): a)b"),
            ("*", "no argument for repetition operator: *"),
            ("+a", "no argument for repetition operator: +"),
            (r"\y", r"invalid escape sequence: \y"),
            ("[z-a]", "invalid character class range: z-a"),
            ("a\\", "trailing \\"),
            ("a{3,2}", "invalid repetition size: {3,2}"),
            ("(?P<n", "invalid named capture group: (?P<n"),
            ("(?=a)", "invalid perl operator: (?="),
            ("ééééé(?P<", "invalid named capture group: (?P<"),
            ("éé[z-a]é", "invalid character class range: z-a"),
            ("ü(?=é)", "invalid perl operator: (?="),
        ] {
            assert_eq!(of(&regex::Regex::new(pattern).unwrap_err(), pattern), reason);
        }
    }
}
