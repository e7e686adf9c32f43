//! A line's form, in spdlog's pattern syntax with Envoy's additions (`%j`, `%_`, `%*`), compiled once.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::LogLevel;

/// What a line says.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    pub level: LogLevel,
    /// Envoy's logger name.
    pub logger: &'a str,
    pub message: &'a str,
    pub file: &'a str,
    pub line: u32,
    pub function: &'a str,
}

/// A compiled `--log-format`. An operator that spdlog does not know stays as it is written.
#[derive(Debug)]
pub struct Pattern {
    parts: Vec<Part>,
    started: Instant,
    /// Nanoseconds after `started` of the line before (`%i`, `%u`, `%o`).
    last: AtomicU64,
}

/// A `json_format` holds an operator that breaks JSON.
#[derive(Debug, thiserror::Error)]
#[error("usage of {0} is unavailable for JSON log formats, %j escapes the message")]
pub struct InvalidPattern(&'static str);

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Operator(char, Option<Padding>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Padding {
    width: usize,
    side: Side,
    truncate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Side {
    /// Spaces before the value.
    Left,
    Right,
    Center,
}

/// strftime operators that mean the same in spdlog.
const TIME: &str = "aAbBCdHIMmpSY";
const OTHER: &str = "v_j*nltPgs#!@LefFErRTXDxchz%iuo^$+hy";
/// spdlog pads no wider.
const MAX_WIDTH: usize = 64;

impl Pattern {
    /// Compiles `--log-format` or `text_format`.
    pub fn new(format: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let (padding, after) = padding(rest);
            let mut chars = after.chars();
            match chars.next() {
                Some('%') => text.push('%'),
                // Where colour would begin and end.
                Some('^' | '$') => {}
                Some(c) if TIME.contains(c) || OTHER.contains(c) => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(Part::Operator(c, padding));
                }
                Some(c) => text.extend(['%', c]),
                None => {}
            }
            rest = chars.as_str();
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Self { parts, started: Instant::now(), last: AtomicU64::new(0) }
    }

    /// `application_log_config.log_format.json_format`, serialised: one JSON object per line.
    ///
    /// # Errors
    /// The format asks for the message unescaped.
    pub fn json(format: &str) -> Result<Self, InvalidPattern> {
        for operator in ["%v", "%_"] {
            if format.contains(operator) {
                return Err(InvalidPattern(operator));
            }
        }
        Ok(Self::new(format))
    }

    /// Appends a line, without its end. `escaped` is `--log-format-escaped`.
    pub fn render(&self, line: &Line<'_>, escaped: bool, out: &mut String) {
        let now = SystemTime::now();
        let zoned = Timestamp::try_from(now).unwrap_or_default().to_zoned(TimeZone::UTC);
        let elapsed = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let since = elapsed.saturating_sub(self.last.swap(elapsed, Ordering::Relaxed));
        let mut value = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Operator('v', None) if !escaped => out.push_str(line.message),
                Part::Operator(operator, padding) => {
                    value.clear();
                    let operator = if escaped && *operator == 'v' { '_' } else { *operator };
                    operate(operator, line, now, &zoned, since, &mut value);
                    match padding {
                        Some(padding) => padding.apply(&value, out),
                        None => out.push_str(&value),
                    }
                }
            }
        }
    }
}

/// Reads `[-=]<width>[!]` in front of an operator.
fn padding(text: &str) -> (Option<Padding>, &str) {
    let (side, after) = match text.as_bytes().first() {
        Some(b'-') => (Side::Right, &text[1..]),
        Some(b'=') => (Side::Center, &text[1..]),
        _ => (Side::Left, text),
    };
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(width) = after[..digits].parse::<usize>() else { return (None, after) };
    let after = &after[digits..];
    let (truncate, after) = match after.strip_prefix('!') {
        Some(after) => (true, after),
        None => (false, after),
    };
    (Some(Padding { width: width.min(MAX_WIDTH), side, truncate }), after)
}

impl Padding {
    fn apply(self, value: &str, out: &mut String) {
        let length = value.chars().count();
        if length >= self.width {
            if self.truncate {
                out.extend(value.chars().take(self.width));
            } else {
                out.push_str(value);
            }
            return;
        }
        let spaces = self.width - length;
        let before = match self.side {
            Side::Left => spaces,
            Side::Right => 0,
            Side::Center => spaces / 2,
        };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(value);
        out.extend(std::iter::repeat_n(' ', spaces - before));
    }
}

