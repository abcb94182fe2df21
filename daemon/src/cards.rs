//! What computes a model: the processor, and cards beside it. The only place here that knows whose cards those are.

use std::fmt;

use bantam_model::card::{CARDS_MOST, Cards, NoCard, Seen};
use bantam_model::engine::{Engine, Placed};

/// What is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first card, as far as a model fits there, then the next ones, and the processor for the rest, or where there
    /// is none.
    Auto,
    /// The processor.
    Cpu,
    /// The same as `Auto` with these cards, and not without them.
    Cuda(Numbers),
}

/// Numbers of cards, in the order in which they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    list: [usize; CARDS_MOST],
    count: usize,
}

impl Numbers {
    fn parse(text: &str) -> Option<Self> {
        let mut found = Numbers { list: [0; CARDS_MOST], count: 0 };
        for number in text.split(',') {
            let number = number.parse().ok().filter(|n| *n < NUMBERS)?;
            let is_new = !found.all().contains(&number);
            *found.list.get_mut(found.count).filter(|_| is_new)? = number;
            found.count += 1;
        }
        Some(found)
    }

    /// At least one.
    fn all(&self) -> &[usize] {
        &self.list[..self.count]
    }
}

/// More cards than any machine has.
const NUMBERS: usize = 64;

impl Device {
    /// What one may write.
    pub const EXPECTED: &str =
        "auto, cpu, cuda or cuda:N with a card's number, or several with commas between them";

    /// From a setting or a flag.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Numbers::parse("0").map(Self::Cuda),
            _ => Numbers::parse(text.strip_prefix("cuda:")?).map(Self::Cuda),
        }
    }

    /// The first of its cards, there or not.
    #[must_use]
    pub fn card(self) -> Option<Box<dyn Cards>> {
        self.cards().into_iter().next()
    }

    /// The number of the first of its cards that is there.
    #[must_use]
    pub fn number(self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            Self::Auto => (0..CARDS_MOST).find(|&number| card(number).look().is_ok()),
            Self::Cuda(numbers) => numbers.all().iter().copied().find(|&number| card(number).look().is_ok()),
        }
    }

    /// The cards that it is, there or not; of all that a machine may have those that are there, or the first.
    fn cards(self) -> Vec<Box<dyn Cards>> {
        match self {
            Self::Cpu => Vec::new(),
            Self::Auto => {
                let there = (0..CARDS_MOST).map(card).filter(|card| card.look().is_ok());
                let there: Vec<Box<dyn Cards>> = there.collect();
                if there.is_empty() { vec![card(0)] } else { there }
            }
            Self::Cuda(numbers) => numbers.all().iter().map(|&number| card(number)).collect(),
        }
    }

    /// Looks at its cards, how they are spelled and what they are.
    ///
    /// # Errors
    /// Where one that is named is not there, or none is meant, or found.
    pub(crate) fn look(self) -> Result<Vec<(String, Seen)>, NoCard> {
        if self == Self::Cpu {
            return Err(NoCard::Absent("the processor alone computes: models.device is cpu".to_owned()));
        }
        self.cards().iter().map(|card| Ok((card.label(), card.look()?))).collect()
    }

    /// Whether there is a card among them, and all that are named.
    #[must_use]
    pub fn is_there(self) -> bool {
        self.look().is_ok_and(|found| !found.is_empty())
    }

    /// Looks at the cards, if it is any, before anything of a model is read. Of `vram` there is nothing (what is free),
    /// one figure for each card, or as many as cards.
    ///
    /// # Errors
    /// Where a card that must be there is not, or has less memory than is to be taken of it.
    pub fn check(self, vram: &[u64]) -> Result<Vec<Seen>, NoCard> {
        let seen = match self.look() {
            Err(_) if matches!(self, Self::Auto | Self::Cpu) => return Ok(Vec::new()),
            seen => seen?,
        };
        if vram.len() > 1 && vram.len() != seen.len() {
            let (cards, found) = (seen.len(), vram.len());
            return Err(NoCard::TooSmall(format!(
                "expected one figure, or one for each card, of which there are {cards}, found {found}; correct it"
            )));
        }
        for (at, (label, seen)) in seen.iter().enumerate() {
            if let Some(vram) = nth(vram, at).filter(|&vram| vram > seen.bytes) {
                let Seen { name, bytes } = seen;
                return Err(NoCard::TooSmall(format!(
                    "expected at most {bytes} bytes, all that {label} ({name}) has, found {vram}; take less, or leave \
                     it out for what is free"
                )));
            }
        }
        Ok(seen.into_iter().map(|(_, seen)| seen).collect())
    }

    /// Puts a model that was just loaded on the cards, with so many bytes of each (what is free where nobody says);
    /// nothing where none is wanted.
    ///
    /// # Errors
    /// Where no card takes part. The model is computed by the processor then.
    pub fn place(
        self,
        engine: &mut Engine,
        vram: &dyn Fn(usize) -> Option<u64>,
    ) -> Result<Option<Placed>, NoCard> {
        let cards = self.cards();
        let asked = cards.iter().enumerate().map(|(at, card)| (card.as_ref(), vram(at)));
        // A card of which nothing is left takes no part.
        let asked: Vec<(&dyn Cards, Option<u64>)> = asked.filter(|(_, vram)| *vram != Some(0)).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        engine.place_on(&asked).map(|placed| Some(placed.clone()))
    }
}

/// What may be taken of one of several cards.
#[must_use]
pub fn nth(vram: &[u64], card: usize) -> Option<u64> {
    if vram.len() == 1 { Some(vram[0]) } else { vram.get(card).copied() }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(numbers) => {
                let numbers: Vec<String> = numbers.all().iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn card(number: usize) -> Box<dyn Cards> {
    Box::new(bantam_cuda::OneOf(number))
}

#[cfg(not(feature = "cuda"))]
fn card(_: usize) -> Box<dyn Cards> {
    Box::new(without::None)
}

#[cfg(not(feature = "cuda"))]
mod without {
    use super::{Cards, NoCard, Seen};
    use bantam_model::card::Found;

    #[derive(Debug)]
    pub(super) struct None;

    fn absent() -> NoCard {
        NoCard::Absent("this program was built without CUDA".to_owned())
    }

    impl Cards for None {
        fn look(&self) -> Result<Seen, NoCard> {
            Err(absent())
        }

        fn find(&self) -> Result<Box<dyn Found>, NoCard> {
            Err(absent())
        }

        fn label(&self) -> String {
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_shown() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "cuda:0,1", "cuda:2,0,1"] {
            assert_eq!(Device::parse(text).map(|device| device.to_string()).as_deref(), Some(text));
        }
        assert_eq!(Device::parse("cuda"), Device::parse("cuda:0"));
        let many = "cuda:0,1,2,3,4,5,6,7,8";
        for wrong in
            ["", "gpu", "cuda:", "cuda:-1", "cuda:64", "CUDA", "cuda:0,", "cuda:0,0", "cuda:0, 1", many]
        {
            assert_eq!(Device::parse(wrong), None, "{wrong}");
        }
    }
}
