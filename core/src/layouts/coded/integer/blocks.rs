//! The dot products of one block, for a few tokens: codes become bytes in registers.

use super::{Kind, Product, Sides};
use crate::layouts::TILE_ROWS;
use crate::layouts::coded::quads::Quads;
use crate::layouts::coded::trits::DIGITS;
use crate::ops::vector::{Vector, unroll};

/// Words of activations that a block of 64 columns meets.
const WORDS: usize = 16;
/// The last of them.
const LAST: usize = WORDS - 1;

/// What the blocks of a unit share, of `N` vectors of rows: for one token, for more. Only one of the two is used, and
/// where nothing is shared none; the compiler leaves out the others.
struct Common<Q: Quads, const N: usize> {
    table: Q::Digits,
    one: [Q::Shared; N],
    many: [[Q::Lanes; DIGITS]; N],
}

impl<Q: Quads, const N: usize> Common<Q, N> {
    /// # Safety
    /// `from` points to `N` vectors of words.
    #[inline(always)]
    unsafe fn new<K: Kind>(from: *const u32) -> Self {
        // SAFETY: passed on.
        unsafe {
            let table = Q::digit_table();
            let first = Q::splat(0);
            let (mut one, mut many) = ([Q::share(table, first); N], [Q::digits(table, first); N]);
            if K::TRITS {
                unroll!(8: v < N, {
                    let words = Q::load(from.add(v * Q::Floats::LANES));
                    one[v] = Q::share(table, words);
                    many[v] = Q::digits(table, words);
                });
            }
            Common { table, one, many }
        }
    }
}

/// Dot products of `G` tokens and `N` vectors of rows that no scale has met yet.
struct Open<Q: Quads, const G: usize, const N: usize> {
    /// What the tokens' begin with.
    starts: [Q::Lanes; G],
    dots: [[Q::Lanes; N]; G],
    /// One token's, see [`Quads::Parts`].
    parts: [Q::Parts; N],
}

impl<Q: Quads, const G: usize, const N: usize> Open<Q, G, N> {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: passed on.
        let (zero, part) = unsafe { (Q::splat(0), Q::no_parts()) };
        Open { starts: [zero; G], dots: [[zero; N]; G], parts: [part; N] }
    }

    #[inline(always)]
    unsafe fn close(&self) -> [[Q::Lanes; N]; G] {
        let mut dots = self.dots;
        // SAFETY: passed on.
        unsafe {
            unroll!(8: v < N, {
                if G == 1 && !Q::NARROW {
                    dots[0][v] = Q::whole(self.parts[v]);
                }
                unroll!(4: g < G, { dots[g][v] = Q::add(dots[g][v], self.starts[g]); });
            });
        }
        dots
    }
}

