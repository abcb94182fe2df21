//! Comma-separated values, as RFC 4180 has them: records of quoted or plain fields, with the line each begins in.
//!
//! Every field is text; nothing is guessed about numbers or dates.

/// A record: the line that it begins in, and its fields.
pub(super) type Record = (usize, Vec<String>);

/// The records of a text; blank lines are none. The error is the line of a quote that never ends.
pub(super) fn records(text: &str) -> Result<Vec<Record>, usize> {
    let mut records = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let start = line;
        let mut fields = Vec::new();
        loop {
            let (field, length) = field(rest).ok_or(start)?;
            line += rest[..length].matches('\n').count();
            fields.push(field);
            rest = &rest[length..];
            match rest.strip_prefix(',') {
                Some(behind) => rest = behind,
                None => break,
            }
        }
        let ended = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix(['\n', '\r']));
        if let Some(behind) = ended {
            rest = behind;
            line += 1;
        }
        if fields.len() > 1 || !fields[0].is_empty() {
            records.push((start, fields));
        }
    }
    Ok(records)
}

/// The first field and how many bytes it takes; `None` where its quote never ends. What stands between a closing quote
/// and the comma belongs to it.
fn field(text: &str) -> Option<(String, usize)> {
    let plain = |text: &str| text.find([',', '\n', '\r']).unwrap_or(text.len());
    if !text.starts_with('"') {
        let length = plain(text);
        return Some((text[..length].to_owned(), length));
    }
    let mut value = String::new();
    let mut at = 1;
    loop {
        let quote = at + text[at..].find('"')?;
        value.push_str(&text[at..quote]);
        at = quote + 1;
        if !text[at..].starts_with('"') {
            let tail = plain(&text[at..]);
            value.push_str(&text[at..at + tail]);
            return Some((value, at + tail));
        }
        value.push('"');
        at += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(usize, &[&str])]) {
        let found = records(text).unwrap();
        let found: Vec<(usize, Vec<&str>)> =
            found.iter().map(|(line, fields)| (*line, fields.iter().map(String::as_str).collect())).collect();
        let expected: Vec<(usize, Vec<&str>)> =
            expected.iter().map(|(line, fields)| (*line, fields.to_vec())).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn records_know_their_line() {
        check(
            "a,b\n1,2\r\n\n3,\"x\ny, \"\"z\"\"\"\n4,\n",
            &[(1, &["a", "b"]), (2, &["1", "2"]), (4, &["3", "x\ny, \"z\""]), (6, &["4", ""])],
        );
        check("\u{feff}a", &[(1, &["a"])]);
        check("", &[]);
        assert_eq!(records("a\n\"b"), Err(2));
    }
}
