//! One step of training: forward, loss, backward. What then becomes of the weights is the optimizer's matter.
//!
//! The decoder's weights lie as they do where it serves, quantized ones in their codes. Forward keeps the input of each
//! layer; backward runs every layer once more and then back, so that what stands in memory is one layer's activations.
//! All buffers grow in the first step that needs them and stay.

mod beside;
mod dropout;
mod flat;
pub mod gradients;
mod head;
mod layer;
mod linear;
mod low;
mod mixture;
mod noise;
pub mod outline;
pub mod parameters;
mod sites;
mod streams;

use std::cell::RefCell;
use std::collections::BTreeSet;

use bantam_core::Cpu;
use bantam_core::ops::backward::products::form;
use bantam_core::ops::crew::Pool;
use bantam_model::bare::{Bare, Held};
use bantam_model::card::{CardFault, Found, NoCard, Passage};
use bantam_model::formats::on_load::OnLoad;
use bantam_model::source::{Source, SourceError};
use bantam_model::weights::WeightsError;

use beside::Beside;
pub(crate) use beside::CardPlan;
use dropout::Dropout;
pub use flat::Flat;
use gradients::Gradients;
use head::{EndSites, Ends, Sites};
use layer::{Documents, Kept, Layer};
use linear::Products;
pub(crate) use linear::room;
use low::Lows;
use noise::Noise;
use outline::{Load, Room};
use parameters::{Parameter, Parameters, Remembered, Rule};
use sites::LayerSites;
use streams::Streams;
pub(crate) use streams::{rounded, widened};

/// Why a model cannot be trained, or a batch not be taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name every field")]
pub enum TrainError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(
        "tensor {tensor}: expected floating point to train all weights, found a quantized matrix; train an adapter \
         over it instead (finetuning_type: lora)"
    )]
    Quantized { tensor: String },
    #[error("the adapter changes {what}, which cannot be trained yet; leave these out of its targets")]
    Adapter { what: &'static str },
    #[error("expected an adapter to train beside the model, found none")]
    NoAdapter,
    #[error(
        "expected tokens, and as many labels and rows of documents, found {tokens} tokens, {labels} labels and \
         documents of {documents} tokens in all"
    )]
    Batch { tokens: usize, labels: usize, documents: usize },
    #[error(
        "the model's files were changed or cut, or the disk fails, while they are trained on; begin again"
    )]
    Files,
    #[error("{what} {found} is outside the vocabulary of {vocab}; was the data made with another tokenizer?")]
    Vocabulary { what: &'static str, found: i64, vocab: usize },
}

/// The label of a token that is to predict nothing.
pub const IGNORED: i32 = -100;

/// Tokens of some documents, one after another, without padding.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Of all documents.
    pub tokens: &'a [u32],
    /// What each token is to predict, or [`IGNORED`].
    pub labels: &'a [i32],
    /// How many tokens each document has. Documents do not see one another; positions begin anew.
    pub documents: &'a [usize],
    /// Stretches at whose beginning positions begin anew, where these are others than documents (packing without
    /// walls); empty where they are not.
    pub pieces: &'a [usize],
}

impl Batch<'_> {
    /// How many tokens are to predict something.
    pub fn labelled(&self) -> usize {
        head::labelled(self.labels).count()
    }

    fn layout(&self) -> Documents<'_> {
        let pieces = if self.pieces.is_empty() { self.documents } else { self.pieces };
        Documents { lengths: self.documents, pieces }
    }

    fn check(&self, vocab: usize) -> Result<(), TrainError> {
        let documents = self.documents.iter().sum();
        let (tokens, labels) = (self.tokens.len(), self.labels.len());
        let pieces: usize = self.layout().pieces.iter().sum();
        if documents != tokens || pieces != tokens || labels != tokens || tokens == 0 {
            return Err(TrainError::Batch { tokens, labels, documents });
        }
        let outside = |what, found: i64| TrainError::Vocabulary { what, found, vocab };
        if let Some(&token) = self.tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(outside("token", token.into()));
        }
        let is_odd =
            |label: i32| label != IGNORED && usize::try_from(label).map_or(true, |label| label >= vocab);
        match self.labels.iter().find(|&&label| is_odd(label)) {
            Some(&label) => Err(outside("label", label.into())),
            None => Ok(()),
        }
    }
}

