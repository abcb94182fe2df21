//! Rows of token ids: those that somebody made, and the folder where prepared data is kept (`tokenized_path`).
//!
//! Such a folder is what `datasets` saves, with a file `data-….arrow` or a folder for each split, or our own: a file
//! of rows in JSON for each. Packed rows say by their positions where pieces begin, and by their mask whether these see
//! each other.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use bantam_model::checkpoint::writer::write_file;
use serde_json::{Map, Value, json};

use super::conversation::Reason;
use super::error::DataError;
use super::info::Attributes;
use super::rows;
use super::summary::SetSummary;
use super::{Example, IGNORED};

const BAD_IDS: Reason = "has input_ids or labels that are no tokens of the vocabulary";
const BAD_LENGTHS: Reason = "has another number of labels than of input_ids";
/// Splits as `datasets` names them: what is learnt, and what the model is measured with.
const SPLITS: [&str; 2] = ["train", "validation"];
/// The examples of each.
type Splits = [Vec<Example>; 2];

/// A row of ids. Without labels all of them are learnt but `pad`.
pub(super) fn example(
    values: &Map<String, Value>,
    set: &Attributes,
    id_end: u32,
    pad: Option<u32>,
) -> Result<Example, Reason> {
    let list = |column: &str| values.get(set.column(column)?)?.as_array();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < id_end);
    let ids: Option<Vec<u32>> = list("input_ids").ok_or(BAD_IDS)?.iter().map(id).collect();
    let ids = ids.ok_or(BAD_IDS)?;
    let learnt = |&id: &u32| if Some(id) == pad { IGNORED } else { id as i32 };
    let labels: Option<Vec<i32>> = match list("labels") {
        None => Some(ids.iter().map(learnt).collect()),
        Some(labels) => {
            let label = |value: &Value| match value.as_i64() {
                Some(-100) => Some(IGNORED),
                _ => id(value).map(|id| id as i32),
            };
            labels.iter().map(label).collect()
        }
    };
    let labels = labels.ok_or(BAD_IDS)?;
    match labels.len() == ids.len() {
        true => Ok(Example::alone(ids, labels)),
        false => Err(BAD_LENGTHS),
    }
}

/// The examples of a folder, where there is one: what is learnt, and what the model is measured with.
pub(super) fn read(
    folder: &Path,
    (id_end, pad): (u32, u32),
) -> Result<Option<(Splits, Vec<SetSummary>)>, DataError> {
    if !folder.exists() {
        return Ok(None);
    }
    let mut summaries = Vec::new();
    let mut splits = SPLITS.map(|_| Vec::new());
    for (split, name) in splits.iter_mut().zip(SPLITS) {
        let files = files(folder, name)?;
        if files.is_empty() {
            continue;
        }
        let set = Attributes::of_file(&folder.display().to_string(), "tokenized")?;
        let read = rows::read(files, None)?;
        let mut summary = SetSummary::new(&folder.join(name).display().to_string());
        summary.rows = read.rows.len();
        for row in &read.rows {
            let values = row.values.as_ref().map_err(|reason| *reason);
            match values.and_then(|values| Ok(packed(example(values, &set, id_end, Some(pad))?, values))) {
                Ok(example) => split.push(example),
                Err(reason) => summary.drop_row(reason, read.place(row)),
            }
        }
        summary.kept = split.len();
        summaries.push(summary);
    }
    if splits[0].is_empty() {
        let place = folder.display().to_string();
        let words = "no rows of ids (train.jsonl, train/*.arrow or *.arrow)".to_owned();
        let advice = "remove the folder, and it is made anew";
        return Err(DataError::set(&place, "prepared data in tokenized_path", words, advice));
    }
    Ok(Some((splits, summaries)))
}

