//! A card beside the processor: it computes the products of a step with matrices that are not trained, there and back.
//!
//! Everything else stays here, the operands too: rows go over, and their results come back before anything else is
//! done. So a card that fails loses nothing but rows that are on their way, which the processor then computes, and all
//! that comes after them. Sums are float32 and made in one order whether a matrix stands there or passes.

mod pays;
mod plan;

use bantam_core::layouts::panels::Taken;
use bantam_core::layouts::{Shape, TILE_ROWS};
use bantam_core::ops::matmul::IN_ORDER;
use bantam_core::ops::share::each_row;
use bantam_core::{Matrix, Product, Slot};
use bantam_model::bare::Bare;
use bantam_model::card::{Backwards, CardFault, Found, NoCard, Passing};

use super::linear::room;
use super::sites::Site;
pub(crate) use plan::CardPlan;
use plan::Entry;

/// Which way a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There = 0,
    Back = 1,
}

/// Nothing followed yet.
const NOBODY: usize = usize::MAX;

/// The card, with what stands there.
#[derive(Debug)]
pub(crate) struct Beside {
    card: Box<dyn Backwards>,
    plan: CardPlan,
    /// Rows from which on a matrix that stands there is multiplied there, and one that passes.
    from: [usize; 2],
    /// After each entry, each way, who passed next when it last did: that is sent while the entry is computed.
    after: Vec<[usize; 2]>,
    last: Option<(usize, Way)>,
    /// Inputs as a matrix takes them that has an order of its own.
    taken: Vec<f32>,
    fault: Option<CardFault>,
}

impl Beside {
    /// Takes a plan's memory, and puts the weights there. Nothing is taken later.
    pub(crate) fn new(found: Box<dyn Found>, plan: CardPlan, bare: &Bare) -> Result<Beside, NoCard> {
        let mut card = found.take_backwards(&plan.needs())?;
        let mut plan = plan;
        if plan.slot_bytes > 0 && !card.take_ring(plan.slot_bytes) {
            // What stands there does so without.
            plan.slot_bytes = 0;
            plan.entries.iter_mut().for_each(|entry| entry.passes = false);
        }
        let (after, mut taken) = (vec![[NOBODY; 2]; plan.entries.len()], Vec::new());
        room(&mut taken, plan.taken);
        let from = [usize::MAX; 2];
        let mut beside = Beside { card, plan, from, after, last: None, taken, fault: None };
        beside.put_weights(bare);
        match beside.card.fault() {
            None => Ok(beside),
            Some(fault) => Err(NoCard::Failed(fault.to_string())),
        }
    }

    fn put_weights(&mut self, bare: &Bare) {
        let mut tile = Vec::new();
        for entry in &self.plan.entries {
            let Some(slot) = entry.stands else { continue };
            let (site, bytes) = (&entry.site, entry.tile_bytes());
            let Some(place) = site.place else {
                self.card.upload(slot, bare.arena.read(site.matrix.slot));
                continue;
            };
            let tile = bytemuck::cast_slice_mut(room(&mut tile, bytes / 4));
            for number in 0..site.shape().tiles() {
                bare.lying(place).put_tile(bare.cpu, site.shape().rows, number, tile);
                self.card.upload(Slot { offset: slot.offset + number * bytes, bytes, ..slot }, tile);
            }
            bare.forget(place, site.shape().rows);
        }
    }

    /// Bytes of the card.
    pub(crate) fn bytes(&self) -> usize {
        self.card.bytes()
    }

    /// Rows from which on it computes: with what stands there, with what passes.
    pub(crate) fn from(&self) -> [usize; 2] {
        self.from
    }

    /// Sets that, as it was found before.
    pub(crate) fn set_from(&mut self, from: [usize; 2]) {
        self.from = from;
    }

    /// What went wrong.
    pub(crate) fn fault(&self) -> Option<CardFault> {
        self.fault
    }

    fn entry(&self, site: &Site, rows: usize) -> Option<usize> {
        if self.fault.is_some() || site.weight_to.is_some() {
            return None;
        }
        let at = self.plan.find(site)?;
        let Entry { stands, passes, .. } = self.plan.entries[at];
        let from = if stands.is_some() { self.from[0] } else { self.from[1] };
        ((stands.is_some() || passes) && rows >= from).then_some(at)
    }

