use super::*;

const LIMIT: usize = MAX_CLIENT_HELLO as usize;

fn prefixed(bytes: &[u8], width: usize) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&length[4 - width..], bytes].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed(content, 2)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    let entry = [&[0][..], &prefixed(name, 2)].concat();
    extension(EXTENSION_SERVER_NAME, &prefixed(&entry, 2))
}

fn alpn(names: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|n| prefixed(n.as_bytes(), 1)).collect();
    extension(EXTENSION_ALPN, &prefixed(&list, 2))
}

fn message(version: u16, extensions: &[Vec<u8>]) -> Vec<u8> {
    let body = [
        &version.to_be_bytes()[..],
        &[7; 32],
        &prefixed(&[1; 32], 1),
        &prefixed(&[0x13, 1], 2),
        &prefixed(&[0], 1),
        &prefixed(&extensions.concat(), 2),
    ]
    .concat();
    [&[MESSAGE_CLIENT_HELLO][..], &prefixed(&body, 3)].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|chunk| [&[CONTENT_HANDSHAKE, 3, 1][..], &prefixed(chunk, 2)].concat())
        .collect()
}

fn verdict(bytes: &[u8]) -> Inspected {
    inspect(bytes, LIMIT).0
}

fn hello(extensions: &[Vec<u8>]) -> Inspected {
    verdict(&records(&message(0x0303, extensions), LIMIT))
}

#[test]
fn names_and_protocols_are_found_at_any_split_and_in_any_records() {
    let message = message(0x0303, &[server_name(b"A.Example"), alpn(&["istio", "h2"])]);
    for size in [1, 2, 3, 50, LIMIT] {
        let all = records(&message, size);
        for n in 0..all.len() {
            assert_eq!(verdict(&all[..n]), Inspected::More, "{n} of {size}");
        }
        let (Inspected::Tls(hello), seen) = inspect(&all, LIMIT) else { panic!("{size}") };
        assert_eq!(seen, all.len());
        assert_eq!(hello.server_name.as_deref(), Some("a.example"));
        let list = hello.alpn.unwrap();
        assert_eq!(protocols(&list).collect::<Vec<_>>(), ["istio", "h2"]);
        let followed = [&all[..], b"more"].concat();
        assert_eq!(inspect(&followed, LIMIT).1, all.len());
    }
}

#[test]
fn plain_bytes_are_told_at_once() {
    let plain = |bytes: &[u8]| match verdict(bytes) {
        Inspected::NotTls(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict(b""), Inspected::More);
    assert_eq!(verdict(b"\x16"), Inspected::More);
    assert_eq!(plain(b"G"), NotTls::WrongVersion);
    assert_eq!(plain(b"GET / HTTP/1.1\r\n"), NotTls::HttpRequest);
    assert_eq!(plain(b"CONNECT a:1 HTTP/1.1\r\n"), NotTls::HttpsProxyRequest);
    assert_eq!(plain(b"\x16\x02\x01\x00\x00"), NotTls::WrongVersion);
    assert_eq!(plain(b"\x15\x03\x01\x00\x02\x01\x00"), NotTls::WrongVersion);
    assert_eq!(plain(b"\x16\x03\x01\x40\x01"), NotTls::RecordTooLong);
    assert_eq!(plain(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"), NotTls::Unexpected);
    assert_eq!(plain(b"\x16\x03\x01\x00\x04\x01\xff\x00\x00"), NotTls::TooLong);
    let empty = b"\x16\x03\x01\x00\x00".repeat(MAX_EMPTY_RECORDS);
    assert_eq!(verdict(&empty), Inspected::More);
    assert_eq!(plain(&b"\x16\x03\x01\x00\x00".repeat(MAX_EMPTY_RECORDS + 1)), NotTls::Unexpected);
}

#[test]
fn a_hello_is_as_long_as_it_may_be() {
    let all = records(&message(0x0303, &[extension(21, &[0; 1000])]), LIMIT);
    let (found, _) = inspect(&all, all.len());
    assert!(matches!(found, Inspected::Tls(_)));
    assert_eq!(inspect(&all, all.len() - 1).0, Inspected::TooLarge);
    assert_eq!(inspect(&all[..500], all.len() - 1).0, Inspected::More);
}

#[test]
fn what_no_stack_would_accept_is_no_tls() {
    let refused = Inspected::NotTls(NotTls::Malformed);
    let none = Inspected::Tls(ClientHello::default());
    assert_eq!(hello(&[]), none);
    assert_eq!(hello(&[server_name(b"")]), refused);
    assert_eq!(hello(&[server_name(b"a\0b")]), refused);
    assert_eq!(hello(&[server_name(&[b'a'; 256])]), refused);
    assert_eq!(hello(&[server_name(b"a"), server_name(b"b")]), refused);
    // A bad ALPN is the handshake's affair.
    assert_eq!(hello(&[extension(EXTENSION_ALPN, &[0, 3, 0, 1, 2])]), none);
    assert_eq!(hello(&[extension(EXTENSION_SUPPORTED_VERSIONS, &[2, 3, 4])]), none);
    assert_eq!(hello(&[extension(EXTENSION_SUPPORTED_VERSIONS, &[2, 3, 5])]), refused);
    assert_eq!(hello(&[extension(EXTENSION_SUPPORTED_VERSIONS, &[3, 3, 4])]), refused);
    assert_eq!(verdict(&records(&message(0x0300, &[]), LIMIT)), refused);
    let mut torn = message(0x0303, &[server_name(b"a.b")]);
    let last = torn.len() - 1;
    torn[last - 8] = 0xff;
    assert_eq!(verdict(&records(&torn, LIMIT)), refused);
}