/// The files of a split.
fn files(folder: &Path, split: &str) -> Result<Vec<PathBuf>, DataError> {
    let ours = folder.join(format!("{split}.jsonl"));
    if ours.is_file() {
        return Ok(vec![ours]);
    }
    let own = folder.join(split);
    let place = match (own.is_dir(), split) {
        (true, _) => own,
        (false, "train") => folder.into(),
        _ => return Ok(Vec::new()),
    };
    let mut files = rows::files(&place)?;
    files.retain(|file| file.extension().is_some_and(|end| end == "arrow"));
    Ok(files)
}

/// An example whose row says that it is made of pieces.
fn packed(mut example: Example, values: &Map<String, Value>) -> Example {
    let numbers = |column: &str| -> Option<Vec<u64>> {
        let list = values.get(column)?.as_array()?.iter().map(Value::as_u64);
        list.collect::<Option<Vec<u64>>>().filter(|list| list.len() == example.ids.len())
    };
    let Some(positions) = numbers("position_ids") else { return example };
    let mask = numbers("attention_mask").unwrap_or_else(|| vec![1; positions.len()]);
    // Behind the last piece every place is the first of its own, and nobody learns it.
    let is_filling = |at: usize| positions[at] == 0 && (mask[at] == 0 || example.labels[at] == IGNORED);
    let end = (0..positions.len()).rev().find(|&at| !is_filling(at)).map_or(0, |last| last + 1);
    let mut pieces: Vec<u32> = Vec::new();
    for (at, position) in positions[..end].iter().enumerate() {
        match pieces.last_mut() {
            Some(piece) if *position != 0 && at > 0 => *piece += 1,
            _ => pieces.push(1),
        }
    }
    example.is_apart = mask.iter().any(|piece| *piece > 1);
    example.pieces = pieces;
    example
}

/// Keeps prepared data in a folder for other runs.
pub(super) fn write(folder: &Path, splits: [&[Example]; 2]) -> Result<(), DataError> {
    let failed = |source| DataError::Read { path: folder.into(), expected: "a folder to write", source };
    fs::create_dir_all(folder).map_err(failed)?;
    for (examples, name) in splits.into_iter().zip(SPLITS).filter(|(examples, _)| !examples.is_empty()) {
        let mut text = Vec::new();
        for example in examples {
            let mut row = json!({ "input_ids": example.ids, "labels": example.labels });
            if example.pieces[..] != [example.ids.len() as u32] {
                row["position_ids"] = example.positions().collect();
                row["attention_mask"] = example.segments().collect();
            }
            writeln!(text, "{row}").map_err(failed)?;
        }
        write_file(&folder.join(format!("{name}.jsonl")), &text)
            .map_err(|error| failed(std::io::Error::other(error)))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let folder = std::env::temp_dir().join(format!("bantam-tokenized-{}", std::process::id()));
        let plain = Example::alone(vec![5, 6, 7], vec![IGNORED, 6, 7]);
        let pieces = |is_apart| Example {
            ids: vec![5, 6, 7, 8, 9, 0, 0],
            labels: vec![IGNORED, 6, IGNORED, 8, 9, IGNORED, IGNORED],
            pieces: vec![2, 3],
            is_apart,
        };
        let all = [plain.clone(), pieces(true), pieces(false)];
        assert_eq!(read(&folder, (10, 0)).unwrap(), None);
        write(&folder, [&all, std::slice::from_ref(&plain)]).unwrap();
        let ([train, eval], summaries) = read(&folder, (10, 0)).unwrap().unwrap();
        assert_eq!((&train[..], &eval[..], summaries.len()), (&all[..], &[plain][..], 2));
        let ([train, _], summaries) = read(&folder, (9, 0)).unwrap().unwrap();
        assert_eq!((train.len(), summaries[0].dropped_rows()), (1, 2));
        fs::write(folder.join("train.jsonl"), "").unwrap();
        assert!(read(&folder, (9, 0)).unwrap_err().to_string().contains("made anew"));
        fs::remove_dir_all(folder).unwrap();
    }
}
