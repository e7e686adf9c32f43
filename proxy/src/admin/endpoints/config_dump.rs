//! `/config_dump`: what the server was configured with, resource by resource from its bytes (messages of
//! `envoy.admin.v3`, see `config_dump_entry`).

use std::collections::VecDeque;
use std::rc::Rc;

use http::StatusCode;
use regex::Regex;

use super::config_dump_bootstrap::{self, Step};
use super::config_dump_entry::entry;
use crate::admin::answer::{Answer, JSON, PLAIN};
use crate::admin::query::Query;
use crate::admin::re2_words;
use crate::admin::{Admin, AdminState, ConfigKind, ConfigResource, ConfigState};
use crate::config::json::schema::Message;
use crate::config::json::{JsonWriter, Mask, Style};

const PREFIX: &str = "type.googleapis.com/";

/// One of the dump's messages and its repeated fields: where resources stand by their state.
struct Section {
    kind: ConfigKind,
    message: &'static str,
    /// Repeated fields, in order, the wrapper's message, and the states they hold.
    lists: &'static [(&'static str, &'static str, &'static [ConfigState])],
}

const SECTIONS: &[Section] = &[
    Section {
        kind: ConfigKind::Bootstrap,
        message: "envoy.admin.v3.BootstrapConfigDump",
        lists: &[],
    },
    Section {
        kind: ConfigKind::Clusters,
        message: "envoy.admin.v3.ClustersConfigDump",
        lists: &[
            ("static_clusters", "StaticCluster", &[ConfigState::Static]),
            (
                "dynamic_active_clusters",
                "DynamicCluster",
                &[ConfigState::Active, ConfigState::Draining],
            ),
            ("dynamic_warming_clusters", "DynamicCluster", &[ConfigState::Warming]),
        ],
    },
    Section {
        kind: ConfigKind::Endpoints,
        message: "envoy.admin.v3.EndpointsConfigDump",
        lists: &[
            ("static_endpoint_configs", "StaticEndpointConfig", &[ConfigState::Static]),
            (
                "dynamic_endpoint_configs",
                "DynamicEndpointConfig",
                &[ConfigState::Active, ConfigState::Warming, ConfigState::Draining],
            ),
        ],
    },
    Section {
        kind: ConfigKind::Listeners,
        message: "envoy.admin.v3.ListenersConfigDump",
        lists: &[
            ("static_listeners", "StaticListener", &[ConfigState::Static]),
            (
                "dynamic_listeners",
                "DynamicListener",
                &[
                    ConfigState::Active,
                    ConfigState::Warming,
                    ConfigState::Draining,
                    ConfigState::Rejected,
                ],
            ),
        ],
    },
    Section {
        kind: ConfigKind::ScopedRoutes,
        message: "envoy.admin.v3.ScopedRoutesConfigDump",
        lists: &[],
    },
    Section {
        kind: ConfigKind::Routes,
        message: "envoy.admin.v3.RoutesConfigDump",
        lists: &[
            ("static_route_configs", "StaticRouteConfig", &[ConfigState::Static]),
            (
                "dynamic_route_configs",
                "DynamicRouteConfig",
                &[ConfigState::Active, ConfigState::Warming, ConfigState::Draining],
            ),
        ],
    },
    Section {
        kind: ConfigKind::Secrets,
        message: "envoy.admin.v3.SecretsConfigDump",
        lists: &[
            ("static_secrets", "StaticSecret", &[ConfigState::Static]),
            (
                "dynamic_active_secrets",
                "DynamicSecret",
                &[ConfigState::Active, ConfigState::Draining],
            ),
            ("dynamic_warming_secrets", "DynamicSecret", &[ConfigState::Warming]),
        ],
    },
    Section {
        kind: ConfigKind::Extensions,
        message: "envoy.admin.v3.EcdsConfigDump",
        lists: &[("ecds_filters", "EcdsFilterConfig", &[ConfigState::Active])],
    },
];

