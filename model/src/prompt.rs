//! A conversation as token ids: control tokens are the template's own, and what messages spell stays text.

use std::collections::HashSet;

use crate::template::{ChatTemplate, Conversation, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Unicode's noncharacters in one block: no text means anything by them.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// A conversation as its model reads it.
#[derive(Debug)]
pub struct Prompt {
    text: String,
    /// The text once more, with a mark inside of each control token that a message spells.
    quoted: Option<(String, char)>,
}

impl Prompt {
    /// What the template writes.
    pub fn of(
        conversation: &Conversation,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<Self, TemplateError> {
        // As given first: some templates look for control tokens, and refuse them in their own words.
        let text = template.render(conversation)?;
        let spellings = Spellings::of(tokenizer);
        let mut is_spelled = false;
        let mut free: HashSet<char> = MARKS.collect();
        conversation.mapped(&mut |text| {
            is_spelled |= spellings.places(text).next().is_some();
            text.chars().filter(|char| MARKS.contains(char)).for_each(|char| {
                free.remove(&char);
            });
            None
        });
        if !is_spelled {
            return Ok(Prompt { text, quoted: None });
        }
        // A text that holds all of them is somebody's attack: without the first it is still that.
        let mark = MARKS.clone().find(|mark| free.contains(mark)).unwrap_or(*MARKS.start());
        let quoted = conversation.mapped(&mut |text| spellings.marked(text, mark));
        let quoted = template.render(&quoted)?;
        Ok(Prompt { text, quoted: Some((quoted, mark)) })
    }

    /// The text, in which spelled control tokens look like the template's.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text alone.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Its ids, by the tokenizer it was made for. The template writes the special tokens itself.
    pub fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
        match &self.quoted {
            None => tokenizer.encode(&self.text, false),
            Some((text, mark)) => tokenizer.encode_quoted(text, *mark),
        }
    }
}

/// How the control tokens are written.
struct Spellings<'t> {
    all: Vec<&'t str>,
    /// The bytes that one of them begins with.
    first: [bool; 256],
}

impl<'t> Spellings<'t> {
    fn of(tokenizer: &'t Tokenizer) -> Self {
        let all: Vec<&str> = tokenizer.control_spellings().collect();
        let mut first = [false; 256];
        all.iter()
            .filter_map(|spelling| spelling.bytes().next())
            .for_each(|byte| first[byte as usize] = true);
        Spellings { all, first }
    }

    /// Where in the text one of them begins.
    fn places<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let starts = text.bytes().enumerate().filter(|(_, byte)| self.first[*byte as usize]);
        starts.map(|(place, _)| place).filter(|&place| {
            let rest = &text.as_bytes()[place..];
            self.all.iter().any(|spelling| rest.starts_with(spelling.as_bytes()))
        })
    }

    /// The text with a mark behind the first letter of each, where there is one.
    fn marked(&self, text: &str, mark: char) -> Option<String> {
        let mut marked = String::new();
        let mut done = 0;
        for place in self.places(text) {
            let behind = place + text[place..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&text[done..behind]);
            marked.push(mark);
            done = behind;
        }
        if done == 0 {
            return None;
        }
        marked.push_str(&text[done..]);
        Some(marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::harmony::tests::with_added;
    use crate::template::Data;

    const TEMPLATE: &str = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}";

    fn tokenizer() -> Tokenizer {
        with_added(&["<s>", "</s>"], true)
    }

    fn prompt(content: &str) -> Prompt {
        let (template, tokenizer) = (ChatTemplate::from_text(TEMPLATE).unwrap(), tokenizer());
        let conversation = Conversation::new(vec![Data::message("user", content)]);
        Prompt::of(&conversation, &template, &tokenizer).unwrap()
    }

    #[test]
    fn what_a_message_spells_stays_text() {
        let tokenizer = tokenizer();
        let (begin, end) = (tokenizer.id("<s>").unwrap(), tokenizer.id("</s>").unwrap());
        for content in ["hello", "a </s> b", "</s>", "<s><s>user", "<</s>/s>", "é</s>é", "<\u{fdd0}s> <s>"]
        {
            let prompt = prompt(content);
            let ids = prompt.ids(&tokenizer).unwrap();
            let count = |id: u32| ids.iter().filter(|&&found| found == id).count();
            assert_eq!((count(begin), count(end)), (1, 1), "{content}");
            assert_eq!(prompt.text(), format!("<s>user: {content}</s>"));
            assert_eq!(tokenizer.decode(&ids, false), prompt.text(), "{content}");
        }
    }

    #[test]
    fn other_text_is_as_it_was() {
        let tokenizer = tokenizer();
        for content in ["hello there", "", "  a <b> </ s>", "Ünïcode"] {
            let prompt = prompt(content);
            assert_eq!(prompt.ids(&tokenizer).unwrap(), tokenizer.encode(prompt.text(), false).unwrap());
        }
    }

    #[test]
    fn a_template_still_sees_what_it_refuses() {
        let source = "{% if '<s>' in messages[0].content %}{{ raise_exception('no') }}{% endif %}";
        let template = ChatTemplate::from_text(source).unwrap();
        let conversation = Conversation::new(vec![Data::message("user", "a <s>")]);
        let refused = Prompt::of(&conversation, &template, &tokenizer());
        assert!(matches!(refused, Err(TemplateError::Raised(_))));
    }
}
