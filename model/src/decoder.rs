//! A decoder, forward: plain functions over a [`Backend`], reading a [`ModelSpec`].
//!
//! A layer is phases with one point between them where partial results of several shards will be added; a single
//! shard adds nothing. Each phase leaves its result in the residual stream.

use bantam_core::{Attention, Backend, Batch, Heads, KvCache, Norm, Product, Routed, RowPer, Slot};

use crate::plan::{LayerWeights, Linear, Plan, Weights, WorkSlots};
use crate::spec::{ExpertsSpec, LayerSpec, ModelSpec, Residual};

/// A model's weights and buffers, without the device that they are on.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// What it is.
    pub spec: ModelSpec,
    weights: Weights,
    caches: Vec<KvCache>,
    slots: WorkSlots,
}

impl Decoder {
    /// The decoder that a plan is for.
    pub fn new(spec: ModelSpec, plan: &Plan) -> Self {
        Decoder { spec, weights: plan.weights.clone(), caches: plan.caches.clone(), slots: plan.work }
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
        let s = &self.slots;
        b.embed(&self.weights.embedding, tokens, self.spec.embedding_scale, s.stream);
        let mut turned_by = None;
        for ((spec, weights), cache) in self.spec.layers.iter().zip(&self.weights.layers).zip(&self.caches) {
            if is_stopped() {
                return false;
            }
            let rope = spec.attention.rope;
            if turned_by != Some(rope) {
                b.angles(&self.weights.ropes[rope], batch, s.angles);
                turned_by = Some(rope);
            }
            let angles = Slot { bytes: batch.rows() * self.spec.ropes[rope].width * 4, ..s.angles };
            layer_forward(b, spec, weights, s, cache, angles, batch);
        }
        true
    }

    /// Runs the rows that stand in the stream through one layer: the stream then holds its result.
    pub fn forward_layer<B: Backend>(&self, b: &mut B, layer: usize, batch: &Batch) {
        let (s, spec) = (&self.slots, &self.spec.layers[layer]);
        let rope = spec.attention.rope;
        b.angles(&self.weights.ropes[rope], batch, s.angles);
        let angles = Slot { bytes: batch.rows() * self.spec.ropes[rope].width * 4, ..s.angles };
        layer_forward(b, spec, &self.weights.layers[layer], s, &self.caches[layer], angles, batch);
    }

    /// Where hidden states stand between layers.
    pub fn stream(&self) -> Slot {
        self.slots.stream
    }

    /// Hidden states of some rows of the last [`forward`](Self::forward), after the final norm.
    pub fn hidden<B: Backend>(&self, b: &mut B, rows: &[usize]) -> Slot {
        let s = &self.slots;
        b.gather(rows, self.spec.hidden, s.stream, s.chosen);
        b.norm(&self.weights.final_norm, rows.len(), s.chosen, s.chosen_normed);
        s.chosen_normed.first(rows.len() * self.spec.hidden)
    }

    /// Logits of some rows of the last [`forward`](Self::forward).
    pub fn logits<B: Backend>(&self, b: &mut B, rows: &[usize]) -> Slot {
        let s = &self.slots;
        self.hidden(b, rows);
        let head = Product { matrix: self.weights.head, bias: None, out: s.logits, add: false };
        b.matmul(rows.len(), s.chosen_normed, &[head]);
        if let Some(limit) = self.spec.logits_cap {
            b.cap(limit, rows.len(), self.spec.vocab, s.logits);
        }
        s.logits.first(rows.len() * self.spec.vocab)
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

fn product(linear: &Linear, out: Slot, add: bool) -> Product {
    Product { matrix: linear.matrix, bias: linear.bias, out, add }
}

/// A block's last product, into the stream; where a norm comes between, by way of `scratch`.
fn into_stream<B: Backend>(
    b: &mut B,
    rows: usize,
    x: Slot,
    last: &Linear,
    post_norm: Option<&Norm>,
    scratch: Slot,
    stream: Slot,
) {
    match post_norm {
        None => b.matmul(rows, x, &[product(last, stream, true)]),
        Some(norm) => {
            b.matmul(rows, x, &[product(last, scratch, false)]);
            b.norm(norm, rows, scratch, scratch);
            b.add(rows, norm.width, scratch, stream);
        }
    }
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
    let inputs =
        [product(&w.query, s.query, false), product(&w.key, s.key, false), product(&w.value, s.value, false)];
    b.matmul(rows, s.normed, &inputs);
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
    into_stream(b, rows, s.attended, &w.output, post_norm, s.normed, s.stream);
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
    let up = match &w.gate {
        Some(gate) => {
            b.matmul(rows, input, &[product(gate, s.gate, false), product(&w.up, s.up, false)]);
            Some(s.up)
        }
        None => {
            b.matmul(rows, input, &[product(&w.up, s.gate, false)]);
            None
        }
    };
    b.activate(spec.mlp.activation, rows, spec.mlp.width, s.gate, up);
    let post_norm = w.post_norms.as_ref().map(|[_, norm]| norm);
    into_stream(b, rows, s.gate, &w.down, post_norm, input, s.stream);
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
    let routed = Routed { choice: experts.choice, slot: s.routing };
    let places = experts.choice.places(rows);
    b.matmul(rows, input, &[product(router, s.router, false)]);
    b.route(&routed, rows, s.router);
    let up = match &w.gate {
        Some(gate) => {
            let inputs = [product(gate, s.gate, false), product(&w.up, s.up, false)];
            b.matmul_experts(&routed, rows, RowPer::Token, input, &inputs);
            Some(s.up)
        }
        None => {
            b.matmul_experts(&routed, rows, RowPer::Token, input, &[product(&w.up, s.gate, false)]);
            None
        }
    };
    b.activate(spec.mlp.activation, places, spec.mlp.width, s.gate, up);
    b.matmul_experts(&routed, rows, RowPer::Place, s.gate, &[product(&w.down, s.expert, false)]);
    let width = w.down.matrix.shape.rows;
    b.combine(&routed, rows, width, s.expert, s.stream);
}
