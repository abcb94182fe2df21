//! Kernels for a card: their names, and how a layout is told to them.
//!
//! Sources stand beside the operation or layout that they are for (`.cu`; `kernel.cuh` and `math.cuh` here are what
//! they share). `cargo xtask ptx` makes the texts in `ptx/` of them; `kernels.lock` holds both together, and
//! `kernels.resources.txt` says what registers and stack each takes. Who has the texts, loads and launches is the
//! package `bantam-cuda`: a driver cannot be called without the standard library, and a kernel that changes shall not
//! have this package compiled anew.

macro_rules! kernels {
    ($($kernel:ident)*) => {
        /// A kernel, by the name that it has in its source.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(non_camel_case_types, missing_docs, reason = "spelled and described as in their sources")]
        pub enum Kernel { $($kernel,)* }

        impl Kernel {
            /// Every kernel, in the order of their numbers.
            pub const ALL: &[Kernel] = &[$(Kernel::$kernel,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Kernel::$kernel => stringify!($kernel),)* }
            }
        }
    };
}

kernels! {
    norm
    angles rotate
    activate cap add scale gather argmax
    route combine
    store attend_f32 attend_f16 attend_int8
    take_int8 take_float
    wide_f32_1 wide_f32_8 wide_bf16_1 wide_bf16_8 wide_f16_1 wide_f16_8
    wide_bf16_64 embed_wide
    rows8_1 rows8_8 rows8_64 rows8_float_1 rows8_float_8 embed_rows8
    coded_float_1 coded_float_8 embed_coded
    table4_pair_1 table4_pair_8 table4_powers_1 table4_powers_8
    count4_pair_1 count4_pair_8 count4_zero_1 count4_zero_8
    count2_1 count2_8 trits_1 trits_8
    count8_pair_1 count8_pair_8 count8_zero_1 count8_zero_8
    coded_64
    norm_back norm_back_weights
    activate_back cap_back
    combine_back
    documents documents_back_queries documents_back_keys documents_back_sinks
    entropy_see entropy_back
    float_product
}

/// A kernel for one token, and one for many.
pub type Pair = [Kernel; 2];

/// Tokens that a kernel for many takes at once.
pub const MANY: usize = 8;

/// Tokens, and tiles, that a kernel on tensor cores takes at once.
pub const TENSOR_TOKENS: usize = 64;
/// See [`TENSOR_TOKENS`].
pub const TENSOR_TILES: usize = 4;

/// How a layout lies, for kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    /// Unquantized.
    Plain {
        /// Its products.
        float: Pair,
        /// The one on tensor cores, of cards that have them for such numbers: compute capability 8.0 and later.
        many: Option<Kernel>,
        /// float32, bfloat16, float16.
        kind: u32,
    },
    /// Eight bits, a scale per row.
    Rows,
    /// Codes in blocks.
    Coded(Codes),
}

/// A layout of codes, as `Coding` in `coded.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codes {
    /// Of a code.
    pub bits: u32,
    /// Columns of a block.
    pub block: u32,
    /// Number of what stands beside the codes.
    pub side: u32,
    /// Whether codes are five to a byte.
    pub trits: bool,
    /// The byte that stands for zero.
    pub bias: u32,
    /// The value of one step of a byte.
    pub unit: f32,
    /// Bytes and values of sixteen codes, where they are chosen from a book.
    pub table: Option<([u8; 16], [f32; 16])>,
    /// Its products with int8, where it has any.
    pub integer: Option<Pair>,
}

/// Words of [`Codes::words`].
pub const CODING_WORDS: usize = 28;

impl Codes {
    /// As kernels take it, for a matrix of so many blocks per row.
    pub fn words(&self, blocks: u32) -> [u32; CODING_WORDS] {
        let mut words = [0; CODING_WORDS];
        let trits = u32::from(self.trits);
        let (bytes, values) = self.table.unwrap_or_default();
        let table = u32::from(self.table.is_some());
        let head = [self.bits, self.block, self.side, trits, blocks, self.bias, table, self.unit.to_bits()];
        words[..8].copy_from_slice(&head);
        for (word, bytes) in words[8..12].iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        words[12..].copy_from_slice(&values.map(f32::to_bits));
        words
    }
}
