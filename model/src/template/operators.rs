//! Operators, indices and slices, as Python has them.

use std::cmp::Ordering;

use super::budget::Budget;
use super::syntax::{Comparison, Operator};
use super::value::{Kind, Value, undefined_name};
use super::{Fault, fault, formatting, text};

pub(super) fn apply(operator: Operator, a: &Value, b: &Value, budget: &Budget) -> Result<Value, Fault> {
    if let (Operator::Remainder, Value::Str(format)) = (operator, a) {
        return formatting::percent(format, b, budget);
    }
    if let Some(name) = undefined_name([a, b]) {
        return Err(fault(format!("`{name}` is undefined")));
    }
    match (operator, a, b) {
        (Operator::Add, Value::Str(a), Value::Str(b)) => {
            budget.take(a.len() + b.len())?;
            return Ok(Value::paid([&**a, b].concat()));
        }
        (Operator::Add, Value::List(a), Value::List(b)) if a.kind == b.kind && a.kind != Kind::Generator => {
            budget.take((a.items.len() + b.items.len()) * size_of::<Value>())?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            return Value::list(a.kind, items, budget);
        }
        (Operator::Multiply, Value::Str(_) | Value::List(_), _) => return repeat(a, b, budget),
        (Operator::Multiply, _, Value::Str(_) | Value::List(_)) => return repeat(b, a, budget),
        _ => {}
    }
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return integers(operator, a, b);
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => floats(operator, a, b),
        _ => {
            let sign = sign(operator);
            Err(fault(format!("{} {sign} {} has no meaning", a.type_name(), b.type_name())))
        }
    }
}

fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Remainder => "%",
        Operator::Power => "**",
    }
}

/// `"ab" * 3`, `[1] * 3`.
fn repeat(value: &Value, times: &Value, budget: &Budget) -> Result<Value, Fault> {
    let Some(times) = times.as_int() else {
        return Err(fault(format!("{} * {} has no meaning", value.type_name(), times.type_name())));
    };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Str(text) => {
            budget.take(text.len().saturating_mul(times))?;
            Ok(Value::paid(text.repeat(times)))
        }
        Value::List(list) if list.kind != Kind::Generator => {
            budget.take(list.items.len().saturating_mul(times).saturating_mul(size_of::<Value>()))?;
            let mut items = Vec::with_capacity(list.items.len() * times);
            // Without items there is nothing to repeat, however often.
            for _ in 0..if list.items.is_empty() { 0 } else { times } {
                items.extend_from_slice(&list.items);
            }
            Value::list(list.kind, items, budget)
        }
        other => Err(fault(format!("{} cannot be repeated", other.type_name()))),
    }
}

fn integers(operator: Operator, a: i128, b: i128) -> Result<Value, Fault> {
    let by_zero = || fault("division by zero");
    let value = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err(by_zero()),
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDivide | Operator::Remainder if b == 0 => return Err(by_zero()),
        Operator::FloorDivide => a.checked_rem(b).and_then(|rest| {
            let quotient = a.checked_div(b)?;
            Some(quotient - i128::from(rest != 0 && (rest < 0) != (b < 0)))
        }),
        Operator::Remainder => {
            a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        Operator::Power if b < 0 => return Ok(Value::Float((a as f64).powf(b as f64))),
        Operator::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    value.map(Value::Int).ok_or_else(|| Fault::Limit("an integer has more than 127 bits".to_owned()))
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<Value, Fault> {
    if b == 0.0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder) {
        return Err(fault("division by zero"));
    }
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => (a / b).floor(),
        Operator::Remainder => {
            let rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
        }
        Operator::Power => a.powf(b),
    }))
}

pub(super) fn negative(value: &Value, negates: bool) -> Result<Value, Fault> {
    if let Some(name) = undefined_name([value, value]) {
        return Err(fault(format!("`{name}` is undefined")));
    }
    let sign = if negates { -1 } else { 1 };
    match (value.as_int(), value) {
        (Some(value), _) => Ok(Value::Int(value.saturating_mul(sign))),
        (None, Value::Float(value)) => Ok(Value::Float(value * sign as f64)),
        _ => Err(fault(format!("{} has no sign", value.type_name()))),
    }
}

