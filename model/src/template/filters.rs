//! Jinja's filters. `tojson` is Hugging Face's: Python's `json.dumps` without escaping for HTML.

use std::cmp::Ordering;
use std::sync::Arc;

use super::machine::{Args, Machine};
use super::value::{Kind, Value, undefined_name};
use super::{Fault, checks, data, fault, formatting, methods, operators, text};

pub(super) const NAMES: [&str; 47] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

pub(super) fn apply(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value, Fault> {
    match name {
        "map" | "select" | "reject" | "selectattr" | "rejectattr" => many(machine, name, value, args),
        "sort" | "unique" | "min" | "max" | "sum" | "join" | "groupby" | "dictsort" => {
            ordered(machine, name, value, args)
        }
        "first" | "last" | "length" | "count" | "list" | "items" | "reverse" | "batch" | "slice" => {
            sequence(machine, name, value, args)
        }
        "abs" | "float" | "int" | "round" => number(machine, name, value, args),
        "attr" => {
            let [attribute] = args.bind(["name"])?;
            let Some(Value::Str(attribute)) = attribute else { return Err(fault("attr needs a name")) };
            match &value {
                // An attribute, not an entry.
                Value::Dict(_) if !methods::is_method(&value, &attribute) => Ok(Value::Undefined(attribute)),
                value => machine.attribute(value, &attribute),
            }
        }
        "d" | "default" => {
            let [other, also_false] = args.bind(["default_value", "boolean"])?;
            let replaces =
                value.is_undefined() || also_false.is_some_and(|flag| flag.is_true()) && !value.is_true();
            Ok(if replaces { other.unwrap_or(Value::paid(String::new())) } else { value })
        }
        "tojson" => {
            let [ascii, indent, separators, sort] =
                args.bind(["ensure_ascii", "indent", "separators", "sort_keys"])?;
            let style = data::Style::new(ascii, indent, separators, sort)?;
            Ok(Value::paid(data::dumps(&value, &style, &machine.budget)?))
        }
        _ => string(machine, name, value, args),
    }
}

fn string(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value, Fault> {
    let budget = &machine.budget;
    let text = value.to_text(budget)?;
    budget.take(2 * text.len())?;
    match name {
        "upper" => Ok(Value::paid(text.to_uppercase())),
        "lower" => Ok(Value::paid(text.to_lowercase())),
        "capitalize" => Ok(Value::paid(text::capitalize(&text))),
        "title" => {
            // Jinja's own words: they end at white space, hyphens and opening brackets.
            let mut made = String::new();
            for word in text.split_inclusive(|c: char| text::is_space(c) || "-({[<".contains(c)) {
                made.push_str(&text::capitalize(word));
            }
            Ok(Value::paid(made))
        }
        "trim" => methods::call(machine, &Value::Str(text), "strip", args),
        "center" => {
            let [width] = args.bind(["width"])?;
            let args = Args { positional: vec![width.unwrap_or(Value::Int(80))], named: Vec::new() };
            methods::call(machine, &Value::Str(text), "center", args)
        }
        "replace" => {
            let [old, new, count] = args.bind(["old", "new", "count"])?;
            let (old, new) = match (old, new) {
                (Some(old), Some(new)) => (old.to_text(budget)?, new.to_text(budget)?),
                _ => return Err(fault("replace needs two strings")),
            };
            methods::replace(&text, &old, &new, count, budget)
        }
        "string" | "safe" => Ok(Value::Str(text)),
        "e" | "escape" | "forceescape" => {
            budget.take(4 * text.len())?;
            let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            Ok(Value::paid(escaped.replace('\'', "&#39;").replace('"', "&#34;")))
        }
        "format" => {
            let values = match args.named.is_empty() {
                true => Value::list(Kind::Tuple, args.positional, budget)?,
                false => {
                    let named = args.named.into_iter().map(|(name, value)| (Value::Str(name), value));
                    Value::dict(named.collect(), budget)?
                }
            };
            formatting::percent(&text, &values, budget)
        }
        "indent" => indent(&text, args, machine),
        "truncate" => truncate(&text, args, machine),
        "urlencode" => {
            budget.take(3 * text.len())?;
            let mut made = String::new();
            for byte in text.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                        made.push(byte.into())
                    }
                    byte => made.push_str(&format!("%{byte:02X}")),
                }
            }
            Ok(Value::paid(made))
        }
        _ => {
            let count = text
                .split(|c: char| c != '_' && !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .count();
            Ok(Value::Int(count as i128))
        }
    }
}

