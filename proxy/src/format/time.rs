//! `%START_TIME%` and its kin: strftime patterns compiled to fields, with the fractions that Envoy
//! adds (`%f`, `%3f`), `%s`, and absl's `%E…` forms. Written without a library call, since a
//! pattern of this kind stands in every access log line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct TimeFormat {
    items: Box<[Item]>,
    zone: Zone,
}

#[derive(Debug, Clone)]
enum Zone {
    Utc,
    Local(TimeZone),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Literal(Box<[u8]>),
    /// Envoy's default form, `2016-04-15T20:17:00.310Z`.
    Default,
    Year,
    YearInCentury,
    Century,
    IsoYear,
    Month(Pad),
    MonthName {
        short: bool,
    },
    Day(Pad),
    Hour(Pad),
    Hour12(Pad),
    Minute,
    Second,
    AmPm {
        upper: bool,
    },
    DayOfYear,
    WeekdayName {
        short: bool,
    },
    WeekdayFromSunday,
    WeekdayFromMonday,
    WeekFromSunday,
    WeekFromMonday,
    IsoWeek,
    Epoch,
    /// So many digits of the second's fraction.
    Fraction(u8),
    /// All digits that are not trailing zeros; with the seconds and a point before them.
    SecondsAll,
    FractionAll,
    Offset {
        colon: bool,
    },
    ZoneName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pad {
    Zero,
    Space,
    None,
}

/// A pattern that would print a line break (`%n`): refused as in Envoy, for it may end in a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HasNewline;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl TimeFormat {
    /// An empty pattern is Envoy's default form.
    pub(super) fn compile(pattern: &str, local: bool) -> Result<Self, HasNewline> {
        let zone = if local { Zone::Local(TimeZone::system()) } else { Zone::Utc };
        let mut items = Vec::new();
        if pattern.is_empty() {
            items.push(Item::Default);
        } else {
            let mut literal = Vec::new();
            compile_items(pattern.as_bytes(), &mut items, &mut literal)?;
            flush(&mut items, &mut literal);
        }
        Ok(Self { items: items.into(), zone })
    }

    pub(super) fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (secs, nanos) = (since.as_secs() as i64, since.subsec_nanos());
        match &self.zone {
            Zone::Utc => self.write_civil(&Civil::new(secs, nanos, 0), "UTC", out),
            Zone::Local(zone) => {
                let timestamp = Timestamp::from_second(secs).unwrap_or(Timestamp::UNIX_EPOCH);
                let info = zone.to_offset_info(timestamp);
                let civil = Civil::new(secs, nanos, info.offset().seconds());
                self.write_civil(&civil, info.abbreviation(), out);
            }
        }
    }

    fn write_civil(&self, t: &Civil, zone: &str, out: &mut Vec<u8>) {
        for item in &self.items {
            match *item {
                Item::Literal(ref text) => out.extend_from_slice(text),
                Item::Default => t.write_default(matches!(self.zone, Zone::Utc), out),
                Item::Year => out.extend_from_slice(itoa::Buffer::new().format(t.year).as_bytes()),
                Item::YearInCentury => number(t.year.rem_euclid(100), 2, Pad::Zero, out),
                Item::Century => number(t.year.div_euclid(100), 2, Pad::Zero, out),
                Item::IsoYear => {
                    out.extend_from_slice(itoa::Buffer::new().format(t.iso_week().0).as_bytes());
                }
                Item::Month(pad) => number(t.month.into(), 2, pad, out),
                Item::MonthName { short } => name(MONTHS[t.month as usize - 1], short, out),
                Item::Day(pad) => number(t.day.into(), 2, pad, out),
                Item::Hour(pad) => number(t.hour.into(), 2, pad, out),
                Item::Hour12(pad) => number(((t.hour + 11) % 12 + 1).into(), 2, pad, out),
                Item::Minute => number(t.minute.into(), 2, Pad::Zero, out),
                Item::Second => number(t.second.into(), 2, Pad::Zero, out),
                Item::AmPm { upper } => out.extend_from_slice(match (t.hour < 12, upper) {
                    (true, true) => b"AM",
                    (true, false) => b"am",
                    (false, true) => b"PM",
                    (false, false) => b"pm",
                }),
                Item::DayOfYear => number((t.day_of_year + 1).into(), 3, Pad::Zero, out),
                Item::WeekdayName { short } => name(DAYS[t.weekday as usize], short, out),
                Item::WeekdayFromSunday => out.push(b'0' + t.weekday),
                Item::WeekdayFromMonday => out.push(b'0' + (t.weekday + 6) % 7 + 1),
                Item::WeekFromSunday => number(t.week(0), 2, Pad::Zero, out),
                Item::WeekFromMonday => number(t.week(1), 2, Pad::Zero, out),
                Item::IsoWeek => number(t.iso_week().1, 2, Pad::Zero, out),
                Item::Epoch => {
                    out.extend_from_slice(itoa::Buffer::new().format(t.epoch).as_bytes());
                }
                Item::Fraction(digits) => fraction(t.nanos, digits, out),
                Item::SecondsAll => {
                    number(t.second.into(), 2, Pad::Zero, out);
                    if t.nanos != 0 {
                        out.push(b'.');
                        trimmed_fraction(t.nanos, out);
                    }
                }
                Item::FractionAll => {
                    if t.nanos == 0 {
                        out.push(b'0');
                    } else {
                        trimmed_fraction(t.nanos, out);
                    }
                }
                Item::Offset { colon } => t.write_offset(colon, out),
                Item::ZoneName => out.extend_from_slice(zone.as_bytes()),
            }
        }
    }
}

