//! Products: the input is prepared as the processor does it, then a block of threads meets every tile. And rows of
//! tables, which are matrices too.

use bantam_core::cuda::{Codes, Kernel, MANY, Pair, Stored};
use bantam_core::layouts::Precision;
use bantam_core::{Matrix, Product, Routed, RowPer, Slot};

use crate::backend::{CudaBackend, GRID_MOST, NOT_ROUTED, pair};
use crate::driver::Shape;

/// Threads of a block that meets a tile.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Bytes of shared memory of a product: a word for every warp, token and lane; of terms, two rounds of 64 words.
const SHARED: usize = WARPS * MANY * 32 * 4;
const SHARED_TERMS: usize = 2 * 64 * 32 * 4;

/// How a product's input is prepared.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Not at all: float32, in its order.
    AsItIs,
    /// float32.
    Float,
    /// int8 in blocks of so many words; `None` for one block per row.
    Int8(Option<usize>),
}

/// Prepared input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    form: Form,
    /// How the matrix takes it: what other matrices must have in common to share it.
    order: Option<Slot>,
    factors: Option<Slot>,
    times: usize,
    address: u64,
    /// Rows that it has, and how these are found: `Routed`.
    inputs: usize,
    routed: [u64; 3],
}

/// The rows of a product.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    tokens: usize,
    routed: Option<(&'a Routed, RowPer)>,
    /// Rows of the input.
    x: usize,
    /// Rows of the result.
    out: usize,
}

impl Rows<'_> {
    /// So many rows that are not routed.
    pub(crate) fn plain(tokens: usize) -> Self {
        Rows { tokens, routed: None, x: tokens, out: tokens }
    }

    /// Rows of the result.
    pub(crate) fn count(&self) -> usize {
        self.out
    }
}

/// Tiles of a matrix, and where their results go.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Addresses: of the first tile, of its first row's bias or zero, and of the result.
    pub(crate) tiles: u64,
    pub(crate) bias: u64,
    pub(crate) out: u64,
    /// How many tiles.
    pub(crate) count: usize,
    /// Values from one row of the result to the next.
    pub(crate) width: usize,
}

impl CudaBackend {
    /// What kernels are told of rows and experts.
    pub(crate) fn routed(&self, routed: &Routed, rows: usize, per: RowPer) -> [u64; 3] {
        let places = routed.places(rows);
        let by_token = u64::from(per == RowPer::Token);
        [self.address(routed.slot), pair(routed.choice.experts, places), by_token]
    }

    pub(crate) fn products(
        &mut self,
        tokens: usize,
        routed: Option<(&Routed, RowPer)>,
        x: Slot,
        products: &[Product],
    ) {
        let out = routed.map_or(tokens, |(routed, _)| routed.places(tokens));
        let of_places = matches!(routed, Some((_, RowPer::Place)));
        let rows = Rows { tokens, routed, x: if of_places { out } else { tokens }, out };
        // Queued in order, so what is prepared later may lie where this was.
        let mut last: Option<Taken> = None;
        for product in products {
            let taken = self.taken(&product.matrix, last, &rows, x);
            self.multiply(product, &taken, &rows);
            last = Some(taken);
        }
    }

    /// The input as a matrix wants it: as the last one did, or prepared anew.
    pub(crate) fn taken(&mut self, matrix: &Matrix, last: Option<Taken>, rows: &Rows, x: Slot) -> Taken {
        let form = self.form(matrix);
        let shared = last.filter(|taken| {
            let same = (matrix.order, matrix.factors, matrix.times);
            taken.form == form && (taken.order, taken.factors, taken.times) == same
        });
        shared.unwrap_or_else(|| self.prepare(form, matrix, rows, x))
    }

    /// What a matrix wants its input prepared as.
    fn form(&self, matrix: &Matrix) -> Form {
        let plain = matrix.order.is_none() && matrix.factors.is_none() && matrix.times == 1;
        let fast = self.precision == Precision::Fast;
        match matrix.layout.stored() {
            Stored::Rows if fast => Form::Int8(None),
            Stored::Coded(Codes { integer: Some(_), block, .. }) if fast => {
                Form::Int8(Some(block as usize / 4))
            }
            _ if plain => Form::AsItIs,
            _ => Form::Float,
        }
    }

    fn prepare(&mut self, form: Form, matrix: &Matrix, rows: &Rows, x: Slot) -> Taken {
        let columns = matrix.shape.columns;
        let x = self.floats(x, rows.x * columns);
        let routed = rows.routed.map_or(NOT_ROUTED, |(routed, per)| self.routed(routed, rows.tokens, per));
        let Matrix { order, factors, times, .. } = *matrix;
        let of_expert = order.is_some() || factors.is_some();
        // What is an expert's own is prepared for every place; otherwise every row of the input once.
        let by_place = rows.routed.is_some() && of_expert;
        let inputs = if by_place { rows.out } else { rows.x };
        let how = if by_place { routed } else { NOT_ROUTED };
        let routed = if by_place { [routed[0], routed[1], 0] } else { routed };
        let taking = [self.optional(order), self.optional(factors), pair(columns, times)];
        let width = times * columns;
        let shape = Shape { grid: (inputs, 1), threads: THREADS, shared: 4 * WARPS };
        let memory = |words: usize| self.floats(self.panels, inputs * words);
        let address = match form {
            Form::AsItIs => x,
            Form::Float => {
                let memory = memory(width);
                self.launch(Kernel::take_float, shape, (taking, how, x, memory));
                memory
            }
            Form::Int8(block) => {
                let (words, block_words, blocks) = int8(width, block);
                let memory = memory(words + 1 + blocks);
                let numbers = (taking, how, x, words as u32, block_words as u32, blocks as u32, memory);
                self.launch(Kernel::take_int8, shape, numbers);
                memory
            }
        };
        Taken { form, order, factors, times, address, inputs, routed }
    }