pub(super) fn config_dump(admin: &Admin, query: &Query) -> Answer {
    let bad = |reason: String| Answer::new(StatusCode::BAD_REQUEST, PLAIN, reason);
    let names = match query.filled("name_regex") {
        Some(pattern) => match Regex::new(pattern) {
            Ok(names) => Some(names),
            Err(error) => {
                let reason = re2_words::of(&error, pattern);
                return bad(format!(
                    "INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {reason}"
                ));
            }
        },
        None => None,
    };
    let paths = query.filled("mask").unwrap_or_default();
    let mask = (!paths.is_empty()).then(|| Mask::parse(paths));
    let include_eds = query.has("include_eds");
    // Envoy has no message of discovered filters until there is one.
    let is_shown = |section: &&Section| match section.kind {
        ConfigKind::Endpoints => include_eds,
        ConfigKind::Extensions => !admin.state.config(ConfigKind::Extensions).is_empty(),
        _ => true,
    };
    let sections = SECTIONS.iter().filter(is_shown);
    let mut parts: Vec<Part> = Vec::new();
    match query.filled("resource") {
        None => {
            let fits = |section: &&Section| mask.as_ref().is_none_or(|m| fits(m, section.message));
            parts.extend(sections.filter(fits).map(|section| Part { section, list: None }));
            if parts.is_empty() {
                return bad(format!(
                    "FieldMask {paths} could not be successfully applied to any configs."
                ));
            }
        }
        Some(resource) => {
            for section in sections {
                if section.kind == ConfigKind::Bootstrap && resource == "bootstrap" {
                    return bad(format!(
                        "{resource} is not a repeated field. Use ?mask={resource} to get only this field"
                    ));
                }
                let list = section.lists.iter().position(|(name, ..)| *name == resource);
                parts.extend(list.map(|list| Part { section, list: Some(list) }));
            }
            let Some(part) = parts.first() else {
                let reason = format!("{resource} not found in config dump");
                return Answer::new(StatusCode::NOT_FOUND, PLAIN, reason);
            };
            let wrapper = part.wrapper();
            if mask.as_ref().is_some_and(|mask| !fits(mask, &wrapper)) {
                return bad(format!("FieldMask {paths} could not be successfully used."));
            }
        }
    }
    Answer::pieces(JSON, Dump::new(admin.state.clone(), parts, names, paths))
}

fn fits(mask: &Mask, message: &str) -> bool {
    Message::find(message).is_some_and(|message| mask.fits(message))
}

/// A whole message of the dump, or the entries of one of its lists.
struct Part {
    section: &'static Section,
    list: Option<usize>,
}

impl Part {
    /// Full name of the message around a resource.
    fn wrapper(&self) -> String {
        let wrapper = self.list.map_or("", |list| self.section.lists[list].1);
        format!("{}.{wrapper}", self.section.message)
    }
}

/// The dump under way: one resource per piece.
struct Dump {
    state: Rc<dyn AdminState>,
    parts: std::vec::IntoIter<Part>,
    names: Option<Regex>,
    mask: Option<Mask>,
    /// First steps of the mask's paths.
    fields: Vec<String>,
    json: JsonWriter,
    started: bool,
    done: bool,
    /// What is left to write of the bootstrap.
    bootstrap: VecDeque<Step>,
    /// None of its static resources is written.
    bootstrap_first: bool,
    current: Option<Current>,
}

/// The part that is being written.
struct Current {
    part: Part,
    /// Its resources by list, those of one entry together.
    lists: VecDeque<(usize, VecDeque<Vec<ConfigResource>>)>,
    /// The first list is open.
    open: bool,
}

impl Dump {
    fn new(state: Rc<dyn AdminState>, parts: Vec<Part>, names: Option<Regex>, paths: &str) -> Self {
        let paths: Vec<&str> = paths.split(',').filter(|path| !path.is_empty()).collect();
        let fields = paths.iter().filter_map(|path| path.split('.').next()).map(str::to_owned);
        Self {
            state,
            parts: parts.into_iter(),
            names,
            fields: fields.collect(),
            mask: (!paths.is_empty()).then(|| Mask::parse(&paths.join(","))),
            json: JsonWriter::new(Style::DUMP),
            started: false,
            done: false,
            bootstrap: VecDeque::new(),
            bootstrap_first: true,
            current: None,
        }
    }

