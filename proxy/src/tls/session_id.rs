//! The session ids of TLS 1.2, as logs show them: rustls does not tell. TLS 1.3 has none.
//!
//! As BoringSSL has it: the one of ServerHello; of a session behind a ticket the ticket's hash, at a server only once
//! the client has come back with it (RFC 5077 §3.4). What is read here has been or will be checked by rustls: where it
//! makes no sense there is no id.

use aws_lc_rs::digest::{SHA256, digest};

const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
const NEW_SESSION_TICKET: u8 = 4;
/// Version and random.
const BEFORE_ID: usize = 2 + 32;
/// A ticket's lifetime.
const LIFETIME: usize = 4;

/// At most 32 bytes (RFC 5246 §7.4.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionId {
    bytes: [u8; 32],
    length: u8,
}

impl SessionId {
    fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        (!id.is_empty()).then_some(Self { bytes, length: id.len() as u8 })
    }

    /// `None` for the empty ticket that asks for one.
    pub(super) fn of_ticket(ticket: &[u8]) -> Option<Self> {
        if ticket.is_empty() {
            return None;
        }
        Self::new(digest(&SHA256, ticket).as_ref())
    }

    /// In lower-case hex.
    pub(super) fn to_text(self) -> Box<str> {
        let bytes = &self.bytes[..usize::from(self.length)];
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
    }
}

/// What the records of one turn of a handshake, either direction's, say of the session's id: `seen`, or something
/// newer.
pub(super) fn note(bytes: &[u8], seen: Option<SessionId>) -> Option<SessionId> {
    let mut id = seen;
    let mut rest = bytes;
    while let [HANDSHAKE, 3, _, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((mut body, after)) = body.split_at_checked(length) else { break };
        rest = after;
        while let [kind, a, b, c, message @ ..] = body {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let Some((message, after)) = message.split_at_checked(length) else { break };
            body = after;
            match *kind {
                SERVER_HELLO => id = of_server_hello(message),
                NEW_SESSION_TICKET => {
                    let ticket = message.get(LIFETIME + 2..).unwrap_or_default();
                    id = SessionId::of_ticket(ticket).or(id);
                }
                _ => {}
            }
        }
    }
    id
}

fn of_server_hello(message: &[u8]) -> Option<SessionId> {
    let length = usize::from(*message.get(BEFORE_ID)?);
    SessionId::new(message.get(BEFORE_ID + 1..BEFORE_ID + 1 + length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, message) in messages {
            body.extend([*kind, 0, 0, message.len() as u8]);
            body.extend_from_slice(message);
        }
        let mut record = vec![HANDSHAKE, 3, 3, 0, body.len() as u8];
        record.append(&mut body);
        record
    }

    #[test]
    fn the_servers_id_and_a_tickets_hash_count() {
        let mut hello = vec![7; BEFORE_ID];
        hello.extend([2, 0xab, 0xcd]);
        let first = record(&[(SERVER_HELLO, &hello), (11, &[1, 2])]);
        let id = note(&first, None);
        assert_eq!(id.unwrap().to_text(), "abcd".into());
        // Cut short, or nothing about it: as before.
        assert_eq!(note(&first[..20], id), id);
        assert_eq!(note(&[20, 3, 3, 0, 1, 1], id), id);
        // The empty ticket is none.
        assert_eq!(note(&record(&[(NEW_SESSION_TICKET, &[0, 0, 0, 1, 0, 0])]), id), id);
        let ticket = record(&[(NEW_SESSION_TICKET, &[0, 0, 0, 1, 0, 2, 8, 9])]);
        assert_eq!(note(&ticket, id), SessionId::of_ticket(&[8, 9]));
        // A server's hello without one.
        hello.truncate(BEFORE_ID);
        hello.push(0);
        assert_eq!(note(&record(&[(SERVER_HELLO, &hello)]), None), None);
    }
}
