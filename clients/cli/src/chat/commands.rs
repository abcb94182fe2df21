//! What can be typed into a chat beside messages.

use std::path::PathBuf;

/// A command, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Clear,
    Exit,
    Save { file: PathBuf, replace: bool },
    Load(PathBuf),
    System(String),
    Undo,
    Retry,
    Set { key: String, value: Option<String> },
    Stats,
}

/// All commands: name, what follows it, what it does.
pub(super) const COMMANDS: &[(&str, &str, &str)] = &[
    ("/help", "", "shows this"),
    ("/clear", "", "begins a new conversation; the system message stays"),
    ("/exit", "", "ends the chat, as do /quit and Ctrl-D"),
    ("/save", "[!] FILE", "writes the conversation as JSON messages; ! replaces a file"),
    ("/load", "FILE", "goes on with a conversation from a file"),
    ("/system", "TEXT", "sets the system message; without TEXT takes it away"),
    ("/undo", "", "forgets the last message and its answer"),
    ("/retry", "", "answers the last message anew"),
    ("/set", "KEY VALUE", "changes a sampling flag, such as: /set temperature 0.3"),
    ("/stats", "", "tells tokens in use and how fast the last answer was"),
    ("/quit", "", ""),
];

/// Words that work without a slash, because people bring them from elsewhere.
const BARE: [&str; 4] = ["clear", "exit", "help", "quit"];

/// A command, or what is wrong with it; `None` for a message.
pub(super) fn parse(input: &str) -> Option<Result<Command, String>> {
    let bare = BARE.iter().find(|bare| **bare == input.trim()).map(|bare| format!("/{bare}"));
    let input = bare.as_deref().unwrap_or(input);
    let (name, rest) = match input.split_once(char::is_whitespace) {
        Some((name, rest)) => (name, rest.trim()),
        None => (input, ""),
    };
    // A message may begin with a path.
    let is_command = name.starts_with('/') && !name[1..].contains('/') && name.len() > 1;
    is_command.then(|| command(name, rest))
}

fn command(name: &str, rest: &str) -> Result<Command, String> {
    let file = |text: &str| match text {
        "" => Err(format!("{name}: FILE is missing; write: {name} chat.json")),
        text => Ok(PathBuf::from(text)),
    };
    let command = match name {
        "/system" => return Ok(Command::System(rest.to_owned())),
        "/load" => return Ok(Command::Load(file(rest)?)),
        "/save" => {
            let forced = rest.strip_prefix('!').map(str::trim_start);
            return Ok(Command::Save { file: file(forced.unwrap_or(rest))?, replace: forced.is_some() });
        }
        "/set" => {
            // As on the command line, `=` may stand between the two.
            let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
            let (key, value) = rest.split_at(end);
            if key.is_empty() {
                return Err("/set: KEY is missing; write, for example: /set temperature 0.3".to_owned());
            }
            let value = value.strip_prefix('=').unwrap_or(value).trim();
            let value = (!value.is_empty()).then(|| value.to_owned());
            return Ok(Command::Set { key: key.to_owned(), value });
        }
        "/help" | "/?" => Command::Help,
        "/clear" => Command::Clear,
        "/exit" | "/quit" => Command::Exit,
        "/undo" => Command::Undo,
        "/retry" => Command::Retry,
        "/stats" => Command::Stats,
        unknown => {
            let near = nearest(unknown);
            return Err(format!(
                "{unknown} is not a command; did you mean {near}? /help lists all; a space before it makes it a message"
            ));
        }
    };
    match rest {
        "" => Ok(command),
        _ => Err(format!(
            "{name} takes nothing after it, found {rest:?}; a space before it makes it a message"
        )),
    }
}

fn nearest(unknown: &str) -> &'static str {
    let names = COMMANDS.iter().map(|(name, ..)| *name);
    names.min_by_key(|name| distance(name, unknown)).unwrap_or("/help")
}

/// How many letters must be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(40).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        let file = PathBuf::from("a b.json");
        for (input, expected) in [
            ("/clear", Command::Clear),
            ("clear", Command::Clear),
            (" exit ", Command::Exit),
            ("/quit", Command::Exit),
            ("/save a b.json", Command::Save { file: file.clone(), replace: false }),
            ("/save ! a b.json", Command::Save { file: file.clone(), replace: true }),
            ("/save !a b.json", Command::Save { file, replace: true }),
            ("/system Be\nbrief.", Command::System("Be\nbrief.".to_owned())),
            ("/set top_p 0.5", Command::Set { key: "top_p".to_owned(), value: Some("0.5".to_owned()) }),
            ("/set top_p=0.5", Command::Set { key: "top_p".to_owned(), value: Some("0.5".to_owned()) }),
            ("/set stop = ", Command::Set { key: "stop".to_owned(), value: Some("=".to_owned()) }),
            ("/?", Command::Help),
            ("help", Command::Help),
            ("/set greedy", Command::Set { key: "greedy".to_owned(), value: None }),
        ] {
            assert_eq!(parse(input), Some(Ok(expected)), "{input:?}");
        }
        for message in ["", "hello", "clear the table", "/usr/bin is a folder", " /clear", "/", "// comment"]
        {
            assert_eq!(parse(message), None, "{message:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_answered_with_the_nearest() {
        let said = |input: &str| parse(input).expect("a command").expect_err("a wrong one");
        assert!(said("/claer").contains("/clear"));
        assert!(said("/sav x").contains("/save"));
        assert!(said("/save").contains("FILE is missing"));
        assert!(said("/save !").contains("FILE is missing"));
        assert!(said("/clear now").contains("nothing after it"));
        assert!(said("/set").contains("KEY"));
    }
}
