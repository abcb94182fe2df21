//! Rust source read just well enough for the house rules: what is code, what is a string, what is a comment,
//! which lines are test code, where a function begins and ends.
//! It is not a parser: macros are seen as the words they are written with.

/// One file, taken apart.
pub(crate) struct Source {
    /// The text with comments and the contents of strings replaced by spaces; line breaks stay.
    pub(crate) code: String,
    /// String literals (not comments, not characters) with the line, from 1, where each begins.
    pub(crate) strings: Vec<(usize, String)>,
    /// By line, from 0: true inside an item under `#[cfg(test)]`.
    test: Vec<bool>,
}

/// A function with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    /// Line of the word `fn`, from 1.
    pub(crate) line: usize,
    /// Lines from `fn` to the closing brace.
    pub(crate) lines: usize,
}

impl Source {
    pub(crate) fn read(text: &str) -> Self {
        let mut reader = Reader { text, at: 0, line: 1, code: String::new(), strings: Vec::new() };
        while let Some(next) = reader.peek() {
            reader.step(next);
        }
        let (code, strings) = (reader.code, reader.strings);
        let test = test_lines(&code);
        Self { code, strings, test }
    }

    /// Whether a line, from 1, is test code.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.test.get(line - 1).copied().unwrap_or(false)
    }

    /// Identifiers and keywords with their lines, from 1.
    pub(crate) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().flat_map(|(number, line)| {
            let words = line.split(|c: char| !is_word(c)).filter(|word| !word.is_empty());
            words.map(move |word| (number + 1, word))
        })
    }

    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("fn ") {
            let starts_word = !self.code[..at].ends_with(is_word);
            let name: String = self.code[at + 3..].chars().take_while(|c| is_word(*c)).collect();
            if !starts_word || name.is_empty() {
                continue;
            }
            if let Some(end) = item_end(&self.code, at).filter(|end| self.code[..*end].ends_with('}')) {
                let line = line_of(&self.code, at);
                found.push(Function { name, line, lines: line_of(&self.code, end) - line + 1 });
            }
        }
        found
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    code: String,
    strings: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Takes `bytes` bytes of text as code.
    fn keep(&mut self, bytes: usize) {
        let taken = &self.text[self.at..self.at + bytes];
        self.line += taken.matches('\n').count();
        self.code.push_str(taken);
        self.at += bytes;
    }

    /// Takes `bytes` bytes of text as nothing: one space per character, line breaks stay.
    fn blank(&mut self, bytes: usize) {
        let taken = &self.text[self.at..self.at + bytes];
        self.line += taken.matches('\n').count();
        self.code.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.at += bytes;
    }

    fn step(&mut self, next: char) {
        let rest = self.rest();
        if rest.starts_with("//") {
            self.blank(rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            self.blank(block_comment(rest));
        } else if next == '"' {
            self.string();
        } else if next == '\'' {
            self.quote();
        } else if is_word(next) {
            self.word();
        } else {
            self.keep(next.len_utf8());
        }
    }

    /// A word, or the raw string that begins like one: `r"…"`, `br#"…"#`.
    fn word(&mut self) {
        let rest = self.rest();
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let hashes = rest[word..].len() - rest[word..].trim_start_matches('#').len();
        let is_raw = matches!(&rest[..word], "r" | "br" | "cr") && rest[word + hashes..].starts_with('"');
        if !is_raw {
            return self.keep(word);
        }
        let close = format!("\"{}", "#".repeat(hashes));
        let open = word + hashes + 1;
        let length = rest[open..].find(&close).unwrap_or(rest.len() - open);
        let content = rest[open..open + length].to_owned();
        let end = (open + length + close.len()).min(rest.len());
        self.strings.push((self.line, content));
        self.keep(word + hashes + 1);
        self.blank(length);
        self.keep(end - open - length);
    }

    fn string(&mut self) {
        let rest = self.rest();
        let mut escaped = false;
        let closing = rest[1..].find(|c| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        let length = closing.unwrap_or(rest.len() - 1);
        let content = rest[1..1 + length].to_owned();
        self.strings.push((self.line, content));
        self.keep(1);
        self.blank(length);
        self.keep(usize::from(closing.is_some()));
    }

    /// A character, or a lifetime, which has no closing quote.
    fn quote(&mut self) {
        let mut characters = self.rest().char_indices().skip(1);
        let first = characters.next().map(|(_, c)| c);
        let second = characters.next();
        match (first, second) {
            (Some('\\'), Some((escaped_at, c))) => {
                let after = escaped_at + c.len_utf8();
                let closing = self.rest()[after..].find('\'').map_or(after, |offset| after + offset + 1);
                self.blank(closing);
            }
            (Some(_), Some((closing, '\''))) => self.blank(closing + 1),
            _ => self.keep(1),
        }
    }
}

/// Length of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The line, from 1, of the byte `at`.
fn line_of(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

/// Where the item that begins at `at` ends: after its `;`, or after the brace that closes its body.
fn item_end(code: &str, at: usize) -> Option<usize> {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (offset, c) in code[at..].char_indices() {
        match c {
            '{' => braces += 1,
            '(' | '[' => others += 1,
            ')' | ']' => others = others.saturating_sub(1),
            '}' => {
                // A brace that this item did not open: its surroundings end, and so does it.
                braces = braces.checked_sub(1)?;
                if braces == 0 && others == 0 {
                    return Some(at + offset + 1);
                }
            }
            ';' if braces == 0 && others == 0 => return Some(at + offset + 1),
            _ => {}
        }
    }
    None
}

/// Marks the lines of items under `#[cfg(test)]` and `#[test]`, and whole files under `#![cfg(test)]`.
fn test_lines(code: &str) -> Vec<bool> {
    let lines = code.lines().count();
    let mut test = vec![false; lines];
    if code.contains("#![cfg(test)]") {
        return vec![true; lines];
    }
    for mark in ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(any(test", "#[test]"] {
        for (at, _) in code.match_indices(mark) {
            // The attribute's own brackets must not count as the item, nor those of the attributes after it.
            let Some(close) = code[at..].find(']') else {
                continue;
            };
            let end = item_end(code, at + close + 1).unwrap_or(code.len());
            let last = line_of(code, end).min(lines);
            for line in &mut test[line_of(code, at) - 1..last] {
                *line = true;
            }
        }
    }
    test
}
