//! Products of codes with int8 activations.
//!
//! Few tokens: codes are turned into bytes in registers, beside the dot products that they go into. Many tokens: a
//! piece of the tile is turned into bytes once, small enough for the nearest cache, and meets all tokens there.
//! Both do the same arithmetic in the same order.

mod blocks;

use core::marker::PhantomData;

use super::quads::{Plain, Quads};
use super::{Book, Coded, Side};
use crate::cpu::Cpu;
#[cfg(any(all(target_arch = "x86_64", not(target_os = "none")), target_arch = "aarch64"))]
use crate::cpu::Level;
use crate::layouts::panels::Panels;
use crate::layouts::tile::emit;
use crate::layouts::{Sink, TILE_ROWS};
use crate::ops::vector::{Vector, unroll};

/// A tile and what it is multiplied with, sizes checked.
pub(super) struct Job<'a> {
    pub(super) layout: &'a Coded,
    pub(super) columns: usize,
    pub(super) tile: &'a [u32],
    pub(super) x: &'a Panels<'a>,
    pub(super) sink: &'a Sink<'a>,
    pub(super) first_row: usize,
}

/// # Safety
/// As for `Layout::multiply`, for the form that the layout asks for in fast precision.
pub(super) unsafe fn multiply(cpu: Cpu, job: &Job) {
    let Coded { bits, side, book, .. } = *job.layout;
    let is_small = |&byte: &u8| usize::from(byte) <= Small4::MOST;
    let small = book.table.is_some_and(|(_, bytes)| bytes.iter().all(is_small));
    // SAFETY: passed on.
    unsafe {
        match (bits, side, book.table.is_some()) {
            (4, Side::Pair, true) => with::<Wide4, Pair>(cpu, job),
            (4, Side::Pair, false) => with::<Count4, Pair>(cpu, job),
            (4, Side::Exponents, true) if small => with::<Small4, Exponents>(cpu, job),
            (4, Side::Zero, false) => with::<Count4, Zero>(cpu, job),
            (2, Side::Quarters | Side::Halves | Side::Row, _) if book.trits => with::<Trits, Fours>(cpu, job),
            (2, Side::Quarters | Side::Halves | Side::Row, _) => with::<Count2, Fours>(cpu, job),
            (8, Side::Pair, false) => with::<Count8, Pair>(cpu, job),
            (8, Side::Zero, false) => with::<Count8, Zero>(cpu, job),
            _ => panic!("{} has no integer kernel", job.layout.name),
        }
    }
}

/// # Safety
/// As for [`multiply`].
unsafe fn with<K: Kind, S: Sides>(cpu: Cpu, job: &Job) {
    // SAFETY: passed on.
    unsafe {
        match job.x.tokens {
            ..=FEW => of_level::<K, S, true>(cpu, job),
            _ => of_level::<K, S, false>(cpu, job),
        }
    }
}

/// A function for each pair and instruction set: one for all would take compilers minutes. And one for few tokens apart
/// from that for many, whose room on the stack is touched page by page when it is called, for every tile.
///
/// # Safety
/// As for [`multiply`].
unsafe fn of_level<K: Kind, S: Sides, const IS_FEW: bool>(cpu: Cpu, job: &Job) {
    // SAFETY: each arm's instruction set is proven by the level; passed on otherwise.
    unsafe {
        match cpu.level() {
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 if cpu.vnni() && cpu.vbmi() => x86::vbmi512::<K, S, IS_FEW>(job),
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 if cpu.vnni() => x86::vnni512::<K, S, IS_FEW>(job),
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 | Level::Avx2 if cpu.avx_vnni() => x86::vnni256::<K, S, IS_FEW>(job),
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 | Level::Avx2 => x86::avx2::<K, S, IS_FEW>(job),
            #[cfg(target_arch = "aarch64")]
            Level::Neon if cpu.i8mm() => run::<super::quads::neon::Mixed, K, S, IS_FEW>(job),
            #[cfg(target_arch = "aarch64")]
            Level::Neon if cpu.dotprod() => run::<super::quads::neon::Dotprod, K, S, IS_FEW>(job),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => run::<super::quads::neon::Widening, K, S, IS_FEW>(job),
            // What the others are held to has one way for any number of tokens.
            _ => run::<Plain, K, S, false>(job),
        }
    }
}

