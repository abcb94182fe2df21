//! One block of a decoder on its own: the hidden states of many short sequences run through it, whoever calibrates
//! looks at the inputs of its matrices, and puts others in their place.
//!
//! The states belong to the caller, so a model of any depth takes the memory of one block: its matrices in float32, and
//! buffers for a few sequences. A mixture has too many of them for that: its experts can lie as they are stored, with
//! room for the codes that they become ([`Replaced`]). [`Block::plan`] says how much it is before it is taken. The
//! decoder is the one that generates; only the backend beneath it is wrapped.

use bantam_core::layouts::{NotFinite, Shape, TILE_ROWS};
use bantam_core::ops::experts::Routing;
use bantam_core::{
    Activation, Attention, Backend, Batch, Cpu, CpuBackend, Feed, Heads, KvCache, KvKind, Matrix, Norm,
    Precision, Product, Rope, Routed, RowPer, Slot, Trits,
};
use memmap2::MmapMut;

use crate::decoder::Decoder;
use crate::engine::{LoadError, stored};
use crate::formats::{CodeRow, Tensors};
use crate::memory;
pub use crate::plan::Replaced;
use crate::plan::{Cut, Fill, Linear, Options, Origin, Plan, PlanError};
use crate::pool::Threads;
use crate::source::{Source, SourceError};
use crate::spec::ModelSpec;
use crate::weights::{self, Unpacked};

mod replaced;
use replaced::Stack;

/// The residual stream between two blocks: hidden states of sequences of one length, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Streams {
    /// Positions of a sequence.
    pub length: usize,
    /// Channels.
    pub width: usize,
    /// `sequences x length x width` values.
    pub values: Vec<f32>,
}

impl Streams {
    /// What a model's first block sees of tokens, `length` to a sequence; what is left over is dropped.
    ///
    /// # Panics
    /// If a token is outside the vocabulary.
    pub fn embed(source: &Source, tokens: &[u32], length: usize) -> Result<Streams, SourceError> {
        let (spec, width) = (&source.spec, source.spec.hidden);
        let tokens = &tokens[..tokens.len() / length * length];
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= spec.vocab) {
            panic!("token {token} is outside the vocabulary");
        }
        let mut values = vec![0.0; tokens.len() * width];
        embed(source, tokens, &mut values)?;
        if spec.embedding_scale != 1.0 {
            values.iter_mut().for_each(|value| *value *= spec.embedding_scale);
        }
        Ok(Streams { length, width, values })
    }

    /// How many.
    pub fn sequences(&self) -> usize {
        self.values.len() / (self.length * self.width)
    }
}

/// Rows of the embedding, whatever it is stored as.
fn embed(source: &Source, tokens: &[u32], out: &mut [f32]) -> Result<(), LoadError> {
    let (spec, checkpoint) = (&source.spec, &source.checkpoint);
    let shape = Shape { rows: spec.vocab, columns: spec.hidden };
    let (module, stored) = (spec.names.embedding, stored(checkpoint));
    let stored = |name: &str| stored(name, &[]);
    let rows = tokens.iter().zip(out.chunks_exact_mut(spec.hidden));
    if let Some(packed) = spec.format.find(&Tensors(&stored), module, shape)? {
        let sources = packed.sources(checkpoint);
        let unpacked = Unpacked::read(&packed, &sources)?;
        let table = unpacked.rows()?;
        rows.for_each(|(&token, out)| table.row(token as usize, out));
        return Ok(());
    }
    let tensor = format!("{module}.weight");
    let expected = vec![shape.rows, shape.columns];
    let Some(table) = checkpoint.tensor(&tensor) else {
        return Err(PlanError::MissingTensor { tensor, expected }.into());
    };
    if table.shape != expected {
        return Err(PlanError::Shape { tensor, expected, found: table.shape.to_vec() }.into());
    }
    let mut bytes = Vec::new();
    for (&token, out) in rows {
        let read = table.load_f32(token as usize * spec.hidden, out, &mut bytes);
        read.map_err(|error| weights::unreadable(&table, error))?;
    }
    Ok(())
}