impl<Q: Quads, K: Kind, S: Sides> Product<'_, Q, K, S> {
    /// Adds the products of a block of four or eight bits.
    ///
    /// # Safety
    /// As for [`Product::fused`]; the block is at `at` and meets the words from `x` on.
    #[inline(always)]
    pub(super) unsafe fn add_codes<const G: usize, const N: usize>(
        &self,
        dots: &mut [[Q::Lanes; N]; G],
        mut at: *const u32,
        mut x: *const u32,
        table: Q::Table,
    ) {
        // SAFETY: passed on.
        unsafe {
            // One token has a second row of sums, so that dot products do not wait for one another.
            let mut others = [[Q::splat(0); N]; G];
            for _ in 0..self.words() {
                prefetch::<G>(at);
                unroll!(8: v < N, {
                    let word = Q::load(at.add(v * Q::Floats::LANES));
                    if K::BITS == 8 {
                        unroll!(4: g < G, { dots[g][v] = Self::dot(dots[g][v], word, x.add(g)); });
                    } else {
                        let [low, high] = Self::open(table, word);
                        unroll!(4: g < G, {
                            dots[g][v] = Self::dot(dots[g][v], low, x.add(g));
                            let next = x.add(G + g);
                            if G == 1 {
                                others[g][v] = Self::dot(others[g][v], high, next);
                            } else {
                                dots[g][v] = Self::dot(dots[g][v], high, next);
                            }
                        });
                    }
                });
                at = at.add(TILE_ROWS);
                x = x.add(G * 8 / K::BITS);
            }
            if G == 1 {
                unroll!(8: v < N, { dots[0][v] = Q::add(dots[0][v], others[0][v]); });
            }
        }
    }

    /// [`Product::fused`] for two bits and trits: blocks that share a scale are added as integers.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn fused_small<const G: usize, const N: usize>(&self, panel: *const u32, lane: usize) {
        let together = self.together();
        // A row's are closed once, after the last.
        let closes = |member: usize| together < 4 && (member + 1).is_multiple_of(together);
        // SAFETY: the tile holds all blocks and the panel all words of them: checked when the job was made.
        unsafe {
            let mut sums = [[Q::Floats::splat(0.0); N]; G];
            let mut open = Open::<Q, G, N>::new();
            let mut at = self.job.tile.as_ptr().add(lane);
            let mut x = panel;
            for unit in (0..self.blocks).step_by(S::BLOCKS) {
                let side = at;
                let common = Common::new::<K>(at.add(self.sides.words() * TILE_ROWS));
                at = at.add((self.sides.words() + usize::from(K::TRITS)) * TILE_ROWS);
                unroll!(4: member < S::BLOCKS, {
                    let block = unit + member;
                    if block >= self.blocks {
                        break;
                    }
                    let sum = self.job.x.sums.as_ptr().add(block * G);
                    unroll!(4: g < G, { open.starts[g] = Q::add(open.starts[g], self.start(sum.add(g))); });
                    self.add_small::<G, N>(&mut open, at, x, &common, member);
                    at = at.add(self.words() * TILE_ROWS);
                    x = x.add(self.block / 4 * G);
                    if closes(member) || block + 1 == self.blocks {
                        let dots = open.close();
                        unroll!(8: v < N, {
                            let scale = self.sides.scale::<Q>(side.add(v * Q::Floats::LANES), member);
                            unroll!(4: g < G, {
                                sums[g][v] = sums[g][v].add(Q::floats(dots[g][v]).mul(scale));
                            });
                        });
                        open = Open::new();
                    }
                });
            }
            let done = sums;
            for (g, sums) in done.into_iter().enumerate() {
                self.emit::<N>(g, lane, sums);
            }
        }
    }

    /// Adds the products of a block of two bits or trits.
    ///
    /// # Safety
    /// As for [`Product::add_codes`].
    #[inline(always)]
    unsafe fn add_small<const G: usize, const N: usize>(
        &self,
        open: &mut Open<Q, G, N>,
        at: *const u32,
        x: *const u32,
        common: &Common<Q, N>,
        member: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            if G == 1 {
                self.add_parts::<G, N>(open, at, x, common, member);
                return;
            }
            let dots = &mut open.dots;
            for w in 0..self.words() {
                unroll!(8: v < N, {
                    let word = Q::load(at.add(w * TILE_ROWS + v * Q::Floats::LANES));
                    let (bytes, count) = Self::open_word(common.table, word);
                    unroll!(5: k < count, {
                        unroll!(4: g < G, {
                            dots[g][v] = Q::dot_small(dots[g][v], bytes[k], x.add((w * count + k) * G + g));
                        });
                    });
                });
            }
            if K::TRITS {
                unroll!(8: v < N, {
                    let bytes = common.many[v][member + 1];
                    unroll!(4: g < G, { dots[g][v] = Q::dot_small(dots[g][v], bytes, x.add(LAST * G + g)); });
                });
            }
        }
    }

    /// The same for one token.
    #[inline(always)]
    unsafe fn add_parts<const G: usize, const N: usize>(
        &self,
        open: &mut Open<Q, G, N>,
        at: *const u32,
        x: *const u32,
        common: &Common<Q, N>,
        member: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            let parts = &mut open.parts;
            for w in 0..self.words() {
                let at = at.add(w * TILE_ROWS);
                prefetch::<1>(at);
                unroll!(8: v < N, {
                    let word = Q::load(at.add(v * Q::Floats::LANES));
                    parts[v] = match K::TRITS {
                        true => Q::add_digits(parts[v], common.table, word, x.add(w * DIGITS)),
                        false => Q::add_fields(parts[v], word, x.add(w * 4)),
                    };
                });
            }
            unroll!(8: v < N, {
                if K::TRITS {
                    parts[v] = Q::add_shared(parts[v], common.one[v], member, x.add(LAST));
                }
                if Q::NARROW {
                    open.dots[0][v] = Q::add(open.dots[0][v], Q::whole(parts[v]));
                    parts[v] = Q::no_parts();
                }
            });
        }
    }

    /// A word as words of bytes, and how many there are.
    #[inline(always)]
    unsafe fn open_word(table: Q::Digits, word: Q::Lanes) -> ([Q::Lanes; DIGITS], usize) {
        // SAFETY: passed on.
        unsafe {
            if K::TRITS {
                return (Q::digits(table, word), DIGITS);
            }
            let [a, b, c, d] = Q::fields(word);
            ([a, b, c, d, d], 4)
        }
    }

    /// Writes a block of two bits or trits as bytes, row beside row.
    ///
    /// # Safety
    /// The block is at `at`, what its unit shares at `shared`; `bytes` has room for 16 words of every row.
    #[inline(always)]
    pub(super) unsafe fn open_small(
        &self,
        at: *const u32,
        shared: *const u32,
        member: usize,
        bytes: *mut u32,
    ) {
        // SAFETY: passed on.
        unsafe {
            let table = Q::digit_table();
            for lane in (0..TILE_ROWS).step_by(Q::Floats::LANES) {
                for w in 0..self.words() {
                    let (opened, count) = Self::open_word(table, Q::load(at.add(w * TILE_ROWS + lane)));
                    unroll!(5: k < count, {
                        Q::store(opened[k], bytes.add((w * count + k) * TILE_ROWS + lane));
                    });
                }
                if K::TRITS {
                    let opened = Q::digits(table, Q::load(shared.add(lane)));
                    Q::store(opened[member + 1], bytes.add(LAST * TILE_ROWS + lane));
                }
            }
        }
    }
}

/// Asks for what one token reads soon: a tile is read once, in order, and the next one follows.
#[inline(always)]
fn prefetch<const G: usize>(at: *const u32) {
    #[cfg(target_arch = "x86_64")]
    if G == 1 {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, at whatever address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(1024).cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(1040).cast());
        }
    }
    let _ = at;
}
