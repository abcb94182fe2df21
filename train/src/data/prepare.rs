//! From the settings to examples: every data set read, put together, made ids, and split.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

use super::conversation::{self, Conversation, Reason};
use super::encode::{Masking, masked};
use super::error::DataError;
use super::info::{self, Attributes, Formatting};
use super::order::Twister;
use super::packing;
use super::parsed::parsed;
use super::pcg::Pcg;
use super::rows::{self, Row, Rows};
use super::spoken::Spoken;
use super::summary::{SetSummary, Summary};
use super::template::{Bound, Changes, Template, Trouble};
use super::tokenized;
use super::tools::ToolFormat;
use super::{Example, IGNORED};
use crate::settings::{DataSettings, Mix, Stage};

const OVER_LONG: Reason = "is longer than cutoff_len, which cannot be packed";
const NOTHING_LEARNT: Reason = "has nothing to be learnt within cutoff_len";

/// Data that is ready for batches.
#[derive(Debug)]
pub struct Prepared {
    /// What is learnt.
    pub train: Vec<Example>,
    /// What the model is measured with.
    pub eval: Vec<Example>,
    /// The id that fills up rows.
    pub pad: u32,
    /// What became of all rows.
    pub summary: Summary,
}

/// Reads and prepares the data of the settings. `seed` is for the choice of rows (`num_samples`, `val_size`). Rows that
/// hold ids need no language, only ids below `id_end`.
pub fn prepare(
    settings: &DataSettings,
    stage: Stage,
    seed: u64,
    id_end: u32,
    spoken: Option<&Spoken<'_>>,
) -> Result<Prepared, DataError> {
    let filler = spoken.and_then(|spoken| spoken.tokenizer.pad()).unwrap_or(0);
    if let Some(folder) = &settings.tokenized
        && let Some(([train, eval], sets)) = tokenized::read(folder, (id_end, filler))?
    {
        let notes = vec![format!("{} goes before all other data", folder.display())];
        return Ok(Prepared { train, eval, pad: filler, summary: Summary { sets, notes } });
    }
    if let (Some(folder), [], None) = (&settings.tokenized, &settings.datasets[..], &settings.file) {
        let advice = "name a dataset as well, and they are made and kept there";
        let found = format!("no folder {}", folder.display());
        return Err(DataError::set("tokenized_path", "examples that were kept", found, advice));
    }
    let (sets, folder) = match &settings.file {
        Some((file, form)) => (vec![Attributes::of_file(&file.to_string_lossy(), form)?], PathBuf::new()),
        None => (info::read(&settings.folder, &settings.datasets)?, settings.folder.clone()),
    };
    let eval_sets = match settings.eval_datasets.as_slice() {
        [] => Vec::new(),
        names => info::read(&settings.folder, names)?,
    };
    let speaking = sets.iter().chain(&eval_sets).find(|set| set.formatting != Formatting::Tokenized);
    let bound = match (speaking, spoken) {
        (None, _) => None,
        (Some(_), Some(spoken)) => Some(bound(settings, stage, spoken)?),
        (Some(set), None) => {
            let advice = "put tokenizer.json beside the model, or give token ids (formatting: tokenized)";
            return Err(DataError::set(&set.name, "a tokenizer", "a model without one".to_owned(), advice));
        }
    };
    let pad = bound.as_ref().map_or(filler, |bound| bound.ends.pad);
    let notes = bound.as_ref().map(|bound| bound.notes.clone()).unwrap_or_default();
    let maker =
        Maker { settings, stage, seed, samples: RefCell::new(Twister::new(seed)), id_end, pad, bound };
    let mut summary = Summary { sets: Vec::new(), notes };
    let mut train = maker.examples(&sets, folder, &mut summary)?;
    let mut eval = maker.examples(&eval_sets, settings.folder.clone(), &mut summary)?;
    if settings.val_size > 0.0 {
        eval = split_off(&mut train, settings.val_size, seed)?;
    }
    if train.is_empty() {
        return Err(nothing_left(&settings.datasets, &summary));
    }
    if eval.is_empty() && !eval_sets.is_empty() {
        return Err(nothing_left(&settings.eval_datasets, &summary));
    }
    if let Some(folder) = &settings.tokenized {
        tokenized::write(folder, [&train, &eval])?;
        summary.notes.push(format!("the examples are kept in {} for other runs", folder.display()));
    }
    Ok(Prepared { train, eval, pad, summary })
}

fn nothing_left(names: &[String], summary: &Summary) -> DataError {
    let advice = match summary.sets.iter().any(|set| set.kept > 0) {
        true => {
            "no block of cutoff_len tokens was filled: lower cutoff_len, or set packing to false".to_owned()
        }
        false => format!("the rows say why:\n{summary}"),
    };
    DataError::set(&names.join(","), "at least one example", "none that is left".to_owned(), advice)
}

