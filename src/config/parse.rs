//! Text to [`Node`]: TOML and JSON.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Number;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Problem};
use super::node::{At, Document, Entry, Item, Node, Table};

/// The two formats, told apart by the file's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Toml,
    Json,
}

impl Format {
    /// The format of a file with this name, if it is one of ours.
    pub fn of(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "toml" => Some(Format::Toml),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// A file that is not in its format, and whose it seems to be.
pub(super) struct Broken {
    pub error: ConfigError,
    /// Its `id` or `name`, where it could still be read.
    pub service: Option<String>,
}

impl From<ConfigError> for Broken {
    fn from(error: ConfigError) -> Self {
        Broken { error, service: None }
    }
}

/// Reads `document` as `format`.
pub(super) fn parse(document: &Rc<Document>, format: Format) -> Result<Node, Broken> {
    let node = match format {
        Format::Toml => toml(document)?,
        Format::Json => json(document)?,
    };
    match node.control_character() {
        None => Ok(node),
        Some(at) => {
            Err(Broken { error: ConfigError::at(Problem::ControlCharacter, at), service: service_of(&node) })
        }
    }
}

/// Whose file this is, as far as its own keys say.
pub(super) fn service_of(root: &Node) -> Option<String> {
    let text = root.get("id").and_then(Node::text).or_else(|| root.get("name").and_then(Node::text))?;
    text.parse::<super::value::ServiceId>().ok().map(|id| id.to_string())
}

fn toml(document: &Rc<Document>) -> Result<Node, Broken> {
    let syntax = |error: &toml::de::Error| {
        let at = At::new(document, error.span().map_or(0, |span| span.start));
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        ConfigError::at(Problem::Syntax { format: "TOML", message }, &at)
    };
    let error = match DeTable::parse(&document.text) {
        Ok(table) => {
            return Ok(Node {
                at: At::new(document, 0),
                item: Item::Table(table_of(document, table.get_ref())?),
            });
        }
        Err(error) => syntax(&error),
    };
    // The parser recovers from most slips, so the name in a broken file is seldom lost with it.
    let (partial, _) = DeTable::parse_recoverable(&document.text);
    let text = |key: &str| partial.get_ref().get(key).and_then(|v| v.get_ref().as_str()).map(str::to_owned);
    Err(Broken { error, service: text("id").or_else(|| text("name")) })
}

fn table_of(document: &Rc<Document>, table: &DeTable<'_>) -> Result<Table, ConfigError> {
    let mut entries = BTreeMap::new();
    for (key, value) in table.iter() {
        let entry = Entry { key: At::new(document, key.span().start), node: toml_node(document, value)? };
        entries.insert(key.get_ref().to_string(), entry);
    }
    Ok(entries)
}

/// Recursion is bounded: the parser refuses keys and values that nest deeper than 80.
fn toml_node(document: &Rc<Document>, value: &Spanned<DeValue<'_>>) -> Result<Node, ConfigError> {
    let at = At::new(document, value.span().start);
    let wrong =
        |why: &str| Err(ConfigError::at(Problem::Value { path: String::new(), why: why.to_owned() }, &at));
    let item = match value.get_ref() {
        DeValue::String(text) => Item::Text(text.to_string()),
        DeValue::Boolean(flag) => Item::Bool(*flag),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) => Item::Number(number.into()),
            Err(_) => return wrong("the number does not fit into 64 bits"),
        },
        DeValue::Float(digits) => match digits.as_str().parse().ok().and_then(Number::from_f64) {
            Some(number) => Item::Number(number),
            None => return wrong("infinity and not-a-number have no meaning here"),
        },
        DeValue::Datetime(_) => return wrong("no setting is a date or time of day; text needs quotes"),
        DeValue::Array(list) => {
            Item::List(list.iter().map(|item| toml_node(document, item)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Item::Table(table_of(document, table)?),
    };
    Ok(Node { at, item })
}

fn json(document: &Rc<Document>) -> Result<Node, ConfigError> {
    let text = &document.text;
    // serde_json judges the text (its recursion limit is 128) and says where it is wrong; the walk
    // below only has to find where the parts of a correct text begin.
    if let Err(error) = serde_json::from_str::<serde_json::Value>(text) {
        let start =
            text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
        let offset = (start + error.column().saturating_sub(1)).min(text.len());
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what).to_owned();
        return Err(ConfigError::at(Problem::Syntax { format: "JSON", message }, &At::new(document, offset)));
    }
    let mut walk = Walk { document, offset: 0 };
    walk.value()
}

/// A walk over JSON text that is known to be correct.
struct Walk<'a> {
    document: &'a Rc<Document>,
    offset: usize,
}

impl Walk<'_> {
    fn here(&self) -> At {
        At::new(self.document, self.offset)
    }

    fn peek(&self) -> Option<u8> {
        self.document.text.as_bytes().get(self.offset).copied()
    }

    fn skip_while(&mut self, more: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&more) {
            self.offset += 1;
        }
    }

    /// To the next token; separators carry no meaning in a correct text.
    fn skip_to_token(&mut self) -> Option<u8> {
        self.skip_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':'));
        self.peek()
    }

    fn value(&mut self) -> Result<Node, ConfigError> {
        let first = self.skip_to_token();
        let at = self.here();
        let item = match first {
            Some(b'{') => Item::Table(self.table()?),
            Some(b'[') => Item::List(self.list()?),
            _ => self.scalar()?,
        };
        Ok(Node { at, item })
    }

    fn table(&mut self) -> Result<Table, ConfigError> {
        self.offset += 1;
        let mut table = Table::new();
        while self.skip_to_token().is_some_and(|b| b != b'}') {
            let key = self.here();
            let Item::Text(name) = self.scalar()? else { return Err(self.lost()) };
            let node = self.value()?;
            if table.contains_key(&name) {
                return Err(ConfigError::at(Problem::DuplicateKey { key: name }, &key));
            }
            table.insert(name, Entry { key, node });
        }
        self.offset += 1;
        Ok(table)
    }

    fn list(&mut self) -> Result<Vec<Node>, ConfigError> {
        self.offset += 1;
        let mut list = Vec::new();
        while self.skip_to_token().is_some_and(|b| b != b']') {
            list.push(self.value()?);
        }
        self.offset += 1;
        Ok(list)
    }

    fn scalar(&mut self) -> Result<Item, ConfigError> {
        let start = self.offset;
        if self.peek() == Some(b'"') {
            self.offset += 1;
            while let Some(byte) = self.peek().filter(|b| *b != b'"') {
                self.offset += if byte == b'\\' { 2 } else { 1 };
            }
            self.offset += 1;
        } else {
            self.skip_while(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b',' | b'}' | b']'));
        }
        let token = self.document.text.get(start..self.offset).unwrap_or_default();
        match serde_json::from_str(token) {
            Ok(serde_json::Value::Null) => Ok(Item::Null),
            Ok(serde_json::Value::Bool(flag)) => Ok(Item::Bool(flag)),
            // serde_json's own reading of a fraction may be off by the last bit.
            Ok(serde_json::Value::Number(number)) if number.is_f64() => {
                let exact = token.parse().ok().and_then(Number::from_f64);
                Ok(Item::Number(exact.unwrap_or(number)))
            }
            Ok(serde_json::Value::Number(number)) => Ok(Item::Number(number)),
            Ok(serde_json::Value::String(text)) => Ok(Item::Text(text)),
            _ => Err(self.lost()),
        }
    }

    fn lost(&self) -> ConfigError {
        let message = "not a JSON value".to_owned();
        ConfigError::at(Problem::Syntax { format: "JSON", message }, &self.here())
    }
}
