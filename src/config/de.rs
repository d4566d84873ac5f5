//! [`Node`] to typed values through serde, keeping position and path of what does not fit.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::error::{ConfigError, Problem};
use super::node::{At, Entry, Item, Node};

/// Reads `node` as a `T`.
pub(super) fn read<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, ConfigError> {
    T::deserialize(node).map_err(|misfit| misfit.into_error(node))
}

/// Why a value does not fit its type, on its way up through the tree.
#[derive(Debug)]
pub(super) struct Misfit {
    what: What,
    /// The innermost position known.
    at: Option<At>,
    /// From the innermost part outwards.
    path: Vec<String>,
}

#[derive(Debug)]
enum What {
    UnknownKey { key: String, known: &'static [&'static str] },
    Missing(&'static str),
    Other(String),
}

impl Misfit {
    fn new(what: What) -> Self {
        Misfit { what, at: None, path: Vec::new() }
    }

    /// Says where, unless something further in has said it already.
    fn at(mut self, at: &At) -> Self {
        self.at.get_or_insert_with(|| at.clone());
        self
    }

    fn below(mut self, part: String) -> Self {
        self.path.push(part);
        self
    }

    fn into_error(mut self, root: &Node) -> ConfigError {
        // A key that is missing at the top is nowhere; in a table it is missing where that begins.
        let at_top = self.path.is_empty();
        self.path.reverse();
        let path = self.path.join(".").replace(".[", "[");
        let at = self.at.as_ref().unwrap_or(&root.at);
        match self.what {
            What::Missing(key) => {
                let place = if at_top { at.file() } else { at.place() };
                ConfigError { problem: Problem::Missing { key: join(&path, key) }, place }
            }
            What::UnknownKey { key, known } => ConfigError::at(Problem::unknown_key(&path, &key, known), at),
            What::Other(why) => ConfigError::at(Problem::Value { path, why }, at),
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// serde's words for what it wants, in those of people who write files.
fn plain_expected(expected: &str) -> String {
    match expected {
        "i64" | "u64" | "u32" | "u16" => "a whole number".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a table".to_owned(),
        "a string" | "path string" => "text".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}

/// serde's words for what it found, likewise.
fn plain_found(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Unit => "null".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a table".to_owned(),
        de::Unexpected::Str(text) => format!("the text {text:?}"),
        de::Unexpected::Signed(number) => format!("the number {number}"),
        de::Unexpected::Unsigned(number) => format!("the number {number}"),
        de::Unexpected::Float(number) => format!("the number {number:?}"),
        de::Unexpected::Bool(flag) => format!("{flag}"),
        other => other.to_string(),
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Misfit::new(What::Other(message.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = plain_expected(&expected.to_string());
        Misfit::new(What::Other(format!("expected {expected}, found {}", plain_found(found))))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = plain_expected(&expected.to_string());
        Misfit::new(What::Other(format!("{} does not fit: expected {expected}", plain_found(found))))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let nearest = super::error::nearest(variant, known.iter().copied());
        let meant = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        Misfit::new(What::Other(format!("{variant:?} is none of {}{meant}", super::error::choices(known))))
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Misfit::new(What::UnknownKey { key: key.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Misfit::new(What::Missing(key))
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let read = match &self.item {
            Item::Null => visitor.visit_unit(),
            Item::Bool(flag) => visitor.visit_bool(*flag),
            Item::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), _, _) => visitor.visit_i64(number),
                (_, Some(number), _) => visitor.visit_u64(number),
                (_, _, number) => visitor.visit_f64(number.unwrap_or_default()),
            },
            Item::Text(text) => visitor.visit_borrowed_str(text),
            Item::List(list) => visitor.visit_seq(Items { rest: list.iter(), index: 0 }),
            Item::Table(table) => visitor.visit_map(Entries { rest: table.iter(), value: None }),
        };
        read.map_err(|misfit| misfit.at(&self.at))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if matches!(self.item, Item::Null) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let Some(text) = self.text() else {
            let why = format!("expected one of {}, found {}", super::error::choices(known), self.kind());
            return Err(Misfit::new(What::Other(why)).at(&self.at));
        };
        let variant: StrDeserializer<'_, Misfit> = text.into_deserializer();
        visitor.visit_enum(variant).map_err(|misfit| misfit.at(&self.at))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    rest: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(node).map(Some).map_err(|misfit| misfit.at(&node.at).below(format!("[{index}]")))
    }
}

struct Entries<'de> {
    rest: std::collections::btree_map::Iter<'de, String, Entry>,
    value: Option<(&'de str, &'de Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((key, entry)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, &entry.node));
        let name: StrDeserializer<'de, Misfit> = key.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|misfit| misfit.at(&entry.key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(node).map_err(|misfit| misfit.at(&node.at).below(key.to_owned()))
    }
}