/// The template that the settings name, with what they change about it.
fn bound<'s>(settings: &DataSettings, stage: Stage, spoken: &'s Spoken<'s>) -> Result<Bound<'s>, DataError> {
    let template = match &settings.template {
        Some(name) => Template::named(name)?,
        // Running text needs none, so that a template that cannot be taken apart does not matter.
        None if stage == Stage::Pretrain => Template::named("empty")?,
        None => parsed(spoken)?,
    };
    let changes = Changes {
        tool_format: settings.tool_format.as_deref().and_then(ToolFormat::of),
        default_system: settings.default_system.clone(),
        enable_thinking: settings.enable_thinking,
    };
    let bound = Bound::new(template, spoken, changes)?;
    match settings.train_on_prompt && bound.efficient_eos().is_some() {
        false => Ok(bound),
        true => Err(DataError::Template {
            expected: "a template whose answers end with a token, for train_on_prompt",
            found: settings.template.clone().unwrap_or_default(),
            advice: "leave train_on_prompt out, or choose another template".to_owned(),
        }),
    }
}

/// Takes rows for measuring out of those for learning: a share below 1, or so many.
fn split_off(train: &mut Vec<Example>, size: f64, seed: u64) -> Result<Vec<Example>, DataError> {
    let all = train.len();
    let count = if size > 1.0 { size as usize } else { (size * all as f64).ceil() as usize };
    if count >= all {
        return Err(DataError::Set {
            name: "val_size".to_owned(),
            expected: "fewer rows than there are",
            found: format!("{count} of {all}"),
            advice: "lower it".to_owned(),
        });
    }
    let order = Pcg::new(seed).permutation(all);
    let mut taken: Vec<Option<Example>> = std::mem::take(train).into_iter().map(Some).collect();
    let mut take = |index: &usize| taken[*index].take().expect("a permutation names every row once");
    let eval = order[..count].iter().map(&mut take).collect();
    train.extend(order[count..].iter().map(&mut take));
    Ok(eval)
}

/// A row as it was read; the data set that it is of; where it stands.
struct Origin {
    set: usize,
    place: String,
    said: Result<Said, Reason>,
}

enum Said {
    Text(String),
    Conversation(Conversation),
    Ids(Example),
}

struct Maker<'s> {
    settings: &'s DataSettings,
    stage: Stage,
    seed: u64,
    /// What draws samples goes on from one data set to the next.
    samples: RefCell<Twister>,
    id_end: u32,
    pad: u32,
    /// What says rows of words; `None` where all rows hold ids.
    bound: Option<Bound<'s>>,
}

