//! The decoder's matrices and norms as training meets them: with where their gradients belong, and with what an
//! adapter adds to them.

use std::collections::HashMap;

use bantam_core::layouts::panels::Taken;
use bantam_core::layouts::wide::Wide;
use bantam_core::layouts::{Shape, TILE_ROWS};
use bantam_core::ops::backward::numbers::{Numbers, Rows};
use bantam_core::ops::norm::RowNorm;
use bantam_core::{Matrix, Norm, Slot};
use bantam_model::bare::{Bare, Memory, Place, Places};
use bantam_model::plan::{Fill, LayerWeights, Linear, LowFill, LowSide, Plan};

use super::low::{LowSite, Lows};
use super::parameters::{Parameters, Target};

/// A matrix, or some tiles of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) matrix: Matrix,
    /// Of its rows.
    pub(crate) bias: Option<Slot>,
    /// Where it is, if it is not in memory.
    pub(crate) place: Option<Place>,
    /// Where gradients belong, where they are wanted.
    pub(crate) weight_to: Option<Target>,
    pub(crate) bias_to: Option<Target>,
    /// What an adapter adds.
    pub(crate) low: Option<LowSite>,
}

impl Site {
    pub(crate) fn shape(&self) -> Shape {
        self.matrix.shape
    }

    pub(crate) fn rows<'a>(&self, bare: &'a Bare) -> Rows<'a> {
        let Matrix { layout, slot, .. } = self.matrix;
        match self.place {
            Some(place) => Rows::Lying(bare.lying(place)),
            None => Rows::Tiles { layout, tiles: bare.arena.read(slot), taken: self.taken(&bare.arena) },
        }
    }

    /// Its numbers, if it is not in codes and takes its input as it is.
    pub(crate) fn numbers<'a>(&self, bare: &'a Bare) -> Option<Numbers<'a>> {
        let layout = self.wide()?;
        Some(match self.place {
            Some(place) => Numbers::Lying(bare.lying(place)),
            None => Numbers::Tiles(layout, bare.arena.read(self.matrix.slot)),
        })
    }

    pub(crate) fn taken<'a>(&self, arena: &'a Memory) -> Taken<'a> {
        let Matrix { order, factors, times, .. } = self.matrix;
        let order = order.map(|slot| arena.words(slot));
        Taken { order, factors: factors.map(|slot| arena.floats(slot)), times }
    }

    /// How its numbers lie, if it has some.
    pub(crate) fn wide(&self) -> Option<Wide> {
        let Matrix { layout, order, factors, times, .. } = self.matrix;
        let is_plain = order.is_none() && factors.is_none() && times == 1;
        layout.wide().filter(|_| is_plain)
    }

    /// The part of it from a row on, which begins a tile.
    pub(crate) fn part(&self, first: usize, rows: usize) -> Site {
        let Matrix { layout, slot, .. } = self.matrix;
        let bytes = layout.tile_bytes(self.matrix.width());
        let shape = Shape { rows, ..self.matrix.shape };
        let offset = slot.offset + first / TILE_ROWS * bytes;
        let slot = Slot { offset, bytes: shape.tiles() * bytes, ..slot };
        let bias = self.bias.map(|slot| Slot { offset: slot.offset + 4 * first, bytes: 4 * rows, ..slot });
        Site {
            matrix: Matrix { shape, slot, ..self.matrix },
            place: self.place.map(|place| place.starting_at(first)),
            bias,
            weight_to: self.weight_to.map(|target| target.starting_at(first)),
            bias_to: self.bias_to.map(|target| target.starting_at(first)),
            low: self.low.map(|low| low.starting_at(first)),
        }
    }
}

impl Site {
    /// Where the parameters begin that are trained here.
    pub(crate) fn begins<'a>(&'a self, lows: &'a Lows) -> impl Iterator<Item = usize> + 'a {
        let own = self.weight_to.iter().chain(&self.bias_to).map(Target::parameter);
        own.chain(self.low.into_iter().flat_map(|low| lows.list[low.low].begins()))
    }

    fn is_trained(&self) -> bool {
        self.weight_to.is_some() || self.bias_to.is_some() || self.low.is_some()
    }
}

/// A norm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormSite {
    pub(crate) norm: Norm,
    pub(crate) weight_to: Option<Target>,
    pub(crate) bias_to: Option<Target>,
}

impl NormSite {
    pub(crate) fn row<'a>(&self, arena: &'a Memory) -> RowNorm<'a> {
        let Norm { kind, epsilon, weight_shift, weight, bias, .. } = self.norm;
        let bias = bias.map(|slot| arena.floats(slot));
        RowNorm { kind, epsilon, weight_shift, weight: arena.floats(weight), bias }
    }
}

/// A layer's. Of a mixture, the last three have one for every expert.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names of families.rs")]
pub(crate) struct LayerSites {
    pub(crate) attention_norm: NormSite,
    pub(crate) mlp_norm: NormSite,
    pub(crate) post_norms: Option<[NormSite; 2]>,
    pub(crate) head_norms: Option<[NormSite; 2]>,
    pub(crate) inputs: [Site; 3],
    pub(crate) sinks: Option<(Slot, Option<Target>)>,
    pub(crate) output: Site,
    pub(crate) router: Option<Site>,
    pub(crate) gate: Option<Vec<Site>>,
    pub(crate) up: Vec<Site>,
    pub(crate) down: Vec<Site>,
}

