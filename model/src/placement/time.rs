//! How long a step takes with a model divided between card and cores: both read their own memory at the same time,
//! and meet wherever both have computed.
//!
//! Bytes decide while few rows are computed, multiplications when many are.

use super::machine::{Card, Machine};
use super::parts::{Block, LayerParts, Part, Parts};
use super::shares::{LayerShare, Shares};

/// How probable it is that so many of the experts that a token is sent to are on the card, from none to all.
#[derive(Debug, Clone, PartialEq)]
pub struct Hits(pub Vec<f64>);

impl Hits {
    /// Where every expert is as probable as any other: `cached` of `count` are on the card.
    pub fn uniform(count: usize, cached: usize, chosen: usize) -> Hits {
        let mut odds = vec![1.0];
        for drawn in 0..chosen {
            let mut next = vec![0.0; odds.len() + 1];
            for (hits, odd) in odds.iter().enumerate() {
                let hit = cached.saturating_sub(hits) as f64 / (count - drawn) as f64;
                next[hits + 1] += odd * hit.min(1.0);
                next[hits] += odd * (1.0 - hit.min(1.0));
            }
            odds = next;
        }
        Hits(odds)
    }

    /// The part of all that is found on the card.
    pub fn rate(&self) -> f64 {
        let most = (self.0.len() - 1).max(1) as f64;
        self.0.iter().enumerate().map(|(hits, odd)| hits as f64 * odd).sum::<f64>() / most
    }
}

/// What one side does in a phase.
#[derive(Clone, Copy, Default)]
struct Side {
    bytes: f64,
    ops: f64,
    /// Rows that a matrix meets.
    rows: f64,
}

/// A step on its way through the layers.
struct Walk<'a> {
    machine: &'a Machine,
    card: Option<Card>,
    seconds: f64,
    /// Who has the stream.
    at_card: bool,
    at_cores: bool,
}

/// Seconds of a step of `rows` tokens of one sequence. `hits` is what was measured; without it all experts are alike.
pub fn step_seconds(
    parts: &Parts,
    shares: &Shares,
    machine: &Machine,
    rows: usize,
    hits: Option<&Hits>,
) -> f64 {
    // Embeddings are looked up by the cores.
    let mut walk = Walk { machine, card: machine.card, seconds: 0.0, at_card: false, at_cores: true };
    for (layer, share) in parts.layers.iter().zip(&shares.layers) {
        walk.layer(layer, share, rows as f64, hits);
    }
    // Only the last row is asked for logits.
    let [card, cores] = divided(&parts.head, shares.head.part(), 1.0);
    walk.phase(card, cores, 0.0);
    // Each card but the last hands the stream to the next.
    let hops = machine
        .card
        .filter(|_| !shares.is_none())
        .map_or(0.0, |card| (card.count - 1) as f64 * card.exchange);
    walk.seconds + hops
}

/// Rows through the whole model on the card alone, whatever stands where: what streaming hides its copies behind.
pub(super) fn card_seconds(parts: &Parts, card: &Card, rows: usize) -> f64 {
    let rows = rows as f64;
    let layer = |layer: &LayerParts| {
        let attention = of_part(&layer.attention_and_cache(), 1.0, rows);
        let block = of_block(&layer.block, 1.0, rows);
        card.seconds(attention) + card.seconds(block) + card.launch
    };
    parts.layers.iter().map(layer).sum::<f64>() + card.seconds(of_part(&parts.head, 1.0, 1.0))
}

/// The part of a block's experts that rows touch.
pub(super) fn touched(count: usize, chosen: usize, rows: f64) -> f64 {
    1.0 - (1.0 - chosen as f64 / count as f64).powf(rows)
}

fn of_part(part: &Part, share: f64, rows: f64) -> Side {
    Side { bytes: share * part.read, ops: share * part.ops * rows, rows }
}

fn of_block(block: &Block, share: f64, rows: f64) -> Side {
    match *block {
        Block::Dense(part) => of_part(&part, share, rows),
        Block::Experts { count, chosen, each } => {
            let touched = touched(count, chosen, rows) * count as f64;
            let places = rows * chosen as f64;
            let bytes = share * touched * each.read;
            Side { bytes, ops: share * places * each.ops, rows: places / touched }
        }
    }
}

