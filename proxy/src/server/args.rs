//! The command line: Envoy's flags by Envoy's names, so that whoever starts Envoy (pilot-agent, an init system, a
//! test) starts Outrigger with the same line.
//!
//! A flag whose machinery Outrigger does not have (hot restart, core dumps, mutex tracing) is accepted and says in
//! `--help` that it has no effect here. `quickstart` is the one subcommand, and ours.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::pb::envoy::admin::v3::{CommandLineOptions, command_line_options as pb};
use crate::config::pb::google::protobuf;
use crate::server::version;

/// Envoy's default of `--log-format`, in spdlog's syntax.
pub const DEFAULT_LOG_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// What the process was asked to do.
#[derive(Debug)]
pub enum Command {
    /// Read the configuration and serve, validate, or initialise, as `Options::mode` says.
    Run(Box<Options>),
    /// Start the sample mesh.
    Quickstart(QuickstartOptions),
}

/// Nothing to run: a wrong line, or a question that the line itself answers (`--help`, `--version`).
#[derive(Debug)]
pub struct Exit {
    /// To print, with its line ends; on stderr unless `code` is 0.
    pub message: String,
    pub code: u8,
}

impl Command {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// What to print and with which code to leave; Envoy leaves with 1 for a wrong line.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let program = arguments.first().map_or("outrigger".into(), |name| name.to_string_lossy());
        let line = Line::command()
            .try_get_matches_from(&arguments)
            .and_then(|matches| Line::from_arg_matches(&matches))
            .map_err(|error| Exit {
                message: error.to_string(),
                code: u8::from(error.use_stderr()),
            })?;
        if line.options.version {
            let message = format!("\n{program}  version: {}\n\n", version::full());
            return Err(Exit { message, code: 0 });
        }
        if line.options.hot_restart_version {
            return Err(Exit { message: "disabled".to_owned(), code: 0 });
        }
        match line.command {
            Some(Subcommands::Quickstart(options)) => Ok(Self::Quickstart(options)),
            None => Ok(Self::Run(Box::new(line.options))),
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "outrigger", about, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Start a small mesh in this process, with traffic to look at.
    Quickstart(QuickstartOptions),
}

/// Options of `quickstart`.
#[derive(Debug, Clone, Args)]
pub struct QuickstartOptions {
    /// Envoy configuration to run in place of the built-in sample
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
}

/// Envoy's flags. Fields are named as in `envoy.admin.v3.CommandLineOptions`.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Options {
    /// Configuration file: .yaml, .yml, or JSON for any other ending
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Inline YAML or JSON configuration, merged over the contents of --config-path
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// Accept unknown fields in the configuration file and in --config-yaml
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
    /// Refuse watched files with unknown fields; in what comes over gRPC they are passed over
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Pass over unknown fields in watched files without a warning, and without counting them
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// No effect: the use of deprecated fields is not logged
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// serve, validate (check the configuration and exit) or init_only (start up, then exit)
    #[arg(long, value_enum, default_value_t, value_name = "MODE", hide_possible_values = true)]
    pub mode: Mode,
    /// Worker threads [default: by the CPU quota and affinity of the process; 0 means 1]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// Take the number of workers from the CPU affinity alone, not from the quota
    #[arg(long)]
    pub cpuset_threads: bool,
    /// Node id, over the configuration's node.id
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub service_node: String,
    /// Node cluster, over the configuration's node.cluster
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub service_cluster: String,
    /// Zone, over the configuration's node.locality.zone
    #[arg(long, value_name = "ZONE", default_value = "", hide_default_value = true)]
    pub service_zone: String,
    /// Level of the log: trace, debug, info, warning (or warn), error, critical, off
    #[arg(short = 'l', long, value_name = "LEVEL", default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    /// Levels by component, over --log-level: upstream:debug,config:trace
    #[arg(long, value_name = "NAME:LEVEL,…", default_value = "", hide_default_value = true)]
    pub component_log_level: ComponentLogLevels,
    /// Form of a log line, in spdlog's syntax [default: "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v"]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Escape line breaks and their kin in log messages
    #[arg(long)]
    pub log_format_escaped: bool,
    /// File to write the log to, in place of stderr
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// File to write the admin interface's address to
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// No effect: the local address (v4 or v6) is not told to anybody
    #[arg(long, value_enum, default_value_t, value_name = "VERSION", hide_possible_values = true)]
    pub local_address_ip_version: IpVersion,
    /// Longest drain, in seconds: removed listeners, /drain_listeners?graceful, SIGTERM (there at most 25)
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub drain_time_s: u32,
    /// gradual (more and more connections over the drain time) or immediate (every one at once)
    #[arg(long, value_enum, default_value_t, value_name = "STRATEGY", hide_possible_values = true)]
    pub drain_strategy: DrainStrategy,
    /// Milliseconds between flushes of an access log file
    #[arg(long, value_name = "MSEC", default_value_t = 10_000)]
    pub file_flush_interval_msec: u32,
    /// Kilobytes of buffered access log lines that flush it earlier; 0 means 64
    #[arg(long, value_name = "KB", default_value_t = 0)]
    pub file_flush_min_size_kb: u32,
    /// Tag for all statistics, as name:value; may be repeated
    #[arg(long, value_name = "NAME:VALUE")]
    pub stats_tag: Vec<StatsTag>,
    /// No effect: every extension that is built in stays
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub disable_extensions: Vec<String>,
    /// Print the version and exit
    #[arg(long)]
    pub version: bool,
    /// Print the hot restart version, "disabled", and exit
    #[arg(long)]
    pub hot_restart_version: bool,
    #[arg(last = true, hide = true)]
    pub ignored: Vec<OsString>,
    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

/// Flags that exist so that Envoy's command lines work. None changes what Outrigger does.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Accepted for Envoy's sake, without effect here")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct WithoutEffect {
    /// No effect: there is no hot restart
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// No effect: belongs to hot restart
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub base_id: u32,
    /// No effect: belongs to hot restart
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    /// No effect: belongs to hot restart
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub base_id_path: String,
    /// No effect: belongs to hot restart
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub restart_epoch: u32,
    /// No effect: belongs to hot restart
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub parent_shutdown_time_s: u32,
    /// No effect: belongs to hot restart
    #[arg(long, value_name = "PATH", default_value = "@envoy_domain_socket")]
    pub socket_path: String,
    /// No effect: belongs to hot restart
    #[arg(long, value_name = "OCTAL", default_value = "0", value_parser = parse_socket_mode)]
    pub socket_mode: u32,
    /// No effect: belongs to hot restart
    #[arg(long)]
    pub skip_hot_restart_on_no_parent: bool,
    /// No effect: belongs to hot restart
    #[arg(long)]
    pub skip_hot_restart_parent_stats: bool,
    /// No effect: there are no mutexes on the data path to trace
    #[arg(long)]
    pub enable_mutex_tracing: bool,
    /// No effect: the limits of the process are left as they are
    #[arg(long)]
    pub enable_core_dump: bool,
    /// No effect: log levels go by component
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    /// No effect: a panic is one log entry anyway
    #[arg(long)]
    pub log_stacktrace_single_entry: bool,
    /// No effect: only version 3 of the API is spoken
    #[arg(long, value_name = "VERSION")]
    pub bootstrap_version: Option<u32>,
}

