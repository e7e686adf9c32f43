//! Which of a chain's compressors takes a response: by `accept-encoding` (RFC 9110 §12.5.3), decided once.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Config;

/// The compressors of one stream and what was decided.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) compressors: SmallVec<[Arc<Config>; 3]>,
    pub(super) decision: Option<Decision>,
}

/// Why an encoding was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    NotValid,
    Identity,
    Wildcard,
    Named,
}

/// An encoding, `identity` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) encoding: &'static str,
    pub(super) reason: Reason,
}

const IDENTITY: &str = "identity";

/// One that a client may have.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) encoding: &'static str,
    pub(super) compressor: &'a Config,
}

/// Chooses for a client by its `accept-encoding`; only compressors that take `content_type` are asked.
pub(super) fn choose<'a>(
    of: impl Iterator<Item = Offer<'a>>,
    accept: &str,
    content_type: Option<&[u8]>,
) -> Decision {
    let mut offers: SmallVec<[Offer<'a>; 3]> = SmallVec::new();
    for offer in of {
        if content_type.is_none_or(|media_type| offer.compressor.response.takes(media_type))
            && !offers.iter().any(|other| other.encoding == offer.encoding)
        {
            offers.push(offer);
        }
    }
    let accepted: SmallVec<[(&str, f32); 4]> =
        accept.split(',').filter(|token| !token.is_empty()).filter_map(parse).collect();
    offers.retain(|offer| !accepted.iter().any(|(name, q)| *name == offer.encoding && *q == 0.0));
    let none = Decision { encoding: IDENTITY, reason: Reason::NotValid };
    if accepted.is_empty() || offers.is_empty() {
        return none;
    }
    let (mut best, mut best_q) = (none, 0.0);
    for (name, q) in accepted {
        let offer = offers.iter().find(|offer| offer.encoding == name);
        let decision = match (name, offer) {
            (_, Some(offer)) => Decision { encoding: offer.encoding, reason: Reason::Named },
            (IDENTITY, None) => Decision { encoding: IDENTITY, reason: Reason::Identity },
            ("*", None) => Decision { encoding: offers[0].encoding, reason: Reason::Wildcard },
            (_, None) => continue,
        };
        if q > best_q || (q == best_q && offer.is_some_and(|offer| offer.compressor.choose_first)) {
            (best, best_q) = (decision, q);
        }
    }
    if best_q == 0.0 { none } else { best }
}

/// `gzip;q=0.5`: a name and its weight. `None` where the weight is no number.
fn parse(token: &str) -> Option<(&str, f32)> {
    let (name, parameters) = token.split_once(';').unwrap_or((token, ""));
    let weight = match parameters.split_once('=') {
        Some((key, value)) if key.trim().eq_ignore_ascii_case("q") => value.trim().parse().ok()?,
        _ => 1.0,
    };
    Some((name.trim(), weight))
}
