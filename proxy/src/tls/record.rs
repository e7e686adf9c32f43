//! Record protection after the handshake: one direction's key, and records to and from bytes (RFC 8446 §5, RFC 5246
//! §6.2.3, RFC 5288, RFC 7905).
//!
//! rustls makes the handshake and hands the keys out. What follows is ours, so that an idle connection holds no buffer
//! and a record is encrypted and decrypted from one buffer straight into another.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion};

/// Type, version, length.
pub(super) const HEADER: usize = 5;
/// Plaintext of one record at most.
pub(super) const MAX_PLAIN: usize = 16 * 1024;
/// What a record may hold behind its header: RFC 8446 §5.2, RFC 5246 §6.2.3.
const MAX_CIPHER_13: usize = MAX_PLAIN + 256;
const MAX_CIPHER_12: usize = MAX_PLAIN + 2048;
const TAG: usize = 16;
/// The part of the nonce that TLS 1.2 sends with each record under AES-GCM.
const EXPLICIT: usize = 8;
/// Records under one AES-GCM key, after which TLS 1.3 takes another: RFC 8446 §5.5, rounded down.
const REKEY_AFTER: u64 = 1 << 24;

/// How nonces and additional data are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Tls13,
    Tls12Gcm,
    Tls12ChaCha,
}

/// The key of one direction with its count of records.
pub(super) struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    format: Format,
    is_gcm: bool,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("format", &self.format).finish_non_exhaustive()
    }
}

/// Why a record cannot be taken. Each ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("record too long")]
    TooLong,
    #[error("not a TLS record")]
    NotTls,
    #[error("record does not decrypt")]
    BadMac,
    #[error("no key for the cipher")]
    NoKey,
    #[error("the connection has used up its key")]
    KeyExhausted,
}

/// One record in a buffer: header and length.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordHeader {
    pub(super) kind: u8,
    /// Bytes behind the header.
    pub(super) length: usize,
}

impl RecordHeader {
    /// `None` while the header is not complete.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, RecordError> {
        let [kind, major, _, high, low, ..] = *bytes else { return Ok(None) };
        if major != 3 {
            return Err(RecordError::NotTls);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_CIPHER_12 {
            return Err(RecordError::TooLong);
        }
        Ok(Some(Self { kind, length }))
    }

    /// With the header.
    pub(super) fn total(self) -> usize {
        HEADER + self.length
    }
}

/// Where the record that begins at `at` ends, or ends so far; and whether it is all there. What is no record ends with
/// the bytes.
pub(super) fn end(bytes: &[u8], at: usize) -> (usize, bool) {
    match RecordHeader::parse(&bytes[at..]) {
        Ok(Some(header)) if at + header.total() <= bytes.len() => (at + header.total(), true),
        _ => (bytes.len(), false),
    }
}

