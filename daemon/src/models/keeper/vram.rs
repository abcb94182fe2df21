//! The cards of this daemon: what models may take of each together, and how much each of them has.
//!
//! Without a budget a model takes what is free when it is loaded, with one what others have left of it. A new budget is
//! divided anew: who was used last comes first, as far as it fits there. Nothing is read from disk for it, and replies
//! under way go on: the engines move between two of their steps. One move at a time, those that give before those that
//! take. What a training run takes of a card is off all this as long as it is there.

use std::sync::Arc;

use bantam_model::card::{Manner, NoCard};
use bantam_model::engine::{Engine, LoadError, Placed};
use bantam_model::plan::Plan;
use bantam_model::source::SourceError;

use super::super::opened::Unusable;
use super::super::resident::Resident;
use super::{Keeper, ModelId, Shared, State, Variant};
use crate::cards::Device;
use crate::residency::Note;

/// A card, as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    /// How it is spelled, such as `cuda:0`.
    pub(crate) label: String,
    /// Bytes of its memory, whoever has them.
    pub(crate) bytes: u64,
    /// What models and runs may take of it together; what is free where nobody said.
    pub(crate) budget: Option<u64>,
    /// Of that, what training runs have.
    pub(crate) reserved: u64,
}

impl Card {
    /// What models may take of it together.
    fn of_models(&self) -> u64 {
        // A card's own bookkeeping needs some of it.
        self.budget.unwrap_or(self.bytes - self.bytes / 16).saturating_sub(self.reserved)
    }
}

/// Bytes of a card that no model gets for as long as this is there.
#[derive(Debug)]
pub(crate) struct ReservedVram {
    shared: Arc<Shared>,
    label: String,
    bytes: u64,
}

impl ReservedVram {
    /// How many.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for ReservedVram {
    fn drop(&mut self) {
        self.shared.change_reserved(&self.label, |reserved| *reserved -= self.bytes);
    }
}

/// Why a card's budget cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoBudget {
    /// There is no such device here.
    #[error("expected {expected}, found {found:?}; correct it{why}")]
    Device {
        /// What there is.
        expected: String,
        /// What was asked for.
        found: String,
        /// Why there is no card.
        why: String,
    },
    /// More than it has.
    #[error("expected at most {most}, all that {label} has, found {found}; take less")]
    Bytes {
        /// The card.
        label: String,
        /// Its bytes.
        most: u64,
        /// What was asked for.
        found: u64,
    },
}

impl State {
    /// What models have of the cards.
    pub(crate) fn on_cards(&self) -> impl Iterator<Item = (ModelId, Placed)> {
        let placed =
            |(&id, variant): (&ModelId, &Variant)| Some((id, variant.resident.as_ref()?.desk.placed()?));
        self.variants.iter().filter_map(placed)
    }

    /// Models that are there, the last used first.
    fn by_use(&self) -> Vec<(ModelId, Arc<Resident>)> {
        let there = |(&id, variant): (&ModelId, &Variant)| Some((id, variant.resident.clone()?));
        let mut all: Vec<_> = self.variants.iter().filter_map(there).collect();
        let snapshot = self.residency.snapshot();
        all.sort_by_key(|(id, _)| {
            let in_use = snapshot.models.iter().any(|view| view.id == *id && view.references > 0);
            let used = self.variants.get(id).and_then(|of| self.last_used.get(&of.known.number()));
            std::cmp::Reverse((in_use, used.copied()))
        });
        all
    }
}

impl Keeper {
    /// Changes what models may take of a card together, and waits until they do. A device that is none, or more bytes
    /// than it has, change nothing.
    pub(crate) fn set_vram(&self, device: &str, bytes: u64) -> Result<(), NoBudget> {
        let cards = self.0.cards().map_err(|error| NoBudget::Device {
            expected: format!("{:?}, the only device here", super::views::RAM),
            found: device.chars().take(40).collect(),
            why: format!(" ({error})"),
        })?;
        let Some(card) = cards.iter().find(|card| card.label == device) else {
            let labels: Vec<String> = cards.iter().map(|card| format!("{:?}", card.label)).collect();
            return Err(NoBudget::Device {
                expected: format!("{:?} or {}", super::views::RAM, labels.join(" or ")),
                found: device.chars().take(40).collect(),
                why: String::new(),
            });
        };
        if bytes > card.bytes {
            return Err(NoBudget::Bytes { label: card.label.clone(), most: card.bytes, found: bytes });
        }
        let _turn = self.0.turn();
        if let Some(card) = self.0.lock().cards.iter_mut().find(|card| card.label == device) {
            card.budget = Some(bytes);
        }
        self.0.divide();
        self.0.tell_of_budgets();
        Ok(())
    }
}

