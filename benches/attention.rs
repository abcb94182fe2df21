//! Attention over a cache in each of its kinds: a prompt of many tokens, and one token at the end of a long text.

use std::cell::Cell;
use std::io;

use bantam_core::layouts::page::{POSITIONS, PageShape};
use bantam_core::ops::attention::{attend_batch, store_batch};
use bantam_core::{Attention, Batch, Cpu, Feed, Heads, KvCache, KvKind, Level, Region, Serial, Slot};
use bantam_model::memory;
use memmap2::MmapMut;

use crate::case::{Case, Filter, Variant};
use crate::ceilings::Unit;
use crate::noises;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// Tokens of the prompt.
    pub prefill: usize,
    /// Positions that the one token sees.
    pub decode: usize,
    /// When decoding, so many caches take turns that together they exceed this.
    pub cold_bytes: usize,
}

/// A small model's heads, eight queries to a key; and a head to itself, as older models have it.
pub const FULL: &[Sizes] = &[
    Sizes { heads: 32, key_heads: 4, width: 64, prefill: 512, decode: 1024, cold_bytes: 96 << 20 },
    Sizes { heads: 16, key_heads: 16, width: 128, prefill: 512, decode: 1024, cold_bytes: 96 << 20 },
];

/// Ragged in channels, positions and groups of queries.
pub const TINY: &[Sizes] =
    &[Sizes { heads: 6, key_heads: 2, width: 24, prefill: 70, decode: 131, cold_bytes: 0 }];

const KINDS: [(KvKind, &str); 3] = [(KvKind::F32, "f32"), (KvKind::F16, "f16"), (KvKind::Int8, "int8")];

/// Calls `visit` with every case that the filter keeps something of.
pub fn visit(
    sizes: &[Sizes],
    filter: &Filter,
    visit: &mut dyn FnMut(Case) -> io::Result<()>,
) -> io::Result<()> {
    for sizes in sizes {
        for (kind, kind_name) in KINDS {
            for (operation, positions, rows) in
                [("attention-prefill", sizes.prefill, sizes.prefill), ("attention-decode", sizes.decode, 1)]
            {
                let shape = format!("{positions}x{}x{}x{}", sizes.heads, sizes.key_heads, sizes.width);
                let name = format!("{operation}/{kind_name}/{shape}");
                let mut ways = ways();
                ways.retain(|(way, _)| filter.keeps(&name, way));
                if ways.is_empty() {
                    continue;
                }
                let data = Data::new(*sizes, kind, positions, rows)?;
                let seen: usize = (positions - rows + 1..=positions).sum();
                let variants = ways.into_iter().map(|(way, cpu)| data.variant(way, cpu));
                visit(Case {
                    name,
                    macs: (seen * sizes.heads * sizes.width * 2) as u64,
                    outputs: rows * data.attention.heads.channels(),
                    variants: variants.collect(),
                })?;
            }
        }
    }
    Ok(())
}

/// Our kernel once per level, and three loops over float32.
fn ways() -> Vec<(&'static str, Option<Cpu>)> {
    let mut met: Vec<Level> = Vec::new();
    let mut ways = Vec::new();
    for cpu in Cpu::detect().variants() {
        if !met.contains(&cpu.level()) {
            met.push(cpu.level());
            ways.push((cpu.name(), Some(cpu)));
        }
    }
    ways.push(("naive", None));
    ways
}

/// Keys and values as float32 and in the cache, which holds several sequences with the same content.
struct Data {
    attention: Attention,
    cache: KvCache,
    memory: MmapMut,
    tables: Vec<u32>,
    sequences: usize,
    turn: Cell<usize>,
    positions: usize,
    rows: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Data {
    fn new(sizes: Sizes, kind: KvKind, positions: usize, rows: usize) -> io::Result<Self> {
        let Sizes { heads, key_heads, width, .. } = sizes;
        let shape = PageShape { width, kind };
        let pages = positions.div_ceil(POSITIONS);
        let bytes = pages * key_heads * shape.bytes();
        let cold_bytes = if rows == 1 { sizes.cold_bytes } else { 0 };
        let sequences = cold_bytes / bytes + 1;
        let slot = Slot { region: Region::Cache, offset: 0, bytes: sequences * bytes };
        let mut data = Data {
            attention: Attention {
                heads: Heads { count: heads, width },
                scale: 1.0 / (width as f32).sqrt(),
                window: None,
                softcap: None,
                sinks: None,
            },
            cache: KvCache { slot, heads: key_heads, shape },
            memory: memory::region(sequences * bytes)?,
            tables: (0..(sequences * pages) as u32).collect(),
            sequences,
            turn: Cell::new(0),
            positions,
            rows,
            keys: noises(1, positions * key_heads * width),
            values: noises(2, positions * key_heads * width),
            queries: noises(3, rows * heads * width),
        };
        data.store();
        Ok(data)
    }

    fn store(&mut self) {
        for sequence in 0..self.sequences {
            let feed = Feed {
                first_row: 0,
                rows: self.positions,
                first_position: 0,
                sequence,
                length: self.positions,
            };
            let batch = Batch { feeds: &[feed], tables: &self.tables, pages_per_sequence: self.pages() };
            let (keys, values) = (&self.keys, &self.values);
            store_batch(&Serial, &self.cache, &mut self.memory, &batch, keys, values);
        }
    }

    fn pages(&self) -> usize {
        self.positions.div_ceil(POSITIONS)
    }

    fn variant(&self, name: &str, cpu: Option<Cpu>) -> Variant<'_> {
        Variant {
            name: name.to_owned(),
            unit: if self.rows == 1 { Unit::Read } else { Unit::Float },
            bytes: match cpu {
                Some(_) => self.cache.slot.bytes / self.sequences,
                None => 4 * (self.keys.len() + self.values.len()),
            },
            run: match cpu {
                Some(cpu) => Box::new(move |out| self.attend(cpu, out)),
                None => Box::new(|out| self.naive(out)),
            },
        }
    }

    fn attend(&self, cpu: Cpu, out: &mut [f32]) {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let feed = Feed {
            first_row: 0,
            rows: self.rows,
            first_position: self.positions - self.rows,
            sequence: turn % self.sequences,
            length: self.positions,
        };
        let batch = Batch { feeds: &[feed], tables: &self.tables, pages_per_sequence: self.pages() };
        attend_batch(
            cpu,
            &Serial,
            &self.attention,
            None,
            &self.cache,
            &self.memory,
            &batch,
            &self.queries,
            out,
        );
    }

    /// By the formula, from the values before they were stored.
    fn naive(&self, out: &mut [f32]) {
        let Heads { count, width } = self.attention.heads;
        let (group, stride) = (count / self.cache.heads, self.cache.heads * width);
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let (row, head) = (i / count, i % count);
            let query = &self.queries[i * width..][..width];
            let at = |position: usize| position * stride + head / group * width;
            let scores = (0..self.positions - self.rows + row + 1).map(|position| {
                let key = &self.keys[at(position)..][..width];
                let dot: f32 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                dot * self.attention.scale
            });
            let scores: Vec<f32> = scores.collect();
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f32 = weights.iter().sum();
            out.fill(0.0);
            for (position, weight) in weights.iter().enumerate() {
                let value = &self.values[at(position)..][..width];
                out.iter_mut().zip(value).for_each(|(y, v)| *y += weight / total * v);
            }
        }
    }
}
