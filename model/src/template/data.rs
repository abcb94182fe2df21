//! JSON in and out: what a template is given, with the order of keys kept, and `tojson`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::budget::Budget;
use super::value::{Kind, Value};
use super::{Fault, fault, formatting};

/// A JSON value for a template. Unlike `serde_json`'s own it keeps the order of keys, which templates print.
#[derive(Clone, Debug)]
pub struct Data(pub(super) Value);

impl Data {
    /// Reads JSON text.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// A message such as `{"role": "user", "content": "…"}`.
    pub fn message(role: &str, content: &str) -> Self {
        Self::object([("role", Self::text(role)), ("content", Self::text(content))])
    }

    /// A string.
    pub fn text(text: &str) -> Self {
        Data(Value::Str(text.into()))
    }

    /// An object with its keys in this order.
    pub fn object<'k>(entries: impl IntoIterator<Item = (&'k str, Data)>) -> Self {
        let entries = entries.into_iter().map(|(key, value)| (Value::Str(key.into()), value.0)).collect();
        // What can fail is depth and size, and then the object is one that no template could show.
        Data(Value::dict(entries, &Budget::new()).unwrap_or(Value::None))
    }

    /// A list.
    pub fn list(items: impl IntoIterator<Item = Data>) -> Self {
        let items = items.into_iter().map(|item| item.0).collect();
        Data(Value::list(Kind::List, items, &Budget::new()).unwrap_or(Value::None))
    }

    /// The value of a key, where this is an object that has it.
    pub fn get(&self, key: &str) -> Option<Data> {
        match &self.0 {
            Value::Dict(dict) => dict.get_str(key, &Budget::new()).ok().flatten().cloned().map(Data),
            _ => None,
        }
    }

    /// The items, where this is a list.
    pub fn items(&self) -> Option<Vec<Data>> {
        match &self.0 {
            Value::List(list) => Some(list.items.iter().cloned().map(Data).collect()),
            _ => None,
        }
    }

    /// The keys with their values, where this is an object.
    pub fn entries(&self) -> Option<Vec<(String, Data)>> {
        match &self.0 {
            Value::Dict(dict) => {
                let entries = dict.entries.iter();
                Some(
                    entries
                        .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), Data(value.clone()))))
                        .collect(),
                )
            }
            _ => None,
        }
    }

    /// The string, where this is one.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_str()
    }

    /// The same with other strings, keys included: those for which `change` has none stay.
    pub(super) fn mapped(&self, change: &mut dyn FnMut(&str) -> Option<String>) -> Data {
        let changed = match &self.0 {
            Value::Str(text) => change(text).map(|text| Value::Str(text.into())),
            Value::List(list) => {
                let items = list.items.iter().map(|item| Data(item.clone()).mapped(change).0).collect();
                Value::list(list.kind, items, &Budget::new()).ok()
            }
            Value::Dict(dict) => {
                let mut changed = |value: &Value| Data(value.clone()).mapped(change).0;
                let entries =
                    dict.entries.iter().map(|(key, value)| (changed(key), changed(value))).collect();
                Value::dict(entries, &Budget::new()).ok()
            }
            _ => None,
        };
        // What can fail is depth and size, and they are what they were.
        changed.map_or_else(|| self.clone(), Data)
    }

    /// Whether this is `true` or `false`, where it is one of them.
    pub fn as_bool(&self) -> Option<bool> {
        match self.0 {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The number, where this is a whole one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self.0 {
            Value::Int(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.0, Value::None)
    }

    /// What stands here, for a message.
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Value::None => "null",
            Value::Bool(_) => "true or false",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "a string",
            Value::List(_) => "a list",
            _ => "an object",
        }
    }
}

