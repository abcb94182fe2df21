//! Layers that are copied to the card again and again while tokens are made: what it costs, found by going through a
//! few tokens with one engine that copies and one that computes. The places are a [`Shelf`]'s.
//!
//! Decoding goes through all layers in turn, so the one that was used longest ago is the next to be needed: keeping
//! the latest finds nothing. Keeping some for good finds these.

use super::shelf::{Action, Shelf};

/// Which layers stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The latest; each is copied when it is needed.
    Latest,
    /// The latest; as many are copied ahead as there are places.
    LatestAhead,
    /// As many as fit for good, spread evenly; the others pass through two places, ahead of their turn.
    Some,
}

/// What a layer costs, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerCost {
    /// Copying.
    pub upload: f64,
    /// Computing.
    pub compute: f64,
}

/// What a sweep costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Swept {
    /// Seconds per token, without what is not a layer.
    pub seconds: f64,
    /// The part of all layers that were there.
    pub hits: f64,
}

/// Tokens until nothing changes, and tokens that are counted.
const TOKENS: [usize; 2] = [4, 4];
/// Places through which layers pass.
const RING: usize = 2;

struct Sweep<'a> {
    layers: &'a [LayerCost],
    shelf: Shelf,
    /// When a place may be written, and when what stands there can be used.
    free: Vec<f64>,
    ready: Vec<f64>,
    copying: f64,
    computing: f64,
    copies: usize,
}

/// Goes through `layers` with room for `places` of them; `None` where they do not suffice.
pub fn sweep(layers: &[LayerCost], places: usize, keep: Keep) -> Option<Swept> {
    let places = places.min(layers.len());
    let ahead = match keep {
        Keep::Latest => 0,
        Keep::LatestAhead => places.saturating_sub(1),
        Keep::Some => RING - 1,
    };
    if places <= ahead && places < layers.len() || places == 0 {
        return None;
    }
    let mut sweep = Sweep {
        layers,
        shelf: Shelf::new(layers.len(), places),
        free: vec![0.0; places],
        ready: vec![0.0; places],
        copying: 0.0,
        computing: 0.0,
        copies: 0,
    };
    if keep == Keep::Some {
        sweep.pin(places.saturating_sub(RING).max(places * usize::from(places == layers.len())));
    }
    let [warm, counted] = TOKENS.map(|tokens| tokens * layers.len());
    (0..warm).for_each(|at| sweep.compute(at, ahead));
    let (start, copies) = (sweep.computing, sweep.copies);
    (warm..warm + counted).for_each(|at| sweep.compute(at, ahead));
    let seconds = (sweep.computing - start) / TOKENS[1] as f64;
    Some(Swept { seconds, hits: 1.0 - (sweep.copies - copies) as f64 / counted as f64 })
}

impl Sweep<'_> {
    /// Copies `count` layers, evenly spread, for good.
    fn pin(&mut self, count: usize) {
        for nth in 0..count {
            let layer = nth * self.layers.len() / count;
            self.fetch(layer, 0.0);
            self.shelf.pin(layer as u32, true);
        }
    }

    /// The `at`-th layer that is computed, from the first token on.
    fn compute(&mut self, at: usize, ahead: usize) {
        let layer = at % self.layers.len();
        if !self.shelf.holds(layer as u32) {
            // Only now it is known that it is needed, unless copies run ahead.
            let asked = if ahead == 0 { self.computing } else { 0.0 };
            self.fetch(layer, asked);
        }
        let place = self.shelf.acquire(layer as u32).expect("a layer that was copied is there").0 as usize;
        self.shelf.set_worth(layer as u32, at as f32);
        for next in at + 1..=at + ahead {
            let layer = next % self.layers.len();
            let passed = |thing| self.shelf.worth(thing) <= at as f32;
            let is_room = self.shelf.has_room() || self.shelf.victim().is_some_and(passed);
            if is_room && !self.shelf.holds(layer as u32) {
                self.fetch(layer, 0.0);
                self.shelf.set_worth(layer as u32, next as f32);
            }
        }
        self.computing = self.computing.max(self.ready[place]) + self.layers[layer].compute;
        self.free[place] = self.computing;
        self.shelf.release(layer as u32);
    }

    fn fetch(&mut self, layer: usize, asked: f64) {
        assert!(self.shelf.fetch(layer as u32), "a place that nobody uses");
        let action = self.shelf.actions().next_back();
        let Some(Action::Upload { ticket, .. }) = action else { panic!("a fetch is a copy: {action:?}") };
        let place = ticket.place.0 as usize;
        self.copying = self.copying.max(self.free[place]).max(asked) + self.layers[layer].upload;
        self.ready[place] = self.copying;
        self.copies += 1;
        self.shelf.arrived(ticket);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    /// Hits in percent, and how much slower than computing alone.
    fn check(layers: usize, places: usize, keep: Keep, hits: usize) -> f64 {
        let costs = vec![LayerCost { upload: 10.0, compute: 1.0 }; layers];
        let swept = sweep(&costs, places, keep).unwrap();
        assert_eq!((100.0 * swept.hits).floor() as usize, hits, "{places} of {layers}, {keep:?}");
        swept.seconds / layers as f64
    }

    #[test]
    fn keeping_the_latest_finds_nothing_until_all_fit() {
        for places in [1, 8, 24, 31] {
            assert_eq!(check(32, places, Keep::Latest, 0), 11.0);
        }
        // Copies are hidden behind one another, not behind so little work.
        assert_eq!(check(32, 24, Keep::LatestAhead, 0), 10.0);
        assert_eq!(check(32, 32, Keep::Latest, 100), 1.0);
    }

    #[test]
    fn keeping_some_for_good_finds_these() {
        let seconds = check(32, 24, Keep::Some, 68);
        assert!((3.0..3.5).contains(&seconds), "{seconds}");
        assert_eq!(check(32, 32, Keep::Some, 100), 1.0);
        assert_eq!(check(44, 13, Keep::Some, 25), 33.0 / 44.0 * 10.0);
        assert_eq!(sweep(&[LayerCost { upload: 1.0, compute: 1.0 }; 3], 1, Keep::Some), None);
    }
}
