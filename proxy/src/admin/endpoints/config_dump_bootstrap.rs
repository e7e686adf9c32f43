//! The bootstrap of `/config_dump`: its static resources are kept beside it, one by one, and written where they
//! belong, so that no piece is longer than a resource.

use std::collections::VecDeque;
use std::rc::Rc;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field};

use super::config_dump_entry::{bootstrap, timestamp};
use crate::admin::{AdminState, ConfigKind, ConfigResource, ConfigState};
use crate::config::json::JsonWriter;

/// `Bootstrap.static_resources`.
const STATIC_RESOURCES: u32 = 2;
const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// Lists of `Bootstrap.StaticResources`: kind, field, number.
const LISTS: [(ConfigKind, &str, u32); 3] = [
    (ConfigKind::Listeners, "listeners", 1),
    (ConfigKind::Clusters, "clusters", 2),
    (ConfigKind::Secrets, "secrets", 3),
];

/// One piece of a bootstrap that is written step by step.
pub(super) enum Step {
    /// The message's head, and the fields in front of the static resources.
    Head(Vec<u8>),
    Open(&'static str),
    Item(ConfigResource),
    Close,
    /// The fields behind, and the message's end; whether static resources are open.
    Tail(Vec<u8>, ConfigResource, bool),
}

fn statics(state: &dyn AdminState, kind: ConfigKind) -> Vec<ConfigResource> {
    let mut resources = state.config(kind);
    resources.retain(|resource| resource.state == ConfigState::Static);
    resources
}

/// The steps that write `BootstrapConfigDump`.
pub(super) fn steps(state: &Rc<dyn AdminState>, resource: &ConfigResource) -> VecDeque<Step> {
    let (before, after) = split(&resource.value);
    let mut steps = VecDeque::from([Step::Head(before)]);
    for (kind, field, _) in LISTS {
        let resources = statics(&**state, kind);
        if !resources.is_empty() {
            steps.push_back(Step::Open(field));
            steps.extend(resources.into_iter().map(Step::Item));
            steps.push_back(Step::Close);
        }
    }
    let open = steps.len() > 1;
    steps.push_back(Step::Tail(after, resource.clone(), open));
    steps
}

impl Step {
    /// `first`: no list of static resources was opened before.
    pub(super) fn write(self, json: &mut JsonWriter, first: &mut bool) {
        match self {
            Self::Head(before) => {
                json.open_map();
                json.key("@type");
                json.string("type.googleapis.com/envoy.admin.v3.BootstrapConfigDump");
                json.key("bootstrap");
                json.open_map();
                json.fields(BOOTSTRAP, &before);
            }
            Self::Open(field) => {
                if std::mem::replace(first, false) {
                    json.key("static_resources");
                    json.open_map();
                }
                json.key(field);
                json.open_list();
            }
            Self::Item(resource) => json.message(resource.type_url, &resource.value, None),
            Self::Close => json.close_list(),
            Self::Tail(after, resource, open) => {
                if open {
                    json.close_map();
                }
                json.fields(BOOTSTRAP, &after);
                json.close_map();
                if let Some(updated) = timestamp(resource.last_updated) {
                    json.key("last_updated");
                    let bytes = updated.encode_to_vec();
                    json.message("google.protobuf.Timestamp", &bytes, None);
                }
                json.close_map();
            }
        }
    }
}

/// `BootstrapConfigDump` in one piece, for a mask to select from.
pub(super) fn whole(state: &Rc<dyn AdminState>, resource: &ConfigResource) -> Vec<u8> {
    let mut statics_bytes = Vec::new();
    for (kind, _, number) in LISTS {
        for resource in statics(&**state, kind) {
            append(number, &resource.value, &mut statics_bytes);
        }
    }
    let mut resource = resource.clone();
    if !statics_bytes.is_empty() {
        // Fields of one number are merged by whoever reads them.
        let mut value = resource.value.to_vec();
        append(STATIC_RESOURCES, &statics_bytes, &mut value);
        resource.value = value.into();
    }
    bootstrap(&resource)
}

fn append(number: u32, value: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// The bootstrap's fields in front of its static resources and those behind them.
fn split(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    while rest.has_remaining() {
        let start = rest;
        let Ok((number, wire)) = decode_key(&mut rest) else { break };
        if skip_field(wire, number, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
        let field = &start[..start.len() - rest.len()];
        match number.cmp(&STATIC_RESOURCES) {
            std::cmp::Ordering::Less => before.extend_from_slice(field),
            std::cmp::Ordering::Greater => after.extend_from_slice(field),
            std::cmp::Ordering::Equal => {}
        }
    }
    (before, after)
}