fn operate(
    operator: char,
    line: &Line<'_>,
    now: SystemTime,
    zoned: &jiff::Zoned,
    since: u64,
    out: &mut String,
) {
    let source = |out: &mut String| {
        let _ = write!(out, "{}:{}", line.file, line.line);
    };
    let time = |format: &str, out: &mut String| {
        let _ = write!(out, "{}", zoned.strftime(format));
    };
    let nanos = zoned.subsec_nanosecond();
    let _ = match operator {
        'v' | '+' => write!(out, "{}", line.message),
        '_' => return escape(line.message, false, out),
        'j' => return escape(line.message, true, out),
        'n' => write!(out, "{}", line.logger),
        'l' => write!(out, "{}", line.level),
        'L' => return out.push(initial(line.level)),
        't' => write!(out, "{}", nix::unistd::gettid()),
        'P' => write!(out, "{}", std::process::id()),
        'g' => write!(out, "{}", line.file),
        's' => write!(out, "{}", line.file.rsplit('/').next().unwrap_or_default()),
        '#' => write!(out, "{}", line.line),
        '@' => return source(out),
        '!' => write!(out, "{}", line.function),
        'e' => write!(out, "{:03}", nanos / 1_000_000),
        'f' => write!(out, "{:06}", nanos / 1_000),
        'F' => write!(out, "{nanos:09}"),
        'E' => {
            let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            write!(out, "{seconds}")
        }
        'r' => return time("%I:%M:%S %p", out),
        'R' => return time("%H:%M", out),
        'T' | 'X' => return time("%H:%M:%S", out),
        'D' | 'x' => return time("%m/%d/%y", out),
        'c' => return time("%a %b %e %H:%M:%S %Y", out),
        'C' => return time("%y", out),
        'h' => return time("%b", out),
        'z' => return time("%:z", out),
        'i' => write!(out, "{}", since / 1_000),
        'u' => write!(out, "{since}"),
        'o' => write!(out, "{}", since / 1_000_000),
        '*' => return,
        other => return time(&format!("%{other}"), out),
    };
}

fn initial(level: LogLevel) -> char {
    match level {
        LogLevel::Trace => 'T',
        LogLevel::Debug => 'D',
        LogLevel::Info => 'I',
        LogLevel::Warning => 'W',
        LogLevel::Error => 'E',
        LogLevel::Critical => 'C',
        LogLevel::Off => 'O',
    }
}

/// `%_`: control characters and quotes as C escapes (absl's `CEscape`-like list); `%j`: as inside a JSON string.
fn escape(text: &str, json: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '"' => out.push_str("\\\""),
            '\\' if json => out.push_str("\\\\"),
            '\u{b}' if !json => out.push_str("\\v"),
            '\0' if !json => out.push_str("\\0"),
            c if json && c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(format: &str, message: &str) -> String {
        let line = Line {
            level: LogLevel::Info,
            logger: "main",
            message,
            file: "source/server/server.cc",
            line: 989,
            function: "run",
        };
        let mut out = String::new();
        Pattern::new(format).render(&line, false, &mut out);
        out
    }

    #[test]
    fn operators_are_spdlogs() {
        assert_eq!(render("[%8l] %v", "m"), "[    info] m");
        assert_eq!(render("[%-8l|%=9l]", "m"), "[info    |  info   ]");
        assert_eq!(render("%3!l", "m"), "inf");
        assert_eq!(
            render("%L %n %g %s %# %@", ""),
            "I main source/server/server.cc server.cc 989 source/server/server.cc:989"
        );
        assert_eq!(render("%q 100%% %^%l%$ %*", "m"), "%q 100% info ");
        assert_eq!(render("%j|%_", "a\n\"\\"), "a\\n\\\"\\\\|a\\n\\\"\\");
    }

    #[test]
    fn the_default_format_has_envoys_shape() {
        let line = render("[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v", "hello");
        let shape: String =
            line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert!(shape.starts_with("[0000-00-00 00:00:00.000]["), "{line}");
        assert!(line.ends_with("][info][main] [source/server/server.cc:989] hello"), "{line}");
    }

    #[test]
    fn json_formats_escape_their_message() {
        assert!(Pattern::json("{\"m\":\"%v\"}").is_err());
        assert!(Pattern::json("{\"m\":\"%j\"}").is_ok());
    }
}
