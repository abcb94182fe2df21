//! Attention of a layer on the card: all of it, or so many key heads with the query heads that ask them and their part
//! of the cache. Which these are is arithmetic over slots; nothing is repacked, so a part is whole tiles.

use bantam_core::arena::ALIGNMENT;
use bantam_core::layouts::TILE_ROWS;
use bantam_core::{KvCache, Slot};

use super::on_card::slots_of;
use crate::plan::{LayerWeights, Linear};

/// A layer's attention, as it can be divided.
#[derive(Clone, Copy)]
pub(super) struct Divided<'a> {
    pub(super) layer: &'a LayerWeights,
    pub(super) cache: &'a KvCache,
    /// Key heads that go together, so that their rows are whole tiles; all where it cannot be divided.
    step: usize,
}

impl<'a> Divided<'a> {
    /// `is_divisible` where no adapter may come.
    pub(super) fn new(layer: &'a LayerWeights, cache: &'a KvCache, is_divisible: bool) -> Self {
        let all = cache.heads;
        let inputs = [&layer.query, &layer.key, &layer.value];
        // What an adapter adds is added to whole rows.
        let is_plain = is_divisible && inputs.iter().all(|linear| linear.low.is_none());
        let is_whole = |heads: usize, linear: &Linear| {
            let rows = linear.matrix.shape.rows;
            rows.is_multiple_of(all) && (rows / all * heads).is_multiple_of(TILE_ROWS)
        };
        let step = (1..all).find(|&heads| inputs.iter().all(|linear| is_whole(heads, linear)));
        Divided { layer, cache, step: step.filter(|_| is_plain).unwrap_or(all) }
    }

    fn all(&self) -> usize {
        self.cache.heads
    }

    /// The part of the cache that so many heads have.
    pub(super) fn cache_part(&self, heads: usize) -> Slot {
        Slot { bytes: self.cache.slot.bytes / self.all() * heads, ..self.cache.slot }
    }

    /// Slots that so many heads need; the output's rows are taken apart from them where these are not all.
    pub(super) fn parts(&self, heads: usize) -> Vec<Slot> {
        let LayerWeights { query, key, value, output, .. } = self.layer;
        if heads == self.all() {
            return [query, key, value, output].into_iter().flat_map(|linear| slots_of(*linear)).collect();
        }
        let part = |linear: &Linear| {
            let matrix = linear.matrix;
            let tiles = matrix.shape.rows / self.all() * heads / TILE_ROWS;
            let slot = Slot { bytes: tiles * matrix.layout.tile_bytes(matrix.width()), ..matrix.slot };
            [Some(slot), linear.bias, matrix.order, matrix.factors]
        };
        [query, key, value].into_iter().flat_map(part).flatten().collect()
    }

    /// Bytes of a card that so many heads take.
    fn bytes(&self, heads: usize) -> usize {
        if heads == 0 {
            return 0;
        }
        let slots = self.parts(heads).into_iter().chain([self.cache_part(heads)]);
        let bytes: usize = slots.map(|slot| slot.bytes.next_multiple_of(ALIGNMENT)).sum();
        let output =
            if heads < self.all() { slots_of(self.layer.output).map(|slot| slot.bytes).sum() } else { 0 };
        bytes + (output as f64 * self.part(heads)).ceil() as usize
    }

    /// So many heads as a part of all.
    pub(super) fn part(&self, heads: usize) -> f64 {
        heads as f64 / self.all() as f64
    }
}

/// How many key heads of every layer have room: all, or as many of each as far as it goes, so that both sides compute
/// at once in every layer, and a step more of the first ones.
pub(super) fn shared(layers: &[Divided], left: usize) -> Vec<usize> {
    let total: usize = layers.iter().map(|layer| layer.bytes(layer.all())).sum();
    let part = (left as f64 / total.max(1) as f64).min(1.0);
    let whole = total <= left;
    let of = |layer: &Divided| match whole {
        true => layer.all(),
        false => (part * (layer.all() / layer.step) as f64) as usize * layer.step,
    };
    let mut heads: Vec<usize> = layers.iter().map(of).collect();
    let mut used: usize = layers.iter().zip(&heads).map(|(layer, &heads)| layer.bytes(heads)).sum();
    // Alignment may have made it more.
    for (layer, heads) in layers.iter().zip(&mut heads).rev() {
        while used > left && *heads > 0 {
            let before = layer.bytes(*heads);
            *heads -= layer.step.min(*heads);
            used -= before - layer.bytes(*heads);
        }
    }
    for (layer, heads) in layers.iter().zip(&mut heads) {
        let next = (*heads + layer.step).min(layer.all());
        let then = used - layer.bytes(*heads) + layer.bytes(next);
        if then <= left {
            used = then;
            *heads = next;
        }
    }
    heads
}