fn flush(items: &mut Vec<Item>, literal: &mut Vec<u8>) {
    if !literal.is_empty() {
        items.push(Item::Literal(std::mem::take(literal).into()));
    }
}

fn compile_items(
    pattern: &[u8],
    items: &mut Vec<Item>,
    literal: &mut Vec<u8>,
) -> Result<(), HasNewline> {
    let mut at = 0;
    while at < pattern.len() {
        if pattern[at] != b'%' || at + 1 == pattern.len() {
            literal.push(pattern[at]);
            at += 1;
            continue;
        }
        let start = at;
        at += 1;
        let mut pad = None;
        while let Some(flag @ (b'-' | b'_' | b'0' | b'^' | b'#')) = pattern.get(at) {
            pad = match flag {
                b'-' => Some(Pad::None),
                b'_' => Some(Pad::Space),
                b'0' => Some(Pad::Zero),
                _ => pad,
            };
            at += 1;
        }
        let digits_at = at;
        while pattern.get(at).is_some_and(|b| b.is_ascii_digit() && *b != b'0') {
            at += 1;
        }
        let digits = (at == digits_at + 1).then(|| pattern[digits_at] - b'0');
        let extended = matches!(pattern.get(at), Some(b'E' | b'O'));
        at += usize::from(extended);
        if pattern.get(at) == Some(&b'n') {
            return Err(HasNewline);
        }
        let used = if extended {
            extended_field(&pattern[at..], items, literal)
        } else {
            pattern.get(at).is_some_and(|b| field(*b, digits, pad, items, literal)).then_some(1)
        };
        match used {
            Some(used) => at += used,
            None => {
                // Not a specifier: printed as it stands.
                at = (at + 1).min(pattern.len());
                literal.extend_from_slice(&pattern[start..at]);
            }
        }
    }
    Ok(())
}

/// What may follow `%E`: `*S`, `3S`, `*f`, `3f`, `z`, `*z`, `4Y`. How many bytes it took.
fn extended_field(rest: &[u8], items: &mut Vec<Item>, literal: &mut Vec<u8>) -> Option<usize> {
    let (item, used) = match *rest {
        [b'*', b'S', ..] => (Item::SecondsAll, 2),
        [b'*', b'f', ..] => (Item::FractionAll, 2),
        [b'*', b'z', ..] => (Item::Offset { colon: true }, 2),
        [b'z', ..] => (Item::Offset { colon: true }, 1),
        [b'4', b'Y', ..] => (Item::Year, 2),
        [digit @ b'0'..=b'9', b'S', ..] => {
            flush(items, literal);
            items.push(Item::Second);
            if digit != b'0' {
                items.push(Item::Literal(b".".as_slice().into()));
                items.push(Item::Fraction(digit - b'0'));
            }
            return Some(2);
        }
        [digit @ b'0'..=b'9', b'f', ..] => (Item::Fraction(digit - b'0'), 2),
        _ => return None,
    };
    flush(items, literal);
    items.push(item);
    Some(used)
}

