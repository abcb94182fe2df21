//! Amounts of memory, one per device.

use std::fmt;

/// A memory that has a budget of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// Main memory.
    Ram,
    /// The memory of a graphics card.
    Vram,
}

impl Device {
    /// All of them, in the order of [`Bytes`].
    pub const ALL: [Device; 2] = [Device::Ram, Device::Vram];
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Ram => "RAM",
            Device::Vram => "VRAM",
        })
    }
}

/// Bytes on every device. Sums stop at `u64::MAX`, so that no plan, however wrong, wraps round to a small number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Bytes([u64; Device::ALL.len()]);

impl Bytes {
    /// None anywhere.
    pub const ZERO: Bytes = Bytes([0; Device::ALL.len()]);

    /// Main memory alone.
    pub const fn ram(bytes: u64) -> Self {
        Bytes([bytes, 0])
    }

    /// Both.
    pub const fn new(ram: u64, vram: u64) -> Self {
        Bytes([ram, vram])
    }

    /// Those of one device.
    pub const fn on(self, device: Device) -> u64 {
        self.0[device as usize]
    }

    /// Device by device.
    #[must_use]
    pub fn plus(self, other: Bytes) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// What this is more than `other`, device by device; 0 where it is less.
    #[must_use]
    pub fn beyond(self, other: Bytes) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// The larger of both, device by device.
    #[must_use]
    pub fn max(self, other: Bytes) -> Self {
        self.zip(other, u64::max)
    }

    /// The smaller of both, device by device.
    #[must_use]
    pub fn min(self, other: Bytes) -> Self {
        self.zip(other, u64::min)
    }

    /// On no device more than `budget`.
    pub fn fits(self, budget: Bytes) -> bool {
        self.beyond(budget) == Bytes::ZERO
    }

    /// Some on a device of which `other` has some.
    pub fn meets(self, other: Bytes) -> bool {
        self.min(other) != Bytes::ZERO
    }

    fn zip(self, other: Bytes, with: impl Fn(u64, u64) -> u64) -> Self {
        Bytes(std::array::from_fn(|device| with(self.0[device], other.0[device])))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(amounts: I) -> Self {
        amounts.fold(Bytes::ZERO, Bytes::plus)
    }
}
