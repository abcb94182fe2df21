//! What a run of training takes, said beforehand: the arithmetic of its buffers over a plan. No weight is read.
//!
//! Sizes stand here once more, beside the functions that ask for them (`room`); a test counts
//! what these took. Where numbers depend on the data (how many rows one expert gets), the most is said.

use bantam_core::Cpu;
use bantam_core::arena::ALIGNMENT;
use bantam_core::layouts::panels::Taken;
use bantam_core::layouts::{Precision, Shape};
use bantam_core::ops::backward::attention;
use bantam_core::ops::backward::loss::Entropy;
use bantam_core::ops::backward::numbers::Rows;
use bantam_core::ops::backward::products::{BLOCK, cross_floats, floats, form, transposed_floats};
use bantam_core::ops::matmul::panel_bytes;
use bantam_model::adapter::Adapter;
use bantam_model::bare::{is_filled, places};
use bantam_model::card::Passage;
use bantam_model::engine::stored;
use bantam_model::formats::on_load::OnLoad;
use bantam_model::plan::{Options, Plan};
use bantam_model::source::{Source, SourceError};
use bantam_model::spec::{LayerSpec, ModelSpec};

use super::TrainError;
use super::beside::CardPlan;
use super::gradients::Gradients;
use super::head::{CHUNK, EndSites, Sites};
use super::low::Lows;
use super::parameters::{Parameter, Parameters};
use super::sites::{LayerSites, Site};

/// The largest batch of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Tokens of all its documents.
    pub tokens: usize,
    /// Tokens that are to predict something.
    pub labelled: usize,
    /// Tokens of its longest document.
    pub longest: usize,
    /// Whether inputs of layers are kept in bfloat16, and products made in it.
    pub halves: bool,
    /// Whether what layers compute is kept until backward has read it.
    pub layers: bool,
    /// Whether gradients are kept in bfloat16.
    pub short_gradients: bool,
    /// Threads that compute.
    pub threads: usize,
    /// Whether changes see less than all of their inputs.
    pub drops: bool,
    /// The largest batch that the model is measured with.
    pub measured: Measured,
}

/// A batch that nothing is learnt from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Tokens of all its documents; 0 where nothing is measured.
    pub tokens: usize,
    /// Tokens that are to predict something.
    pub labelled: usize,
    /// Tokens of its longest document.
    pub longest: usize,
}

impl Load {
    /// A step that goes forward only, over the batch that is measured.
    fn measuring(&self) -> Load {
        let Measured { tokens, labelled, longest } = self.measured;
        Load { tokens, labelled, longest, drops: false, ..*self }
    }

    /// What has to have room forwards.
    pub(super) fn forward(&self) -> Load {
        let Measured { tokens, labelled, longest } = self.measured;
        Load {
            tokens: self.tokens.max(tokens),
            labelled: self.labelled.max(labelled),
            longest: self.longest.max(longest),
            ..*self
        }
    }
}

/// Bytes of one thing.
pub type Part = (&'static str, u64);

/// A model in training as far as its plan goes.
#[derive(Debug)]
pub struct Outline {
    spec: ModelSpec,
    plan: Plan,
    /// Of its weights' region, what is filled.
    filled_bytes: usize,
    cpu: Cpu,
    parameters: Parameters,
    lows: Lows,
    sites: Sites,
}

/// Floats of a [`Scratch`](super::linear::Scratch), field by field.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    pub(super) words: usize,
    pub(super) up: usize,
    pub(super) between: usize,
    /// Gradients of that.
    pub(super) behind: usize,
    pub(super) part: usize,
    pub(super) scaled: usize,
    pub(super) dropped: usize,
}

impl Room {
    fn with(self, other: Room) -> Room {
        Room {
            words: self.words.max(other.words),
            up: self.up.max(other.up),
            between: self.between.max(other.between),
            behind: self.behind.max(other.behind),
            part: self.part.max(other.part),
            scaled: self.scaled.max(other.scaled),
            dropped: self.dropped.max(other.dropped),
        }
    }

    /// Memory of products, which all share.
    pub(super) fn of_step(
        cpu: Cpu,
        lows: &Lows,
        sites: (&EndSites, &[LayerSites], usize),
        load: &Load,
    ) -> Room {
        Room::of_way(cpu, lows, sites, load, true)
    }

