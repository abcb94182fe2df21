//! Methods of strings, lists and dicts, as Python has them. Those that would change a value are refused, as by
//! Jinja's immutable sandbox.

use super::budget::Budget;
use super::machine::{Args, Machine};
use super::value::{Kind, Value};
use super::{Fault, fault, formatting, text};

const OF_STRINGS: [&str; 36] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
];
const MORE_OF_STRINGS: [&str; 5] = ["rindex", "swapcase", "title", "upper", "zfill"];
const OF_DICTS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
const OF_LISTS: [&str; 3] = ["copy", "count", "index"];
const CHANGING: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "fromkeys",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

pub(super) fn is_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => OF_STRINGS.contains(&name) || MORE_OF_STRINGS.contains(&name),
        Value::Dict(_) => {
            OF_DICTS.contains(&name)
                || ["clear", "fromkeys", "pop", "popitem", "setdefault", "update"].contains(&name)
        }
        Value::List(list) if list.kind != Kind::Generator => {
            OF_LISTS.contains(&name) || CHANGING.contains(&name)
        }
        _ => false,
    }
}

pub(super) fn call(machine: &mut Machine, value: &Value, name: &str, args: Args) -> Result<Value, Fault> {
    let budget = &machine.budget;
    match value {
        Value::Str(text) => {
            budget.take(text.len() / 4)?;
            string(text, name, args, budget)
        }
        _ if CHANGING.contains(&name) => Err(fault(format!(
            "`.{name}()` would change a {}, which a template may not; make a new one with + or namespace()",
            value.type_name()
        ))),
        Value::Dict(dict) if name == "get" => {
            let [key, default] = args.bind(["key", "default"])?;
            let key = key.ok_or_else(|| fault("get() needs a key"))?;
            Ok(dict.get(&key, budget)?.cloned().or(default).unwrap_or(Value::None))
        }
        Value::Dict(dict) => {
            let [] = args.bind([])?;
            let mut made = Vec::new();
            for (key, item) in &dict.entries {
                made.push(match name {
                    "keys" => key.clone(),
                    "values" => item.clone(),
                    "items" => Value::list(Kind::Tuple, vec![key.clone(), item.clone()], budget)?,
                    _ => return Ok(value.clone()),
                });
            }
            Value::list(Kind::List, made, budget)
        }
        Value::List(list) if name == "count" || name == "index" => {
            let [wanted] = args.bind(["value"])?;
            let wanted = wanted.ok_or_else(|| fault(format!("{name}() needs a value")))?;
            let mut count = 0;
            for (place, item) in list.items.iter().enumerate() {
                if item.equals(&wanted, budget)? {
                    if name == "index" {
                        return Ok(Value::Int(place as i128));
                    }
                    count += 1;
                }
            }
            if name == "index" { Err(fault("index() found no such value")) } else { Ok(Value::Int(count)) }
        }
        Value::List(_) => Ok(value.clone()),
        Value::Undefined(name) => Err(fault(format!("`{name}` is undefined"))),
        other => Err(fault(format!("{} has no method `{name}`", other.type_name()))),
    }
}

fn string(text: &str, name: &str, args: Args, budget: &Budget) -> Result<Value, Fault> {
    match name {
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
            return parts(text, name, args, budget);
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            return search(text, name, args, budget);
        }
        "format" => return formatting::braces(text, args, budget),
        "replace" => {
            let [old, new, count] = args.bind(["old", "new", "count"])?;
            return replace(text, required(&old, name)?, required(&new, name)?, count, budget);
        }
        "join" => {
            let [items] = args.bind(["iterable"])?;
            return join(text, items, budget);
        }
        "strip" | "lstrip" | "rstrip" | "removeprefix" | "removesuffix" => {
            return trimmed(text, name, args, budget);
        }
        "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => return padded(text, name, args, budget),
        _ => {}
    }
    let [] = args.bind([])?;
    budget.take(3 * text.len())?;
    let all = |holds: fn(char) -> bool| Value::Bool(!text.is_empty() && text.chars().all(holds));
    Ok(match name {
        "upper" => Value::paid(text.to_uppercase()),
        "lower" | "casefold" => Value::paid(text.to_lowercase()),
        "capitalize" => Value::paid(text::capitalize(text)),
        "title" => Value::paid(text::title(text)),
        "swapcase" => {
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::paid(text.chars().map(swap).collect())
        }
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Value::Bool(text.is_ascii()),
        "isdecimal" | "isdigit" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(text::is_space),
        "islower" => {
            Value::Bool(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase))
        }
        "isupper" => {
            Value::Bool(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase))
        }
        _ => Value::Bool(text.chars().any(char::is_alphabetic) && text == text::title(text)),
    })
}

