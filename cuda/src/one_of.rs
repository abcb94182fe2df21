//! A card as an engine takes it: one of the machine's, found by its number.

use std::any::Any;

use bantam_core::{Matrix, Slot};
use bantam_model::card::{Backwards, CardFault, Cards, Fill, Found, Needs, NoCard, Passing, Seen, Stretch};

use crate::backend::{CudaBackend, Sizes};
use crate::driver::{self, Card};
use crate::fault::{Absent, Fault};

/// The card with this number.
#[derive(Debug, Clone, Copy)]
pub struct OneOf(pub usize);

impl Cards for OneOf {
    fn look(&self) -> Result<Seen, NoCard> {
        let driver::Seen { name, bytes, .. } = driver::look(self.0).map_err(absent)?;
        Ok(Seen { name, bytes: bytes as u64 })
    }

    fn find(&self) -> Result<Box<dyn Found>, NoCard> {
        Ok(Box::new(Card::open(self.0).map_err(absent)?))
    }

    fn label(&self) -> String {
        format!("cuda:{}", self.0)
    }
}

impl Found for Card {
    fn name(&self) -> String {
        Card::name(self).to_owned()
    }

    fn free_bytes(&self) -> Result<usize, NoCard> {
        Ok(self.memory().map_err(refused)?.0)
    }

    fn take(self: Box<Self>, needs: &Needs) -> Result<Box<dyn bantam_model::card::Card>, NoCard> {
        Ok(Box::new(taken(*self, needs)?))
    }

    fn take_backwards(self: Box<Self>, needs: &Needs) -> Result<Box<dyn Backwards>, NoCard> {
        Ok(Box::new(taken(self.with_backward().map_err(refused)?, needs)?))
    }
}

fn taken(card: Card, needs: &Needs) -> Result<CudaBackend, NoCard> {
    let &Needs { weights, cache, work, rows, tables, results, panels, precision } = needs;
    let sizes = Sizes { weights, cache, work, rows, tables, results };
    CudaBackend::new(card, precision, sizes, panels).map_err(refused)
}

fn absent(absent: Absent) -> NoCard {
    match absent {
        Absent::Failed(_) => NoCard::Failed(absent.to_string()),
        _ => NoCard::Absent(absent.to_string()),
    }
}

fn refused(fault: Fault) -> NoCard {
    match fault {
        Fault::OutOfMemory { .. } | Fault::Lost { code: "CUDA_ERROR_OUT_OF_MEMORY", .. } => {
            NoCard::Memory(fault.to_string())
        }
        Fault::Lost { .. } => NoCard::Failed(fault.to_string()),
    }
}

impl bantam_model::card::Card for CudaBackend {
    fn upload(&mut self, slot: Slot, bytes: &[u8]) {
        assert!(bytes.len() <= slot.bytes, "{} bytes into a slot of {}", bytes.len(), slot.bytes);
        CudaBackend::upload(self, slot.region, slot.offset, bytes);
    }

    fn fetch(&mut self, slot: Slot, each: &mut dyn FnMut(usize, &[f32])) {
        CudaBackend::fetch(self, slot, each);
    }

    fn fault(&self) -> Option<CardFault> {
        CudaBackend::fault(self).map(told)
    }

    fn bytes(&self) -> usize {
        self.memory_bytes()
    }

    fn take_ring(&mut self, slot_bytes: usize) -> bool {
        CudaBackend::take_ring(self, slot_bytes)
    }

    fn drop_ring(&mut self) {
        CudaBackend::drop_ring(self);
    }

    fn gather_again(&mut self, rows: &[u32], width: usize, x: Slot, out: Slot) {
        CudaBackend::gather_again(self, rows, width, x, out);
    }

    fn pass(&mut self, rows: usize, x: Slot, products: &[Passing], fill: Fill) {
        CudaBackend::pass(self, rows, x, products, fill);
    }

    fn begin(&mut self) {
        self.begin_stretch();
    }

    fn keep(&mut self, stretch: Stretch, most: usize) -> Result<(), CardFault> {
        self.keep_stretch(&stretch, most).map_err(told)
    }

    fn kept_bytes(&self) -> usize {
        self.kept.bytes()
    }

    fn again(&mut self, stretch: Stretch) -> bool {
        self.queue_stretch(&stretch)
    }

    fn meet(&mut self, other: &mut dyn bantam_model::card::Card, slot: Slot) -> Result<(), NoCard> {
        let other: &mut dyn Any = other;
        match other.downcast_mut::<CudaBackend>() {
            Some(other) => CudaBackend::meet(self, other, slot).map_err(refused),
            None => Err(NoCard::Failed(
                "expected another card of CUDA to copy to, found something else".to_owned(),
            )),
        }
    }

    fn hand(&mut self, slot: Slot, to: &mut dyn bantam_model::card::Card) {
        let to: &mut dyn Any = to;
        let to = to.downcast_mut::<CudaBackend>().expect("cards have met before they copy");
        CudaBackend::hand(self, slot, to);
    }
}

fn told(fault: Fault) -> CardFault {
    match fault {
        Fault::Lost { what, code } => CardFault { what, code },
        // Nothing is allocated once a model runs.
        Fault::OutOfMemory { what, .. } => CardFault { what, code: "CUDA_ERROR_OUT_OF_MEMORY" },
    }
}

impl Backwards for CudaBackend {
    fn back(&mut self, rows: usize, dy: Slot, passing: &Passing, unpacked: Slot, fill: Fill) {
        self.pass_back(rows, dy, passing, unpacked, fill);
    }

    fn send_ahead(&mut self, matrix: &Matrix, fill: Fill) {
        CudaBackend::send_ahead(self, matrix, fill);
    }
}
