//! What can be said about a setting: its kind, its default, and what becomes of it.

use bantam_model::foreign::clipped;

use super::yaml::{self, Content, Node};

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// true or false.
    Flag,
    /// A whole number in a range.
    Count(i64, i64),
    /// A number in a range, both ends included.
    Number(f64, f64),
    /// One of some words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
    /// Names, as a list or with commas between them.
    Names,
    /// Names with numbers or words behind them, as a block or as its text.
    Table,
    /// Whatever it is.
    Anything,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    /// It is done.
    Done,
    /// It is read and changes nothing here; why.
    Idle(&'static str),
    /// Only its default is accepted; what to do instead.
    Refused(&'static str),
}

/// A key of the files that say what to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What its value must be; every key may also be null, which is as if it were not there.
    pub kind: Kind,
    /// What it is where nobody says anything, as it would be written.
    pub default: &'static str,
    /// What becomes of it.
    pub fate: Fate,
}

/// A value that is of its key's kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: the key might as well not be there.
    Null,
    /// true or false.
    Flag(bool),
    /// A whole number.
    Count(i64),
    /// A number.
    Number(f64),
    /// A word or a text.
    Text(String),
    /// Names.
    Names(Vec<String>),
    /// Names with what stands behind them.
    Table(Vec<(String, String)>),
    /// Something that nobody looks at.
    Other,
}

impl Value {
    /// The same as JSON, where it says something.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        match self {
            Value::Null | Value::Other => None,
            Value::Flag(flag) => Some((*flag).into()),
            Value::Count(count) => Some((*count).into()),
            Value::Number(number) => Some((*number).into()),
            Value::Text(text) => Some(text.as_str().into()),
            Value::Names(names) => Some(names.as_slice().into()),
            Value::Table(entries) => {
                let json = |text: &str| match number(text) {
                    Some(number) => number.into(),
                    None => text.into(),
                };
                let entries = entries.iter().map(|(name, text)| (name.clone(), json(text)));
                Some(serde_json::Value::Object(entries.collect()))
            }
        }
    }
}

impl Key {
    /// The default as a value.
    pub(super) fn default_value(&self) -> Value {
        let node = yaml::parse(self.default).expect("the table's defaults are YAML, a test reads them");
        self.value(&node).expect("the table's defaults are of their kind, a test reads them")
    }

    /// What was written, as a value; or what was expected.
    pub(super) fn value(&self, node: &Node) -> Result<Value, String> {
        let (words, is_plain) = match (&node.content, self.kind) {
            (Content::Scalar(words, is_plain), _) => (words.as_str(), *is_plain),
            (Content::List(items), Kind::Names) => return names(items).map(Value::Names),
            (Content::Map(entries), Kind::Table) => return table(entries).map(Value::Table),
            (_, Kind::Anything) => return Ok(Value::Other),
            // Commands of other tools put a single name into a list.
            (Content::List(items), Kind::Text | Kind::Word(_)) if items.len() == 1 => {
                return self.value(&items[0]);
            }
            _ => return Err(self.kind.expected()),
        };
        if is_plain && is_null(words) {
            return Ok(Value::Null);
        }
        let expected = || self.kind.expected();
        match self.kind {
            Kind::Flag => flag(words).map(Value::Flag).ok_or_else(expected),
            Kind::Count(least, most) => {
                let count = whole(words).filter(|count| (least..=most).contains(count));
                count.map(Value::Count).ok_or_else(expected)
            }
            Kind::Number(least, most) => {
                let number = number(words).filter(|number| (least..=most).contains(number));
                number.map(Value::Number).ok_or_else(expected)
            }
            Kind::Word(known) => {
                let is_no = is_plain && flag(words) == Some(false) && known.contains(&"no");
                // YAML 1.1 reads a bare no as false.
                let word = if is_no { "no" } else { words };
                match known.contains(&word) {
                    true => Ok(Value::Text(word.to_owned())),
                    false => Err(expected()),
                }
            }
            Kind::Text => Ok(Value::Text(words.to_owned())),
            Kind::Names => Ok(Value::Names(words.split(',').map(|name| name.trim().to_owned()).collect())),
            Kind::Table => match yaml::parse(words).map(|node| node.content) {
                Ok(Content::Map(entries)) => table(&entries).map(Value::Table),
                _ => Err(expected()),
            },
            Kind::Anything => Ok(Value::Other),
        }
    }
}