impl Key {
    pub(super) fn new(
        version: ProtocolVersion,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::NoKey),
        };
        let unbound = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::NoKey)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::NoKey)?;
        let is_gcm = algorithm != &CHACHA20_POLY1305;
        let format = match (version, is_gcm) {
            (ProtocolVersion::TLSv1_3, _) => Format::Tls13,
            (_, true) => Format::Tls12Gcm,
            (_, false) => Format::Tls12ChaCha,
        };
        Ok(Self { key: LessSafeKey::new(unbound), iv, sequence, format, is_gcm })
    }

    /// Another key should follow (TLS 1.3 only).
    pub(super) fn is_worn(&self) -> bool {
        self.format == Format::Tls13 && self.is_gcm && self.sequence >= REKEY_AFTER
    }

    /// Bytes of a record beyond its plaintext.
    pub(super) fn overhead(&self) -> usize {
        HEADER
            + TAG
            + match self.format {
                Format::Tls13 => 1,
                Format::Tls12Gcm => EXPLICIT,
                Format::Tls12ChaCha => 0,
            }
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        nonce
    }

    /// Additional data of TLS 1.2.
    fn aad12(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&[kind, 3, 3]);
        aad[11..].copy_from_slice(&(length as u16).to_be_bytes());
        aad
    }

    fn next(&mut self) -> Result<(), RecordError> {
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::KeyExhausted)?;
        Ok(())
    }

    /// Appends one record with `plain`, at most `MAX_PLAIN` bytes, to `out`.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        let kind = u8::from(kind);
        let start = out.len();
        let body = self.overhead() - HEADER + plain.len();
        let [high, low] = (body as u16).to_be_bytes();
        let nonce = self.nonce();
        let outer = match self.format {
            Format::Tls13 => u8::from(ContentType::ApplicationData),
            Format::Tls12Gcm | Format::Tls12ChaCha => kind,
        };
        out.extend_from_slice(&[outer, 3, 3, high, low]);
        if self.format == Format::Tls12Gcm {
            out.extend_from_slice(&nonce[4..]);
        }
        let at = out.len();
        out.resize(start + HEADER + body, 0);
        let (cipher, rest) = out[at..].split_at_mut(plain.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = match self.format {
            Format::Tls13 => {
                let aad = Aad::from([outer, 3, 3, high, low]);
                self.key.seal_out_of_place_scatter(nonce, aad, plain, cipher, &[kind], rest)
            }
            Format::Tls12Gcm | Format::Tls12ChaCha => {
                let aad = Aad::from(self.aad12(kind, plain.len()));
                self.key.seal_out_of_place_scatter(nonce, aad, plain, cipher, &[], rest)
            }
        };
        sealed.map_err(|_| RecordError::NoKey)?;
        self.next()
    }

    /// Decrypts one whole record to the end of `out`, which grows by no more than its plaintext.
    pub(super) fn open(
        &mut self,
        header: RecordHeader,
        record: &[u8],
        out: &mut impl Sink,
    ) -> Result<ContentType, RecordError> {
        let body = &record[HEADER..];
        let nonce = self.nonce();
        let kind = match self.format {
            Format::Tls13 => self.open13(header, record, nonce, out)?,
            Format::Tls12Gcm | Format::Tls12ChaCha => {
                let explicit = if self.format == Format::Tls12Gcm { EXPLICIT } else { 0 };
                let length = body.len().checked_sub(explicit + TAG).ok_or(RecordError::BadMac)?;
                if length > MAX_PLAIN {
                    return Err(RecordError::TooLong);
                }
                let mut nonce = nonce;
                if explicit > 0 {
                    nonce[..4].copy_from_slice(&self.iv[..4]);
                    nonce[4..].copy_from_slice(&body[..EXPLICIT]);
                }
                let (cipher, tag) = body[explicit..].split_at(length);
                let aad = Aad::from(self.aad12(header.kind, length));
                let nonce = Nonce::assume_unique_for_key(nonce);
                let plain = out.grow(length);
                let opened = self.key.open_separate_gather(nonce, aad, cipher, tag, plain);
                if opened.is_err() {
                    out.shrink(length);
                    return Err(RecordError::BadMac);
                }
                ContentType::from(header.kind)
            }
        };
        self.next()?;
        Ok(kind)
    }

    fn open13(
        &self,
        header: RecordHeader,
        record: &[u8],
        nonce: [u8; 12],
        out: &mut impl Sink,
    ) -> Result<ContentType, RecordError> {
        let body = &record[HEADER..];
        if header.length > MAX_CIPHER_13 {
            return Err(RecordError::TooLong);
        }
        if header.kind != u8::from(ContentType::ApplicationData) {
            return Err(RecordError::BadMac);
        }
        let length = body.len().checked_sub(TAG).ok_or(RecordError::BadMac)?;
        let (cipher, tag) = body.split_at(length);
        let aad: [u8; HEADER] = record[..HEADER].try_into().map_err(|_| RecordError::BadMac)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = out.grow(length);
        let opened = self.key.open_separate_gather(nonce, Aad::from(aad), cipher, tag, plain);
        // The type stands behind the content, zeros behind the type.
        let end = match opened {
            Ok(()) => plain.iter().rposition(|byte| *byte != 0),
            Err(_) => None,
        };
        let Some(end) = end else {
            out.shrink(length);
            return Err(RecordError::BadMac);
        };
        let kind = ContentType::from(plain[end]);
        out.shrink(length - end);
        if end > MAX_PLAIN {
            return Err(RecordError::TooLong);
        }
        Ok(kind)
    }
}

/// Where plaintext goes.
pub(super) trait Sink {
    /// More room at the end.
    fn grow(&mut self, by: usize) -> &mut [u8];
    /// Takes some of it back.
    fn shrink(&mut self, by: usize);
}

impl Sink for bytes::BytesMut {
    fn grow(&mut self, by: usize) -> &mut [u8] {
        let at = self.len();
        self.resize(at + by, 0);
        &mut self[at..]
    }

    fn shrink(&mut self, by: usize) {
        self.truncate(self.len() - by);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn keys(version: ProtocolVersion, cipher: u8) -> [Key; 2] {
        let make = || {
            let key = AeadKey::from([7; 32]);
            let iv = Iv::from([9; 12]);
            Key::new(
                version,
                (
                    3,
                    match cipher {
                        0 => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
                        _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
                    },
                ),
            )
            .unwrap()
        };
        [make(), make()]
    }

    #[test]
    fn what_is_sealed_opens() {
        for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
            for cipher in [0, 1] {
                let [mut tx, mut rx] = keys(version, cipher);
                for length in [0, 1, 1000, MAX_PLAIN] {
                    let plain = vec![5; length];
                    let (mut wire, mut got) = (Vec::new(), BytesMut::new());
                    tx.seal(ContentType::ApplicationData, &plain, &mut wire).unwrap();
                    assert_eq!(wire.len(), length + tx.overhead());
                    let header = RecordHeader::parse(&wire).unwrap().unwrap();
                    assert_eq!(header.total(), wire.len());
                    let kind = rx.open(header, &wire, &mut got).unwrap();
                    assert_eq!((kind, &got[..]), (ContentType::ApplicationData, &plain[..]));
                }
                let (mut wire, mut got) = (Vec::new(), BytesMut::from(&b"x"[..]));
                tx.seal(ContentType::Alert, &[1, 0], &mut wire).unwrap();
                let last = wire.len() - 1;
                wire[last] ^= 1;
                let header = RecordHeader::parse(&wire).unwrap().unwrap();
                assert_eq!(rx.open(header, &wire, &mut got), Err(RecordError::BadMac));
                assert_eq!(&got[..], b"x");
            }
        }
    }

    #[test]
    fn no_record_is_longer_than_the_protocol_allows() {
        assert!(matches!(RecordHeader::parse(&[23, 3, 3, 0xff, 0xff]), Err(RecordError::TooLong)));
        assert!(matches!(RecordHeader::parse(b"GET / HTTP"), Err(RecordError::NotTls)));
        assert!(RecordHeader::parse(&[23, 3, 3, 0]).unwrap().is_none());
    }
}
