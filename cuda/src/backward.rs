//! Operations backwards, as in `core/src/ops/backward`: what training asks of a card beside the backend's own.

use bantam_core::cuda::Kernel;
use bantam_core::layouts::TILE_ROWS;
use bantam_core::{Activation, Heads, Matrix, Norm, NormKind, Routed, RowPer, Slot};
use bantam_model::card::{BACK_ROWS, Fill, Passing};

use crate::backend::{CudaBackend, THREADS, kind_of, pair};
use crate::driver::Shape;

/// Rows of a matrix that are in float32 at a time.
pub const UNPACKED_ROWS: usize = BACK_ROWS;
/// Threads of a block of attention.
const ATTEND_THREADS: usize = 128;
/// Results of a block of a product, each way.
const SIDE: usize = 32;

/// Attention over whole documents.
#[derive(Debug, Clone, Copy)]
pub struct Documents {
    /// Rows of queries, keys and values.
    pub x: [Slot; 3],
    /// One score per query head.
    pub sinks: Option<Slot>,
    /// Of every row the first of its document and the one after its last, as words.
    pub bounds: [Slot; 2],
    /// Rows.
    pub rows: usize,
    /// Query heads.
    pub heads: Heads,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Positions that a row sees, its own included.
    pub window: Option<usize>,
    /// Bends scores.
    pub softcap: Option<f32>,
}

/// A product on its way back: addresses of `dy`, of the gradient of its input, and of the numbers of a block's rows.
struct Back {
    matrix: Matrix,
    rows: usize,
    dy: u64,
    dx: u64,
    add: bool,
    unpacked: Slot,
    list: u64,
    /// Rows of a block, whole tiles.
    most: usize,
}

impl CudaBackend {
    /// Of `y = f(gate) * up`: `d`, the gradient of `y`, becomes that of `gate`; that of `up` is written beside it.
    pub fn activate_back(
        &mut self,
        activation: Activation,
        count: usize,
        gate: Slot,
        up: Option<(Slot, Slot)>,
        d: Slot,
    ) {
        let (up, dup) = up.map_or((0, 0), |(up, dup)| (self.floats(up, count), self.floats(dup, count)));
        let (gate, d) = (self.floats(gate, count), self.floats(d, count));
        self.by_value(Kernel::activate_back, count, (kind_of(activation), count as u64, gate, up, dup, d));
    }

    /// The same of `y = limit * tanh(x / limit)`, given `y`.
    pub fn cap_back(&mut self, limit: f32, count: usize, y: Slot, d: Slot) {
        let (y, d) = (self.floats(y, count), self.floats(d, count));
        self.by_value(Kernel::cap_back, count, (limit, count as u64, y, d));
    }

    /// From `dy` to the gradient of the rows, written or added; `stats` gets two floats for each row.
    #[allow(clippy::too_many_arguments, reason = "an operation: what it is, how large, and where")]
    pub fn norm_back(
        &mut self,
        norm: &Norm,
        rows: usize,
        x: Slot,
        dy: Slot,
        dx: Slot,
        add: bool,
        stats: Slot,
    ) {
        let count = rows * norm.width;
        let words = [
            self.floats(x, count),
            self.floats(dy, count),
            self.address(norm.weight),
            self.floats(dx, count),
            self.floats(stats, 2 * rows),
            pair(norm.width, norm.epsilon.to_bits() as usize),
            pair(norm.weight_shift.to_bits() as usize, usize::from(norm.kind == NormKind::Layer)),
            pair(usize::from(add), 0),
        ];
        self.by_row(Kernel::norm_back, rows, (words,));
    }

    /// Adds up the gradients of weight and bias, given what [`CudaBackend::norm_back`] left in `stats`.
    pub fn norm_back_weights(
        &mut self,
        [rows, width]: [usize; 2],
        x: Slot,
        dy: Slot,
        stats: Slot,
        [dweight, dbias]: [Option<Slot>; 2],
    ) {
        let (x, dy) = (self.floats(x, rows * width), self.floats(dy, rows * width));
        let stats = self.floats(stats, 2 * rows);
        let (dweight, dbias) = (self.optional(dweight), self.optional(dbias));
        let numbers = (x, dy, stats, rows as u32, width as u32, dweight, dbias);
        self.by_value(Kernel::norm_back_weights, width, numbers);
    }