    /// Whether a product of so many rows is the card's.
    pub(crate) fn takes(&self, site: &Site, rows: usize) -> bool {
        self.entry(site, rows).is_some()
    }

    /// Whether that is so, and the matrix stands there.
    pub(crate) fn has(&self, site: &Site, rows: usize) -> bool {
        self.entry(site, rows).is_some_and(|at| self.plan.entries[at].stands.is_some())
    }

    /// `out = x * W^T + bias`; of how many rows.
    pub(crate) fn forward(
        &mut self,
        bare: &Bare,
        site: &Site,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> usize {
        let Shape { rows: height, columns } = site.shape();
        let rows = x.len() / columns;
        let Some(at) = self.entry(site, rows) else { return 0 };
        let mut done = 0;
        while done < rows {
            let count = self.plan.rows.min(rows - done);
            let part = done * columns..(done + count) * columns;
            self.send_input(bare, at, &x[part]);
            let passing = self.passing(at, Way::There);
            self.queue(bare, at, Way::There, count, &passing);
            let out = &mut out[done * height..(done + count) * height];
            let come = self.results(count, passing.width, &mut |first, rows| {
                let out = &mut out[first * height..][..rows.len() / passing.width * height];
                each_row(&bare.pool, out, height, 16, |row, out| {
                    out.copy_from_slice(&rows[row * passing.width..][..height]);
                    let bias = bias.iter().flat_map(|bias| bias.iter());
                    out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
                });
            });
            done += come;
            if come < count {
                break;
            }
        }
        done
    }

    /// `dx = dy * W`, or added to it; of how many rows.
    pub(crate) fn backward(
        &mut self,
        bare: &Bare,
        site: &Site,
        dy: &[f32],
        dx: &mut [f32],
        add: bool,
    ) -> usize {
        let Shape { rows: height, columns } = site.shape();
        let rows = dy.len() / height;
        let Some(at) = self.entry(site, rows) else { return 0 };
        let mut done = 0;
        while done < rows {
            let count = self.plan.rows.min(rows - done);
            self.card.upload(self.plan.x, bytemuck::cast_slice(&dy[done * height..][..count * height]));
            let passing = self.passing(at, Way::Back);
            self.queue(bare, at, Way::Back, count, &passing);
            let (taken, width) = (site.taken(&bare.arena), passing.product.matrix.width());
            let dx = &mut dx[done * columns..(done + count) * columns];
            let come = self.results(count, width, &mut |first, rows| {
                let dx = &mut dx[first * columns..][..rows.len() / width * columns];
                each_row(&bare.pool, dx, columns, 16, |row, dx| {
                    give_back(&taken, &rows[row * width..][..width], dx, add);
                });
            });
            done += come;
            if come < count {
                break;
            }
        }
        done
    }

    /// Sends rows as a matrix takes them.
    fn send_input(&mut self, bare: &Bare, at: usize, x: &[f32]) {
        let Beside { card, plan, taken, .. } = self;
        let entry = &plan.entries[at];
        if entry.is_plain() {
            return card.upload(plan.x, bytemuck::cast_slice(x));
        }
        let (columns, width) = (entry.site.shape().columns, entry.site.matrix.width());
        let how = entry.site.taken(&bare.arena);
        let rows = &mut taken[..x.len() / columns * width];
        each_row(&bare.pool, rows, width, 16, |row, out| take(&how, &x[row * columns..][..columns], out));
        card.upload(plan.x, bytemuck::cast_slice(rows));
    }

    /// The product as the card sees it: its input is in the matrix's order already. Results have whole tiles, since a
    /// piece of a matrix does not know where its rows end.
    fn passing(&self, at: usize, way: Way) -> Passing {
        let Entry { site, stands, .. } = self.plan.entries[at];
        let height = site.shape().rows;
        let rows = if way == Way::There { height.next_multiple_of(TILE_ROWS) } else { height };
        let shape = Shape { rows, columns: site.matrix.width() };
        let matrix = Matrix::plain(site.matrix.layout, shape, stands.unwrap_or(site.matrix.slot));
        let product = Product { matrix, bias: None, out: self.plan.out, add: false };
        Passing { stands: stands.is_some(), ..Passing::plain(&product) }
    }

    /// Queues a product, and sends what is likely to come next behind it.
    fn queue(&mut self, bare: &Bare, at: usize, way: Way, rows: usize, passing: &Passing) {
        let next = if passing.stands { None } else { self.follow(at, way) };
        let ahead = next.map(|next| (self.plan.entries[next].site, self.passing(next, Way::There)));
        let Beside { card, plan, .. } = self;
        let site = &plan.entries[at].site;
        let mut fill = |at: usize, to: &mut [u8]| fill(bare, site, at, to);
        match (way, passing.stands) {
            (Way::There, true) => card.matmul(rows, plan.x, &[passing.product]),
            (Way::There, false) => card.pass(rows, plan.x, &[*passing], &mut fill),
            (Way::Back, _) => card.back(rows, plan.x, passing, plan.unpacked, &mut fill),
        }
        if let Some((site, next)) = ahead {
            let mut fill = |at: usize, to: &mut [u8]| self::fill(bare, &site, at, to);
            card.send_ahead(&next.product.matrix, &mut fill);
        }
    }

    /// Who passed after this one the last time.
    fn follow(&mut self, at: usize, way: Way) -> Option<usize> {
        if let Some((last, its)) = self.last.replace((at, way)) {
            self.after[last][its as usize] = at;
        }
        Some(self.after[at][way as usize]).filter(|next| *next != NOBODY)
    }

    /// Hands out rows of a result that are so wide, with the number of the first; of how many nothing went wrong. Rows
    /// that did not come are zeros.
    fn results(&mut self, rows: usize, width: usize, each: &mut dyn FnMut(usize, &[f32])) -> usize {
        let at_once = self.plan.result_rows(width);
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let out = self.plan.out;
            let slot = Slot { offset: out.offset + 4 * first * width, bytes: 4 * count * width, ..out };
            self.card.fetch(slot, &mut |_, piece| each(first, piece));
            self.fault = self.card.fault();
            if self.fault.is_some() {
                return first;
            }
        }
        rows
    }
}

