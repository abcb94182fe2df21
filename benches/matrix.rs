//! Products of a matrix with one token (`matvec`) or many (`product`), in every layout.

use std::cell::Cell;
use std::io;

use bantam_core::layouts::coded::{TRITS, WHOLE_ROW};
use bantam_core::layouts::panels::{Form, Taken};
use bantam_core::layouts::{FLOAT32, LAYOUTS, Layout, Shape, TILE_ROWS};
use bantam_core::ops::matmul::{Input, Output, multiply, panel_bytes};
use bantam_core::{Cpu, Level, Precision, Serial};
use bantam_model::memory;
use memmap2::MmapMut;

use crate::case::{Case, Filter, Run, Variant};
use crate::ceilings::Unit;
use crate::lookup::Lookup;
use crate::noises;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows and columns.
    pub shapes: &'static [(usize, usize)],
    /// Tokens.
    pub tokens: &'static [usize],
    /// With one token, so many copies take turns that together they exceed this: a model is never in a cache.
    pub cold_bytes: usize,
}

/// A small model's projections.
pub const FULL: Sizes = Sizes {
    shapes: &[(2048, 2048), (5632, 2048), (2048, 5632)],
    tokens: &[1, 12, 64, 512],
    cold_bytes: 96 << 20,
};

/// Ragged in rows, columns and groups of tokens.
pub const TINY: Sizes = Sizes { shapes: &[(80, 150)], tokens: &[1, 29], cold_bytes: 0 };

/// A float32 product from outside: `out[token][row] = x[token] . weights[row]`.
#[derive(Clone, Copy)]
pub struct Rival {
    /// Its name in the table.
    pub name: &'static str,
    /// Shape of the weights, the weights row by row, `x`, `out`.
    pub product: fn(Shape, &[f32], &[f32], &mut [f32]),
}

/// A way to multiply.
#[derive(Clone, Copy)]
enum Way {
    /// Our kernel.
    Kernel(Cpu, Precision),
    /// Three loops over float32.
    Naive,
    /// By tables, see `lookup.rs`.
    Lookup(Cpu),
    /// Unpacks the matrix to float32 in every run, then multiplies with our float32 kernel.
    UnpackThenMultiply(Cpu),
    Rival(Rival),
}

impl Way {
    fn name(self) -> String {
        match self {
            Way::Kernel(cpu, Precision::Fast) => cpu.name().to_owned(),
            Way::Kernel(cpu, Precision::Exact) => format!("{}-exact", cpu.name()),
            Way::Lookup(cpu) => format!("{}-tables", cpu.name()),
            Way::Naive => "naive".to_owned(),
            Way::UnpackThenMultiply(_) => "unpack-then-multiply".to_owned(),
            Way::Rival(rival) => rival.name.to_owned(),
        }
    }
}

/// All ways; processor variants that no kernel of the layout can tell apart are measured once.
fn ways(layout: &dyn Layout, rival: Rival) -> Vec<Way> {
    let strongest = Cpu::detect();
    let mut ways = Vec::new();
    let mut met: Vec<(Form, Level, bool)> = Vec::new();
    for precision in [Precision::Fast, Precision::Exact] {
        for cpu in strongest.variants() {
            let form = layout.form(precision, cpu);
            let kernel = (form, cpu.level(), matches!(form, Form::Int8 { .. }) && cpu.vnni());
            if !met.contains(&kernel) {
                met.push(kernel);
                ways.push(Way::Kernel(cpu, precision));
            }
        }
    }
    if is_ternary(layout) {
        let mut met: Vec<Level> = Vec::new();
        for cpu in strongest.variants() {
            if !met.contains(&cpu.level()) {
                met.push(cpu.level());
                ways.push(Way::Lookup(cpu));
            }
        }
    }
    ways.extend([Way::UnpackThenMultiply(strongest), Way::Rival(rival), Way::Naive]);
    ways
}

/// Whether rows are trits with one scale.
fn is_ternary(layout: &dyn Layout) -> bool {
    layout.coded().is_some_and(|coded| *coded.book() == TRITS && coded.run() == WHOLE_ROW)
}

/// Calls `visit` with every case that the filter keeps something of.
pub fn visit(
    sizes: Sizes,
    rival: Rival,
    filter: &Filter,
    visit: &mut dyn FnMut(Case) -> io::Result<()>,
) -> io::Result<()> {
    for &layout in LAYOUTS {
        for &(rows, columns) in sizes.shapes {
            for &tokens in sizes.tokens {
                let shape = Shape { rows, columns };
                let name = match tokens {
                    1 => format!("matvec/{}/{rows}x{columns}", layout.name()),
                    _ => format!("product/{}/{rows}x{columns}x{tokens}", layout.name()),
                };
                let mut ways = ways(layout, rival);
                ways.retain(|way| filter.keeps(&name, &way.name()));
                if ways.is_empty() {
                    continue;
                }
                let data = Data::new(layout, shape, tokens, sizes.cold_bytes)?;
                let variants: io::Result<Vec<Variant>> = ways.iter().map(|&way| data.variant(way)).collect();
                visit(Case {
                    name,
                    macs: (rows * columns * tokens) as u64,
                    outputs: tokens * rows,
                    variants: variants?,
                })?;
            }
        }
    }
    Ok(())
}

/// Several copies of one block, which take turns.
pub(crate) struct Copies {
    memory: MmapMut,
    bytes: usize,
    turn: Cell<usize>,
}