fn indent(text: &str, args: Args, machine: &Machine) -> Result<Value, Fault> {
    let [width, first, blank] = args.bind(["width", "first", "blank"])?;
    let budget = &machine.budget;
    let margin = match width.unwrap_or(Value::Int(4)) {
        Value::Str(margin) => margin,
        width => {
            let width = width.as_int().ok_or_else(|| fault("indent needs a width"))?;
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            budget.take(width)?;
            " ".repeat(width).into()
        }
    };
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let source = format!("{text}\n");
    let mut made = String::new();
    for (index, line) in text::lines(&source, false).into_iter().enumerate() {
        if index > 0 {
            made.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            budget.take(margin.len())?;
            made.push_str(&margin);
        }
        made.push_str(line);
    }
    Ok(Value::paid(made))
}

fn truncate(text: &str, args: Args, machine: &Machine) -> Result<Value, Fault> {
    let [length, kill, end, leeway] = args.bind(["length", "killwords", "end", "leeway"])?;
    let number = |value: Option<Value>, default: usize| {
        value
            .and_then(|value| value.as_int())
            .and_then(|value| usize::try_from(value).ok())
            .unwrap_or(default)
    };
    let (length, leeway) = (number(length, 255), number(leeway, 5));
    let end = end.map_or(Ok("...".into()), |end| end.to_text(&machine.budget))?;
    if text::length(text) <= length.saturating_add(leeway) {
        return Value::text(text, &machine.budget);
    }
    let kept = length
        .checked_sub(text::length(&end))
        .ok_or_else(|| fault("truncate: the end is longer than all"))?;
    let mut kept = &text[..text::byte_of(text, kept)];
    if !kill.is_some_and(|kill| kill.is_true()) {
        kept = kept.rsplit_once(' ').map_or(kept, |(before, _)| before);
    }
    Ok(Value::paid(format!("{kept}{end}")))
}

