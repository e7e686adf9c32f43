use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use serde_json::json;
use tokio::task::LocalSet;

use super::*;
use crate::config::access_log::Filter;
use crate::config::compile::access_log::{compile_access_logs, compile_filter};
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::pb::envoy::config::accesslog::v3 as pb;
use crate::config::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as route_pb;
use crate::config::pb::envoy::extensions::access_loggers::file::v3 as file_pb;
use crate::config::pb::envoy::r#type::matcher::v3 as matcher_pb;
use crate::config::pb::envoy::r#type::v3 as type_pb;
use crate::config::pb::google::protobuf as wkt;
use crate::config::stats::StatsConfig;
use crate::format::{AccessLogType, fixture};
use crate::stats::Registry;
use crate::stream_info::ResponseFlags;

fn file_log(path: &Path, format: &str) -> pb::AccessLog {
    let log_format = core_pb::SubstitutionFormatString {
        format: Some(core_pb::substitution_format_string::Format::TextFormatSource(
            core_pb::DataSource {
                specifier: Some(core_pb::data_source::Specifier::InlineString(format.into())),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let file = file_pb::FileAccessLog {
        path: path.to_str().unwrap().into(),
        access_log_format: Some(file_pb::file_access_log::AccessLogFormat::LogFormat(log_format)),
    };
    let any = wkt::Any {
        type_url: "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
            .into(),
        value: file.encode_to_vec(),
    };
    pb::AccessLog {
        config_type: Some(pb::access_log::ConfigType::TypedConfig(any)),
        ..Default::default()
    }
}

fn compile(logs: &[pb::AccessLog]) -> Result<AccessLogConfigs, String> {
    let found = Diagnostics::new("test");
    let compiled = compile_access_logs(logs, "access_log", &found.root());
    if found.has_errors() { Err(found.into_vec()[0].to_string()) } else { Ok(compiled) }
}

struct Logs {
    registry: Registry,
    writer: Arc<AccessLogWriter>,
    worker: Rc<WorkerAccessLogs>,
}

impl Logs {
    fn new(min_size: usize) -> Self {
        let registry = Registry::new(StatsConfig::default());
        let options = FlushOptions { interval: Duration::from_secs(10), min_size };
        let writer = AccessLogWriter::start(options, &registry).unwrap();
        let worker = WorkerAccessLogs::new(writer.clone(), 0);
        Self { registry, writer, worker }
    }

    fn stat(&self, stat: FilesystemStat) -> u64 {
        self.registry.scope("filesystem").value(stat)
    }

    fn settle(&self) {
        self.worker.flush();
        self.writer.drain();
    }
}

fn log(logs: &AccessLogs, details: &'static str) {
    let mut info = fixture::stream();
    info.response_code_details = Some(details.into());
    logs.log(&Ctx::new(&info));
}

#[tokio::test(start_paused = true)]
async fn lines_are_written_by_size_and_by_timer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let configs = compile(&[file_log(&path, "%RESPONSE_CODE_DETAILS%\n")]).unwrap();
    let content = || std::fs::read_to_string(&path).unwrap();
    LocalSet::new()
        .run_until(async {
            let logs = Logs::new(8);
            let bound = logs.worker.bind(&configs);
            log(&bound, "one");
            logs.writer.drain();
            assert_eq!(content(), "", "four bytes wait");
            assert_eq!(logs.stat(FilesystemStat::WriteTotalBuffered), 4);
            log(&bound, "two");
            logs.writer.drain();
            assert_eq!(content(), "one\ntwo\n", "eight bytes go");
            log(&bound, "3");
            tokio::time::sleep(Duration::from_secs(11)).await;
            logs.writer.drain();
            assert_eq!(content(), "one\ntwo\n3\n", "the timer flushes");
            assert_eq!(logs.stat(FilesystemStat::WriteBuffered), 3);
            assert_eq!(logs.stat(FilesystemStat::WriteCompleted), 2);
            assert_eq!(logs.stat(FilesystemStat::WriteTotalBuffered), 0);
            assert!(logs.stat(FilesystemStat::FlushedByTimer) >= 1);
            log(&bound, "4");
            let writer = logs.writer.clone();
            drop((bound, logs));
            writer.drain();
            assert_eq!(content(), "one\ntwo\n3\n4\n", "the worker's end flushes");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn reopening_lets_a_rotated_file_go_and_logs_of_one_path_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
    let configs =
        compile(&[file_log(&path, "a %RESPONSE_CODE_DETAILS%\n"), file_log(&path, "b\n")]).unwrap();
    LocalSet::new()
        .run_until(async {
            let logs = Logs::new(1 << 16);
            let bound = logs.worker.bind(&configs);
            log(&bound, "1");
            logs.settle();
            std::fs::rename(&path, &rotated).unwrap();
            log(&bound, "2");
            logs.settle();
            logs.writer.reopen();
            log(&bound, "3");
            logs.settle();
            assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "a 1\nb\na 2\nb\n");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "a 3\nb\n");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_counted() {
    let configs = compile(&[file_log(Path::new("/dev/full"), "x\n")]).unwrap();
    LocalSet::new()
        .run_until(async {
            let logs = Logs::new(1);
            let bound = logs.worker.bind(&configs);
            log(&bound, "");
            logs.settle();
            assert_eq!(logs.stat(FilesystemStat::WriteFailed), 1);
            assert_eq!(logs.stat(FilesystemStat::WriteTotalBuffered), 0);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_pipe_that_nobody_reads_costs_lines_but_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut reader =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let configs = compile(&[file_log(&path, &format!("{}\n", "x".repeat(8191)))]).unwrap();
    LocalSet::new()
        .run_until(async {
            let logs = Logs::new(1);
            let bound = logs.worker.bind(&configs);
            for _ in 0..1000 {
                log(&bound, "");
            }
            assert_eq!(logs.stat(FilesystemStat::WriteBuffered), 1000);
            assert!(logs.stat(FilesystemStat::WriteCompleted) < 500);
            let mut some = [0; 100];
            while !matches!(reader.read(&mut some), Ok(1..)) {
                std::thread::yield_now();
            }
            // Closing the reader ends the wait: what is left fails.
            drop(reader);
            logs.settle();
            let failed = logs.stat(FilesystemStat::WriteFailed);
            assert!(failed > 0);
            assert!(logs.stat(FilesystemStat::WriteCompleted) + failed < 1000, "some dropped");
            assert_eq!(logs.stat(FilesystemStat::WriteTotalBuffered), 0);
        })
        .await;
}

#[test]
fn what_envoy_refuses_is_refused() {
    let missing = file_log(Path::new("/nonexistent/x"), "a");
    let bad_format = file_log(Path::new("/dev/null"), "%NOPE%");
    let unknown = pb::AccessLog {
        config_type: Some(pb::access_log::ConfigType::TypedConfig(wkt::Any {
            type_url: "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.X".into(),
            value: Vec::new(),
        })),
        ..Default::default()
    };
    for (logs, reason) in [
        (vec![missing], "access_log[0].typed_config.path: unable to open file"),
        (vec![bad_format], "access_log[0].typed_config.log_format.text_format_source"),
        (vec![unknown], "is not implemented"),
        (vec![pb::AccessLog::default()], "typed_config: is required"),
    ] {
        let error = compile(&logs).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_default_format_is_envoys() {
    let mut log = file_log(Path::new("/dev/null"), "");
    log.config_type = Some(pb::access_log::ConfigType::TypedConfig(wkt::Any {
        type_url: "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
            .into(),
        value: Vec::new(),
    }));
    let configs = compile(&[log]).unwrap();
    assert_eq!(configs.0[0].target, Target::Stdout);
    let (info, request) = (fixture::stream(), fixture::request());
    let mut out = Vec::new();
    configs.0[0].format.write(&Ctx { request: Some(&request), ..Ctx::new(&info) }, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "[2026-11-21T09:24:57.671Z] \"POST /p?a=1%202&b=%0a HTTP/1.1\" 200 - 3 2 7 - \"-\" \"-\" \
         \"e9011966-1652-4622-ba3a-3f4e590de33b\" \"ex:80\" \"127.0.0.1:46101\"\n"
    );
}

fn filter(specifier: FilterSpecifier) -> Result<Filter, String> {
    let found = Diagnostics::new("test");
    let filter = pb::AccessLogFilter { filter_specifier: Some(specifier) };
    let compiled = compile_filter(&filter, &found.root());
    compiled.ok_or_else(|| found.into_vec()[0].to_string())
}

fn comparison(op: pb::comparison_filter::Op, value: u32) -> Option<pb::ComparisonFilter> {
    let value = core_pb::RuntimeUInt32 { default_value: value, runtime_key: "k".into() };
    Some(pb::ComparisonFilter { op: op.into(), value: Some(value) })
}

fn header(name: &str, invert: bool) -> FilterSpecifier {
    FilterSpecifier::HeaderFilter(pb::HeaderFilter {
        header: Some(route_pb::HeaderMatcher {
            name: name.into(),
            invert_match: invert,
            header_match_specifier: Some(
                route_pb::header_matcher::HeaderMatchSpecifier::PresentMatch(true),
            ),
            ..Default::default()
        }),
    })
}

fn metadata(key: &str, value: Option<&str>, if_missing: Option<bool>) -> FilterSpecifier {
    use matcher_pb::metadata_matcher::path_segment::Segment;
    let matcher = value.map(|value| matcher_pb::MetadataMatcher {
        filter: "m".into(),
        path: vec![matcher_pb::metadata_matcher::PathSegment {
            segment: Some(Segment::Key(key.into())),
        }],
        value: Some(matcher_pb::ValueMatcher {
            match_pattern: Some(matcher_pb::value_matcher::MatchPattern::StringMatch(
                matcher_pb::StringMatcher {
                    match_pattern: Some(matcher_pb::string_matcher::MatchPattern::Exact(
                        value.into(),
                    )),
                    ..Default::default()
                },
            )),
        }),
        invert: false,
    });
    FilterSpecifier::MetadataFilter(pb::MetadataFilter {
        matcher,
        match_if_key_not_found: if_missing.map(|value| wkt::BoolValue { value }),
    })
}

fn both(filters: [FilterSpecifier; 2]) -> Vec<pb::AccessLogFilter> {
    filters.map(|f| pb::AccessLogFilter { filter_specifier: Some(f) }).into()
}

#[test]
fn filters_let_through_what_envoys_do() {
    use pb::comparison_filter::Op;
    let status = |op, value| {
        FilterSpecifier::StatusCodeFilter(pb::StatusCodeFilter {
            comparison: comparison(op, value),
        })
    };
    let duration = |op, value| {
        FilterSpecifier::DurationFilter(pb::DurationFilter { comparison: comparison(op, value) })
    };
    let flags = |flags: &[&str]| {
        FilterSpecifier::ResponseFlagFilter(pb::ResponseFlagFilter {
            flags: flags.iter().map(|&f| f.into()).collect(),
        })
    };
    let grpc = |statuses: &[i32], exclude| {
        let statuses = statuses.to_vec();
        FilterSpecifier::GrpcStatusFilter(pb::GrpcStatusFilter { statuses, exclude })
    };
    let kinds = |types: &[i32], exclude| {
        FilterSpecifier::LogTypeFilter(pb::LogTypeFilter { types: types.to_vec(), exclude })
    };
    let runtime = |numerator, independent| {
        FilterSpecifier::RuntimeFilter(pb::RuntimeFilter {
            runtime_key: "k".into(),
            percent_sampled: Some(type_pb::FractionalPercent { numerator, denominator: 0 }),
            use_independent_randomness: independent,
        })
    };
    let table = [
        (status(Op::Ge, 200), true),
        (status(Op::Ge, 201), false),
        (status(Op::Le, 199), false),
        (status(Op::Eq, 200), true),
        (status(Op::Ne, 200), false),
        (duration(Op::Ge, 7), true),
        (duration(Op::Ge, 8), false),
        (FilterSpecifier::NotHealthCheckFilter(pb::NotHealthCheckFilter {}), true),
        (FilterSpecifier::TraceableFilter(pb::TraceableFilter {}), false),
        (header("x-a", false), true),
        (header("x-a", true), false),
        (header("nope", false), false),
        (flags(&[]), true),
        (flags(&["UF"]), true),
        (flags(&["UH", "NR"]), false),
        (grpc(&[2], false), true),
        (grpc(&[0], false), false),
        (grpc(&[0], true), true),
        (kinds(&[6], false), true),
        (kinds(&[6], true), false),
        (kinds(&[3, 4], false), false),
        (metadata("s", Some("str"), None), true),
        (metadata("s", Some("other"), None), false),
        (metadata("nope", Some("x"), None), true),
        (metadata("nope", Some("x"), Some(false)), false),
        (metadata("", None, Some(false)), false),
        (runtime(100, false), true),
        (runtime(0, true), false),
        // The request id starts with e9011966: 3909163366, so 66 of 100.
        (runtime(66, false), false),
        (runtime(67, false), true),
        (
            FilterSpecifier::AndFilter(pb::AndFilter {
                filters: both([flags(&["UF"]), flags(&["UH"])]),
            }),
            false,
        ),
        (
            FilterSpecifier::OrFilter(pb::OrFilter {
                filters: both([flags(&["UF"]), flags(&["UH"])]),
            }),
            true,
        ),
    ];
    let (mut info, request) = (fixture::stream(), fixture::request());
    info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    info.metadata_mut("m").insert("other".into(), json!(1));
    let ctx = Ctx {
        request: Some(&request),
        access_log_type: AccessLogType::DownstreamEnd,
        ..Ctx::new(&info)
    };
    for (specifier, expected) in table {
        let text = format!("{specifier:?}");
        let filter = filter(specifier).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(filter::matches(&filter, &ctx), expected, "{text}");
    }
}

#[test]
fn filters_that_envoy_refuses_are_refused() {
    let one = both([header("a", false), header("b", false)]).split_off(1);
    let flags = pb::ResponseFlagFilter { flags: vec!["XX".into()] };
    for (specifier, reason) in [
        (FilterSpecifier::AndFilter(pb::AndFilter { filters: one }), "at least two"),
        (FilterSpecifier::ResponseFlagFilter(flags), "flags[0]"),
        (FilterSpecifier::ExtensionFilter(pb::ExtensionFilter::default()), "not implemented"),
        (FilterSpecifier::StatusCodeFilter(pb::StatusCodeFilter::default()), "is required"),
        (FilterSpecifier::HeaderFilter(pb::HeaderFilter::default()), "is required"),
    ] {
        let error = filter(specifier).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
}
