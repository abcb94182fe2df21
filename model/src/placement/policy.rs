//! Ways to place a model, each with what it takes and how fast it will be; the best of them is what is done.
//!
//! The simple ones are what other programs do. They stand here so that nobody has to believe that dividing is better:
//! where it is not, on some machine, the best of them is taken.

use super::experts::Habits;
use super::machine::{Card, Machine};
use super::parts::{Block, LayerParts, Parts};
use super::prefill::Prefill;
use super::replay::{Replayed, replay};
use super::routing::Trace;
use super::shares::{Caps, LayerShare, Share, Shares};
use super::sweep::{Keep, LayerCost, sweep};
use super::time::step_seconds;

/// A way to place a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Every layer divided between card and cores, the hottest experts on the card.
    Divided,
    /// Whole layers on the card, the others computed by the cores.
    Layers,
    /// The same for experts alone, all else on the card.
    ExpertLayers,
    /// The cores compute everything.
    Cores,
    /// The card computes everything; what fits stays there, the rest is copied ahead of its turn.
    Pinned,
    /// The same, and nothing stays.
    Streamed,
    /// The card computes everything; what is missing is copied when it is needed, the latest stays.
    Lru,
}

/// What a policy would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Which.
    pub policy: Policy,
    /// What stands on the card all the time.
    pub shares: Shares,
    /// Bytes of VRAM, with activations.
    pub vram: u64,
    /// Bytes of main memory, with activations.
    pub ram: u64,
    /// Seconds per token.
    pub seconds: f64,
    /// Copies of experts per token.
    pub uploads: f64,
    /// Whether main memory suffices.
    pub fits: bool,
}

/// Pinned memory through which weights pass to the card while prompts are read, and as much of the card's: three
/// pieces of 32 MiB.
pub const RING_BYTES: u64 = 96 << 20;
/// Tokens of a trace until the places hold what they are worth.
const WARM: usize = 256;

impl Policy {
    /// All of them; of equals the first is taken.
    pub const ALL: [Policy; 7] = [
        Policy::Divided,
        Policy::Layers,
        Policy::ExpertLayers,
        Policy::Cores,
        Policy::Pinned,
        Policy::Streamed,
        Policy::Lru,
    ];

    /// Its name for flags and tables.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Divided => "divided",
            Policy::Layers => "layers",
            Policy::ExpertLayers => "expert-layers",
            Policy::Cores => "cpu",
            Policy::Pinned => "pinned",
            Policy::Streamed => "streamed",
            Policy::Lru => "lru",
        }
    }

    /// What it does, for people.
    pub fn about(self) -> &'static str {
        match self {
            Policy::Divided => "card and cores compute every layer together",
            Policy::Layers => "whole layers on the card, the others on the cores",
            Policy::ExpertLayers => "all but experts on the card, and those of whole layers",
            Policy::Cores => "the cores compute everything",
            Policy::Pinned => "what fits stays on the card, the rest is copied ahead",
            Policy::Streamed => "all layers are copied ahead, none stays",
            Policy::Lru => "what is missing is copied when it is needed, the latest stays",
        }
    }
}

/// A model, a machine, and what is known of its routing.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The model.
    pub parts: &'a Parts,
    /// The machine.
    pub machine: &'a Machine,
    /// What was recorded; without it all experts are alike.
    pub trace: Option<&'a Trace>,
}