    /// From the gradient of what rows got back to those of the places' parts and of the router's logits.
    pub fn combine_back(
        &mut self,
        routed: &Routed,
        [rows, width]: [usize; 2],
        [parts, dy]: [Slot; 2],
        [dparts, dlogits]: [Slot; 2],
    ) {
        let choice = routed.choice;
        let words = self.routed(routed, rows, RowPer::Place);
        let places = choice.places(rows) * width;
        let (parts, dparts) = (self.floats(parts, places), self.floats(dparts, places));
        let (dy, dlogits) = (self.floats(dy, rows * width), self.floats(dlogits, rows * choice.experts));
        let shared = 4 * (THREADS / 32 + choice.chosen);
        let shape = Shape { grid: (rows, 1), threads: THREADS, shared };
        let numbers = (words, choice.chosen as u32, width as u32, parts, dy, dparts, dlogits);
        self.launch(Kernel::combine_back, shape, numbers);
    }

    /// Takes note of a chunk of logits that begins at `first`: `known` has three floats for each row.
    pub fn entropy_see(&mut self, [rows, width, first]: [usize; 3], logits: Slot, labels: Slot, known: Slot) {
        let logits = self.floats(logits, rows * width);
        let (labels, known) = (self.floats(labels, rows), self.floats(known, 3 * rows));
        self.by_row(Kernel::entropy_see, rows, (logits, width as u32, first as u32, labels, known));
    }

    /// Makes a chunk's logits the gradient of its rows' losses, each times its scale.
    pub fn entropy_back(
        &mut self,
        [rows, width, first]: [usize; 3],
        logits: Slot,
        [labels, scales]: [Slot; 2],
        known: Slot,
    ) {
        let logits = self.floats(logits, rows * width);
        let (labels, scales) = (self.floats(labels, rows), self.floats(scales, rows));
        let known = self.floats(known, 3 * rows);
        self.by_row(Kernel::entropy_back, rows, (width as u32, first as u32, labels, scales, known, logits));
    }

    fn documents_words(&self, of: &Documents) -> [u64; 10] {
        let (queries, keys) = (of.rows * of.heads.channels(), of.rows * of.kv_heads * of.heads.width);
        let window = of.window.map_or(u32::MAX as usize, |window| window.min(u32::MAX as usize));
        let bits = |x: f32| x.to_bits() as usize;
        [
            self.floats(of.x[0], queries),
            self.floats(of.x[1], keys),
            self.floats(of.x[2], keys),
            self.optional(of.sinks),
            self.floats(of.bounds[0], of.rows),
            self.floats(of.bounds[1], of.rows),
            pair(of.heads.count, of.kv_heads),
            pair(of.heads.width, of.rows),
            pair(window, bits(of.scale)),
            pair(bits(of.softcap.unwrap_or(0.0)), 0),
        ]
    }

    /// Attention over whole documents, and for every head and row the logarithm of its softmax's sum.
    pub fn documents(&mut self, of: &Documents, out: Slot, logs: Slot) {
        let words = self.documents_words(of);
        let out = self.floats(out, of.rows * of.heads.channels());
        let logs = self.floats(logs, of.heads.count * of.rows);
        self.launch(Kernel::documents, documents_shape(of.rows, of.heads.count), (words, out, logs));
    }

    /// From `dy` to the gradients of queries, keys and values, which are written, and of sinks, which are added.
    /// `known` is scratch of three floats for each head and row.
    pub fn documents_back(
        &mut self,
        of: &Documents,
        [logs, dy, known]: [Slot; 3],
        d: [Slot; 3],
        dsinks: Option<Slot>,
    ) {
        let words = self.documents_words(of);
        let (rows, heads) = (of.rows, of.heads.count);
        let (queries, keys) = (rows * of.heads.channels(), rows * of.kv_heads * of.heads.width);
        let (logs, known) = (self.floats(logs, heads * rows), self.floats(known, 3 * heads * rows));
        let dy = self.floats(dy, queries);
        let [dqueries, dkeys, dvalues] =
            [self.floats(d[0], queries), self.floats(d[1], keys), self.floats(d[2], keys)];
        let shape = documents_shape(rows, heads);
        self.launch(Kernel::documents_back_queries, shape, (words, logs, dy, dqueries, known));
        let shape = Shape { shared: 8 * ATTEND_THREADS, ..documents_shape(rows, of.kv_heads) };
        self.launch(Kernel::documents_back_keys, shape, (words, logs, dy, known, dkeys, dvalues));
        if let Some(dsinks) = dsinks {
            let dsinks = self.floats(dsinks, heads);
            self.by_row(Kernel::documents_back_sinks, heads, (known, rows as u32, dsinks));
        }
    }

