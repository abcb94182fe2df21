//! Strings as Python sees them: white space, lines, words, repr, positions in characters.

/// What `str.isspace` says of a character; four control characters more than Unicode's property.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(super) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let breaks = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(breaks) {
        let width = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        found.push(&rest[..if keep_ends { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

/// `str.split()` and, with a number, `str.split(None, number)`.
pub(super) fn words(text: &str, splits_max: usize) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
    while !rest.is_empty() {
        if found.len() == splits_max {
            found.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        found.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    found
}

/// `str.rsplit(None, number)`, in reading order.
pub(super) fn words_from_right(text: &str, splits_max: usize) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), trim_end(text));
    while !rest.is_empty() {
        if found.len() == splits_max {
            found.push(rest);
            break;
        }
        let begin =
            rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
        found.push(&rest[begin..]);
        rest = trim_end(&rest[..begin]);
    }
    found.reverse();
    found
}

/// `str.title`: a letter after anything but a letter is a capital.
pub(super) fn title(text: &str) -> String {
    let (mut made, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        let is_cased = c.is_uppercase() || c.is_lowercase();
        match inside {
            true => made.extend(c.to_lowercase()),
            false => made.extend(c.to_uppercase()),
        }
        inside = is_cased;
    }
    made
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// `repr` of a string.
pub(super) fn write_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
}

/// Close to `str.isprintable`: Rust's own escaping asks nearly the same of Unicode's tables.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\u{7f}'..='\u{a0}' | '\u{ad}' => false,
        // Marks that combine are printable in Python and escaped in Rust.
        c if is_space(c) => false,
        c => c.escape_debug().len() == 1 || is_mark(c),
    }
}

fn is_mark(c: char) -> bool {
    // Rust escapes marks when asked for one character alone, and not inside a text.
    format!("a{c}").escape_debug().count() == 2
}

/// `repr` of a float.
pub(super) fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan".into()
        } else if value > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The place in bytes of a place in characters.
pub(super) fn byte_of(text: &str, character: usize) -> usize {
    if text.is_ascii() {
        return character.min(text.len());
    }
    text.char_indices().nth(character).map_or(text.len(), |(at, _)| at)
}

/// How many characters; quick where bytes are characters.
pub(super) fn length(text: &str) -> usize {
    text.chars().count()
}
