//! Attention beside its definition in float64, on what the cache really holds, for every processor level and kind of
//! cache; and what a page gives back of what was stored.

extern crate std;

use super::*;
use crate::backend::{Feed, Heads};
use crate::layouts::tests::noise;
use crate::ops::crew::Serial;
use crate::{Region, Slot};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// Bytes that are NaN as float32 and float16, and a NaN scale for int8: whatever was not stored must not count.
fn unwritten(bytes: usize) -> Vec<[u8; 64]> {
    vec![[0xff; 64]; bytes.div_ceil(64)]
}

/// Key and value of a position as the page's drawing defines them.
fn stored(shape: PageShape, page: &[u8], position: usize) -> (Vec<f32>, Vec<f32>) {
    let PageShape { width, kind } = shape;
    let padded = width.div_ceil(16) * 16;
    let scales = if kind == KvKind::Int8 { 4 * POSITIONS } else { 0 };
    let (keys, values) = page.split_at(width * POSITIONS * kind.bytes() + scales);
    let side = |side: &[u8], codes: usize, at: &dyn Fn(usize) -> usize| -> Vec<f32> {
        let float = |at: usize| f32::from_le_bytes(side[at..at + 4].try_into().expect("four bytes"));
        let code = |at: usize| match kind {
            KvKind::F32 => float(at * 4),
            KvKind::F16 => half::f16::from_le_bytes([side[at * 2], side[at * 2 + 1]]).to_f32(),
            KvKind::Int8 => f32::from(side[at] as i8) * float(codes + position * 4),
        };
        (0..width).map(|channel| code(at(channel))).collect()
    };
    let key = side(keys, width * POSITIONS, &|channel| channel * POSITIONS + position);
    let value = side(values, padded * POSITIONS, &|channel| position * padded + channel);
    (key, value)
}

/// A layer's attention over two sequences.
#[derive(Debug, Clone)]
struct Case {
    width: usize,
    kind: KvKind,
    kv_heads: usize,
    group: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    /// Positions before, and rows now, of each sequence.
    sequences: [(usize, usize); 2],
    seed: u64,
}

/// A case with its numbers: the cache filled, queries drawn.
struct Filled {
    attention: Attention,
    cache: KvCache,
    memory: Vec<[u8; 64]>,
    tables: Vec<u32>,
    sinks: Option<Vec<f32>>,
    queries: Vec<f32>,
}

const PAGES: usize = 5;

impl Filled {
    fn new(case: &Case) -> Self {
        let heads = Heads { count: case.kv_heads * case.group, width: case.width };
        let shape = PageShape { width: case.width, kind: case.kind };
        let slot =
            Slot { region: Region::Cache, offset: 0, bytes: 2 * PAGES * case.kv_heads * shape.bytes() };
        let cache = KvCache { slot, heads: case.kv_heads, shape };
        let attention = Attention {
            heads,
            scale: 1.0 / libm::sqrtf(case.width as f32),
            window: case.window,
            softcap: case.softcap,
            sinks: None,
        };
        let mut next = noise(case.seed);
        let mut draw = |count: usize, size: f32| (0..count).map(|_| size * next()).collect::<Vec<f32>>();
        let rows: usize = case.sequences.iter().map(|(_, rows)| rows).sum();
        let mut filled = Filled {
            attention,
            cache,
            memory: unwritten(slot.bytes),
            // Pages of the two sequences lie among one another, and not in order.
            tables: vec![8, 1, 6, 3, 4, 9, 0, 7, 2, 5],
            sinks: case.sinks.then(|| draw(heads.count, 3.0)),
            queries: draw(rows * heads.channels(), 3.0),
        };
        let stride = cache.heads * case.width;
        for (sequence, (before, rows)) in case.sequences.into_iter().enumerate() {
            let feed = Feed {
                first_row: 0,
                rows: before + rows,
                first_position: 0,
                sequence,
                length: before + rows,
            };
            let (keys, values) = (draw(feed.rows * stride, 1.0), draw(feed.rows * stride, 1.0));
            let tables = filled.tables.clone();
            let batch = Batch { feeds: &[feed], tables: &tables, pages_per_sequence: PAGES };
            let memory = bytemuck::cast_slice_mut(&mut filled.memory);
            store_batch(&Serial, &cache, memory, &batch, &keys, &values);
        }
        filled
    }