fn number(machine: &Machine, name: &str, value: Value, args: Args) -> Result<Value, Fault> {
    if let Some(name) = undefined_name([&value, &value]) {
        return Err(fault(format!("`{name}` is undefined")));
    }
    match name {
        "abs" => match (&value, value.as_int()) {
            (_, Some(number)) => Ok(Value::Int(number.saturating_abs())),
            (Value::Float(number), _) => Ok(Value::Float(number.abs())),
            _ => Err(fault(format!("{} has no absolute value", value.type_name()))),
        },
        "float" => {
            let [default] = args.bind(["default"])?;
            let parsed = match &value {
                Value::Str(text) => parse_float(text),
                value => value.as_float(),
            };
            Ok(parsed.map_or(default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "int" => {
            let [default, base] = args.bind(["default", "base"])?;
            let base = base.and_then(|base| base.as_int()).unwrap_or(10);
            Ok(to_int(&value, base).map_or(default.unwrap_or(Value::Int(0)), Value::Int))
        }
        _ => round(machine, value, args),
    }
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(text::is_space);
    let plain = text.trim_start_matches(['+', '-']).to_lowercase();
    let is_word = ["inf", "infinity", "nan"].contains(&plain.as_str());
    let is_number = plain.starts_with(|c: char| c == '.' || c.is_ascii_digit());
    if is_word || is_number { text.replace('_', "").parse().ok() } else { None }
}

fn to_int(value: &Value, base: i128) -> Option<i128> {
    let whole = |float: f64| (float.is_finite() && float.abs() < 1e38).then_some(float as i128);
    match value {
        Value::Str(text) => {
            let text = text.trim_matches(text::is_space).replace('_', "").to_lowercase();
            let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
            let prefix = match base {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let digits = text.strip_prefix(prefix).unwrap_or(&text);
            i128::from_str_radix(digits, base).ok().or_else(|| whole(parse_float(&text)?))
        }
        Value::Float(value) => whole(*value),
        value => value.as_int(),
    }
}

fn round(machine: &Machine, value: Value, args: Args) -> Result<Value, Fault> {
    let [precision, method] = args.bind(["precision", "method"])?;
    let precision = precision.and_then(|value| value.as_int()).unwrap_or(0);
    let method = method.unwrap_or(Value::paid("common".to_owned())).to_text(&machine.budget)?;
    if !(-300..=300).contains(&precision) {
        return Err(Fault::Limit("round takes a precision from -300 to 300".to_owned()));
    }
    let Some(number) = value.as_float() else {
        return Err(fault(format!("{} cannot be rounded", value.type_name())));
    };
    let scale = 10f64.powi(precision as i32);
    match &*method {
        "ceil" => Ok(Value::Float((number * scale).ceil() / scale)),
        "floor" => Ok(Value::Float((number * scale).floor() / scale)),
        "common" if value.as_int().is_some() && precision >= 0 => Ok(value),
        "common" if precision >= 0 => {
            // The decimal form is exact, so ties are real ties, and go to the even digit as in Python.
            let decimal = format!("{number:.*}", precision as usize);
            Ok(Value::Float(decimal.parse().unwrap_or(number)))
        }
        "common" => {
            let rounded = (number * scale).round_ties_even() / scale;
            Ok(if value.as_int().is_some() { Value::Int(rounded as i128) } else { Value::Float(rounded) })
        }
        _ => Err(fault("round knows the methods common, ceil and floor")),
    }
}

fn sequence(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value, Fault> {
    if matches!(name, "batch" | "slice") {
        return split(name == "batch", value, args, machine);
    }
    let [] = args.bind([])?;
    if let (Value::Loop(place), "length" | "count") = (&value, name) {
        return Ok(Value::Int(machine.loop_length(*place)? as i128));
    }
    let budget = &machine.budget;
    let is_generator = matches!(&value, Value::List(list) if list.kind == Kind::Generator);
    match name {
        "length" | "count" => {
            let count = match &value {
                Value::Undefined(_) => 0,
                Value::Str(text) => text::length(text),
                Value::List(list) if !is_generator => list.items.len(),
                Value::Dict(dict) => dict.entries.len(),
                other => return Err(fault(format!("{} has no length", other.type_name()))),
            };
            Ok(Value::Int(count as i128))
        }
        "first" => match &value {
            Value::Str(text) => {
                Ok(text.chars().next().map_or(Value::undefined("first"), |c| Value::paid(c.into())))
            }
            value => Ok(value.items(budget)?.into_iter().next().unwrap_or(Value::undefined("first"))),
        },
        "last" if is_generator => Err(fault("last needs a list: write |list|last")),
        "last" => match &value {
            Value::Str(text) => {
                Ok(text.chars().next_back().map_or(Value::undefined("last"), |c| Value::paid(c.into())))
            }
            value => Ok(value.items(budget)?.pop().unwrap_or(Value::undefined("last"))),
        },
        "list" => {
            let items = value.items(budget)?;
            Value::list(Kind::List, items, budget)
        }
        "items" => match &value {
            Value::Undefined(_) => Value::list(Kind::Generator, Vec::new(), budget),
            Value::Dict(_) => methods::call(machine, &value, "items", Args::default()),
            other => Err(fault(format!("items needs a dict, found {}", other.type_name()))),
        },
        _ => match &value {
            Value::Str(text) => {
                budget.take(text.len())?;
                Ok(Value::paid(text.chars().rev().collect()))
            }
            value => {
                let mut items = value.items(budget)?;
                items.reverse();
                Value::list(Kind::Generator, items, budget)
            }
        },
    }
}

/// `batch` (lists of so many) and `slice` (so many lists).
fn split(is_batch: bool, value: Value, args: Args, machine: &Machine) -> Result<Value, Fault> {
    let [count, fill] = args.bind([if is_batch { "linecount" } else { "slices" }, "fill_with"])?;
    let budget = &machine.budget;
    let count = count.and_then(|count| count.as_int()).and_then(|count| usize::try_from(count).ok());
    let Some(count) = count.filter(|count| *count > 0) else { return Err(fault("expected a count above 0")) };
    let items = value.items(budget)?;
    let mut parts = Vec::new();
    if is_batch {
        for part in items.chunks(count) {
            let mut part = part.to_vec();
            if let Some(fill) = &fill {
                budget.take((count - part.len()).saturating_mul(size_of::<Value>()))?;
                part.resize(count, fill.clone());
            }
            parts.push(Value::list(Kind::List, part, budget)?);
        }
    } else {
        let (each, more) = (items.len() / count, items.len() % count);
        let mut items = items.into_iter();
        for index in 0..count {
            let mut part: Vec<Value> = items.by_ref().take(each + usize::from(index < more)).collect();
            if let Some(fill) = fill.as_ref().filter(|_| index >= more && more > 0) {
                part.push(fill.clone());
            }
            parts.push(Value::list(Kind::List, part, budget)?);
        }
    }
    Value::list(Kind::Generator, parts, budget)
}

/// `map`, `select` and their kin: another filter or test for each item.
fn many(machine: &mut Machine, name: &str, value: Value, mut args: Args) -> Result<Value, Fault> {
    // As in Jinja, which does not look at what is false.
    let items = if value.is_true() { value.items(&machine.budget)? } else { Vec::new() };
    let takes_attribute = name.ends_with("attr");
    let attribute_name = |args: &mut Args| match args.positional.is_empty() {
        true => Err(fault(format!("{name} needs the name of an attribute"))),
        false => Ok(args.positional.remove(0)),
    };
    let mut made = Vec::new();
    if name == "map" {
        let attribute = args.named.iter().position(|(name, _)| &**name == "attribute");
        let default = args.named.iter().position(|(name, _)| &**name == "default");
        if let (true, Some(attribute)) = (args.positional.is_empty(), attribute) {
            let default = default.map(|default| args.named[default].1.clone());
            let attribute = args.named[attribute].1.clone();
            for item in items {
                made.push(attribute_or(machine, &item, &attribute, default.as_ref())?);
            }
        } else {
            let filter = known(&attribute_name(&mut args)?, &NAMES, "filter")?;
            for item in items {
                machine.budget.enter()?;
                let again = Args { positional: args.positional.clone(), named: args.named.clone() };
                made.push(apply(machine, &filter, item, again)?);
                machine.budget.leave();
            }
        }
        return Value::list(Kind::Generator, made, &machine.budget);
    }
    let attribute = if takes_attribute { Some(attribute_name(&mut args)?) } else { None };
    let check = match args.positional.is_empty() {
        true => None,
        false => Some(known(&args.positional.remove(0), &checks::NAMES, "test")?),
    };
    let keeps = name.starts_with("select");
    for item in items {
        machine.budget.enter()?;
        let subject = match &attribute {
            Some(attribute) => attribute_of(machine, &item, attribute)?,
            None => item.clone(),
        };
        let holds = match &check {
            Some(check) => {
                let again = Args { positional: args.positional.clone(), named: args.named.clone() };
                checks::apply(machine, check, &subject, again)?
            }
            None => subject.is_true(),
        };
        machine.budget.leave();
        if holds == keeps {
            made.push(item);
        }
    }
    Value::list(Kind::Generator, made, &machine.budget)
}

fn known(name: &Value, names: &[&str], what: &str) -> Result<Arc<str>, Fault> {
    match name {
        Value::Str(name) if names.contains(&&**name) => Ok(name.clone()),
        Value::Str(name) => Err(fault(format!("there is no {what} `{}`", crate::foreign::clipped(name)))),
        other => Err(fault(format!("expected the name of a {what}, found {}", other.type_name()))),
    }
}

/// `a.b.0`, as filters spell attributes; entries before methods.
fn attribute_of(machine: &mut Machine, item: &Value, attribute: &Value) -> Result<Value, Fault> {
    attribute_or(machine, item, attribute, None)
}

/// The same with a value for each part of the path that is not there.
fn attribute_or(
    machine: &mut Machine,
    item: &Value,
    attribute: &Value,
    default: Option<&Value>,
) -> Result<Value, Fault> {
    let path = attribute.to_text(&machine.budget)?;
    let mut value = item.clone();
    for part in path.split('.') {
        machine.budget.step()?;
        let key = match part.parse() {
            Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(index),
            _ => Value::text(part, &machine.budget)?,
        };
        value = machine.item(&value, &key)?;
        if let Some(default) = default.filter(|_| value.is_undefined()) {
            value = default.clone();
        }
    }
    Ok(value)
}

fn ordered(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value, Fault> {
    match name {
        "join" => {
            let [between, attribute] = args.bind(["d", "attribute"])?;
            let between = between.map_or(Ok("".into()), |between| between.to_text(&machine.budget))?;
            let mut text = String::new();
            for (index, item) in value.items(&machine.budget)?.into_iter().enumerate() {
                if index > 0 {
                    machine.budget.take(between.len())?;
                    text.push_str(&between);
                }
                let item = match &attribute {
                    Some(attribute) => attribute_of(machine, &item, attribute)?,
                    None => item,
                };
                item.write(&mut text, &machine.budget)?;
            }
            Ok(Value::paid(text))
        }
        "sum" => {
            let [attribute, start] = args.bind(["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in value.items(&machine.budget)? {
                let item = match &attribute {
                    Some(Value::None) | None => item,
                    Some(attribute) => attribute_of(machine, &item, attribute)?,
                };
                sum = operators::apply(super::syntax::Operator::Add, &sum, &item, &machine.budget)?;
            }
            Ok(sum)
        }
        "sort" => {
            let [reverse, sensitive, attribute] = args.bind(["reverse", "case_sensitive", "attribute"])?;
            let keyed = keyed_by_all(machine, value, attribute, sensitive)?;
            let sorted = sorted(keyed, reverse.is_some_and(|flag| flag.is_true()), machine)?;
            Value::list(Kind::List, sorted.into_iter().map(|(_, item)| item).collect(), &machine.budget)
        }
        "dictsort" => {
            let [sensitive, by, reverse] = args.bind(["case_sensitive", "by", "reverse"])?;
            let by_value = by.as_ref().and_then(Value::as_str) == Some("value");
            let pairs = methods::call(machine, &value, "items", Args::default())?;
            let keyed = keyed(machine, pairs, Some(Value::Int(i128::from(by_value))), sensitive)?;
            let sorted = sorted(keyed, reverse.is_some_and(|flag| flag.is_true()), machine)?;
            Value::list(Kind::List, sorted.into_iter().map(|(_, item)| item).collect(), &machine.budget)
        }
        "groupby" => {
            let [attribute, default, sensitive] = args.bind(["attribute", "default", "case_sensitive"])?;
            group(machine, value, attribute, default, sensitive)
        }
        _ => chosen(machine, name, value, args),
    }
}

/// `unique`, `min` and `max`: some of the items.
fn chosen(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value, Fault> {
    let [sensitive, attribute] = args.bind(["case_sensitive", "attribute"])?;
    let items = keyed(machine, value, attribute, sensitive)?;
    if name == "unique" {
        let mut kept: Vec<(Value, Value)> = Vec::new();
        for (key, item) in items {
            let mut is_new = true;
            for (other, _) in &kept {
                is_new &= !key.equals(other, &machine.budget)?;
            }
            if is_new {
                kept.push((key, item));
            }
        }
        return Value::list(
            Kind::Generator,
            kept.into_iter().map(|(_, item)| item).collect(),
            &machine.budget,
        );
    }
    let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
    let mut best: Option<(Value, Value)> = None;
    for (key, item) in items {
        let is_better = match &best {
            None => true,
            Some((other, _)) => key.compare(other, &machine.budget)? == Some(wanted),
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::undefined("the smallest or largest of no items"), |(_, item)| item))
}

/// Lists of items with one attribute, in its order, each as (attribute, list).
fn group(
    machine: &mut Machine,
    value: Value,
    attribute: Option<Value>,
    default: Option<Value>,
    sensitive: Option<Value>,
) -> Result<Value, Fault> {
    let Some(attribute) = attribute else { return Err(fault("groupby needs the name of an attribute")) };
    let ignores_case = !sensitive.is_some_and(|flag| flag.is_true());
    let mut keyed = Vec::new();
    for item in value.items(&machine.budget)? {
        let found = attribute_or(machine, &item, &attribute, default.as_ref())?;
        let key = if ignores_case { lowered(&found, machine)? } else { found.clone() };
        let pair = Value::list(Kind::Tuple, vec![found, item], &machine.budget)?;
        keyed.push((key, pair));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (key, pair) in sorted(keyed, false, machine)? {
        let pair = pair.items(&machine.budget)?;
        let [name, item] = &pair[..] else { continue };
        match groups.last_mut() {
            Some((last, _, items)) if last.equals(&key, &machine.budget)? => items.push(item.clone()),
            _ => groups.push((key, name.clone(), vec![item.clone()])),
        }
    }
    let mut made = Vec::new();
    for (_, name, items) in groups {
        let items = Value::list(Kind::List, items, &machine.budget)?;
        made.push(Value::list(Kind::Group, vec![name, items], &machine.budget)?);
    }
    Value::list(Kind::List, made, &machine.budget)
}

fn lowered(value: &Value, machine: &Machine) -> Result<Value, Fault> {
    match value {
        Value::Str(text) => Value::text(&text.to_lowercase(), &machine.budget),
        value => Ok(value.clone()),
    }
}

/// The items with what they are compared by.
fn keyed(
    machine: &mut Machine,
    value: Value,
    attribute: Option<Value>,
    sensitive: Option<Value>,
) -> Result<Vec<(Value, Value)>, Fault> {
    let ignores_case = !sensitive.is_some_and(|flag| flag.is_true());
    let mut made = Vec::new();
    for item in value.items(&machine.budget)? {
        let key = match &attribute {
            Some(Value::None) | None => item.clone(),
            Some(attribute) => attribute_of(machine, &item, attribute)?,
        };
        made.push((if ignores_case { lowered(&key, machine)? } else { key }, item));
    }
    Ok(made)
}

/// The same for `sort`, which takes several attributes between commas.
fn keyed_by_all(
    machine: &mut Machine,
    value: Value,
    attribute: Option<Value>,
    sensitive: Option<Value>,
) -> Result<Vec<(Value, Value)>, Fault> {
    let Some(names) = attribute.as_ref().and_then(Value::as_str).filter(|names| names.contains(',')) else {
        return keyed(machine, value, attribute, sensitive);
    };
    let items = value.items(&machine.budget)?;
    let mut keys = vec![Vec::new(); items.len()];
    for name in names.split(',') {
        let name = Value::text(name, &machine.budget)?;
        let parts = keyed(machine, value.clone(), Some(name), sensitive.clone())?;
        for (key, (part, _)) in keys.iter_mut().zip(parts) {
            key.push(part);
        }
    }
    let mut made = Vec::new();
    for (key, item) in keys.into_iter().zip(items) {
        made.push((Value::list(Kind::List, key, &machine.budget)?, item));
    }
    Ok(made)
}

/// A stable sort that may fail in the middle, which the library's may not.
fn sorted(
    mut items: Vec<(Value, Value)>,
    reverse: bool,
    machine: &Machine,
) -> Result<Vec<(Value, Value)>, Fault> {
    let mut width = 1;
    while width < items.len() {
        machine.budget.take(items.len() * size_of::<(Value, Value)>())?;
        let mut merged = Vec::with_capacity(items.len());
        for pair in items.chunks(2 * width) {
            let (mut a, mut b) = pair.split_at(width.min(pair.len()));
            while let (Some(first), Some(second)) = (a.first(), b.first()) {
                let order = second.0.compare(&first.0, &machine.budget)?;
                let wanted = if reverse { Ordering::Greater } else { Ordering::Less };
                if order == Some(wanted) {
                    merged.push(second.clone());
                    b = &b[1..];
                } else {
                    merged.push(first.clone());
                    a = &a[1..];
                }
            }
            merged.extend_from_slice(a);
            merged.extend_from_slice(b);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}
