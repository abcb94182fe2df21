//! Products: the input is prepared as the processor does it, then a block of threads meets every tile, those of all
//! matrices of one layout that take it in one launch. And rows of tables, which are matrices too.

use bantam_core::cuda::{CODING_WORDS, Codes, Kernel, MANY, Pair, Stored, TENSOR_TILES, TENSOR_TOKENS};
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
/// On tensor cores, a word for every row and token, where integers' stages lie before; or two stages of two slices, 32
/// bytes of every row, and of every token for each part of a float32.
const SHARED_TENSOR: usize = TENSOR_TILES * 32 * TENSOR_TOKENS * 4;
const SHARED_FLOATS: usize = 2 * 2 * 32 * (TENSOR_TILES * 32 + 3 * TENSOR_TOKENS);

/// Tokens from which tensor cores are asked: two launches of the kernels for a few would read weights as often.
pub const TENSOR_FROM: usize = 16;

/// Matrices of a launch at most: `Parts` of `tile.cuh`.
const TOGETHER: usize = 3;

/// What kernels are told of these: `Part` of `tile.cuh`.
type Parts = [[[u64; 3]; 2]; TOGETHER];

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
        for alike in products.chunk_by(|a, b| self.takes_alike(&a.matrix, &b.matrix)) {
            let taken = self.taken(&alike[0].matrix, &rows, x);
            for together in alike.chunk_by(|a, b| a.matrix.layout.stored() == b.matrix.layout.stored()) {
                self.multiply(together, &taken, &rows);
            }
        }
    }

    /// Whether two matrices take their input in the same way.
    pub(crate) fn takes_alike(&self, a: &Matrix, b: &Matrix) -> bool {
        let how = |matrix: &Matrix| (self.form(matrix), matrix.order, matrix.factors, matrix.times);
        how(a) == how(b)
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

    /// The input as a matrix takes it.
    pub(crate) fn taken(&self, matrix: &Matrix, rows: &Rows, x: Slot) -> Taken {
        let form = self.form(matrix);
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
        Taken { form, address, inputs, routed }
    }

    /// What kernels are told of a matrix.
    fn stack(&self, matrix: &Matrix) -> [u64; 3] {
        self.tiles_at(matrix, self.address(matrix.slot), matrix.shape.tiles())
    }

    /// Products of one input and one layout.
    fn multiply(&self, products: &[Product], taken: &Taken, rows: &Rows) {
        assert!(products.len() <= TOGETHER, "{} products of one input", products.len());
        let tile_bytes = |product: &Product| product.matrix.layout.tile_bytes(product.matrix.width());
        let is_alike = |product| tile_bytes(product) == tile_bytes(&products[0]);
        assert!(products.iter().all(is_alike), "tiles of one launch are of one size");
        let mut parts = [[[0; 3]; 2]; TOGETHER];
        for (part, product) in parts.iter_mut().zip(products) {
            let matrix = &product.matrix;
            let out = self.floats(product.out, rows.out * matrix.shape.rows);
            *part = [self.stack(matrix), [out, self.optional(product.bias), u64::from(product.add)]];
        }
        let tiles = products.iter().map(|product| product.matrix.shape.tiles()).sum();
        self.multiply_parts(&products[0].matrix, parts, tiles, taken, rows);
    }

    /// The product of some tiles.
    pub(crate) fn multiply_tiles(&self, product: &Product, target: &Target, taken: &Taken, rows: &Rows) {
        let matrix = &product.matrix;
        let words = matrix.layout.tile_bytes(matrix.width()) / 4;
        let stack = [target.tiles, pair(words, target.count), pair(target.width, matrix.width())];
        let mut parts = [[[0; 3]; 2]; TOGETHER];
        parts[0] = [stack, [target.out, target.bias, u64::from(product.add)]];
        self.multiply_parts(matrix, parts, target.count, taken, rows);
    }

    /// One launch for so many tiles of matrices like this one.
    fn multiply_parts(&self, matrix: &Matrix, parts: Parts, tiles: usize, taken: &Taken, rows: &Rows) {
        // Tiles are the second dimension of a launch, which has an end; a vocabulary has some thousand.
        assert!(tiles <= GRID_MOST, "{tiles} tiles in one launch");
        if let Some(many) = self.tensor_kernel(matrix, taken.form).filter(|_| rows.tokens >= self.tensor_from)
        {
            return self.multiply_many(many, matrix, parts, tiles, taken, rows);
        }
        let many = rows.routed.is_none() && rows.out > 1;
        let at_once = if many { MANY } else { 1 };
        let which = |kernels: Pair| kernels[usize::from(many)];
        let grid = (rows.out.div_ceil(at_once), tiles);
        let shape = Shape { grid, threads: THREADS, shared: SHARED };
        let (routed, tokens, inputs, x) = (taken.routed, rows.out as u32, taken.inputs as u32, taken.address);
        let is_int8 = matches!(taken.form, Form::Int8(_));
        match matrix.layout.stored() {
            Stored::Plain { float, .. } => {
                self.launch(which(float), shape, (parts, routed, tokens, x));
            }
            Stored::Rows if is_int8 => {
                let kernels = [Kernel::rows8_1, Kernel::rows8_8];
                self.launch(which(kernels), shape, (parts, routed, tokens, inputs, x));
            }
            Stored::Rows => {
                let kernels = [Kernel::rows8_float_1, Kernel::rows8_float_8];
                self.launch(which(kernels), shape, (parts, routed, tokens, x));
            }
            Stored::Coded(coding) => {
                let words = coding_of(&coding, matrix);
                if let (true, Some(kernels)) = (is_int8, coding.integer) {
                    let shape = Shape { shared: SHARED_TERMS, ..shape };
                    self.launch(which(kernels), shape, (words, parts, routed, tokens, inputs, x));
                } else {
                    let kernels = [Kernel::coded_float_1, Kernel::coded_float_8];
                    self.launch(which(kernels), shape, (words, parts, routed, tokens, x));
                }
            }
        }
    }

    /// Whether products of many rows with a matrix are for this card's tensor cores.
    pub fn has_tensor_kernel(&self, matrix: &Matrix) -> bool {
        self.tensor_kernel(matrix, self.form(matrix)).is_some()
    }

    /// The kernel on tensor cores.
    fn tensor_kernel(&self, matrix: &Matrix, form: Form) -> Option<Kernel> {
        let is_int8 = matches!(form, Form::Int8(_));
        match matrix.layout.stored() {
            Stored::Plain { many, .. } if self.card.has_bfloats() => many,
            Stored::Rows if is_int8 => Some(Kernel::rows8_64),
            Stored::Coded(_) if is_int8 => Some(Kernel::coded_64),
            _ => None,
        }
    }

    /// The same for many rows. Those of one expert meet it together.
    fn multiply_many(
        &self,
        kernel: Kernel,
        matrix: &Matrix,
        parts: Parts,
        tiles: usize,
        taken: &Taken,
        rows: &Rows,
    ) {
        // Nobody knows here how rows are divided among experts: groups at most, and those that there are not end.
        let groups = match rows.routed {
            None => rows.out.div_ceil(TENSOR_TOKENS),
            Some((routed, _)) => rows.out / TENSOR_TOKENS + rows.out.min(routed.choice.experts),
        };
        let grid = (groups, tiles.div_ceil(TENSOR_TILES));
        let shape = Shape { grid, threads: THREADS, shared: SHARED_TENSOR };
        let (routed, tokens, inputs, x) = (taken.routed, rows.out as u32, taken.inputs as u32, taken.address);
        match matrix.layout.stored() {
            Stored::Plain { .. } => {
                let shape = Shape { shared: SHARED_FLOATS, ..shape };
                self.launch(kernel, shape, (parts, routed, tokens, x));
            }
            Stored::Rows => self.launch(kernel, shape, (parts, routed, tokens, inputs, x)),
            Stored::Coded(coding) => {
                let words = coding_of(&coding, matrix);
                self.launch(kernel, shape, (words, parts, routed, tokens, inputs, x));
            }
        }
    }

    /// Rows of a table; `list` is the address of their numbers.
    pub(crate) fn embed_rows(&mut self, table: &Matrix, count: usize, list: u64, scale: f32, out: Slot) {
        self.embed_from(table, self.stack(table), count, list, scale, out);
    }

    /// Tiles at an address, as kernels are told of them: so many of a matrix.
    pub(crate) fn tiles_at(&self, matrix: &Matrix, address: u64, count: usize) -> [u64; 3] {
        let words = matrix.layout.tile_bytes(matrix.width()) / 4;
        [address, pair(words, count), pair(matrix.shape.rows, matrix.width())]
    }

    /// The same of a table's tiles, wherever they are.
    pub(crate) fn embed_from(
        &self,
        table: &Matrix,
        stack: [u64; 3],
        count: usize,
        list: u64,
        scale: f32,
        out: Slot,
    ) {
        assert!(table.times == 1 && table.factors.is_none(), "rows of a table are read as they are");
        let out = self.floats(out, count * table.shape.columns);
        let shape = Shape { grid: (count, 1), threads: THREADS, shared: 0 };
        match table.layout.stored() {
            Stored::Plain { kind, .. } => {
                self.launch(Kernel::embed_wide, shape, (stack, kind, list, scale, out))
            }
            Stored::Rows => self.launch(Kernel::embed_rows8, shape, (stack, list, scale, out)),
            Stored::Coded(coding) => {
                let words = coding_of(&coding, table);
                self.launch(Kernel::embed_coded, shape, (words, stack, list, scale, out));
            }
        }
    }
}

/// A layout of codes, as kernels take it for a matrix.
fn coding_of(coding: &Codes, matrix: &Matrix) -> [u32; CODING_WORDS] {
    coding.words(matrix.width().div_ceil(coding.block as usize) as u32)
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
