//! The float32 product of a tile with a panel, over any layout that can turn its words into lanes.

use super::panels::Panels;
use super::{Sink, TILE_ROWS};
use crate::cpu::Cpu;
use crate::ops::vector::{Kernel, Vector, launch, unroll};
use core::marker::PhantomData;

/// Calls `$call` with the constant `$g` equal to a group's number of tokens: 1 to 12.
macro_rules! with_group {
    ($count:expr, $g:ident => $call:expr) => {
        $crate::layouts::tile::with_group!(@ [1 2 3 4 5 6 7 8 9 10 11] $count, $g => $call)
    };
    (@ [$($n:literal)*] $count:expr, $g:ident => $call:expr) => {
        match $count {
            $( $n => { const $g: usize = $n; $call } )*
            _ => { const $g: usize = 12; $call }
        }
    };
}
pub(super) use with_group;

/// Turns the words of a tile into float32, a vector of rows at a time.
pub(super) trait Decode: Copy {
    /// Columns in a word, at most four.
    const PER_WORD: usize;
    /// Whether a block of words is followed by one float32 scale per row.
    const SCALED: bool;
    /// The columns of one word, lowest first; entries from `PER_WORD` on are not used.
    ///
    /// # Safety
    /// `word` must be valid for the lanes of `V`.
    unsafe fn decode<V: Vector>(word: *const u32) -> [V; 4];
}

/// A vector of `TILE_ROWS` lanes at most, `N` vectors of them.
pub(super) type Lanes<V, const N: usize> = [V; N];

/// Writes one token's lanes, rows `first_row..`, to the sink.
///
/// # Safety
/// As for [`super::Layout::multiply`].
#[inline(always)]
pub(super) unsafe fn emit<V: Vector, const N: usize>(
    sink: &Sink,
    token: usize,
    first_row: usize,
    mut acc: Lanes<V, N>,
) {
    if first_row >= sink.rows {
        return;
    }
    let rows = (N * V::LANES).min(sink.rows - first_row);
    // SAFETY: the rows of this tile are ours by the caller's promise; `part` and the slice of the bias check bounds.
    unsafe {
        let out = sink.out.part(token * sink.stride + first_row, rows);
        if rows == N * V::LANES {
            if let Some(bias) = sink.bias {
                let bias = bias[first_row..first_row + rows].as_ptr();
                unroll!(8: v < N, { acc[v] = acc[v].add(V::load(bias.add(v * V::LANES))); });
            }
            if sink.add {
                unroll!(8: v < N, { acc[v] = V::load(out.as_ptr().add(v * V::LANES)).add(acc[v]); });
            }
            unroll!(8: v < N, { acc[v].store(out.as_mut_ptr().add(v * V::LANES)); });
        } else {
            let mut lanes = [0.0f32; TILE_ROWS];
            unroll!(8: v < N, { acc[v].store(lanes.as_mut_ptr().add(v * V::LANES)); });
            for row in 0..rows {
                let mut y = lanes[row];
                if let Some(bias) = sink.bias {
                    y += bias[first_row + row];
                }
                out[row] = if sink.add { out[row] + y } else { y };
            }
        }
    }
}

/// Multiplies a tile with all panels in float32. Blocks of `block_words` words are followed by scales where the
/// decoder says so.
///
/// # Safety
/// As for [`super::Layout::multiply`].
pub(super) unsafe fn multiply_float<D: Decode>(
    cpu: Cpu,
    block_words: usize,
    tile: &[u32],
    x: &Panels,
    sink: &Sink,
    first_row: usize,
) {
    launch(cpu, Float { decode: PhantomData::<D>, block_words, tile, x, sink, first_row });
}

struct Float<'a, D> {
    decode: PhantomData<D>,
    block_words: usize,
    tile: &'a [u32],
    x: &'a Panels<'a>,
    sink: &'a Sink<'a>,
    first_row: usize,
}

impl<D: Decode> Kernel for Float<'_, D> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for index in 0..self.x.groups() {
            let (first, count, panel) = self.x.group(index);
            // SAFETY: launched with a proven vector.
            unsafe {
                if count == 1 {
                    self.single::<V>(first, panel);
                } else {
                    with_group!(count, G => self.many::<V, G>(first, panel));
                }
            }
        }
    }
}

