//! A placement as a table: what stands where, with its bytes.

use super::machine::Machine;
use super::parts::{Block, LayerParts, Parts};
use super::policy::{Forecast, RING_BYTES, kept_bytes};
use super::shares::{LayerShare, Share};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    /// What.
    pub name: &'static str,
    /// Bytes on the card.
    pub vram: u64,
    /// Bytes in main memory.
    pub ram: u64,
    /// How it is divided, for people.
    pub how: String,
}

/// What stands where; the lines add up to the forecast's bytes, up to one for each line.
pub fn stands(parts: &Parts, forecast: &Forecast, machine: &Machine) -> Vec<Stand> {
    let shares = &forecast.shares;
    let uses_card = machine.card.is_some() && forecast.vram > 0;
    let each = || parts.layers.iter().zip(&shares.layers);
    let split = |of: &dyn Fn(&LayerParts) -> f64, share: &dyn Fn(&LayerShare) -> Share| {
        each().fold((0.0, 0.0), |(card, all), (layer, found)| {
            (card + share(found).part() * of(layer), all + of(layer))
        })
    };
    let line = |name, (card, all): (f64, f64), how: String, keeps_all: bool| Stand {
        name,
        vram: card as u64,
        ram: if keeps_all { all } else { all - card } as u64,
        how,
    };
    let attention = |share: &LayerShare| share.attention;
    let block = |share: &LayerShare| share.block;
    let heads = told(each().map(|(_, share)| share.attention), "groups of heads");
    let is_mixture = parts.experts() > 0;
    let (name, unit) = if is_mixture { ("experts", "experts") } else { ("feed-forward", "tiles of rows") };
    let both = if uses_card { parts.small } else { 0 };
    let cards = machine.card.map_or(0, |card| card.count as u64);
    let step = |bytes: u64| if uses_card { cards * bytes } else { 0 };
    let plain = |name, vram, ram, how: &str| Stand { name, vram, ram, how: how.to_owned() };
    vec![
        line("keys and values", split(&|layer| layer.cache.held, &attention), heads.clone(), false),
        line("attention", split(&|layer| layer.attention.held, &attention), heads, false),
        line("head", head(parts, shares.head), told([shares.head].into_iter(), "tiles of rows"), false),
        line(
            name,
            split(&|layer| layer.block.held(), &block),
            told(each().map(|(_, share)| share.block), unit),
            parts.layers.iter().any(|layer| matches!(layer.block, Block::Experts { .. })),
        ),
        plain("norms, routers, tables", both, parts.small, "wherever something is computed"),
        plain("embedding", 0, parts.embedding, "one row for a token"),
        plain("activations", step(parts.work), parts.work, ""),
        plain(
            "staging",
            step(RING_BYTES),
            step(RING_BYTES),
            "weights that pass through while prompts are read",
        ),
        plain(
            "graphs of a reply's step",
            if uses_card { kept_bytes(parts, shares, machine) } else { 0 },
            0,
            "at most; as many as have room",
        ),
    ]
}

fn head(parts: &Parts, share: Share) -> (f64, f64) {
    (share.part() * parts.head.held, parts.head.held)
}

/// `21 to 22 of 64 heads in each of 44 layers`.
fn told(shares: impl Iterator<Item = Share>, unit: &str) -> String {
    let shares: Vec<Share> = shares.collect();
    let least = shares.iter().map(|share| share.units).min().unwrap_or(0);
    let most = shares.iter().map(|share| share.units).max().unwrap_or(0);
    let of = shares.first().map_or(0, |share| share.of);
    let layers = match shares.len() {
        1 => String::new(),
        layers => format!(" in each of {layers} layers"),
    };
    match (least, most) {
        (0, 0) => String::new(),
        _ if least == of => "all on the card".to_owned(),
        _ if least == most => format!("{most} of {of} {unit}{layers} on the card"),
        _ => format!("{least} to {most} of {of} {unit}{layers} on the card"),
    }
}
