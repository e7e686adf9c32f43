//! A configuration text as a stream of events, whether it is YAML or JSON, so that one resource at a time is in memory.
//!
//! Anchors are expanded here: what an alias stands for is replayed. A piece that was read too early (the keys before
//! an `@type`) can be put back. Depth, and the number of events that aliases may make, are bounded.

use std::borrow::Cow;
use std::rc::Rc;

use json_event_parser::{JsonEvent, LowLevelJsonParser};
use rustc_hash::FxHashMap;
use saphyr_parser::{Event as YamlEvent, Parser, ScalarStyle, StrInput};

/// Nesting that is accepted; the deepest known configurations have 40 levels.
const MAX_DEPTH: usize = 128;
/// Events that aliases may add before the text counts as an attack: the size of a configuration of 100 MB.
const MAX_REPLAYED: usize = 8_000_000;

/// Where in the text something stands, from 1. In JSON, where counting lines costs time, `line` is 0 and `column` the
/// byte after it, until `Reader::locate` has looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// The text itself is wrong: nothing after it can be read.
#[derive(Debug)]
pub struct SyntaxError {
    pub at: Position,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    MapStart,
    MapEnd,
    ListStart,
    ListEnd,
    /// A string by its form: quoted, or a block.
    Text(Cow<'a, str>),
    /// What may be null, a boolean, a number, or in YAML a string.
    Plain(Cow<'a, str>),
    /// Nothing follows.
    End,
}

type Item<'a> = (Event<'a>, Position);

/// Events that were read and are to be read again.
#[derive(Debug, Clone)]
pub struct Kept<'a>(Rc<[Item<'a>]>);

enum Source<'a> {
    Yaml(Box<Parser<'a, StrInput<'a>>>),
    Json { parser: Box<LowLevelJsonParser>, text: &'a str, offset: usize },
}

/// Events to be read before the source's next.
struct Replay<'a> {
    kept: Kept<'a>,
    next: usize,
    /// Stands for an alias, so that an anchor around it has to record it; what was put back is recorded already.
    is_alias: bool,
}

/// An anchored node while it is being read.
struct Recording<'a> {
    anchor: usize,
    depth: usize,
    items: Vec<Item<'a>>,
}

pub struct Reader<'a> {
    source: Source<'a>,
    replays: Vec<Replay<'a>>,
    peeked: Option<Item<'a>>,
    anchors: FxHashMap<usize, Kept<'a>>,
    recordings: Vec<Recording<'a>>,
    depth: usize,
    replayed: usize,
}

impl<'a> Reader<'a> {
    /// The first document of a YAML text.
    pub fn yaml(text: &'a str) -> Self {
        Self::new(Source::Yaml(Box::new(Parser::new_from_str(text))))
    }

    pub fn json(text: &'a str) -> Self {
        let parser = LowLevelJsonParser::new().with_max_stack_size(MAX_DEPTH + 1);
        Self::new(Source::Json { parser: Box::new(parser), text, offset: 0 })
    }

    fn new(source: Source<'a>) -> Self {
        Self {
            source,
            replays: Vec::new(),
            peeked: None,
            anchors: FxHashMap::default(),
            recordings: Vec::new(),
            depth: 0,
            replayed: 0,
        }
    }

    /// Whether plain scalars follow YAML's rules.
    pub fn is_yaml(&self) -> bool {
        matches!(self.source, Source::Yaml(_))
    }

