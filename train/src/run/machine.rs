//! Who computes a run: the processor, and a card beside it where one is handed in. Whose cards those are is known to
//! whoever starts the run; what of one it may take is said by `device` and `vram`.

use bantam_core::Cpu;
use bantam_model::card::{Cards, Found, NoCard, Passage};

use super::choices::{Choices, Wanted};
use super::forecast::Share;
use super::state::Known;
use super::{RunError, Watch};
use crate::step::Training;
use crate::step::outline::Load;

/// What there is to compute with.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The processor.
    pub cpu: Cpu,
    /// Threads on it.
    pub threads: usize,
    /// The card that `device` means, there or not.
    pub card: Option<&'a dyn Cards>,
    /// When weights pass through it, and when rows go there at all.
    pub passage: Passage,
}

impl From<(Cpu, usize)> for Machine<'_> {
    fn from((cpu, threads): (Cpu, usize)) -> Self {
        Machine { cpu, threads, card: None, passage: Passage::Measured }
    }
}

impl<'a> Machine<'a> {
    /// The same with a card.
    pub fn beside(self, card: Option<&'a dyn Cards>) -> Self {
        Machine { card, ..self }
    }
}

/// A card that was found, of which nothing is taken yet.
pub(super) struct Ready {
    found: Box<dyn Found>,
    label: String,
    name: String,
    /// Bytes that it may give.
    pub(super) budget: usize,
}

impl Ready {
    /// How it is told of.
    pub(super) fn told(&self) -> String {
        format!("{} ({})", self.label, self.name)
    }
}

/// A card, or why none takes part, where somebody may want to know.
pub(super) type Aid = Result<Ready, Option<NoCard>>;

/// The card of a run, if it may have one; an error only where it must. A run that goes on takes as much of the same
/// card as before, if it can.
pub(super) fn ready(
    machine: &Machine<'_>,
    choices: &Choices<'_>,
    known: Option<&Known>,
) -> Result<Aid, RunError> {
    let found = match (choices.card, machine.card) {
        (Wanted::Never, _) | (Wanted::MayBe, None) => return Ok(Err(None)),
        (Wanted::Must, None) => Err(NoCard::Absent("expected a card to be handed in, found none".to_owned())),
        (_, Some(cards)) => found(cards, choices.vram, known),
    };
    match (found, choices.card) {
        (Ok(ready), _) => Ok(Ok(ready)),
        (Err(error), Wanted::Must) => Err(RunError::Card(error)),
        // Most machines have no card.
        (Err(NoCard::Absent(_)), _) if choices.vram.is_none() => Ok(Err(None)),
        (Err(error), _) => Ok(Err(Some(error))),
    }
}

fn found(cards: &dyn Cards, vram: Option<u64>, known: Option<&Known>) -> Result<Ready, NoCard> {
    let found = cards.find()?;
    let (name, free) = (found.name(), found.free_bytes()?);
    let before = known.filter(|known| known.name == name && known.budget <= free);
    // A card's own bookkeeping needs some of what it calls free.
    let usual = before.map_or(free - free / 16, |known| known.budget);
    let wanted = vram.map_or(usual, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(Ready { found, label: cards.label(), name, budget: wanted.min(free) })
}

/// What a run without its card is told.
pub(super) fn without(error: &NoCard) -> String {
    format!("{error}: the processor computes")
}

/// Has a card compute beside the processor; gives what a run that goes on must know of that.
pub(super) fn take(
    ready: Ready,
    training: &mut Training,
    load: &Load,
    (choices, passage): (&Choices<'_>, Passage),
    known: Option<&Known>,
    watch: &mut dyn Watch,
) -> Result<Option<Known>, RunError> {
    let Some(plan) = training.card_plan(load, ready.budget, passage) else {
        // A run that trains all has nothing for it to do.
        return Ok(None);
    };
    let (share, told) = (Share::of(&plan), ready.told());
    let Ready { found, name, budget, .. } = ready;
    let before = known.filter(|known| known.name == name && known.budget == budget);
    if known.is_some() && before.is_none() {
        watch.note("the card, or its memory, is another than before: last bits may be others, too");
    }
    let known = before.map(|known| known.from);
    let taken = match known {
        Some([usize::MAX, usize::MAX]) => Ok(None),
        _ => training.take_card(found, plan, passage, known),
    };
    match taken {
        Ok(from) => {
            watch.note(&match from {
                Some(from) => words(&told, &share, from, training.card_bytes().unwrap_or(0)),
                None => format!("{told} is no faster with these matrices: the processor computes"),
            });
            Ok(Some(Known { name, budget, from: from.unwrap_or([usize::MAX; 2]) }))
        }
        Err(error) if choices.card == Wanted::Must => Err(RunError::Card(error)),
        Err(error) => {
            watch.note(&without(&error));
            Ok(None)
        }
    }
}

/// What is told of a card that takes part.
fn words(told: &str, share: &Share, [stands, passes]: [usize; 2], bytes: usize) -> String {
    let mega = |bytes: u64| bytes as f64 / 1e6;
    let [all, there] = share.frozen;
    let from = |rows: usize, what: &str| match rows {
        usize::MAX => format!("none with what {what}"),
        1 => format!("all with what {what}"),
        rows => format!("those of {rows} rows and more with what {what}"),
    };
    let mut words = format!(
        "{told}: {:.2} MB of it; {:.2} MB of {:.2} MB of the matrices that are not trained stand there; it computes \
         their products: {}",
        mega(bytes as u64),
        mega(there),
        mega(all),
        from(stands, "stands there")
    );
    if there < all {
        words += &format!(", {}", from(passes, "passes through it"));
    }
    words
}
