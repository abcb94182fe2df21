//! Which pieces of a model stand on the card, and how VRAM is filled with them: by the bytes that a token need not
//! read from main memory per byte that is taken, and no further than where both memories are read equally long.

use super::machine::Machine;
use super::parts::{Block, LayerParts, Part, Parts};

/// Pieces on the card, of all that there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// On the card.
    pub units: usize,
    /// All.
    pub of: usize,
}

/// What of a layer stands on the card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerShare {
    /// Groups of heads that share a key head, with their keys and values.
    pub attention: Share,
    /// Tiles of rows, or experts.
    pub block: Share,
}

/// What of a model stands on the card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// Layer by layer.
    pub layers: Vec<LayerShare>,
    /// Tiles of rows.
    pub head: Share,
}

/// How much of each group the card may take at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Caps {
    pub(super) attention: f64,
    pub(super) block: f64,
    pub(super) head: f64,
}

impl Share {
    /// All or nothing.
    pub(super) fn whole(on_card: bool, of: usize) -> Share {
        Share { units: if on_card { of } else { 0 }, of }
    }

    /// The part that is on the card.
    pub fn part(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.units as f64 / self.of as f64 }
    }
}

impl Shares {
    /// Nothing on the card.
    pub fn none(parts: &Parts) -> Shares {
        let layer = |layer: &LayerParts| LayerShare {
            attention: Share::whole(false, layer.attention.units),
            block: Share::whole(false, layer.block.units()),
        };
        Shares {
            layers: parts.layers.iter().map(layer).collect(),
            head: Share::whole(false, parts.head.units),
        }
    }

    /// Bytes on the card, without activations.
    pub fn vram(&self, parts: &Parts) -> f64 {
        let layers: f64 = self.each(parts).map(|(share, layer)| share.held(layer)).sum();
        let divided = layers + self.head.part() * parts.head.held;
        if divided > 0.0 { divided + parts.small as f64 } else { 0.0 }
    }

    /// Bytes in main memory, without activations. Experts all have their copy here, so that those on the card can be
    /// exchanged without a way back.
    pub fn ram(&self, parts: &Parts) -> f64 {
        let on_card: f64 = self.each(parts).map(|(share, layer)| share.only_there(layer)).sum();
        parts.held() - on_card - self.head.part() * parts.head.held
    }

    /// Experts on the card.
    pub fn experts(&self, parts: &Parts) -> usize {
        let of = |(share, layer): (&LayerShare, &LayerParts)| match layer.block {
            Block::Dense(_) => 0,
            Block::Experts { .. } => share.block.units,
        };
        self.each(parts).map(of).sum()
    }

    /// Whether the cores have nothing to compute.
    pub fn is_all_on_card(&self) -> bool {
        let full = |share: &Share| share.units == share.of;
        full(&self.head) && self.layers.iter().all(|layer| full(&layer.attention) && full(&layer.block))
    }

    /// Whether the card has nothing to compute.
    pub fn is_none(&self) -> bool {
        self.head.units == 0
            && self.layers.iter().all(|layer| layer.attention.units == 0 && layer.block.units == 0)
    }

    fn each<'a>(&'a self, parts: &'a Parts) -> impl Iterator<Item = (&'a LayerShare, &'a LayerParts)> {
        self.layers.iter().zip(&parts.layers)
    }

    /// Fills `budget` bytes, activations not included.
    pub(super) fn fill(parts: &Parts, budget: f64, caps: Caps) -> Shares {
        let mut shares = Shares::none(parts);
        let mut left = budget - parts.small as f64;
        if left <= 0.0 {
            return shares;
        }
        for group in by_worth(parts) {
            let layers = &mut shares.layers;
            match group {
                Group::Attention => {
                    let list = parts.layers.iter().zip(layers);
                    let list = list.map(|(layer, share)| (layer.attention_and_cache(), &mut share.attention));
                    take(list.collect(), caps.attention, &mut left);
                }
                Group::Block => {
                    let list = parts.layers.iter().zip(layers);
                    let list = list.map(|(layer, share)| (all(&layer.block), &mut share.block));
                    take(list.collect(), caps.block, &mut left);
                }
                Group::Head => take(vec![(parts.head, &mut shares.head)], caps.head, &mut left),
            }
        }
        shares
    }
}

impl LayerShare {
    /// Bytes on the card.
    pub fn held(&self, layer: &LayerParts) -> f64 {
        let attention = layer.attention_and_cache().held;
        self.attention.part() * attention + self.block.part() * layer.block.held()
    }

    /// Bytes that are on the card and nowhere else.
    fn only_there(&self, layer: &LayerParts) -> f64 {
        match layer.block {
            Block::Dense(_) => self.held(layer),
            Block::Experts { .. } => self.attention.part() * layer.attention_and_cache().held,
        }
    }
}

#[derive(Clone, Copy)]
enum Group {
    Attention,
    Block,
    Head,
}

/// What saves most bytes per byte comes first.
fn by_worth(parts: &Parts) -> [Group; 3] {
    let worth = |read: f64, held: f64| if held > 0.0 { read / held } else { 0.0 };
    let (mut attention, mut block) = (Part::default(), Part::default());
    for layer in &parts.layers {
        let part = layer.attention_and_cache();
        (attention.read, attention.held) = (attention.read + part.read, attention.held + part.held);
        block.read += reads(&layer.block);
        block.held += layer.block.held();
    }
    let mut groups = [
        (worth(attention.read, attention.held), Group::Attention),
        (worth(parts.head.read, parts.head.held), Group::Head),
        (worth(block.read, block.held), Group::Block),
    ];
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    groups.map(|(_, group)| group)
}

/// Bytes that a token reads of a block, whoever is chosen.
fn reads(block: &Block) -> f64 {
    match block {
        Block::Dense(part) => part.read,
        Block::Experts { chosen, each, .. } => *chosen as f64 * each.read,
    }
}

fn all(block: &Block) -> Part {
    match *block {
        Block::Dense(part) => part,
        Block::Experts { count, .. } => Part { held: block.held(), units: count, ..Part::default() },
    }
}

/// The same share of every part, in whole pieces, then one piece more of as many parts as there is room for.
fn take(mut list: Vec<(Part, &mut Share)>, cap: f64, left: &mut f64) {
    let total: f64 = list.iter().map(|(part, _)| part.held).sum();
    let share = if total > 0.0 { cap.min(*left / total).max(0.0) } else { cap };
    for (part, found) in &mut list {
        // A whole must not become one piece less by rounding.
        found.units = ((share * part.units as f64 + 1e-9) as usize).min(part.units);
        *left -= found.units as f64 * part.unit();
    }
    for (part, found) in &mut list {
        let most = (cap * part.units as f64 + 1e-9) as usize;
        if found.units < most && part.unit() <= *left {
            found.units += 1;
            *left -= part.unit();
        }
    }
}

impl Caps {
    /// All that are worth a look: nothing, what balances both memories, everything.
    pub(super) fn candidates(machine: &Machine) -> impl Iterator<Item = Caps> {
        let levels = [1.0, machine.balance(), 0.0];
        let pairs = levels.into_iter().flat_map(move |a| levels.map(|b| (a, b)));
        pairs.flat_map(move |(attention, block)| levels.map(|head| Caps { attention, block, head }))
    }
}
