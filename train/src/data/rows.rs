//! Files as rows of named values, each with the line it begins in (the number of the row, where there are no lines):
//! json, jsonl, csv, txt, parquet, arrow, or a folder of one kind.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_model::foreign::clipped;
use serde_json::{Map, Value};

use super::columnar::{self, Form};
use super::csv;
use super::error::DataError;

/// A file is read whole; larger ones are better many files in a folder.
const FILE_BYTES_MAX: u64 = 8 << 30;

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) file: usize,
    pub(super) line: usize,
    /// Its values by column, or why there are none.
    pub(super) values: Result<Map<String, Value>, &'static str>,
}

/// Rows with the files they are from.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) files: Vec<PathBuf>,
    pub(super) rows: Vec<Row>,
}

impl Rows {
    /// Where a row stands, for messages.
    pub(super) fn place(&self, row: &Row) -> String {
        format!("{}:{}", self.files[row.file].display(), row.line)
    }
}

/// The first `limit` rows of some files of one kind.
pub(super) fn read(files: Vec<PathBuf>, limit: Option<usize>) -> Result<Rows, DataError> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    let mut kinds: Vec<Kind> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let kind = Kind::of(file)?;
        if kinds.first().is_some_and(|first| *first != kind) {
            return Err(DataError::File {
                path: file.parent().unwrap_or(file).into(),
                expected: "files of one type",
                found: format!("{:?} and {kind:?}", kinds[0]),
                advice: "move the others out of the folder".to_owned(),
            });
        }
        kinds.push(kind);
        if rows.len() < limit {
            let left = limit - rows.len();
            let mut add = |line, values| rows.push(Row { file: index, line, values });
            checked(file)?;
            match kind {
                Kind::Table(form) => {
                    columnar::rows(form, file, left, &mut |line, values| add(line, Ok(values)))?;
                }
                _ => kind.rows(file, &text_of(file)?, left, &mut add)?,
            }
        }
    }
    Ok(Rows { files, rows })
}

/// A file, or the files of a folder in the order of their names.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let expected = "a file or folder with data";
    let failed = |source| DataError::Read { path: path.into(), expected, source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        if entry.is_file() {
            files.push(entry);
        }
    }
    files.sort();
    match files.is_empty() {
        false => Ok(files),
        true => Err(DataError::File {
            path: path.into(),
            expected,
            found: "an empty folder".to_owned(),
            advice: "put files of one type there".to_owned(),
        }),
    }
}

/// Refuses what would be waited for, or would fill all memory.
fn checked(path: &Path) -> Result<(), DataError> {
    let expected = "a file with data";
    let metadata =
        fs::metadata(path).map_err(|source| DataError::Read { path: path.into(), expected, source })?;
    if !metadata.is_file() {
        return Err(DataError::File {
            path: path.into(),
            expected,
            found: "something that is no file".to_owned(),
            advice: "write its words into a file".to_owned(),
        });
    }
    let bytes = metadata.len();
    match bytes > FILE_BYTES_MAX {
        false => Ok(()),
        true => Err(DataError::File {
            path: path.into(),
            expected: "at most 8 GiB",
            found: format!("{bytes} bytes"),
            advice: "split it into several files in one folder".to_owned(),
        }),
    }
}

fn text_of(path: &Path) -> Result<String, DataError> {
    let failed = |source| DataError::Read { path: path.into(), expected: "a file with data", source };
    let bytes = fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        let found = "bytes that are no UTF-8".to_owned();
        DataError::Line {
            path: path.into(),
            line,
            expected: "text in UTF-8",
            found,
            advice: "convert the file",
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Csv,
    Txt,
    Table(Form),
}

type Add<'a> = &'a mut dyn FnMut(usize, Result<Map<String, Value>, &'static str>);

impl Kind {
    fn of(path: &Path) -> Result<Self, DataError> {
        let end = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        match end.as_str() {
            "json" | "jsonl" => Ok(Kind::Json),
            "csv" => Ok(Kind::Csv),
            "txt" => Ok(Kind::Txt),
            "parquet" => Ok(Kind::Table(Form::Parquet)),
            "arrow" => Ok(Kind::Table(Form::Arrow)),
            _ => Err(DataError::File {
                path: path.into(),
                expected: "json, jsonl, csv, txt, parquet or arrow",
                found: format!("a file that ends in {:?}", clipped(&end)),
                advice: "give the file the ending of what it holds".to_owned(),
            }),
        }
    }

    fn rows(self, path: &Path, text: &str, limit: usize, add: Add<'_>) -> Result<(), DataError> {
        match self {
            Kind::Json if text.trim_start_matches('\u{feff}').trim_start().starts_with('[') => {
                array(path, text, limit, add)
            }
            Kind::Json => {
                lines(text, limit, add);
                Ok(())
            }
            Kind::Csv => table(path, text, limit, add),
            Kind::Txt | Kind::Table(_) => {
                for (line, text) in (1..).zip(text.lines()).take(limit) {
                    add(line, Ok(Map::from_iter([("text".to_owned(), Value::from(text))])));
                }
                Ok(())
            }
        }
    }
}

/// What stands in one row of JSON.
fn object(text: &str) -> Result<Map<String, Value>, &'static str> {
    match serde_json::from_str(text) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(_) => Err("is no JSON object"),
        Err(_) => Err("is broken JSON"),
    }
}

