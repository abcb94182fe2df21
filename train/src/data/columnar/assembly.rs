//! Rows out of parquet's columns: levels say where lists begin and what is absent.
//!
//! A column of values comes with two small numbers for each place: how deep something is there (its definition), and at
//! which list it goes on (its repetition). A tree of nodes, made from the file's schema, reads rows by them.

use serde_json::{Map, Value};

use super::{Budget, Fallible, broken, key};

/// A part of the schema.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Where it may be absent, how deep a place is at least that has it.
    pub(super) present_at: Option<u8>,
    /// Its columns.
    pub(super) columns: std::ops::Range<usize>,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Value,
    Struct(Vec<Node>),
    List(Repeated, Box<Node>),
    /// Keys and values.
    Map(Repeated, Box<[Node; 2]>),
}

/// How deep a place is that has an element, and the repetition of those behind the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeated {
    pub(super) depth: u8,
    pub(super) level: u8,
}

/// The values of a column with their levels, read from the front.
#[derive(Debug, Default)]
pub(super) struct Column {
    /// How deep every place is; empty where all have a value.
    pub(super) depths: Vec<u8>,
    /// At which list it goes on; empty where there are none.
    pub(super) levels: Vec<u8>,
    pub(super) depth_max: u8,
    pub(super) count: usize,
    pub(super) values: std::collections::VecDeque<Value>,
    pub(super) at: usize,
}

impl Column {
    /// How deep the next place is.
    fn depth(&self) -> Fallible<u8> {
        match self.at < self.count {
            true => Ok(self.depths.get(self.at).copied().unwrap_or(self.depth_max)),
            false => Err(broken("a column that ends before its rows")),
        }
    }

    /// At which list the next place goes on; a new row where there is none.
    fn level(&self) -> u8 {
        self.levels.get(self.at).copied().unwrap_or(0)
    }

    fn take(&mut self) -> Fallible<Value> {
        let depth = self.depth()?;
        self.at += 1;
        match depth == self.depth_max {
            true => self.values.pop_front().ok_or_else(|| broken("a column with fewer values than places")),
            false => Ok(Value::Null),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.at == self.count
    }
}

/// The next row.
pub(super) fn row(
    nodes: &[Node],
    columns: &mut [Column],
    budget: &mut Budget,
) -> Fallible<Map<String, Value>> {
    let row = object(nodes, columns, budget)?;
    match columns.iter().all(|column| column.level() == 0) {
        true => Ok(row),
        false => Err(broken("a list that goes on in the next row")),
    }
}

fn object(nodes: &[Node], columns: &mut [Column], budget: &mut Budget) -> Fallible<Map<String, Value>> {
    let mut values = Map::new();
    for node in nodes {
        budget.take_entry(&node.name)?;
        values.insert(node.name.clone(), value(node, columns, budget)?);
    }
    Ok(values)
}

fn value(node: &Node, columns: &mut [Column], budget: &mut Budget) -> Fallible<Value> {
    budget.take_values(1)?;
    let first = node.columns.start;
    let depth = columns[first].depth()?;
    if node.present_at.is_some_and(|least| depth < least) {
        skip(node, columns)?;
        return Ok(Value::Null);
    }
    match &node.kind {
        Kind::Value => columns[first].take(),
        Kind::Struct(nodes) => object(nodes, columns, budget).map(Value::Object),
        Kind::List(repeated, _) if depth < repeated.depth => {
            skip(node, columns)?;
            Ok(Value::Array(Vec::new()))
        }
        Kind::List(Repeated { level, .. }, element) => {
            let mut values = vec![value(element, columns, budget)?];
            while columns[first].level() == *level {
                values.push(value(element, columns, budget)?);
            }
            Ok(Value::Array(values))
        }
        Kind::Map(repeated, _) if depth < repeated.depth => {
            skip(node, columns)?;
            Ok(Value::Object(Map::new()))
        }
        Kind::Map(Repeated { level, .. }, pair) => {
            let mut values = Map::new();
            loop {
                let name = key(value(&pair[0], columns, budget)?);
                budget.take_entry(&name)?;
                values.insert(name, value(&pair[1], columns, budget)?);
                if columns[first].level() != *level {
                    return Ok(Value::Object(values));
                }
            }
        }
    }
}

/// Passes over a place without anything, in all columns below.
fn skip(node: &Node, columns: &mut [Column]) -> Fallible<()> {
    columns[node.columns.clone()].iter_mut().try_for_each(|column| column.take().map(drop))
}