    /// From `dy` to the gradient of a product's input, written or added. `unpacked` is scratch for as many of the
    /// matrix's rows as a step has, [`UNPACKED_ROWS`] at most.
    pub fn product_back(
        &mut self,
        matrix: &Matrix,
        rows: usize,
        dy: Slot,
        dx: Slot,
        add: bool,
        unpacked: Slot,
    ) {
        if let Some(back) = self.back(matrix, rows, [dy, dx], add, unpacked) {
            self.back_tiles(&back, 0, (self.address(matrix.slot), matrix.shape.tiles()));
        }
    }

    /// The same with a matrix that stands here or passes through; `fill` has the host's bytes.
    pub fn pass_back(&mut self, rows: usize, dy: Slot, passing: &Passing, unpacked: Slot, fill: Fill) {
        let product = &passing.product;
        if passing.stands {
            return self.product_back(&product.matrix, rows, dy, product.out, product.add, unpacked);
        }
        let Some(back) = self.back(&product.matrix, rows, [dy, product.out], product.add, unpacked) else {
            return;
        };
        let mut ring = self.ring.take().expect("weights pass through a ring that was taken");
        self.each_piece(&mut ring, &product.matrix, fill, &mut |first, piece| {
            self.back_tiles(&back, first, piece);
        });
        self.ring = Some(ring);
    }

    fn back(
        &mut self,
        matrix: &Matrix,
        rows: usize,
        [dy, dx]: [Slot; 2],
        add: bool,
        unpacked: Slot,
    ) -> Option<Back> {
        assert!(matrix.order.is_none(), "columns of a table stand in their order");
        let (outputs, columns) = (matrix.shape.rows, matrix.shape.columns);
        let (dy, dx) = (self.floats(dy, rows * outputs), self.floats(dx, rows * columns));
        let most = UNPACKED_ROWS.min(self.step_rows()) / TILE_ROWS * TILE_ROWS;
        assert!(most > 0, "a step has as many rows as a tile");
        // Always the same numbers, so that nobody waits until those before have left.
        let list = self.list((0..most.min(outputs)).map(|row| row as u32))?;
        Some(Back { matrix: *matrix, rows, dy, dx, add, unpacked, list, most })
    }

    /// What tiles from a number on, so many at an address, add to the gradient. Pieces begin where blocks of rows do:
    /// sums are made in one order however a matrix comes.
    fn back_tiles(&self, back: &Back, first: usize, (address, count): (u64, usize)) {
        let Back { matrix, rows, most, .. } = back;
        let (outputs, columns) = (matrix.shape.rows, matrix.shape.columns);
        let (block, tile_bytes) = (most / TILE_ROWS, matrix.layout.tile_bytes(matrix.width()));
        assert!(first.is_multiple_of(block), "pieces of whole blocks");
        for at in (0..count).step_by(block) {
            let row = (first + at) * TILE_ROWS;
            let (tiles, height) = (block.min(count - at), (*most).min(outputs - row));
            let stack = self.tiles_at(matrix, address + (at * tile_bytes) as u64, tiles);
            self.embed_from(matrix, stack, height, back.list, 1.0, back.unpacked);
            let numbers = self.floats(back.unpacked, height * columns);
            let sides = [back.dy + 4 * row as u64, numbers, back.dx];
            self.float_product([*rows, columns, height], sides, outputs, false, back.add || row > 0);
        }
    }

    /// Adds to `dw`, float32 rows of a matrix, what comes to it from `dy` and the product's input.
    pub fn matrix_back(&mut self, [outputs, columns]: [usize; 2], rows: usize, dy: Slot, x: Slot, dw: Slot) {
        let (dy, x) = (self.floats(dy, rows * outputs), self.floats(x, rows * columns));
        let dw = self.floats(dw, outputs * columns);
        self.float_product([outputs, columns, rows], [dy, x, dw], outputs, true, true);
    }

    /// `out = a * b`, of so many rows and columns, summed over so many.
    fn float_product(
        &self,
        [rows, columns, depth]: [usize; 3],
        [a, b, out]: [u64; 3],
        stride: usize,
        turned: bool,
        add: bool,
    ) {
        let words = [
            a,
            b,
            out,
            pair(rows, columns),
            pair(depth, stride),
            pair(usize::from(turned), usize::from(add)),
        ];
        let grid = (rows.div_ceil(SIDE), columns.div_ceil(SIDE));
        let shape = Shape { grid, threads: 8 * SIDE, shared: 8 * SIDE * (SIDE + 1) };
        self.launch(Kernel::float_product, shape, (words,));
    }
}

/// A block for every row and head.
fn documents_shape(rows: usize, heads: usize) -> Shape {
    let shared = 4 * (ATTEND_THREADS + ATTEND_THREADS / 32);
    Shape { grid: (rows, heads), threads: ATTEND_THREADS, shared }
}