/// A model in training.
#[derive(Debug)]
pub struct Training {
    bare: Bare,
    parameters: Parameters,
    lows: Lows,
    ends: EndSites,
    layers: Vec<LayerSites>,
    /// Layers below this have nothing that is trained.
    lowest: usize,
    dropout: Option<Dropout>,
    noise: Option<Noise>,
    /// Whether what layers see is in bfloat16, and products are where they can be.
    halves: bool,
    gradients: Gradients,
    buffers: Buffers,
    beside: Option<RefCell<Beside>>,
}

#[derive(Debug, Default)]
struct Buffers {
    streams: Streams,
    stream: Vec<f32>,
    /// A layer's input as it was kept.
    input: Vec<f32>,
    kept: Kept,
    /// Of every layer that is gone back through, where none is run once more.
    layers: Vec<Kept>,
    ends: Ends,
    row: Vec<f32>,
}

impl Training {
    /// All weights of a model, in float32.
    pub fn full(source: &Source, cpu: Cpu, threads: usize) -> Result<Training, TrainError> {
        Training::some(source, &|_| true, cpu, threads)
    }

    /// The weights of a model whose tensors have such names, in float32; the others stay as they are stored.
    pub fn some(
        source: &Source,
        is_trained: &dyn Fn(&str) -> bool,
        cpu: Cpu,
        threads: usize,
    ) -> Result<Training, TrainError> {
        let bare = Bare::load(source, Held::Floats(is_trained), cpu, threads)?;
        let made_of = (&bare.spec, &bare.plan);
        let parameters = Parameters::of_model(made_of, &source.checkpoint, is_trained)?;
        Ok(Training::new(bare, parameters, Lows::default()))
    }

    /// The adapter beside a model, whose own weights stay as they are, in whatever form, and in their files where they
    /// are bfloat16 there; those of layers that are not quantized are, by a way.
    pub fn adapter(
        source: &Source,
        quantization: Option<&'static OnLoad>,
        cpu: Cpu,
        threads: usize,
    ) -> Result<Training, TrainError> {
        let adapter = source.adapter.as_deref().ok_or(TrainError::NoAdapter)?;
        let bare = Bare::load(source, Held::Stored(quantization), cpu, threads)?;
        let mut parameters = Parameters::of_wholes((&bare.spec, &bare.plan), adapter)?;
        let lows = Lows::of_adapter(&bare.plan, adapter, &mut parameters)?;
        Ok(Training::new(bare, parameters, lows))
    }

    fn new(bare: Bare, parameters: Parameters, lows: Lows) -> Training {
        let Sites { ends, layers, lowest } =
            Sites::new(&bare.spec, &bare.plan, &bare.places, &parameters, &lows);
        let mut gradients = Gradients::new(parameters.count);
        let rare: BTreeSet<usize> = layers.iter().flat_map(|layer| layer.rare(&lows)).collect();
        gradients.watch(rare.into_iter().collect());
        let buffers = Buffers::default();
        let mut training = Training {
            bare,
            parameters,
            lows,
            ends,
            layers,
            lowest,
            dropout: None,
            noise: None,
            halves: false,
            gradients,
            buffers,
            beside: None,
        };
        training.measure();
        training
    }