/// One specifier; `false` when it is none. `digits` is the single digit before `f`.
fn field(
    specifier: u8,
    digits: Option<u8>,
    pad: Option<Pad>,
    items: &mut Vec<Item>,
    literal: &mut Vec<u8>,
) -> bool {
    let zero = pad.unwrap_or(Pad::Zero);
    let space = pad.unwrap_or(Pad::Space);
    let composite = match specifier {
        b'D' | b'x' => "%m/%d/%y",
        b'F' => "%Y-%m-%d",
        b'T' | b'X' => "%H:%M:%S",
        b'R' => "%H:%M",
        b'r' => "%I:%M:%S %p",
        b'c' => "%a %b %e %H:%M:%S %Y",
        _ => "",
    };
    if !composite.is_empty() {
        // The composites above have no `%n`.
        return compile_items(composite.as_bytes(), items, literal).is_ok();
    }
    let item = match specifier {
        b'Y' => Item::Year,
        b'y' => Item::YearInCentury,
        b'C' => Item::Century,
        b'G' => Item::IsoYear,
        b'm' => Item::Month(zero),
        b'B' => Item::MonthName { short: false },
        b'b' | b'h' => Item::MonthName { short: true },
        b'd' => Item::Day(zero),
        b'e' => Item::Day(space),
        b'H' => Item::Hour(zero),
        b'k' => Item::Hour(space),
        b'I' => Item::Hour12(zero),
        b'l' => Item::Hour12(space),
        b'M' => Item::Minute,
        b'S' => Item::Second,
        b'p' => Item::AmPm { upper: true },
        b'P' => Item::AmPm { upper: false },
        b'j' => Item::DayOfYear,
        b'A' => Item::WeekdayName { short: false },
        b'a' => Item::WeekdayName { short: true },
        b'w' => Item::WeekdayFromSunday,
        b'u' => Item::WeekdayFromMonday,
        b'U' => Item::WeekFromSunday,
        b'W' => Item::WeekFromMonday,
        b'V' => Item::IsoWeek,
        b's' => Item::Epoch,
        b'f' => Item::Fraction(digits.unwrap_or(9)),
        b'z' => Item::Offset { colon: false },
        b'Z' => Item::ZoneName,
        b't' | b'%' => {
            literal.push(if specifier == b't' { b'\t' } else { b'%' });
            return true;
        }
        _ => return false,
    };
    flush(items, literal);
    items.push(item);
    true
}

fn name(full: &str, short: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if short { &full.as_bytes()[..3] } else { full.as_bytes() });
}

fn number(value: i64, width: usize, pad: Pad, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    let fill = match pad {
        Pad::Zero => Some(b'0'),
        Pad::Space => Some(b' '),
        Pad::None => None,
    };
    if let Some(fill) = fill {
        out.extend(std::iter::repeat_n(fill, width.saturating_sub(digits.len())));
    }
    out.extend_from_slice(digits);
}

fn fraction(nanos: u32, digits: u8, out: &mut Vec<u8>) {
    let digits = digits.clamp(1, 9);
    let value = nanos / 10u32.pow(9 - u32::from(digits));
    number(value.into(), digits.into(), Pad::Zero, out);
}

fn trimmed_fraction(nanos: u32, out: &mut Vec<u8>) {
    number(nanos.into(), 9, Pad::Zero, out);
    while out.last() == Some(&b'0') {
        out.pop();
    }
}

/// A moment as a calendar shows it.
struct Civil {
    epoch: i64,
    nanos: u32,
    offset: i32,
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// 0 is Sunday.
    weekday: u8,
    /// 0 is the first of January.
    day_of_year: u16,
}

impl Civil {
    fn new(epoch: i64, nanos: u32, offset: i32) -> Self {
        let local = epoch + i64::from(offset);
        let (days, in_day) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        // Days to civil date in the proleptic Gregorian calendar: eras of 400 years that start in March.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let from_march = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let day = from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year =
            if month > 2 { from_march + 59 + i64::from(leap) } else { from_march - 306 };
        Self {
            epoch,
            nanos,
            offset,
            year,
            month: month as u8,
            day: day as u8,
            hour: (in_day / 3_600) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
            weekday: (days + 4).rem_euclid(7) as u8,
            day_of_year: day_of_year as u16,
        }
    }

