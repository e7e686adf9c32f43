//! Length-prefixed messages (gRPC over HTTP/2, "Length-Prefixed-Message"): one byte that says whether it is compressed,
//! four of length, the message.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::status::{Code, Status};

const PREFIX: usize = 5;

/// A message with its prefix.
pub fn encode<M: prost::Message>(message: &M) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    // No message of ours comes near 4 GB.
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // The buffer grows as it has to: encoding cannot fail.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub struct Decoder {
    bytes: BytesMut,
    max: usize,
}

impl Decoder {
    /// `max`: the longest message, in bytes.
    pub fn new(max: usize) -> Self {
        Self { bytes: BytesMut::new(), max }
    }

    pub fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// The next whole message. Memory is taken for what has come, never for what a prefix promises.
    ///
    /// # Errors
    /// The message is too long, or compressed, which was not offered.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((&[flag, a, b, c, d], _)) = self.bytes.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        if flag != 0 {
            return Err(Status::new(Code::INTERNAL, "a compressed message"));
        }
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > self.max {
            let reason = format!("a message of {len} bytes is longer than {}", self.max);
            return Err(Status::new(Code::RESOURCE_EXHAUSTED, reason));
        }
        if self.bytes.len() < PREFIX + len {
            return Ok(None);
        }
        self.bytes.advance(PREFIX);
        let message = self.bytes.split_to(len).freeze();
        if self.bytes.is_empty() {
            // The memory of a large push must not stay.
            self.bytes = BytesMut::new();
        }
        Ok(Some(message))
    }

    /// Whether bytes of a message are left over.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let mut stream = BytesMut::new();
        for text in ["a", "", "long enough to span pieces"] {
            stream.extend_from_slice(&encode(&text.to_owned()));
        }
        let mut decoder = Decoder::new(64);
        let mut messages = Vec::new();
        for piece in stream.chunks(3) {
            decoder.push(piece);
            while let Some(message) = decoder.next_message().unwrap() {
                messages.push(<String as prost::Message>::decode(message).unwrap());
            }
        }
        assert_eq!(messages, ["a", "", "long enough to span pieces"]);
        assert!(decoder.is_empty());
    }

    #[test]
    fn what_is_too_long_or_compressed_is_refused_by_its_prefix() {
        let mut decoder = Decoder::new(10);
        decoder.push(&[0, 0, 0, 0, 11]);
        assert_eq!(decoder.next_message().unwrap_err().code, Code::RESOURCE_EXHAUSTED);
        let mut decoder = Decoder::new(10);
        decoder.push(&[1, 0, 0, 0, 0]);
        assert_eq!(decoder.next_message().unwrap_err().code, Code::INTERNAL);
    }
}
