//! Jinja's tests: what stands after `is`.

use super::budget::Budget;
use super::machine::{Args, Machine};
use super::syntax::Comparison;
use super::value::{Kind, Value};
use super::{Fault, fault, filters, operators};

pub(super) const NAMES: [&str; 38] = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "true",
    "false",
    "integer",
    "float",
    "number",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "callable",
    "sameas",
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "in",
    "even",
    "odd",
    "divisibleby",
    "lower",
    "upper",
    "filter",
    "test",
];

pub(super) fn apply(machine: &Machine, name: &str, value: &Value, args: Args) -> Result<bool, Fault> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Equal),
        "ne" | "!=" => Some(Comparison::NotEqual),
        "lt" | "lessthan" | "<" => Some(Comparison::Less),
        "le" | "<=" => Some(Comparison::LessEqual),
        "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
        "ge" | ">=" => Some(Comparison::GreaterEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    let budget = &machine.budget;
    if let Some(comparison) = comparison {
        let [other] = args.bind(["other"])?;
        let Some(other) = other else { return Err(fault(format!("the test `{name}` needs a value"))) };
        return operators::compare(comparison, value, &other, budget);
    }
    match name {
        "even" | "odd" => {
            let [] = args.bind([])?;
            let number = value.as_int();
            let found = value.type_name();
            let number =
                number.ok_or_else(|| fault(format!("the test `{name}` needs an integer, found {found}")))?;
            Ok((number % 2 == 0) == (name == "even"))
        }
        "divisibleby" | "sameas" => {
            let [other] = args.bind(["other"])?;
            let other = other.ok_or_else(|| fault(format!("the test `{name}` needs a value")))?;
            if name == "sameas" {
                return same(value, &other, machine);
            }
            match (value.as_int(), other.as_int()) {
                (Some(value), Some(by)) if by != 0 => Ok(value.checked_rem(by).is_none_or(|rest| rest == 0)),
                _ => Err(fault("the test `divisibleby` needs integers, and not 0")),
            }
        }
        _ => {
            let [] = args.bind([])?;
            alone(name, value, budget)
        }
    }
}

/// A test without a second value.
fn alone(name: &str, value: &Value, budget: &Budget) -> Result<bool, Fault> {
    let is_generator = matches!(value, Value::List(list) if list.kind == Kind::Generator);
    let is_cased = |wanted: fn(char) -> bool, other: fn(char) -> bool| {
        let text = value.to_text(budget)?;
        Ok(text.chars().any(wanted) && !text.chars().any(other))
    };
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // An undefined value has both in Jinja.
        "iterable" => matches!(
            value,
            Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Undefined(_) | Value::Loop(_)
        ),
        "sequence" => {
            matches!(value, Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Undefined(_))
                && !is_generator
        }
        "callable" => {
            matches!(
                value,
                Value::Function(_)
                    | Value::Macro(_)
                    | Value::Method(_)
                    | Value::Loop(_)
                    | Value::Undefined(_)
            )
        }
        "lower" => return is_cased(char::is_lowercase, char::is_uppercase),
        "upper" => return is_cased(char::is_uppercase, char::is_lowercase),
        "filter" => value.as_str().is_some_and(|name| filters::NAMES.contains(&name)),
        _ => value.as_str().is_some_and(|name| NAMES.contains(&name)),
    })
}

/// `is`: the same value of the same type.
fn same(a: &Value, b: &Value, machine: &Machine) -> Result<bool, Fault> {
    Ok(match (a, b) {
        (Value::List(a), Value::List(b)) => std::sync::Arc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => std::sync::Arc::ptr_eq(a, b),
        (a, b) => a.type_name() == b.type_name() && a.equals(b, &machine.budget)?,
    })
}
