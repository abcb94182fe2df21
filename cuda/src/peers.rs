//! Values that go from one card to another: a copy between both streams, which wait for each other on the way.
//!
//! Cards that may touch each other's memory copy straight; between others the driver goes by way of the host. Some
//! machines grant that and bring over something else (an IOMMU between both does so), so it is tried before it counts.

use bantam_core::Slot;
use bytemuck::cast_slice;

use crate::backend::CudaBackend;
use crate::fault::Fault;

/// Values that are sent to see whether they arrive.
const TRIED: usize = 64;

impl CudaBackend {
    /// Makes both ready for copies between them. What stands in the slot is lost on both.
    pub fn meet(&mut self, other: &mut CudaBackend, slot: Slot) -> Result<(), Fault> {
        for card in [&mut *self, &mut *other] {
            if card.mark.is_none() {
                card.mark = Some(card.card.mark()?);
            }
        }
        let slot = slot.first(TRIED.min(slot.bytes / 4));
        if self.card.ask_peer(&other.card) {
            if self.arrives(other, slot, 1.0)? && other.arrives(self, slot, 2.0)? {
                return Ok(());
            }
            self.card.end_peer(&other.card);
        }
        match self.arrives(other, slot, 3.0)? && other.arrives(self, slot, 4.0)? {
            true => Ok(()),
            false => {
                Err(Fault::Lost { what: "a copy to another card", code: "what arrived is not what was sent" })
            }
        }
    }

    /// Whether a slot's values arrive there; every trial has others.
    fn arrives(&mut self, other: &mut CudaBackend, slot: Slot, seed: f32) -> Result<bool, Fault> {
        let sent: [f32; TRIED] = std::array::from_fn(|i| seed + i as f32 * std::f32::consts::PI);
        let sent = &sent[..slot.bytes / 4];
        other.upload(slot.region, slot.offset, cast_slice(&[0.0; TRIED][..sent.len()]));
        self.upload(slot.region, slot.offset, cast_slice(sent));
        self.hand(slot, other);
        let mut is_same = true;
        other.fetch(slot, &mut |first, piece| is_same &= *piece == sent[first..][..piece.len()]);
        self.fault().or(other.fault()).map_or(Ok(is_same), Err)
    }

    /// Queues a copy of a slot's values to the same slot of another card; both have met.
    pub fn hand(&mut self, slot: Slot, other: &mut CudaBackend) {
        [&*self, &*other].iter().for_each(|card| card.refuse_to_keep());
        if !(self.is_sound() && other.is_sound()) {
            return;
        }
        let (Some(from), Some(to)) = (&self.mark, &other.mark) else {
            return self.note(Err(Fault::Lost { what: "a copy to another card", code: "they have not met" }));
        };
        let memory = (self.region(slot.region), other.region(slot.region));
        let done = self.card.copy_to((memory.0, from), &other.card, (memory.1, to), slot.offset, slot.bytes);
        self.note(done);
    }
}
