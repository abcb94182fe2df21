//! Tokens to syntax: expressions, with Jinja's ranks of operators.

use std::sync::Arc;

use super::lexer::Kind;
use super::parser::{Parser, SPECIAL};
use super::syntax::{Comparison, Expr, Given, Operator, Step};
use super::value::Value;
use super::{Fault, checks, fault, filters};

impl Parser {
    /// One expression, choices included.
    pub(super) fn expression(&mut self) -> Result<Expr, Fault> {
        self.nested(|parser| {
            let then = parser.any()?;
            if !parser.skip_name("if") {
                return Ok(then);
            }
            let condition = parser.any()?;
            let otherwise = if parser.skip_name("else") { Some(parser.expression()?) } else { None };
            let choice = Expr::Choice(Box::new((then, condition, otherwise)));
            // `a if b if c` without `else` between is read from the left.
            if !parser.is_name("if") {
                return Ok(choice);
            }
            Err(fault("two `if` in one expression need brackets"))
        })
    }

    /// One or more expressions between commas; `ends` are names that may follow a comma.
    pub(super) fn tuple(&mut self, has_choice: bool, ends: &[&str]) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let is_end = match self.peek() {
                None | Some(Kind::VariableEnd | Kind::BlockEnd | Kind::Operator(")")) => true,
                Some(Kind::Name(name)) => !items.is_empty() && ends.contains(&&**name),
                _ => false,
            };
            if is_end {
                break;
            }
            items.push(if has_choice { self.expression()? } else { self.nested(Self::any)? });
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, items.pop()) {
            (false, Some(item)) => Ok(item),
            (_, None) => Err(self.expected("an expression")),
            (true, Some(item)) => {
                items.push(item);
                Ok(Expr::Tuple(items))
            }
        }
    }

    fn any(&mut self) -> Result<Expr, Fault> {
        let mut items = vec![self.all()?];
        while self.skip_name("or") {
            items.push(self.all()?);
        }
        Ok(alone_or(items, Expr::Any))
    }

    fn all(&mut self) -> Result<Expr, Fault> {
        let mut items = vec![self.negation()?];
        while self.skip_name("and") {
            items.push(self.negation()?);
        }
        Ok(alone_or(items, Expr::All))
    }

    fn negation(&mut self) -> Result<Expr, Fault> {
        if self.skip_name("not") {
            let inner = self.nested(Self::negation)?;
            return Ok(Expr::Not(Box::new(inner)));
        }
        let first = self.sum()?;
        let mut others = Vec::new();
        while let Some(comparison) = self.comparison()? {
            others.push((comparison, self.sum()?));
        }
        Ok(if others.is_empty() { first } else { Expr::Compare(Box::new(first), others) })
    }

    fn comparison(&mut self) -> Result<Option<Comparison>, Fault> {
        let found = match self.peek() {
            Some(Kind::Operator("==")) => Comparison::Equal,
            Some(Kind::Operator("!=")) => Comparison::NotEqual,
            Some(Kind::Operator("<")) => Comparison::Less,
            Some(Kind::Operator("<=")) => Comparison::LessEqual,
            Some(Kind::Operator(">")) => Comparison::Greater,
            Some(Kind::Operator(">=")) => Comparison::GreaterEqual,
            Some(Kind::Name(name)) if &**name == "in" => Comparison::In,
            Some(Kind::Name(name)) if &**name == "not" => {
                self.next();
                if !self.skip_name("in") {
                    return Err(self.expected("`in`"));
                }
                return Ok(Some(Comparison::NotIn));
            }
            _ => return Ok(None),
        };
        self.next();
        Ok(Some(found))
    }

    fn sum(&mut self) -> Result<Expr, Fault> {
        self.chain(Self::join, |operator| match operator {
            "+" => Some(Operator::Add),
            "-" => Some(Operator::Subtract),
            _ => None,
        })
    }

    fn join(&mut self) -> Result<Expr, Fault> {
        let mut items = vec![self.product()?];
        while self.skip_operator("~") {
            items.push(self.product()?);
        }
        Ok(alone_or(items, Expr::Join))
    }

    fn product(&mut self) -> Result<Expr, Fault> {
        self.chain(Self::power, |operator| match operator {
            "*" => Some(Operator::Multiply),
            "/" => Some(Operator::Divide),
            "//" => Some(Operator::FloorDivide),
            "%" => Some(Operator::Remainder),
            _ => None,
        })
    }

    fn power(&mut self) -> Result<Expr, Fault> {
        self.chain(|parser| parser.unary(true), |operator| (operator == "**").then_some(Operator::Power))
    }

    fn chain(
        &mut self,
        operand: impl Fn(&mut Self) -> Result<Expr, Fault>,
        known: impl Fn(&str) -> Option<Operator>,
    ) -> Result<Expr, Fault> {
        let first = operand(self)?;
        let mut others = Vec::new();
        while let Some(operator) = match self.peek() {
            Some(Kind::Operator(operator)) => known(operator),
            _ => None,
        } {
            self.next();
            others.push((operator, operand(self)?));
        }
        Ok(if others.is_empty() { first } else { Expr::Chain(Box::new(first), others) })
    }

    /// A sign binds weaker than `.name` and stronger than a filter: `-x|abs` is `(-x)|abs`.
    fn unary(&mut self, has_filters: bool) -> Result<Expr, Fault> {
        let inner = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut steps = Vec::new();
        self.postfix(&mut steps)?;
        if has_filters {
            self.filters_and_tests(&mut steps)?;
        }
        Ok(if steps.is_empty() { inner } else { Expr::Path(Box::new(inner), steps) })
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        let constant = match self.peek() {
            Some(Kind::Name(name)) => {
                let name = name.clone();
                self.next();
                return Ok(self.name(name));
            }
            Some(Kind::String(first)) => {
                let mut text = String::from(&**first);
                self.next();
                // Strings side by side are one.
                while let Some(Kind::String(more)) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                return Ok(Expr::Constant(Value::paid(text)));
            }
            Some(Kind::Integer(value)) => Value::Int(*value),
            Some(Kind::Float(value)) => Value::Float(*value),
            Some(Kind::Operator("(")) => {
                self.next();
                if self.skip_operator(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let inner = self.nested(|parser| parser.tuple(true, &[]))?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            Some(Kind::Operator("[")) => {
                self.next();
                return self.nested(Self::list);
            }
            Some(Kind::Operator("{")) => {
                self.next();
                return self.nested(Self::dict);
            }
            _ => return Err(self.expected("an expression")),
        };
        self.next();
        Ok(Expr::Constant(constant))
    }

    fn name(&mut self, name: Arc<str>) -> Expr {
        let constant = match &*name {
            "true" | "True" => Value::Bool(true),
            "false" | "False" => Value::Bool(false),
            "none" | "None" => Value::None,
            special => {
                if let (Some(seen), Some(index)) =
                    (self.seen.last_mut(), SPECIAL.iter().position(|name| *name == special))
                {
                    seen[index] = true;
                }
                return Expr::Name(name);
            }
        };
        Expr::Constant(constant)
    }

    fn list(&mut self) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        while !self.skip_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator("]") {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        while !self.skip_operator("}") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_operator(":")?;
            items.push((key, self.expression()?));
        }
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, steps: &mut Vec<Step>) -> Result<(), Fault> {
        loop {
            if self.skip_operator(".") {
                match self.next() {
                    Some(Kind::Name(name)) => steps.push(Step::Attribute(name)),
                    Some(Kind::Integer(index)) => steps.push(Step::Item(Expr::Constant(Value::Int(index)))),
                    _ => return Err(fault("expected a name after `.`")),
                }
            } else if self.skip_operator("[") {
                let step = self.nested(Self::subscript)?;
                steps.push(step);
            } else if self.skip_operator("(") {
                let given = self.nested(Self::given)?;
                steps.push(Step::Call(given));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Result<Step, Fault> {
        let mut parts: [Option<Expr>; 3] = [None, None, None];
        let mut place = 0;
        loop {
            if self.skip_operator("]") {
                break;
            }
            if self.skip_operator(":") {
                place += 1;
                if place == 3 {
                    return Err(self.expected("`]`"));
                }
                continue;
            }
            if parts[place].is_some() {
                return Err(self.expected("`]`"));
            }
            parts[place] = Some(self.expression()?);
        }
        match (place, parts) {
            (0, [Some(item), _, _]) => Ok(Step::Item(item)),
            (0, _) => Err(fault("expected an index between [ and ]")),
            (_, parts) => Ok(Step::Slice(Box::new(parts))),
        }
    }

    /// The arguments of a call whose `(` is taken.
    fn given(&mut self) -> Result<Given, Fault> {
        let mut given = Given::default();
        let mut is_first = true;
        while !self.skip_operator(")") {
            if !std::mem::take(&mut is_first) {
                self.expect_operator(",")?;
                if self.skip_operator(")") {
                    break;
                }
            }
            if self.skip_operator("**") {
                given.more_named = Some(Box::new(self.expression()?));
            } else if self.skip_operator("*") {
                given.more_positional = Some(Box::new(self.expression()?));
            } else {
                let value = self.expression()?;
                match value {
                    Expr::Name(name) if self.skip_operator("=") => {
                        given.named.push((name, self.expression()?));
                    }
                    value if given.named.is_empty() => given.positional.push(value),
                    _ => return Err(fault("an argument without a name follows one with a name")),
                }
            }
        }
        Ok(given)
    }

    fn filters_and_tests(&mut self, steps: &mut Vec<Step>) -> Result<(), Fault> {
        loop {
            if self.skip_operator("|") {
                let filter = self.filter()?;
                steps.push(filter);
            } else if self.skip_name("is") {
                let test = self.test()?;
                steps.push(test);
            } else if self.skip_operator("(") {
                let given = self.nested(Self::given)?;
                steps.push(Step::Call(given));
            } else {
                return Ok(());
            }
        }
    }

    /// A filter whose `|` is taken.
    pub(super) fn filter(&mut self) -> Result<Step, Fault> {
        let name = self.expect_name()?;
        let mut unknown = None;
        if !filters::NAMES.contains(&&*name) {
            let known = filters::NAMES.join(", ");
            unknown = Some(format!("there is no filter `{name}`; there are: {known}"));
        }
        let given = if self.skip_operator("(") { self.nested(Self::given)? } else { Given::default() };
        Ok(unknown.map_or(Step::Filter(name, given), Step::Unknown))
    }

    /// A test whose `is` is taken.
    fn test(&mut self) -> Result<Step, Fault> {
        let negated = self.skip_name("not");
        let name = self.expect_name()?;
        let mut unknown = None;
        if !checks::NAMES.contains(&&*name) {
            let known = checks::NAMES.join(", ");
            unknown = Some(format!("there is no test `{name}`; there are: {known}"));
        }
        let begins_value = match self.peek() {
            Some(Kind::Name(name)) => {
                // The words that go on after a test without an argument.
                !["else", "or", "and", "is", "if", "in", "not", "recursive"].contains(&&**name)
            }
            Some(Kind::String(_) | Kind::Integer(_) | Kind::Float(_)) => true,
            Some(Kind::Operator(operator)) => ["(", "[", "{"].contains(operator),
            _ => false,
        };
        let mut given = Given::default();
        if self.skip_operator("(") {
            given = self.nested(Self::given)?;
        } else if begins_value {
            let inner = self.nested(Self::primary)?;
            let mut steps = Vec::new();
            self.postfix(&mut steps)?;
            given.positional.push(if steps.is_empty() { inner } else { Expr::Path(Box::new(inner), steps) });
        }
        Ok(unknown.map_or(Step::Test { name, given, negated }, Step::Unknown))
    }
}

fn alone_or(mut items: Vec<Expr>, many: impl Fn(Vec<Expr>) -> Expr) -> Expr {
    match items.pop() {
        Some(item) if items.is_empty() => item,
        item => {
            items.extend(item);
            many(items)
        }
    }
}