/// # Safety
/// As for [`Product::run`].
#[inline(never)]
unsafe fn run<Q: Quads, K: Kind, S: Sides, const IS_FEW: bool>(job: &Job) {
    // SAFETY: passed on.
    unsafe { Product::<Q, K, S>::new(job).run::<IS_FEW>() }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod x86 {
    use super::super::quads::x86::{Madd, Vbmi512, Vnni256, Vnni512};
    use super::{Job, Kind, Product, Sides};

    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL, VNNI and VBMI; otherwise as for `Layout::multiply`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
    pub(super) unsafe fn vbmi512<K: Kind, S: Sides, const IS_FEW: bool>(job: &Job) {
        // SAFETY: the features of this function are those that the kernel needs.
        unsafe { Product::<Vbmi512, K, S>::new(job).run::<IS_FEW>() }
    }

    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and VNNI; otherwise as for `Layout::multiply`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn vnni512<K: Kind, S: Sides, const IS_FEW: bool>(job: &Job) {
        // SAFETY: the features of this function are those that the kernel needs.
        unsafe { Product::<Vnni512, K, S>::new(job).run::<IS_FEW>() }
    }

    /// # Safety
    /// The processor must have AVX2, FMA, F16C and AVX-VNNI; otherwise as for `Layout::multiply`.
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(super) unsafe fn vnni256<K: Kind, S: Sides, const IS_FEW: bool>(job: &Job) {
        // SAFETY: as above.
        unsafe { Product::<Vnni256, K, S>::new(job).run::<IS_FEW>() }
    }

    /// # Safety
    /// The processor must have AVX2, FMA and F16C; otherwise as for `Layout::multiply`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn avx2<K: Kind, S: Sides, const IS_FEW: bool>(job: &Job) {
        // SAFETY: as above.
        unsafe { Product::<Madd, K, S>::new(job).run::<IS_FEW>() }
    }
}

/// How codes become bytes.
trait Kind {
    /// Four bits, chosen from the book's bytes; four bits that are bytes; eight bits.
    const BITS: usize;
    const TABLE: bool;
    /// The largest byte.
    const MOST: usize;
    const SMALL: bool = Self::MOST < 128;
    /// Five to a byte.
    const TRITS: bool = false;
}

struct Count2;
impl Kind for Count2 {
    const BITS: usize = 2;
    const TABLE: bool = false;
    const MOST: usize = 3;
}

struct Trits;
impl Kind for Trits {
    const BITS: usize = 2;
    const TABLE: bool = false;
    const MOST: usize = 2;
    const TRITS: bool = true;
}

struct Wide4;
impl Kind for Wide4 {
    const BITS: usize = 4;
    const TABLE: bool = true;
    const MOST: usize = 255;
}

struct Small4;
impl Kind for Small4 {
    const BITS: usize = 4;
    const TABLE: bool = true;
    const MOST: usize = 24;
}

struct Count4;
impl Kind for Count4 {
    const BITS: usize = 4;
    const TABLE: bool = false;
    const MOST: usize = 15;
}

struct Count8;
impl Kind for Count8 {
    const BITS: usize = 8;
    const TABLE: bool = false;
    const MOST: usize = 255;
}

/// What a unit's side words hold.
trait Sides {
    const BLOCKS: usize;
    const ZERO: bool = false;
    fn new(side: Side) -> Self;
    fn words(&self) -> usize {
        1
    }
    /// Blocks, of a unit at most, whose dot products are added as integers: they share a scale.
    fn together(&self) -> usize {
        1
    }
    /// The scale of a block, from the rows' side words.
    ///
    /// # Safety
    /// The instruction set is proven, and `side` points to side words.
    unsafe fn scale<Q: Quads>(&self, side: *const u32, member: usize) -> Q::Floats;
}

struct Pair;
impl Sides for Pair {
    const BLOCKS: usize = 2;
    #[inline(always)]
    fn new(_: Side) -> Self {
        Pair
    }
    #[inline(always)]
    unsafe fn scale<Q: Quads>(&self, side: *const u32, member: usize) -> Q::Floats {
        // SAFETY: passed on.
        unsafe { Q::half(Q::load(side), 16 * member as u32) }
    }
}

struct Zero;
impl Sides for Zero {
    const BLOCKS: usize = 1;
    const ZERO: bool = true;
    #[inline(always)]
    fn new(_: Side) -> Self {
        Zero
    }
    #[inline(always)]
    unsafe fn scale<Q: Quads>(&self, side: *const u32, _: usize) -> Q::Floats {
        // SAFETY: passed on.
        unsafe { Q::half(Q::load(side), 0) }
    }
}

