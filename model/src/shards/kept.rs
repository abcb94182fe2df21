//! Steps of few rows on a card that computes everything: it keeps them when the model is put there, and does them again
//! by one word. Where the processor takes part in a step, it is asked operation by operation.

use bantam_core::{Batch, Feed, Slot};

use super::Shards;
use super::fresh::At;
use super::shard::Shard;
use crate::card::{CardFault, KEPT_ROWS, Stretch};
use crate::decoder::Decoder;
use crate::plan::{LayerWeights, Linear, Options, Plan};

/// Bytes of a card that are set aside for a call of a kernel in a step that is kept. Drivers do not say what they take,
/// which is their own copy of the arguments and of what starts a kernel; so much is a guess on the high side. What they
/// take is measured: where it is more, fewer steps are kept, and where it is less, less is taken.
const CALL_BYTES: usize = 64 << 10;

/// Steps of up to so many rows are kept.
fn most_rows(options: &Options) -> usize {
    KEPT_ROWS.min(options.sequences).min(options.chunk)
}

/// Bytes of a card to set aside for the steps of a plan's replies.
pub(crate) fn bytes(plan: &Plan) -> usize {
    let rows = most_rows(&plan.options);
    let calls = rows * layers_calls(plan) + rows.min(plan.options.logits_rows) * logits_calls(plan);
    calls * CALL_BYTES
}

impl Plan {
    /// Calls of kernels for a token in a layer where a card computes it, at most, on average.
    pub fn calls_per_layer(&self) -> f64 {
        layers_calls(self) as f64 / self.weights.layers.len().max(1) as f64
    }
}

/// Calls of kernels for tokens through all layers, and copies of what the host tells of them, at most.
fn layers_calls(plan: &Plan) -> usize {
    let weights = &plan.weights;
    // Two lists of words; rows of the embedding, which an adapter may have in three more calls.
    let ends = 2 + 1 + weights.embedding_low.iter().count() * 4;
    ends + weights.layers.iter().map(layer_calls).sum::<usize>()
}

fn layer_calls(layer: &LayerWeights) -> usize {
    let LayerWeights { query, key, value, output, gate, up, down, router, .. } = layer;
    let linears = [query, key, value, output, up, down].into_iter().chain(gate).chain(router);
    let norms = 2 + 2 * (layer.post_norms.iter().count() + layer.head_norms.iter().count());
    // Angles, both turns, storing and attending; the bend; either block added; who goes where.
    let between = 1 + 2 + 2 + 1 + 2 + router.iter().count();
    norms + between + linears.map(linear_calls).sum::<usize>()
}

/// An input is prepared, or moved and prepared, and multiplied; an adapter has two products of its own and scales.
fn linear_calls(linear: &Linear) -> usize {
    2 + linear.low.iter().count() * (2 * 2 + 1)
}

/// The same for logits: the rows are told, gathered and normed, and logits are bent.
fn logits_calls(plan: &Plan) -> usize {
    4 + linear_calls(&plan.weights.head)
}

/// What a card keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KeptSteps {
    /// Steps of up to so many rows.
    pub(crate) rows: usize,
    /// Why not more.
    pub(crate) without: Option<CardFault>,
}

impl Shards {
    /// Has a card that computes everything keep the steps that replies consist of, those of the fewest rows first.
    /// `tables` are page tables, whatever stands there. Steps that it does not keep are what they are without.
    pub(crate) fn keep_steps(&mut self, decoder: &Decoder, options: &Options, tables: &[u32]) -> KeptSteps {
        let keeps = |shard: &Shard| shard.on_card.is_whole() && shard.on_card.layers.len() == 1;
        if !self.shard.as_ref().is_some_and(keeps) {
            return KeptSteps { rows: 0, without: None };
        }
        let most = most_rows(options);
        let feed = |row| Feed { first_row: row, rows: 1, first_position: 0, sequence: 0, length: 1 };
        let feeds: [Feed; KEPT_ROWS] = std::array::from_fn(feed);
        let pages_per_sequence = tables.len() / options.sequences;
        let all = [0; KEPT_ROWS];
        for rows in 1..=most {
            let batch = Batch { feeds: &feeds[..rows], tables, pages_per_sequence };
            let tokens = &[0; KEPT_ROWS][..rows];
            let mut kept = self.keep(Stretch::Layers { tokens, batch: &batch }, |shards| {
                decoder.forward(shards, &batch, tokens, &|| false);
            });
            if kept.is_ok() && rows <= options.logits_rows {
                kept = self.keep(Stretch::Logits { rows: &all[..rows] }, |shards| {
                    decoder.logits(shards, &all[..rows]);
                });
            }
            if let Err(fault) = kept {
                return KeptSteps { rows: rows - 1, without: Some(fault) };
            }
        }
        KeptSteps { rows: most, without: None }
    }

    fn keep(&mut self, stretch: Stretch, step: impl FnOnce(&mut Self)) -> Result<(), CardFault> {
        let Some(shard) = self.shard.as_mut() else { return Ok(()) };
        let left = shard.on_card.kept.saturating_sub(shard.card.kept_bytes());
        if left == 0 {
            return Err(CardFault { what: "a graph", code: "no bytes of the card are left for it" });
        }
        shard.card.begin();
        step(self);
        self.shard.as_mut().map_or(Ok(()), |shard| shard.card.keep(stretch, left))
    }

    /// Bytes of a card that went with what it keeps.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.shard.as_ref().map_or(0, |shard| shard.card.kept_bytes())
    }

    /// [`Decoder::forward`], all at once where a card has kept it: then `is_stopped` is asked only before.
    pub(crate) fn forward(
        &mut self,
        decoder: &Decoder,
        batch: &Batch,
        tokens: &[u32],
        is_stopped: &dyn Fn() -> bool,
    ) -> bool {
        if let Some(shard) = &mut self.shard
            && decoder.is_base()
            && !is_stopped()
            && shard.card.again(Stretch::Layers { tokens, batch })
        {
            shard.fresh.set(decoder.stream(), tokens.len() * decoder.spec.hidden, At::Card);
            return true;
        }
        decoder.forward(self, batch, tokens, is_stopped)
    }

    /// [`Decoder::logits`], the same way.
    pub(crate) fn logits(&mut self, decoder: &Decoder, rows: &[usize]) -> Slot {
        if let Some(shard) = &mut self.shard
            && decoder.is_base()
            && shard.card.again(Stretch::Logits { rows })
        {
            let slot = decoder.logits_slot(rows.len());
            shard.fresh.set(slot, slot.bytes / 4, At::Card);
            return slot;
        }
        decoder.logits(self, rows)
    }
}
