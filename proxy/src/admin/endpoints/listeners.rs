//! `/listeners`.

use std::fmt::Write;

use prost::Message;

use crate::admin::answer::Answer;
use crate::admin::query::Query;
use crate::admin::{Admin, AdminAddress};
use crate::config::json::{Style, to_json};
use crate::config::pb::envoy::admin::v3::{ListenerStatus, Listeners};
use crate::config::pb::envoy::config::core::v3 as core;

pub(super) fn listeners(admin: &Admin, query: &Query) -> Answer {
    let listeners = admin.state.listeners();
    if query.get("format") != Some("json") {
        let mut out = String::new();
        for listener in listeners {
            for address in listener.addresses {
                let _ = writeln!(out, "{}::{address}", listener.name);
            }
        }
        return Answer::text(out);
    }
    let listener_statuses = listeners.into_iter().map(|listener| {
        let mut addresses = listener.addresses.iter().map(to_proto);
        ListenerStatus {
            name: listener.name,
            local_address: addresses.next(),
            additional_local_addresses: addresses.collect(),
        }
    });
    let message = Listeners { listener_statuses: listener_statuses.collect() };
    Answer::json(to_json("envoy.admin.v3.Listeners", &message.encode_to_vec(), Style::DUMP))
}

/// `config.core.v3.Address`.
pub(super) fn to_proto(address: &AdminAddress) -> core::Address {
    let address = match address {
        AdminAddress::Socket(address) => {
            core::address::Address::SocketAddress(core::SocketAddress {
                address: address.ip().to_string(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(
                    address.port().into(),
                )),
                ..core::SocketAddress::default()
            })
        }
        AdminAddress::Pipe(path) => core::address::Address::Pipe(core::Pipe {
            path: path.to_string_lossy().into_owned(),
            ..core::Pipe::default()
        }),
        AdminAddress::Internal(listener, endpoint) => {
            core::address::Address::EnvoyInternalAddress(core::EnvoyInternalAddress {
                endpoint_id: endpoint.clone(),
                address_name_specifier: Some(
                    core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                        listener.clone(),
                    ),
                ),
            })
        }
    };
    core::Address { address: Some(address) }
}