impl<'s> Maker<'s> {
    fn bound(&self) -> &Bound<'s> {
        self.bound.as_ref().expect("data sets with words are only read where there is a template")
    }

    /// The examples of some data sets, in the order in which they are mixed.
    fn examples(
        &self,
        sets: &[Attributes],
        folder: PathBuf,
        summary: &mut Summary,
    ) -> Result<Vec<Example>, DataError> {
        let first = summary.sets.len();
        let mut origins = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            let read = self.read(set, set.files(&folder)?, first + index)?;
            summary.sets.push(SetSummary { rows: read.len(), ..SetSummary::new(&set.name) });
            origins.push(read);
        }
        let origins = self.mixed(origins);
        let mut examples = Vec::new();
        // Packing looks at so many rows at a time, and no further.
        let mut origins = origins.into_iter();
        loop {
            let group: Vec<Origin> = origins.by_ref().take(self.settings.group).collect();
            if group.is_empty() {
                return Ok(examples);
            }
            examples.extend(self.group(group, summary)?);
        }
    }

    /// The rows of one data set that are asked for.
    fn read(&self, set: &Attributes, files: Vec<PathBuf>, index: usize) -> Result<Vec<Origin>, DataError> {
        let limit = self.settings.max_samples.filter(|_| set.num_samples.is_none());
        let read = rows::read(files, limit)?;
        let is_whole = limit.is_none_or(|limit| read.rows.len() < limit);
        check_columns(set, &read, is_whole)?;
        let origin = |row: &Row| {
            let said = match &row.values {
                Ok(values) => self.said(values, set),
                Err(reason) => Err(*reason),
            };
            Origin { set: index, place: read.place(row), said }
        };
        let Some(count) = set.num_samples else { return Ok(read.rows.iter().map(origin).collect()) };
        if read.rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut generator = self.samples.borrow_mut();
        let mut chosen = generator.shuffled(read.rows.len());
        chosen.truncate(count);
        while chosen.len() < count {
            chosen.push(generator.up_to(read.rows.len() - 1));
        }
        chosen.truncate(self.settings.max_samples.unwrap_or(count));
        Ok(chosen.into_iter().map(|row| origin(&read.rows[row])).collect())
    }

    fn said(
        &self,
        values: &serde_json::Map<String, serde_json::Value>,
        set: &Attributes,
    ) -> Result<Said, Reason> {
        match (set.formatting, self.stage) {
            (Formatting::Tokenized, _) => tokenized::example(values, set, self.id_end, None).map(Said::Ids),
            (_, Stage::Pretrain) => conversation::text(values, set).map(Said::Text),
            _ => conversation::conversation(values, set).map(Said::Conversation),
        }
    }

    /// Rows of several data sets in one list.
    fn mixed(&self, sets: Vec<Vec<Origin>>) -> Vec<Origin> {
        if sets.len() < 2 || self.settings.mix == Mix::Concat || sets.iter().any(Vec::is_empty) {
            return sets.into_iter().flatten().collect();
        }
        let order = self.interleaved(&sets.iter().map(Vec::len).collect::<Vec<_>>());
        // Rows may come again; the last use takes the row, those before copy it.
        let mut sets: Vec<Vec<Option<Origin>>> =
            sets.into_iter().map(|set| set.into_iter().map(Some).collect()).collect();
        let mut uses: HashMap<(usize, usize), usize> = HashMap::new();
        order.iter().for_each(|place| *uses.entry(*place).or_default() += 1);
        let rows = order.into_iter().filter_map(|(set, row)| {
            let left = uses.get_mut(&(set, row))?;
            *left -= 1;
            match *left {
                0 => sets[set][row].take(),
                _ => sets[set][row].as_ref().map(Origin::again),
            }
        });
        rows.collect()
    }

    /// Which row of which data set comes when: in turn, or by chance, until the first is exhausted or all are.
    fn interleaved(&self, lengths: &[usize]) -> Vec<(usize, usize)> {
        let mut generator = Pcg::new(self.seed);
        let mut next = vec![0; lengths.len()];
        let mut exhausted = vec![false; lengths.len()];
        let mut order = Vec::new();
        // A set with a tiny share would otherwise keep the others coming again for ever.
        let most = lengths.iter().sum::<usize>().saturating_mul(100);
        for turn in 0..most {
            let set = match &self.settings.interleave_probs {
                None => turn % lengths.len(),
                Some(shares) => drawn(shares, generator.unit()),
            };
            // Chance stops at the end of the first that has no row left; turns stop when a round cannot be filled.
            order.push((set, next[set] % lengths[set]));
            next[set] += 1;
            exhausted[set] |= next[set] >= lengths[set];
            let is_done = match (self.settings.mix, &self.settings.interleave_probs) {
                (Mix::Under, None) => turn + 1 == lengths.len() * lengths.iter().min().copied().unwrap_or(0),
                (_, None) => turn + 1 == lengths.len() * lengths.iter().max().copied().unwrap_or(0),
                (Mix::Under, Some(_)) => exhausted.contains(&true),
                (_, Some(_)) => exhausted.iter().all(|done| *done),
            };
            if is_done {
                break;
            }
        }
        order
    }

    /// Examples of one group of rows.
    fn group(&self, group: Vec<Origin>, summary: &mut Summary) -> Result<Vec<Example>, DataError> {
        let mut examples = Vec::new();
        let mut stream = Vec::new();
        for origin in group {
            let set = &mut summary.sets[origin.set];
            let made = match origin.said {
                Err(reason) => Err(Trouble::Row(reason)),
                Ok(Said::Ids(example)) => self.cut(example, set).map_err(Trouble::Row),
                Ok(Said::Text(text)) => match self.text_ids(&text) {
                    Ok(ids) if self.settings.packing => {
                        stream.extend(ids);
                        set.kept += 1;
                        continue;
                    }
                    Ok(mut ids) => {
                        set.cut += usize::from(ids.len() > self.settings.cutoff_len);
                        ids.truncate(self.settings.cutoff_len);
                        Ok(self.running(ids))
                    }
                    Err(error) => Err(Trouble::Text(error)),
                },
                Ok(Said::Conversation(conversation)) => self.conversation(&conversation, set),
            };
            match made {
                Ok(example) => {
                    set.kept += 1;
                    examples.push(example);
                }
                Err(Trouble::Row(reason)) => set.drop_row(reason, origin.place),
                Err(Trouble::Text(source)) => return Err(DataError::Text { place: origin.place, source }),
            }
        }
        let begin = self.bound.as_ref().filter(|bound| bound.spoken.begins_texts);
        let bos = begin.and_then(|bound| bound.ends.bos);
        let blocks = packing::blocks(&stream, self.settings.cutoff_len, bos);
        if self.stage == Stage::Sft && self.settings.packing {
            let cutoff = self.settings.cutoff_len;
            examples = packing::packed(examples, cutoff, self.settings.neat_packing, self.pad);
        }
        examples.extend(blocks.into_iter().map(|block| self.running(block)));
        Ok(examples)
    }

    fn conversation(&self, conversation: &Conversation, set: &mut SetSummary) -> Result<Example, Trouble> {
        let masking = Masking {
            cutoff_len: self.settings.cutoff_len,
            train_on_prompt: self.settings.train_on_prompt,
            mask_history: self.settings.mask_history,
            efficient_eos: self.bound().efficient_eos(),
        };
        let (mut ids, mut labels, is_cut) = masked(&self.bound().turns(conversation)?, &masking);
        let eos = self.bound().ends.eos;
        if self.settings.append_eos && ids.last() != Some(&eos) && ids.len() < self.settings.cutoff_len {
            ids.push(eos);
            labels.push(eos as i32);
        }
        let example = Example::alone(ids, labels);
        if self.settings.packing && example.ids.len() > self.settings.cutoff_len {
            return Err(OVER_LONG.into());
        }
        if example.learnt() == 0 {
            return Err(NOTHING_LEARNT.into());
        }
        set.cut += usize::from(is_cut);
        Ok(example)
    }

    /// Ids that somebody else made, cut at the end.
    fn cut(&self, mut example: Example, set: &mut SetSummary) -> Result<Example, Reason> {
        let cutoff = self.settings.cutoff_len;
        set.cut += usize::from(example.ids.len() > cutoff);
        example.ids.truncate(cutoff);
        example.labels.truncate(cutoff);
        let example = Example::alone(example.ids, example.labels);
        match example.learnt() {
            0 => Err(NOTHING_LEARNT),
            _ => Ok(example),
        }
    }

    /// A text with the token behind it that ends texts, which is spelled and read as one.
    fn text_ids(&self, text: &str) -> Result<Vec<u32>, bantam_model::tokenizer::TokenizerError> {
        let Bound { spoken, ends, .. } = self.bound();
        let tokenizer = spoken.tokenizer;
        // Models of this template end answers with another token than texts.
        let end = match self.settings.template.as_deref() {
            Some("llama3") => "<|end_of_text|>".to_owned(),
            _ => tokenizer.token(ends.eos).unwrap_or_default(),
        };
        let begin = match (self.settings.packing, spoken.begins_texts) {
            (false, true) => ends.bos.and_then(|bos| tokenizer.token(bos)).unwrap_or_default(),
            _ => String::new(),
        };
        spoken.ids(&format!("{begin}{text}{end}"))
    }

    /// Running text, of which everything is learnt but what also fills rows: a vocabulary without a token for that
    /// does not learn its eos here, in `transformers` as well.
    fn running(&self, ids: Vec<u32>) -> Example {
        let labels = ids.iter().map(|&id| if id == self.pad { IGNORED } else { id as i32 }).collect();
        Example::alone(ids, labels)
    }
}