impl Copies {
    /// As many as exceed `cold_bytes`, filled by `fill`.
    pub(crate) fn new(bytes: usize, cold_bytes: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let count = cold_bytes / bytes + 1;
        let mut memory = memory::region(count * bytes)?;
        fill(&mut memory[..bytes]);
        for copy in 1..count {
            memory.copy_within(..bytes, copy * bytes);
        }
        let turn = Cell::new(0);
        Ok(Copies { memory, bytes, turn })
    }

    pub(crate) fn next(&self) -> &[u8] {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let at = turn % (self.memory.len() / self.bytes) * self.bytes;
        &self.memory[at..at + self.bytes]
    }
}

/// A matrix in its layout and as plain float32 (of the same, rounded, values), and the input.
struct Data {
    layout: &'static dyn Layout,
    shape: Shape,
    tokens: usize,
    x: Vec<f32>,
    tiles: Copies,
    plain: Copies,
    lookup: Option<Lookup>,
}

impl Data {
    fn new(layout: &'static dyn Layout, shape: Shape, tokens: usize, cold_bytes: usize) -> io::Result<Self> {
        let cold_bytes = if tokens == 1 { cold_bytes } else { 0 };
        let Shape { rows, columns } = shape;
        let weights = noises(1, rows * columns);
        let tiles = Copies::new(shape.tiles() * layout.tile_bytes(columns), cold_bytes, |tiles| {
            pack(layout, columns, &weights, tiles);
        })?;
        let plain = Copies::new(4 * rows * columns, cold_bytes, |plain| {
            unpack(layout, columns, tiles.next(), bytemuck::cast_slice_mut(plain));
        })?;
        let values = bytemuck::cast_slice(plain.next());
        let lookup = is_ternary(layout).then(|| Lookup::new(shape, values, cold_bytes)).transpose()?;
        Ok(Data { layout, shape, tokens, x: noises(2, tokens * columns), tiles, plain, lookup })
    }

    fn variant(&self, way: Way) -> io::Result<Variant<'_>> {
        let form = match way {
            Way::Kernel(cpu, precision) => self.layout.form(precision, cpu),
            _ => Form::Float,
        };
        let plain = matches!(way, Way::Naive | Way::Rival(_));
        Ok(Variant {
            name: way.name(),
            unit: if self.tokens == 1 { Unit::Read } else { Unit::of(form) },
            bytes: match (&self.lookup, way) {
                (Some(lookup), Way::Lookup(_)) => lookup.bytes(),
                _ if plain => self.plain.bytes,
                _ => self.tiles.bytes,
            },
            run: self.run(way, form)?,
        })
    }

    fn run(&self, way: Way, form: Form) -> io::Result<Run<'_>> {
        let Shape { rows, columns } = self.shape;
        let mut panels = memory::region(panel_bytes(form, columns, self.tokens))?;
        Ok(match way {
            Way::Kernel(cpu, precision) => Box::new(move |out| {
                self.multiply((cpu, precision), self.layout, self.tiles.next(), &mut panels, out);
            }),
            Way::UnpackThenMultiply(cpu) => {
                let mut plain = vec![0.0; rows * columns];
                let mut tiles = memory::region(self.shape.tiles() * FLOAT32.tile_bytes(columns))?;
                Box::new(move |out| {
                    unpack(self.layout, columns, self.tiles.next(), &mut plain);
                    pack(FLOAT32, columns, &plain, &mut tiles);
                    self.multiply((cpu, Precision::Exact), FLOAT32, &tiles, &mut panels, out);
                })
            }
            Way::Lookup(cpu) => {
                let lookup = self.lookup.as_ref().expect("a way of ternary layouts alone");
                Box::new(move |out| lookup.multiply(cpu, &self.x, out))
            }
            Way::Naive => Box::new(move |out| self.naive(bytemuck::cast_slice(self.plain.next()), out)),
            Way::Rival(rival) => Box::new(move |out| {
                (rival.product)(self.shape, bytemuck::cast_slice(self.plain.next()), &self.x, out);
            }),
        })
    }

    fn multiply(
        &self,
        (cpu, precision): (Cpu, Precision),
        layout: &'static dyn Layout,
        tiles: &[u8],
        panels: &mut [u8],
        out: &mut [f32],
    ) {
        let output =
            Output { layout, shape: self.shape, tiles, taken: Taken::PLAIN, bias: None, out, add: false };
        let input = Input { x: &self.x, columns: self.shape.columns, order: None };
        let (panels, segments) = (bytemuck::cast_slice_mut(panels), [[0, 0, self.tokens as u32]]);
        multiply(cpu, precision, &Serial, input, &segments, panels, &mut [output]);
    }

    fn naive(&self, weights: &[f32], out: &mut [f32]) {
        let Shape { rows, columns } = self.shape;
        for (x, out) in self.x.chunks_exact(columns).zip(out.chunks_exact_mut(rows)) {
            for (weights, y) in weights.chunks_exact(columns).zip(out) {
                *y = 0.0;
                for (w, x) in weights.iter().zip(x) {
                    *y += w * x;
                }
            }
        }
    }
}

fn pack(layout: &dyn Layout, columns: usize, rows: &[f32], tiles: &mut [u8]) {
    let tiles = tiles.chunks_exact_mut(layout.tile_bytes(columns));
    for (rows, tile) in rows.chunks(TILE_ROWS * columns).zip(tiles) {
        layout.pack(columns, rows, tile).expect("noise is finite");
    }
}

fn unpack(layout: &dyn Layout, columns: usize, tiles: &[u8], rows: &mut [f32]) {
    let tile_bytes = layout.tile_bytes(columns);
    for (row, out) in rows.chunks_exact_mut(columns).enumerate() {
        let tile = &tiles[row / TILE_ROWS * tile_bytes..][..tile_bytes];
        layout.unpack(columns, tile, row % TILE_ROWS, out);
    }
}