    pub fn peek(&mut self) -> Result<&Item<'a>, SyntaxError> {
        let item = match self.peeked.take() {
            Some(item) => item,
            None => self.advance()?,
        };
        Ok(self.peeked.insert(item))
    }

    pub fn next(&mut self) -> Result<Item<'a>, SyntaxError> {
        let item = match self.peeked.take() {
            Some(item) => item,
            None => self.advance()?,
        };
        match item.0 {
            Event::MapStart | Event::ListStart => self.depth += 1,
            Event::MapEnd | Event::ListEnd => self.depth = self.depth.saturating_sub(1),
            _ => (),
        }
        if self.depth > MAX_DEPTH {
            let reason = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(SyntaxError { at: item.1, reason });
        }
        Ok(item)
    }

    /// Line and column of a position that an event came with.
    pub fn locate(&self, at: Position) -> Position {
        match &self.source {
            Source::Json { text, .. } if at.line == 0 => {
                let before = &text.as_bytes()[..at.column.min(text.len())];
                let line = memchr::memchr_iter(b'\n', before).count() + 1;
                let start = memchr::memrchr(b'\n', before).map_or(0, |end| end + 1);
                Position { line, column: (before.len() - start).max(1) }
            }
            _ => at,
        }
    }

    /// Reads over a value.
    pub fn skip(&mut self) -> Result<(), SyntaxError> {
        self.value(|_| ())
    }

    /// Reads a value to keep it.
    pub fn keep(&mut self, into: &mut Vec<Item<'a>>) -> Result<(), SyntaxError> {
        self.value(|item| into.push(item))
    }

    fn value(&mut self, mut each: impl FnMut(Item<'a>)) -> Result<(), SyntaxError> {
        let mut open = 0_usize;
        loop {
            let item = self.next()?;
            match item.0 {
                Event::MapStart | Event::ListStart => open += 1,
                Event::MapEnd | Event::ListEnd => open = open.saturating_sub(1),
                Event::End => return Err(unexpected_end(item.1)),
                Event::Text(_) | Event::Plain(_) => (),
            }
            each(item);
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// Puts events before what comes next.
    pub fn put_back(&mut self, items: Vec<Item<'a>>) {
        if let Some(peeked) = self.peeked.take() {
            self.replays.push(Replay { kept: Kept(Rc::from([peeked])), next: 0, is_alias: false });
        }
        self.replays.push(Replay { kept: Kept(items.into()), next: 0, is_alias: false });
    }

    fn advance(&mut self) -> Result<Item<'a>, SyntaxError> {
        while let Some(replay) = self.replays.last_mut() {
            if let Some(item) = replay.kept.0.get(replay.next) {
                replay.next += 1;
                let item = item.clone();
                if replay.is_alias {
                    self.record(&item, None);
                }
                return Ok(item);
            }
            self.replays.pop();
        }
        loop {
            match self.read_source()? {
                Raw::Item(item, anchor) => {
                    self.record(&item, anchor);
                    return Ok(item);
                }
                Raw::Alias(anchor, at) => {
                    let Some(kept) = self.anchors.get(&anchor).cloned() else {
                        let reason = "an alias inside of what it stands for".to_owned();
                        return Err(SyntaxError { at, reason });
                    };
                    self.replayed += kept.0.len();
                    if self.replayed > MAX_REPLAYED {
                        let reason = "aliases make the document too large".to_owned();
                        return Err(SyntaxError { at, reason });
                    }
                    self.replays.push(Replay { kept, next: 0, is_alias: true });
                    return self.advance();
                }
                Raw::Nothing => (),
            }
        }
    }

    fn record(&mut self, item: &Item<'a>, anchor: Option<usize>) {
        if let Some(anchor) = anchor {
            self.recordings.push(Recording { anchor, depth: 0, items: Vec::new() });
        }
        if self.recordings.is_empty() {
            return;
        }
        for recording in &mut self.recordings {
            recording.items.push(item.clone());
            match item.0 {
                Event::MapStart | Event::ListStart => recording.depth += 1,
                Event::MapEnd | Event::ListEnd => {
                    recording.depth = recording.depth.saturating_sub(1)
                }
                _ => (),
            }
        }
        while let Some(done) = self.recordings.pop_if(|recording| recording.depth == 0) {
            self.anchors.insert(done.anchor, Kept(done.items.into()));
        }
    }

    fn read_source(&mut self) -> Result<Raw<'a>, SyntaxError> {
        match &mut self.source {
            Source::Yaml(parser) => read_yaml(parser),
            Source::Json { parser, text, offset } => read_json(parser, text, offset),
        }
    }
}

pub fn unexpected_end(at: Position) -> SyntaxError {
    SyntaxError { at, reason: "unexpected end".to_owned() }
}

enum Raw<'a> {
    Item(Item<'a>, Option<usize>),
    Alias(usize, Position),
    Nothing,
}

fn read_yaml<'a>(parser: &mut Parser<'a, StrInput<'a>>) -> Result<Raw<'a>, SyntaxError> {
    let position =
        |marker: &saphyr_parser::Marker| Position { line: marker.line(), column: marker.col() + 1 };
    let (event, span) = match parser.next_event() {
        None => return Ok(Raw::Item((Event::End, Position { line: 1, column: 1 }), None)),
        Some(Ok(event)) => event,
        Some(Err(error)) => {
            return Err(SyntaxError {
                at: position(error.marker()),
                reason: error.info().to_owned(),
            });
        }
    };
    let at = position(&span.start);
    let item = |event, anchor: usize| Raw::Item((event, at), Some(anchor).filter(|&id| id > 0));
    Ok(match event {
        YamlEvent::Alias(anchor) => Raw::Alias(anchor, at),
        // Tags change nothing in Envoy.
        YamlEvent::Scalar(text, ScalarStyle::Plain, anchor, _) => item(Event::Plain(text), anchor),
        YamlEvent::Scalar(text, _, anchor, _) => item(Event::Text(text), anchor),
        YamlEvent::SequenceStart(anchor, _) => item(Event::ListStart, anchor),
        YamlEvent::SequenceEnd => item(Event::ListEnd, 0),
        YamlEvent::MappingStart(anchor, _) => item(Event::MapStart, anchor),
        YamlEvent::MappingEnd => item(Event::MapEnd, 0),
        YamlEvent::DocumentEnd | YamlEvent::StreamEnd => item(Event::End, 0),
        YamlEvent::Nothing | YamlEvent::StreamStart | YamlEvent::DocumentStart(_) => Raw::Nothing,
    })
}

fn read_json<'a>(
    parser: &mut LowLevelJsonParser,
    text: &'a str,
    offset: &mut usize,
) -> Result<Raw<'a>, SyntaxError> {
    let start = *offset;
    let result = parser.parse_next(&text.as_bytes()[start..], true);
    *offset += result.consumed_bytes;
    let event = match result.event {
        None => Event::End,
        Some(Err(error)) => {
            let location = error.location().start;
            let at =
                Position { line: location.line as usize + 1, column: location.column as usize + 1 };
            return Err(SyntaxError { at, reason: error.message().to_owned() });
        }
        Some(Ok(event)) => match event {
            JsonEvent::String(text) | JsonEvent::ObjectKey(text) => Event::Text(text),
            JsonEvent::Number(text) => Event::Plain(text),
            JsonEvent::Boolean(true) => Event::Plain("true".into()),
            JsonEvent::Boolean(false) => Event::Plain("false".into()),
            JsonEvent::Null => Event::Plain("null".into()),
            JsonEvent::StartArray => Event::ListStart,
            JsonEvent::EndArray => Event::ListEnd,
            JsonEvent::StartObject => Event::MapStart,
            JsonEvent::EndObject => Event::MapEnd,
            JsonEvent::Eof => Event::End,
        },
    };
    Ok(Raw::Item((event, Position { line: 0, column: *offset }), None))
}
