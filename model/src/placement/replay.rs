//! A trace of routing played to the policy of experts: how often they would have been on the card.

use std::collections::VecDeque;

use super::experts::{Event, Habits, HotExperts};
use super::routing::Trace;
use super::shelf::{Action, Ticket};
use super::time::Hits;

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// Of the experts that a layer chose, how many were there.
    pub hits: Hits,
    /// Copies per token.
    pub uploads: f64,
}

/// Plays all tokens with room for `places` experts; the first `warm` are not counted. A copy that begins after a token
/// is done after the next.
pub fn replay(trace: &Trace, places: usize, habits: Habits, warm: usize) -> Replayed {
    let routes = trace.routes;
    let mut policy = HotExperts::new(routes.layers.into(), routes.experts.into(), places, habits);
    let mut under_way: VecDeque<Ticket> = VecDeque::with_capacity(places);
    policy.fill();
    collect(&mut policy, &mut under_way);
    under_way.drain(..).for_each(|ticket| policy.step(Event::Uploaded(ticket)));
    let mut counts = vec![0usize; usize::from(routes.chosen) + 1];
    let mut uploads = 0;
    for token in 0..trace.tokens() {
        let is_counted = token >= warm;
        let arriving = under_way.len();
        for layer in 0..routes.layers.into() {
            let experts = trace.of(token, layer);
            let found = experts.iter().filter(|&&expert| policy.place(layer, expert).is_some()).count();
            counts[found] += usize::from(is_counted);
            policy.step(Event::Routed { layer, experts });
            policy.step(Event::Computed { layer });
        }
        under_way.drain(..arriving).for_each(|ticket| policy.step(Event::Uploaded(ticket)));
        policy.step(Event::TokenEnded);
        let begun = collect(&mut policy, &mut under_way);
        uploads += if is_counted { begun } else { 0 };
    }
    let tokens = trace.tokens().saturating_sub(warm).max(1) as f64;
    let all = tokens * f64::from(routes.layers);
    let hits = Hits(counts.iter().map(|&count| count as f64 / all).collect());
    Replayed { hits, uploads: uploads as f64 / tokens }
}

fn collect(policy: &mut HotExperts, under_way: &mut VecDeque<Ticket>) -> usize {
    let before = under_way.len();
    for action in policy.actions() {
        if let Action::Upload { ticket, .. } = action {
            under_way.push_back(ticket);
        }
    }
    under_way.len() - before
}
