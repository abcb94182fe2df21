//! Products of codes with float32 activations: a piece of the tile is turned into values once and meets all tokens.

use super::integer::Job;
use super::quads::{Plain, Quads};
use super::{Coded, Side, trits};
use crate::cpu::Cpu;
#[cfg(any(all(target_arch = "x86_64", not(target_os = "none")), target_arch = "aarch64"))]
use crate::cpu::Level;
use crate::layouts::TILE_ROWS;
use crate::layouts::tile::emit;
use crate::ops::vector::{Vector, unroll};

/// # Safety
/// As for `Layout::multiply`, for float32 activations.
pub(super) unsafe fn multiply(cpu: Cpu, job: &Job) {
    // SAFETY: each arm's instruction set is proven by the level; passed on otherwise.
    unsafe {
        match cpu.level() {
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx512 => x86::avx512(job),
            #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
            Level::Avx2 => x86::avx2(job),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => run::<super::quads::neon::Widening>(job),
            _ => run::<Plain>(job),
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod x86 {
    use super::super::quads::x86::{Madd, Vnni512};
    use super::{Job, run};

    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ and VL; otherwise as for `Layout::multiply`. No byte products are
    /// asked for, so VNNI is not needed.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn avx512(job: &Job) {
        // SAFETY: the features of this function are those that the kernel needs.
        unsafe { run::<Vnni512>(job) }
    }

    /// # Safety
    /// The processor must have AVX2, FMA and F16C; otherwise as for `Layout::multiply`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn avx2(job: &Job) {
        // SAFETY: as above.
        unsafe { run::<Madd>(job) }
    }
}

/// Columns of a piece.
const PIECE: usize = 128;
/// Tokens that meet it.
const TOKENS: usize = 24;

#[repr(align(64))]
struct Values([f32; PIECE * TILE_ROWS]);
#[repr(align(64))]
struct Sums([f32; TOKENS * TILE_ROWS]);

/// # Safety
/// The instruction set of `Q` is proven; otherwise as for `Layout::multiply`.
#[inline(always)]
unsafe fn run<Q: Quads>(job: &Job) {
    let groups = job.x.groups();
    let at_once = TOKENS / job.x.group;
    let mut values = Values([0.0; PIECE * TILE_ROWS]);
    for from in (0..groups).step_by(at_once) {
        let mut sums = Sums([0.0; TOKENS * TILE_ROWS]);
        for column in (0..job.columns).step_by(PIECE) {
            let count = PIECE.min(job.columns - column);
            // SAFETY: passed on; pieces begin where blocks do.
            unsafe { open::<Q>(job, column, count, &mut values) };
            let mut rest = sums.0.as_mut_ptr();
            for group in from..groups.min(from + at_once) {
                let (_, tokens, panel) = job.x.group(group);
                let panel = panel[column * tokens..].as_ptr().cast::<f32>();
                // SAFETY: the panel holds `count` more columns of all its tokens, `sums` 32 rows of each.
                unsafe {
                    meet::<Q>(&values, count, panel, tokens, rest);
                    rest = rest.add(tokens * TILE_ROWS);
                }
            }
        }
        let first = from * job.x.group;
        for token in first..job.x.tokens.min(first + at_once * job.x.group) {
            for lane in (0..TILE_ROWS).step_by(Q::Floats::LANES) {
                let sums = sums.0[(token - first) * TILE_ROWS + lane..].as_ptr();
                // SAFETY: a vector from `lane` stays inside the 32 rows; the sink's rows are the caller's.
                unsafe {
                    emit::<Q::Floats, 1>(job.sink, token, job.first_row + lane, [Q::Floats::load(sums)]);
                }
            }
        }
    }
}

/// Turns columns of a tile into values, column beside column of 32 rows.
#[inline(always)]
unsafe fn open<Q: Quads>(job: &Job, column: usize, count: usize, values: &mut Values) {
    let Coded { bits, block, side, book, .. } = *job.layout;
    let layout = job.layout;
    let lanes = Q::Floats::LANES;
    let multiples = &job.tile[job.tile.len() - TILE_ROWS..];
    // SAFETY: the tile holds all blocks, and `values` a piece's columns.
    unsafe {
        for first in (column..column + count).step_by(block) {
            let place = layout.place(first / block);
            let (side_word, side_shift) = side.half(place.member);
            let (shared, digits) = (place.side + side.words() * TILE_ROWS, Q::digit_table());
            for lane in (0..TILE_ROWS).step_by(lanes) {
                let words = job.tile.as_ptr().add(place.side + lane);
                let word = Q::load(words);
                let none = Q::Floats::splat(0.0);
                let (scale, zero) = match side {
                    Side::Float => {
                        (Q::Floats::load(words.cast()), Q::Floats::load(words.add(TILE_ROWS).cast()))
                    }
                    Side::Pair | Side::Quarters | Side::Halves => {
                        (Q::half(Q::load(words.add(side_word * TILE_ROWS)), side_shift), none)
                    }
                    Side::Row => (Q::Floats::splat(1.0), none),
                    Side::Zero => (Q::half(word, 0), Q::half(word, 16)),
                    Side::Exponents => (Q::power(word, 8 * place.member as u32), none),
                };
                let scale = scale.mul(Q::Floats::load(multiples.as_ptr().add(lane).cast()));
                let tile = job.tile.as_ptr().add(lane);
                let bias = Q::Floats::splat(f32::from(book.bias));
                for j in 0..block.min(column + count - first) {
                    let value = match book.table {
                        _ if book.trits => {
                            let at = trits::Place { own: place.codes, shared, member: place.member }.of(j);
                            let word = Q::load(tile.add(at.word));
                            Q::number(Q::digits(digits, word)[at.digit], 8 * at.byte as u32, 8).sub(bias)
                        }
                        table => {
                            let (word, shift) = layout.field(j);
                            let word = Q::load(tile.add(place.codes + word * TILE_ROWS));
                            match table {
                                Some((table, _)) => Q::value(table, word, shift),
                                None => Q::number(word, shift, bits).sub(bias),
                            }
                        }
                    };
                    let out = values.0.as_mut_ptr().add((first - column + j) * TILE_ROWS + lane);
                    value.sub(zero).mul(scale).store(out);
                }
            }
        }
    }
}

/// Adds a piece's products with one group to its sums.
#[inline(always)]
unsafe fn meet<Q: Quads>(values: &Values, count: usize, x: *const f32, tokens: usize, sums: *mut f32) {
    let mut g = 0;
    // SAFETY: passed on.
    unsafe {
        while g < tokens {
            let (x, sums) = (x.add(g), sums.add(g * TILE_ROWS));
            g += match tokens - g {
                4.. => meet_tokens::<Q, 4>(values, count, x, tokens, sums),
                2.. => meet_tokens::<Q, 2>(values, count, x, tokens, sums),
                _ => meet_tokens::<Q, 1>(values, count, x, tokens, sums),
            };
        }
    }
}

#[inline(always)]
unsafe fn meet_tokens<Q: Quads, const G: usize>(
    values: &Values,
    count: usize,
    x: *const f32,
    stride: usize,
    sums: *mut f32,
) -> usize {
    let lanes = Q::Floats::LANES;
    for lane in (0..TILE_ROWS).step_by(2 * lanes) {
        // SAFETY: two vectors from `lane` stay inside the 32 rows; otherwise passed on.
        unsafe {
            let mut acc = [[Q::Floats::splat(0.0); 2]; G];
            unroll!(4: g < G, {
                let sums = sums.add(g * TILE_ROWS + lane);
                acc[g] = [Q::Floats::load(sums), Q::Floats::load(sums.add(lanes))];
            });
            for j in 0..count {
                let w = values.0.as_ptr().add(j * TILE_ROWS + lane);
                let w = [Q::Floats::load(w), Q::Floats::load(w.add(lanes))];
                unroll!(4: g < G, {
                    let x = Q::Floats::splat(*x.add(j * stride + g));
                    acc[g][0] = w[0].mul_add(x, acc[g][0]);
                    acc[g][1] = w[1].mul_add(x, acc[g][1]);
                });
            }
            unroll!(4: g < G, {
                let sums = sums.add(g * TILE_ROWS + lane);
                acc[g][0].store(sums);
                acc[g][1].store(sums.add(lanes));
            });
        }
    }
    G
}
