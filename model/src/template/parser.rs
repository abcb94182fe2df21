//! Tokens to syntax: statements and tags. Expressions are in `expressions.rs`.

use std::sync::Arc;

use super::lexer::{Kind, Token, tokens};
use super::syntax::{Body, Expr, For, Macro, Parameters, Statement, Step, Target, What};
use super::{Fault, fault};

/// Brackets and tags inside one another. The parser calls itself, and a stack is finite.
const DEPTH_MAX: usize = 64;

/// A whole template, or the line and the reason.
pub(super) fn parse(source: &str) -> Result<Body, (u32, Fault)> {
    let mut parser = Parser { tokens: tokens(source)?, place: 0, depth: 0, seen: Vec::new() };
    let parsed = parser.body(&[]);
    match parsed {
        Ok((body, _)) => Ok(body),
        Err(reason) => Err((parser.line(), reason)),
    }
}

pub(super) struct Parser {
    tokens: Vec<Token>,
    place: usize,
    depth: usize,
    /// For each macro that is open, which of its special names were met.
    pub(super) seen: Vec<[bool; 3]>,
}

/// The names that let a macro take more than its parameters.
pub(super) const SPECIAL: [&str; 3] = ["varargs", "kwargs", "caller"];

impl Parser {
    fn line(&self) -> u32 {
        let token = self.tokens.get(self.place).or(self.tokens.last());
        token.map_or(1, |token| token.line)
    }

