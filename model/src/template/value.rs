//! The values of a template: Python's, as far as JSON and Jinja need them.
//!
//! Lists and objects are shared and never changed once made, and know how deep they are, so that no value can be
//! deeper than a stack. What can change (namespaces) or run (macros, loops) is an index into the machine.

use std::cmp::Ordering;
use std::sync::Arc;

use super::budget::Budget;
use super::text;
use super::{Fault, fault};

/// Lists in lists.
const DEPTH_MAX: u16 = 200;

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// What was looked for and is not there: prints nothing, is false.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    List(Arc<List>),
    Dict(Arc<Dict>),
    Namespace(usize),
    Macro(usize),
    Loop(usize),
    /// One of the functions that every template has.
    Function(&'static str),
    /// A method that was named and not called.
    Method(Arc<(Value, Arc<str>)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Tuple,
    /// A tuple of two whose items have the names `grouper` and `list`.
    Group,
    /// What a filter like `map` gives in Jinja: it can be run through, and has no length and no items.
    Generator,
}

#[derive(Debug)]
pub(super) struct List {
    pub(super) kind: Kind,
    pub(super) items: Vec<Value>,
    depth: u16,
}

#[derive(Debug, Default)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    depth: u16,
}

/// What a value takes in memory beside what it holds.
const VALUE_BYTES: usize = size_of::<Value>();

impl Value {
    pub(super) fn text(text: &str, budget: &Budget) -> Result<Self, Fault> {
        budget.take(text.len())?;
        Ok(Value::Str(text.into()))
    }

    /// The same where `text` was paid for.
    pub(super) fn paid(text: String) -> Self {
        Value::Str(text.into())
    }

    pub(super) fn undefined(name: &str) -> Self {
        Value::Undefined(name.into())
    }

    pub(super) fn list(kind: Kind, items: Vec<Value>, budget: &Budget) -> Result<Self, Fault> {
        budget.take(items.len() * VALUE_BYTES + 64)?;
        let depth = deepest(items.iter())?;
        Ok(Value::List(Arc::new(List { kind, items, depth })))
    }

    pub(super) fn dict(entries: Vec<(Value, Value)>, budget: &Budget) -> Result<Self, Fault> {
        budget.take(entries.len() * 2 * VALUE_BYTES + 64)?;
        let depth = deepest(entries.iter().map(|(_, value)| value))?;
        Ok(Value::Dict(Arc::new(Dict { entries, depth })))
    }

    fn depth(&self) -> u16 {
        match self {
            Value::List(list) => list.depth,
            Value::Dict(dict) => dict.depth,
            Value::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    /// An integer; a truth value is 0 or 1.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// A number.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            value => value.as_int().map(|value| value as f64),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.is_empty(),
            Value::List(list) => list.kind == Kind::Generator || !list.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// Python's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "undefined",
            Value::None => "None",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::List(list) => match list.kind {
                Kind::List => "list",
                Kind::Tuple | Kind::Group => "tuple",
                Kind::Generator => "generator",
            },
            Value::Dict(_) => "dict",
            Value::Namespace(_) => "namespace",
            Value::Macro(_) => "macro",
            Value::Loop(_) => "loop",
            Value::Function(_) | Value::Method(_) => "function",
        }
    }

    /// `str(value)`, added to `out`.
    pub(super) fn write(&self, out: &mut String, budget: &Budget) -> Result<(), Fault> {
        match self {
            Value::Undefined(_) => Ok(()),
            Value::Str(text) => {
                budget.take(text.len())?;
                out.push_str(text);
                Ok(())
            }
            value => value.write_repr(out, budget),
        }
    }

    /// `str(value)`.
    pub(super) fn to_text(&self, budget: &Budget) -> Result<Arc<str>, Fault> {
        if let Value::Str(text) = self {
            return Ok(text.clone());
        }
        let mut out = String::new();
        self.write(&mut out, budget)?;
        Ok(out.into())
    }

