//! Room for an adapter: two narrow matrices beside every matrix that it changes.

use std::sync::Arc;

use bantam_core::arena::Layouter;
use bantam_core::layouts::{FLOAT32, Shape};
use bantam_core::{Choice, Matrix, Region, Slot};

use super::planner::{Held, Planner, Wanted};
use super::{Cut, Fill, Line, Linear, PlanError};
use crate::adapter::{Adapter, Asked, Change, other_model};
use crate::families::{Names, Stack};

/// What an adapter adds to a matrix, or to every one of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Low {
    /// From the inputs to the rank. Of an embedding, a row for every token.
    pub down: Matrix,
    /// From the rank to the outputs, scaled.
    pub up: Matrix,
    /// Added to the outputs.
    pub bias: Option<Slot>,
    /// What the matrix's own products are multiplied by before.
    pub factors: Option<Slot>,
}

/// What a slot of a [`Low`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowSide {
    /// `down`.
    Down,
    /// The same of an embedding.
    Table,
    /// `up`.
    Up,
    /// `bias`.
    Bias,
    /// `factors`.
    Factors,
}

/// How a slot of a [`Low`] is filled.
#[derive(Debug, Clone)]
pub struct LowFill {
    /// Where to.
    pub slot: Slot,
    /// What it holds.
    pub side: LowSide,
    /// The size of one matrix, where it is one.
    pub shape: Shape,
    /// The matrix that is changed; its rows are filled before.
    pub base: Matrix,
    /// Its factors, where there are any.
    pub(crate) factors: Option<Slot>,
    /// Which rows of the adapter's tensors are its rows.
    pub(crate) cut: Cut,
    /// For every matrix of the stack.
    pub(crate) changes: Arc<[Option<Change>]>,
}

impl LowFill {
    /// Which rows of the adapter's tensors are its rows.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// What the adapter has, for every matrix of the stack.
    pub fn changes(&self) -> &[Option<Change>] {
        &self.changes
    }
}

/// What all of an adapter's parts share.
#[derive(Debug, Default)]
pub(super) struct Lows {
    /// Matrices to the rank, by the tensor: several projections may come from one module.
    downs: Vec<(String, Matrix)>,
    /// Rows and channels of the largest result of one.
    work: (usize, usize),
}

const LINE: &str = "adapter";

/// The largest rank of an adapter that comes after loading: what holds the results of the first of two products is
/// taken before anybody knows which will come.
pub const GUEST_RANK_MAX: usize = 256;

impl Lows {
    /// Room for the results of the first of two products; none where there is no adapter.
    pub(super) fn work(&self, work: &mut Layouter, lines: &mut Vec<Line>) -> Result<Slot, PlanError> {
        let (rows, rank) = self.work;
        let too_large = || PlanError::TooLarge { what: LINE.to_owned() };
        let bytes = rows.checked_mul(rank).and_then(|n| n.checked_mul(4)).ok_or_else(too_large)?;
        let before = work.bytes();
        let slot = work.slot(bytes).ok_or_else(too_large)?;
        if bytes == 0 {
            return Ok(slot);
        }
        lines.push(Line {
            name: LINE.to_owned(),
            region: Region::Work,
            lifetime: "step",
            shape: format!("{rows} x {rank} f32"),
            bytes: work.bytes() - before,
        });
        Ok(slot)
    }
}