impl LayerSites {
    /// All matrices.
    pub(crate) fn sites(&self) -> impl Iterator<Item = &Site> {
        let alone = self.inputs.iter().chain([&self.output]).chain(&self.router);
        alone.chain(self.gate.iter().flatten()).chain(&self.up).chain(&self.down)
    }

    /// Where parameters begin that are one expert's alone: no token may come there.
    pub(crate) fn rare<'a>(&'a self, lows: &'a Lows) -> impl Iterator<Item = usize> + 'a {
        let all = self.router.iter().flat_map(|_| self.gate.iter().chain([&self.up, &self.down]));
        let are_apart = |sites: &&Vec<Site>| match &sites[..] {
            [first, second, ..] => !first.begins(lows).eq(second.begins(lows)),
            _ => false,
        };
        all.filter(are_apart).flatten().flat_map(|site| site.begins(lows))
    }

    /// Matrices that are in files, and their rows.
    fn places(&self) -> impl Iterator<Item = (Place, usize)> + '_ {
        self.sites().filter_map(|site| Some((site.place?, site.shape().rows)))
    }

    /// Asks for what is in files and read here: it comes next.
    pub(crate) fn ask_for(&self, bare: &Bare, is_read: impl Fn(&Site) -> bool) {
        let read = self.sites().filter(|site| is_read(site));
        let places = read.filter_map(|site| Some((site.place?, site.shape().rows)));
        places.for_each(|(place, rows)| bare.ask_for(place, rows));
    }

    /// Gives its memory back.
    pub(crate) fn forget(&self, bare: &Bare) {
        self.places().for_each(|(place, rows)| bare.forget(place, rows));
    }

    /// Bytes of it.
    pub(crate) fn lying_bytes(&self) -> usize {
        let sites = self.sites().filter(|site| site.place.is_some());
        sites.map(|site| site.matrix.slot.bytes).sum()
    }

    /// Whether anything of it is trained.
    pub(crate) fn is_trained(&self) -> bool {
        let pairs = self.post_norms.iter().chain(&self.head_norms).flatten();
        let mut norms = pairs.chain([&self.attention_norm, &self.mlp_norm]);
        self.sites().any(Site::is_trained)
            || norms.any(|norm| norm.weight_to.is_some() || norm.bias_to.is_some())
            || self.sinks.is_some_and(|(_, target)| target.is_some())
    }
}

/// Makes sites of a plan's weights.
pub(crate) struct Finder<'a> {
    parameters: &'a Parameters,
    lows: &'a Lows,
    places: &'a Places,
    /// How adapters' second matrices are filled, by the offset of the matrix that they change.
    fills: HashMap<usize, &'a LowFill>,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        places: &'a Places,
        parameters: &'a Parameters,
        lows: &'a Lows,
    ) -> Self {
        let up = |fill: &'a Fill| match fill {
            Fill::Low(low) if low.side == LowSide::Up => Some((low.base.slot.offset, &**low)),
            _ => None,
        };
        Finder { parameters, lows, places, fills: plan.fills.iter().filter_map(up).collect() }
    }

    /// One matrix.
    pub(crate) fn linear(&self, linear: &Linear) -> Site {
        self.stack(linear, 1).remove(0)
    }

    /// All of a stack.
    fn stack(&self, linear: &Linear, count: usize) -> Vec<Site> {
        let Linear { matrix, bias, .. } = *linear;
        let fill = linear.low.and_then(|_| self.fills.get(&matrix.slot.offset));
        let part = |slot: Slot, number: usize| {
            let bytes = slot.bytes / count;
            Slot { offset: slot.offset + number * bytes, bytes, ..slot }
        };
        let bias_to = bias.and_then(|slot| self.parameters.target(slot));
        let site = |number: usize| {
            let of = |slot: Slot| part(slot, number);
            let (order, factors) = (matrix.order.map(of), matrix.factors.map(of));
            let change = fill.and_then(|fill| Some((fill, fill.changes().get(number)?.as_ref()?)));
            Site {
                matrix: Matrix { slot: of(matrix.slot), order, factors, ..matrix },
                place: self.places.get(&of(matrix.slot).offset).copied(),
                bias: bias.map(of),
                weight_to: self.parameters.target(of(matrix.slot)),
                bias_to: bias_to.map(|target| target.starting_at(number * matrix.shape.rows)),
                low: change.map(|(fill, change)| self.lows.site(change, fill.cut())),
            }
        };
        (0..count).map(site).collect()
    }

    pub(crate) fn norm(&self, norm: &Norm) -> NormSite {
        let target = |slot| self.parameters.target(slot);
        NormSite { norm: *norm, weight_to: target(norm.weight), bias_to: norm.bias.and_then(target) }
    }

    /// A layer with so many experts.
    pub(crate) fn layer(&self, w: &LayerWeights, experts: usize) -> LayerSites {
        let pair = |norms: &[Norm; 2]| norms.each_ref().map(|norm| self.norm(norm));
        LayerSites {
            attention_norm: self.norm(&w.attention_norm),
            mlp_norm: self.norm(&w.mlp_norm),
            post_norms: w.post_norms.as_ref().map(pair),
            head_norms: w.head_norms.as_ref().map(pair),
            inputs: [&w.query, &w.key, &w.value].map(|linear| self.linear(linear)),
            sinks: w.sinks.map(|slot| (slot, self.parameters.target(slot))),
            output: self.linear(&w.output),
            router: w.router.as_ref().map(|router| self.linear(router)),
            gate: w.gate.as_ref().map(|gate| self.stack(gate, experts)),
            up: self.stack(&w.up, experts),
            down: self.stack(&w.down, experts),
        }
    }
}