fn required<'a>(value: &'a Option<Value>, name: &str) -> Result<&'a str, Fault> {
    match value {
        Some(Value::Str(text)) => Ok(text),
        Some(Value::Undefined(missing)) => {
            Err(fault(format!("`{missing}` is undefined; {name}() needs a string")))
        }
        Some(other) => Err(fault(format!("{name}() needs a string, found {}", other.type_name()))),
        None => Err(fault(format!("{name}() needs a string"))),
    }
}

pub(super) fn replace(
    text: &str,
    old: &str,
    new: &str,
    count: Option<Value>,
    budget: &Budget,
) -> Result<Value, Fault> {
    let count = match count {
        None | Some(Value::None) => usize::MAX,
        Some(count) => match count.as_int() {
            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            None => return Err(fault("replace() needs an integer as its count")),
        },
    };
    budget.take(text.len())?;
    let found = text.matches(old).take(count).count();
    budget.take(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(Value::paid(text.replacen(old, new, count)))
}

fn join(between: &str, items: Option<Value>, budget: &Budget) -> Result<Value, Fault> {
    let items = items.ok_or_else(|| fault("join() needs a list"))?.items(budget)?;
    let mut made = String::new();
    for (index, item) in items.iter().enumerate() {
        let Value::Str(item) = item else {
            return Err(fault(format!("join() needs strings, found {}", item.type_name())));
        };
        budget.take(between.len() + item.len())?;
        if index > 0 {
            made.push_str(between);
        }
        made.push_str(item);
    }
    Ok(Value::paid(made))
}

fn trimmed(text: &str, name: &str, args: Args, budget: &Budget) -> Result<Value, Fault> {
    let [chars] = args.bind(["chars"])?;
    let made = match name {
        "removeprefix" => text.strip_prefix(required(&chars, name)?).unwrap_or(text),
        "removesuffix" => text.strip_suffix(required(&chars, name)?).unwrap_or(text),
        _ => {
            let chars = match &chars {
                None | Some(Value::None) => None,
                chars => Some(required(chars, name)?),
            };
            // Each character at the ends is looked for among `chars`.
            budget.take(chars.map_or(0, str::len).saturating_mul(text.len() / 16))?;
            let goes = |c: char| chars.map_or_else(|| text::is_space(c), |chars| chars.contains(c));
            let text = if name == "rstrip" { text } else { text.trim_start_matches(goes) };
            if name == "lstrip" { text } else { text.trim_end_matches(goes) }
        }
    };
    Value::text(made, budget)
}

fn padded(text: &str, name: &str, args: Args, budget: &Budget) -> Result<Value, Fault> {
    let [width, fill] = args.bind([if name == "expandtabs" { "tabsize" } else { "width" }, "fillchar"])?;
    let width = match (&width, name) {
        (None, "expandtabs") => Some(8),
        _ => width.and_then(|width| width.as_int()),
    };
    let width = width.ok_or_else(|| fault(format!("{name}() needs a width")))?;
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    if name == "expandtabs" {
        return expand_tabs(text, width, budget);
    }
    let fill = match (&fill, name) {
        (None, "zfill") => "0",
        (None, _) => " ",
        (fill, _) => required(fill, name)?,
    };
    let missing = width.saturating_sub(text::length(text));
    budget.take(text.len().saturating_add(missing.saturating_mul(fill.len())))?;
    let left = match name {
        "ljust" => 0,
        // Python's own way of halving.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match name == "zfill" && text.starts_with(['+', '-']) {
        true => text.split_at(1),
        false => ("", text),
    };
    Ok(Value::paid([sign, &fill.repeat(left), digits, &fill.repeat(missing - left)].concat()))
}

fn expand_tabs(text: &str, width: usize, budget: &Budget) -> Result<Value, Fault> {
    let (mut made, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if width == 0 { 0 } else { width - column % width };
                budget.take(spaces)?;
                made.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            c => {
                made.push(c);
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            }
        }
    }
    budget.take(text.len())?;
    Ok(Value::paid(made))
}

