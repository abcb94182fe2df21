//! A parsed template. Chains of operators are lists and not trees, so that only brackets and tags nest.

use std::sync::Arc;

use super::value::Value;

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) what: What,
}

pub(super) type Body = Vec<Statement>;

#[derive(Debug)]
pub(super) enum What {
    Text(Arc<str>),
    Print(Expr),
    If {
        branches: Vec<(Expr, Body)>,
        otherwise: Body,
    },
    For(Arc<For>),
    Set(Target, Expr),
    SetBlock {
        target: Target,
        filters: Vec<Step>,
        body: Body,
    },
    With {
        names: Vec<(Target, Expr)>,
        body: Body,
    },
    Macro(Arc<Macro>),
    /// `{% call(…) f(…) %}`: the expression, called with the body as `caller`.
    Call(Arc<Macro>, Expr),
    Filter(Vec<Step>, Body),
    /// A body in a scope of its own: `{% generation %}`.
    Scope(Body),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) condition: Option<Expr>,
    pub(super) is_recursive: bool,
    pub(super) body: Body,
    pub(super) otherwise: Body,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// `namespace.name`
    Field(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

/// Names with their defaults.
pub(super) type Parameters = Vec<(Arc<str>, Option<Expr>)>;

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Arc<str>,
    pub(super) parameters: Parameters,
    pub(super) body: Body,
    /// Whether the body names `varargs`, `kwargs`, `caller`: only then may a call bring more than the parameters.
    pub(super) takes_positional: bool,
    pub(super) takes_named: bool,
    pub(super) takes_caller: bool,
}

#[derive(Debug)]
pub(super) enum Expr {
    Constant(Value),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `then if condition else otherwise`
    Choice(Box<(Expr, Expr, Option<Expr>)>),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    /// Operators of one rank, from left to right.
    Chain(Box<Expr>, Vec<(Operator, Expr)>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Join(Vec<Expr>),
    Path(Box<Expr>, Vec<Step>),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

/// What follows a value: `.name`, `[…]`, `(…)`, `|filter`, `is test`.
#[derive(Debug)]
pub(super) enum Step {
    Attribute(Arc<str>),
    Item(Expr),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Given),
    Filter(Arc<str>, Given),
    Test {
        name: Arc<str>,
        given: Given,
        negated: bool,
    },
    /// A filter or test that nobody knows: an error where it is reached, as in Jinja, and not where it is skipped.
    Unknown(String),
}

/// The arguments of a call as written.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Arc<str>, Expr)>,
    /// `*list`, `**dict`
    pub(super) more_positional: Option<Box<Expr>>,
    pub(super) more_named: Option<Box<Expr>>,
}