    /// What is trained, in the order of the checkpoint's plan.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters.list
    }

    /// A parameter by its name.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.find(name)
    }

    /// The gradients of all parameters, each at its [`Parameter::range`].
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Whether a step may pass by some of what is trained: experts of their own that no token came to.
    pub(crate) fn may_miss(&self) -> bool {
        self.gradients.watches()
    }

    /// Whether all steps since [`clear`](Self::clear) passed by a parameter.
    pub(crate) fn is_missed(&self, parameter: usize) -> bool {
        self.gradients.is_missed(self.parameters.list[parameter].range().start)
    }

    /// Forgets all gradients.
    pub fn clear(&mut self) {
        self.gradients.clear(&self.bare.pool);
    }

    /// The length of all gradients together.
    pub fn length(&mut self) -> f64 {
        self.gradients.length(&self.bare.pool)
    }

    /// Multiplies all gradients.
    pub fn scale(&mut self, factor: f32) {
        self.gradients.scale(factor);
    }

    /// Keeps gradients in bfloat16: for steps of one batch, whose products are rounded anyway.
    pub fn shorten_gradients(&mut self) {
        self.gradients.halve();
    }

    /// Copies a parameter's numbers, in the order of its file.
    pub fn read(&self, parameter: usize, out: &mut [f32]) {
        self.parameters.read(parameter, &self.bare.arena, out);
    }

    /// Puts other numbers in a parameter's place; [`settle`](Self::settle) comes after the last of them.
    pub fn write(&mut self, parameter: usize, values: &[f32]) {
        self.parameters.write(parameter, &mut self.bare.arena, values);
    }

    /// Changes a parameter by a rule; memory has as many numbers. [`settle`](Self::settle) comes after the last.
    pub(crate) fn update<const N: usize, const M: usize>(
        &mut self,
        parameter: usize,
        memory: Remembered<'_, N, M>,
        buffer: &mut Vec<f32>,
        rule: impl Rule<N, M>,
    ) {
        let Training { bare, parameters, gradients, .. } = self;
        parameters.update(parameter, (&mut bare.arena, &bare.pool), gradients, memory, buffer, rule);
    }

    /// Makes everything that is computed from parameters follow them.
    pub fn settle(&mut self) {
        self.lows.refresh(&self.parameters);
        self.measure();
    }

    /// Gives the rows of a new DoRA the lengths that they have.
    pub fn begin_lengths(&mut self) {
        for (at, lengths) in self.lows.list.iter().filter_map(low::Low::lengths_of_rows) {
            self.parameters.write(at, &mut self.bare.arena, &lengths);
        }
        self.settle();
    }

    /// Has changes see less of their inputs, in steps alone.
    pub fn drop_inputs(&mut self, share: f32, seed: u64) {
        self.dropout = Dropout::new(share, seed);
    }

    /// Adds noise to embeddings, in steps alone: up to `alpha` over the root of how many numbers a row of a batch has.
    pub fn disturb(&mut self, alpha: f32, seed: u64) {
        self.noise = Noise::new(alpha, seed);
    }

    /// Has so large a share of every label go to all the vocabulary, in steps and where the model is measured.
    pub fn smooth_labels(&mut self, share: f32) {
        self.buffers.ends.smoothing = share;
    }

    /// Names the batch that comes, by which chance is chosen (none may have another's), and how wide its rows are, what
    /// fills them included.
    pub fn at_moment(&mut self, moment: u64, columns: usize) {
        self.dropout = self.dropout.map(|dropout| dropout.at(moment));
        self.noise = self.noise.map(|noise| noise.at(moment, columns));
    }

    /// Takes every change as it is now off its matrix: the model as it is is what training begins with (PiSSA).
    pub fn hold_changes(&mut self) {
        self.lows.hold();
        self.settle();
    }

    /// The numbers of a side of a change as it stands after [`hold_changes`](Self::hold_changes), both parts together.
    pub fn change(&self, parameter: usize) -> Option<(Vec<usize>, Vec<f32>)> {
        self.lows.held(parameter)
    }

    /// Keeps what layers see in bfloat16, and multiplies in it where the processor does.
    pub fn in_halves(&mut self) {
        self.halves = true;
        self.buffers.streams = Streams::Halves(Vec::new());
    }

    /// Keeps what every layer computes until backward has read it: nothing is computed twice.
    pub fn keep_layers(&mut self) {
        self.buffers.layers.resize_with(self.layers.len() - self.lowest, Kept::default);
    }

    /// What a card would have of steps, in so many bytes of it.
    pub(crate) fn card_plan(&self, load: &Load, budget: usize, passage: Passage) -> Option<CardPlan> {
        let sites = (&self.ends, &self.layers[..], self.lowest);
        CardPlan::new(&self.bare.spec, sites, load, budget, passage)
    }

    /// Has a card beside the processor compute what its plan says, from so many rows on as was known before, or is
    /// measured now; gives the rows, nothing where none pay: the card is let go. An error leaves the processor.
    pub(crate) fn take_card(
        &mut self,
        found: Box<dyn Found>,
        plan: CardPlan,
        passage: Passage,
        known: Option<[usize; 2]>,
    ) -> Result<Option<[usize; 2]>, NoCard> {
        let Training { bare, lows, .. } = &*self;
        let mut beside = Beside::new(found, plan, bare)?;
        match (known, passage) {
            (Some(from), _) => beside.set_from(from),
            (None, Passage::From(rows)) => beside.set_from([rows; 2]),
            (None, Passage::Always) => beside.set_from([1; 2]),
            (None, _) => {
                let form = form(bare.cpu, self.halves);
                beside.measure(&Products { bare, lows, dropout: None, form, beside: None });
            }
        }
        if let Some(fault) = beside.fault() {
            return Err(NoCard::Failed(fault.to_string()));
        }
        let from = beside.from();
        let pays = from.iter().any(|&rows| rows < usize::MAX);
        self.beside = pays.then(|| RefCell::new(beside));
        Ok(pays.then_some(from))
    }

    /// Bytes of the card that computes beside the processor.
    pub(crate) fn card_bytes(&self) -> Option<usize> {
        self.beside.as_ref().map(|beside| beside.borrow().bytes())
    }

    /// Lets a card go that failed, and says how. The processor has computed what was under way.
    pub(crate) fn lost_card(&mut self) -> Option<CardFault> {
        let fault = self.beside.as_ref()?.borrow().fault()?;
        self.beside = None;
        Some(fault)
    }

    /// Who computes.
    pub(crate) fn machine(&self) -> (Cpu, &bantam_model::pool::Threads) {
        (self.bare.cpu, &self.bare.pool)
    }

    fn measure(&mut self) {
        let Training { bare, lows, ends, layers, buffers, .. } = self;
        for layer in &*layers {
            layer.sites().for_each(|site| lows.measure(site, bare, &mut buffers.row));
            layer.forget(bare);
        }
        lows.measure(&ends.head, bare, &mut buffers.row);
        if let Some(place) = ends.head.place {
            bare.forget(place, ends.head.shape().rows);
        }
    }

    /// The sum of the losses of a batch's labels, in nats.
    pub fn loss(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        batch.check(self.bare.spec.vocab)?;
        let loss = self.forward(batch, 1.0, false);
        self.check_files()?;
        Ok(loss)
    }

    /// The same, and the gradients of `scale` times it are added up.
    pub fn step(&mut self, batch: &Batch, scale: f32) -> Result<f64, TrainError> {
        batch.check(self.bare.spec.vocab)?;
        let loss = self.forward(batch, scale, true);
        self.backward(batch);
        self.check_files()?;
        Ok(loss)
    }

    fn check_files(&self) -> Result<(), TrainError> {
        if self.bare.is_sound() { Ok(()) } else { Err(TrainError::Files) }
    }

    /// Of the labels of the last batch, in their order, which were the likeliest tokens.
    pub fn hits(&self) -> impl Iterator<Item = bool> + '_ {
        self.buffers.ends.hits()
    }

    /// Leaves the gradient of the last hidden states in the stream, if it is wanted.
    fn forward(&mut self, batch: &Batch, scale: f32, with_gradients: bool) -> f64 {
        let form = form(self.bare.cpu, self.halves);
        let Training { bare, lows, ends, layers, gradients, buffers, beside, .. } = self;
        let Buffers { streams, stream, kept, layers: all, ends: loss, .. } = buffers;
        let dropout = self.dropout.filter(|_| with_gradients);
        let products = Products { bare, lows, dropout, form, beside: beside.as_ref() };
        let size = batch.tokens.len() * bare.spec.hidden;
        let stream = room(stream, size);
        if with_gradients {
            streams.make_room((layers.len() - self.lowest) * size);
            let (tokens, labelled) = (batch.tokens.len(), batch.labelled());
            let (threads, drops) = (bare.pool.threads(), dropout.is_some());
            let load = Load { tokens, labelled, halves: self.halves, drops, threads, ..Load::default() };
            let sites = (&*ends, &layers[..], self.lowest);
            kept.scratch().make_room(&Room::of_step(bare.cpu, lows, sites, &load));
        }
        loss.embed(bare, &ends.embedding, batch.tokens, stream);
        if let Some(noise) = self.noise.filter(|_| with_gradients) {
            noise.apply(bare.spec.hidden, stream);
        }
        let documents = batch.layout();
        for (number, (spec, sites)) in bare.spec.layers.iter().zip(&*layers).enumerate() {
            streams.round(stream);
            if with_gradients && number >= self.lowest {
                streams.keep(number - self.lowest, stream);
            }
            if let Some(next) = layers.get(number + 1) {
                next.ask_for(bare, |site| products.reads(site, batch.tokens.len()));
            }
            let layer = Layer { products, spec, sites };
            match number.checked_sub(self.lowest).and_then(|number| all.get_mut(number)) {
                Some(own) if with_gradients => {
                    own.exchange(kept);
                    layer.forward(documents, stream, own);
                    own.exchange(kept);
                }
                _ => layer.forward(documents, stream, kept),
            }
            sites.forget(bare);
        }
        let gradients = with_gradients.then_some(gradients);
        loss.loss(&products, ends, batch.labels, scale, stream, gradients, kept.scratch())
    }

    fn backward(&mut self, batch: &Batch) {
        let form = form(self.bare.cpu, self.halves);
        let Training { bare, lows, ends, layers, gradients, buffers, beside, .. } = self;
        let Buffers { streams, stream, kept, layers: all, input, .. } = buffers;
        let products = Products { bare, lows, dropout: self.dropout, form, beside: beside.as_ref() };
        let size = batch.tokens.len() * bare.spec.hidden;
        let documents = batch.layout();
        let d = &mut stream[..size];
        // What a layer makes of its input once more; only what it keeps on the way is of use.
        let mut again = std::mem::take(&mut buffers.row);
        let x = room(input, size);
        for (number, (spec, sites)) in
            bare.spec.layers.iter().zip(&*layers).skip(self.lowest).enumerate().rev()
        {
            streams.read(number, x);
            if let Some(next) = number.checked_sub(1).map(|next| &layers[self.lowest + next]) {
                next.ask_for(bare, |site| products.reads(site, batch.tokens.len()));
            }
            let layer = Layer { products, spec, sites };
            match all.get_mut(number) {
                Some(own) => {
                    own.exchange(kept);
                    layer.backward(documents, x, d, gradients, own);
                    own.exchange(kept);
                }
                None => {
                    let again = room(&mut again, size);
                    again.copy_from_slice(x);
                    layer.again(documents, again, kept);
                    layer.backward(documents, x, d, gradients, kept);
                }
            }
            sites.forget(bare);
        }
        buffers.row = again;
        head::embed_backward(bare, ends.embedding.weight_to, batch.tokens, d, gradients);
    }
}
