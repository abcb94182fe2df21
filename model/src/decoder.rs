//! A decoder, forward: plain functions over a [`Backend`], reading a [`ModelSpec`].
//!
//! A layer is phases with one point between them where partial results of several shards will be added; a single
//! shard adds nothing. Each phase leaves its result in the residual stream.

use bantam_core::{Attention, Backend, Batch, Heads, KvCache, Matrix, Norm, Product, Routed, RowPer, Slot};

use crate::plan::{LayerWeights, Linear, Low, Plan, Weights, WorkSlots};
use crate::spec::{ExpertsSpec, LayerSpec, ModelSpec, Residual};

/// A model's weights and buffers, without the device that they are on.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// What it is.
    pub spec: ModelSpec,
    base: Weights,
    /// The same with what adapters add that came later, by their places.
    sets: Vec<Option<Box<Weights>>>,
    /// Which of them counts for what is computed now.
    set: Option<usize>,
    caches: Vec<KvCache>,
    slots: WorkSlots,
}

impl Decoder {
    /// The decoder that a plan is for.
    pub fn new(spec: ModelSpec, plan: &Plan) -> Self {
        let (base, caches) = (plan.weights.clone(), plan.caches.clone());
        Decoder { spec, base, sets: Vec::new(), set: None, caches, slots: plan.work }
    }

    /// Weights from now on for whoever chooses a place; nothing takes them away.
    pub(crate) fn set_weights(&mut self, place: usize, weights: Option<Box<Weights>>) {
        if self.sets.len() <= place {
            self.sets.resize_with(place + 1, || None);
        }
        self.sets[place] = weights;
        self.set = self.set.filter(|&set| set != place);
    }

    /// Chooses what the next steps are computed with: the model's own weights, or those of a place.
    pub(crate) fn choose(&mut self, place: Option<usize>) {
        self.set = place;
    }

    /// Whether that are the model's own.
    pub(crate) fn is_base(&self) -> bool {
        self.set.is_none()
    }

    fn weights(&self) -> &Weights {
        let set = self.set.and_then(|set| self.sets.get(set)?.as_deref());
        set.unwrap_or(&self.base)
    }

    /// Runs the tokens of a batch through all layers. The stream then holds their last hidden states. `is_stopped` is
    /// asked before every layer; `false` where it said so.
    pub fn forward<B: Backend>(
        &self,
        b: &mut B,
        batch: &Batch,
        tokens: &[u32],
        is_stopped: &dyn Fn() -> bool,
    ) -> bool {
        assert_eq!(batch.rows(), tokens.len());
        let (s, weights) = (&self.slots, self.weights());
        let scale = self.spec.embedding_scale;
        b.embed(&weights.embedding, tokens, scale, s.stream);
        if let Some(low) = &weights.embedding_low {
            lengthen(b, Reach::Rows(tokens.len()), low, self.spec.hidden, None, s.stream);
            b.embed(&low.down, tokens, scale, s.low);
            b.matmul(tokens.len(), s.low, &[raise(low, s.stream)]);
        }
        let mut turned_by = None;
        for ((spec, layer), cache) in self.spec.layers.iter().zip(&weights.layers).zip(&self.caches) {
            if is_stopped() {
                return false;
            }
            let rope = spec.attention.rope;
            if turned_by != Some(rope) {
                b.angles(&weights.ropes[rope], batch, s.angles);
                turned_by = Some(rope);
            }
            let angles = Slot { bytes: batch.rows() * self.spec.ropes[rope].width * 4, ..s.angles };
            layer_forward(b, spec, layer, s, cache, angles, batch);
        }
        true
    }

    /// Runs the rows that stand in the stream through one layer: the stream then holds its result.
    pub fn forward_layer<B: Backend>(&self, b: &mut B, layer: usize, batch: &Batch) {
        let (s, spec) = (&self.slots, &self.spec.layers[layer]);
        let (rope, weights) = (spec.attention.rope, self.weights());
        b.angles(&weights.ropes[rope], batch, s.angles);
        let angles = Slot { bytes: batch.rows() * self.spec.ropes[rope].width * 4, ..s.angles };
        layer_forward(b, spec, &weights.layers[layer], s, &self.caches[layer], angles, batch);
    }

    /// The matrices of a layer, to be changed: gate, up, down.
    pub(crate) fn feed_forward(&mut self, layer: usize) -> [Option<&mut Matrix>; 3] {
        let LayerWeights { gate, up, down, .. } = &mut self.base.layers[layer];
        [gate.as_mut().map(|gate| &mut gate.matrix), Some(&mut up.matrix), Some(&mut down.matrix)]
    }

    /// Where hidden states stand between layers.
    pub fn stream(&self) -> Slot {
        self.slots.stream
    }