/// A matrix of a checkpoint, as its module holds it: projections that share a tensor are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The module; of a stack of experts, the tensor and the expert's number behind a point.
    pub name: String,
    /// Outputs and inputs.
    pub shape: Shape,
    /// What it is multiplied with.
    pub input: BlockInput,
    /// Whether only some rows are sent to it.
    pub is_expert: bool,
}

/// The inputs of a block's matrices, in the order in which they are computed. Modules of one input share it, experts
/// apart: each of them sees the rows that are sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockInput {
    /// The stream, normed: of queries, keys and values.
    Attention,
    /// What attention gathered.
    Attended,
    /// The stream, normed again: of gate and up, and of a router.
    FeedForward,
    /// What the bend leaves.
    Bent,
}

/// A part of a module that the decoder has as a matrix of its own.
#[derive(Debug, Clone, Copy)]
struct Piece {
    module: usize,
    cut: Cut,
    matrix: Matrix,
}

/// Looks at what matrices are multiplied with.
pub trait Tap {
    /// Whether it looks at the input of a module, by its place in [`Block::modules`].
    fn wants(&self, module: usize) -> bool;
    /// Modules are about to be multiplied.
    fn see(&mut self, seen: &Seen);
    /// Whether it looks at where rows are sent.
    fn wants_routing(&self) -> bool {
        false
    }
    /// So many rows were sent to experts.
    fn routed(&mut self, _rows: usize, _routing: &Routing) {}
}

/// A product that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The wanted modules that it is made with.
    pub modules: &'a [usize],
    /// Rows that they are multiplied with: all of them, or of an expert those that were sent to it.
    pub rows: &'a [f32],
    /// Values of a row.
    pub columns: usize,
    /// Where the result is added to the stream: what stands there, row by row.
    pub stream: Option<&'a [f32]>,
}

/// Looks at nothing.
impl Tap for () {
    fn wants(&self, _: usize) -> bool {
        false
    }
    fn see(&mut self, _: &Seen) {}
}

/// A block in memory.
#[derive(Debug)]
pub struct Block {
    decoder: Decoder,
    backend: CpuBackend<MmapMut, Threads>,
    plan: Plan,
    modules: Vec<Module>,
    pieces: Vec<Piece>,
    /// Experts that get codes.
    replaced: Vec<Stack>,
    tables: Vec<u32>,
}

/// Rows that a step takes at most, in whole sequences: enough to keep the kernels busy.
const STEP_ROWS: usize = 512;

fn options(length: usize) -> Options {
    let sequences = (STEP_ROWS / length).max(1);
    Options {
        context: length,
        sequences,
        cache_positions: None,
        chunk: sequences * length,
        logits_rows: 1,
        kv: KvKind::F32,
        precision: Precision::Exact,
        quantization: None,
        head: None,
        experts: None,
        trits: Trits::Packed,
        adapter_bytes: 0,
    }
}

impl Block {
    /// Every byte that a block takes, for sequences of `length` positions, and the model of this one layer.
    pub fn plan(
        source: &Source,
        layer: usize,
        length: usize,
        cpu: Cpu,
        replaced: Option<Replaced>,
    ) -> Result<(ModelSpec, Plan), SourceError> {
        let (spec, plan, _) = Block::planned(source, layer, length, cpu, replaced)?;
        Ok((spec, plan))
    }

    fn planned(
        source: &Source,
        layer: usize,
        length: usize,
        cpu: Cpu,
        replaced: Option<Replaced>,
    ) -> Result<(ModelSpec, Plan, [Option<Matrix>; 3]), SourceError> {
        let spec = ModelSpec { layers: vec![source.spec.layers[layer]], vocab: 0, ..source.spec.clone() };
        let plan = Plan::of_layer(&spec, layer, stored(&source.checkpoint), options(length), cpu, replaced);
        let (plan, stacks) =
            plan.map_err(|plan| SourceError::Plan { folder: source.folder().into(), source: plan })?;
        Ok((spec, plan, stacks))
    }

