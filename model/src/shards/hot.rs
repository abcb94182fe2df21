//! Experts that stand on the card one by one, while a model runs: who goes to which side, and which of them move there
//! between two steps. What is not there is computed by the processor, at the same time; nobody waits for a copy.

use bantam_core::arena::disjoint;
use bantam_core::ops::experts::Routing;
use bantam_core::{Routed, Slot};

use super::Host;
use super::stacks::Stacks;
use crate::card::Card;
use crate::engine::ExpertsMet;
use crate::placement::{Action, Event, Habits, HotExperts};

/// The card's experts, and the places of a layer's rows on both sides.
#[derive(Debug)]
pub(super) struct Hot {
    policy: HotExperts,
    /// The layer that is being computed, counted among those with experts.
    layer: usize,
    /// Who goes where on the card, made here.
    words: Vec<f32>,
    /// Who goes where here.
    mine: Slot,
    /// Places there and here, once they are known.
    divided: Option<[usize; 2]>,
    experts: Vec<u16>,
    actions: Vec<Action>,
    pub(super) met: ExpertsMet,
}

impl Hot {
    /// `mine` is a slot of the host as large as a plan's routing.
    pub(super) fn new(stacks: &Stacks, mine: Slot) -> Self {
        let (experts, places) = (stacks.experts, stacks.places);
        Hot {
            policy: HotExperts::new(stacks.layers(), experts, places, Habits::default()),
            layer: 0,
            words: vec![0.0; mine.bytes / 4],
            mine,
            divided: None,
            experts: Vec::with_capacity(experts),
            actions: Vec::with_capacity(places + 1),
            met: ExpertsMet::default(),
        }
    }

    /// Puts experts on the card before any is known to be hot.
    pub(super) fn fill(&mut self, stacks: &Stacks, host: &Host, card: &mut dyn Card) {
        self.policy.fill();
        self.copy(stacks, host, card);
        self.met = ExpertsMet::default();
    }

    /// All layers are through: some experts may take the places of others.
    pub(super) fn end_step(&mut self, stacks: &Stacks, host: &Host, card: &mut dyn Card) {
        self.policy.step(Event::TokenEnded);
        self.copy(stacks, host, card);
    }

    fn copy(&mut self, stacks: &Stacks, host: &Host, card: &mut dyn Card) {
        self.actions.extend(self.policy.actions());
        for action in self.actions.drain(..) {
            // The memory of all places was taken at once, and stays.
            let Action::Upload { thing, ticket, .. } = action else { continue };
            let (layer, expert) = self.policy.name(thing);
            for (from, to) in stacks.copies(layer, usize::from(expert), ticket.place.0 as usize) {
                card.upload(to, host.arena().read(from));
            }
            // Copies are queued in front of what the next step computes.
            self.policy.step(Event::Uploaded(ticket));
            self.met.moved += 1;
        }
    }

    /// The router of a layer was computed.
    pub(super) fn begin_layer(&mut self, layer: usize) {
        (self.layer, self.divided) = (layer, None);
    }

    /// Places on the card and here; the first who asks divides them. The host's own list then counts those of the card
    /// first.
    pub(super) fn places(
        &mut self,
        host: &mut Host,
        card: &mut dyn Card,
        routed: &Routed,
        rows: usize,
    ) -> [usize; 2] {
        if let Some(places) = self.divided {
            return places;
        }
        let choice = routed.choice;
        let count = choice.bytes(rows).expect("it was planned") / 4;
        let Hot { policy, words, experts, layer, mine, .. } = self;
        let memory = &mut host.arena_mut().work;
        let [all, here] = disjoint(memory, [routed.slot.first(count), mine.first(count)]);
        let mut all = Routing::over(choice, rows, all);
        let mut here = Routing::over(choice, rows, here);
        let mut there = Routing::over(choice, rows, &mut words[..count]);
        experts.clear();
        experts.extend(all.segments().iter().map(|segment| segment[0] as u16));
        policy.step(Event::Routed { layer: *layer, experts });
        let place = |expert: usize| policy.place(*layer, expert as u16).map(|place| place.0);
        let on_card = all.divide(place, &mut there, &mut here);
        if on_card > 0 {
            // Segments, and the rows of places: nothing else is looked at by products.
            let words = &self.words[..1 + 4 * choice.experts + on_card];
            card.upload(routed.slot, bytemuck::cast_slice(words));
        }
        self.met.places += choice.places(rows) as u64;
        self.met.on_card += on_card as u64;
        *self.divided.insert([on_card, choice.places(rows) - on_card])
    }

    /// Who goes where here.
    pub(super) fn here(&self, routed: &Routed, places: usize) -> Routed {
        Routed { slot: self.mine, part: Some(places), ..*routed }
    }

    /// The layer has used its experts.
    pub(super) fn end_layer(&mut self) {
        self.policy.step(Event::Computed { layer: self.layer });
    }
}