impl From<bool> for Data {
    fn from(value: bool) -> Self {
        Data(Value::Bool(value))
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor).map(Data)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Str(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Data(item)) = list.next_element()? {
            items.push(item);
        }
        Value::list(Kind::List, items, &Budget::new()).map_err(|reason| A::Error::custom(reason.reason()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (mut entries, mut places) = (Vec::new(), HashMap::new());
        while let Some((key, Data(value))) = map.next_entry::<String, Data>()? {
            let key: Arc<str> = key.into();
            // A key that comes twice keeps its place and takes the later value, as in Python.
            let place = *places.entry(key.clone()).or_insert(entries.len());
            match entries.get_mut(place) {
                Some((_, old)) => *old = value,
                None => entries.push((Value::Str(key), value)),
            }
        }
        Value::dict(entries, &Budget::new()).map_err(|reason| A::Error::custom(reason.reason()))
    }
}

/// The arguments of `tojson`.
#[derive(Debug)]
pub(super) struct Style {
    ascii: bool,
    indent: Option<Arc<str>>,
    item: Arc<str>,
    key: Arc<str>,
    sorts: bool,
}

/// More indentation than this has no use.
const INDENT_MAX: i128 = 1000;

impl Style {
    pub(super) fn new(
        ascii: Option<Value>,
        indent: Option<Value>,
        separators: Option<Value>,
        sort: Option<Value>,
    ) -> Result<Self, Fault> {
        let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
        let indent: Option<Arc<str>> = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent),
            Some(indent) => match indent.as_int() {
                Some(width) if width <= INDENT_MAX => {
                    Some(" ".repeat(usize::try_from(width).unwrap_or(0)).into())
                }
                Some(_) => return Err(Fault::Limit(format!("tojson indents by more than {INDENT_MAX}"))),
                None => return Err(fault("tojson needs a number or a string as its indent")),
            },
        };
        let mut style = Style {
            ascii: is_set(ascii),
            item: if indent.is_some() { "," } else { ", " }.into(),
            key: ": ".into(),
            indent,
            sorts: is_set(sort),
        };
        match separators {
            None | Some(Value::None) => {}
            Some(Value::List(list)) => match &list.items[..] {
                [Value::Str(item), Value::Str(key)] => (style.item, style.key) = (item.clone(), key.clone()),
                _ => return Err(fault("tojson needs two strings as its separators")),
            },
            Some(_) => return Err(fault("tojson needs two strings as its separators")),
        }
        Ok(style)
    }
}

/// `json.dumps`.
pub(super) fn dumps(value: &Value, style: &Style, budget: &Budget) -> Result<String, Fault> {
    let mut writer = Writer { out: String::new(), style, budget };
    writer.value(value, 1)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    budget: &'a Budget,
}

impl Writer<'_> {
    fn push(&mut self, text: &str) -> Result<(), Fault> {
        self.budget.take(text.len() + 8)?;
        self.out.push_str(text);
        Ok(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Fault> {
        match value {
            Value::None => self.push("null"),
            Value::Bool(value) => self.push(if *value { "true" } else { "false" }),
            Value::Int(value) => self.push(&value.to_string()),
            Value::Float(value) => self.push(&formatting::json_float(*value)),
            Value::Str(text) => self.string(text),
            Value::List(list) if list.kind != Kind::Generator => {
                if list.items.is_empty() {
                    return self.push("[]");
                }
                self.push("[")?;
                for (index, item) in list.items.iter().enumerate() {
                    self.line(index, depth)?;
                    self.value(item, depth + 1)?;
                }
                self.line_back(depth)?;
                self.push("]")
            }
            Value::Dict(dict) => {
                if dict.entries.is_empty() {
                    return self.push("{}");
                }
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                if self.style.sorts {
                    self.budget.take(entries.len() * 64)?;
                    entries.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                }
                self.push("{")?;
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    self.line(index, depth)?;
                    self.key(key)?;
                    self.push(&self.style.key.clone())?;
                    self.value(value, depth + 1)?;
                }
                self.line_back(depth)?;
                self.push("}")
            }
            Value::Undefined(name) => Err(fault(format!("`{name}` is undefined, so tojson cannot write it"))),
            other => Err(fault(format!("tojson cannot write a {}", other.type_name()))),
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Fault> {
        let text = match key {
            Value::Str(text) => text.clone(),
            Value::None => "null".into(),
            Value::Bool(value) => if *value { "true" } else { "false" }.into(),
            Value::Int(value) => value.to_string().into(),
            Value::Float(value) => formatting::json_float(*value).into(),
            other => return Err(fault(format!("tojson cannot write a {} as a key", other.type_name()))),
        };
        self.string(&text)
    }

    /// What stands before an item.
    fn line(&mut self, index: usize, depth: usize) -> Result<(), Fault> {
        if index > 0 {
            self.push(&self.style.item.clone())?;
        }
        self.margin(depth)
    }

    fn line_back(&mut self, depth: usize) -> Result<(), Fault> {
        self.margin(depth - 1)
    }

    fn margin(&mut self, depth: usize) -> Result<(), Fault> {
        if let Some(indent) = &self.style.indent {
            self.budget.take(indent.len().saturating_mul(depth) + 1)?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Fault> {
        self.budget.take(text.len() + 8)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.style.ascii && !c.is_ascii()) => {
                    self.budget.take(12)?;
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}