    /// Takes the memory and reads the block's weights, whatever they are stored as, into float32; of experts that will
    /// be replaced, as they are stored.
    pub fn load(
        source: &Source,
        layer: usize,
        length: usize,
        cpu: Cpu,
        threads: usize,
        replaced: Option<Replaced>,
    ) -> Result<Block, SourceError> {
        let (spec, plan, stacks) = Block::planned(source, layer, length, cpu, replaced)?;
        let system =
            |what: &str, source| SourceError::Load(LoadError::System { what: what.to_owned(), source });
        let arena = memory::region(plan.weight_bytes)
            .and_then(|weights| memory::arena(weights, plan.cache_bytes, plan.work_bytes))
            .map_err(|source| system(&format!("{} bytes of memory", plan.bytes()), source))?;
        let pool = Threads::start(threads).map_err(|source| system("threads", source))?;
        let mut backend = CpuBackend::new(cpu, Precision::Exact, pool, arena, plan.work.panels);
        let (arena, pool) = backend.parts_mut();
        weights::load(&plan, &source.checkpoint, None, arena, pool, &mut |_| {}).map_err(LoadError::from)?;
        let (modules, pieces) = modules(&plan);
        let tables = (0..plan.pages as u32).collect();
        let decoder = Decoder::new(spec, &plan);
        let replaced = Stack::all(&plan, stacks, &pieces);
        Ok(Block { decoder, backend, plan, modules, pieces, replaced, tables })
    }

    /// Its matrices, in the decoder's order.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Bytes of the memory that was taken.
    pub fn bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// Threads, and the instruction sets that they may use, for work on what the tap sees.
    pub fn pool(&self) -> &Threads {
        self.backend.pool()
    }

    /// A module's weights, output row by output row. Those of experts are gone once all of their kind are replaced.
    pub fn weights(&self, module: usize) -> Vec<f32> {
        let Shape { rows, columns } = self.modules[module].shape;
        let mut values = vec![0.0; rows * columns];
        for Piece { cut, matrix, .. } in self.pieces_of(module) {
            let tiles = self.backend.arena().read(matrix.slot);
            let tile_bytes = matrix.layout.tile_bytes(columns);
            for row in 0..matrix.shape.rows {
                let tile = &tiles[row / TILE_ROWS * tile_bytes..][..tile_bytes];
                let out = &mut values[cut.source_row(row) * columns..][..columns];
                matrix.layout.unpack(columns, tile, row % TILE_ROWS, out);
            }
        }
        values
    }

    /// Puts other weights in a module's place.
    pub fn set_weights(&mut self, module: usize, values: &[f32]) -> Result<(), NotFinite> {
        let Shape { rows, columns } = self.modules[module].shape;
        assert_eq!(values.len(), rows * columns, "as many weights as the module has");
        for Piece { cut, matrix, .. } in self.pieces_of(module).collect::<Vec<_>>() {
            let layout = matrix.layout;
            let tiles = self.backend.arena_mut().write(matrix.slot);
            for (number, tile) in tiles.chunks_exact_mut(layout.tile_bytes(columns)).enumerate() {
                let first = number * TILE_ROWS;
                let rows = first..(first + TILE_ROWS).min(matrix.shape.rows);
                let of_row = |row| &values[cut.source_row(row) * columns..][..columns];
                let tile_rows: Vec<f32> = rows.flat_map(of_row).copied().collect();
                layout.pack(columns, &tile_rows, tile)?;
            }
        }
        Ok(())
    }

    /// Whether a module is one of those that get codes in place of weights.
    pub fn takes_codes(&self, module: usize) -> bool {
        self.replaced.iter().any(|stack| stack.holds(&self.pieces, module))
    }

    /// Puts codes in an expert's place; `codes` fills in those of a row, in the order of the inputs. Once all experts
    /// of a stack have theirs, the block computes with them, and no longer knows what they were.
    ///
    /// # Panics
    /// If the block was not loaded for it: see [`takes_codes`](Self::takes_codes).
    pub fn set_codes(
        &mut self,
        module: usize,
        codes: &(dyn Fn(usize, &mut CodeRow) + Sync),
    ) -> Result<(), NotFinite> {
        assert!(self.takes_codes(module), "{}: takes no codes", self.modules[module].name);
        for stack in &mut self.replaced {
            stack.pack(&self.pieces, module, codes, &mut self.backend)?;
            if stack.is_whole() {
                stack.place(&mut self.pieces, &mut self.decoder);
            }
        }
        Ok(())
    }