struct Exponents;
impl Sides for Exponents {
    const BLOCKS: usize = 4;
    #[inline(always)]
    fn new(_: Side) -> Self {
        Exponents
    }
    #[inline(always)]
    unsafe fn scale<Q: Quads>(&self, side: *const u32, member: usize) -> Q::Floats {
        // SAFETY: passed on.
        unsafe { Q::power(Q::load(side), 8 * member as u32) }
    }
}

/// Those of two bits and of trits, told apart while they run: they are small beside what they stand with, and kernels
/// are many as it is.
struct Fours {
    side: Side,
}
impl Sides for Fours {
    const BLOCKS: usize = 4;
    #[inline(always)]
    fn new(side: Side) -> Self {
        Fours { side }
    }
    #[inline(always)]
    fn words(&self) -> usize {
        self.side.words()
    }
    #[inline(always)]
    fn together(&self) -> usize {
        match self.side {
            Side::Row => 4,
            Side::Halves => 2,
            _ => 1,
        }
    }
    #[inline(always)]
    unsafe fn scale<Q: Quads>(&self, side: *const u32, member: usize) -> Q::Floats {
        let (word, shift) = self.side.half(member);
        // SAFETY: passed on.
        unsafe {
            match self.side {
                Side::Row => Q::Floats::splat(1.0),
                _ => Q::half(Q::load(side.add(word * TILE_ROWS)), shift),
            }
        }
    }
}

/// How much of a tile is turned into bytes at once, and how many tokens meet it.
struct Pieces {
    columns: usize,
    tokens: usize,
}

/// For tokens up to `FEW_PIECES.tokens`: bytes and a group's activations fit the nearest cache.
const FEW_PIECES: Pieces = Pieces { columns: 256, tokens: 96 };
/// For more: sums are read and written less often than that costs.
const MANY_PIECES: Pieces = Pieces { columns: 2048, tokens: 384 };
/// Blocks of a piece at most.
const PIECE_BLOCKS: usize = MANY_PIECES.columns / 16;
/// With more tokens than this, codes are turned into bytes ahead.
const FEW: usize = 4;

/// A piece of a tile as bytes, scales and zeros, row beside row.
#[repr(align(64))]
struct Opened {
    bytes: [u32; MANY_PIECES.columns / 4 * TILE_ROWS],
    scales: [f32; PIECE_BLOCKS * TILE_ROWS],
    zeros: [f32; PIECE_BLOCKS * TILE_ROWS],
}

/// Sums under way, one row of 32 per token.
#[repr(align(64))]
struct Sums([f32; MANY_PIECES.tokens * TILE_ROWS]);

struct Product<'a, Q, K, S> {
    job: &'a Job<'a>,
    book: &'a Book,
    /// The byte that stands for zero.
    bias: i32,
    block: usize,
    blocks: usize,
    sides: S,
    of: PhantomData<(Q, K)>,
}

impl<'a, Q: Quads, K: Kind, S: Sides> Product<'a, Q, K, S> {
    #[inline(always)]
    fn new(job: &'a Job<'a>) -> Self {
        let Coded { block, book, side, .. } = *job.layout;
        let blocks = job.columns.div_ceil(block);
        assert!(job.x.sums.len() == blocks * job.x.tokens, "a sum for every token and block");
        let (bias, sides) = (i32::from(book.bias), S::new(side));
        Product { job, book, bias, block, blocks, sides, of: PhantomData }
    }

    /// Words of a block in the tile.
    #[inline(always)]
    fn words(&self) -> usize {
        match K::BITS {
            // Blocks of 64; of trits, four stand in the word that blocks share.
            2 => 4 - usize::from(K::TRITS),
            bits => self.block * bits / 32,
        }
    }

    /// Blocks whose dot products are added as integers. A row's may be as long as float32 keeps their sum exactly,
    /// which it does however they are grouped; nobody has wider ones.
    #[inline(always)]
    fn together(&self) -> usize {
        /// Two-bit codes are at most 2 from zero, and 2 * 127 * 2^16 < 2^24.
        const EXACT: usize = 1 << 16;
        if K::BITS == 2 && self.job.columns <= EXACT { self.sides.together() } else { 1 }
    }