pub(super) fn compare(comparison: Comparison, a: &Value, b: &Value, budget: &Budget) -> Result<bool, Fault> {
    let ordered = |wanted: &[Ordering]| {
        if let Some(name) = undefined_name([a, b]) {
            return Err(fault(format!("`{name}` is undefined")));
        }
        Ok(a.compare(b, budget)?.is_some_and(|order| wanted.contains(&order)))
    };
    match comparison {
        Comparison::Equal => a.equals(b, budget),
        Comparison::NotEqual => Ok(!a.equals(b, budget)?),
        Comparison::Less => ordered(&[Ordering::Less]),
        Comparison::LessEqual => ordered(&[Ordering::Less, Ordering::Equal]),
        Comparison::Greater => ordered(&[Ordering::Greater]),
        Comparison::GreaterEqual => ordered(&[Ordering::Greater, Ordering::Equal]),
        Comparison::In => contains(b, a, budget),
        Comparison::NotIn => Ok(!contains(b, a, budget)?),
    }
}

/// `needle in hay`.
pub(super) fn contains(hay: &Value, needle: &Value, budget: &Budget) -> Result<bool, Fault> {
    match (hay, needle) {
        (Value::Str(hay), Value::Str(needle)) => {
            budget.take(hay.len() / 8)?;
            Ok(hay.contains(&**needle))
        }
        (Value::Str(_), other) => {
            let found = other.type_name();
            Err(fault(format!("`in` a string needs a string before it, found {found}")))
        }
        (Value::Dict(dict), key) => Ok(dict.get(key, budget)?.is_some()),
        (Value::List(list), needle) => {
            for item in &list.items {
                if item.equals(needle, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        (Value::Undefined(_), _) => Ok(false),
        (other, _) => {
            Err(fault(format!("`in` needs a list, a dict or a string, found {}", other.type_name())))
        }
    }
}

/// The place of a Python index, where there is one.
pub(super) fn index(index: i128, length: usize) -> Option<usize> {
    let place = if index < 0 { index.checked_add(length as i128)? } else { index };
    usize::try_from(place).ok().filter(|place| *place < length)
}

/// `text[key]`.
pub(super) fn character(text: &str, key: &Value, budget: &Budget) -> Result<Option<Value>, Fault> {
    let Some(key) = key.as_int() else { return Ok(None) };
    budget.take(text.len() / 8)?;
    let Some(place) = index(key, text::length(text)) else { return Ok(None) };
    let at = text::byte_of(text, place);
    Ok(text[at..].chars().next().map(|c| Value::paid(c.to_string())))
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, parts: [Option<Value>; 3], budget: &Budget) -> Result<Value, Fault> {
    let mut numbers = [None; 3];
    for (number, part) in numbers.iter_mut().zip(parts) {
        *number = match part {
            None | Some(Value::None) => None,
            Some(part) => Some(
                part.as_int()
                    .ok_or_else(|| fault(format!("a slice needs integers, found {}", part.type_name())))?,
            ),
        };
    }
    if numbers[2] == Some(0) {
        return Err(fault("a slice cannot step by 0"));
    }
    match value {
        Value::Str(text) => {
            budget.take(text.len())?;
            let length = text::length(text);
            if numbers[2].unwrap_or(1) == 1 {
                let (start, stop, _) = bounds(numbers, length);
                let (from, to) = (text::byte_of(text, start as usize), text::byte_of(text, stop as usize));
                return Ok(Value::paid(text.get(from..to).unwrap_or_default().to_owned()));
            }
            budget.take(5 * text.len())?;
            let chars: Vec<char> = text.chars().collect();
            Ok(Value::paid(places(numbers, length).map(|place| chars[place]).collect()))
        }
        Value::List(list) if list.kind != Kind::Generator => {
            let items = places(numbers, list.items.len()).map(|place| list.items[place].clone());
            Value::list(list.kind, items.collect(), budget)
        }
        Value::Undefined(name) => Err(fault(format!("`{name}` is undefined, so it has no slices"))),
        _ => Ok(Value::undefined("a slice")),
    }
}

/// Where a slice begins, what it does not reach, and its step.
fn bounds([start, stop, step]: [Option<i128>; 3], length: usize) -> (i128, i128, i128) {
    let (length, step) = (length as i128, step.unwrap_or(1));
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |place: i128| {
        let place = if place < 0 { place.saturating_add(length) } else { place };
        place.clamp(low, high)
    };
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    (start, stop, step)
}

/// The places a slice names, in its order.
fn places(numbers: [Option<i128>; 3], length: usize) -> impl Iterator<Item = usize> {
    let (start, stop, step) = bounds(numbers, length);
    let next = move |place: &i128| Some(place.saturating_add(step));
    std::iter::successors(Some(start), next)
        .take_while(move |place| if step > 0 { *place < stop } else { *place > stop })
        .map(|place| place as usize)
}