    /// The same of a way through the layers, forth and back or forth only.
    fn of_way(
        cpu: Cpu,
        lows: &Lows,
        (ends, layers, lowest): (&EndSites, &[LayerSites], usize),
        load: &Load,
        and_back: bool,
    ) -> Room {
        let of =
            |site: &Site, tokens, is_backward| Room::of_product(cpu, lows, site, tokens, is_backward, load);
        let of = &of;
        let of_layers = layers.iter().enumerate().flat_map(|(number, layer)| {
            layer.sites().map(move |site| of(site, load.tokens, and_back && number >= lowest))
        });
        let head = ends.head.part(0, CHUNK.min(ends.head.shape().rows));
        let head = of(&head, load.labelled, and_back);
        // Sums of a norm's weight and bias; sinks are fewer.
        let sums = if and_back { 2 * ends.final_norm.norm.width } else { 0 };
        let sums = Room { part: sums, ..Room::default() };
        of_layers.fold(head.with(sums), Room::with)
    }

    fn of_product(cpu: Cpu, lows: &Lows, site: &Site, tokens: usize, is_backward: bool, load: &Load) -> Room {
        let form = form(cpu, load.halves);
        let is_wide = site.wide().is_some();
        let (Shape { rows, columns }, matrix) = (site.shape(), &site.matrix);
        let multiplied = |columns| floats(form, columns, tokens, load.threads);
        let panels =
            || panel_bytes(matrix.layout.form(Precision::Exact, cpu), matrix.width(), tokens).div_ceil(4);
        let words = if is_wide { multiplied(columns) } else { panels() };
        let mut room = Room { words, ..Room::default() };
        if is_backward {
            let taken = Taken {
                order: matrix.order.map(|_| &[][..]),
                factors: matrix.factors.map(|_| &[][..]),
                times: matrix.times,
            };
            let tiles = Rows::Tiles { layout: matrix.layout, tiles: &[], taken };
            let turned = match is_wide {
                true => multiplied(rows),
                false => transposed_floats(form, &tiles, site.shape(), tokens, load.threads),
            };
            room.words = room.words.max(turned);
            room.part = if site.bias_to.is_some() { rows } else { 0 };
            if let Some(target) = site.weight_to {
                room.words = room.words.max(cross_floats(form, rows, tokens, load.threads));
                let is_summed_there = target.straight(rows).is_some() && !load.short_gradients;
                let part = if is_summed_there { 0 } else { BLOCK.min(rows) * columns };
                room.part = room.part.max(part);
            }
        }
        let Some(at) = site.low else { return room };
        let low = &lows.list[at.low];
        let between = tokens * low.ranks;
        if !is_backward {
            return room.with(Room {
                words: multiplied(low.inputs),
                up: rows * low.ranks,
                between,
                part: if low.has_lengths() { rows } else { 0 },
                ..Room::default()
            });
        }
        let lengths = if low.has_lengths() { tokens * rows } else { 0 };
        room.with(Room {
            words: multiplied(low.inputs).max(multiplied(rows)),
            up: rows * low.ranks,
            between,
            behind: between,
            part: (rows * low.ranks).max(low.ranks * low.inputs).max(lengths),
            scaled: lengths,
            dropped: if load.drops { tokens * columns } else { 0 },
        })
    }

    fn floats(&self) -> usize {
        // What stands between both matrices of a change has a gradient, and so have inputs of which some are dropped.
        let between = self.between + self.behind;
        self.words + self.up + between + self.part + self.scaled + 2 * self.dropped
    }
}

/// Floats of a layer's buffers: of forward, of backward.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    forward: usize,
    /// Of forward, what no layer keeps.
    passing: usize,
    backward: usize,
}

impl Kept {
    fn most(self, other: Kept) -> Kept {
        Kept {
            forward: self.forward.max(other.forward),
            passing: self.passing.max(other.passing),
            backward: self.backward.max(other.backward),
        }
    }
}