    /// # Safety
    /// The instruction set of `Q` is proven, and few tokens are no more than [`FEW`]; otherwise as for
    /// `Layout::multiply`.
    #[inline(always)]
    unsafe fn run<const IS_FEW: bool>(&self) {
        let x = self.job.x;
        let groups = x.groups();
        // SAFETY: passed on.
        unsafe {
            if IS_FEW {
                // Few tokens are one group, whatever the processor.
                let (_, count, panel) = x.group(0);
                self.few(count, panel.as_ptr());
                return;
            }
            let pieces = if x.tokens <= FEW_PIECES.tokens { FEW_PIECES } else { MANY_PIECES };
            let at_once = pieces.tokens / x.group;
            for group in (0..groups).step_by(at_once) {
                self.many(pieces.columns / self.block, group, groups.min(group + at_once));
            }
        }
    }

    /// Up to four tokens.
    #[inline(always)]
    unsafe fn few(&self, count: usize, panel: *const u32) {
        // SAFETY: passed on; a tile has 32 rows.
        unsafe {
            match count {
                1 => match TILE_ROWS / Q::Floats::LANES {
                    2 => self.fused::<1, 2>(panel, 0),
                    4 => self.fused::<1, 4>(panel, 0),
                    _ => self.fused::<1, 8>(panel, 0),
                },
                2 => self.halves::<2>(panel),
                3 => self.halves::<3>(panel),
                _ => self.halves::<4>(panel),
            }
        }
    }

    #[inline(always)]
    unsafe fn halves<const G: usize>(&self, panel: *const u32) {
        let step = 2 * Q::Floats::LANES;
        for lane in (0..TILE_ROWS).step_by(step) {
            // SAFETY: passed on.
            unsafe { self.fused::<G, 2>(panel, lane) }
        }
    }

    /// What the dot product of a block begins with, so that its bytes count from the book's zero. `sum` is that of the
    /// activations' codes of a token and block.
    ///
    /// # Safety
    /// There is such a sum.
    #[inline(always)]
    unsafe fn start(&self, sum: *const i32) -> Q::Lanes {
        let offset = if K::SMALL { 0 } else { Q::OFFSET };
        // SAFETY: passed on.
        unsafe {
            match offset - self.bias {
                0 => Q::splat(0),
                factor => Q::product(sum, factor),
            }
        }
    }

