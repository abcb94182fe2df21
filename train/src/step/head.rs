//! Both ends of the decoder: the table of embeddings; the last norm, the head and the loss.

use bantam_core::ops::activation::cap;
use bantam_core::ops::backward::activation::cap as cap_backward;
use bantam_core::ops::backward::loss::{Entropy, Smooth};
use bantam_core::ops::share::each_row;
use bantam_model::bare::{Bare, Places};
use bantam_model::plan::{Linear, Plan};
use bantam_model::spec::ModelSpec;

use super::gradients::Gradients;
use super::layer::{norm, norm_backward};
use super::linear::{Products, Scratch, room};
use super::low::Lows;
use super::parameters::{Parameters, Target};
use super::sites::{Finder, LayerSites, NormSite, Site};

/// Rows of the vocabulary whose logits are there at once, whole tiles.
pub(crate) const CHUNK: usize = 4096;

/// Buffers of the loss.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Rows that have a label, and their labels.
    rows: Vec<usize>,
    labels: Vec<usize>,
    entropies: Vec<Entropy>,
    hidden: Vec<f32>,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    dhidden: Vec<f32>,
    logits: Vec<f32>,
    capped: Vec<f32>,
    row: Vec<f32>,
    /// Of every label, what goes to all the vocabulary.
    pub(crate) smoothing: f32,
}

/// The weights at both ends.
#[derive(Debug)]
pub(crate) struct EndSites {
    pub(crate) embedding: Site,
    pub(crate) final_norm: NormSite,
    pub(crate) head: Site,
}

/// All of a model's.
#[derive(Debug)]
pub(crate) struct Sites {
    pub(crate) ends: EndSites,
    pub(crate) layers: Vec<LayerSites>,
    /// Layers below this have nothing that is trained.
    pub(crate) lowest: usize,
}

impl Sites {
    pub(crate) fn new(
        spec: &ModelSpec,
        plan: &Plan,
        places: &Places,
        parameters: &Parameters,
        lows: &Lows,
    ) -> Sites {
        let (finder, weights) = (Finder::new(plan, places, parameters, lows), &plan.weights);
        let embedding = Linear { matrix: weights.embedding, bias: None, low: None };
        let ends = EndSites {
            embedding: finder.linear(&embedding),
            final_norm: finder.norm(&weights.final_norm),
            head: finder.linear(&weights.head),
        };
        let layers = weights.layers.iter().zip(&spec.layers).map(|(weights, spec)| {
            finder.layer(weights, spec.mlp.experts.map_or(1, |experts| experts.choice.experts))
        });
        let layers: Vec<LayerSites> = layers.collect();
        let lowest = match ends.embedding.weight_to {
            Some(_) => 0,
            None => layers.iter().position(LayerSites::is_trained).unwrap_or(layers.len()),
        };
        Sites { ends, layers, lowest }
    }
}

/// The first hidden states.
pub(crate) fn embed(bare: &Bare, site: &Site, tokens: &[u32], out: &mut [f32], row: &mut Vec<f32>) {
    let (rows, columns) = (site.rows(bare), site.shape().columns);
    let row = room(row, (1 + site.matrix.times) * columns);
    for (out, &token) in out.chunks_exact_mut(columns).zip(tokens) {
        rows.read(token as usize, columns, row);
        let scale = bare.spec.embedding_scale;
        out.iter_mut().zip(&*row).for_each(|(out, x)| *out = x * scale);
    }
}

impl Ends {
    /// The same, with this memory.
    pub(crate) fn embed(&mut self, bare: &Bare, site: &Site, tokens: &[u32], out: &mut [f32]) {
        embed(bare, site, tokens, out, &mut self.row);
    }
}

/// Adds the gradients of the rows of tokens.
pub(crate) fn embed_backward(
    bare: &Bare,
    to: Option<Target>,
    tokens: &[u32],
    d: &mut [f32],
    gradients: &mut Gradients,
) {
    let Some(to) = to else { return };
    let scale = bare.spec.embedding_scale;
    d.iter_mut().for_each(|d| *d *= scale);
    for (d, &token) in d.chunks_exact(bare.spec.hidden).zip(tokens) {
        gradients.add_rows(&bare.pool, &to.starting_at(token as usize), bare.spec.hidden, d);
    }
}

/// The rows that are to predict something, and what.
pub(crate) fn labelled(labels: &[i32]) -> impl Iterator<Item = (usize, usize)> + '_ {
    labels.iter().enumerate().filter_map(|(row, &label)| Some((row, usize::try_from(label).ok()?)))
}

