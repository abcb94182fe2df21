//! A template's source as tokens, with Jinja's rules for white space around tags (`trim_blocks`, `lstrip_blocks`).
//!
//! It does not know what the tokens mean; that is `parser.rs`.

use std::sync::Arc;

use super::text::{is_space, trim_end};
use super::{Fault, fault};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Text between tags, never empty.
    Text(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    String(Arc<str>),
    Integer(i128),
    Float(f64),
    Operator(&'static str),
}

#[derive(Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: u32,
}

/// The longer ones first.
const OPERATORS: [&str; 26] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// All tokens, or the line and the reason.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, (u32, Fault)> {
    let source = normal_lines(source);
    let mut lexer = Lexer { source: &source, place: 0, line: 1, tokens: Vec::new(), line_starting: true };
    match lexer.run() {
        Ok(()) => Ok(lexer.tokens),
        Err(reason) => Err((lexer.line, reason)),
    }
}

/// `\n` for every kind of line end; one at the very end does not count.
fn normal_lines(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

struct Lexer<'s> {
    source: &'s str,
    place: usize,
    line: u32,
    tokens: Vec<Token>,
    /// Whether what was read last ended a line: white space before a block then belongs to the block.
    line_starting: bool,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.place..]
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.place..self.place + bytes];
        self.line += passed.bytes().filter(|&byte| byte == b'\n').count() as u32;
        if !passed.is_empty() {
            self.line_starting = passed.ends_with('\n');
        }
        self.place += bytes;
    }

    fn run(&mut self) -> Result<(), Fault> {
        loop {
            let rest = self.rest();
            let found = rest
                .match_indices('{')
                .find(|(at, _)| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
            let Some((at, _)) = found else {
                if !rest.is_empty() {
                    self.push(Kind::Text(rest.to_owned()));
                }
                return Ok(());
            };
            self.text_before_tag(at, rest.as_bytes()[at + 1] == b'{');
            match self.rest().as_bytes()[1] {
                b'#' => self.comment()?,
                b'%' => match self.raw_begin() {
                    Some(bytes) => self.raw(bytes)?,
                    None => self.tag(Kind::BlockBegin, Kind::BlockEnd)?,
                },
                _ => self.tag(Kind::VariableBegin, Kind::VariableEnd)?,
            }
        }
    }

    /// Takes the text up to a tag, less the white space that the tag claims.
    fn text_before_tag(&mut self, length: usize, is_variable: bool) {
        let kept = self.kept(length, is_variable);
        if !kept.is_empty() {
            self.push(Kind::Text(kept.to_owned()));
        }
        self.advance(length);
    }

    fn kept(&self, length: usize, is_variable: bool) -> &'s str {
        let text = &self.rest()[..length];
        match self.rest().as_bytes().get(length + 2) {
            Some(b'-') => trim_end(text),
            Some(b'+') => text,
            _ if is_variable => text,
            _ => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let strips = (line > 0 || self.line_starting) && text[line..].chars().all(is_space);
                if strips { &text[..line] } else { text }
            }
        }
    }

    /// The end of a block or comment at the beginning of `rest`: how many bytes it takes.
    fn end(rest: &str, mark: &str, takes_line: bool) -> Option<usize> {
        if let Some(after) = rest.strip_prefix(mark) {
            return Some(mark.len() + usize::from(takes_line && after.starts_with('\n')));
        }
        if takes_line && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(mark)) {
            return Some(mark.len() + 1);
        }
        let after = rest.strip_prefix('-')?.strip_prefix(mark)?;
        let spaces = after.len() - after.trim_start_matches(is_space).len();
        Some(1 + mark.len() + spaces)
    }

    fn comment(&mut self) -> Result<(), Fault> {
        let rest = self.rest();
        let signed = matches!(rest.as_bytes().get(2), Some(b'-' | b'+')) && !rest[3..].starts_with("}");
        let begin = if signed { 3 } else { 2 };
        let Some(mark) = rest[begin..].find("#}") else {
            return Err(fault("a comment begins with {# and does not end; write #} after it"));
        };
        let mut at = begin + mark;
        if at > begin && matches!(rest.as_bytes()[at - 1], b'-' | b'+') {
            at -= 1;
        }
        let end = Self::end(&rest[at..], "#}", true).unwrap_or(2);
        self.advance(at + end);
        Ok(())
    }

    /// The length of `{% raw %}` where it stands here.
    fn raw_begin(&self) -> Option<usize> {
        let rest = self.rest();
        let inside = rest[2..].strip_prefix(['-', '+']).unwrap_or(&rest[2..]).trim_start_matches(is_space);
        let after = inside.strip_prefix("raw")?.trim_start_matches(is_space);
        let bytes = rest.len() - after.len();
        Some(bytes + Self::end(after, "%}", false)?)
    }

    fn raw(&mut self, begin: usize) -> Result<(), Fault> {
        self.advance(begin);
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let inside = rest[at + 2..].strip_prefix(['-', '+']).unwrap_or(&rest[at + 2..]);
            let Some(after) = inside.trim_start_matches(is_space).strip_prefix("endraw") else { continue };
            let after = after.trim_start_matches(is_space);
            let Some(end) = Self::end(after, "%}", true) else { continue };
            self.text_before_tag(at, false);
            self.advance(rest.len() - at - after.len() + end);
            return Ok(());
        }
        Err(fault("{% raw %} without {% endraw %}"))
    }

    fn tag(&mut self, begin: Kind, end: Kind) -> Result<(), Fault> {
        let (mark, takes_line) = if end == Kind::BlockEnd { ("%}", true) } else { ("}}", false) };
        self.push(begin);
        let sign = usize::from(matches!(self.rest().as_bytes().get(2), Some(b'-' | b'+')));
        self.advance(2 + sign);
        let mut open = Vec::new();
        loop {
            let rest = self.rest();
            let spaces = rest.len() - rest.trim_start_matches(is_space).len();
            if open.is_empty()
                && let Some(bytes) = Self::end(rest, mark, takes_line)
            {
                self.push(end);
                self.advance(bytes);
                return Ok(());
            }
            if spaces > 0 {
                self.advance(spaces);
                continue;
            }
            if rest.is_empty() {
                return Err(fault(format!("a tag does not end; write {mark} after it")));
            }
            let bytes = self.token(&mut open)?;
            self.advance(bytes);
        }
    }

    /// Pushes the token at this place and says how long it is.
    fn token(&mut self, open: &mut Vec<char>) -> Result<usize, Fault> {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or(' ');
        if first == '"' || first == '\'' {
            return self.string(first);
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == '_' || first.is_alphabetic() {
            let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            self.push(Kind::Name(rest[..end].into()));
            return Ok(end);
        }
        let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) else {
            return Err(fault(format!("the character {first:?} has no meaning here")));
        };
        match operator {
            "(" => open.push(')'),
            "[" => open.push(']'),
            "{" => open.push('}'),
            ")" | "]" | "}" if open.pop() != operator.chars().next() => {
                return Err(fault(format!("`{operator}` closes nothing")));
            }
            _ => {}
        }
        self.push(Kind::Operator(operator));
        Ok(operator.len())
    }

    fn number(&mut self) -> Result<usize, Fault> {
        let rest = self.rest();
        let radix = match rest.get(..2).map(str::to_lowercase).as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        if radix != 10 {
            let end =
                rest[2..].find(|c: char| c != '_' && !c.is_digit(radix)).map_or(rest.len(), |at| at + 2);
            let value = i128::from_str_radix(&rest[2..end].replace('_', ""), radix);
            self.push(Kind::Integer(value.map_err(|_| fault("a number cannot be read"))?));
            return Ok(end);
        }
        let digits = |text: &str| text.find(|c: char| c != '_' && !c.is_ascii_digit()).unwrap_or(text.len());
        let mut end = digits(rest);
        let mut is_float = false;
        let begins_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        if rest[end..].starts_with('.') && begins_digit(&rest[end + 1..]) {
            is_float = true;
            end += 1 + digits(&rest[end + 1..]);
        }
        if let Some(exponent) = rest[end..].strip_prefix(['e', 'E']) {
            let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if begins_digit(unsigned) {
                is_float = true;
                end = rest.len() - unsigned.len() + digits(unsigned);
            }
        }
        let text = rest[..end].replace('_', "");
        let kind = match is_float {
            true => text.parse().ok().map(Kind::Float),
            false => text.parse().ok().map(Kind::Integer),
        };
        self.push(kind.ok_or_else(|| fault("a number is too large"))?);
        Ok(end)
    }

    fn string(&mut self, quote: char) -> Result<usize, Fault> {
        let rest = self.rest();
        let mut text = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.push(Kind::String(text.into()));
                return Ok(at + 1);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((at, c)) = chars.next() else { break };
            let taken = escape(&rest[at..], c, &mut text)?;
            for _ in 1..taken {
                chars.next();
            }
        }
        Err(fault("a string does not end; write its closing quote"))
    }
}

/// Writes what the escape beginning with `c` stands for; says how many characters it has. Python's rules.
fn escape(rest: &str, c: char, text: &mut String) -> Result<usize, Fault> {
    let simple = match c {
        '\n' => return Ok(1),
        '\\' | '\'' | '"' => c,
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        'x' | 'u' | 'U' => {
            let digits = match c {
                'x' => 2,
                'u' => 4,
                _ => 8,
            };
            let code = rest.get(1..1 + digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            let Some(value) = code.and_then(char::from_u32) else {
                return Err(fault(format!(
                    "\\{c} in a string is not followed by {digits} digits of a character"
                )));
            };
            text.push(value);
            return Ok(1 + digits);
        }
        '0'..='7' => {
            let digits = rest.chars().take(3).take_while(|c| c.is_digit(8)).count();
            let code = u32::from_str_radix(&rest[..digits], 8).unwrap_or(0);
            text.push(char::from_u32(code).unwrap_or('\u{fffd}'));
            return Ok(digits);
        }
        _ => {
            text.push('\\');
            c
        }
    };
    text.push(simple);
    Ok(1)
}