impl Kind {
    /// What should stand there, for messages.
    pub(super) fn expected(&self) -> String {
        match self {
            Kind::Flag => "true or false".to_owned(),
            Kind::Count(least, i64::MAX) => format!("a whole number from {least}"),
            Kind::Count(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Number(least, most) if *most == f64::MAX => format!("a number from {least}"),
            Kind::Number(least, most) => format!("a number from {least} to {most}"),
            Kind::Word(words) => format!("one of {}", words.join(", ")),
            Kind::Text => "text".to_owned(),
            Kind::Names => "names with commas between them".to_owned(),
            Kind::Table => "names with numbers or words, such as {num_cycles: 2}".to_owned(),
            Kind::Anything => "anything".to_owned(),
        }
    }
}

/// A value as messages show it.
pub(super) fn shown(node: &Node) -> String {
    match &node.content {
        Content::Scalar(words, true) => clipped(words),
        Content::Scalar(words, false) => clipped(format_args!("{words:?}")),
        other => other.kind().to_owned(),
    }
}

/// As YAML 1.1 has them.
pub(crate) fn flag(words: &str) -> Option<bool> {
    match words.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// As Python has them, `1_000` and `1000.0` included.
fn whole(words: &str) -> Option<i64> {
    let words = words.replace('_', "");
    words.parse().ok().or_else(|| {
        let number = number(&words).filter(|number| number.fract() == 0.0 && number.abs() < 1e15)?;
        Some(number as i64)
    })
}

/// As YAML 1.2 has them; 1.1 takes `1e-4` for text, which nobody means.
pub(crate) fn number(words: &str) -> Option<f64> {
    let words = words.replace('_', "");
    let is_number = words.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
    words.parse().ok().filter(|number: &f64| is_number && number.is_finite())
}

/// Names without a value are left out: null is as if nothing stood there.
fn table(entries: &[(String, Node)]) -> Result<Vec<(String, String)>, String> {
    let entry = |(name, node): &(String, Node)| match &node.content {
        Content::Scalar(words, is_plain) if *is_plain && is_null(words) => None,
        Content::Scalar(words, _) => Some(Ok((name.clone(), words.clone()))),
        _ => Some(Err(Kind::Table.expected())),
    };
    entries.iter().filter_map(entry).collect()
}

fn is_null(words: &str) -> bool {
    matches!(words, "" | "~" | "null" | "Null" | "NULL")
}

fn names(items: &[Node]) -> Result<Vec<String>, String> {
    let name = |item: &Node| match &item.content {
        Content::Scalar(words, _) => Ok(words.clone()),
        _ => Err(Kind::Names.expected()),
    };
    items.iter().map(name).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    fn check(kind: Kind, text: &str, expected: Result<Value, &str>) {
        let key = Key { name: "x", kind, default: "null", fate: Fate::Done };
        let Content::Map(entries) = yaml::parse(&format!("x: {text}")).unwrap().content else { panic!() };
        assert_eq!(key.value(&entries[0].1), expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn values_are_of_their_kind() {
        const ANY: Kind = Kind::Number(0.0, f64::MAX);
        check(ANY, "1e-4", Ok(Value::Number(1e-4)));
        check(ANY, "1.0e-4", Ok(Value::Number(1e-4)));
        check(ANY, "\"1e-4\"", Ok(Value::Number(1e-4)));
        check(ANY, "-1", Err("a number from 0"));
        check(ANY, "nan", Err("a number from 0"));
        check(ANY, "null", Ok(Value::Null));
        check(ANY, "", Ok(Value::Null));
        check(Kind::Count(1, i64::MAX), "1000.0", Ok(Value::Count(1000)));
        check(Kind::Count(1, 9), "1.5", Err("a whole number from 1 to 9"));
        check(Kind::Flag, "True", Ok(Value::Flag(true)));
        check(Kind::Flag, "off", Ok(Value::Flag(false)));
        check(Kind::Flag, "maybe", Err("true or false"));
        check(Kind::Word(&["no", "steps"]), "no", Ok(Value::Text("no".to_owned())));
        check(Kind::Word(&["no", "steps"]), "step", Err("one of no, steps"));
        check(Kind::Text, "\"\"", Ok(Value::Text(String::new())));
        let names = Ok(Value::Names(vec!["a".to_owned(), "b".to_owned()]));
        check(Kind::Names, "a, b", names.clone());
        check(Kind::Names, "[a, b]", names);
        let table = Value::Table(vec![("a".to_owned(), "1".to_owned()), ("b".to_owned(), "c".to_owned())]);
        let json = serde_json::json!({ "a": 1.0, "b": "c" });
        assert_eq!(table.json(), Some(json));
        check(Kind::Table, "{a: 1, b: c, d: null}", Ok(table.clone()));
        check(Kind::Table, "'{\"a\": 1, \"b\": \"c\"}'", Ok(table));
        check(Kind::Table, "{a: [1]}", Err("names with numbers or words, such as {num_cycles: 2}"));
        check(Kind::Table, "2", Err("names with numbers or words, such as {num_cycles: 2}"));
        check(Kind::Anything, "{a: 1}", Ok(Value::Other));
        check(Kind::Text, "{a: 1}", Err("text"));
    }
}