    fn pieces_of(&self, module: usize) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.iter().filter(move |piece| piece.module == module).copied()
    }

    /// The values of a vector: a norm's weight, a bias; `None` where the block has none of that name.
    pub fn vector(&self, tensor: &str) -> Option<&[f32]> {
        Some(self.backend.arena().floats(self.vector_slot(tensor)?))
    }

    /// The same, to be changed.
    pub fn vector_mut(&mut self, tensor: &str) -> Option<&mut [f32]> {
        let slot = self.vector_slot(tensor)?;
        Some(self.backend.arena_mut().floats_mut(slot))
    }

    fn vector_slot(&self, name: &str) -> Option<Slot> {
        self.plan.fills.iter().find_map(|fill| match fill {
            Fill::Vector { slot, tensor, .. } if tensor == name => Some(*slot),
            _ => None,
        })
    }

    /// Runs all sequences through the block: the streams then hold its result.
    pub fn run(&mut self, streams: &mut Streams, tap: &mut dyn Tap) {
        let step = self.step(streams);
        for values in streams.values.chunks_mut(step) {
            let result = self.run_some(values, tap, None);
            values.copy_from_slice(result);
        }
    }

    /// Runs them through it for what the tap sees, and no further; they stay as they are.
    pub fn look(&mut self, streams: &Streams, tap: &mut dyn Tap) {
        let wanted = self.modules.iter().enumerate().filter(|(module, _)| tap.wants(*module));
        let Some(last) = wanted.map(|(_, module)| module.input).max() else { return };
        for values in streams.values.chunks(self.step(streams)) {
            self.run_some(values, tap, Some(last));
        }
    }

    /// Values that run together.
    fn step(&self, streams: &Streams) -> usize {
        let Options { context: length, chunk, .. } = self.plan.options;
        assert_eq!(streams.length, length, "the length that the block was planned for");
        assert_eq!(streams.width, self.decoder.spec.hidden, "the model's channels");
        chunk * streams.width
    }

    /// With `last`, what follows from that input is left out.
    fn run_some(&mut self, values: &[f32], tap: &mut dyn Tap, last: Option<BlockInput>) -> &[f32] {
        let length = self.plan.options.context;
        let rows = values.len() / self.decoder.spec.hidden;
        let feed = |sequence: usize| Feed {
            first_row: sequence * length,
            rows: length,
            first_position: 0,
            sequence,
            length,
        };
        let feeds: Vec<Feed> = (0..rows / length).map(feed).collect();
        let pages_per_sequence = self.plan.pages_per_sequence;
        let batch = Batch { feeds: &feeds, tables: &self.tables, pages_per_sequence };
        let slot = self.decoder.stream().first(values.len());
        self.backend.arena_mut().floats_mut(slot).copy_from_slice(values);
        let (pieces, modules) = (&self.pieces[..], &self.modules[..]);
        let end = last.map(|input| End { input, modules });
        let mut tapped = Tapped { inner: &mut self.backend, tap, pieces, end, rows: Vec::new() };
        self.decoder.forward_layer(&mut tapped, 0, &batch);
        self.backend.arena().floats(slot)
    }
}

/// The modules that a plan's matrices are parts of.
fn modules(plan: &Plan) -> (Vec<Module>, Vec<Piece>) {
    let mut keys: Vec<(String, usize)> = Vec::new();
    let (mut modules, mut pieces) = (Vec::<Module>::new(), Vec::new());
    for fill in &plan.fills {
        let Fill::Matrix { matrix, origin, cut, .. } = fill else { continue };
        let (name, start) = match origin {
            // An adapter's tensors stand for those of the same name; blocks are planned without one.
            Origin::Tensor(name) | Origin::Whole(name) => {
                (name.strip_suffix(".weight").unwrap_or(name).to_owned(), cut.start)
            }
            Origin::Packed(packed) => (packed.module.clone(), 0),
        };
        let module = keys.iter().position(|key| (&key.0, key.1) == (&name, start));
        let module = module.unwrap_or_else(|| {
            // Matrices of a stack begin at different places of one tensor, in the order of the experts.
            let expert = keys.iter().filter(|key| key.0 == name).count();
            let shown =
                if is_together(plan, origin, start) { format!("{name}.{expert}") } else { name.clone() };
            keys.push((name, start));
            let (shape, input) = (Shape { rows: 0, ..matrix.shape }, input_of(plan, matrix.slot));
            let is_expert = is_expert(plan, matrix.slot);
            modules.push(Module { name: shown, shape, input, is_expert });
            modules.len() - 1
        });
        modules[module].shape.rows += matrix.shape.rows;
        pieces.push(Piece { module, cut: *cut, matrix: *matrix });
    }
    (modules, pieces)
}

