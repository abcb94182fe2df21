//! The same memory on both sides: an operation is asked of the processor and of the card, and their results compared.

use bantam_core::arena::{ALIGNMENT, Layouter};
use bantam_core::layouts::Layout;
use bantam_core::layouts::{Shape, TILE_ROWS};
use bantam_core::{Arena, Backend, Cpu, CpuBackend, Matrix, Precision, Region, Serial, Slot};
use bantam_cuda::{Card, CudaBackend, Sizes};

/// Rows of a step, words of page tables and bytes of results that tests make do with.
const ROWS: usize = 64;
const TABLES: usize = 64;

/// A plan under way: slots are given out before there is memory.
pub(crate) struct Layouters {
    pub(crate) weights: Layouter,
    pub(crate) cache: Layouter,
    pub(crate) work: Layouter,
}

impl Layouters {
    pub(crate) fn new() -> Self {
        let [weights, cache, work] = [Region::Weights, Region::Cache, Region::Work].map(Layouter::new);
        Layouters { weights, cache, work }
    }

    pub(crate) fn weights(&mut self, floats: usize) -> Slot {
        self.weights.slot(4 * floats).expect("small")
    }

    pub(crate) fn work(&mut self, floats: usize) -> Slot {
        self.work.slot(4 * floats).expect("small")
    }

    /// Room for a stack of matrices.
    pub(crate) fn matrix(
        &mut self,
        layout: &'static dyn Layout,
        shape: Shape,
        count: usize,
        times: usize,
    ) -> Matrix {
        let stored = Shape { columns: times * shape.columns, ..shape };
        let bytes = Matrix::bytes(layout, stored).expect("small");
        let slot = self.weights.slot(count * bytes).expect("small");
        Matrix { times, ..Matrix::plain(layout, shape, slot) }
    }
}

/// Both backends over equal memory.
pub(crate) struct Both<'a> {
    pub(crate) cpu: CpuBackend<Block<'a>, Serial>,
    pub(crate) card: CudaBackend,
}

/// Memory that is borrowed, so that its kind needs no name here.
pub(crate) type Block<'a> = &'a mut [u8];

/// Takes memory as planned, full of noise, and hands both to a test.
pub(crate) fn with(
    plan: &Layouters,
    panels: Slot,
    precision: Precision,
    fill: impl FnOnce(&mut Arena<Block>),
    test: impl FnOnce(&mut Both),
) {
    let sizes = [&plan.weights, &plan.cache, &plan.work].map(|layouter| layouter.bytes().max(64));
    let mut regions = sizes.map(|bytes| vec![0; bytes + ALIGNMENT]);
    let [weights, cache, work] = regions.each_mut().map(|region| aligned(region));
    let mut arena = Arena::new(weights, cache, work);
    fill(&mut arena);
    let results = 4 * sizes[2] + (1 << 20);
    let [weight_bytes, cache_bytes, work_bytes] = sizes;
    let sizes = Sizes {
        weights: weight_bytes,
        cache: cache_bytes,
        work: work_bytes,
        rows: ROWS,
        tables: TABLES,
        results,
    };
    let card = Card::open(0).expect("the driver that this test was started with");
    let card = card.with_backward().expect("it reads all texts");
    let mut card = CudaBackend::new(card, precision, sizes, panels).expect("a card with room");
    card.upload(Region::Weights, 0, &arena.weights[..]);
    card.upload(Region::Cache, 0, &arena.cache[..]);
    card.upload(Region::Work, 0, &arena.work[..]);
    let cpu = CpuBackend::new(Cpu::detect(), precision, Serial, arena, panels);
    test(&mut Both { cpu, card });
}

impl Both<'_> {
    /// What both have in a slot, the processor's first.
    pub(crate) fn read(&self, slot: Slot) -> (Vec<f32>, Vec<f32>) {
        let found = self.card.read(slot).to_vec();
        assert_eq!(self.card.fault(), None);
        (self.cpu.read(slot).to_vec(), found)
    }

    /// The same numbers, bit for bit.
    pub(crate) fn check_same(&self, what: &str, slot: Slot) {
        let (wanted, found) = self.read(slot);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let at = bits(&wanted).iter().zip(bits(&found)).position(|(a, b)| *a != b);
        assert!(
            at.is_none(),
            "{what}: {:?} on the card, not {:?}, at {at:?}",
            at.map(|i| found[i]),
            at.map(|i| wanted[i])
        );
    }

    /// Within `tolerance` of the largest magnitude.
    pub(crate) fn check_close(&self, what: &str, slot: Slot, tolerance: f32) {
        let (wanted, found) = self.read(slot);
        let most = wanted.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
        for (i, (a, b)) in wanted.iter().zip(&found).enumerate() {
            assert!(
                (a - b).abs() <= tolerance * most,
                "{what}: {b} on the card, not {a}, at {i}; largest {most}"
            );
        }
    }
}

/// The part of a region that begins where arenas want it to.
fn aligned(region: &mut [u8]) -> &mut [u8] {
    let bytes = region.len() - ALIGNMENT;
    let start = region.as_ptr().align_offset(ALIGNMENT);
    &mut region[start..start + bytes]
}

/// Numbers around zero that look random and are the same in every run.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut number = || {
        // Knuth's multiplier; the high bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 44) as f32 / (1 << 19) as f32 - 1.0
    };
    (0..count).map(|_| number()).collect()
}

/// Packs noise into every matrix of a stack.
pub(crate) fn pack(arena: &mut Arena<Block>, matrix: &Matrix, count: usize, seed: u64) {
    let (rows, columns) = (matrix.shape.rows, matrix.width());
    let tile_bytes = matrix.layout.tile_bytes(columns);
    let tiles = arena.write(matrix.slot);
    for m in 0..count {
        let values = noise(seed + m as u64, rows * columns);
        let packed = tiles[m * matrix.shape.tiles() * tile_bytes..].chunks_exact_mut(tile_bytes);
        for (tile, rows) in packed.zip(values.chunks(TILE_ROWS * columns)) {
            matrix.layout.pack(columns, rows, tile).expect("finite numbers");
        }
    }
}