impl Keeper {
    /// Takes bytes of a card off what models may take of it, which move for it between two steps of their replies.
    /// Where nobody says how many, what the models have left. Nothing where models do not use this card. The error says
    /// why the bytes cannot be had.
    pub(crate) fn reserve_vram(
        &self,
        label: &str,
        asked: Option<u64>,
    ) -> Result<Option<ReservedVram>, String> {
        // Who cannot look at the cards here has no model on one.
        if self.0.cards().is_err() {
            return Ok(None);
        }
        let _turn = self.0.turn();
        let bytes = {
            let mut state = self.0.lock();
            let used: u64 = state.on_cards().map(|(_, placed)| bytes_of(&placed, label)).sum();
            let Some(card) = state.cards.iter_mut().find(|card| card.label == label) else { return Ok(None) };
            let bytes = asked.unwrap_or(card.of_models().saturating_sub(used));
            let (all, reserved) = (card.budget.unwrap_or(card.bytes), card.reserved);
            let most = all.saturating_sub(reserved);
            if bytes > most {
                return Err(format!(
                    "expected a run that may take at most {most} bytes of {label} (the {all} that models and runs may \
                     take of it together, without {reserved} of other runs), found vram: {bytes} bytes; lower it, or \
                     raise the budget of {label}"
                ));
            }
            card.reserved += bytes;
            bytes
        };
        let reserved = ReservedVram { shared: self.0.clone(), label: label.to_owned(), bytes };
        self.0.divide();
        self.0.tell_of_budgets();
        Ok(Some(reserved))
    }
}

impl Shared {
    /// Changes what runs have of a card, and divides the rest among the models.
    fn change_reserved(self: &Arc<Self>, label: &str, change: impl FnOnce(&mut u64)) {
        let _turn = self.turn();
        if let Some(card) = self.lock().cards.iter_mut().find(|card| card.label == label) {
            change(&mut card.reserved);
        }
        self.divide();
        self.tell_of_budgets();
    }

    fn tell_of_budgets(self: &Arc<Self>) {
        let (mut state, mut gone) = (self.lock(), Vec::new());
        let budget = state.residency.snapshot().budget;
        self.note(&mut state, Note::Budget(budget), &mut gone);
    }

    /// The cards that the settings name. They are looked at until they were found once.
    fn cards(&self) -> Result<Vec<Card>, NoCard> {
        let found = self.lock().cards.clone();
        if !found.is_empty() {
            return Ok(found);
        }
        let budget = Some(self.settings.vram.0).filter(|&bytes| bytes > 0);
        let seen = self.settings.device.look()?.into_iter();
        let cards: Vec<Card> =
            seen.map(|(label, seen)| Card { label, bytes: seen.bytes, budget, reserved: 0 }).collect();
        self.lock().cards.clone_from(&cards);
        Ok(cards)
    }

    /// See [`Keeper::beside`].
    pub(super) fn beside(&self, plan: &Plan) -> u64 {
        if self.settings.device == Device::Cpu {
            return 0;
        }
        let bytes = |card: &Card| usize::try_from(card.bytes).unwrap_or(usize::MAX);
        let bytes: Vec<usize> = self.cards().iter().flatten().map(bytes).collect();
        let Manner { passage, .. } = self.settings.residency.into();
        if bytes.is_empty() { 0 } else { Placed::host_bytes(plan, &bytes, passage) as u64 }
    }

    /// Puts a model that was just loaded on the cards, as far as others have left room. To be called in
    /// [`Shared::turn`], which is to last until the model is known as resident.
    pub(super) fn place(&self, engine: &mut Engine) -> Result<(), Unusable> {
        let device = self.settings.device;
        engine.set_manner(self.settings.residency.into());
        let placed = match self.left() {
            Ok(left) if left.is_empty() => return Ok(()),
            Ok(left) if left.iter().all(|left| *left == Some(0)) => Err(NoCard::TooSmall(format!(
                "the other models and training runs have all that they may take of {device} together; unload one, or \
                 raise models.vram"
            ))),
            Ok(left) => device.place(engine, &|card| left.get(card).copied().flatten()),
            Err(error) => Err(error),
        };
        match placed {
            Ok(placed) => {
                if let Some(placed) = &placed {
                    let Placed { bytes, is_whole, not_kept, kept_rows, ring_refused, without, .. } = placed;
                    let (device, name) = (placed.labels(), &placed.each[0].card[1]);
                    tracing::info!(device, name, bytes, is_whole, "on a card");
                    for (device, error) in without {
                        tracing::warn!(device, %error, "without a card");
                    }
                    if *ring_refused > 0 {
                        tracing::warn!(
                            bytes = ring_refused,
                            "no memory for weights to pass through the card"
                        );
                    }
                    if let Some(error) = not_kept {
                        tracing::warn!(
                            device, %error, kept_rows,
                            "it keeps no steps of more replies: they are queued kernel by kernel"
                        );
                    }
                }
                Ok(())
            }
            Err(error) if device == Device::Auto => {
                match error {
                    NoCard::Absent(_) => tracing::debug!(%error, "the processor computes"),
                    _ => tracing::warn!(%error, "the processor computes"),
                }
                Ok(())
            }
            Err(error) => Err(SourceError::Load(LoadError::Card(error)).into()),
        }
    }

