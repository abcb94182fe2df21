//! Memory that is laid out before it exists: a [`Slot`] is a place in a region, an [`Arena`] is the regions.
//!
//! A plan gives out slots by adding up bytes; the arena is then made in exactly that size. Slots hold no pointer,
//! so the same plan is valid on any device.

use core::ops::{DerefMut, Range};

/// Every slot begins at a multiple of this: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// The parts of an arena. They live and die apart: weights are read only after loading, the cache outlives a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Matrices and vectors of the model.
    Weights,
    /// Keys and values of running sequences.
    Cache,
    /// Activations and scratch, overwritten in every step.
    Work,
    /// Matrices and vectors of adapters that come and go beside a loaded model.
    Adapters,
}

/// A place in a region: offset and size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The region.
    pub region: Region,
    /// Bytes from the region's start, a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Size in bytes.
    pub bytes: usize,
}

impl Slot {
    /// The byte range within the region.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes
    }

    /// The first `floats` float32 values of the slot.
    pub fn first(self, floats: usize) -> Slot {
        assert!(floats * 4 <= self.bytes, "slot of {} bytes asked for {} floats", self.bytes, floats);
        Slot { bytes: floats * 4, ..self }
    }
}

/// Hands out slots one after another; what it has given out is the size that the region must have.
#[derive(Clone, Copy, Debug)]
pub struct Layouter {
    region: Region,
    used: usize,
}

impl Layouter {
    /// Begins an empty region.
    pub const fn new(region: Region) -> Self {
        Layouter { region, used: 0 }
    }

    /// The next slot. Its size is rounded up to the alignment in the region's total, not in the slot.
    /// `None` when the sizes add up to more than the address space.
    pub fn slot(&mut self, bytes: usize) -> Option<Slot> {
        let slot = Slot { region: self.region, offset: self.used, bytes };
        self.used = self.used.checked_add(bytes.checked_next_multiple_of(ALIGNMENT)?)?;
        Some(slot)
    }

    /// Bytes given out so far.
    pub fn bytes(&self) -> usize {
        self.used
    }
}

/// The memory of a run, one block per region, owned by the caller's choice of `M` (a map, a vector, a static array).
#[derive(Debug)]
pub struct Arena<M> {
    /// [`Region::Weights`].
    pub weights: M,
    /// [`Region::Cache`].
    pub cache: M,
    /// [`Region::Work`].
    pub work: M,
    /// [`Region::Adapters`], where there is any.
    pub adapters: Option<M>,
}

/// What a step only reads of an arena while it writes activations.
#[derive(Clone, Copy, Debug)]
pub struct Fixed<'a> {
    weights: &'a [u8],
    adapters: &'a [u8],
}

impl<'a> Fixed<'a> {
    /// The bytes of a slot of one of these regions.
    pub fn read(&self, slot: Slot) -> &'a [u8] {
        match slot.region {
            Region::Adapters => &self.adapters[slot.range()],
            _ => &self.weights[slot.range()],
        }
    }

    /// The values of a slot.
    pub fn floats(&self, slot: Slot) -> &'a [f32] {
        bytemuck::cast_slice(self.read(slot))
    }
}

impl<M: DerefMut<Target = [u8]>> Arena<M> {
    /// Takes the regions over, without room for adapters. Each must be aligned to [`ALIGNMENT`].
    pub fn new(weights: M, cache: M, work: M) -> Self {
        [&weights, &cache, &work].into_iter().for_each(check_aligned);
        Arena { weights, cache, work, adapters: None }
    }

    /// The same with room for adapters.
    pub fn with_adapters(self, adapters: M) -> Self {
        check_aligned(&adapters);
        Arena { adapters: Some(adapters), ..self }
    }

    /// What is only read, the cache, and activations.
    pub fn parts(&mut self) -> (Fixed<'_>, &mut [u8], &mut [u8]) {
        let Arena { weights, cache, work, adapters } = self;
        (Fixed { weights, adapters: adapters.as_deref().unwrap_or(&[]) }, cache, work)
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> usize {
        self.weights.len()
            + self.cache.len()
            + self.work.len()
            + self.adapters.as_deref().map_or(0, <[u8]>::len)
    }

    /// The bytes of a slot.
    pub fn read(&self, slot: Slot) -> &[u8] {
        &self.region(slot.region)[slot.range()]
    }

    /// The bytes of a slot, to be written.
    pub fn write(&mut self, slot: Slot) -> &mut [u8] {
        let region: &mut [u8] = match slot.region {
            Region::Weights => &mut self.weights,
            Region::Cache => &mut self.cache,
            Region::Work => &mut self.work,
            Region::Adapters => self.adapters.as_deref_mut().unwrap_or(&mut []),
        };
        &mut region[slot.range()]
    }

    /// The values of a slot.
    pub fn floats(&self, slot: Slot) -> &[f32] {
        bytemuck::cast_slice(self.read(slot))
    }

    /// The words of a slot.
    pub fn words(&self, slot: Slot) -> &[u32] {
        bytemuck::cast_slice(self.read(slot))
    }

    /// The values of a slot, to be written.
    pub fn floats_mut(&mut self, slot: Slot) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.write(slot))
    }

    fn region(&self, region: Region) -> &[u8] {
        match region {
            Region::Weights => &self.weights,
            Region::Cache => &self.cache,
            Region::Work => &self.work,
            Region::Adapters => self.adapters.as_deref().unwrap_or(&[]),
        }
    }
}

fn check_aligned<M: DerefMut<Target = [u8]>>(block: &M) {
    assert!(
        (block.as_ptr() as usize).is_multiple_of(ALIGNMENT),
        "arena memory must be aligned to {ALIGNMENT} bytes"
    );
}

/// Several slots of one region at once, each as float32 values. Panics where two overlap: a mistake in a plan.
pub fn disjoint<const N: usize>(region: &mut [u8], slots: [Slot; N]) -> [&mut [f32]; N] {
    let parts = region.get_disjoint_mut(slots.map(|slot| slot.range()));
    match parts {
        Ok(parts) => parts.map(bytemuck::cast_slice_mut),
        Err(_) => panic!("slots overlap or lie outside their region: {slots:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_and_add_up() {
        let mut layouter = Layouter::new(Region::Work);
        let a = layouter.slot(10).expect("small");
        let b = layouter.slot(64).expect("small");
        assert_eq!((a.offset, b.offset, layouter.bytes()), (0, 64, 128));
        assert!(layouter.slot(usize::MAX - 64).is_none());
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_slots_are_refused() {
        #[repr(align(64))]
        struct Block([u8; 256]);
        let mut block = Block([0; 256]);
        let slot = Slot { region: Region::Work, offset: 0, bytes: 64 };
        let _ = disjoint(&mut block.0, [slot, slot]);
    }
}
