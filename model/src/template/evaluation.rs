//! The value of an expression: names, paths, calls, choices.

use std::sync::Arc;

use super::machine::{Args, Machine};
use super::syntax::{Expr, Step};
use super::value::{Kind, Value, insert};
use super::{Fault, checks, fault, filters, methods, operators};

/// The functions every template has.
const FUNCTIONS: [&str; 5] = ["raise_exception", "strftime_now", "range", "namespace", "dict"];
/// As in Jinja's sandbox.
const RANGE_MAX: i128 = 100_000;

impl Machine {
    pub(super) fn evaluate(&mut self, expr: &Expr) -> Result<Value, Fault> {
        self.budget.enter()?;
        let value = self.evaluate_here(expr)?;
        self.budget.leave();
        Ok(value)
    }

    fn evaluate_here(&mut self, expr: &Expr) -> Result<Value, Fault> {
        match expr {
            Expr::Constant(value) => Ok(value.clone()),
            Expr::Name(name) => Ok(self.name(name)),
            Expr::List(items) => {
                let items = self.all(items)?;
                Value::list(Kind::List, items, &self.budget)
            }
            Expr::Tuple(items) => {
                let items = self.all(items)?;
                Value::list(Kind::Tuple, items, &self.budget)
            }
            Expr::Dict(pairs) => {
                let mut entries = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    let (key, value) = (self.evaluate(key)?, self.evaluate(value)?);
                    insert(&mut entries, hashable(key)?, value, &self.budget)?;
                }
                Value::dict(entries, &self.budget)
            }
            Expr::Choice(choice) => {
                let (then, condition, otherwise) = &**choice;
                match (self.evaluate(condition)?.is_true(), otherwise) {
                    (true, _) => self.evaluate(then),
                    (false, Some(otherwise)) => self.evaluate(otherwise),
                    (false, None) => Ok(Value::undefined("an `if` without `else`")),
                }
            }
            Expr::All(items) => self.until(items, false),
            Expr::Any(items) => self.until(items, true),
            Expr::Not(inner) => Ok(Value::Bool(!self.evaluate(inner)?.is_true())),
            Expr::Negative(inner) => operators::negative(&self.evaluate(inner)?, true),
            Expr::Positive(inner) => operators::negative(&self.evaluate(inner)?, false),
            Expr::Chain(first, others) => {
                let mut value = self.evaluate(first)?;
                for (operator, other) in others {
                    let other = self.evaluate(other)?;
                    value = operators::apply(*operator, &value, &other, &self.budget)?;
                }
                Ok(value)
            }
            Expr::Compare(first, others) => {
                let mut left = self.evaluate(first)?;
                for (comparison, right) in others {
                    let right = self.evaluate(right)?;
                    if !operators::compare(*comparison, &left, &right, &self.budget)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::Join(items) => {
                let mut text = String::new();
                for item in items {
                    self.evaluate(item)?.write(&mut text, &self.budget)?;
                }
                Ok(Value::paid(text))
            }
            Expr::Path(base, steps) => self.path(base, steps),
        }
    }

    fn all(&mut self, items: &[Expr]) -> Result<Vec<Value>, Fault> {
        items.iter().map(|item| self.evaluate(item)).collect()
    }

    /// The first value that is as `wanted`, or the last.
    fn until(&mut self, items: &[Expr], wanted: bool) -> Result<Value, Fault> {
        let mut value = Value::None;
        for item in items {
            value = self.evaluate(item)?;
            if value.is_true() == wanted {
                break;
            }
        }
        Ok(value)
    }

    fn name(&self, name: &Arc<str>) -> Value {
        if let Some(value) = self.lookup(name) {
            return value.clone();
        }
        match FUNCTIONS.into_iter().find(|function| **function == **name) {
            Some(function) => Value::Function(function),
            None => Value::Undefined(name.clone()),
        }
    }

    pub(super) fn path(&mut self, base: &Expr, steps: &[Step]) -> Result<Value, Fault> {
        let mut value = self.evaluate(base)?;
        let mut steps = steps.iter().peekable();
        while let Some(step) = steps.next() {
            self.budget.step()?;
            value = match (step, steps.peek()) {
                (Step::Attribute(name), Some(Step::Call(given))) => {
                    steps.next();
                    let args = self.args(given)?;
                    self.call_method(value, name, args)?
                }
                _ => self.step(value, step)?,
            };
        }
        Ok(value)
    }

    pub(super) fn step(&mut self, value: Value, step: &Step) -> Result<Value, Fault> {
        match step {
            Step::Attribute(name) => self.attribute(&value, name),
            Step::Item(key) => {
                let key = self.evaluate(key)?;
                self.item(&value, &key)
            }
            Step::Slice(parts) => {
                let mut places = [None, None, None];
                for (place, part) in places.iter_mut().zip(parts.iter()) {
                    *place = part.as_ref().map(|part| self.evaluate(part)).transpose()?;
                }
                operators::slice(&value, places, &self.budget)
            }
            Step::Call(given) => {
                let args = self.args(given)?;
                self.call(value, args)
            }
            Step::Filter(name, given) => {
                let args = self.args(given)?;
                filters::apply(self, name, value, args)
            }
            Step::Test { name, given, negated } => {
                let args = self.args(given)?;
                let holds = checks::apply(self, name, &value, args)?;
                Ok(Value::Bool(holds != *negated))
            }
            Step::Unknown(reason) => Err(fault(reason.as_str())),
        }
    }

    /// `value.name`: a method before an entry, as in Jinja.
    pub(super) fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Value, Fault> {
        if let Value::Undefined(missing) = value {
            return Err(fault(format!("`{missing}` is undefined, so it has no `{name}`")));
        }
        if methods::is_method(value, name) {
            self.budget.take(64)?;
            return Ok(Value::Method(Arc::new((value.clone(), name.clone()))));
        }
        let found = match value {
            Value::Dict(dict) => dict.get_str(name, &self.budget)?.cloned(),
            Value::List(list) if list.kind == Kind::Group => {
                let place = ["grouper", "list"].iter().position(|known| *known == &**name);
                place.and_then(|place| list.items.get(place).cloned())
            }
            Value::Namespace(index) => self.namespaces[*index].get(name).cloned(),
            Value::Loop(place) => self.loop_attribute(*place, name)?,
            Value::Macro(place) if &**name == "name" => Some(Value::Str(self.macro_name(*place))),
            _ => None,
        };
        Ok(found.unwrap_or_else(|| Value::Undefined(name.clone())))
    }

    /// `value[key]`: an entry before a method.
    pub(super) fn item(&mut self, value: &Value, key: &Value) -> Result<Value, Fault> {
        if let Value::Undefined(missing) = value {
            return Err(fault(format!("`{missing}` is undefined, so it has no items")));
        }
        let found = match (value, key) {
            (Value::Dict(dict), key) => dict.get(key, &self.budget)?.cloned(),
            (Value::List(list), key) if list.kind != Kind::Generator => {
                let index = key.as_int().and_then(|index| operators::index(index, list.items.len()));
                index.map(|index| list.items[index].clone())
            }
            (Value::Str(text), key) => operators::character(text, key, &self.budget)?,
            _ => None,
        };
        match (found, key) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name))
                if !matches!(value, Value::Dict(_)) || methods::is_method(value, name) =>
            {
                self.attribute(value, name)
            }
            (None, key) => Ok(Value::Undefined(key.to_text(&self.budget)?)),
        }
    }

    pub(super) fn call(&mut self, function: Value, args: Args) -> Result<Value, Fault> {
        match function {
            Value::Function(name) => self.call_function(name, args),
            Value::Macro(place) => self.call_macro(place, args),
            Value::Loop(place) => self.recurse(place, args),
            Value::Method(method) => methods::call(self, &method.0, &method.1, args),
            Value::Undefined(name) => Err(fault(format!("`{name}` is undefined, so it cannot be called"))),
            other => Err(fault(format!("{} cannot be called", other.type_name()))),
        }
    }

    fn call_method(&mut self, value: Value, name: &Arc<str>, args: Args) -> Result<Value, Fault> {
        if methods::is_method(&value, name) {
            return methods::call(self, &value, name, args);
        }
        if let Value::Loop(place) = value
            && (&**name == "cycle" || &**name == "changed")
        {
            return self.loop_method(place, name, args);
        }
        let function = self.attribute(&value, name)?;
        if function.is_undefined() {
            return Err(fault(format!("{} has no method `{name}`", value.type_name())));
        }
        self.call(function, args)
    }

    fn loop_attribute(&mut self, place: usize, name: &str) -> Result<Option<Value>, Fault> {
        let index = self.loops[place].index;
        // How far the loop must look ahead.
        let count = match name {
            "revindex" | "revindex0" | "length" => self.loop_length(place)?,
            "last" | "nextitem" => {
                let is_known = self.loops[place].items.len() > index + 1;
                index + 1 + usize::from(is_known || self.pull(place)?)
            }
            _ => index + 1,
        };
        let repetition = &self.loops[place];
        let number = |number: usize| Some(Value::Int(number as i128));
        Ok(match name {
            "index" => number(index + 1),
            "index0" => number(index),
            "revindex" => number(count - index),
            "revindex0" => number(count - index - 1),
            "first" => Some(Value::Bool(index == 0)),
            "last" => Some(Value::Bool(index + 1 == count)),
            "length" => number(count),
            "depth" => number(repetition.depth + 1),
            "depth0" => number(repetition.depth),
            "previtem" => index.checked_sub(1).map(|index| repetition.items[index].clone()),
            "nextitem" => repetition.items.get(index + 1).cloned(),
            _ => None,
        })
    }

    fn loop_method(&mut self, place: usize, name: &str, args: Args) -> Result<Value, Fault> {
        let repetition = &mut self.loops[place];
        if name == "cycle" {
            let count = args.positional.len();
            let item = repetition.index.checked_rem(count).map(|index| args.positional[index].clone());
            return item.ok_or_else(|| fault("loop.cycle() needs at least one value"));
        }
        let last = repetition.last_changed.replace(args.positional.clone());
        let Some(last) = last.filter(|last| last.len() == args.positional.len()) else {
            return Ok(Value::Bool(true));
        };
        for (a, b) in last.iter().zip(&args.positional) {
            if !a.equals(b, &self.budget)? {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }

    fn call_function(&mut self, name: &str, args: Args) -> Result<Value, Fault> {
        match name {
            "raise_exception" => {
                let [message] = args.bind(["message"])?;
                let message = message.unwrap_or(Value::None).to_text(&self.budget)?;
                Err(Fault::Raised(message.as_ref().to_owned()))
            }
            "strftime_now" => {
                let [format] = args.bind(["format"])?;
                let Some(Value::Str(format)) = format else {
                    return Err(fault("strftime_now() needs a format such as \"%d %b %Y\""));
                };
                self.now.format(&format, &self.budget)
            }
            "range" => self.range(args),
            "namespace" => {
                let entries = dict_entries(self, args)?;
                self.budget.take(64 * (entries.len() + 1))?;
                let names = entries.into_iter().filter_map(|(key, value)| match key {
                    Value::Str(key) => Some((key, value)),
                    _ => None,
                });
                let names = names.collect();
                self.namespaces.push(names);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            _ => {
                let entries = dict_entries(self, args)?;
                Value::dict(entries, &self.budget)
            }
        }
    }

    fn range(&mut self, args: Args) -> Result<Value, Fault> {
        let numbers: Vec<i128> = args.positional.iter().filter_map(Value::as_int).collect();
        let (start, stop, step) = match numbers[..] {
            _ if numbers.len() != args.positional.len() || !args.named.is_empty() => (0, 0, 0),
            [stop] => (0, stop, 1),
            [start, stop] => (start, stop, 1),
            [start, stop, step] => (start, stop, step),
            _ => (0, 0, 0),
        };
        if step == 0 {
            return Err(fault("range() needs one to three integers, the last of them not 0"));
        }
        let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
        let stride = step.unsigned_abs() as i128;
        let count = if span <= 0 { 0 } else { (span - 1) / stride.max(1) + 1 };
        if count > RANGE_MAX {
            return Err(Fault::Limit(format!("range() is longer than {RANGE_MAX}")));
        }
        let items = (0..count).map(|index| Value::Int(start + index * step)).collect();
        Value::list(Kind::List, items, &self.budget)
    }
}

fn dict_entries(machine: &mut Machine, args: Args) -> Result<Vec<(Value, Value)>, Fault> {
    let mut entries = Vec::new();
    for value in args.positional {
        match value {
            Value::Dict(dict) => {
                for (key, value) in &dict.entries {
                    insert(&mut entries, key.clone(), value.clone(), &machine.budget)?;
                }
            }
            value => {
                for pair in value.items(&machine.budget)? {
                    let pair = pair.items(&machine.budget)?;
                    let [key, value] = &pair[..] else { return Err(fault("dict() needs pairs")) };
                    insert(&mut entries, hashable(key.clone())?, value.clone(), &machine.budget)?;
                }
            }
        }
    }
    for (name, value) in args.named {
        insert(&mut entries, Value::Str(name), value, &machine.budget)?;
    }
    Ok(entries)
}

fn hashable(key: Value) -> Result<Value, Fault> {
    match &key {
        Value::Dict(_) => Err(fault("a dict cannot be a key")),
        Value::List(list) if list.kind == Kind::List => Err(fault("a list cannot be a key")),
        _ => Ok(key),
    }
}