impl<D: Decode> Float<'_, D> {
    /// One token: all rows of the tile at once, so that memory is read in order.
    #[inline(always)]
    unsafe fn single<V: Vector>(&self, first: usize, panel: &[u32]) {
        // SAFETY: passed on; a tile has 32 rows.
        unsafe {
            match TILE_ROWS / V::LANES {
                2 => self.pass::<V, 1, 2>(first, panel, 0),
                4 => self.pass::<V, 1, 4>(first, panel, 0),
                _ => self.pass::<V, 1, 8>(first, panel, 0),
            }
        }
    }

    /// A group: as many rows at once as registers allow beside the tokens.
    #[inline(always)]
    unsafe fn many<V: Vector, const G: usize>(&self, first: usize, panel: &[u32]) {
        if G > V::GROUP {
            return;
        }
        for lane in (0..TILE_ROWS).step_by(V::BESIDE_GROUP * V::LANES) {
            // SAFETY: passed on.
            unsafe {
                match V::BESIDE_GROUP {
                    2 => self.pass::<V, G, 2>(first, panel, lane),
                    _ => self.pass::<V, G, 4>(first, panel, lane),
                }
            }
        }
    }

    /// `G` tokens with `N` vectors of rows from row `lane` of the tile.
    #[inline(always)]
    unsafe fn pass<V: Vector, const G: usize, const N: usize>(
        &self,
        first: usize,
        panel: &[u32],
        lane: usize,
    ) {
        let columns = panel.len() / G;
        let words = columns / D::PER_WORD;
        let rest = columns % D::PER_WORD;
        let stride = (self.block_words + usize::from(D::SCALED)) * TILE_ROWS;
        let blocks = (words + usize::from(rest > 0)).div_ceil(self.block_words);
        assert!(blocks * stride <= self.tile.len(), "the tile is shorter than the panel");
        let x = panel.as_ptr().cast::<f32>();
        // SAFETY: by the assertion the tile holds all blocks that the panel reaches into, and word `w` of a block
        // lies at `w * TILE_ROWS`; the panel holds `columns * G` floats, stored as bits of the same size.
        unsafe {
            let mut acc = [[V::splat(0.0); N]; G];
            if !D::SCALED && rest == 0 {
                // One block: nothing stands between the words.
                let block = self.tile.as_ptr().add(lane);
                acc = words_of::<V, D, G, N>(words, block, x, &[V::splat(1.0); N], acc);
                return self.emit_all(first, lane, acc);
            }
            for b in 0..blocks {
                let block = self.tile.as_ptr().add(b * stride + lane);
                let mut scales = [V::splat(1.0); N];
                if D::SCALED {
                    let at = block.add(self.block_words * TILE_ROWS).cast::<f32>();
                    unroll!(8: v < N, { scales[v] = V::load(at.add(v * V::LANES)); });
                }
                let before = b * self.block_words;
                let whole = self.block_words.min(words - before);
                acc = words_of::<V, D, G, N>(whole, block, x.add(before * D::PER_WORD * G), &scales, acc);
                if rest > 0 && b + 1 == blocks {
                    // The last word holds fewer columns than it could.
                    let rows = decode::<V, D, N>(block.add(whole * TILE_ROWS), &scales);
                    unroll!(4: j < rest, {
                        fma::<V, G, N>(&mut acc, &rows, j, x.add((words * D::PER_WORD + j) * G));
                    });
                }
            }
            self.emit_all(first, lane, acc);
        }
    }

    /// # Safety
    /// As for [`emit`].
    #[inline(always)]
    unsafe fn emit_all<V: Vector, const G: usize, const N: usize>(
        &self,
        first: usize,
        lane: usize,
        acc: [[V; N]; G],
    ) {
        for (g, rows) in acc.into_iter().enumerate() {
            // SAFETY: passed on.
            unsafe { emit::<V, N>(self.sink, first + g, self.first_row + lane, rows) };
        }
    }
}

/// Adds up words that lie one after another. A loop with nothing beside it: sums stay in registers, of which none are
/// to spare with eight lanes.
///
/// # Safety
/// `N` vectors of rows from `block` on have so many words, and `x` as many of `G` tokens.
#[inline(always)]
unsafe fn words_of<V: Vector, D: Decode, const G: usize, const N: usize>(
    words: usize,
    block: *const u32,
    x: *const f32,
    scales: &[V; N],
    mut acc: [[V; N]; G],
) -> [[V; N]; G] {
    let (mut block, mut x) = (block, x);
    // SAFETY: passed on.
    unsafe {
        let end = block.add(words * TILE_ROWS);
        while block < end {
            let rows = decode::<V, D, N>(block, scales);
            unroll!(4: j < D::PER_WORD, {
                fma::<V, G, N>(&mut acc, &rows, j, x.add(j * G));
            });
            block = block.add(TILE_ROWS);
            x = x.add(D::PER_WORD * G);
        }
    }
    acc
}

#[inline(always)]
unsafe fn decode<V: Vector, D: Decode, const N: usize>(word: *const u32, scales: &[V; N]) -> [[V; 4]; N] {
    // SAFETY: the caller's pointer is valid for N vectors of words.
    unsafe {
        let mut rows = [[V::splat(0.0); 4]; N];
        unroll!(8: v < N, {
            rows[v] = D::decode::<V>(word.add(v * V::LANES));
            if D::SCALED {
                unroll!(4: j < 4, { rows[v][j] = rows[v][j].mul(scales[v]); });
            }
        });
        rows
    }
}

#[inline(always)]
unsafe fn fma<V: Vector, const G: usize, const N: usize>(
    acc: &mut [[V; N]; G],
    rows: &[[V; 4]; N],
    j: usize,
    x: *const f32,
) {
    // SAFETY: the caller's pointer is valid for G floats.
    unsafe {
        unroll!(12: g < G, {
            let x = V::splat(*x.add(g));
            unroll!(8: v < N, { acc[g][v] = rows[v][j].mul_add(x, acc[g][v]); });
        });
    }
}