fn parse_socket_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).map_err(|_| format!("error: invalid socket-mode '{text}'"))
}

/// `--mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Serve,
    Validate,
    InitOnly,
}

/// `--local-address-ip-version`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    #[default]
    V4,
    V6,
}

/// `--drain-strategy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    #[default]
    Gradual,
    Immediate,
}

/// Envoy's log levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    Off,
}

impl LogLevel {
    /// As Envoy prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warning" | "warn" => Self::Warning,
            "error" => Self::Error,
            "critical" => Self::Critical,
            "off" => Self::Off,
            _ => return Err(format!("error: invalid log level specified '{text}'")),
        })
    }
}

/// `--component-log-level`: a level for each component named; any name is accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComponentLogLevels(pub Vec<(String, LogLevel)>);

impl FromStr for ComponentLogLevels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        let levels = pairs.map(|pair| match pair.split_once(':') {
            Some((name, level)) => Ok((name.trim().to_owned(), level.trim().parse()?)),
            None => Err(format!("error: component log level not correctly specified '{pair}'")),
        });
        levels.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for ComponentLogLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, level)) in self.0.iter().enumerate() {
            write!(f, "{}{name}:{level}", if at > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// `--stats-tag`: a name of letters and digits, and a value without a dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsTag {
    pub name: String,
    pub value: String,
}

impl FromStr for StatsTag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once(':').ok_or(format!("error: misformatted stats-tag '{text}'"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!(
                "error: misformatted stats-tag '{text}' contains invalid char in '{name}'"
            ));
        }
        if value.contains('.') {
            return Err(format!(
                "error: misformatted stats-tag '{text}' contains invalid char in '{value}'"
            ));
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

impl Options {
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_time_s.into())
    }

    pub fn file_flush_interval(&self) -> Duration {
        Duration::from_millis(self.file_flush_interval_msec.into())
    }

    /// `--file-flush-min-size-kb` in bytes; Envoy's default where it is 0.
    pub fn file_flush_min_size(&self) -> usize {
        let kilobytes =
            if self.file_flush_min_size_kb == 0 { 64 } else { self.file_flush_min_size_kb };
        kilobytes as usize * 1024
    }

    /// `--log-format`, or Envoy's default.
    pub fn log_format(&self) -> &str {
        self.log_format.as_deref().unwrap_or(DEFAULT_LOG_FORMAT)
    }

    /// What `/server_info` shows; `concurrency` is the number of workers that really run.
    pub fn to_proto(&self, concurrency: u32) -> CommandLineOptions {
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let seconds = |seconds: u32| Some(protobuf::Duration { seconds: seconds.into(), nanos: 0 });
        let unused = &self.without_effect;
        CommandLineOptions {
            base_id: unused.base_id.into(),
            use_dynamic_base_id: unused.use_dynamic_base_id,
            skip_hot_restart_on_no_parent: unused.skip_hot_restart_on_no_parent,
            skip_hot_restart_parent_stats: unused.skip_hot_restart_parent_stats,
            base_id_path: unused.base_id_path.clone(),
            concurrency,
            config_path: path(&self.config_path),
            config_yaml: self.config_yaml.clone().unwrap_or_default(),
            allow_unknown_static_fields: self.allow_unknown_static_fields,
            reject_unknown_dynamic_fields: self.reject_unknown_dynamic_fields,
            ignore_unknown_dynamic_fields: self.ignore_unknown_dynamic_fields,
            skip_deprecated_logs: self.skip_deprecated_logs,
            admin_address_path: path(&self.admin_address_path),
            local_address_ip_version: match self.local_address_ip_version {
                IpVersion::V4 => pb::IpVersion::V4.into(),
                IpVersion::V6 => pb::IpVersion::V6.into(),
            },
            log_level: self.log_level.to_string(),
            component_log_level: self.component_log_level.to_string(),
            log_format: self.log_format().to_owned(),
            log_format_escaped: self.log_format_escaped,
            log_path: path(&self.log_path),
            service_cluster: self.service_cluster.clone(),
            service_node: self.service_node.clone(),
            service_zone: self.service_zone.clone(),
            file_flush_interval: Some(protobuf::Duration {
                seconds: (self.file_flush_interval_msec / 1000).into(),
                nanos: (self.file_flush_interval_msec % 1000).cast_signed() * 1_000_000,
            }),
            file_flush_min_size: self.file_flush_min_size_kb,
            drain_time: seconds(self.drain_time_s),
            drain_strategy: match self.drain_strategy {
                DrainStrategy::Gradual => pb::DrainStrategy::Gradual.into(),
                DrainStrategy::Immediate => pb::DrainStrategy::Immediate.into(),
            },
            parent_shutdown_time: seconds(unused.parent_shutdown_time_s),
            mode: match self.mode {
                Mode::Serve => pb::Mode::Serve.into(),
                Mode::Validate => pb::Mode::Validate.into(),
                Mode::InitOnly => pb::Mode::InitOnly.into(),
            },
            disable_hot_restart: unused.disable_hot_restart,
            enable_mutex_tracing: unused.enable_mutex_tracing,
            restart_epoch: unused.restart_epoch,
            cpuset_threads: self.cpuset_threads,
            disabled_extensions: self.disable_extensions.clone(),
            enable_fine_grain_logging: unused.enable_fine_grain_logging,
            log_stacktrace_single_entry: unused.log_stacktrace_single_entry,
            socket_path: unused.socket_path.clone(),
            socket_mode: unused.socket_mode,
            enable_core_dump: unused.enable_core_dump,
            stats_tag: self
                .stats_tag
                .iter()
                .map(|tag| format!("{}:{}", tag.name, tag.value))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, Exit> {
        Command::parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match parse(line) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_line_of_pilot_agent_is_understood() {
        let options = options(
            "outrigger -c etc/envoy-rev.json --drain-time-s 45 --drain-strategy immediate --local-address-ip-version v4 \
             --file-flush-interval-msec 1000 --disable-hot-restart --allow-unknown-static-fields -l warning \
             --component-log-level misc:error,rbac:debug --skip-deprecated-logs --concurrency=2",
        );
        assert_eq!(options.config_path, Some("etc/envoy-rev.json".into()));
        assert_eq!(options.drain_time(), Duration::from_secs(45));
        assert_eq!(options.drain_strategy, DrainStrategy::Immediate);
        assert_eq!(options.file_flush_interval(), Duration::from_secs(1));
        assert!(options.allow_unknown_static_fields && options.skip_deprecated_logs);
        assert_eq!(options.log_level, LogLevel::Warning);
        assert_eq!(options.component_log_level.to_string(), "misc:error,rbac:debug");
        assert_eq!(options.concurrency, Some(2));
    }

    #[test]
    fn defaults_are_envoys() {
        let proto = options("outrigger").to_proto(3);
        assert_eq!(proto.concurrency, 3);
        assert_eq!(proto.drain_time.unwrap().seconds, 600);
        assert_eq!(proto.parent_shutdown_time.unwrap().seconds, 900);
        assert_eq!(proto.file_flush_interval.unwrap().seconds, 10);
        assert_eq!(proto.socket_path, "@envoy_domain_socket");
        assert_eq!(proto.log_level, "info");
        assert_eq!(proto.log_format, DEFAULT_LOG_FORMAT);
    }

    #[test]
    fn wrong_lines_leave_with_one() {
        for line in [
            "outrigger --concurrency x",
            "outrigger --mode foo",
            "outrigger -l foo",
            "outrigger --bogus",
            "outrigger --stats-tag ab",
            "outrigger --stats-tag a.b:c",
            "outrigger --local-address-ip-version v5",
            "outrigger --component-log-level foo",
            "outrigger --component-log-level foo:bar",
        ] {
            assert_eq!(parse(line).unwrap_err().code, 1, "{line}");
        }
    }

    #[test]
    fn questions_are_answered() {
        let version = parse("bin/outrigger --version").unwrap_err();
        assert_eq!(version.code, 0);
        assert!(version.message.starts_with("\nbin/outrigger  version: "));
        assert_eq!(version.message.split('/').count(), 6);
        assert_eq!(parse("outrigger --help").unwrap_err().code, 0);
        assert_eq!(parse("outrigger --hot-restart-version").unwrap_err().message, "disabled");
        assert!(matches!(parse("outrigger quickstart"), Ok(Command::Quickstart(_))));
    }
}