    /// A block's dot product as a number, less its zero times the sum of the activations' codes.
    ///
    /// # Safety
    /// As for [`Product::start`].
    #[inline(always)]
    unsafe fn less_zero(dot: Q::Lanes, zero: Q::Floats, sum: *const i32) -> Q::Floats {
        // SAFETY: passed on.
        unsafe {
            let dot = Q::floats(dot);
            match S::ZERO {
                true => dot.sub(zero.mul(Q::Floats::splat(sum.read() as f32))),
                false => dot,
            }
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: Q::Lanes, bytes: Q::Lanes, x: *const u32) -> Q::Lanes {
        // SAFETY: passed on.
        unsafe { if K::SMALL { Q::dot_small(sum, bytes, x) } else { Q::dot(sum, bytes, x) } }
    }

    #[inline(always)]
    unsafe fn table(&self) -> Q::Table {
        // SAFETY: passed on.
        unsafe { Q::table(self.book.table.map_or(&[0; 16], |(_, bytes)| bytes)) }
    }

    /// The two words of activations that a word of codes meets, as bytes.
    #[inline(always)]
    unsafe fn open(table: Q::Table, words: Q::Lanes) -> [Q::Lanes; 2] {
        // SAFETY: passed on.
        unsafe { if K::TABLE { Q::choose(table, words) } else { Q::halves(words) } }
    }

    /// All blocks for `G` tokens, all there are, and `N` vectors of rows from row `lane`.
    ///
    /// # Safety
    /// As for [`Product::run`]; `panel` holds these tokens.
    #[inline(always)]
    unsafe fn fused<const G: usize, const N: usize>(&self, panel: *const u32, lane: usize) {
        if K::BITS == 2 {
            // SAFETY: passed on.
            unsafe { self.fused_small::<G, N>(panel, lane) };
            return;
        }
        let (lanes, words) = (Q::Floats::LANES, self.words());
        // SAFETY: the tile holds all blocks and the panel all words of them: checked when the job was made.
        unsafe {
            let table = self.table();
            let mut sums = [[Q::Floats::splat(0.0); N]; G];
            let mut at = self.job.tile.as_ptr().add(lane);
            let mut x = panel;
            for unit in (0..self.blocks).step_by(S::BLOCKS) {
                let side = at;
                at = at.add(self.sides.words() * TILE_ROWS);
                unroll!(4: member < S::BLOCKS, {
                    let block = unit + member;
                    if block >= self.blocks {
                        break;
                    }
                    let sum = self.job.x.sums.as_ptr().add(block * G);
                    let mut dots = [[Q::splat(0); N]; G];
                    unroll!(4: g < G, {
                        let start = self.start(sum.add(g));
                        unroll!(8: v < N, { dots[g][v] = start; });
                    });
                    self.add_codes::<G, N>(&mut dots, at, x, table);
                    at = at.add(words * TILE_ROWS);
                    x = x.add(self.block / 4 * G);
                    unroll!(8: v < N, {
                        let side = side.add(v * lanes);
                        let scale = self.sides.scale::<Q>(side, member);
                        let zero = if S::ZERO { Q::half(Q::load(side), 16) } else { scale };
                        unroll!(4: g < G, {
                            let dot = Self::less_zero(dots[g][v], zero, sum.add(g));
                            sums[g][v] = sums[g][v].add(dot.mul(scale));
                        });
                    });
                });
            }
            let done = sums;
            for (g, sums) in done.into_iter().enumerate() {
                self.emit::<N>(g, lane, sums);
            }
        }
    }

    /// Multiplies by the rows' multiples and the token's scale, and writes.
    #[inline(always)]
    unsafe fn emit<const N: usize>(&self, token: usize, lane: usize, mut sums: [Q::Floats; N]) {
        let job = self.job;
        let multiples = &job.tile[job.tile.len() - TILE_ROWS + lane..];
        // SAFETY: `lane` and N vectors stay inside the 32 rows; the sink's rows are the caller's.
        unsafe {
            let (unit, scale) = (Q::Floats::splat(self.book.unit), Q::Floats::splat(job.x.scales[token]));
            unroll!(8: v < N, {
                let multiple = Q::Floats::load(multiples.as_ptr().add(v * Q::Floats::LANES).cast());
                sums[v] = sums[v].mul(multiple.mul(unit)).mul(scale);
            });
            emit::<Q::Floats, N>(job.sink, token, job.first_row + lane, sums);
        }
    }

    /// Groups `from..to` of tokens, `piece` blocks at a time.
    #[inline(always)]
    unsafe fn many(&self, piece: usize, from: usize, to: usize) {
        let x = self.job.x;
        let mut opened = core::mem::MaybeUninit::<Opened>::uninit();
        let mut sums = core::mem::MaybeUninit::<Sums>::uninit();
        let first = from * x.group;
        let tokens = x.tokens.min(to * x.group) - first;
        // SAFETY: every float and byte of `opened` that is read was written by `open_piece` just before, and sums of
        // these tokens, no more than there is room for, begin with zeros; passed on.
        unsafe {
            let opened = opened.as_mut_ptr();
            let sums = (&raw mut (*sums.as_mut_ptr()).0).cast::<f32>();
            sums.write_bytes(0, tokens * TILE_ROWS);
            for block in (0..self.blocks).step_by(piece) {
                let count = piece.min(self.blocks - block);
                self.open_piece(block, count, opened);
                let mut rest = sums;
                for group in from..to {
                    let (first, tokens, panel) = x.group(group);
                    self.meet(opened, block, count, first, tokens, panel.as_ptr(), rest);
                    rest = rest.add(tokens * TILE_ROWS);
                }
            }
            for token in 0..tokens {
                let sums = sums.add(token * TILE_ROWS);
                for lane in (0..TILE_ROWS).step_by(2 * Q::Floats::LANES) {
                    let sums = sums.add(lane);
                    let pair = [Q::Floats::load(sums), Q::Floats::load(sums.add(Q::Floats::LANES))];
                    self.emit::<2>(first + token, lane, pair);
                }
            }
        }
    }

    /// Writes `count` blocks from `block` as bytes, with their scales and zeros.
    #[inline(always)]
    unsafe fn open_piece(&self, block: usize, count: usize, opened: *mut Opened) {
        let lanes = Q::Floats::LANES;
        // SAFETY: as for `fused`; a piece has at most as many blocks and words as `Opened` holds.
        unsafe {
            let table = self.table();
            let mut bytes = (&raw mut (*opened).bytes).cast::<u32>();
            let scales = (&raw mut (*opened).scales).cast::<f32>();
            let zeros = (&raw mut (*opened).zeros).cast::<f32>();
            for b in 0..count {
                let place = self.job.layout.place(block + b);
                let side = self.job.tile.as_ptr().add(place.side);
                for lane in (0..TILE_ROWS).step_by(lanes) {
                    let side = side.add(lane);
                    self.sides.scale::<Q>(side, place.member).store(scales.add(b * TILE_ROWS + lane));
                    if S::ZERO {
                        Q::half(Q::load(side), 16).store(zeros.add(b * TILE_ROWS + lane));
                    }
                }
                let mut codes = self.job.tile.as_ptr().add(place.codes);
                if K::BITS == 2 {
                    self.open_small(codes, side.add(self.sides.words() * TILE_ROWS), place.member, bytes);
                    bytes = bytes.add(self.block / 4 * TILE_ROWS);
                    continue;
                }
                for _ in 0..self.words() {
                    for lane in (0..TILE_ROWS).step_by(lanes) {
                        let word = Q::load(codes.add(lane));
                        if K::BITS == 8 {
                            Q::store(word, bytes.add(lane));
                        } else {
                            let [low, high] = Self::open(table, word);
                            Q::store(low, bytes.add(lane));
                            Q::store(high, bytes.add(TILE_ROWS + lane));
                        }
                    }
                    codes = codes.add(TILE_ROWS);
                    bytes = bytes.add(TILE_ROWS * 8 / K::BITS);
                }
            }
        }
    }

    /// Adds an opened piece's products with one group to its sums.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a piece, a group, and where they meet")]
    unsafe fn meet(
        &self,
        opened: *const Opened,
        block: usize,
        count: usize,
        first: usize,
        tokens: usize,
        panel: *const u32,
        sums: *mut f32,
    ) {
        let mut g = 0;
        // SAFETY: the panel holds all words of its tokens; passed on.
        unsafe {
            let panel = panel.add(block * self.block / 4 * tokens);
            let block_sums = self.job.x.sums.as_ptr().add(first * self.blocks + block * tokens);
            while g < tokens {
                let left = tokens - g;
                let (x, block_sums) = (panel.add(g), block_sums.add(g));
                let piece = Piece { opened, count, x, block_sums, stride: tokens };
                let sums = sums.add(g * TILE_ROWS);
                g += match (left, Q::Floats::GROUP) {
                    _ if Q::IS_DEFINITION => self.meet_rows::<1>(&piece, sums),
                    (6.., 6 | 12) => self.meet_rows::<6>(&piece, sums),
                    (4.., _) => self.meet_rows::<4>(&piece, sums),
                    (2.., _) => self.meet_rows::<2>(&piece, sums),
                    _ => self.meet_rows::<1>(&piece, sums),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn meet_rows<const G: usize>(&self, piece: &Piece, sums: *mut f32) -> usize {
        for lane in (0..TILE_ROWS).step_by(2 * Q::Floats::LANES) {
            // SAFETY: passed on; two vectors from `lane` stay inside the 32 rows.
            unsafe { self.meet_lanes::<G>(piece, lane, sums.add(lane)) }
        }
        G
    }

    /// `G` tokens and two vectors of rows.
    #[inline(always)]
    unsafe fn meet_lanes<const G: usize>(&self, piece: &Piece, lane: usize, sums: *mut f32) {
        let lanes = Q::Floats::LANES;
        // SAFETY: `Opened` holds the piece, the panel its words for all tokens, `sums` 32 rows of each.
        unsafe {
            let mut bytes = (&raw const (*piece.opened).bytes).cast::<u32>().add(lane);
            let scales = (&raw const (*piece.opened).scales).cast::<f32>().add(lane);
            let zeros = (&raw const (*piece.opened).zeros).cast::<f32>().add(lane);
            let (mut x, mut block_sums) = (piece.x, piece.block_sums);
            let mut kept = [[Q::Floats::splat(0.0); 2]; G];
            if Self::keeps::<G>() {
                unroll!(12: g < G, {
                    let sums = sums.add(g * TILE_ROWS);
                    kept[g] = [Q::Floats::load(sums), Q::Floats::load(sums.add(lanes))];
                });
            }
            let mut b = 0;
            while b < piece.count {
                let together = self.together().min(piece.count - b);
                let mut dots = [[Q::splat(0); 2]; G];
                unroll!(12: g < G, {
                    let mut start = self.start(block_sums.add(g));
                    for more in 1..together {
                        start = Q::add(start, self.start(block_sums.add(more * piece.stride + g)));
                    }
                    dots[g] = [start; 2];
                });
                let words = together * self.block / 4;
                dots = Self::meet_words::<G>(dots, words, bytes, x, piece.stride);
                bytes = bytes.add(words * TILE_ROWS);
                x = x.add(words * piece.stride);
                unroll!(2: v < 2, {
                    let at = b * TILE_ROWS + v * lanes;
                    let scale = Q::Floats::load(scales.add(at));
                    let zero = if S::ZERO { Q::Floats::load(zeros.add(at)) } else { scale };
                    unroll!(12: g < G, {
                        let dot = Self::less_zero(dots[g][v], zero, block_sums.add(g));
                        if Self::keeps::<G>() {
                            kept[g][v] = kept[g][v].add(dot.mul(scale));
                        } else {
                            let sums = sums.add(g * TILE_ROWS + v * lanes);
                            Q::Floats::load(sums).add(dot.mul(scale)).store(sums);
                        }
                    });
                });
                block_sums = block_sums.add(together * piece.stride);
                b += together;
            }
            if Self::keeps::<G>() {
                let done = kept;
                unroll!(12: g < G, {
                    let sums = sums.add(g * TILE_ROWS);
                    done[g][0].store(sums);
                    done[g][1].store(sums.add(lanes));
                });
            }
        }
    }

    /// Words of activations whose products are added up in 16 bits, where that is to be won; a power of two, as blocks
    /// are.
    const NARROW_WORDS: usize = match (i16::MAX as usize / (2 * 127 * K::MOST)).checked_ilog2() {
        Some(power) if Q::NARROW => 1 << power,
        _ => 0,
    };

    #[inline(always)]
    unsafe fn dot_of_many(sum: Q::Lanes, bytes: Q::Lanes, x: *const u32) -> Q::Lanes {
        // SAFETY: passed on; no more products are added up in 16 bits than these hold.
        unsafe {
            if Self::NARROW_WORDS > 0 { Q::dot_narrow(sum, bytes, x) } else { Self::dot(sum, bytes, x) }
        }
    }

    /// Adds the products of so many words of two vectors of rows and `G` tokens, whose words are `stride` apart.
    #[inline(always)]
    unsafe fn meet_words<const G: usize>(
        mut dots: [[Q::Lanes; 2]; G],
        count: usize,
        mut bytes: *const u32,
        mut x: *const u32,
        stride: usize,
    ) -> [[Q::Lanes; 2]; G] {
        let is_narrow = Self::NARROW_WORDS > 0;
        let most = if is_narrow { Self::NARROW_WORDS } else { count };
        // SAFETY: passed on.
        unsafe {
            for first in (0..count).step_by(most) {
                let mut sums = if is_narrow { [[Q::splat(0); 2]; G] } else { dots };
                for _ in first..count.min(first + most) {
                    let words = [Q::load(bytes), Q::load(bytes.add(Q::Floats::LANES))];
                    unroll!(12: g < G, {
                        sums[g][0] = Self::dot_of_many(sums[g][0], words[0], x.add(g));
                        sums[g][1] = Self::dot_of_many(sums[g][1], words[1], x.add(g));
                    });
                    bytes = bytes.add(TILE_ROWS);
                    x = x.add(stride);
                }
                unroll!(12: g < G, {
                    dots[g] = match is_narrow {
                        true => [
                            Q::add(dots[g][0], Q::widened(sums[g][0])),
                            Q::add(dots[g][1], Q::widened(sums[g][1])),
                        ],
                        false => sums[g],
                    };
                });
            }
        }
        dots
    }

    /// Whether the sums of two vectors of rows fit into registers beside their dot products: of 32 registers, not 16.
    const fn keeps<const G: usize>() -> bool {
        Q::Floats::LANES == 16 && G <= 6
    }
}

/// An opened piece and the tokens that it meets.
struct Piece {
    opened: *const Opened,
    /// Blocks.
    count: usize,
    /// The first token's first word, its first block's sum, and how far its next ones are.
    x: *const u32,
    block_sums: *const i32,
    stride: usize,
}
