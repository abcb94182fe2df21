//! Ternary products by tables (`bantam_core::layouts::lookup`), as a way to multiply beside our kernels: tables are made
//! anew for every token and met by all tiles. The integers are those of our kernels.

use std::io;

use bantam_core::Cpu;
use bantam_core::layouts::lookup::{bytes, pack, product, tables};
use bantam_core::layouts::{Shape, TILE_ROWS};

use crate::matrix::Copies;

/// A ternary matrix with a scale per row.
pub(crate) struct Lookup {
    shape: Shape,
    tiles: Copies,
    scales: Vec<f32>,
}

impl Lookup {
    /// From its values: zeros, and of each row a number and its negative.
    pub(crate) fn new(shape: Shape, values: &[f32], cold_bytes: usize) -> io::Result<Self> {
        let Shape { rows, columns } = shape;
        let scale = |row: &[f32]| row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let scales = values.chunks_exact(columns).map(scale).collect();
        let tile_bytes = bytes(columns).0;
        let tiles = Copies::new(shape.tiles() * tile_bytes, cold_bytes, |tiles| {
            for (tile, out) in tiles.chunks_exact_mut(tile_bytes).enumerate() {
                let of_tile = &values[tile * TILE_ROWS * columns..rows.min((tile + 1) * TILE_ROWS) * columns];
                let mut codes: Vec<u8> =
                    of_tile.iter().map(|x| 1 + u8::from(*x > 0.0) - u8::from(*x < 0.0)).collect();
                codes.resize(TILE_ROWS * columns, 1);
                pack(columns, &codes, out);
            }
        })?;
        Ok(Lookup { shape, tiles, scales })
    }

    /// Bytes that a run reads.
    pub(crate) fn bytes(&self) -> usize {
        self.shape.tiles() * bytes(self.shape.columns).0
    }

    /// `out[token][row]`.
    pub(crate) fn multiply(&self, cpu: Cpu, x: &[f32], out: &mut [f32]) {
        let Shape { rows, columns } = self.shape;
        let (tile_bytes, table_bytes) = bytes(columns);
        let (mut codes, mut made) = (vec![0i8; columns], vec![0; table_bytes]);
        let tiles = self.tiles.next();
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(rows)) {
            let scale = x.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            codes.iter_mut().zip(x).for_each(|(code, x)| *code = (x * inverse).round_ties_even() as i8);
            let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
            tables(&codes, &mut made);
            let outs = out.chunks_mut(TILE_ROWS).zip(self.scales.chunks(TILE_ROWS));
            for (tile, (out, scales)) in tiles.chunks_exact(tile_bytes).zip(outs) {
                let mut sums = [0; TILE_ROWS];
                product(cpu, tile, &made, &mut sums);
                for ((y, row), dot) in out.iter_mut().zip(scales).zip(sums) {
                    *y = (dot - sum) as f32 * row * scale;
                }
            }
        }
    }
}