    fn attend(&self, cpu: Cpu, feeds: &[Feed], queries: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; queries.len()];
        let batch = Batch { feeds, tables: &self.tables, pages_per_sequence: PAGES };
        attend_batch(
            cpu,
            &Serial,
            &self.attention,
            self.sinks.as_deref(),
            &self.cache,
            bytemuck::cast_slice(&self.memory),
            &batch,
            queries,
            &mut out,
        );
        out
    }

    /// One query head of one token, by the definition.
    fn reference(&self, sequence: usize, position: usize, head: usize, query: &[f32]) -> Vec<f64> {
        let Attention { heads, .. } = self.attention;
        let kv_head = head / (heads.count / self.cache.heads);
        let memory: &[u8] = bytemuck::cast_slice(&self.memory);
        let first = self.attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let rows: Vec<_> = (first..=position)
            .map(|position| {
                let page = self.tables[sequence * PAGES + position / POSITIONS] as usize;
                let bytes = self.cache.shape.bytes();
                let at = page * self.cache.page_bytes() + kv_head * bytes;
                stored(self.cache.shape, &memory[at..at + bytes], position % POSITIONS)
            })
            .collect();
        let score = |key: &[f32]| {
            let dot: f64 = key.iter().zip(query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum();
            let score = dot * f64::from(self.attention.scale);
            self.attention.softcap.map_or(score, |cap| libm::tanh(score / f64::from(cap)) * f64::from(cap))
        };
        let scores: Vec<f64> = rows.iter().map(|(key, _)| score(key)).collect();
        let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
        let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| libm::exp(score - highest)).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| libm::exp(sink - highest));
        (0..heads.width)
            .map(|channel| {
                let values = rows.iter().map(|(_, value)| f64::from(value[channel]));
                values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / total
            })
            .collect()
    }
}