impl Ends {
    /// The sum of the losses of all rows with a label, and the gradient of `scale` times it with respect to the last
    /// hidden states `x`, which are taken and left in their place.
    #[allow(clippy::too_many_arguments, reason = "a phase of a step: its data, its weights, its memory")]
    pub(crate) fn loss(
        &mut self,
        products: &Products,
        sites: &EndSites,
        labels: &[i32],
        scale: f32,
        x: &mut [f32],
        gradients: Option<&mut Gradients>,
        s: &mut Scratch,
    ) -> f64 {
        let width = products.bare.spec.hidden;
        self.rows.clear();
        self.labels.clear();
        for (row, label) in labelled(labels) {
            self.rows.push(row);
            self.labels.push(label);
        }
        let size = self.rows.len() * width;
        let hidden = room(&mut self.hidden, size);
        for (out, &row) in hidden.chunks_exact_mut(width).zip(&self.rows) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
        norm(products.bare, &sites.final_norm, hidden, room(&mut self.normed, size));
        self.entropies.clear();
        self.entropies.resize(self.rows.len(), Entropy::default());
        self.each_chunk(products, &sites.head, None, scale, s);
        let smooth = self.smooth(&sites.head);
        let loss = self.entropies.iter().map(|entropy| entropy.loss(smooth)).sum();
        let Some(gradients) = gradients else { return loss };
        x.fill(0.0);
        if self.rows.is_empty() {
            return loss;
        }
        room(&mut self.dnormed, size).fill(0.0);
        self.each_chunk(products, &sites.head, Some(&mut *gradients), scale, s);
        let (hidden, dnormed) = (&self.hidden[..size], &self.dnormed[..size]);
        let dhidden = room(&mut self.dhidden, size);
        norm_backward(products.bare, &sites.final_norm, hidden, dnormed, dhidden, false, gradients, s);
        for (d, &row) in dhidden.chunks_exact(width).zip(&self.rows) {
            x[row * width..][..width].copy_from_slice(d);
        }
        loss
    }

    fn smooth(&self, head: &Site) -> Smooth {
        Smooth { share: self.smoothing, vocab: head.shape().rows }
    }

    /// Of the last rows with a label, in their order, which had the likeliest.
    pub(crate) fn hits(&self) -> impl Iterator<Item = bool> + '_ {
        self.entropies.iter().map(Entropy::is_hit)
    }

    /// Goes through the vocabulary: at first to see it, then, where there are gradients, for these.
    fn each_chunk(
        &mut self,
        products: &Products,
        head: &Site,
        mut gradients: Option<&mut Gradients>,
        scale: f32,
        s: &mut Scratch,
    ) {
        let Bare { cpu, pool, spec, .. } = products.bare;
        let smooth = self.smooth(head);
        let vocab = smooth.vocab;
        let normed = &self.normed[..self.rows.len() * spec.hidden];
        for first in (0..vocab).step_by(CHUNK) {
            let site = head.part(first, CHUNK.min(vocab - first));
            let count = site.shape().rows;
            let logits = room(&mut self.logits, self.rows.len() * count);
            products.forward(&site, normed, logits, s);
            if let Some(limit) = spec.logits_cap {
                cap(*cpu, limit, logits);
            }
            let labels = &self.labels;
            if let Some(place) = site.place.filter(|_| gradients.is_none()) {
                products.bare.forget(place, count);
            }
            let Some(gradients) = gradients.as_deref_mut() else {
                let logits = &*logits;
                each_row(pool, &mut self.entropies, 1, 4, |row, entropy| {
                    let logits = &logits[row * count..][..count];
                    entropy[0].see(*cpu, first, labels[row], logits);
                    if smooth.share > 0.0 {
                        entropy[0].add_up(*cpu, logits);
                    }
                });
                continue;
            };
            let capped = room(&mut self.capped, if spec.logits_cap.is_some() { logits.len() } else { 0 });
            capped.copy_from_slice(&logits[..capped.len()]);
            let entropies = &self.entropies;
            each_row(pool, logits, count, 4, |row, logits| {
                entropies[row].gradient(*cpu, (first, labels[row]), smooth, scale, logits);
            });
            if let Some(limit) = spec.logits_cap {
                cap_backward(limit, capped, logits);
            }
            let dnormed = &mut self.dnormed[..normed.len()];
            products.backward(&site, normed, logits, Some((dnormed, true)), gradients, s);
            if let Some(place) = site.place {
                products.bare.forget(place, count);
            }
        }
    }
}