    /// Hidden states of some rows of the last [`forward`](Self::forward), after the final norm.
    pub fn hidden<B: Backend>(&self, b: &mut B, rows: &[usize]) -> Slot {
        let s = &self.slots;
        b.gather(rows, self.spec.hidden, s.stream, s.chosen);
        b.norm(&self.weights().final_norm, rows.len(), s.chosen, s.chosen_normed);
        s.chosen_normed.first(rows.len() * self.spec.hidden)
    }

    /// Logits of some rows of the last [`forward`](Self::forward).
    pub fn logits<B: Backend>(&self, b: &mut B, rows: &[usize]) -> Slot {
        let s = &self.slots;
        self.hidden(b, rows);
        multiply(b, s, Reach::Rows(rows.len()), s.chosen_normed, [(&self.weights().head, s.logits, false)]);
        if let Some(limit) = self.spec.logits_cap {
            b.cap(limit, rows.len(), self.spec.vocab, s.logits);
        }
        self.logits_slot(rows.len())
    }

    /// Where the logits of so many rows stand.
    pub(crate) fn logits_slot(&self, rows: usize) -> Slot {
        self.slots.logits.first(rows * self.spec.vocab)
    }
}

fn layer_forward<B: Backend>(
    b: &mut B,
    spec: &LayerSpec,
    w: &LayerWeights,
    s: &WorkSlots,
    cache: &KvCache,
    angles: Slot,
    batch: &Batch,
) {
    let rows = batch.rows();
    b.norm(&w.attention_norm, rows, s.stream, s.normed);
    match spec.residual {
        Residual::Sequential => {
            attention_forward(b, spec, w, s, cache, angles, batch);
            b.norm(&w.mlp_norm, rows, s.stream, s.normed);
            mlp_forward(b, spec, w, s, s.normed, rows);
        }
        Residual::Parallel => {
            // Both norms before either block adds to the stream.
            b.norm(&w.mlp_norm, rows, s.stream, s.normed_for_mlp);
            attention_forward(b, spec, w, s, cache, angles, batch);
            mlp_forward(b, spec, w, s, s.normed_for_mlp, rows);
        }
    }
}

/// Which rows a product is for.
#[derive(Clone, Copy)]
enum Reach<'a> {
    /// So many.
    Rows(usize),
    /// Places that so many rows were sent to; the input has rows for one or the other.
    Places(&'a Routed, usize, RowPer),
}

impl Reach<'_> {
    fn matmul<B: Backend>(self, b: &mut B, x: Slot, products: &[Product]) {
        match self {
            Reach::Rows(rows) => b.matmul(rows, x, products),
            Reach::Places(routed, rows, per) => b.matmul_experts(routed, rows, per, x, products),
        }
    }

    /// The same where the input has rows for places.
    fn of_places(self) -> Self {
        match self {
            Reach::Places(routed, rows, _) => Reach::Places(routed, rows, RowPer::Place),
            rows @ Reach::Rows(_) => rows,
        }
    }
}

/// Products of one input, each with what an adapter adds: `(matrix, out, whether to add to it)`. Where an adapter
/// has factors, nothing can be added to.
fn multiply<B: Backend, const N: usize>(
    b: &mut B,
    s: &WorkSlots,
    reach: Reach,
    x: Slot,
    parts: [(&Linear, Slot, bool); N],
) {
    let products = parts.map(|(linear, out, add)| {
        let has_factors = has_factors(linear);
        assert!(!(add && has_factors), "factors would multiply what is added to");
        Product { matrix: linear.matrix, bias: linear.bias.filter(|_| !has_factors), out, add }
    });
    reach.matmul(b, x, &products);
    // Projections of one module share their way to the rank.
    let mut lowered = None;
    for (linear, out, _) in parts {
        let Some(low) = &linear.low else { continue };
        lengthen(b, reach, low, linear.matrix.shape.rows, linear.bias, out);
        if lowered != Some(low.down.slot) {
            let down = Product { matrix: low.down, bias: None, out: s.low, add: false };
            reach.matmul(b, x, &[down]);
            lowered = Some(low.down.slot);
        }
        reach.of_places().matmul(b, s.low, &[raise(low, out)]);
    }
}

fn has_factors(linear: &Linear) -> bool {
    linear.low.is_some_and(|low| low.factors.is_some())
}

/// The second product of an adapter.
fn raise(low: &Low, out: Slot) -> Product {
    Product { matrix: low.up, bias: low.bias, out, add: true }
}

/// Gives the rows of a product the lengths that an adapter has for them; their bias comes after that.
fn lengthen<B: Backend>(b: &mut B, reach: Reach, low: &Low, width: usize, bias: Option<Slot>, out: Slot) {
    let Some(factors) = low.factors else { return };
    match reach {
        Reach::Rows(rows) => b.scale(None, rows, width, factors, bias, out),
        Reach::Places(routed, rows, _) => b.scale(Some(routed), rows, width, factors, bias, out),
    }
}