fn input_of(plan: &Plan, slot: Slot) -> BlockInput {
    let w = &plan.weights.layers[0];
    let is = |linear: &Linear| linear.matrix.slot.range().contains(&slot.offset);
    if [&w.query, &w.key, &w.value].into_iter().any(is) {
        BlockInput::Attention
    } else if is(&w.output) {
        BlockInput::Attended
    } else if is(&w.down) {
        BlockInput::Bent
    } else {
        BlockInput::FeedForward
    }
}

fn is_expert(plan: &Plan, slot: Slot) -> bool {
    let w = &plan.weights.layers[0];
    let experts = [Some(&w.up), w.gate.as_ref(), Some(&w.down)].into_iter().flatten();
    let holds = |linear: &Linear| linear.matrix.slot.range().contains(&slot.offset);
    w.router.is_some() && experts.into_iter().any(holds)
}

/// Whether other matrices begin elsewhere in the same tensor.
fn is_together(plan: &Plan, origin: &Origin, start: usize) -> bool {
    let Origin::Tensor(name) = origin else { return false };
    plan.fills.iter().any(|fill| match fill {
        Fill::Matrix { origin: Origin::Tensor(other), cut, .. } => other == name && cut.start != start,
        _ => false,
    })
}

/// A backend whose products can be looked at.
pub(crate) struct Tapped<'a, B> {
    inner: &'a mut B,
    tap: &'a mut dyn Tap,
    pieces: &'a [Piece],
    end: Option<End<'a>>,
    /// Rows that were sent to an expert.
    rows: Vec<f32>,
}

/// The last input that is looked at: products of it and of later ones are not made.
struct End<'a> {
    input: BlockInput,
    modules: &'a [Module],
}

impl<'a, B> Tapped<'a, B> {
    /// For a tap that looks at no products.
    pub(crate) fn at_routing(inner: &'a mut B, tap: &'a mut dyn Tap) -> Self {
        Tapped { inner, tap, pieces: &[], end: None, rows: Vec::new() }
    }
}

impl<B: Backend> Tapped<'_, B> {
    /// Which of the wanted modules are parts of products, where those are stacks: their `expert`.
    fn wanted(&self, products: &[Product], expert: usize) -> Vec<usize> {
        let mut found = Vec::new();
        for product in products {
            let stack = product.matrix.slot;
            let of_stack = |piece: &&Piece| stack.range().contains(&piece.matrix.slot.offset);
            let Some(piece) = self.pieces.iter().filter(of_stack).nth(expert) else { continue };
            if self.tap.wants(piece.module) && !found.contains(&piece.module) {
                found.push(piece.module);
            }
        }
        found
    }

    /// Whether nobody looks at what products make. A router's say which expert sees what.
    fn is_over(&self, products: &[Product]) -> bool {
        let Some(End { input, modules }) = &self.end else { return false };
        let slot = products[0].matrix.slot;
        let piece = self.pieces.iter().find(|piece| slot.range().contains(&piece.matrix.slot.offset));
        let Some(module) = piece.map(|piece| &modules[piece.module]) else { return false };
        let is_mixture = modules.iter().any(|module| module.is_expert);
        let is_router = is_mixture && module.input == BlockInput::FeedForward && !module.is_expert;
        module.input > *input || module.input == *input && !is_router
    }

    fn look_at_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        let experts = 0..routed.choice.experts;
        if experts.clone().all(|expert| self.wanted(products, expert).is_empty()) {
            return;
        }
        let columns = products[0].matrix.shape.columns;
        let mut memory = self.inner.read(routed.slot).to_vec();
        let routing = Routing::over(routed.choice, rows, &mut memory);
        for &[expert, first, count] in routing.segments() {
            let modules = self.wanted(products, expert as usize);
            if modules.is_empty() {
                continue;
            }
            self.rows.clear();
            let x = self.inner.read(x);
            for place in first as usize..(first + count) as usize {
                let row = match per {
                    RowPer::Token => routing.rows()[place] as usize,
                    RowPer::Place => place,
                };
                self.rows.extend_from_slice(&x[row * columns..][..columns]);
            }
            self.tap.see(&Seen { modules: &modules, rows: &self.rows, columns, stream: None });
        }
    }
}