/// A JSON value in every line; a line that is none is dropped.
fn lines(text: &str, limit: usize, add: Add<'_>) {
    let lines = (1..).zip(text.trim_start_matches('\u{feff}').lines());
    let filled = lines.filter(|(_, text)| !text.trim().is_empty());
    filled.take(limit).for_each(|(line, text)| add(line, object(text)));
}

/// The elements of a JSON list. Where its outline is broken nobody knows where the next element begins: an error.
fn array(path: &Path, text: &str, limit: usize, add: Add<'_>) -> Result<(), DataError> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0, line: 1 };
    scan.at = text.find('[').unwrap_or(0) + 1;
    scan.line += text[..scan.at].matches('\n').count();
    let mut taken = 0;
    while taken < limit {
        scan.skip_space();
        if taken == 0 && scan.bytes.get(scan.at) == Some(&b']') {
            return Ok(());
        }
        let (start, line) = (scan.at, scan.line);
        let end = scan.element().ok_or_else(|| DataError::Line {
            path: path.into(),
            line,
            expected: "a JSON list that ends in ]",
            found: "the end of the file within this element".to_owned(),
            advice: "mend the file, or write one object per line (jsonl), of which broken ones are dropped",
        })?;
        add(line, object(&text[start..scan.at]));
        taken += 1;
        scan.at += 1;
        if end == b']' {
            break;
        }
    }
    Ok(())
}

/// A walk over the bytes of a JSON text, which only looks for the ends of elements.
struct Scan<'t> {
    bytes: &'t [u8],
    at: usize,
    line: usize,
}

impl Scan<'_> {
    fn skip_space(&mut self) {
        while let Some(byte) = self.bytes.get(self.at).filter(|byte| byte.is_ascii_whitespace()) {
            self.line += usize::from(*byte == b'\n');
            self.at += 1;
        }
    }

    /// Moves to the comma or bracket behind an element, and gives it.
    fn element(&mut self) -> Option<u8> {
        let (mut depth, mut quoted) = (0_usize, false);
        loop {
            let byte = *self.bytes.get(self.at)?;
            match byte {
                b'\n' => self.line += 1,
                b'\\' if quoted => self.at += 1,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'[' | b'{' => depth += 1,
                b',' | b']' if depth == 0 => return Some(byte),
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
        }
    }
}

/// Records under the names of the first. Empty fields are null, as others read them.
fn table(path: &Path, text: &str, limit: usize, add: Add<'_>) -> Result<(), DataError> {
    let records = csv::records(text).map_err(|line| DataError::Line {
        path: path.into(),
        line,
        expected: "quotes that are closed",
        found: "one that is open until the end of the file".to_owned(),
        advice: "close it, or double the quotes inside of a field",
    })?;
    let mut records = records.into_iter();
    let Some((_, names)) = records.next() else { return Ok(()) };
    for (line, fields) in records.take(limit) {
        if fields.len() != names.len() {
            add(line, Err("has more or fewer fields than the first line"));
            continue;
        }
        let values = fields.into_iter().map(|field| match field.is_empty() {
            true => Value::Null,
            false => Value::from(field),
        });
        add(line, Ok(names.iter().cloned().zip(values).collect()));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expected: &[(usize, &str)]) {
        let mut found = Vec::new();
        let kind = Kind::of(Path::new(name)).unwrap();
        let mut add = |line, values: Result<Map<String, Value>, &'static str>| {
            found.push((line, values.map_or_else(str::to_owned, |values| Value::Object(values).to_string())));
        };
        kind.rows(Path::new(name), text, usize::MAX, &mut add).unwrap();
        let found: Vec<_> = found.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn rows_know_their_lines() {
        check(
            "a.json",
            "[\n{\"a\": 1},\n\n {\"a\":\n\"],\\\"\"}, 3 ]\n",
            &[(2, r#"{"a":1}"#), (4, r#"{"a":"],\""}"#), (5, "is no JSON object")],
        );
        check("a.json", " [ ] ", &[]);
        check(
            "a.jsonl",
            "{\"a\":1}\n\n{\"a\":\n[]\n",
            &[(1, r#"{"a":1}"#), (3, "is broken JSON"), (4, "is no JSON object")],
        );
        check(
            "a.csv",
            "a,b\n1,\n1\n",
            &[(2, r#"{"a":"1","b":null}"#), (3, "has more or fewer fields than the first line")],
        );
        check("a.txt", "x\n\ny\n", &[(1, r#"{"text":"x"}"#), (2, r#"{"text":""}"#), (3, r#"{"text":"y"}"#)]);
    }

    #[test]
    fn a_broken_list_is_refused_with_its_line() {
        let mut nothing = |_, _| {};
        let error = array(Path::new("a.json"), "[{},\n{\"a\": \"b}]", usize::MAX, &mut nothing).unwrap_err();
        assert!(error.to_string().starts_with("a.json:2: expected a JSON list"), "{error}");
        let error = Kind::of(Path::new("x/a.xlsx")).unwrap_err().to_string();
        assert!(error.contains("parquet or arrow"), "{error}");
    }

    #[test]
    fn no_bytes_stop_it() {
        let text = "[{\"a\": \"x\\\"é\", \"b\": [1, {}]},\n {\"a\": null}]\n\"q,\"\"w\",x\r\n";
        let mut nothing = |_, _| {};
        for kind in [Kind::Json, Kind::Csv, Kind::Txt] {
            for (place, letter) in text.char_indices() {
                let without = [&text[..place], &text[place + letter.len_utf8()..]].concat();
                for text in [&text[..place], &text[place..], &without] {
                    let _ = kind.rows(Path::new("a"), text, 9, &mut nothing);
                }
            }
        }
    }
}
