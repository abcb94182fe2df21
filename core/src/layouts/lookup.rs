//! Ternary products by tables, as T-MAC makes them: for benches, to tell where it would win. No layout is made of it.
//!
//! For every four columns a table holds the sixteen sums of a subset of their activations, and codes (trits plus one)
//! are two planes of bits, of which four columns make an index:
//!
//! ```text
//! tile    32 bytes for every four columns: plane 0, then plane 1; of each, byte b has row b in its low half and row
//!         16 + b in its high half, bit j of a half being column j
//! table   64 bytes for every four columns: low bytes of the sums, low bytes of twice the sums, for plane 1; then the
//!         high bytes of both
//! ```
//!
//! Sums of 16 bits are exact for 32 tables, then they are added up in 32 bits.

use super::TILE_ROWS;
use crate::cpu::Cpu;
#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
use crate::cpu::Level;

/// Columns of a table.
const COLUMNS: usize = 4;
/// Bytes of a tile for every table, and of a table.
const INDICES: usize = 32;
const TABLE: usize = 64;
/// Tables whose sums fit into 16 bits: of 4 * 127 * 3 at most, of both planes in lanes of their own.
#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
const EXACT: usize = 32;

/// Bytes of a tile, and of all tables.
pub fn bytes(columns: usize) -> (usize, usize) {
    // Two tables at a time.
    let tables = columns.div_ceil(2 * COLUMNS) * 2;
    (tables * INDICES, tables * TABLE)
}

/// Packs codes from 0 to 2, 32 rows one after another.
pub fn pack(columns: usize, codes: &[u8], tile: &mut [u8]) {
    assert!(codes.len() == TILE_ROWS * columns && tile.len() == bytes(columns).0, "a whole tile");
    tile.fill(0);
    for (at, code) in codes.iter().enumerate() {
        let (row, column) = (at / columns, at % columns);
        let bit = column % COLUMNS + row / 16 * 4;
        let of_table = &mut tile[column / COLUMNS * INDICES..][..INDICES];
        of_table[row % 16] |= (code & 1) << bit;
        of_table[16 + row % 16] |= (code >> 1) << bit;
    }
}