impl Planner<'_> {
    /// Where the slots of a line of weights are.
    pub(super) fn region_of(&self, line: &str) -> Region {
        if self.is_guest && line == LINE { Region::Adapters } else { Region::Weights }
    }

    /// The room for adapters that come after loading.
    pub(super) fn room_for_guests(&mut self) -> Result<(), PlanError> {
        match self.options.adapter_bytes {
            0 => Ok(()),
            bytes => self.slot(Region::Adapters, "adapters", "room".to_owned(), Some(bytes)).map(|_| ()),
        }
    }

    /// What a change of such an adapter needs of a step's memory, where so many rows meet a matrix of so many columns.
    fn expect_guests(&mut self, columns: usize, tokens: usize) -> Result<(), PlanError> {
        if self.options.adapter_bytes == 0 {
            return Ok(());
        }
        self.prepared(FLOAT32, columns, tokens)?;
        self.prepared(FLOAT32, GUEST_RANK_MAX, tokens)?;
        let (most_rows, most_rank) = self.lows.work;
        self.lows.work = (most_rows.max(tokens), most_rank.max(GUEST_RANK_MAX));
        Ok(())
    }

    /// Refuses whole tensors: the model's own stay as they are for whoever else uses them.
    pub(super) fn refuse_wholes(&self) -> Result<(), PlanError> {
        match self.adapter.and_then(|(adapter, _)| adapter.wholes().next()) {
            None => Ok(()),
            Some(name) => Err(other_model(
                name,
                "expected changes alone of an adapter that comes to a loaded model, found a whole tensor \
                 (modules_to_save, or a bias of the model's own); add it to the model with `bantam merge`, or \
                 load it with the model (--adapter)"
                    .to_owned(),
            )),
        }
    }

    /// Whether the adapter brings this tensor of the model.
    pub(super) fn takes_whole(&self, tensor: &str) -> bool {
        let Some((adapter, used)) = self.adapter else { return false };
        adapter.use_whole(tensor, used);
        adapter.stored(tensor).is_some()
    }

    /// Refuses whole tensors that stand otherwise in the files of the model than where it was trained.
    pub(super) fn check_wholes(&self) -> Result<(), PlanError> {
        let Some((adapter, _)) = self.adapter.filter(|_| self.spec.format.is_gguf()) else { return Ok(()) };
        let tables = [self.spec.trained.embedding, self.spec.trained.head];
        let is_table = |name: &str| name.strip_suffix(".weight").is_some_and(|name| tables.contains(&name));
        match adapter.wholes().find(|name| !is_table(name)) {
            None => Ok(()),
            Some(name) => Err(other_model(
                name,
                "expected no whole tensors but embedding and head over a GGUF file; use the model's safetensors"
                    .to_owned(),
            )),
        }
    }

    /// The head: its own, or the embedding. An adapter that brings one of two tied tables has them part.
    pub(super) fn head(&mut self, embedding: Matrix) -> Result<Linear, PlanError> {
        let (spec, names) = (self.spec, self.spec.names);
        let shape = Shape { rows: spec.vocab, columns: spec.hidden };
        let (own, shared) = (format!("{}.weight", names.head), format!("{}.weight", names.embedding));
        let is_apart = self.adapter.is_some_and(|(adapter, _)| adapter.stored(&shared).is_some());
        let matrix = match spec.tied {
            true if !self.takes_whole(&own) && !is_apart => embedding,
            true if !self.takes_whole(&own) => {
                let (held, origin) = self.origin_in_base("head", shared, shape)?;
                self.matrix_of("head", held, origin, Cut::WHOLE, shape)?
            }
            _ => self.matrix("head", own, Cut::WHOLE, shape.rows, shape)?,
        };
        let asked =
            Asked { module: spec.trained.head, part: None, name: spec.trained.head, shape, is_table: false };
        let change = self.change(&asked)?;
        self.expect_guests(shape.columns, self.options.logits_rows)?;
        let low = self.low(vec![change], matrix, Cut::WHOLE, self.options.logits_rows)?;
        Ok(Linear { matrix, bias: None, low })
    }

    /// What is added to the rows of the embedding.
    pub(super) fn low_of_table(&mut self, embedding: Matrix) -> Result<Option<Low>, PlanError> {
        let module = self.spec.trained.embedding;
        let shape = embedding.shape;
        let change = self.change(&Asked { module, part: None, name: module, shape, is_table: true })?;
        self.expect_guests(0, self.options.chunk)?;
        self.low(vec![change], embedding, Cut::WHOLE, self.options.chunk)
    }

    /// What is added to the products of a matrix on its own.
    pub(super) fn low_of_linear(
        &mut self,
        prefix: &str,
        wanted: &Wanted,
        matrix: Matrix,
    ) -> Result<Option<Low>, PlanError> {
        self.expect_guests(wanted.shape.columns, self.options.chunk)?;
        if self.adapter.is_none() {
            return Ok(None);
        }
        let (cut, stored) = self.cut(wanted.trained.rows, wanted.shape.rows, wanted.sections);
        let module = self.trained_name(prefix, wanted.trained.module);
        let shape = Shape { rows: stored, ..wanted.shape };
        let change =
            self.change(&Asked { module: &module, part: None, name: &module, shape, is_table: false })?;
        self.low(vec![change], matrix, cut, self.options.chunk)
    }

    /// The same of a stack.
    pub(super) fn low_of_experts(
        &mut self,
        prefix: &str,
        wanted: &Wanted,
        choice: Choice,
        matrix: Matrix,
    ) -> Result<Option<Low>, PlanError> {
        let places = self.options.chunk.saturating_mul(choice.chosen);
        self.expect_guests(wanted.shape.columns, places)?;
        if self.adapter.is_none() {
            return Ok(None);
        }
        let (cut, stored) = self.cut(wanted.trained.rows, wanted.shape.rows, wanted.sections);
        let shape = Shape { rows: stored, ..wanted.shape };
        let name = self.trained_name(prefix, wanted.trained.module);
        let is_apart = matches!(self.spec.trained.experts, Some((_, Stack::Apart)));
        let adapter = self.adapter.filter(|_| !is_apart).map(|(adapter, _)| adapter);
        let wrapped = adapter.and_then(|adapter| wrapped(self.spec.trained, adapter, &name));
        let change = |expert: usize| {
            let own = name.replace("{}", &expert.to_string());
            match (is_apart, &wrapped) {
                (true, _) => {
                    self.change(&Asked { module: &own, part: None, name: &own, shape, is_table: false })
                }
                (false, None) => Ok(None),
                (false, Some(module)) => {
                    let part = Some((expert, choice.experts));
                    self.change(&Asked { module, part, name: &name, shape, is_table: false })
                }
            }
        };
        let changes = (0..choice.experts).map(change).collect::<Result<Vec<_>, _>>()?;
        let low = self.low(changes, matrix, cut, places)?;
        if let Some(Low { down, up, .. }) = low {
            let bytes = (down.slot.bytes + up.slot.bytes) / choice.experts;
            self.unread_bytes += (choice.experts - choice.chosen) * bytes;
        }
        Ok(low)
    }

    /// A module's name where the model was trained.
    fn trained_name(&self, prefix: &str, module: &str) -> String {
        let (here, there) = (self.spec.names.layer, self.spec.trained.layer);
        let number = here.split_once("{}").and_then(|(before, after)| {
            prefix.strip_prefix(before).and_then(|prefix| prefix.strip_suffix(after))
        });
        format!("{}{module}", there.replace("{}", number.expect("a prefix was made of this pattern")))
    }

    fn change(&self, asked: &Asked) -> Result<Option<Change>, PlanError> {
        self.adapter.map_or(Ok(None), |(adapter, used)| adapter.change(asked, used))
    }

    /// Refuses a rank that no room was taken for.
    fn check_rank(&self, changes: &[Option<Change>], rank: usize) -> Result<(), PlanError> {
        match changes.iter().flatten().find(|change| self.is_guest && change.rank > GUEST_RANK_MAX) {
            None => Ok(()),
            Some(change) => Err(other_model(
                change.down(),
                format!(
                    "expected a rank of at most {GUEST_RANK_MAX} of an adapter that comes to a loaded model, found \
                     {rank}; add it to the model with `bantam merge`, or load it with the model (--adapter)"
                ),
            )),
        }
    }

    /// Takes slots for a change, and says how they are filled.
    fn low(
        &mut self,
        changes: Vec<Option<Change>>,
        base: Matrix,
        cut: Cut,
        tokens: usize,
    ) -> Result<Option<Low>, PlanError> {
        let Some(rank) = changes.iter().flatten().map(|change| change.rank).max() else {
            return Ok(None);
        };
        self.check_rank(&changes, rank)?;
        let (count, Shape { rows, columns }) = (changes.len(), base.shape);
        let has = |part: fn(&Change) -> bool| changes.iter().flatten().any(part);
        let (is_table, has_bias) = (has(|change| change.is_table), has(Change::has_bias));
        let has_factors = has(|change| change.magnitude.is_some());
        let key = changes.iter().flatten().map(Change::down).collect::<Vec<_>>().join(" ");
        let outputs = if is_table { columns } else { rows };
        let changes: Arc<[Option<Change>]> = changes.into();
        let mut vector = |is_there: bool| match is_there {
            true => {
                let bytes = outputs.checked_mul(count).and_then(|n| n.checked_mul(4));
                self.slot(self.region_of(LINE), LINE, "f32 vectors".to_owned(), bytes).map(Some)
            }
            false => Ok(None),
        };
        let (bias, factors) = (vector(has_bias)?, vector(has_factors)?);
        let fill = |side, slot, shape| {
            let changes = Arc::clone(&changes);
            Fill::Low(Box::new(LowFill { slot, side, shape, base, factors, cut, changes }))
        };
        self.fills.extend(factors.map(|slot| fill(LowSide::Factors, slot, base.shape)));
        self.fills.extend(bias.map(|slot| fill(LowSide::Bias, slot, base.shape)));
        // Whatever the matrix beside it is: an adapter is small.
        let floats = Held::plain(FLOAT32, None);
        let known = self.lows.downs.iter().find(|(known, _)| *known == key).map(|(_, down)| *down);
        let down = match known {
            Some(down) => down,
            None => {
                let (side, shape) = match is_table {
                    true => (LowSide::Table, Shape { rows, columns: rank }),
                    false => (LowSide::Down, Shape { rows: rank, columns }),
                };
                let down = self.stack(LINE, floats, shape, count, tokens)?;
                self.fills.push(fill(side, down.slot, shape));
                self.lows.downs.push((key, down));
                if is_table {
                    self.unread_bytes += down.slot.bytes;
                }
                down
            }
        };
        let shape = Shape { rows: outputs, columns: rank };
        let up = self.stack(LINE, floats, shape, count, tokens)?;
        self.fills.push(fill(LowSide::Up, up.slot, shape));
        let (most_rows, most_rank) = self.lows.work;
        self.lows.work = (most_rows.max(tokens), most_rank.max(rank));
        Ok(Some(Low { down, up, bias, factors }))
    }
}

/// Where an adapter has the change of a parameter, given its whole name. Several parameters of one module are wrapped
/// around it one after another, in their order there, so the last is the outermost.
pub(crate) fn wrapped(trained: &Names, adapter: &Adapter, parameter: &str) -> Option<String> {
    let all = trained.gate.into_iter().chain([trained.up, trained.down]).map(|part| part.module);
    let prefix = all.clone().find_map(|module| parameter.strip_suffix(module))?;
    let module = |parameter: &str| parameter.rsplit_once('.').map(|(module, _)| module.to_owned());
    let mut targeted: Vec<String> = Vec::new();
    for other in all.map(|other| format!("{prefix}{other}")) {
        let is_beside = module(&other) == module(parameter);
        if is_beside && !targeted.contains(&other) && adapter.settings.targets_parameter(&other) {
            targeted.push(other);
        }
    }
    let around = targeted.iter().rev().position(|targeted| targeted == parameter)?;
    Some(module(parameter)? + &".base_layer".repeat(around))
}