impl Origin {
    fn again(&self) -> Self {
        let said = match &self.said {
            Err(reason) => Err(*reason),
            Ok(Said::Text(text)) => Ok(Said::Text(text.clone())),
            Ok(Said::Conversation(conversation)) => Ok(Said::Conversation(conversation.clone())),
            Ok(Said::Ids(example)) => Ok(Said::Ids(example.clone())),
        };
        Self { set: self.set, place: self.place.clone(), said }
    }
}

/// The set whose share of the whole a number between 0 and 1 falls into.
fn drawn(shares: &[f64], unit: f64) -> usize {
    let mut left = unit * shares.iter().sum::<f64>();
    for (index, share) in shares.iter().enumerate() {
        left -= share;
        if left < 0.0 {
            return index;
        }
    }
    shares.len() - 1
}

/// Columns that a data set is said to have must be in one of its rows at least.
fn check_columns(set: &Attributes, read: &Rows, is_whole: bool) -> Result<(), DataError> {
    let filled = || read.rows.iter().filter_map(|row| row.values.as_ref().ok());
    if filled().next().is_none() {
        return Ok(());
    }
    for column in set.required(is_whole) {
        if !filled().any(|values| values.contains_key(column)) {
            let known = filled().next().into_iter().flat_map(|values| values.keys()).take(20);
            let known: Vec<String> = known.map(bantam_model::foreign::clipped).collect();
            let place = read.rows.first().map(|row| read.place(row)).unwrap_or_default();
            return Err(DataError::Set {
                name: set.name.clone(),
                expected: "the columns that dataset_info.json names",
                found: format!("none called {column:?} in {place}, but {}", known.join(", ")),
                advice: "write under \"columns\" what they are called".to_owned(),
            });
        }
    }
    Ok(())
}