impl Outline {
    /// As [`Training::some`](super::Training::some).
    pub fn some(source: &Source, is_trained: &dyn Fn(&str) -> bool, cpu: Cpu) -> Result<Outline, TrainError> {
        let known = stored(&source.checkpoint);
        let plan = Plan::in_floats(&source.spec, known, is_trained, Options::SMALLEST, cpu);
        let plan = plan.map_err(|plan| SourceError::Plan { folder: source.folder().into(), source: plan })?;
        let parameters = Parameters::of_model((&source.spec, &plan), &source.checkpoint, is_trained)?;
        Ok(Outline::new(source, plan, cpu, parameters, Lows::default()))
    }

    /// As [`Training::adapter`](super::Training::adapter), with an adapter whose numbers nobody asks for.
    pub fn adapter(
        source: &Source,
        adapter: &Adapter,
        quantization: Option<&'static OnLoad>,
        cpu: Cpu,
    ) -> Result<Outline, TrainError> {
        let options = Options { quantization, ..Options::SMALLEST };
        let plan = Plan::adapted(&source.spec, stored(&source.checkpoint), Some(adapter), options, cpu);
        let plan = plan.map_err(|plan| SourceError::Plan { folder: source.folder().into(), source: plan })?;
        let mut parameters = Parameters::of_wholes((&source.spec, &plan), adapter)?;
        let lows = Lows::of_adapter(&plan, adapter, &mut parameters)?;
        Ok(Outline::new(source, plan, cpu, parameters, lows))
    }

    fn new(source: &Source, plan: Plan, cpu: Cpu, parameters: Parameters, lows: Lows) -> Outline {
        let places = places(&plan, &source.checkpoint);
        let sites = Sites::new(&source.spec, &plan, &places, &parameters, &lows);
        let filled = plan.fills.iter().filter(|fill| !is_filled(fill, &places));
        let empty: usize = filled.map(|fill| fill.slot().bytes.next_multiple_of(ALIGNMENT)).sum();
        let filled_bytes = plan.weight_bytes - empty;
        Outline { spec: source.spec.clone(), plan, filled_bytes, cpu, parameters, lows, sites }
    }

    /// As [`Training::hold_changes`](super::Training::hold_changes).
    pub fn hold_changes(&mut self) {
        self.lows.hold();
    }