/// The tables of activations, none of them -128.
pub fn tables(x: &[i8], out: &mut [u8]) {
    assert_eq!(out.len(), bytes(x.len()).1);
    out.fill(0);
    for (x, out) in x.chunks(COLUMNS).zip(out.chunks_exact_mut(TABLE)) {
        let mut sums = [0i16; 16];
        for (j, &x) in x.iter().enumerate() {
            // Every subset with column j is one without it, and that column.
            for subset in 0..1 << j {
                sums[subset | 1 << j] = sums[subset] + i16::from(x);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            [out[i], out[32 + i]] = sum.to_le_bytes();
            [out[16 + i], out[48 + i]] = (2 * sum).to_le_bytes();
        }
    }
}

/// Sums of codes times activations, for every row of a tile.
pub fn product(cpu: Cpu, tile: &[u8], tables: &[u8], sums: &mut [i32; TILE_ROWS]) {
    assert!(tile.len() * TABLE == tables.len() * INDICES && tile.len().is_multiple_of(2 * INDICES));
    match cpu.level() {
        // SAFETY: the level proves the instruction set; the lengths were checked.
        #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
        Level::Avx512 => unsafe { x86::avx512(tile, tables, sums) },
        // SAFETY: as above.
        #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
        Level::Avx2 => unsafe { x86::avx2(tile, tables, sums) },
        _ => plain(tile, tables, sums),
    }
}

fn plain(tile: &[u8], tables: &[u8], sums: &mut [i32; TILE_ROWS]) {
    sums.fill(0);
    for (indices, table) in tile.chunks_exact(INDICES).zip(tables.chunks_exact(TABLE)) {
        for (row, sum) in sums.iter_mut().enumerate() {
            for plane in 0..2 {
                let index = usize::from(indices[16 * plane + row % 16] >> (row / 16 * 4) & 15) + 16 * plane;
                *sum += i32::from(i16::from_le_bytes([table[index], table[32 + index]]));
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod x86 {
    use super::{EXACT, INDICES, TABLE, TILE_ROWS};
    use core::arch::x86_64::*;

    /// # Safety
    /// The processor must have AVX2; tile and tables hold the same number of tables.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(tile: &[u8], tables: &[u8], sums: &mut [i32; TILE_ROWS]) {
        // SAFETY: loads stay inside `tile` and `tables` by the caller's promise, stores inside `sums`.
        unsafe {
            let half = _mm256_set1_epi8(15);
            let mut wide = [_mm256_setzero_si256(); 4];
            for (tile, tables) in tile.chunks(EXACT * INDICES).zip(tables.chunks(EXACT * TABLE)) {
                // Eight rows each: plane 0 in the lower lane, plane 1 in the upper.
                let mut narrow = [_mm256_setzero_si256(); 4];
                for (indices, table) in tile.chunks_exact(INDICES).zip(tables.chunks_exact(TABLE)) {
                    let indices = _mm256_loadu_si256(indices.as_ptr().cast());
                    let low_bytes = _mm256_loadu_si256(table.as_ptr().cast());
                    let high_bytes = _mm256_loadu_si256(table.as_ptr().add(32).cast());
                    let halves = [indices, _mm256_srli_epi16::<4>(indices)];
                    for (at, indices) in halves.into_iter().enumerate() {
                        let indices = _mm256_and_si256(indices, half);
                        let low = _mm256_shuffle_epi8(low_bytes, indices);
                        let high = _mm256_shuffle_epi8(high_bytes, indices);
                        let [first, second] =
                            [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)];
                        narrow[2 * at] = _mm256_add_epi16(narrow[2 * at], first);
                        narrow[2 * at + 1] = _mm256_add_epi16(narrow[2 * at + 1], second);
                    }
                }
                for (wide, narrow) in wide.iter_mut().zip(narrow) {
                    let low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(narrow));
                    let high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(narrow));
                    *wide = _mm256_add_epi32(*wide, _mm256_add_epi32(low, high));
                }
            }
            for (sums, wide) in sums.chunks_exact_mut(8).zip(wide) {
                _mm256_storeu_si256(sums.as_mut_ptr().cast(), wide);
            }
        }
    }

    /// Two tables at a time.
    ///
    /// # Safety
    /// The processor must have AVX-512 F and BW; tile and tables hold the same even number of tables.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(super) unsafe fn avx512(tile: &[u8], tables: &[u8], sums: &mut [i32; TILE_ROWS]) {
        // SAFETY: loads stay inside `tile` and `tables` by the caller's promise, stores inside `sums`.
        unsafe {
            let half = _mm512_set1_epi8(15);
            let mut wide = [_mm512_setzero_si512(); 4];
            for (tile, tables) in tile.chunks(2 * EXACT * INDICES).zip(tables.chunks(2 * EXACT * TABLE)) {
                let mut narrow = [_mm512_setzero_si512(); 4];
                for (indices, tables) in tile.chunks_exact(2 * INDICES).zip(tables.chunks_exact(2 * TABLE)) {
                    let indices = _mm512_loadu_si512(indices.as_ptr().cast());
                    let first = _mm512_loadu_si512(tables.as_ptr().cast());
                    let second = _mm512_loadu_si512(tables.as_ptr().add(TABLE).cast());
                    let low_bytes = _mm512_shuffle_i64x2::<0b01_00_01_00>(first, second);
                    let high_bytes = _mm512_shuffle_i64x2::<0b11_10_11_10>(first, second);
                    let halves = [indices, _mm512_srli_epi16::<4>(indices)];
                    for (at, indices) in halves.into_iter().enumerate() {
                        let indices = _mm512_and_si512(indices, half);
                        let low = _mm512_shuffle_epi8(low_bytes, indices);
                        let high = _mm512_shuffle_epi8(high_bytes, indices);
                        let [first, second] =
                            [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)];
                        narrow[2 * at] = _mm512_add_epi16(narrow[2 * at], first);
                        narrow[2 * at + 1] = _mm512_add_epi16(narrow[2 * at + 1], second);
                    }
                }
                for (wide, narrow) in wide.iter_mut().zip(narrow) {
                    let low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(narrow));
                    let high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(narrow));
                    *wide = _mm512_add_epi32(*wide, _mm512_add_epi32(low, high));
                }
            }
            for (sums, wide) in sums.chunks_exact_mut(8).zip(wide) {
                let [low, high] = [_mm512_castsi512_si256(wide), _mm512_extracti64x4_epi64::<1>(wide)];
                _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi32(low, high));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn every_variant_finds_the_sums() {
        let mut next = crate::layouts::tests::noise(9);
        for columns in [4, 7, 64, 130, 300, 1000] {
            let codes: Vec<u8> = (0..TILE_ROWS * columns).map(|_| ((next() + 1.0) * 1.5) as u8).collect();
            // The largest magnitudes at first.
            let x = |i: usize, next: f32| if i < 256 { 127 } else { (next * 127.0) as i8 };
            let x: Vec<i8> = (0..columns).map(|i| x(i, next())).collect();
            let (tile_bytes, table_bytes) = bytes(columns);
            let (mut tile, mut all) = (vec![0; tile_bytes], vec![0; table_bytes]);
            pack(columns, &codes, &mut tile);
            tables(&x, &mut all);
            let of_row = |row: &[u8]| row.iter().zip(&x).map(|(c, x)| i32::from(*c) * i32::from(*x)).sum();
            let wanted: Vec<i32> = codes.chunks(columns).map(of_row).collect();
            for cpu in Cpu::detect().variants() {
                let mut sums = [7; TILE_ROWS];
                product(cpu, &tile, &all, &mut sums);
                assert_eq!(sums[..], wanted, "{} {columns}", cpu.name());
            }
        }
    }
}