    pub(super) fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.place).map(|token| &token.kind)
    }

    fn peek_second(&self) -> Option<&Kind> {
        self.tokens.get(self.place + 1).map(|token| &token.kind)
    }

    pub(super) fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get_mut(self.place)?;
        self.place += 1;
        Some(std::mem::replace(&mut token.kind, Kind::BlockEnd))
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Kind::Operator(found)) if *found == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if **found == *name)
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let is_there = self.is_operator(operator);
        self.place += usize::from(is_there);
        is_there
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let is_there = self.is_name(name);
        self.place += usize::from(is_there);
        is_there
    }

    pub(super) fn expect_operator(&mut self, operator: &str) -> Result<(), Fault> {
        if self.skip_operator(operator) { Ok(()) } else { Err(self.expected(&format!("`{operator}`"))) }
    }

    pub(super) fn expect_name(&mut self) -> Result<Arc<str>, Fault> {
        match self.peek() {
            Some(Kind::Name(name)) => {
                let name = name.clone();
                self.place += 1;
                Ok(name)
            }
            _ => Err(self.expected("a name")),
        }
    }

    pub(super) fn expected(&self, what: &str) -> Fault {
        let found = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Kind::Text(_)) => "text".to_owned(),
            Some(Kind::VariableBegin) => "`{{`".to_owned(),
            Some(Kind::VariableEnd) => "`}}`".to_owned(),
            Some(Kind::BlockBegin) => "`{%`".to_owned(),
            Some(Kind::BlockEnd) => "`%}`".to_owned(),
            Some(Kind::Name(name)) => format!("`{name}`"),
            Some(Kind::String(_)) => "a string".to_owned(),
            Some(Kind::Integer(_) | Kind::Float(_)) => "a number".to_owned(),
            Some(Kind::Operator(operator)) => format!("`{operator}`"),
        };
        fault(format!("expected {what}, found {found}"))
    }

    /// Runs `parse` one level further in.
    pub(super) fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if self.depth == DEPTH_MAX {
            return Err(Fault::Limit(format!("brackets and tags nest deeper than {DEPTH_MAX}")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Statements up to one of the tags `ends`, whose name is taken; the end of the template where there are none.
    fn body(&mut self, ends: &[&'static str]) -> Result<(Body, &'static str), Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.peek() {
                None if ends.is_empty() => return Ok((body, "")),
                None => return Err(fault(format!("the template ends where {{% {} %}} is missing", ends[0]))),
                Some(Kind::BlockBegin) => {
                    self.place += 1;
                    let name = self.expect_name()?;
                    if let Some(end) = ends.iter().find(|end| **end == &*name) {
                        return Ok((body, end));
                    }
                    let what = self.nested(|parser| parser.statement(&name))?;
                    body.push(Statement { line, what });
                    continue;
                }
                _ => {}
            }
            let what = match self.next() {
                Some(Kind::Text(text)) => What::Text(text.into()),
                _ => {
                    let value = self.tuple(true, &[])?;
                    match self.next() {
                        Some(Kind::VariableEnd) => What::Print(value),
                        _ => {
                            self.place -= 1;
                            return Err(self.expected("`}}`"));
                        }
                    }
                }
            };
            body.push(Statement { line, what });
        }
    }

    fn end_tag(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(Kind::BlockEnd) => {
                self.place += 1;
                Ok(())
            }
            _ => Err(self.expected("`%}`")),
        }
    }

    /// A body with nothing between its tags but statements.
    fn plain_body(&mut self, end: &'static str) -> Result<Body, Fault> {
        self.end_tag()?;
        let (body, _) = self.body(&[end])?;
        self.end_tag()?;
        Ok(body)
    }

    fn statement(&mut self, name: &str) -> Result<What, Fault> {
        match name {
            "if" => self.condition(),
            "for" => self.repetition(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => self.macro_definition(),
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filters(true)?;
                Ok(What::Filter(filters, self.plain_body("endfilter")?))
            }
            "generation" => Ok(What::Scope(self.plain_body("endgeneration")?)),
            "break" | "continue" => {
                self.end_tag()?;
                Ok(if name == "break" { What::Break } else { What::Continue })
            }
            "include" | "import" | "from" | "extends" | "block" => Err(fault(format!(
                "{{% {name} %}} is not for chat templates, which are one file; write its text here"
            ))),
            _ => Err(fault(format!("there is no tag {{% {name} %}}, or it stands where it has no meaning"))),
        }
    }

    fn condition(&mut self) -> Result<What, Fault> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            self.end_tag()?;
            let (body, end) = self.body(&["endif", "elif", "else"])?;
            branches.push((condition, body));
            if end == "elif" {
                continue;
            }
            let otherwise = if end == "else" {
                self.plain_body("endif")?
            } else {
                self.end_tag().map(|()| Vec::new())?
            };
            return Ok(What::If { branches, otherwise });
        }
    }

    fn repetition(&mut self) -> Result<What, Fault> {
        let target = self.targets("in")?;
        if !self.skip_name("in") {
            return Err(self.expected("`in`"));
        }
        let items = self.tuple(false, &["recursive", "if"])?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        self.end_tag()?;
        let (body, end) = self.body(&["endfor", "else"])?;
        let otherwise =
            if end == "else" { self.plain_body("endfor")? } else { self.end_tag().map(|()| Vec::new())? };
        Ok(What::For(Arc::new(For { target, items, condition, is_recursive, body, otherwise })))
    }

    fn set(&mut self) -> Result<What, Fault> {
        let target = self.targets("")?;
        if self.skip_operator("=") {
            let value = self.tuple(true, &[])?;
            self.end_tag()?;
            return Ok(What::Set(target, value));
        }
        let filters = self.filters(false)?;
        Ok(What::SetBlock { target, filters, body: self.plain_body("endset")? })
    }

    fn with(&mut self) -> Result<What, Fault> {
        let mut names = Vec::new();
        while !matches!(self.peek(), Some(Kind::BlockEnd)) {
            if !names.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target()?;
            self.expect_operator("=")?;
            names.push((target, self.expression()?));
        }
        Ok(What::With { names, body: self.plain_body("endwith")? })
    }

    fn macro_definition(&mut self) -> Result<What, Fault> {
        let name = self.expect_name()?;
        let parameters = self.parameters()?;
        Ok(What::Macro(self.macro_body(name, parameters, "endmacro")?))
    }

    fn macro_body(
        &mut self,
        name: Arc<str>,
        parameters: Parameters,
        end: &'static str,
    ) -> Result<Arc<Macro>, Fault> {
        self.seen.push([false; 3]);
        let body = self.plain_body(end);
        let [takes_positional, takes_named, takes_caller] = self.seen.pop().unwrap_or_default();
        let body = body?;
        Ok(Arc::new(Macro { name, parameters, body, takes_positional, takes_named, takes_caller }))
    }

    fn call_block(&mut self) -> Result<What, Fault> {
        let parameters = if self.is_operator("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(&call, Expr::Path(_, steps) if matches!(steps.last(), Some(Step::Call(_)))) {
            return Err(fault("{% call %} needs a call of a macro: {% call name() %}"));
        }
        Ok(What::Call(self.macro_body("caller".into(), parameters, "endcall")?, call))
    }

    fn parameters(&mut self) -> Result<Parameters, Fault> {
        self.expect_operator("(")?;
        let mut parameters = Vec::new();
        while !self.skip_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_name()?;
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// `a`, `a.b`, `a, b`, `(a, b)`: what is assigned to.
    fn targets(&mut self, end: &str) -> Result<Target, Fault> {
        let first = self.target()?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_operator(",") {
            if self.is_operator("=") || self.is_name(end) {
                break;
            }
            all.push(self.target()?);
        }
        Ok(Target::Tuple(all))
    }

    fn target(&mut self) -> Result<Target, Fault> {
        if self.skip_operator("(") {
            let inner = self.nested(|parser| parser.targets(""))?;
            self.expect_operator(")")?;
            return Ok(inner);
        }
        let is_field = matches!(self.peek_second(), Some(Kind::Operator(".")));
        let name = self.expect_name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
            return Err(fault(format!("`{name}` cannot be assigned to")));
        }
        if is_field && self.skip_operator(".") {
            return Ok(Target::Field(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }

    /// `upper|trim` of `{% filter upper|trim %}` (where the first has no bar before it) and `{% set x|upper %}`.
    fn filters(&mut self, begins: bool) -> Result<Vec<Step>, Fault> {
        let mut filters = Vec::new();
        if begins {
            filters.push(self.filter()?);
        }
        while self.skip_operator("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }
}