    /// What kernels are told of a matrix.
    fn stack(&self, matrix: &Matrix) -> [u64; 3] {
        let words = matrix.layout.tile_bytes(matrix.width()) / 4;
        [
            self.address(matrix.slot),
            pair(words, matrix.shape.tiles()),
            pair(matrix.shape.rows, matrix.width()),
        ]
    }

    fn multiply(&mut self, product: &Product, taken: &Taken, rows: &Rows) {
        let matrix = &product.matrix;
        let target = Target {
            tiles: self.address(matrix.slot),
            bias: self.optional(product.bias),
            out: self.floats(product.out, rows.out * matrix.shape.rows),
            count: matrix.shape.tiles(),
            width: matrix.shape.rows,
        };
        self.multiply_to(product, target, taken, rows);
    }

    /// The same of some of its tiles.
    pub(crate) fn multiply_to(&mut self, product: &Product, target: Target, taken: &Taken, rows: &Rows) {
        let matrix = &product.matrix;
        let sink = [target.out, target.bias, u64::from(product.add)];
        let words = matrix.layout.tile_bytes(matrix.width()) / 4;
        let stack = [target.tiles, pair(words, target.count), pair(target.width, matrix.width())];
        let many = rows.routed.is_none() && rows.out > 1;
        let at_once = if many { MANY } else { 1 };
        // Tiles are the second dimension of a launch, which has an end; a vocabulary has some thousand.
        let (blocks, tiles) = (rows.out.div_ceil(at_once), target.count);
        assert!(tiles <= GRID_MOST, "{} rows in one matrix", matrix.shape.rows);
        let which = |kernels: Pair| kernels[usize::from(many)];
        let shape = Shape { grid: (blocks, tiles), threads: THREADS, shared: SHARED };
        let (routed, tokens, inputs, x) = (taken.routed, rows.out as u32, taken.inputs as u32, taken.address);
        let is_int8 = matches!(taken.form, Form::Int8(_));
        match matrix.layout.stored() {
            Stored::Plain { float, .. } => {
                self.launch(which(float), shape, (stack, routed, tokens, x, sink));
            }
            Stored::Rows if is_int8 => {
                let kernels = [Kernel::rows8_1, Kernel::rows8_8];
                self.launch(which(kernels), shape, (stack, routed, tokens, inputs, x, sink));
            }
            Stored::Rows => {
                let kernels = [Kernel::rows8_float_1, Kernel::rows8_float_8];
                self.launch(which(kernels), shape, (stack, routed, tokens, x, sink));
            }
            Stored::Coded(coding) => {
                let words = coding.words(matrix.width().div_ceil(coding.block as usize) as u32);
                if let (true, Some(kernels)) = (is_int8, coding.integer) {
                    let shape = Shape { shared: SHARED_TERMS, ..shape };
                    self.launch(which(kernels), shape, (words, stack, routed, tokens, inputs, x, sink));
                } else {
                    let kernels = [Kernel::coded_float_1, Kernel::coded_float_8];
                    self.launch(which(kernels), shape, (words, stack, routed, tokens, x, sink));
                }
            }
        }
    }

    /// Rows of a table; `list` is the address of their numbers.
    pub(crate) fn embed_rows(&mut self, table: &Matrix, count: usize, list: u64, scale: f32, out: Slot) {
        assert!(table.times == 1 && table.factors.is_none(), "rows of a table are read as they are");
        let (stack, out) = (self.stack(table), self.floats(out, count * table.shape.columns));
        let shape = Shape { grid: (count, 1), threads: THREADS, shared: 0 };
        match table.layout.stored() {
            Stored::Plain { kind, .. } => {
                self.launch(Kernel::embed_wide, shape, (stack, kind, list, scale, out))
            }
            Stored::Rows => self.launch(Kernel::embed_rows8, shape, (stack, list, scale, out)),
            Stored::Coded(coding) => {
                let words = coding.words(table.shape.columns.div_ceil(coding.block as usize) as u32);
                self.launch(Kernel::embed_coded, shape, (words, stack, list, scale, out));
            }
        }
    }
}

/// Words of a row's codes, of a block, and blocks.
fn int8(columns: usize, block: Option<usize>) -> (usize, usize, usize) {
    match block {
        None => (columns.div_ceil(4), columns.div_ceil(4), 1),
        Some(words) => {
            let blocks = columns.div_ceil(4 * words);
            (blocks * words, words, blocks)
        }
    }
}
