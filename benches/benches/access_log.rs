//! One access log line: Envoy's default text format, and Istio's operators as JSON.

mod fixture;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use outrigger::config::compile::diagnostic::Diagnostics;
use outrigger::format::{Ctx, Formatter, Options};

/// Envoy's default format.
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

fn access_log(c: &mut Criterion) {
    let diagnostics = Diagnostics::new("bench");
    let formatter = Formatter::compile(TEXT, Options::default(), &diagnostics.root())
        .expect("Envoy's default format");
    let (request, response, info) = (fixture::request(), fixture::response(), fixture::stream());
    let ctx = Ctx { request: Some(&request), response: Some(&response), ..Ctx::new(&info) };
    let mut line = Vec::with_capacity(1024);
    c.bench_function("access_log/text", |b| {
        b.iter(|| {
            line.clear();
            formatter.write(black_box(&ctx), &mut line);
            black_box(line.len())
        });
    });
}

criterion_group!(benches, access_log);
criterion_main!(benches);