fn check(case: &Case) {
    let filled = Filled::new(case);
    let Heads { count, width } = filled.attention.heads;
    let [(before, rows), (before_other, rows_other)] = case.sequences;
    let feed = |first_row, rows, first_position, sequence| {
        let length = first_position + rows;
        Feed { first_row, rows, first_position, sequence, length }
    };
    let feeds = [feed(0, rows, before, 0), feed(rows, rows_other, before_other, 1)];
    // Scores are below 3 * sqrt(width), so float32 keeps them within some 1e-6; tanh has 3e-7 of the cap.
    let tolerance = 1e-5 + 1e-6 * f64::from(case.softcap.unwrap_or(0.0));
    let token = count * width;
    let wanted: Vec<f64> = feeds
        .iter()
        .flat_map(|feed| (0..feed.rows).map(move |i| (feed, i)))
        .flat_map(|(feed, i)| {
            let query = &filled.queries[(feed.first_row + i) * token..][..token];
            let heads = query.chunks_exact(width).enumerate();
            let of = |(head, query)| filled.reference(feed.sequence, feed.first_position + i, head, query);
            heads.flat_map(of).collect::<Vec<f64>>()
        })
        .collect();
    for cpu in Cpu::detect().variants() {
        let found = filled.attend(cpu, &feeds, &filled.queries);
        for (at, (&found, &wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!(
                (f64::from(found) - wanted).abs() <= tolerance,
                "{case:?} on {}: row {}, head {}, channel {}: {found}, not {wanted}",
                cpu.name(),
                at / token,
                at / width % count,
                at % width
            );
        }
        for Feed { first_row, rows, first_position, sequence, .. } in feeds {
            let last = first_row + rows - 1;
            let alone = [feed(0, 1, first_position + rows - 1, sequence)];
            let row = last * token..(last + 1) * token;
            let alone = filled.attend(cpu, &alone, &filled.queries[row.clone()]);
            assert_eq!(alone, found[row], "{case:?} on {}: alone", cpu.name());
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![Just(KvKind::F32), Just(KvKind::F16), Just(KvKind::Int8)];
    let sequence = || (0usize..200, 1usize..80);
    let shape = (1usize..131, kind, 1usize..4, 1usize..9);
    let bends = (prop::option::of(1usize..150), prop::option::of(1.0f32..50.0), any::<bool>());
    (shape, bends, [sequence(), sequence()], any::<u64>()).prop_map(
        |((width, kind, kv_heads, group), (window, softcap, sinks), sequences, seed)| Case {
            width,
            kind,
            kv_heads,
            group,
            window,
            softcap,
            sinks,
            sequences,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_variant_attends_as_defined(case in cases()) {
        check(&case);
    }
}

/// Shapes of real models, and the borders of pages, windows and padding, whatever chance draws above.
#[test]
fn borders_and_real_shapes_attend_as_defined() {
    let plain = Case {
        width: 64,
        kind: KvKind::F32,
        kv_heads: 1,
        group: 1,
        window: None,
        softcap: None,
        sinks: false,
        sequences: [(0, 1), (63, 2)],
        seed: 1,
    };
    for case in [
        plain.clone(),
        Case { width: 128, group: 8, sequences: [(64, 64), (128, 1)], ..plain.clone() },
        Case { width: 16, window: Some(64), sequences: [(127, 66), (0, 65)], ..plain.clone() },
        Case {
            width: 17,
            window: Some(1),
            kind: KvKind::F16,
            sequences: [(0, 70), (130, 3)],
            ..plain.clone()
        },
        Case { width: 1, sinks: true, kind: KvKind::Int8, window: Some(65), ..plain.clone() },
        Case { width: HEAD_WIDTH_MAX, kind: KvKind::Int8, softcap: Some(30.0), ..plain },
    ] {
        check(&case);
    }
}

/// Stores a key and a value at one position of an unwritten page.
fn round_trip(kind: KvKind, key: &[f32], value: &[f32], position: usize) -> (Vec<f32>, Vec<f32>) {
    let shape = PageShape { width: key.len(), kind };
    let mut page = unwritten(shape.bytes());
    let page: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut page)[..shape.bytes()];
    let other = (position + 1) % POSITIONS;
    store(shape, page, other, value, key);
    let neighbour = stored(shape, page, other);
    store(shape, page, position, key, value);
    assert_eq!(neighbour, stored(shape, page, other), "{kind:?}: storing changes another position");
    stored(shape, page, position)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_page_gives_back_what_its_kind_can_hold(
        width in 1usize..131, position in 0..POSITIONS, size in 1e-3f32..1e3, seed: u64,
    ) {
        let mut next = noise(seed);
        let mut draw = || (0..width).map(|_| size * next()).collect::<Vec<f32>>();
        let (key, value) = (draw(), draw());
        for kind in [KvKind::F32, KvKind::F16, KvKind::Int8] {
            let found = round_trip(kind, &key, &value, position);
            for (given, found) in [(&key, found.0), (&value, found.1)] {
                let peak = given.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
                for (given, found) in given.iter().zip(found) {
                    let bound = match kind {
                        KvKind::F32 => 0.0,
                        // Half a unit in eleven bits; half of the smallest step below those.
                        KvKind::F16 => given.abs() / 2048.0 + 3.0e-8,
                        // Half a step of 1/127 of the largest, and float32's own rounding.
                        KvKind::Int8 => peak / 254.0 * 1.0001,
                    };
                    assert!((given - found).abs() <= bound, "{kind:?}: {given} became {found}");
                }
            }
        }
    }
}

#[test]
fn a_key_of_zeros_stays_zero_in_every_kind() {
    for kind in [KvKind::F32, KvKind::F16, KvKind::Int8] {
        let (key, value) = round_trip(kind, &[0.0; 5], &[1.0, -1.0, 0.5, 0.0, 0.25], 9);
        assert_eq!(key, [0.0; 5], "{kind:?}");
        assert_eq!((value[0], value[1], value[3]), (1.0, -1.0, 0.0), "{kind:?}");
    }
}
