//! Runs a parsed template: statements, scopes, calls. `evaluation.rs` has the expressions.
//!
//! Every step, level and byte is asked of the budget first.

use std::collections::HashMap;
use std::sync::Arc;

use super::budget::Budget;
use super::clock::Now;
use super::syntax::{Body, Expr, For, Given, Macro, Statement, Step, Target, What};
use super::value::{Kind, Value};
use super::{Fault, fault};

pub(super) struct Machine {
    pub(super) budget: Budget,
    pub(super) now: Now,
    /// The line of the statement that runs, for messages.
    pub(super) line: u32,
    scopes: Vec<Scope>,
    scopes_made: u64,
    pub(super) namespaces: Vec<HashMap<Arc<str>, Value>>,
    macros: Vec<Closure>,
    pub(super) loops: Vec<Repetition>,
    /// What is printed, and below it what waits while a block is caught.
    outputs: Vec<String>,
    output_left: usize,
}

struct Scope {
    names: HashMap<Arc<str>, Value>,
    parent: usize,
    number: u64,
}

/// A macro with the scope it was defined in, by place and number: a macro does not keep its scope alive.
struct Closure {
    definition: Arc<Macro>,
    scope: usize,
    number: u64,
}

/// A `for` that runs.
pub(super) struct Repetition {
    definition: Arc<For>,
    scope: usize,
    number: u64,
    /// Those that the loop's condition let through.
    pub(super) items: Vec<Value>,
    /// Those of which the condition was not asked yet.
    waiting: std::vec::IntoIter<Value>,
    pub(super) index: usize,
    pub(super) depth: usize,
    pub(super) last_changed: Option<Vec<Value>>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    On,
    Break,
    Continue,
}

/// What a call brings.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// The arguments by the names of `parameters`, in their order.
    pub(super) fn bind<const N: usize>(self, parameters: [&str; N]) -> Result<[Option<Value>; N], Fault> {
        if self.positional.len() > N {
            let found = self.positional.len();
            return Err(fault(format!(
                "expected at most {N} arguments ({}), found {found}",
                parameters.join(", ")
            )));
        }
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            match parameters.iter().position(|parameter| *parameter == &*name) {
                Some(index) if bound[index].is_none() => bound[index] = Some(value),
                _ => {
                    return Err(fault(format!(
                        "no argument `{name}` is expected here, or it is given twice"
                    )));
                }
            }
        }
        Ok(bound)
    }
}

impl Machine {
    pub(super) fn new(variables: Vec<(Arc<str>, Value)>, now: Now, output_max: usize) -> Self {
        let names = variables.into_iter().collect();
        Self {
            budget: Budget::new(),
            now,
            line: 1,
            scopes: vec![Scope { names, parent: 0, number: 0 }],
            scopes_made: 0,
            namespaces: Vec::new(),
            macros: Vec::new(),
            loops: Vec::new(),
            outputs: vec![String::new()],
            output_left: output_max,
        }
    }

    /// Runs the whole template.
    pub(super) fn run(&mut self, body: &Body) -> Result<String, Fault> {
        self.body(body)?;
        Ok(self.outputs.pop().unwrap_or_default())
    }

    fn print(&mut self, text: &str) -> Result<(), Fault> {
        self.budget.take(text.len())?;
        if self.outputs.len() == 1 {
            let Some(left) = self.output_left.checked_sub(text.len()) else {
                return Err(Fault::Limit(format!("it prints more than {} MiB", super::OUTPUT_MAX >> 20)));
            };
            self.output_left = left;
        }
        if let Some(output) = self.outputs.last_mut() {
            output.push_str(text);
        }
        Ok(())
    }

    /// Runs something and catches what it prints.
    fn caught(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<Flow, Fault>,
    ) -> Result<(String, Flow), Fault> {
        self.outputs.push(String::new());
        let flow = run(self);
        let output = self.outputs.pop().unwrap_or_default();
        Ok((output, flow?))
    }

