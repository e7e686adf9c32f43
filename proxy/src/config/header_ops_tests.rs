use super::*;
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::header_ops::{compile_header_mutations, compile_header_ops};
use crate::config::pb::envoy::config::common::mutation_rules::v3 as mutation_rules_pb;
use crate::config::pb::envoy::config::common::mutation_rules::v3::header_mutation::{
    Action, RemoveOnMatch,
};
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::config::pb::envoy::r#type::matcher::v3 as matcher_pb;
use crate::format::fixture;

fn add(key: &str, value: &str, action: HeaderAppendAction) -> core_pb::HeaderValueOption {
    core_pb::HeaderValueOption {
        header: Some(core_pb::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action.into(),
        ..Default::default()
    }
}

fn append(key: &str, value: &str) -> core_pb::HeaderValueOption {
    add(key, value, HeaderAppendAction::AppendIfExistsOrAdd)
}

fn keep_empty(mut option: core_pb::HeaderValueOption) -> core_pb::HeaderValueOption {
    option.keep_empty_value = true;
    option
}

fn compile(
    additions: &[core_pb::HeaderValueOption],
    removals: &[&str],
) -> Result<HeaderOps, String> {
    let found = Diagnostics::new("test");
    let removals: Vec<String> = removals.iter().map(|&r| r.to_owned()).collect();
    let ops = compile_header_ops(additions, "add", &removals, "remove", &found.root());
    if found.has_errors() { Err(found.into_vec()[0].to_string()) } else { Ok(ops) }
}

fn lines(list: &HeaderList) -> Vec<String> {
    list.iter()
        .map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
        .collect()
}

fn request(lines: &[(&str, &str)]) -> RequestHead {
    let mut head = fixture::request();
    head.headers = HeaderList::new();
    head.set_path(b"/p?a=x%0ay%0d%00z");
    head.set_authority(b"ex:80");
    for (name, value) in lines {
        head.headers.push_raw(name.as_bytes(), value.as_bytes());
    }
    head
}

/// The same operations on the same request through Envoy 1.40 gave these lines in this order.
#[test]
fn all_actions_in_envoys_order() {
    use HeaderAppendAction::{AddIfAbsent, OverwriteIfExists, OverwriteIfExistsOrAdd};
    #[expect(deprecated, reason = "the deprecated form is tested too")]
    let overwrite_by_append = core_pb::HeaderValueOption {
        append: Some(crate::config::pb::google::protobuf::BoolValue { value: false }),
        ..append("x-app", "1")
    };
    let ops = compile(
        &[
            append("x-dup", "A"),
            add("x-dup", "ow", OverwriteIfExistsOrAdd),
            append("x-dup", "B"),
            add("x-dup", "nope", AddIfAbsent),
            add("x-none", "n", OverwriteIfExists),
            add("x-in", "over", OverwriteIfExists),
            append("x-empty", ""),
            keep_empty(append("x-empty2", "")),
            append("x-miss", "%REQ(nope)%"),
            append("x-miss2", "a%REQ(nope)%b"),
            keep_empty(append("x-miss3", "%REQ(nope)%")),
            add("x-miss-ow", "%REQ(nope)%", OverwriteIfExistsOrAdd),
            append("x-nl", "[%QUERY_PARAM(a)%]"),
            append("X-Case", "c"),
            append("accept", "second"),
            append("cookie", "c2"),
            append("x-chain", "%REQ(x-dup)%"),
            append("x-pct", "100%%"),
            overwrite_by_append,
            append("user-agent", "ua2"),
        ],
        &["x-rm", "X-In2"],
    )
    .unwrap();
    let mut head = request(&[
        ("x-in", "orig"),
        ("x-in", "orig2"),
        ("X-In2", "gone"),
        ("x-rm", "1"),
        ("x-dup", "in"),
        ("accept", "first"),
        ("cookie", "c1"),
        ("x-miss-ow", "kept"),
        ("user-agent", "u1"),
    ]);
    ops.apply_request(&mut head, &fixture::stream());
    let mut found = lines(&head.headers);
    let expected = [
        "x-in: over",
        "x-dup: ow",
        "accept: first,second",
        "cookie: c1",
        "x-miss-ow: kept",
        "user-agent: u1,ua2",
        "x-app: 1",
        "x-dup: A",
        "x-dup: B",
        "x-empty2: ",
        "x-miss2: ab",
        "x-miss3: ",
        "x-nl: [x y  z]",
        "x-case: c",
        "cookie: c2",
        "x-chain: in",
        "x-pct: 100%",
    ];
    assert_eq!(found, expected);
    found.clear();
}

#[test]
fn responses_read_both_heads() {
    let ops = compile(
        &[
            append("x-req", "%REQ(x-in)% %RESP(x-u)% %RESPONSE_CODE% %UPSTREAM_CLUSTER%"),
            append("via", "ad"),
            append("accept", "b"),
        ],
        &["server"],
    )
    .unwrap();
    let mut head = fixture::response();
    for (name, value) in [("x-u", "1"), ("via", "up"), ("server", "s"), ("accept", "a")] {
        head.headers.push_raw(name.as_bytes(), value.as_bytes());
    }
    ops.apply_response(&mut head, Some(&request(&[("x-in", "over")])), &fixture::stream());
    assert_eq!(
        lines(&head.headers),
        [
            "content-length: 2",
            "x-u: 1",
            "via: up,ad",
            "accept: a",
            "x-req: over 1 200 alt",
            "accept: b"
        ]
    );
}

#[test]
fn what_envoy_refuses_is_refused() {
    use HeaderAppendAction::OverwriteIfExistsOrAdd;
    for (additions, removals, reason) in [
        (vec![append(":path", "/x")], vec![], "add[0].header.key: :-prefixed or host"),
        (vec![append("ok", "1"), append("Host", "x")], vec![], "add[1].header.key: :-prefixed"),
        (vec![append("a", "x\n")], vec![], "line break"),
        (vec![append("a", "%FOO%")], vec![], "FOO"),
        (vec![append("a", "%")], vec![], "valid command"),
        (vec![append("", "x")], vec![], "not a valid header name"),
        (vec![append("a b", "x")], vec![], "not a valid header name"),
        (vec![core_pb::HeaderValueOption::default()], vec![], "add[0].header: is required"),
        (vec![], vec!["Host"], "remove[0]: :-prefixed or host"),
        (vec![], vec![":path"], "may not be removed"),
        (vec![], vec![""], "not a valid header name"),
        (
            vec![{
                let mut option = add("a", "x", OverwriteIfExistsOrAdd);
                #[expect(deprecated, reason = "the deprecated form is tested too")]
                {
                    option.append = Some(Default::default());
                }
                option
            }],
            vec![],
            "both append and append_action",
        ),
    ] {
        let error = compile(&additions, &removals).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn old_metadata_and_state_forms_still_work() {
    let ops = compile(
        &[
            append("x-m", r#"%DYNAMIC_METADATA(["m", "o", "i"])% %%%DYNAMIC_METADATA(m:s)%"#),
            append("x-s", "%PER_REQUEST_STATE(fs)%"),
        ],
        &[],
    )
    .unwrap();
    let mut head = request(&[]);
    ops.apply_request(&mut head, &fixture::stream());
    assert_eq!(lines(&head.headers), ["x-m: in %str", "x-s: fsval \"q\""]);
}

fn mutation(action: Action) -> mutation_rules_pb::HeaderMutation {
    mutation_rules_pb::HeaderMutation { action: Some(action) }
}

fn remove_on_prefix(prefix: &str) -> mutation_rules_pb::HeaderMutation {
    let pattern = matcher_pb::string_matcher::MatchPattern::Prefix(prefix.into());
    let key_matcher =
        Some(matcher_pb::StringMatcher { match_pattern: Some(pattern), ..Default::default() });
    mutation(Action::RemoveOnMatch(RemoveOnMatch { key_matcher }))
}

/// Lines and order are Envoy 1.40's.
#[test]
fn mutations_run_one_after_the_other() {
    use HeaderAppendAction::{OverwriteIfExists, OverwriteIfExistsOrAdd};
    let found = Diagnostics::new("test");
    let list = [
        mutation(Action::Append(append("a", "1"))),
        mutation(Action::Append(add("a", "2", OverwriteIfExistsOrAdd))),
        mutation(Action::Append(append("b", "%REQ(a)%"))),
        mutation(Action::Append(append("m", "%REQ(nope)%"))),
        mutation(Action::Append(keep_empty(append("m2", "%REQ(nope)%")))),
        remove_on_prefix("X-P"),
        remove_on_prefix("x-q"),
        mutation(Action::Append(append("accept", "z"))),
        mutation(Action::Append(add("in", "w", OverwriteIfExists))),
        mutation(Action::Remove("x-r".into())),
        mutation(Action::Remove("host".into())),
    ];
    let ops = compile_header_mutations(&list, "mutations", &found.root());
    assert!(!found.has_errors());
    let mut head = request(&[
        ("in", "orig"),
        ("in", "o2"),
        ("x-p1", "1"),
        ("X-P2", "2"),
        ("X-Q", "3"),
        ("x-r", "4"),
        ("accept", "y"),
    ]);
    ops.apply_request(&mut head, &fixture::stream());
    assert_eq!(
        lines(&head.headers),
        ["in: w", "x-p1: 1", "X-P2: 2", "accept: y,z", "a: 2", "b: 2", "m2: "]
    );
    assert_eq!(head.authority(), None);
}
