//! Which experts stand on the card while a model runs: those that were chosen most, with a memory that fades slowly.
//! Events in, actions out; no clock, no copying, and no allocation after it is made.
//!
//! A token never waits for a copy: an expert that is not there is computed by the cores. Copies are bounded per token,
//! because they read the memory that the cores live from, and an expert has to be clearly hotter than the one that
//! leaves for it.

use super::shelf::{Action, Place, Shelf, Ticket};

/// How experts are judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Habits {
    /// What is left of an expert's heat after a token.
    pub decay: f32,
    /// How much hotter a newcomer has to be.
    pub margin: f32,
    /// Copies per token, in the long run.
    pub uploads: f32,
    /// Copies under way at once.
    pub in_flight: usize,
}

impl Default for Habits {
    fn default() -> Self {
        Habits { decay: 0.99, margin: 1.3, uploads: 1.4, in_flight: 2 }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A layer sends its rows to these experts. Those that are there stay until it is computed.
    Routed {
        /// Counted among layers with experts.
        layer: usize,
        /// Each once.
        experts: &'a [u16],
    },
    /// The layer has used them.
    Computed {
        /// See `Routed`.
        layer: usize,
    },
    /// All layers are through.
    TokenEnded,
    /// A copy is done.
    Uploaded(Ticket),
    /// So many experts may stand on the card.
    Budget(usize),
    /// All of them are to leave.
    Unload,
    /// The card is gone, until there is a budget again.
    Lost,
}

/// The policy.
#[derive(Debug)]
pub struct HotExperts {
    shelf: Shelf,
    layers: usize,
    experts: usize,
    habits: Habits,
    /// What a choice adds to an expert's heat: it grows where all heats would have to fade.
    step: f32,
    /// Copies that may begin.
    credit: f32,
}

/// Beyond this all heats are made small again.
const STEP_MAX: f32 = 1e12;
/// Copies that can be saved up.
const CREDIT_MAX: f32 = 4.0;

impl HotExperts {
    /// `layers` with as many experts each, of which `places` fit at once.
    pub fn new(layers: usize, experts: usize, places: usize, habits: Habits) -> HotExperts {
        let shelf = Shelf::new(layers * experts, places);
        HotExperts { shelf, layers, experts, habits, step: 1.0, credit: 0.0 }
    }

    /// Where an expert stands, ready for use.
    pub fn place(&self, layer: usize, expert: u16) -> Option<Place> {
        self.shelf.place(self.thing(layer, expert))
    }

    /// Layer and expert of what is to be copied.
    pub fn name(&self, thing: u32) -> (usize, u16) {
        let thing = thing as usize;
        (thing / self.experts, (thing % self.experts) as u16)
    }

    /// The places and what stands there.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// What is to be done since this was asked last.
    pub fn actions(&mut self) -> std::vec::Drain<'_, Action> {
        self.shelf.actions()
    }

    /// Fills the card before anything is known: as many of each layer.
    pub fn fill(&mut self) {
        for expert in 0..self.experts {
            for layer in 0..self.layers {
                if !self.shelf.has_room() {
                    return;
                }
                self.shelf.fetch(self.thing(layer, expert as u16));
            }
        }
    }

    /// What follows of an event.
    pub fn step(&mut self, event: Event) {
        match event {
            Event::Routed { layer, experts } => experts.iter().for_each(|&expert| self.routed(layer, expert)),
            Event::Computed { layer } => self.computed(layer),
            Event::TokenEnded => self.token_ended(),
            Event::Uploaded(ticket) => self.shelf.arrived(ticket),
            Event::Budget(places) => self.shelf.set_budget(places),
            Event::Unload => self.shelf.set_budget(0),
            Event::Lost => self.shelf.lost(),
        }
    }

    fn routed(&mut self, layer: usize, expert: u16) {
        let thing = self.thing(layer, expert);
        self.shelf.set_worth(thing, self.shelf.worth(thing) + self.step);
        if !self.shelf.is_used(thing) {
            self.shelf.acquire(thing);
        }
    }

    fn computed(&mut self, layer: usize) {
        for expert in 0..self.experts {
            let thing = self.thing(layer, expert as u16);
            if self.shelf.is_used(thing) {
                self.shelf.release(thing);
            }
        }
    }

    fn token_ended(&mut self) {
        self.step /= self.habits.decay;
        if self.step > STEP_MAX {
            self.shelf.scale_worth(1.0 / self.step);
            self.step = 1.0;
        }
        self.credit = (self.credit + self.habits.uploads).min(CREDIT_MAX);
        while self.credit >= 1.0 && self.shelf.loading() < self.habits.in_flight && self.upload() {
            self.credit -= 1.0;
        }
    }

    /// Begins a copy where one is worth it.
    fn upload(&mut self) -> bool {
        let things = (self.layers * self.experts) as u32;
        let absent = (0..things).filter(|&thing| !self.shelf.holds(thing));
        let hottest = absent.max_by(|&a, &b| self.shelf.worth(a).total_cmp(&self.shelf.worth(b)));
        let Some(thing) = hottest.filter(|&thing| self.shelf.worth(thing) > 0.0) else { return false };
        let coldest = self.shelf.victim().map_or(0.0, |victim| self.shelf.worth(victim));
        let is_worth_it = self.shelf.has_room() || self.shelf.worth(thing) > self.habits.margin * coldest;
        is_worth_it && self.shelf.fetch(thing)
    }

    fn thing(&self, layer: usize, expert: u16) -> u32 {
        assert!(layer < self.layers && (expert as usize) < self.experts, "expert {expert} of layer {layer}");
        (layer * self.experts + expert as usize) as u32
    }
}
