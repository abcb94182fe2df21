//! The card of this daemon: what models may take of it together, and how much each of them has.
//!
//! Without a budget a model takes what is free when it is loaded, with one what others have left of it. A new budget is
//! divided anew: who was used last comes first, as far as it fits there. Nothing is read from disk for it, and replies
//! under way go on: the engines move between two of their steps. One move at a time, those that give before those that
//! take.

use std::sync::Arc;

use bantam_model::card::NoCard;
use bantam_model::engine::{Engine, LoadError, Placed};
use bantam_model::plan::Plan;
use bantam_model::source::SourceError;

use super::super::opened::Unusable;
use super::super::resident::Resident;
use super::{Keeper, ModelId, Shared, State, Variant};
use crate::cards::Device;
use crate::residency::Note;

/// The card, as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Card {
    /// How it is spelled, such as `cuda:0`.
    pub(crate) label: String,
    /// Bytes of its memory, whoever has them.
    pub(crate) bytes: u64,
    /// What models may take of it together; what is free where nobody said.
    pub(crate) budget: Option<u64>,
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
    /// What models have of the card.
    pub(crate) fn on_card(&self) -> impl Iterator<Item = (ModelId, Placed)> {
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
    /// Changes what models may take of the card together, and waits until they do. A device that is none, or more bytes
    /// than it has, change nothing.
    pub(crate) fn set_vram(&self, device: &str, bytes: u64) -> Result<(), NoBudget> {
        let card = self.0.card().map_err(|error| NoBudget::Device {
            expected: format!("{:?}, the only device here", super::views::RAM),
            found: device.chars().take(40).collect(),
            why: format!(" ({error})"),
        })?;
        if device != card.label {
            return Err(NoBudget::Device {
                expected: format!("{:?} or {:?}", super::views::RAM, card.label),
                found: device.chars().take(40).collect(),
                why: String::new(),
            });
        }
        if bytes > card.bytes {
            return Err(NoBudget::Bytes { label: card.label, most: card.bytes, found: bytes });
        }
        let _turn = self.0.turn();
        if let Some(card) = &mut self.0.lock().card {
            card.budget = Some(bytes);
        }
        self.0.divide(bytes);
        let (mut state, mut gone) = (self.0.lock(), Vec::new());
        let budget = state.residency.snapshot().budget;
        self.0.note(&mut state, Note::Budget(budget), &mut gone);
        Ok(())
    }
}

impl Shared {
    /// The card that the settings name. It is looked at until it was found once.
    fn card(&self) -> Result<Card, NoCard> {
        if let Some(card) = &self.lock().card {
            return Ok(card.clone());
        }
        let device = self.settings.device;
        let seen = device.look()?;
        let budget = Some(self.settings.vram.0).filter(|&bytes| bytes > 0);
        let card = Card { label: device.label(), bytes: seen.bytes, budget };
        Ok(self.lock().card.insert(card).clone())
    }

    /// See [`Keeper::beside`].
    pub(super) fn beside(&self, plan: &Plan) -> u64 {
        let card = Some(self.settings.device).filter(|device| *device != Device::Cpu).map(|_| self.card());
        let bytes = |card: Card| usize::try_from(card.bytes).unwrap_or(usize::MAX);
        card.and_then(Result::ok).map_or(0, |card| Placed::host_bytes(plan, bytes(card)) as u64)
    }

    /// Puts a model that was just loaded on the card, as far as others have left room. To be called in
    /// [`Shared::turn`], which is to last until the model is known as resident.
    pub(super) fn place(&self, engine: &mut Engine) -> Result<(), Unusable> {
        let device = self.settings.device;
        let placed = match self.left() {
            Ok(None) => return Ok(()),
            Ok(Some(Some(0))) => Err(NoCard::TooSmall(format!(
                "the other models have all that they may take of {device} together; unload one, or raise models.vram"
            ))),
            Ok(Some(vram)) => device.place(engine, vram),
            Err(error) => Err(error),
        };
        match placed {
            Ok(placed) => {
                if let Some(Placed {
                    card: [device, name], bytes, is_whole, not_kept, ring_refused, ..
                }) = &placed
                {
                    tracing::info!(device, name, bytes, is_whole, "on a card");
                    if *ring_refused > 0 {
                        tracing::warn!(
                            bytes = ring_refused,
                            "no memory for weights to pass through the card"
                        );
                    }
                    if let Some(error) = not_kept {
                        tracing::warn!(device, %error, "it keeps no steps: they are queued kernel by kernel");
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

    /// What a model may take of the card: nothing where none is wanted, and of one without a budget what is free.
    fn left(&self) -> Result<Option<Option<u64>>, NoCard> {
        if self.settings.device == Device::Cpu {
            return Ok(None);
        }
        let budget = self.card()?.budget;
        let used: u64 = self.lock().on_card().map(|(_, placed)| placed.bytes as u64).sum();
        Ok(Some(budget.map(|budget| budget.saturating_sub(used))))
    }

    /// Divides a budget among the models that are there. To be called in [`Shared::turn`].
    fn divide(&self, budget: u64) {
        let all = self.lock().by_use();
        let (mut left, mut moves) = (budget, Vec::new());
        for (id, resident) in all {
            let Some(plan) = self.lock().variants.get(&id).map(|variant| variant.plan.clone()) else {
                continue;
            };
            let wanted = Placed::forecast(&plan, usize::try_from(left).unwrap_or(usize::MAX));
            // A part may fill what there is; a whole needs no more than itself.
            let bytes =
                wanted.as_ref().map_or(0, |placed| if placed.is_whole { placed.bytes as u64 } else { left });
            left -= wanted.as_ref().map_or(0, |placed| placed.bytes as u64).min(left);
            let part = |placed: &Placed| (placed.attention, placed.blocks, placed.is_whole);
            let now = resident.desk.placed();
            if wanted.as_ref().map(part) != now.as_ref().map(part) {
                let grows = bytes > now.map_or(0, |placed| placed.bytes as u64);
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
