//! Steps of few rows on a card that computes everything: it keeps them when the model is put there, and does them again
//! by one word. Where the processor takes part in a step, it is asked operation by operation.

use bantam_core::{Batch, Feed, Slot};

use super::Shards;
use super::fresh::At;
use super::shard::Shard;
use crate::card::{CardFault, KEPT_ROWS, Stretch};
use crate::decoder::Decoder;
use crate::plan::Options;

impl Shards {
    /// Has a card keep the steps that replies consist of. `tables` are page tables, whatever stands there. Where it
    /// cannot, steps are what they are without.
    pub(crate) fn keep_steps(
        &mut self,
        decoder: &Decoder,
        options: &Options,
        tables: &[u32],
    ) -> Result<(), CardFault> {
        let most = KEPT_ROWS.min(options.sequences).min(options.chunk);
        let feed = |row| Feed { first_row: row, rows: 1, first_position: 0, sequence: 0, length: 1 };
        let feeds: [Feed; KEPT_ROWS] = std::array::from_fn(feed);
        let pages_per_sequence = tables.len() / options.sequences;
        for rows in 1..=most {
            let batch = Batch { feeds: &feeds[..rows], tables, pages_per_sequence };
            let tokens = &[0; KEPT_ROWS][..rows];
            self.keep(Stretch::Layers { tokens, batch: &batch }, |shards| {
                decoder.forward(shards, &batch, tokens, &|| false);
            })?;
        }
        for rows in 1..=most.min(options.logits_rows) {
            let rows = &[0; KEPT_ROWS][..rows];
            self.keep(Stretch::Logits { rows }, |shards| {
                decoder.logits(shards, rows);
            })?;
        }
        Ok(())
    }

    fn keep(&mut self, stretch: Stretch, step: impl FnOnce(&mut Self)) -> Result<(), CardFault> {
        let keeps = |shard: &&mut Shard| shard.on_card.is_whole() && shard.on_card.layers.len() == 1;
        let Some(shard) = self.shard.as_mut().filter(keeps) else { return Ok(()) };
        shard.card.begin();
        step(self);
        self.shard.as_mut().map_or(Ok(()), |shard| shard.card.keep(stretch))
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
            && shard.card.again(Stretch::Logits { rows })
        {
            let slot = decoder.logits_slot(rows.len());
            shard.fresh.set(slot, slot.bytes / 4, At::Card);
            return slot;
        }
        decoder.logits(self, rows)
    }
}