    /// What a model may take of each card: nothing where none is wanted, and of one without a budget what is free.
    fn left(&self) -> Result<Vec<Option<u64>>, NoCard> {
        if self.settings.device == Device::Cpu {
            return Ok(Vec::new());
        }
        let cards = self.cards()?;
        let state = self.lock();
        let used = |card: &Card| state.on_cards().map(|(_, placed)| bytes_of(&placed, &card.label)).sum();
        // Of what a run has not taken yet it is not seen that it is not free.
        let is_shared = |card: &Card| card.budget.is_some() || card.reserved > 0;
        let left = |card: &Card| is_shared(card).then(|| card.of_models().saturating_sub(used(card)));
        Ok(cards.iter().map(left).collect())
    }

    /// Divides the cards' budgets among the models that are there. To be called in [`Shared::turn`].
    fn divide(&self) {
        let all = self.lock().by_use();
        let cards = self.lock().cards.clone();
        let mut left: Vec<u64> = cards.iter().map(Card::of_models).collect();
        let mut moves = Vec::new();
        for (id, resident) in all {
            let Some(plan) = self.lock().variants.get(&id).map(|variant| variant.plan.clone()) else {
                continue;
            };
            let now = resident.desk.placed();
            let manner = self.settings.residency.into();
            let (wanted, bytes) = wanted(&plan, &cards, &mut left, now.as_ref(), manner);
            let layers = |placed: &Placed| -> Vec<_> {
                placed.each.iter().map(|portion| (portion.card[0].clone(), portion.layers.clone())).collect()
            };
            let part = |placed: &Placed| (placed.attention, placed.blocks, placed.is_whole, layers(placed));
            if wanted.as_ref().map(part) != now.as_ref().map(part)
                || wanted.as_ref().zip(now.as_ref()).is_some_and(|(wanted, now)| keeps_otherwise(wanted, now))
            {
                let sum: u64 = bytes.iter().flatten().sum();
                let grows = sum > now.map_or(0, |placed| placed.bytes as u64);
                moves.push((grows, bytes, resident));
            }
        }
        moves.sort_by_key(|(grows, ..)| *grows);
        for (_, bytes, resident) in moves {
            // An engine that has ended has nothing on the card.
            if let Ok(Err(error)) = resident.desk.place(self.settings.device, bytes).recv() {
                tracing::warn!(%error, "the processor computes");
            }
        }
    }
}

/// Whether a model that stands where it is to stand keeps more of its steps than there is room for now, or could keep
/// more than it does.
fn keeps_otherwise(wanted: &Placed, now: &Placed) -> bool {
    now.kept_bytes > wanted.kept_most || (now.not_kept.is_some() && wanted.kept_most > now.kept_most)
}

/// Bytes of one card that a model has.
pub(crate) fn bytes_of(placed: &Placed, label: &str) -> u64 {
    placed.each.iter().filter(|portion| portion.card[0] == label).map(|portion| portion.bytes as u64).sum()
}

/// What a model would have of what is left of each card, which it leaves to others less; and what it is to be given.
/// One that stands there as a whole and may stay takes what it has, which may be less than was set aside.
fn wanted(
    plan: &Plan,
    cards: &[Card],
    left: &mut [u64],
    now: Option<&Placed>,
    manner: Manner,
) -> (Option<Placed>, Vec<Option<u64>>) {
    let bytes = |left: &u64| usize::try_from(*left).unwrap_or(usize::MAX);
    let asked: Vec<(&str, usize)> =
        cards.iter().zip(&*left).map(|(card, left)| (card.label.as_str(), bytes(left))).collect();
    let wanted = Placed::forecast_on(plan, &asked, manner);
    let has_room = |placed: &Placed| {
        let mut left = cards.iter().zip(&*left);
        left.all(|(card, left)| bytes_of(placed, &card.label) <= *left)
    };
    let stays = now.filter(|now| {
        let is_same = |wanted: &Placed| {
            wanted.is_whole && wanted.labels() == now.labels() && !keeps_otherwise(wanted, now)
        };
        now.is_whole && has_room(now) && wanted.as_ref().is_some_and(is_same)
    });
    let given = cards.iter().zip(left).map(|(card, left)| {
        let has = wanted.as_ref().map_or(0, |placed| bytes_of(placed, &card.label));
        let before = *left;
        *left -= stays.map_or(has, |now| bytes_of(now, &card.label)).min(before);
        // A part may fill what there is; a whole needs no more than itself.
        let is_whole = wanted.as_ref().is_some_and(|placed| placed.is_whole);
        Some(if is_whole || has == 0 { has } else { before })
    });
    let given = given.collect();
    (wanted, given)
}