    /// What is trained.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters.list
    }

    /// Bytes that are mapped: weights in memory, and the most of those in files that is there at once.
    pub fn mapped_bytes(&self) -> usize {
        self.filled_bytes + self.lying_bytes()
    }

    fn lying_bytes(&self) -> usize {
        let layers = self.sites.layers.iter().map(LayerSites::lying_bytes).max().unwrap_or(0);
        let head = &self.sites.ends.head;
        let head = head.part(0, CHUNK.min(head.shape().rows));
        layers.max(head.place.map_or(0, |_| head.matrix.slot.bytes))
    }

    /// What a card would have of steps, in so many bytes of it.
    pub(crate) fn on_card(&self, load: &Load, budget: usize, passage: Passage) -> Option<CardPlan> {
        let Sites { ends, layers, lowest } = &self.sites;
        CardPlan::new(&self.spec, (ends, layers, *lowest), load, budget, passage)
    }

    /// Bytes of everything but the optimizer and the data.
    pub fn memory(&self, load: &Load) -> Vec<Part> {
        let own = 4 * self.parameters.own_count() + self.lows.bytes();
        let (layers, hidden) = (self.sites.layers.len() - self.sites.lowest, self.spec.hidden);
        let number = if load.halves { 2 } else { 4 };
        let kept = self.kept(load);
        let parts = [
            ("weights", self.filled_bytes),
            ("weights in files, at once", self.lying_bytes()),
            ("adapter", own),
            ("gradients", Gradients::bytes(self.parameters.count, load.short_gradients)),
            ("inputs of layers", load.tokens * hidden * layers * number),
            (if load.layers { "layers forward" } else { "a layer forward" }, 4 * kept.forward),
            ("a layer backward", 4 * kept.backward),
            ("products", 4 * self.room(load).floats()),
            ("head and loss", self.ends(load)),
        ];
        parts.map(|(what, bytes)| (what, bytes as u64)).to_vec()
    }

    /// The stream and its copies, and a layer's buffers, which all layers share.
    fn kept(&self, load: &Load) -> Kept {
        let (all, size) = (load.forward(), load.tokens * self.spec.hidden);
        let layers = self.spec.layers.iter().zip(&self.sites.layers);
        let of = |load: Load| layers.clone().map(move |(spec, sites)| self.kept_of(spec, sites, &load));
        let mut layer = of(all).fold(Kept::default(), Kept::most);
        layer.backward = of(*load).fold(Kept::default(), Kept::most).backward;
        if load.layers {
            // Layers below have one set of buffers, and all have when the model is measured.
            layer.forward += of(*load).skip(self.sites.lowest).map(|of| of.forward).sum::<usize>();
        }
        let has_lengths = |site: &&Site| site.low.is_some_and(|at| self.lows.list[at.low].has_lengths());
        let sites = self.sites.layers.iter().flat_map(LayerSites::sites).filter(has_lengths);
        let rows = sites.map(row_floats).max().unwrap_or(0);
        // Stream; its copy before a layer, and that which the layer is run with once more.
        let again = if load.layers { rows } else { size.max(rows) };
        let forward = all.tokens * self.spec.hidden + layer.passing + layer.forward;
        Kept { forward, passing: 0, backward: size + again + layer.backward }
    }

    fn kept_of(&self, spec: &LayerSpec, sites: &LayerSites, load: &Load) -> Kept {
        let (a, tokens, size) = (&spec.attention, load.tokens, load.tokens * self.spec.hidden);
        let [query, key] = [a.heads, a.kv_heads].map(|heads| tokens * heads * a.head_width);
        let angles = tokens * 2 * self.plan.weights.ropes[a.rope].pairs();
        let raw = if sites.head_norms.is_some() { query + key } else { 0 };
        let results = if sites.post_norms.is_some() { 2 * size } else { 0 };
        let documents = [load.longest];
        let attention = attention::Shape {
            heads: a.heads,
            kv_heads: a.kv_heads,
            width: a.head_width,
            scale: a.scale,
            window: a.window,
            softcap: a.cap,
            sinks: None,
            documents: &documents,
        };
        // What a block made, and the attention's own.
        let passing = size + attention.scratch_floats(load.threads);
        // Before both blocks, and between them.
        let forward = 3 * size + results + 2 * query + 2 * key + raw + angles + tokens * a.heads;
        let backward = 2 * size + query + 2 * key + query.max(key);
        let (hidden, width) = (spec.mlp.width, self.spec.hidden);
        let gates = if sites.gate.is_some() { 2 } else { 1 };
        let (more, back) = match spec.mlp.experts {
            None => (tokens * hidden * (1 + gates), tokens * hidden * gates),
            Some(experts) => {
                let choice = experts.choice;
                let (places, router) = (choice.places(tokens), tokens * choice.experts);
                let routing = choice.bytes(tokens).unwrap_or(0) / 4;
                let forward = router + routing + places * (2 * width + hidden * (1 + gates));
                (forward, router + places * 2 * width + tokens * hidden * gates)
            }
        };
        Kept { forward: forward + more, passing, backward: backward + back }
    }

    fn room(&self, load: &Load) -> Room {
        let Sites { ends, layers, lowest } = &self.sites;
        let of = |load: &Load, and_back| {
            Room::of_way(self.cpu, &self.lows, (ends, layers, *lowest), load, and_back)
        };
        match load.measured.tokens {
            0 => of(load, true),
            _ => of(load, true).with(of(&load.measuring(), false)),
        }
    }

    /// Bytes of the loss.
    fn ends(&self, load: &Load) -> usize {
        let (rows, most, ends) = (load.labelled, load.forward().labelled, &self.sites.ends);
        let (hidden, chunk) = (self.spec.hidden, CHUNK.min(self.spec.vocab));
        let capped = if self.spec.logits_cap.is_some() { rows * chunk } else { 0 };
        let row = (1 + ends.embedding.matrix.times) * hidden;
        let floats = 2 * (most + rows) * hidden + most * chunk + capped + row;
        most * (2 * size_of::<usize>() + size_of::<Entropy>()) + 4 * floats
    }
}

/// Floats of a row with its change, where its length is wanted.
fn row_floats(site: &Site) -> usize {
    (2 + site.matrix.times) * site.shape().columns
}