impl<B: Backend> Backend for Tapped<'_, B> {
    fn matmul(&mut self, rows: usize, x: Slot, products: &[Product]) {
        let modules = self.wanted(products, 0);
        if !modules.is_empty() {
            let Shape { rows: outputs, columns } = products[0].matrix.shape;
            let stream = products[0].add.then(|| self.inner.read(products[0].out.first(rows * outputs)));
            let rows = self.inner.read(x.first(rows * columns));
            self.tap.see(&Seen { modules: &modules, rows, columns, stream });
        }
        if !self.is_over(products) {
            self.inner.matmul(rows, x, products);
        }
    }
    fn matmul_experts(&mut self, routed: &Routed, rows: usize, per: RowPer, x: Slot, products: &[Product]) {
        self.look_at_experts(routed, rows, per, x, products);
        if !self.is_over(products) {
            self.inner.matmul_experts(routed, rows, per, x, products);
        }
    }
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: Slot) {
        self.inner.embed(table, tokens, scale, out);
    }
    fn norm(&mut self, norm: &Norm, rows: usize, x: Slot, out: Slot) {
        self.inner.norm(norm, rows, x, out);
    }
    fn route(&mut self, routed: &Routed, rows: usize, logits: Slot) {
        self.inner.route(routed, rows, logits);
        if self.tap.wants_routing() {
            let mut memory = self.inner.read(routed.slot).to_vec();
            self.tap.routed(rows, &Routing::over(routed.choice, rows, &mut memory));
        }
    }
    fn combine(&mut self, routed: &Routed, rows: usize, width: usize, places: Slot, out: Slot) {
        self.inner.combine(routed, rows, width, places, out);
    }
    fn add(&mut self, rows: usize, width: usize, x: Slot, out: Slot) {
        self.inner.add(rows, width, x, out);
    }
    fn cap(&mut self, limit: f32, rows: usize, width: usize, x: Slot) {
        self.inner.cap(limit, rows, width, x);
    }
    fn angles(&mut self, rope: &Rope, batch: &Batch, out: Slot) {
        self.inner.angles(rope, batch, out);
    }
    fn rotate(&mut self, rows: usize, angles: Slot, heads: Heads, x: Slot) {
        self.inner.rotate(rows, angles, heads, x);
    }
    fn store(&mut self, cache: &KvCache, batch: &Batch, keys: Slot, values: Slot) {
        self.inner.store(cache, batch, keys, values);
    }
    fn attend(&mut self, attention: &Attention, cache: &KvCache, batch: &Batch, queries: Slot, out: Slot) {
        if self.end.as_ref().is_none_or(|end| end.input > BlockInput::Attention) {
            self.inner.attend(attention, cache, batch, queries, out);
        }
    }
    fn activate(&mut self, activation: Activation, rows: usize, width: usize, gate: Slot, up: Option<Slot>) {
        self.inner.activate(activation, rows, width, gate, up);
    }
    fn scale(
        &mut self,
        routed: Option<&Routed>,
        rows: usize,
        width: usize,
        factors: Slot,
        bias: Option<Slot>,
        out: Slot,
    ) {
        self.inner.scale(routed, rows, width, factors, bias, out);
    }
    fn gather(&mut self, rows: &[usize], width: usize, x: Slot, out: Slot) {
        self.inner.gather(rows, width, x, out);
    }
    fn read(&self, slot: Slot) -> &[f32] {
        self.inner.read(slot)
    }
}