    fn write_default(&self, utc: bool, out: &mut Vec<u8>) {
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |at: usize, width: usize, mut value: u32| {
            for place in text[at..at + width].iter_mut().rev() {
                *place = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0, 4, self.year as u32);
        put(5, 2, self.month.into());
        put(8, 2, self.day.into());
        put(11, 2, self.hour.into());
        put(14, 2, self.minute.into());
        put(17, 2, self.second.into());
        put(20, 3, self.nanos / 1_000_000);
        if utc {
            out.extend_from_slice(&text);
        } else {
            out.extend_from_slice(&text[..23]);
            self.write_offset(false, out);
        }
    }

    fn write_offset(&self, colon: bool, out: &mut Vec<u8>) {
        out.push(if self.offset < 0 { b'-' } else { b'+' });
        let minutes = i64::from(self.offset.unsigned_abs() / 60);
        number(minutes / 60, 2, Pad::Zero, out);
        if colon {
            out.push(b':');
        }
        number(minutes % 60, 2, Pad::Zero, out);
    }

    /// Week of the year where weeks start on `first` (0 Sunday, 1 Monday); days before the first one are week 0.
    fn week(&self, first: i64) -> i64 {
        let weekday = (i64::from(self.weekday) - first).rem_euclid(7);
        (i64::from(self.day_of_year) + 7 - weekday) / 7
    }

    /// ISO 8601 year and week.
    fn iso_week(&self) -> (i64, i64) {
        let from_monday = (i64::from(self.weekday) + 6) % 7;
        let week = (i64::from(self.day_of_year) - from_monday + 10) / 7;
        let weeks_of = |year: i64| {
            // A year has 53 weeks when it, or its last day, ends on a Thursday.
            let last_day =
                |y: i64| (y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400)) % 7;
            52 + i64::from(last_day(year) == 4 || last_day(year - 1) == 3)
        };
        if week < 1 {
            (self.year - 1, weeks_of(self.year - 1))
        } else if week > weeks_of(self.year) {
            (self.year + 1, 1)
        } else {
            (self.year, week)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(pattern: &str, secs: u64, nanos: u32) -> String {
        let mut out = Vec::new();
        TimeFormat::compile(pattern, false)
            .expect("a pattern without a line break")
            .write(UNIX_EPOCH + Duration::new(secs, nanos), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn prints_what_envoy_prints() {
        // Taken from a run of Envoy 1.40 at this moment.
        let pattern = "%Y-%m-%dT%H:%M:%S%z|%Z|%j|%a|%A|%b|%B|%y|%e|%I|%p|%D|%F|%T|%R|%c|%x|%X|%u|%w|%U|%W|%V|%G|%C|%h|%k|%l|%P|%r|%q|%E3S|%E*S|%Ez|%f|%1f|%6f|%9f|%s%%x";
        let expected = "2026-11-21T09:24:57+0000|UTC|325|Sat|Saturday|Nov|November|26|21|09|AM|11/21/26|2026-11-21|09:24:57|09:24|Sat Nov 21 09:24:57 2026|11/21/26|09:24:57|6|6|46|46|47|2026|20|Nov| 9| 9|am|09:24:57 AM|%q|57.671|57.671928|+00:00|671928000|6|671928|671928000|1795253097%x";
        assert_eq!(print(pattern, 1_795_253_097, 671_928_000), expected);
        assert_eq!(print("", 1_795_253_097, 671_928_000), "2026-11-21T09:24:57.671Z");
        assert_eq!(print("%s.%3f", 1_795_253_097, 5_000_000), "1795253097.005");
        assert_eq!(print("%-d %_m %", 1_767_225_600, 0), "1  1 %");
    }

    #[test]
    fn calendar_edges() {
        assert_eq!(print("%F %j %V %G %U %W", 951_782_400, 0), "2000-02-29 060 09 2000 09 09");
        assert_eq!(print("%F %j %V %G", 978_220_800, 0), "2000-12-31 366 52 2000");
        assert_eq!(print("%F %j %V %G", 1_104_537_600, 0), "2005-01-01 001 53 2004");
        assert_eq!(print("%F %V %G", 1_230_768_000 - 86_400, 0), "2008-12-31 01 2009");
        assert_eq!(print("%F %T", 0, 0), "1970-01-01 00:00:00");
    }

    #[test]
    fn line_breaks_are_refused() {
        assert!(TimeFormat::compile("%Y%n", false).is_err());
        assert!(TimeFormat::compile("%-3En", false).is_err());
        assert!(TimeFormat::compile("%t", true).is_ok());
    }
}