/// Tiles of a matrix from a byte of the host's region on.
fn fill(bare: &Bare, site: &Site, at: usize, to: &mut [u8]) {
    let (slot, bytes) = (site.matrix.slot, site.matrix.layout.tile_bytes(site.matrix.width()));
    let first = (at - slot.offset) / bytes;
    match site.place {
        Some(place) => {
            let (numbers, rows) = (bare.lying(place), site.shape().rows);
            each_row(&bare.pool, to, bytes, 2, |tile, to| numbers.put_tile(bare.cpu, rows, first + tile, to));
        }
        None => {
            let from = &bare.arena.read(slot)[first * bytes..];
            each_row(&bare.pool, to, bytes, 2, |tile, to| {
                to.copy_from_slice(&from[tile * bytes..][..bytes]);
            });
        }
    }
}

/// The order of a matrix' columns, where it has one.
fn order<'a>(taken: &Taken<'a>) -> Option<&'a [u32]> {
    taken.order.filter(|order| order[0] != IN_ORDER)
}

/// A row as a matrix takes it.
fn take(taken: &Taken, x: &[f32], out: &mut [f32]) {
    let order = order(taken);
    for out in out.chunks_exact_mut(x.len()) {
        for (column, out) in out.iter_mut().enumerate() {
            let input = order.map_or(column, |order| order[column] as usize);
            *out = x[input] * taken.factors.map_or(1.0, |factors| factors[input]);
        }
    }
}

/// The gradient of a row from that of what a matrix took.
fn give_back(taken: &Taken, from: &[f32], dx: &mut [f32], add: bool) {
    let order = order(taken);
    if order.is_none() && taken.factors.is_none() && taken.times == 1 {
        return match add {
            false => dx.copy_from_slice(from),
            true => dx.iter_mut().zip(from).for_each(|(dx, x)| *dx += x),
        };
    }
    if !add {
        dx.fill(0.0);
    }
    for time in from.chunks_exact(dx.len()) {
        for (column, x) in time.iter().enumerate() {
            let input = order.map_or(column, |order| order[column] as usize);
            dx[input] += x * taken.factors.map_or(1.0, |factors| factors[input]);
        }
    }
}
