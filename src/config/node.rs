//! A parsed file in which every key and value still knows where it stands.
//!
//! TOML and JSON both become this one tree. Typed reading, the rules between fields and the legacy
//! forms all work on it, so every error can name its line and column whatever the format was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::Number;

use crate::base::Place;

/// One file: its path as a person would open it, and its text.
#[derive(Debug)]
pub(super) struct Document {
    pub path: PathBuf,
    pub text: String,
}

/// A position in a file. Line and column are only counted when somebody asks. In a document without text, such as a
/// variable of the environment, everything is at the whole of it.
#[derive(Debug, Clone)]
pub(super) struct At {
    document: Rc<Document>,
    offset: usize,
}

impl At {
    /// The byte at `offset` of `document`.
    pub fn new(document: &Rc<Document>, offset: usize) -> Self {
        At { document: Rc::clone(document), offset }
    }

    /// Line and column, both from 1; the column in characters.
    pub fn place(&self) -> Place {
        if self.document.text.is_empty() {
            return self.file();
        }
        let before = self.document.text.as_bytes().get(..self.offset).unwrap_or_default();
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let in_line = before.get(line_start..).unwrap_or_default();
        Place {
            file: self.document.path.clone(),
            line: before.iter().filter(|b| **b == b'\n').count() + 1,
            column: String::from_utf8_lossy(in_line).chars().count() + 1,
        }
    }

    /// The whole file.
    pub fn file(&self) -> Place {
        Place::whole(&self.document.path)
    }
}

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub at: At,
    pub item: Item,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Table(Table),
}

/// Keys in order, with their values.
pub(super) type Table = BTreeMap<String, Entry>;

/// A key of a table: where the key stands, and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: At,
    pub node: Node,
}

/// One step down the tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

impl Node {
    /// The table, if it is one.
    pub fn table(&self) -> Option<&Table> {
        if let Item::Table(table) = &self.item { Some(table) } else { None }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let Item::Text(text) = &self.item { Some(text) } else { None }
    }

    /// The value under `key`, if this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.table()?.get(key).map(|entry| &entry.node)
    }

    /// Where `path` leads, or as far along it as the file goes: the key's own position for a key.
    pub fn spot(&self, path: &[Step<'_>]) -> At {
        let mut node = self;
        let mut at = &self.at;
        for step in path {
            let next = match (step, &node.item) {
                (Step::Key(key), Item::Table(table)) => table.get(*key).map(|e| (&e.key, &e.node)),
                (Step::Item(index), Item::List(list)) => list.get(*index).map(|n| (&n.at, n)),
                _ => None,
            };
            let Some((here, below)) = next else { break };
            (at, node) = (here, below);
        }
        at.clone()
    }

    /// What kind of value this is, for people.
    pub fn kind(&self) -> &'static str {
        match &self.item {
            Item::Null => "null",
            Item::Bool(_) => "a boolean",
            Item::Number(_) => "a number",
            Item::Text(_) => "text",
            Item::List(_) => "a list",
            Item::Table(_) => "a table",
        }
    }

    /// The first text or key with a control character that no configuration needs. Tab and line
    /// breaks pass here, because Consul's opaque proxy settings hold whole documents.
    pub fn control_character(&self) -> Option<&At> {
        let bad = |text: &str| text.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r'));
        match &self.item {
            Item::Text(text) => bad(text).then_some(&self.at),
            Item::List(list) => list.iter().find_map(Node::control_character),
            Item::Table(table) => table
                .iter()
                .find_map(|(key, e)| if bad(key) { Some(&e.key) } else { e.node.control_character() }),
            Item::Null | Item::Bool(_) | Item::Number(_) => None,
        }
    }

    /// Lays `over` on top: tables merge key by key, any other value replaces what was there.
    pub fn merge(&mut self, over: Node) {
        match (&mut self.item, over.item) {
            (Item::Table(table), Item::Table(more)) => {
                for (key, entry) in more {
                    match table.get_mut(&key) {
                        Some(old) => {
                            old.key = entry.key;
                            old.node.merge(entry.node);
                        }
                        None => {
                            table.insert(key, entry);
                        }
                    }
                }
            }
            (item, other) => {
                *item = other;
                self.at = over.at;
            }
        }
    }

    /// The value of `json`, all of it at one position.
    pub fn from_json(json: &serde_json::Value, at: &At) -> Self {
        use serde_json::Value;
        let item = match json {
            Value::Null => Item::Null,
            Value::Bool(flag) => Item::Bool(*flag),
            Value::Number(number) => Item::Number(number.clone()),
            Value::String(text) => Item::Text(text.clone()),
            Value::Array(list) => Item::List(list.iter().map(|item| Node::from_json(item, at)).collect()),
            Value::Object(table) => {
                let entry = |value| Entry { key: at.clone(), node: Node::from_json(value, at) };
                Item::Table(table.iter().map(|(key, value)| (key.clone(), entry(value))).collect())
            }
        };
        Node { at: at.clone(), item }
    }

    /// The same value without positions; object keys sorted.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.item {
            Item::Null => Value::Null,
            Item::Bool(flag) => Value::Bool(*flag),
            Item::Number(number) => Value::Number(number.clone()),
            Item::Text(text) => Value::String(text.clone()),
            Item::List(list) => list.iter().map(Node::to_json).collect(),
            Item::Table(table) => table.iter().map(|(k, e)| (k.clone(), e.node.to_json())).collect(),
        }
    }
}