    fn scoped<T>(
        &mut self,
        parent: usize,
        run: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.budget.enter()?;
        self.scopes_made += 1;
        self.scopes.push(Scope { names: HashMap::new(), parent, number: self.scopes_made });
        let result = run(self);
        self.scopes.pop();
        self.budget.leave();
        result
    }

    fn top(&self) -> usize {
        self.scopes.len() - 1
    }

    pub(super) fn lookup(&self, name: &str) -> Option<&Value> {
        let mut place = self.top();
        loop {
            let scope = &self.scopes[place];
            if let Some(value) = scope.names.get(name) {
                return Some(value);
            }
            if place == 0 {
                return None;
            }
            place = scope.parent;
        }
    }

    fn define(&mut self, name: &Arc<str>, value: Value) -> Result<(), Fault> {
        self.budget.take(64)?;
        if let Some(scope) = self.scopes.last_mut() {
            scope.names.insert(name.clone(), value);
        }
        Ok(())
    }

    fn body(&mut self, body: &Body) -> Result<Flow, Fault> {
        for statement in body {
            self.budget.enter()?;
            let flow = self.statement(statement)?;
            self.budget.leave();
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, Fault> {
        self.line = statement.line;
        match &statement.what {
            What::Text(text) => self.print(text)?,
            What::Print(value) => {
                let value = self.evaluate(value)?;
                let text = value.to_text(&self.budget)?;
                self.print(&text)?;
            }
            What::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.evaluate(condition)?.is_true() {
                        return self.body(body);
                    }
                }
                return self.body(otherwise);
            }
            What::For(definition) => {
                let items = self.evaluate(&definition.items)?;
                let scope = self.top();
                self.repeat(definition, items, scope, 0)?;
            }
            What::Set(target, value) => {
                let value = self.evaluate(value)?;
                self.assign(target, value)?;
            }
            What::SetBlock { target, filters, body } => {
                let value = self.filtered(filters, body)?;
                self.assign(target, value)?;
            }
            What::Filter(filters, body) => {
                let value = self.filtered(filters, body)?;
                let text = value.to_text(&self.budget)?;
                self.print(&text)?;
            }
            What::With { names, body } => {
                // The values see the outer names only.
                let values =
                    names.iter().map(|(_, value)| self.evaluate(value)).collect::<Result<Vec<_>, _>>()?;
                return self.scoped(self.top(), |machine| {
                    for ((target, _), value) in names.iter().zip(values) {
                        machine.assign(target, value)?;
                    }
                    machine.body(body)
                });
            }
            What::Macro(definition) => {
                let value = self.closure(definition)?;
                self.define(&definition.name, value)?;
            }
            What::Call(definition, call) => self.call_block(definition, call)?,
            What::Scope(body) => return self.scoped(self.top(), |machine| machine.body(body)),
            What::Break => return Ok(Flow::Break),
            What::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    /// What a body prints, through filters.
    fn filtered(&mut self, filters: &[Step], body: &Body) -> Result<Value, Fault> {
        let top = self.top();
        let (text, _) = self.caught(|machine| machine.scoped(top, |machine| machine.body(body)))?;
        let mut value = Value::paid(text);
        for filter in filters {
            value = self.step(value, filter)?;
        }
        Ok(value)
    }

    fn call_block(&mut self, definition: &Arc<Macro>, call: &Expr) -> Result<(), Fault> {
        let caller = self.closure(definition)?;
        let Expr::Path(base, steps) = call else { return Ok(()) };
        let Some((Step::Call(given), before)) = steps.split_last() else { return Ok(()) };
        let function = self.path(base, before)?;
        let mut args = self.args(given)?;
        args.named.push(("caller".into(), caller));
        let text = self.call(function, args)?.to_text(&self.budget)?;
        self.print(&text)
    }

    fn closure(&mut self, definition: &Arc<Macro>) -> Result<Value, Fault> {
        self.budget.take(64)?;
        let (scope, number) = (self.top(), self.scopes[self.top()].number);
        self.macros.push(Closure { definition: definition.clone(), scope, number });
        Ok(Value::Macro(self.macros.len() - 1))
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<(), Fault> {
        match target {
            Target::Name(name) => self.define(name, value),
            Target::Field(name, field) => match self.lookup(name) {
                Some(&Value::Namespace(index)) => {
                    self.budget.take(64)?;
                    self.namespaces[index].insert(field.clone(), value);
                    Ok(())
                }
                _ => Err(fault(format!("`{name}.{field}` can be set only where `{name}` is a namespace()"))),
            },
            Target::Tuple(targets) => {
                let items = value.items(&self.budget)?;
                if items.len() != targets.len() {
                    let (expected, found) = (targets.len(), items.len());
                    return Err(fault(format!("expected {expected} values to assign, found {found}")));
                }
                targets.iter().zip(items).try_for_each(|(target, item)| self.assign(target, item))
            }
        }
    }

    fn repeat(
        &mut self,
        definition: &Arc<For>,
        items: Value,
        scope: usize,
        depth: usize,
    ) -> Result<(), Fault> {
        if let Some(name) = super::value::undefined_name([&items, &items]).map(str::to_owned)
            && depth > 0
        {
            return Err(fault(format!("`{name}` is undefined")));
        }
        let items = items.items(&self.budget)?;
        let (items, waiting) = match definition.condition {
            None => (items, Vec::new().into_iter()),
            Some(_) => (Vec::new(), items.into_iter()),
        };
        self.budget.take(128)?;
        let (place, number) = (self.loops.len(), self.scopes[scope].number);
        let last_changed = None;
        let repeated = definition.clone();
        let repetition =
            Repetition { definition: repeated, scope, number, items, waiting, index: 0, depth, last_changed };
        self.loops.push(repetition);
        if self.loops[place].items.is_empty() && !self.pull(place)? {
            self.scoped(scope, |machine| machine.body(&definition.otherwise))?;
            return Ok(());
        }
        let name: Arc<str> = "loop".into();
        for index in 0.. {
            if index == self.loops[place].items.len() && !self.pull(place)? {
                break;
            }
            self.budget.step()?;
            let repetition = &mut self.loops[place];
            repetition.index = index;
            let item = repetition.items[index].clone();
            let flow = self.scoped(scope, |machine| {
                machine.assign(&definition.target, item)?;
                machine.define(&name, Value::Loop(place))?;
                machine.body(&definition.body)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    /// Lets one more item through, if there is one. The condition is asked when the item is needed and not before,
    /// as in Jinja: it may name what the body has set.
    pub(super) fn pull(&mut self, place: usize) -> Result<bool, Fault> {
        loop {
            let repetition = &mut self.loops[place];
            let Some(item) = repetition.waiting.next() else { return Ok(false) };
            let (definition, scope, number) =
                (repetition.definition.clone(), repetition.scope, repetition.number);
            self.still_there(scope, number, "loop")?;
            let is_kept = self.scoped(scope, |machine| {
                machine.assign(&definition.target, item.clone())?;
                definition
                    .condition
                    .as_ref()
                    .map_or(Ok(true), |condition| machine.evaluate(condition).map(|value| value.is_true()))
            })?;
            if is_kept {
                self.loops[place].items.push(item);
                return Ok(true);
            }
        }
    }

    /// How many items the loop has in all.
    pub(super) fn loop_length(&mut self, place: usize) -> Result<usize, Fault> {
        while self.pull(place)? {}
        Ok(self.loops[place].items.len())
    }

    /// `loop(children)`.
    pub(super) fn recurse(&mut self, place: usize, args: Args) -> Result<Value, Fault> {
        let [items] = args.bind(["iterable"])?;
        let repetition = &self.loops[place];
        if !repetition.definition.is_recursive {
            return Err(fault("`loop` can be called only in {% for … recursive %}"));
        }
        let (definition, scope, depth) = (repetition.definition.clone(), repetition.scope, repetition.depth);
        self.still_there(scope, repetition.number, "loop")?;
        let items = items.unwrap_or(Value::undefined("iterable"));
        let (text, _) = self.caught(|machine| {
            machine.repeat(&definition, items, scope, depth + 1)?;
            Ok(Flow::On)
        })?;
        Ok(Value::paid(text))
    }

    fn still_there(&self, scope: usize, number: u64, name: &str) -> Result<(), Fault> {
        match self.scopes.get(scope) {
            Some(found) if found.number == number => Ok(()),
            _ => Err(fault(format!("`{name}` is called where the block that defined it has ended"))),
        }
    }

    pub(super) fn macro_name(&self, place: usize) -> Arc<str> {
        self.macros[place].definition.name.clone()
    }

    pub(super) fn call_macro(&mut self, place: usize, args: Args) -> Result<Value, Fault> {
        let closure = &self.macros[place];
        let (definition, scope) = (closure.definition.clone(), closure.scope);
        self.still_there(scope, closure.number, &definition.name)?;
        let name = &definition.name;
        let Args { mut positional, mut named } = args;
        let (text, _) = self.caught(|machine| {
            machine.scoped(scope, |machine| {
                let extra = positional.split_off(positional.len().min(definition.parameters.len()));
                let given = positional.len();
                for ((parameter, _), value) in definition.parameters.iter().zip(positional) {
                    machine.define(parameter, value)?;
                }
                for (parameter, default) in definition.parameters.iter().skip(given) {
                    let value = match (named.iter().position(|(name, _)| name == parameter), default) {
                        (Some(index), _) => named.remove(index).1,
                        (None, Some(default)) => machine.evaluate(default)?,
                        (None, None) => Value::undefined(parameter),
                    };
                    machine.define(parameter, value)?;
                }
                machine.define_special(&definition, extra, &mut named)?;
                if let Some((unknown, _)) = named.first() {
                    return Err(fault(format!("the macro `{name}` takes no argument `{unknown}`")));
                }
                machine.body(&definition.body)
            })
        })?;
        Ok(Value::paid(text))
    }

    /// `varargs`, `kwargs` and `caller`, where the macro names them.
    fn define_special(
        &mut self,
        definition: &Macro,
        extra: Vec<Value>,
        named: &mut Vec<(Arc<str>, Value)>,
    ) -> Result<(), Fault> {
        if definition.takes_caller {
            let caller = named.iter().position(|(name, _)| &**name == "caller");
            let caller = caller.map_or(Value::undefined("caller"), |index| named.remove(index).1);
            self.define(&"caller".into(), caller)?;
        }
        if definition.takes_named {
            let entries = named.drain(..).map(|(name, value)| (Value::Str(name), value)).collect();
            let value = Value::dict(entries, &self.budget)?;
            self.define(&"kwargs".into(), value)?;
        }
        if definition.takes_positional {
            let value = Value::list(Kind::Tuple, extra, &self.budget)?;
            self.define(&"varargs".into(), value)
        } else if extra.is_empty() {
            Ok(())
        } else {
            let count = definition.parameters.len();
            Err(fault(format!("the macro `{}` takes {count} arguments at most", definition.name)))
        }
    }

    pub(super) fn args(&mut self, given: &Given) -> Result<Args, Fault> {
        let mut args = Args::default();
        for value in &given.positional {
            args.positional.push(self.evaluate(value)?);
        }
        if let Some(more) = &given.more_positional {
            let more = self.evaluate(more)?;
            args.positional.extend(more.items(&self.budget)?);
        }
        for (name, value) in &given.named {
            args.named.push((name.clone(), self.evaluate(value)?));
        }
        if let Some(more) = &given.more_named {
            let more = self.evaluate(more)?;
            let Value::Dict(dict) = more else {
                return Err(fault("after ** stands something other than a dict"));
            };
            for (key, value) in &dict.entries {
                let Value::Str(key) = key else {
                    return Err(fault("the keys of **arguments must be strings"));
                };
                args.named.push((key.clone(), value.clone()));
            }
        }
        Ok(args)
    }
}
