//! Experts on the card one by one: places of one size for experts of any layer, as many as have room. Each part of an
//! expert (a matrix, its biases) has a stack of its own there, in which a place is a number: kernels take it as they
//! take an expert's number in the host's stacks.

use bantam_core::{Matrix, Product, Slot};

use super::on_card::Pieces;
use crate::plan::{LayerWeights, Linear};

/// A part of every expert.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// The stack on the card.
    there: Slot,
    /// Bytes of one expert.
    bytes: usize,
    is_matrix: bool,
}

/// Where experts stand on a card.
#[derive(Debug, Clone)]
pub(super) struct Stacks {
    parts: Vec<Part>,
    /// The host's stacks of every layer, part by part.
    layers: Vec<Vec<Slot>>,
    /// Where every part of the host begins, ascending, and which it is.
    begins: Vec<(usize, usize)>,
    /// Where the routers of these layers begin.
    routers: Vec<usize>,
    /// Experts of a layer.
    pub(super) experts: usize,
    /// Experts of all layers that the card has room for.
    pub(super) places: usize,
}

/// The parts of a layer's experts, of which there are so many, and which are matrices; nothing where an adapter adds to
/// them.
fn parts(layer: &LayerWeights) -> Option<(usize, Vec<(Slot, bool)>)> {
    let experts = layer.router?.matrix.shape.rows;
    let linears = [layer.gate, Some(layer.up), Some(layer.down)];
    let mut found = Vec::new();
    for Linear { matrix, bias, low } in linears.into_iter().flatten() {
        let Matrix { slot, order, factors, .. } = matrix;
        found.push((slot, true));
        found.extend([bias, order, factors].into_iter().flatten().map(|slot| (slot, false)));
        if low.is_some() {
            return None;
        }
    }
    let is_even = found.iter().all(|(slot, _)| slot.bytes > 0 && slot.bytes.is_multiple_of(experts));
    is_even.then_some((experts, found))
}

impl Stacks {
    /// Takes room for as many experts of these layers as there is; nothing where they are not alike.
    pub(super) fn take(weights: &mut Pieces, layers: &[&LayerWeights], left: &mut usize) -> Option<Stacks> {
        let all: Vec<(usize, Vec<(Slot, bool)>)> =
            layers.iter().map(|layer| parts(layer)).collect::<Option<_>>()?;
        let (experts, first) = all.first()?;
        let sizes = |parts: &[(Slot, bool)]| parts.iter().map(|(slot, _)| slot.bytes).collect::<Vec<_>>();
        let is_alike = |(count, parts): &(usize, Vec<_>)| count == experts && sizes(parts) == sizes(first);
        let expert_bytes: usize = sizes(first).iter().map(|bytes| bytes / experts).sum();
        // Every stack may be rounded up.
        let room = left.checked_sub(first.len() * bantam_core::arena::ALIGNMENT)?;
        let places = (room / expert_bytes).min(layers.len() * experts);
        if places == 0 || !all.iter().all(is_alike) {
            return None;
        }
        let stack = |(slot, is_matrix): &(Slot, bool)| {
            let bytes = slot.bytes / experts;
            Some(Part { there: weights.room(places * bytes, left)?, bytes, is_matrix: *is_matrix })
        };
        let parts = first.iter().map(stack).collect::<Option<Vec<Part>>>()?;
        let host: Vec<Vec<Slot>> =
            all.iter().map(|(_, parts)| parts.iter().map(|(slot, _)| *slot).collect()).collect();
        let begins = host.iter().flat_map(|slots| slots.iter().enumerate().map(|(n, slot)| (slot.offset, n)));
        let mut begins: Vec<(usize, usize)> = begins.collect();
        begins.sort_unstable();
        let routers = layers.iter().filter_map(|layer| Some(layer.router?.matrix.slot.offset)).collect();
        Some(Stacks { parts, layers: host, begins, routers, experts: *experts, places })
    }

    /// Layers with experts.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Whether these are a matrix's experts.
    pub(super) fn has(&self, matrix: &Matrix) -> bool {
        self.stack(matrix.slot).is_some()
    }

    /// Which of these layers a router is of.
    pub(super) fn routed_by(&self, matrix: &Matrix) -> Option<usize> {
        self.routers.iter().position(|offset| *offset == matrix.slot.offset)
    }

    /// Bytes of matrices of all experts that have room.
    pub(super) fn matrix_bytes(&self) -> usize {
        self.places * self.parts.iter().filter(|part| part.is_matrix).map(|part| part.bytes).sum::<usize>()
    }

    fn stack(&self, slot: Slot) -> Option<Slot> {
        let at = self.begins.binary_search_by_key(&slot.offset, |(offset, _)| *offset).ok()?;
        Some(self.parts[self.begins[at].1].there)
    }

    /// A product with a stack of the host as one with the card's.
    pub(super) fn product(&self, product: &Product) -> Option<Product> {
        let optional = |slot: Option<Slot>| match slot {
            Some(slot) => self.stack(slot).map(Some),
            None => Some(None),
        };
        let (order, factors) = (optional(product.matrix.order)?, optional(product.matrix.factors)?);
        let matrix = Matrix { slot: self.stack(product.matrix.slot)?, order, factors, ..product.matrix };
        Some(Product { matrix, bias: optional(product.bias)?, ..*product })
    }

    /// Where an expert's parts are here, and where they stand at a place there.
    pub(super) fn copies(
        &self,
        layer: usize,
        expert: usize,
        place: usize,
    ) -> impl Iterator<Item = (Slot, Slot)> + '_ {
        self.layers[layer].iter().zip(&self.parts).map(move |(from, part)| {
            let piece = |slot: Slot, n: usize| Slot {
                offset: slot.offset + n * part.bytes,
                bytes: part.bytes,
                ..slot
            };
            (piece(*from, expert), piece(part.there, place))
        })
    }
}
