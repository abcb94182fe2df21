//! What computes a model: the processor, and a card beside it. The only place here that knows whose cards those are.

use std::fmt;

use bantam_model::card::{Cards, NoCard, Seen};
use bantam_model::engine::{Engine, Placed};

/// What is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first card, as far as a model fits there, and the processor for the rest, or where there is none.
    Auto,
    /// The processor.
    Cpu,
    /// The same as `Auto`, but not without this card.
    Cuda(usize),
}

/// More cards than any machine has.
const NUMBERS: usize = 64;

impl Device {
    /// What one may write.
    pub const EXPECTED: &str = "auto, cpu, cuda or cuda:N with a card's number";

    /// From a setting or a flag.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:")?.parse().ok().filter(|n| *n < NUMBERS).map(Self::Cuda),
        }
    }

    /// The card that it is, there or not.
    #[must_use]
    pub fn card(self) -> Option<Box<dyn Cards>> {
        match self {
            Self::Cpu => None,
            Self::Auto => Some(card(0)),
            Self::Cuda(number) => Some(card(number)),
        }
    }

    /// How its card is spelled; the processor is none.
    pub(crate) fn label(self) -> String {
        self.card().map_or(String::new(), |card| card.label())
    }

    /// Looks whether its card is there.
    ///
    /// # Errors
    /// Where it is not, or none is meant.
    pub(crate) fn look(self) -> Result<Seen, NoCard> {
        let none = || NoCard::Absent("the processor alone computes: models.device is cpu".to_owned());
        self.card().ok_or_else(none)?.look()
    }

    /// Looks at the card, if it is one, before anything of a model is read.
    ///
    /// # Errors
    /// Where a card that must be there is not, or has less memory than is to be taken of it.
    pub fn check(self, vram: Option<u64>) -> Result<Option<Seen>, NoCard> {
        let Some(card) = self.card() else { return Ok(None) };
        let seen = match card.look() {
            Err(_) if self == Self::Auto => return Ok(None),
            seen => seen?,
        };
        match vram.filter(|&vram| vram > seen.bytes) {
            None => Ok(Some(seen)),
            Some(vram) => Err(NoCard::TooSmall(format!(
                "expected at most {} bytes, all that {} ({}) has, found {vram}; take less, or leave it out for \
                 what is free",
                seen.bytes,
                card.label(),
                seen.name
            ))),
        }
    }

    /// Puts a model that was just loaded on the card; nothing where none is wanted.
    ///
    /// # Errors
    /// Where no card takes part. The model is computed by the processor then.
    pub fn place(self, engine: &mut Engine, vram: Option<u64>) -> Result<Option<Placed>, NoCard> {
        let Some(card) = self.card() else { return Ok(None) };
        engine.place(card.as_ref(), vram).map(|placed| Some(placed.clone()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
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
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(Device::parse(text).map(|device| device.to_string()).as_deref(), Some(text));
        }
        assert_eq!(Device::parse("cuda"), Some(Device::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:64", "CUDA"] {
            assert_eq!(Device::parse(wrong), None, "{wrong}");
        }
    }
}
