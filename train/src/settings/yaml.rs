//! YAML as a tree in which everything knows its line. What the words mean is decided where the keys are known.
//!
//! JSON is YAML, so `.json` files take the same way. Anchors and tags are refused: no such file needs them, and a few
//! lines of them can stand for gigabytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bantam_model::foreign::clipped;
use saphyr_parser::{Event, Parser, ScalarStyle};

/// More things than a file of settings ever holds.
const NODES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 16;

/// Something, and the line it begins in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// Words, and whether they stood without quotes, so that they may be a number or nothing.
    Scalar(String, bool),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Content {
    /// As messages name it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Content::Scalar(..) => "a word",
            Content::List(_) => "a list",
            Content::Map(_) => "a block of keys",
        }
    }
}

/// Why a text is no such tree.
#[derive(Debug, PartialEq)]
pub(crate) struct Broken {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// Reads a text; an empty one is an empty block.
pub(crate) fn parse(text: &str) -> Result<Node, Broken> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // A library that stops in a strange file must not end the process.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        Builder { parser: Parser::new_from_str(text), nodes: 0 }.document()
    }));
    parsed.unwrap_or_else(|_| {
        Err(Broken { line: 1, reason: "something that the YAML library stops at".to_owned() })
    })
}

struct Builder<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    nodes: usize,
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<(Event<'t>, usize), Broken> {
        match self.parser.next() {
            None => Err(Broken { line: 1, reason: "an end before its time".to_owned() }),
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(Broken { line: error.marker().line(), reason: clipped(error.info()) }),
        }
    }

    fn document(mut self) -> Result<Node, Broken> {
        let mut root = None;
        loop {
            let (event, line) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_none() => {
                    let (event, line) = self.next()?;
                    root = Some(self.node(event, line, 0)?);
                }
                Event::DocumentStart(_) => {
                    return Err(Broken { line, reason: "a second document".to_owned() });
                }
                _ => {}
            }
        }
        Ok(root.unwrap_or(Node { line: 1, content: Content::Map(Vec::new()) }))
    }

    fn node(&mut self, event: Event<'t>, line: usize, depth: usize) -> Result<Node, Broken> {
        let broken = |reason: &str| Err(Broken { line, reason: reason.to_owned() });
        self.nodes += 1;
        if self.nodes > NODES_MAX || depth > DEPTH_MAX {
            return broken("more than settings ever hold");
        }
        let content = match event {
            Event::Alias(_) => {
                return broken("an alias (*name), which settings cannot have: write what it stands for");
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return broken("a tag (!name), which settings cannot have");
            }
            Event::Scalar(words, style, ..) => {
                Content::Scalar(words.into_owned(), style == ScalarStyle::Plain)
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break Content::List(items),
                        (event, line) => items.push(self.node(event, line, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => Content::Map(self.entries(depth)?),
            _ => return broken("something that no settings have"),
        };
        Ok(Node { line, content })
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(String, Node)>, Broken> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let Content::Scalar(key, _) = self.node(event, line, depth + 1)?.content else {
                return Err(Broken { line, reason: "a key that is no word".to_owned() });
            };
            if let Some((_, first)) = entries.iter().find(|(known, _)| *known == key) {
                let reason =
                    format!("the key {} for the second time, after line {}", clipped(&key), first.line);
                return Err(Broken { line, reason });
            }
            let (event, value_line) = self.next()?;
            let mut value = self.node(event, value_line, depth + 1)?;
            // People look for the line of the key.
            value.line = line;
            entries.push((key, value));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    fn shown(node: &Node) -> String {
        match &node.content {
            Content::Scalar(words, true) => words.clone(),
            Content::Scalar(words, false) => format!("{words:?}"),
            Content::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Content::Map(entries) => {
                let entries =
                    entries.iter().map(|(key, node)| format!("{key}@{}={}", node.line, shown(node)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn trees_know_their_lines() {
        let text = "### model\na: 1e-4  # c\n\nb:\n  - x y\n  - \"2\"\nc: {d: null, e: }\nf: [1, two]\n";
        assert_eq!(
            shown(&parse(text).unwrap()),
            "{a@2=1e-4 b@4=[x y \"2\"] c@7={d@7=null e@7=} f@8=[1 two]}"
        );
        assert_eq!(shown(&parse("{\"a\": true}").unwrap()), "{a@1=true}");
        assert_eq!(shown(&parse("# nothing\n").unwrap()), "{}");
    }

    #[test]
    fn what_is_no_tree_has_a_line() {
        let check = |text: &str, line: usize, words: &str| {
            let broken = parse(text).unwrap_err();
            assert!(broken.line == line && broken.reason.contains(words), "{broken:?}");
        };
        check("a: 1\nb: *x\n", 2, "");
        check("a: &x 1\nb: *x\n", 2, "alias");
        check("a: !!python/object:os.system x\n", 1, "tag");
        check("a: 1\nb: 2\na: 3\n", 3, "after line 1");
        check("a: 1\n---\nb: 2\n", 2, "second document");
        check("[a]: 1\n", 1, "no word");
        check(&format!("a: {}{}", "[".repeat(40), "]".repeat(40)), 1, "");
    }
}
