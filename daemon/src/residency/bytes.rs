//! Amounts of memory, one per device, and of places, of which every model takes one.

use std::fmt;

/// What has a budget of its own: a memory, or the places for models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// Main memory.
    Ram,
    /// The memory of a graphics card.
    Vram,
    /// Not a memory: how many models may be there. Counted like bytes, it needs no rules of its own.
    Places,
}

impl Device {
    /// All of them, in the order of [`Bytes`].
    pub const ALL: [Device; 3] = [Device::Ram, Device::Vram, Device::Places];
}

/// So much of something, for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amount(pub(super) u64, pub(super) Device);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Amount(number, device) = *self;
        match device {
            Device::Ram => write!(f, "{number} bytes of RAM"),
            Device::Vram => write!(f, "{number} bytes of VRAM"),
            Device::Places if number == 1 => write!(f, "1 place of `models.max`"),
            Device::Places => write!(f, "{number} places of `models.max`"),
        }
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
        Bytes::new(bytes, 0)
    }

    /// Both memories.
    pub const fn new(ram: u64, vram: u64) -> Self {
        Bytes([ram, vram, 0])
    }

    /// With so many places.
    #[must_use]
    pub const fn places(mut self, places: u64) -> Self {
        self.0[Device::Places as usize] = places;
        self
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