fn divided(part: &Part, share: f64, rows: f64) -> [Side; 2] {
    [of_part(part, share, rows), of_part(part, 1.0 - share, rows)]
}

impl Side {
    fn and(self, other: Side) -> Side {
        let rows = if self.ops > 0.0 { self.rows } else { other.rows };
        Side { bytes: self.bytes + other.bytes, ops: self.ops + other.ops, rows }
    }

    fn is_idle(self) -> bool {
        self.bytes == 0.0
    }
}

impl Card {
    /// Few rows are multiplied one by one at the memory's speed, many by tiles.
    fn seconds(&self, side: Side) -> f64 {
        let memory = side.bytes / self.read;
        let tiles = side.ops / self.compute_at(side.rows.max(1.0));
        memory.max(tiles.min(memory * side.rows))
    }
}

impl Machine {
    fn seconds(&self, side: Side) -> f64 {
        (side.bytes / self.read).max(side.ops / self.compute)
    }
}

impl Walk<'_> {
    fn layer(&mut self, layer: &LayerParts, share: &LayerShare, rows: f64, hits: Option<&Hits>) {
        let [card, cores] = divided(&layer.attention_and_cache(), share.attention.part(), rows);
        match layer.block {
            Block::Dense(part) if layer.parallel => {
                let [card2, cores2] = divided(&part, share.block.part(), rows);
                self.phase(card.and(card2), cores.and(cores2), 1.0);
            }
            Block::Dense(part) => {
                self.phase(card, cores, 0.5);
                let [card, cores] = divided(&part, share.block.part(), rows);
                self.phase(card, cores, 0.5);
            }
            Block::Experts { count, chosen, each } if rows == 1.0 => {
                self.phase(card, cores, 0.5);
                let (all, none) = (share.block.units == count, share.block.units == 0);
                match hits.filter(|_| !all && !none) {
                    Some(hits) => self.experts(&each, hits),
                    None => self.experts(&each, &Hits::uniform(count, share.block.units, chosen)),
                }
            }
            Block::Experts { .. } => {
                self.phase(card, cores, 0.5);
                let part = share.block.part();
                let sides = [part, 1.0 - part].map(|part| of_block(&layer.block, part, rows));
                self.phase(sides[0], sides[1], 0.5);
            }
        }
    }

    /// Both sides at once, `part` of a layer's launches.
    fn phase(&mut self, card: Side, cores: Side, part: f64) {
        let (on_card, on_cores) = (!card.is_idle(), !cores.is_idle());
        let hop = self.card.map_or(0.0, |card| card.exchange);
        if on_card && !self.at_card || on_cores && !self.at_cores {
            self.seconds += hop;
        }
        self.seconds += self.longest(card, cores, part);
        // Where both have a part of the sum, each gets the other's.
        if on_card && on_cores {
            self.seconds += hop;
        }
        (self.at_card, self.at_cores) = (on_card, on_cores);
    }

    fn longest(&self, card: Side, cores: Side, part: f64) -> f64 {
        let on_card = self.card.filter(|_| !card.is_idle());
        let on_card = on_card.map_or(0.0, |found| found.seconds(card) + part * found.launch);
        let on_cores = self.machine.seconds(cores) + part * self.machine.launch;
        on_card.max(if cores.is_idle() { 0.0 } else { on_cores })
    }

    /// A token's experts, each computed where it is. Who has the stream keeps it: the other is asked and answers,
    /// where any of the chosen are there.
    fn experts(&mut self, each: &Part, hits: &Hits) {
        let hop = self.card.map_or(0.0, |card| card.exchange);
        let chosen = hits.0.len() - 1;
        for (found, odd) in hits.0.iter().enumerate() {
            let side = |n: usize| Side { bytes: n as f64 * each.read, ops: n as f64 * each.ops, rows: 1.0 };
            let away = if self.at_card { found < chosen } else { found > 0 };
            let hops = match (self.at_card && self.at_cores, away) {
                (true, _) => 1.0,
                (false, true) => 2.0,
                (false, false) => 0.0,
            };
            self.seconds += odd * (hops * hop + self.longest(side(found), side(chosen - found), 1.0));
        }
    }
}