    fn open_configs(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.json.open_map();
            self.json.key("configs");
            self.json.open_list();
        }
    }

    /// Whether the mask leaves a field of a whole message.
    fn is_wanted(&self, field: &str) -> bool {
        self.fields.is_empty() || self.fields.iter().any(|of| of == field)
    }

    /// Takes up the next part: its resources, and the head of its message.
    fn begin(&mut self, part: Part) {
        let mut resources = self.state.config(part.section.kind);
        if part.section.kind == ConfigKind::Bootstrap {
            if let Some(resource) = resources.first() {
                self.open_configs();
                if self.mask.is_some() {
                    let type_url = format!("{PREFIX}{}", part.section.message);
                    let bytes = config_dump_bootstrap::whole(&self.state, resource);
                    self.json.any(&type_url, &bytes, self.mask.as_ref());
                } else {
                    self.bootstrap = config_dump_bootstrap::steps(&self.state, resource);
                }
            }
            return;
        }
        if let Some(names) = &self.names {
            resources.retain(|resource| names.is_match(&resource.name));
        }
        // Envoy keeps these by name, the others as they came.
        if matches!(
            part.section.kind,
            ConfigKind::Clusters | ConfigKind::Endpoints | ConfigKind::Secrets
        ) {
            resources.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let mut lists = VecDeque::new();
        for (index, (field, _, states)) in part.section.lists.iter().enumerate() {
            let wanted = match part.list {
                Some(only) => only == index,
                None => self.is_wanted(field),
            };
            let of: VecDeque<ConfigResource> =
                resources.iter().filter(|r| states.contains(&r.state)).cloned().collect();
            if wanted && !of.is_empty() {
                lists.push_back((index, group(part.section.kind, of)));
            }
        }
        if part.list.is_none() {
            self.open_configs();
            self.json.open_map();
            self.json.key("@type");
            self.json.string(&format!("{PREFIX}{}", part.section.message));
            let version = self.state.config_version(part.section.kind);
            if !version.is_empty() && self.is_wanted("version_info") {
                self.json.key("version_info");
                self.json.string(&version);
            }
        }
        self.current = Some(Current { part, lists, open: false });
    }

    /// Writes one entry of the current part, or closes what is at its end.
    fn step(&mut self, mut current: Current) {
        let whole = current.part.list.is_none();
        let Some((index, entries)) = current.lists.front_mut() else {
            if whole {
                self.json.close_map();
            }
            return;
        };
        let (field, wrapper, _) = current.part.section.lists[*index];
        let Some(resources) = entries.pop_front() else {
            if whole {
                self.json.close_list();
            }
            current.lists.pop_front();
            current.open = false;
            self.current = Some(current);
            return;
        };
        let message = format!("{}.{wrapper}", current.part.section.message);
        let bytes = entry(current.part.section.kind, &resources);
        if whole {
            if !std::mem::replace(&mut current.open, true) {
                self.json.key(field);
                self.json.open_list();
            }
            self.json.message(&message, &bytes, None);
        } else {
            self.open_configs();
            self.json.any(&format!("{PREFIX}{message}"), &bytes, self.mask.as_ref());
        }
        self.current = Some(current);
    }

    fn finish(&mut self) {
        self.done = true;
        if self.started {
            self.json.close_list();
        } else {
            self.json.open_map();
        }
        self.json.close_map();
    }
}

/// A listener's states are one entry; everything else is an entry of its own.
fn group(kind: ConfigKind, resources: VecDeque<ConfigResource>) -> VecDeque<Vec<ConfigResource>> {
    let mut entries: VecDeque<Vec<ConfigResource>> = VecDeque::new();
    for resource in resources {
        match entries.back_mut() {
            Some(last)
                if kind == ConfigKind::Listeners
                    && resource.state != ConfigState::Static
                    && last[0].name == resource.name =>
            {
                last.push(resource);
            }
            _ => entries.push_back(vec![resource]),
        }
    }
    entries
}

impl Iterator for Dump {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        if let Some(step) = self.bootstrap.pop_front() {
            step.write(&mut self.json, &mut self.bootstrap_first);
        } else if let Some(current) = self.current.take() {
            self.step(current);
        } else if let Some(part) = self.parts.next() {
            self.begin(part);
        } else {
            self.finish();
            return Some(format!("{}\n", self.json.take()));
        }
        Some(self.json.take())
    }
}
