//! Ten header operations of a sidecar's route, on a request's head: additions with and without command
//! operators, an overwrite, removals of headers that are there and that are not.

mod fixture;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use outrigger::config::compile::diagnostic::Diagnostics;
use outrigger::config::compile::header_ops::compile_header_ops;
use outrigger::config::pb::envoy::config::core::v3 as pb;

fn option(
    key: &str,
    value: &str,
    action: pb::header_value_option::HeaderAppendAction,
) -> pb::HeaderValueOption {
    pb::HeaderValueOption {
        header: Some(pb::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    }
}

fn header_mutation(c: &mut Criterion) {
    use pb::header_value_option::HeaderAppendAction::{
        AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExistsOrAdd,
    };
    let add = [
        option("x-mesh-id", "mesh-1", OverwriteIfExistsOrAdd),
        option("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", OverwriteIfExistsOrAdd),
        option("x-route", "%ROUTE_NAME%", AddIfAbsent),
        option("x-tenant", "blue", AppendIfExistsOrAdd),
        option("x-original-path", "%REQ(:PATH)%", OverwriteIfExistsOrAdd),
        option("accept-language", "en", OverwriteIfExistsOrAdd),
        option("x-request-id", "unused", AddIfAbsent),
    ];
    let remove = ["cookie".to_owned(), "x-internal-token".to_owned(), "x-debug".to_owned()];
    let diagnostics = Diagnostics::new("bench");
    let ops = compile_header_ops(
        &add,
        "request_headers_to_add",
        &remove,
        "request_headers_to_remove",
        &diagnostics.root(),
    );
    assert!(!diagnostics.has_errors(), "{:?}", diagnostics.into_vec());
    let info = fixture::stream();
    c.bench_function("header_mutation/ten_operations", |b| {
        b.iter_batched_ref(
            fixture::request,
            |head| ops.apply_request(black_box(head), &info),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, header_mutation);
criterion_main!(benches);
