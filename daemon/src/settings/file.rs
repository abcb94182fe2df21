//! The settings' file: TOML cut into keys with their items and lines. It knows no key; `mod.rs` does.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::SettingsError;

/// Nobody writes more; a wrong path (a checkpoint, a device) is refused before it fills the memory.
const FILE_BYTES: u64 = 1 << 20;

/// A key as it stands in a file.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) items: Vec<String>,
    pub(super) line: usize,
}

pub(super) fn read(path: &Path) -> Result<String, SettingsError> {
    use std::io::Read;
    let failed = |source| SettingsError::File { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES {
        let why = format!("a settings file has at most {FILE_BYTES} bytes, this one is longer");
        return Err(failed(std::io::Error::other(why)));
    }
    Ok(text)
}

pub(super) fn entries(path: &Path, text: &str) -> Result<Vec<Entry>, SettingsError> {
    let table = DeTable::parse(text).map_err(|error| SettingsError::Toml {
        path: path.to_owned(),
        line: error.span().map_or(0, |span| line_of(text, span.start)),
        what: error.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    let mut found = Vec::new();
    gather(path, text, "", table.get_ref(), &mut found)?;
    found.sort_by_key(|entry: &Entry| entry.line);
    Ok(found)
}

/// Depth is bounded by the parser.
fn gather(
    path: &Path,
    text: &str,
    prefix: &str,
    table: &DeTable<'_>,
    found: &mut Vec<Entry>,
) -> Result<(), SettingsError> {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        let line = line_of(text, key.span().start);
        if let DeValue::Table(inner) = value.get_ref() {
            gather(path, text, &format!("{name}."), inner, found)?;
            continue;
        }
        let items = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
            one => scalar(one).map(|one| vec![one]),
        };
        let Some(items) = items else {
            return Err(SettingsError::Shape { path: path.to_owned(), line, name });
        };
        found.push(Entry { name, items, line });
    }
    Ok(())
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}
