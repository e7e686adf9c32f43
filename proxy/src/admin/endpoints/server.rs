//! `/ready`, `/server_info`, and what makes the server stop, drain or answer health checks.

use http::StatusCode;
use prost::Message;

use crate::admin::answer::{Answer, TEXT};
use crate::admin::query::Query;
use crate::admin::{Admin, DrainListeners, ServerState};
use crate::config::json::{Style, to_json};
use crate::config::pb::envoy::admin::v3::{ServerInfo, server_info};
use crate::config::pb::google::protobuf::Duration;
use crate::server::version;

const OK: &str = "OK\n";

pub(super) fn ready(admin: &Admin, _: &Query) -> Answer {
    let state = admin.state.server_state();
    let status = match state {
        ServerState::Live => StatusCode::OK,
        ServerState::Draining | ServerState::PreInitializing | ServerState::Initializing => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    Answer::new(status, TEXT, format!("{}\n", state.name()))
}

pub(super) fn server_info(admin: &Admin, _: &Query) -> Answer {
    let uptime = Duration {
        seconds: i64::try_from(admin.state.uptime().as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    };
    let state = match admin.state.server_state() {
        ServerState::Live => server_info::State::Live,
        ServerState::Draining => server_info::State::Draining,
        ServerState::PreInitializing => server_info::State::PreInitializing,
        ServerState::Initializing => server_info::State::Initializing,
    };
    let info = ServerInfo {
        version: version::full(),
        state: state.into(),
        uptime_current_epoch: Some(uptime),
        uptime_all_epochs: Some(uptime),
        hot_restart_version: "disabled".to_owned(),
        command_line_options: Some(admin.state.command_line_options()),
        node: Message::decode(admin.state.node()).ok(),
        ..ServerInfo::default()
    };
    Answer::json(to_json("envoy.admin.v3.ServerInfo", &info.encode_to_vec(), Style::FULL))
}

pub(super) fn hot_restart_version(_: &Admin, _: &Query) -> Answer {
    Answer::text("disabled")
}

pub(super) fn drain_listeners(admin: &Admin, query: &Query) -> Answer {
    admin.state.drain_listeners(DrainListeners {
        inbound_only: query.has("inboundonly"),
        graceful: query.has("graceful"),
        skip_exit: query.has("skip_exit"),
    });
    Answer::text(OK)
}

pub(super) fn healthcheck_fail(admin: &Admin, _: &Query) -> Answer {
    admin.state.fail_health_checks();
    Answer::text(OK)
}

pub(super) fn healthcheck_ok(admin: &Admin, _: &Query) -> Answer {
    admin.state.pass_health_checks();
    Answer::text(OK)
}

pub(super) fn quit(admin: &Admin, _: &Query) -> Answer {
    admin.state.quit();
    Answer::text(OK)
}

pub(super) fn reopen_logs(admin: &Admin, _: &Query) -> Answer {
    admin.state.reopen_logs();
    Answer::text(OK)
}