/// A block's last product, into the stream; where something comes between, by way of `scratch`.
#[allow(clippy::too_many_arguments, reason = "a phase of a layer: its data, its weights, its memory")]
fn into_stream<B: Backend>(
    b: &mut B,
    s: &WorkSlots,
    rows: usize,
    x: Slot,
    last: &Linear,
    post_norm: Option<&Norm>,
    scratch: Slot,
) {
    if post_norm.is_none() && !has_factors(last) {
        return multiply(b, s, Reach::Rows(rows), x, [(last, s.stream, true)]);
    }
    multiply(b, s, Reach::Rows(rows), x, [(last, scratch, false)]);
    if let Some(norm) = post_norm {
        b.norm(norm, rows, scratch, scratch);
    }
    b.add(rows, last.matrix.shape.rows, scratch, s.stream);
}

/// From `normed` through attention into the stream.
fn attention_forward<B: Backend>(
    b: &mut B,
    spec: &LayerSpec,
    w: &LayerWeights,
    s: &WorkSlots,
    cache: &KvCache,
    angles: Slot,
    batch: &Batch,
) {
    let rows = batch.rows();
    let a = &spec.attention;
    let heads = Heads { count: a.heads, width: a.head_width };
    let kv_heads = Heads { count: a.kv_heads, width: a.head_width };
    let inputs = [(&w.query, s.query, false), (&w.key, s.key, false), (&w.value, s.value, false)];
    multiply(b, s, Reach::Rows(rows), s.normed, inputs);
    if let Some([query, key]) = &w.head_norms {
        // A head is a row.
        b.norm(query, rows * a.heads, s.query, s.query);
        b.norm(key, rows * a.kv_heads, s.key, s.key);
    }
    b.rotate(rows, angles, heads, s.query);
    b.rotate(rows, angles, kv_heads, s.key);
    b.store(cache, batch, s.key, s.value);
    let attention = Attention { heads, scale: a.scale, window: a.window, softcap: a.cap, sinks: w.sinks };
    b.attend(&attention, cache, batch, s.query, s.attended);
    let post_norm = w.post_norms.as_ref().map(|[norm, _]| norm);
    into_stream(b, s, rows, s.attended, &w.output, post_norm, s.normed);
}

/// From `input` through the feed-forward block into the stream.
fn mlp_forward<B: Backend>(
    b: &mut B,
    spec: &LayerSpec,
    w: &LayerWeights,
    s: &WorkSlots,
    input: Slot,
    rows: usize,
) {
    if let (Some(experts), Some(router)) = (&spec.mlp.experts, &w.router) {
        return experts_forward(b, spec, experts, router, w, s, input, rows);
    }
    let up = gate_and_up(b, w, s, Reach::Rows(rows), input);
    b.activate(spec.mlp.activation, rows, spec.mlp.width, s.gate, up);
    let post_norm = w.post_norms.as_ref().map(|[_, norm]| norm);
    into_stream(b, s, rows, s.gate, &w.down, post_norm, input);
}

/// The first products of a feed-forward block; says where the second half is, if there is one.
fn gate_and_up<B: Backend>(
    b: &mut B,
    w: &LayerWeights,
    s: &WorkSlots,
    reach: Reach,
    input: Slot,
) -> Option<Slot> {
    match &w.gate {
        Some(gate) => {
            multiply(b, s, reach, input, [(gate, s.gate, false), (&w.up, s.up, false)]);
            Some(s.up)
        }
        None => {
            multiply(b, s, reach, input, [(&w.up, s.gate, false)]);
            None
        }
    }
}

/// The same where every row is sent to some of several blocks.
#[allow(clippy::too_many_arguments, reason = "a phase of a layer: its data, its weights, its memory")]
fn experts_forward<B: Backend>(
    b: &mut B,
    spec: &LayerSpec,
    experts: &ExpertsSpec,
    router: &Linear,
    w: &LayerWeights,
    s: &WorkSlots,
    input: Slot,
    rows: usize,
) {
    let routed = Routed { choice: experts.choice, slot: s.routing, part: None };
    let places = experts.choice.places(rows);
    multiply(b, s, Reach::Rows(rows), input, [(router, s.router, false)]);
    b.route(&routed, rows, s.router);
    let up = gate_and_up(b, w, s, Reach::Places(&routed, rows, RowPer::Token), input);
    b.activate(spec.mlp.activation, places, spec.mlp.width, s.gate, up);
    let reach = Reach::Places(&routed, rows, RowPer::Place);
    multiply(b, s, reach, s.gate, [(&w.down, s.expert, false)]);
    let width = w.down.matrix.shape.rows;
    b.combine(&routed, rows, width, s.expert, s.stream);
}