    /// `repr(value)`, added to `out`.
    fn write_repr(&self, out: &mut String, budget: &Budget) -> Result<(), Fault> {
        budget.take(16)?;
        match self {
            Value::Undefined(_) => out.push_str("Undefined"),
            Value::None => out.push_str("None"),
            Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&text::float(*value)),
            Value::Str(value) => {
                // The longest escape has ten characters; most have none.
                let before = out.len();
                budget.take(value.len())?;
                text::write_repr(out, value);
                budget.take((out.len() - before).saturating_sub(value.len()))?;
            }
            Value::List(list) => {
                let (open, close) = if list.kind == Kind::List { ('[', ']') } else { ('(', ')') };
                out.push(open);
                for (index, item) in list.items.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    item.write_repr(out, budget)?;
                }
                if list.kind == Kind::Tuple && list.items.len() == 1 {
                    out.push(',');
                }
                out.push(close);
            }
            Value::Dict(dict) => {
                out.push('{');
                for (index, (key, value)) in dict.entries.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    key.write_repr(out, budget)?;
                    out.push_str(": ");
                    value.write_repr(out, budget)?;
                }
                out.push('}');
            }
            other => out.push_str(&format!("<{}>", other.type_name())),
        }
        Ok(())
    }

    /// `==`.
    pub(super) fn equals(&self, other: &Value, budget: &Budget) -> Result<bool, Fault> {
        budget.take(8)?;
        Ok(match (self, other) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(a), Value::Str(b)) => {
                budget.take(a.len().min(b.len()) / 8)?;
                a == b
            }
            (Value::List(a), Value::List(b)) => {
                if a.kind != b.kind || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Dict(a), Value::Dict(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    match b.get(key, budget)? {
                        Some(other) if value.equals(other, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::Namespace(a), Value::Namespace(b))
            | (Value::Macro(a), Value::Macro(b))
            | (Value::Loop(a), Value::Loop(b)) => a == b,
            (a, b) => match (a.as_int(), b.as_int(), a.as_float(), b.as_float()) {
                (Some(a), Some(b), ..) => a == b,
                (_, _, Some(a), Some(b)) => a == b,
                _ => false,
            },
        })
    }

    /// `<`, `>` and the order of `sort`; an error where Python has none.
    pub(super) fn compare(&self, other: &Value, budget: &Budget) -> Result<Option<Ordering>, Fault> {
        budget.take(8)?;
        match (self, other) {
            (Value::Str(a), Value::Str(b)) => {
                budget.take(a.len().min(b.len()) / 8)?;
                return Ok(Some(a.cmp(b)));
            }
            (Value::List(a), Value::List(b)) if a.kind == b.kind && a.kind != Kind::Generator => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return a.compare(b, budget);
                    }
                }
                return Ok(Some(a.items.len().cmp(&b.items.len())));
            }
            (a, b) => {
                if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
                    return Ok(Some(a.cmp(&b)));
                }
                if let (Some(a), Some(b)) = (a.as_float(), b.as_float()) {
                    return Ok(a.partial_cmp(&b));
                }
            }
        }
        if let Some(name) = undefined_name([self, other]) {
            return Err(fault(format!("`{name}` is undefined")));
        }
        Err(fault(format!("{} and {} have no order", self.type_name(), other.type_name())))
    }

    /// What can be run through, as its items: characters of a string, keys of an object.
    pub(super) fn items(&self, budget: &Budget) -> Result<Vec<Value>, Fault> {
        match self {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::Str(text) => {
                budget.take(text.len() * (VALUE_BYTES + 16))?;
                Ok(text.chars().map(|c| Value::Str(c.encode_utf8(&mut [0; 4]).into())).collect())
            }
            Value::List(list) => {
                budget.take(list.items.len() * VALUE_BYTES)?;
                Ok(list.items.clone())
            }
            Value::Dict(dict) => {
                budget.take(dict.entries.len() * VALUE_BYTES)?;
                Ok(dict.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            other => Err(fault(format!("{} is not a list: it cannot be run through", other.type_name()))),
        }
    }
}

/// The name of the first that is undefined.
pub(super) fn undefined_name(values: [&Value; 2]) -> Option<&str> {
    values.into_iter().find_map(|value| match value {
        Value::Undefined(name) => Some(&**name),
        _ => None,
    })
}

fn deepest<'v>(values: impl Iterator<Item = &'v Value>) -> Result<u16, Fault> {
    let depth = values.map(Value::depth).max().unwrap_or(0) + 1;
    match depth > DEPTH_MAX {
        true => Err(Fault::Limit(format!("lists and objects nest deeper than {DEPTH_MAX}"))),
        false => Ok(depth),
    }
}

impl Dict {
    pub(super) fn get(&self, key: &Value, budget: &Budget) -> Result<Option<&Value>, Fault> {
        for (found, value) in &self.entries {
            if found.equals(key, budget)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    pub(super) fn get_str(&self, key: &str, budget: &Budget) -> Result<Option<&Value>, Fault> {
        budget.take(4 * self.entries.len())?;
        Ok(self.entries.iter().find(|(found, _)| found.as_str() == Some(key)).map(|(_, value)| value))
    }
}

/// Puts an entry where its key stands already, or at the end.
pub(super) fn insert(
    entries: &mut Vec<(Value, Value)>,
    key: Value,
    value: Value,
    budget: &Budget,
) -> Result<(), Fault> {
    for (found, old) in entries.iter_mut() {
        if found.equals(&key, budget)? {
            *old = value;
            return Ok(());
        }
    }
    budget.take(2 * VALUE_BYTES)?;
    entries.push((key, value));
    Ok(())
}