impl Question<'_> {
    /// What every policy would do, those left out that cannot be done here.
    pub fn forecasts(&self) -> Vec<Forecast> {
        Policy::ALL.into_iter().filter_map(|policy| self.forecast(policy)).collect()
    }

    /// What is done: the fastest of all that fit; where none fits, what takes the least memory.
    pub fn auto(&self) -> Forecast {
        let all = self.forecasts();
        let fitting = all.iter().filter(|forecast| forecast.fits);
        let best = fitting.min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let best = best.or_else(|| all.iter().min_by_key(|forecast| forecast.ram));
        best.cloned().expect("the cores can always be asked")
    }

    /// What a policy would do; `None` where it cannot be done with this model or this card.
    pub fn forecast(&self, policy: Policy) -> Option<Forecast> {
        match policy {
            Policy::Cores => Some(self.of_shares(policy, Shares::none(self.parts), None)),
            Policy::Divided => self.divided(),
            Policy::Layers => self.layers(),
            Policy::ExpertLayers => self.expert_layers(),
            Policy::Pinned => self.copied(policy, Keep::Some),
            Policy::Streamed => self.copied(policy, Keep::LatestAhead),
            Policy::Lru => self.copied(policy, Keep::Latest),
        }
    }

    /// How long prompts take with it.
    pub fn prefill(&self, forecast: &Forecast, tokens: usize) -> Prefill {
        Prefill::of(self.parts, &forecast.shares, self.machine, tokens)
    }

    /// VRAM for what can be divided; `None` without a card.
    fn budget(&self) -> Option<f64> {
        let card = self.machine.card?;
        let beside = card.count as u64 * (self.parts.work + RING_BYTES);
        Some(card.free_vram().saturating_sub(beside) as f64)
    }

    fn of_shares(&self, policy: Policy, shares: Shares, replayed: Option<Replayed>) -> Forecast {
        let (parts, machine) = (self.parts, self.machine);
        let seconds = step_seconds(parts, &shares, machine, 1, replayed.as_ref().map(|found| &found.hits));
        let uploads = replayed.map_or(0.0, |found| found.uploads);
        let copied = uploads * parts.expert_bytes();
        // Copies read the memory that the cores read, and take their time on the way.
        let on_the_way = machine.card.map_or(0.0, |card| copied / card.upload);
        let seconds = (seconds + copied / machine.read).max(on_the_way);
        let cards = machine.card.filter(|_| !shares.is_none()).map_or(0, |card| card.count as u64);
        let ram = shares.ram(parts) as u64 + parts.work + cards * RING_BYTES;
        let kept = kept_bytes(parts, &shares, machine);
        let beside = cards * (parts.work + RING_BYTES) + kept;
        let vram = if cards == 0 { 0 } else { shares.vram(parts) as u64 + beside };
        let fits = ram <= machine.free_ram();
        Forecast { policy, shares, vram, ram, seconds, uploads, fits }
    }

    fn divided(&self) -> Option<Forecast> {
        let budget = self.budget()?;
        let found = Caps::candidates(self.machine).filter_map(|caps| {
            let shares = Shares::fill(self.parts, budget, caps);
            let replayed = self.replayed(&shares);
            let forecast = self.of_shares(Policy::Divided, shares, replayed);
            (!forecast.shares.is_none() && forecast.vram as f64 <= self.vram_most()).then_some(forecast)
        });
        let worth = |forecast: &Forecast| (!forecast.fits, forecast.seconds);
        found.min_by(|a, b| worth(a).partial_cmp(&worth(b)).unwrap_or(std::cmp::Ordering::Equal))
    }

    fn vram_most(&self) -> f64 {
        self.machine.card.map_or(0.0, |card| card.free_vram() as f64)
    }

    fn replayed(&self, shares: &Shares) -> Option<Replayed> {
        let places = shares.experts(self.parts);
        let is_some = places > 0 && places < self.parts.experts();
        self.trace
            .filter(|_| is_some)
            .map(|trace| replay(trace, places, Habits::default(), WARM.min(trace.tokens() / 2)))
    }

    /// The last layers on the card, and the head after them where it fits.
    fn layers(&self) -> Option<Forecast> {
        let parts = self.parts;
        let mut left = self.budget()? - parts.small as f64;
        let mut shares = Shares::none(parts);
        if parts.head.held <= left {
            shares.head = Share::whole(true, parts.head.units);
            left -= parts.head.held;
        }
        for (share, layer) in shares.layers.iter_mut().zip(&parts.layers).rev() {
            left -= layer.held();
            if left < 0.0 {
                break;
            }
            *share = LayerShare::whole(layer);
        }
        (!shares.is_none()).then(|| self.of_shares(Policy::Layers, shares, None))
    }

    fn expert_layers(&self) -> Option<Forecast> {
        let parts = self.parts;
        let mut shares = self.without_experts()?;
        let mut left = self.budget()? - shares.vram(parts);
        for (share, layer) in shares.layers.iter_mut().zip(&parts.layers) {
            left -= layer.block.held();
            if left < 0.0 {
                break;
            }
            *share = LayerShare::whole(layer);
        }
        Some(self.of_shares(Policy::ExpertLayers, shares, None))
    }

    /// All but experts on the card; `None` where there are none, or that does not fit.
    fn without_experts(&self) -> Option<Shares> {
        let parts = self.parts;
        let mut shares = Shares::none(parts);
        shares.head = Share::whole(true, parts.head.units);
        for (share, layer) in shares.layers.iter_mut().zip(&parts.layers) {
            share.attention = Share::whole(true, layer.attention.units);
        }
        (parts.experts() > 0 && shares.vram(parts) <= self.budget()?).then_some(shares)
    }

    /// The card computes everything. The cache stays there; of experts, those that a token needs are copied.
    fn copied(&self, policy: Policy, keep: Keep) -> Option<Forecast> {
        let (parts, budget) = (self.parts, self.budget()?);
        // Who copies layers to one card has no use for another.
        let card = self.machine.card.filter(|card| card.count == 1)?;
        let cache: f64 = parts.layers.iter().map(|layer| layer.cache.held).sum();
        let left = budget - parts.small as f64 - cache - parts.head.held;
        let (seconds, taken) = match parts.experts() {
            0 => self.layers_copied(&card, left, keep)?,
            _ if keep == Keep::LatestAhead => return None,
            _ => self.experts_fetched(&card, left)?,
        };
        let seconds = seconds + parts.head.read / card.read + 2.0 * card.exchange;
        let vram = (budget - left + taken) as u64 + parts.work + RING_BYTES;
        let ram = (parts.held() - cache) as u64 + parts.work + RING_BYTES;
        let fits = ram <= self.machine.free_ram();
        Some(Forecast { policy, shares: Shares::none(parts), vram, ram, seconds, uploads: 0.0, fits })
    }

    fn layers_copied(&self, card: &Card, left: f64, keep: Keep) -> Option<(f64, f64)> {
        let weights = |layer: &LayerParts| layer.attention.held + layer.block.held();
        let rate = card.upload.min(self.machine.read);
        let cost = |layer: &LayerParts| LayerCost {
            upload: weights(layer) / rate,
            compute: (weights(layer) + layer.cache.read) / card.read + card.launch,
        };
        let costs: Vec<LayerCost> = self.parts.layers.iter().map(cost).collect();
        let largest = self.parts.layers.iter().map(weights).fold(0.0, f64::max);
        // As many as fit, or two where streams need no more.
        let places = if largest > 0.0 { (left.max(0.0) / largest) as usize } else { 0 };
        let places = if keep == Keep::LatestAhead { places.min(2) } else { places.min(costs.len()) };
        Some((sweep(&costs, places, keep)?.seconds, places as f64 * largest))
    }

    /// Attention stays; a chosen expert that is not there is waited for.
    fn experts_fetched(&self, card: &Card, left: f64) -> Option<(f64, f64)> {
        let parts = self.parts;
        let attention: f64 = parts.layers.iter().map(|layer| layer.attention.held).sum();
        let (left, each) = (left - attention, parts.expert_bytes());
        let places = (left.max(0.0) / each).min(parts.experts() as f64).floor();
        let missing = 1.0 - places / parts.experts() as f64;
        let rate = card.upload.min(self.machine.read);
        let layer = |layer: &LayerParts| {
            let attention = (layer.attention.read + layer.cache.read) / card.read + card.launch;
            attention
                + match layer.block {
                    Block::Dense(part) => part.read / card.read,
                    Block::Experts { chosen, each, .. } => {
                        let bytes = chosen as f64 * each.read;
                        missing * bytes / rate + bytes / card.read + card.exchange
                    }
                }
        };
        let seconds = parts.layers.iter().map(layer).sum();
        (left >= each).then_some((seconds, attention + places * each))
    }
}

/// What a card that computes everything sets aside for the steps that it keeps, of what is left.
pub(super) fn kept_bytes(parts: &Parts, shares: &Shares, machine: &Machine) -> u64 {
    let card = machine.card.filter(|card| card.count == 1 && shares.is_all_on_card());
    let taken = shares.vram(parts) as u64 + parts.work + RING_BYTES;
    card.map_or(0, |card| parts.kept.min(card.free_vram().saturating_sub(taken)))
}

impl LayerShare {
    fn whole(layer: &LayerParts) -> LayerShare {
        LayerShare {
            attention: Share::whole(true, layer.attention.units),
            block: Share::whole(true, layer.block.units()),
        }
    }
}