fn parts(text: &str, name: &str, args: Args, budget: &Budget) -> Result<Value, Fault> {
    // Each part is a value of its own.
    let cost =
        |parts: usize| budget.take(parts.saturating_mul(size_of::<Value>() + 16).saturating_add(text.len()));
    if name.ends_with("partition") {
        let [separator] = args.bind(["sep"])?;
        let separator = required(&separator, name)?;
        cost(3)?;
        let found =
            if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
        let parts = match (found, name) {
            (Some((before, after)), _) => [before, separator, after],
            (None, "partition") => [text, "", ""],
            _ => ["", "", text],
        };
        return Value::list(Kind::Tuple, parts.map(|part| Value::Str(part.into())).to_vec(), budget);
    }
    let found: Vec<&str> = if name == "splitlines" {
        let [keep] = args.bind(["keepends"])?;
        cost(text.len() / 2)?;
        text::lines(text, keep.is_some_and(|keep| keep.is_true()))
    } else {
        let [separator, count] = args.bind(["sep", "maxsplit"])?;
        let count = count.and_then(|count| count.as_int()).unwrap_or(-1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match (&separator, name) {
            (None | Some(Value::None), name) => {
                cost((text.len() / 2).min(count))?;
                if name == "split" { text::words(text, count) } else { text::words_from_right(text, count) }
            }
            (separator, name) => {
                let separator = required(separator, name)?;
                if separator.is_empty() {
                    return Err(fault(format!("{name}() needs a separator that is not empty")));
                }
                cost((text.len() / separator.len()).min(count))?;
                let count = count.saturating_add(1);
                if name == "split" {
                    text.splitn(count, separator).collect()
                } else {
                    let mut found: Vec<&str> = text.rsplitn(count, separator).collect();
                    found.reverse();
                    found
                }
            }
        }
    };
    let items = found.into_iter().map(|part| Value::Str(part.into())).collect();
    Value::list(Kind::List, items, budget)
}

fn search(text: &str, name: &str, args: Args, budget: &Budget) -> Result<Value, Fault> {
    let [wanted, start, end] = args.bind(["sub", "start", "end"])?;
    budget.take(text.len() / 4)?;
    let length = text::length(text);
    let place = |value: Option<Value>, default: usize| match value.as_ref().and_then(Value::as_int) {
        Some(place) if place < 0 => usize::try_from(place.saturating_add(length as i128)).unwrap_or(0),
        Some(place) => usize::try_from(place).unwrap_or(usize::MAX),
        None => default,
    };
    let (start, end) = (place(start, 0), place(end, length).min(length));
    let part = match start > end {
        true => None,
        false => Some(&text[text::byte_of(text, start)..text::byte_of(text, end)]),
    };
    if name.ends_with("with") {
        let options = match &wanted {
            Some(Value::List(list)) if list.kind == Kind::Tuple => list.items.clone(),
            other => vec![Value::Str(required(other, name)?.into())],
        };
        for option in options {
            let option = Some(option);
            let option = required(&option, name)?;
            let holds = match name {
                "startswith" => part.is_some_and(|part| part.starts_with(option)),
                _ => part.is_some_and(|part| part.ends_with(option)),
            };
            if holds {
                return Ok(Value::Bool(true));
            }
        }
        return Ok(Value::Bool(false));
    }
    let wanted = required(&wanted, name)?;
    if name == "count" {
        return Ok(Value::Int(part.map_or(0, |part| part.matches(wanted).count()) as i128));
    }
    let part = part.unwrap_or("");
    let found = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
    let found = if start > end { None } else { found };
    match found {
        Some(at) => Ok(Value::Int((start + text::length(&part[..at])) as i128)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(fault(format!("{name}() found no such text"))),
    }
}
