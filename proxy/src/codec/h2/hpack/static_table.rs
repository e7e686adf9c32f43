//! The static table (RFC 7541 appendix A), by index and by name.

use super::{FIRST_PSEUDO, Name, Pseudo};
use crate::codec::name::ids;

/// Entries of the table; indices beyond are the dynamic one's.
pub(super) const LEN: usize = 61;

/// A name's code (`Name::code`), its text where that is 0, and the value.
type Entry = (u8, &'static str, &'static str);

const fn pseudo(name: Pseudo, value: &'static str) -> Entry {
    (name as u8, "", value)
}

const fn known(id: u8) -> Entry {
    (id, "", "")
}

const fn other(text: &'static str) -> Entry {
    (0, text, "")
}

static ENTRIES: [Entry; LEN] = [
    pseudo(Pseudo::Authority, ""),
    pseudo(Pseudo::Method, "GET"),
    pseudo(Pseudo::Method, "POST"),
    pseudo(Pseudo::Path, "/"),
    pseudo(Pseudo::Path, "/index.html"),
    pseudo(Pseudo::Scheme, "http"),
    pseudo(Pseudo::Scheme, "https"),
    pseudo(Pseudo::Status, "200"),
    pseudo(Pseudo::Status, "204"),
    pseudo(Pseudo::Status, "206"),
    pseudo(Pseudo::Status, "304"),
    pseudo(Pseudo::Status, "400"),
    pseudo(Pseudo::Status, "404"),
    pseudo(Pseudo::Status, "500"),
    other("accept-charset"),
    (ids::ACCEPT_ENCODING, "", "gzip, deflate"),
    other("accept-language"),
    other("accept-ranges"),
    known(ids::ACCEPT),
    known(ids::ACCESS_CONTROL_ALLOW_ORIGIN),
    known(ids::AGE),
    other("allow"),
    known(ids::AUTHORIZATION),
    known(ids::CACHE_CONTROL),
    other("content-disposition"),
    known(ids::CONTENT_ENCODING),
    other("content-language"),
    known(ids::CONTENT_LENGTH),
    other("content-location"),
    other("content-range"),
    known(ids::CONTENT_TYPE),
    known(ids::COOKIE),
    known(ids::DATE),
    known(ids::ETAG),
    known(ids::EXPECT),
    known(ids::EXPIRES),
    other("from"),
    known(ids::HOST),
    known(ids::IF_MATCH),
    known(ids::IF_MODIFIED_SINCE),
    known(ids::IF_NONE_MATCH),
    known(ids::IF_RANGE),
    known(ids::IF_UNMODIFIED_SINCE),
    known(ids::LAST_MODIFIED),
    other("link"),
    known(ids::LOCATION),
    other("max-forwards"),
    other("proxy-authenticate"),
    other("proxy-authorization"),
    other("range"),
    known(ids::REFERER),
    other("refresh"),
    known(ids::RETRY_AFTER),
    known(ids::SERVER),
    known(ids::SET_COOKIE),
    other("strict-transport-security"),
    known(ids::TRANSFER_ENCODING),
    known(ids::USER_AGENT),
    known(ids::VARY),
    known(ids::VIA),
    other("www-authenticate"),
];

/// By a name's code: the index of its first entry, 0 for none.
static FIRST: [u8; FIRST_PSEUDO as usize + super::PSEUDO.len()] = {
    let mut first = [0; FIRST_PSEUDO as usize + super::PSEUDO.len()];
    let mut i = LEN;
    while i > 0 {
        let code = ENTRIES[i - 1].0 as usize;
        if code != 0 {
            first[code] = i as u8;
        }
        i -= 1;
    }
    first
};

/// The entry of an index from 1 to `LEN`.
#[inline]
pub(super) fn entry(index: usize) -> Option<(Name<'static>, &'static [u8])> {
    let (code, text, value) = ENTRIES.get(index.checked_sub(1)?)?;
    Some((Name::from_code(*code, text.as_bytes()), value.as_bytes()))
}

/// What the table has of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    Field(usize),
    Name(usize),
    Nothing,
}

/// `name` is in lower case.
#[inline]
pub(super) fn find(name: Name<'_>, value: &[u8]) -> Match {
    let code = name.code();
    let first = match name {
        Name::Other(text) => index_of(text),
        Name::Known(_) | Name::Pseudo(_) => FIRST[usize::from(code)].into(),
    };
    if first == 0 {
        return Match::Nothing;
    }
    // Entries of one name stand together; of a name without a number there is one.
    let mut index = first;
    while let Some(entry) = ENTRIES.get(index - 1)
        && (index == first || (entry.0 == code && code != 0))
    {
        if entry.2.as_bytes() == value {
            return Match::Field(index);
        }
        index += 1;
    }
    Match::Name(first)
}

/// The index of a name that has no number, or 0.
fn index_of(text: &[u8]) -> usize {
    match text {
        b"link" => 45,
        b"from" => 37,
        b"allow" => 22,
        b"range" => 50,
        b"refresh" => 52,
        b"max-forwards" => 47,
        b"accept-ranges" => 18,
        b"content-range" => 30,
        b"accept-charset" => 15,
        b"accept-language" => 17,
        b"content-language" => 27,
        b"content-location" => 29,
        b"www-authenticate" => 61,
        b"proxy-authenticate" => 48,
        b"content-disposition" => 25,
        b"proxy-authorization" => 49,
        b"strict-transport-security" => 56,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_what_it_has() {
        for index in 1..=LEN {
            let (name, value) = entry(index).unwrap();
            assert_eq!(find(name, value), Match::Field(index));
            // Names with a number, or that are pseudo-headers, stand here as such.
            assert_eq!(Name::parse(name.text()), name);
            let Match::Name(first) = find(name, b"no such value") else { panic!("{name:?}") };
            assert_eq!(entry(first).unwrap().0, name);
            assert!(first == 1 || entry(first - 1).unwrap().0 != name);
        }
        assert_eq!(entry(0), None);
        assert_eq!(entry(62), None);
        assert_eq!(find(Name::Pseudo(Pseudo::Protocol), b""), Match::Nothing);
        assert_eq!(find(Name::Other(b"x"), b""), Match::Nothing);
    }
}
