//! A loaded model: a decoder on the processor, and on cards where any take part, with its sequences. After loading,
//! nothing here allocates.

mod error;
mod guests;

use std::ops::Range;

use bantam_core::{Batch, Cpu, CpuBackend, Feed, KvKind, Pool, Region};

use crate::adapter::Adapter;
use crate::block::Tapped;
use crate::card::{CARDS_MOST, CardFault, Cards, Found, Manner, NoCard, Passage};
use crate::checkpoint::map::{Image, Watch};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::decoder::Decoder;
use crate::memory;
use crate::placement::{Recorder, Trace};
use crate::plan::{Options, Plan, PlanError, Stored};
use crate::pool::Threads;
use crate::sequences::Sequences;
use crate::shards::kept::KeptSteps;
use crate::shards::{OnCard, Shards};
use crate::spec::ModelSpec;
use crate::turn::Limits;
use crate::weights;

pub use error::{LoadError, StepError};
use guests::Guests;
pub use guests::Seated;

/// Tokens to append to a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Which, from [`Engine::open`].
    pub sequence: usize,
    /// At least one.
    pub tokens: &'a [u32],
}

/// A model in memory, ready to run.
#[derive(Debug)]
pub struct Engine {
    /// Where the weights are a native file's. It stands before their memory, to be dropped first.
    watch: Option<Watch>,
    decoder: Decoder,
    backend: Shards,
    placed: Option<Placed>,
    manner: Manner,
    plan: Plan,
    sequences: Sequences,
    guests: Guests,
    feeds: Vec<Feed>,
    tokens: Vec<u32>,
    /// Why the last step's rows are gone.
    rows_lost: Option<CardFault>,
    recorder: Option<Recorder>,
}

/// Experts that stand on a card one by one, while tokens were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpertsMet {
    /// Rows that were sent to experts, each counted once for each of its experts.
    pub places: u64,
    /// Of these, how many found theirs on the card.
    pub on_card: u64,
    /// Experts that moved there for others, after it was filled.
    pub moved: u64,
}

/// What of a model one of several cards has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// How the card is spelled, and what it calls itself.
    pub card: [String; 2],
    /// Bytes of it that were taken.
    pub bytes: usize,
    /// Of these, weights.
    pub weight_bytes: usize,
    /// Of these, keys and values.
    pub cache_bytes: usize,
    /// The layers that it has, as far as they are on a card.
    pub layers: Range<usize>,
}

/// What of a model a card has, or several together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Card by card.
    pub each: Vec<Portion>,
    /// What did not take part that was asked to, and why.
    pub without: Vec<(String, NoCard)>,
    /// Bytes of them that were taken.
    pub bytes: usize,
    /// Of these, weights.
    pub weight_bytes: usize,
    /// Of these, keys and values.
    pub cache_bytes: usize,
    /// Of these, what weights pass through that stand elsewhere.
    pub ring_bytes: usize,
    /// Of these, what steps take that the card keeps, by its own word; as long as none are made, what is set aside.
    pub kept_bytes: usize,
    /// What was set aside for them.
    pub kept_most: usize,
    /// Steps of up to so many sequences' tokens are kept.
    pub kept_rows: usize,
    /// From how many tokens of a step on they do; nothing where they never do, or nobody has measured it.
    pub passes_from: Option<usize>,
    /// What there was no memory for on either side, so that they never do.
    pub ring_refused: usize,
    /// Whether the processor has nothing to compute.
    pub is_whole: bool,
    /// Key heads of all layers whose attention it computes, and all.
    pub attention: [usize; 2],
    /// Bytes of feed-forward blocks that it computes with, and all.
    pub blocks: [usize; 2],
    /// Why it does not keep more of the steps of replies, where it has all of the model: others are queued kernel by
    /// kernel.
    pub not_kept: Option<CardFault>,
}

impl Placed {
    fn of(plan: &Plan, on_card: &OnCard) -> Placed {
        let (weight_bytes, cache_bytes) = (on_card.weight_bytes(), on_card.cache_bytes());
        let parts = on_card.bytes();
        let ring_bytes = on_card.ring_bytes() / parts.len();
        let portion = |(&[weight_bytes, cache_bytes], layers): (&[usize; 2], &Range<usize>)| Portion {
            card: Default::default(),
            bytes: beside(plan) + weight_bytes + cache_bytes + ring_bytes + on_card.kept,
            weight_bytes,
            cache_bytes,
            layers: layers.clone(),
        };
        Placed {
            each: parts.iter().zip(&on_card.layers).map(portion).collect(),
            without: Vec::new(),
            bytes: parts.len() * beside(plan)
                + weight_bytes
                + cache_bytes
                + on_card.ring_bytes()
                + on_card.kept,
            weight_bytes,
            cache_bytes,
            ring_bytes: on_card.ring_bytes(),
            kept_bytes: on_card.kept,
            kept_most: on_card.kept,
            kept_rows: 0,
            passes_from: None,
            ring_refused: 0,
            is_whole: on_card.is_whole(),
            attention: on_card.attention,
            blocks: on_card.blocks,
            not_kept: None,
        }
    }

    /// What of a plan would stand on some card with so many bytes for it; nothing where they hold no part of the model.
    pub fn forecast(plan: &Plan, vram: usize) -> Option<Placed> {
        Placed::forecast_on(plan, &[("", vram)], Manner::default())
    }

    /// The same for several that are spelled so: as many of them as [`Engine::place_on`] takes.
    pub fn forecast_on(plan: &Plan, cards: &[(&str, usize)], manner: Manner) -> Option<Placed> {
        let (mut choice, mut labels) = (Choice::default(), Vec::new());
        for &(label, bytes) in cards {
            if !choice.is_enough() && choice.add(plan, bytes, manner) {
                labels.push(label);
            }
        }
        let mut placed = Placed::of(plan, &choice.on_card?);
        for (label, portion) in labels.into_iter().zip(&mut placed.each) {
            label.clone_into(&mut portion.card[0]);
        }
        Some(placed)
    }

    /// Bytes of this machine's own memory that cards of so many take beside the plan, at most.
    pub fn host_bytes(plan: &Plan, vram: &[usize], passage: Passage) -> usize {
        Shards::host_bytes(plan, vram, passage)
    }

    /// How its cards are spelled.
    pub fn labels(&self) -> String {
        self.each.iter().map(|portion| portion.card[0].as_str()).collect::<Vec<_>>().join(" and ")
    }

    /// Refuses bytes of a card that hold no part of a plan.
    pub fn check(plan: &Plan, card: &str, vram: usize) -> Result<(), NoCard> {
        fitting(plan, &[vram], Manner { passage: Passage::Never, ..Manner::default() })
            .map(|_| ())
            .ok_or_else(|| too_small(plan, card, vram))
    }
}

fn too_small(plan: &Plan, card: &str, vram: usize) -> NoCard {
    NoCard::TooSmall(format!(
        "{card} has {vram} bytes for it, of which activations take {} and the rest holds no part of the model; raise \
         --vram, or lower --chunk",
        beside(plan)
    ))
}

/// Bytes of a card that are no part of the model.
fn beside(plan: &Plan) -> usize {
    Shards::needs(plan, 0, 0).bytes()
}

fn fitting(plan: &Plan, vram: &[usize], manner: Manner) -> Option<OnCard> {
    let left = vram.iter().map(|bytes| bytes.checked_sub(beside(plan))).collect::<Option<Vec<_>>>()?;
    OnCard::in_manner(plan, &left, manner).filter(OnCard::is_worth_it)
}

/// Cards that a model is to stand on, as they are chosen one after another: another one costs a step the way to it, so
/// there are no more than it takes.
#[derive(Default)]
struct Choice {
    budgets: Vec<usize>,
    on_card: Option<OnCard>,
}

impl Choice {
    /// Whether no other card would compute anything.
    fn is_enough(&self) -> bool {
        self.budgets.len() == CARDS_MOST || self.on_card.as_ref().is_some_and(OnCard::has_all_layers)
    }

    /// Adds a card with so many bytes, unless no more of the model has room with it; says whether it does.
    fn add(&mut self, plan: &Plan, budget: usize, manner: Manner) -> bool {
        let budgets = [&self.budgets[..], &[budget]].concat();
        let bytes = |on_card: &OnCard| on_card.weight_bytes() + on_card.cache_bytes();
        let least = self.on_card.as_ref().map_or(0, bytes);
        let found = fitting(plan, &budgets, manner).filter(|found| bytes(found) > least);
        let is_worth_it = found.is_some();
        if is_worth_it {
            (self.budgets, self.on_card) = (budgets, found);
        }
        is_worth_it
    }
}

/// How a checkpoint's tensors are told to a plan.
pub fn stored(checkpoint: &Checkpoint) -> impl Fn(&str, &[usize]) -> Option<Stored> + '_ {
    |name, _| {
        let tensor = checkpoint.tensor(name)?;
        Some(Stored { dtype: tensor.dtype, shape: tensor.shape.to_vec() })
    }
}

impl Engine {
    /// Plans, takes the memory, and fills it from the checkpoint.
    pub fn load(
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        options: Options,
        cpu: Cpu,
        threads: usize,
    ) -> Result<Engine, LoadError> {
        Engine::load_telling(spec, checkpoint, options, cpu, threads, &mut |_| {})
    }

    /// The same, and tells how many bytes of the plan's weights are there.
    pub fn load_telling(
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        options: Options,
        cpu: Cpu,
        threads: usize,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Engine, LoadError> {
        Engine::load_adapted(spec, checkpoint, None, options, cpu, threads, tell)
    }

    /// The same with an adapter beside the model.
    pub fn load_adapted(
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        adapter: Option<&Adapter>,
        options: Options,
        cpu: Cpu,
        threads: usize,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Engine, LoadError> {
        let plan = Plan::adapted(&spec, stored(checkpoint), adapter, options, cpu)?;
        let mut engine = Engine::empty(spec, plan, None, cpu, threads)?;
        let (arena, pool) = engine.backend.host.parts_mut();
        weights::load(&engine.plan, checkpoint, adapter, arena, pool, tell)?;
        Ok(engine)
    }

    /// Takes weights that lie as the plan says, and memory for the rest.
    pub(crate) fn over(
        spec: ModelSpec,
        plan: Plan,
        weights: Image,
        cpu: Cpu,
        threads: usize,
    ) -> Result<Engine, LoadError> {
        assert_eq!(weights.map.len(), plan.weight_bytes, "the weights of this plan");
        Engine::empty(spec, plan, Some(weights), cpu, threads)
    }

    /// The same with noise in all weights, of type `dtype`: for measuring.
    pub fn synthesize(
        spec: ModelSpec,
        dtype: Dtype,
        options: Options,
        cpu: Cpu,
        threads: usize,
    ) -> Result<Engine, LoadError> {
        let plan = synthetic_plan(&spec, dtype, options, cpu)?;
        let mut engine = Engine::empty(spec, plan, None, cpu, threads)?;
        let (arena, pool) = engine.backend.host.parts_mut();
        weights::synthesize(&engine.plan, arena, pool);
        Ok(engine)
    }

    fn empty(
        spec: ModelSpec,
        plan: Plan,
        weights: Option<Image>,
        cpu: Cpu,
        threads: usize,
    ) -> Result<Engine, LoadError> {
        // Weights that are mapped from a file count too: memory that holds files is available.
        if let Some(available) = memory::available()
            && plan.bytes() as u64 > available
        {
            return Err(does_not_fit(&plan, available));
        }
        let (weights, watch) = weights.map(|Image { map, watch }| (map, watch)).unzip();
        let weights = weights.map_or_else(|| memory::region(plan.weight_bytes), Ok);
        let adapters = Some(plan.adapter_bytes).filter(|&bytes| bytes > 0).map(memory::region);
        let arena = weights
            .and_then(|weights| memory::arena(weights, plan.cache_bytes, plan.work_bytes))
            .and_then(|arena| match adapters {
                None => Ok(arena),
                Some(adapters) => Ok(arena.with_adapters(adapters?)),
            })
            .map_err(|source| system(&format!("{} bytes of memory", plan.bytes()), source))?;
        let pool = Threads::start(threads).map_err(|source| system("threads", source))?;
        let options = plan.options;
        let backend = CpuBackend::new(cpu, options.precision, pool, arena, plan.work.panels);
        Ok(Engine {
            watch,
            decoder: Decoder::new(spec, &plan),
            backend: Shards::new(backend),
            placed: None,
            manner: Manner::default(),
            sequences: Sequences::new(options.sequences, plan.pages_per_sequence, plan.pages),
            guests: Guests::new(plan.adapter_bytes, options.sequences),
            feeds: Vec::with_capacity(options.sequences),
            tokens: Vec::with_capacity(options.chunk),
            rows_lost: None,
            recorder: None,
            plan,
        })
    }

    /// What it was planned as.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.decoder.spec
    }

    /// What it sets to a turn in a sequence that [`Engine::open`] gave.
    pub fn limits(&self) -> Limits {
        Limits { context: self.plan.options.context, vocab: self.spec().vocab }
    }

    /// Bytes of the memory that was taken, with what is pinned for a card.
    pub fn memory_bytes(&self) -> usize {
        self.backend.bytes(&self.plan)
    }

    /// Whether the weights are a native file's, and nothing was repacked.
    pub fn is_mapped(&self) -> bool {
        self.watch.is_some()
    }

    /// Puts as much of the model on a card as `vram` bytes hold, or what is free there; the rest stays with the
    /// processor, and so does everything where it fails. What stood on a card before leaves it first, and open
    /// sequences go on: their keys and values move along. Rows of the last step are gone.
    pub fn place(&mut self, card: &dyn Cards, vram: Option<u64>) -> Result<&Placed, NoCard> {
        self.place_on(&[(card, vram)])
    }

    /// The same on several cards, each of which has whole layers in a row: the first of them that hold all of it, or
    /// all where none do. What one refuses, or cannot, the others do without it.
    pub fn place_on(&mut self, cards: &[(&dyn Cards, Option<u64>)]) -> Result<&Placed, NoCard> {
        self.leave_card();
        self.tokens.clear();
        let mut list: Vec<Asked> =
            cards.iter().map(|&(card, vram)| Asked { card, vram, part: 1.0 }).collect();
        let mut without = Vec::new();
        let placed = loop {
            let (at, error) = match self.place_within(&list) {
                Ok(placed) => break placed,
                Err(refused) => refused,
            };
            // Somebody else may have taken memory meanwhile.
            if matches!(error, NoCard::Memory(_)) && list[at].part == 1.0 {
                list[at].part = 0.75;
                continue;
            }
            if list.len() == 1 {
                return Err(error);
            }
            without.push((list.remove(at).card.label(), error));
        };
        if self.recorder.is_some() {
            self.backend.route_here();
        }
        let without = [without, placed.without].concat();
        Ok(self.placed.insert(Placed { without, ..placed }))
    }

    /// Finds cards until there are enough; where one is refused that would have had a part, says which.
    fn place_within(&mut self, list: &[Asked]) -> Result<Placed, (usize, NoCard)> {
        let (mut choice, mut taken, mut without) = (Choice::default(), Vec::new(), Vec::new());
        for (at, asked) in list.iter().enumerate() {
            if choice.is_enough() {
                break;
            }
            let (found, budget) = asked.find().map_err(|error| (at, error))?;
            match choice.add(&self.plan, budget, self.manner) {
                true => taken.push((at, found)),
                false => without.push((at, too_small(&self.plan, &found.name(), budget))),
            }
        }
        let Some(on_card) = choice.on_card else { return Err(without.remove(0)) };
        let mut placed = Placed::of(&self.plan, &on_card);
        for ((at, found), portion) in taken.iter().zip(&mut placed.each) {
            portion.card = [list[*at].card.label(), found.name()];
        }
        placed.without = without.into_iter().map(|(at, error)| (list[at].card.label(), error)).collect();
        let (numbers, found): (Vec<usize>, Vec<Box<dyn Found>>) = taken.into_iter().unzip();
        let number = |(at, error): (usize, NoCard)| (numbers[at], error);
        self.take(found, on_card, placed).map_err(number)
    }

    fn take(
        &mut self,
        found: Vec<Box<dyn Found>>,
        on_card: OnCard,
        placed: Placed,
    ) -> Result<Placed, (usize, NoCard)> {
        self.decoder.choose(None);
        let pages = self.sequences.pages();
        let last = found.len() - 1;
        let ring_refused = self.backend.take(&self.plan, found, on_card, self.manner.passage, &pages)?;
        let tables = self.sequences.tables();
        let kept = match self.manner.keeps {
            true => self.backend.keep_steps(&self.decoder, &self.plan.options, tables),
            false => KeptSteps::default(),
        };
        let mut not_kept = kept.without;
        // Where it keeps nothing because it is lost, nobody need wait for a step to hear of it.
        if not_kept.is_some()
            && let Some(fault) = self.backend.lost()
        {
            self.sequences.lose();
            return Err((last, NoCard::Failed(fault.to_string())));
        }
        if placed.is_whole && last > 0 {
            not_kept = Some(CardFault { what: "a graph", code: "over several cards" });
        }
        let (ring_bytes, passes_from) = self.backend.ring().unzip();
        let mut each = placed.each;
        if ring_bytes.is_none() {
            let ring = placed.ring_bytes / each.len();
            each.iter_mut().for_each(|portion| portion.bytes -= ring);
        }
        let kept_bytes = self.backend.kept_bytes();
        // One card keeps them or none.
        each[0].bytes = each[0].bytes - placed.kept_bytes + kept_bytes;
        Ok(Placed {
            each,
            kept_bytes,
            kept_rows: kept.rows,
            bytes: self.backend.card_bytes(),
            ring_bytes: ring_bytes.unwrap_or(0),
            passes_from,
            ring_refused,
            not_kept,
            ..placed
        })
    }

    /// When weights that do not stand on a card pass through it, from the next placement on.
    pub fn set_passage(&mut self, passage: Passage) {
        self.manner.passage = passage;
    }

    /// How it is put on a card, from the next placement on.
    pub fn set_manner(&mut self, manner: Manner) {
        self.manner = manner;
    }

    /// Takes back what stands on a card, and its memory: the processor goes on with everything. Where the card was lost
    /// meanwhile, open sequences are to be read again. Rows of the last step are gone.
    pub fn leave_card(&mut self) {
        if self.placed.take().is_none() {
            return;
        }
        self.tokens.clear();
        if self.backend.leave(&self.plan.caches, &self.sequences.pages()).is_err() {
            self.sequences.lose();
        }
    }

    /// What a card has of the model; nothing once that is lost.
    pub fn placed(&self) -> Option<&Placed> {
        self.placed.as_ref()
    }

    /// How often experts were met on the card; nothing where none stand there one by one.
    pub fn experts_met(&self) -> Option<ExpertsMet> {
        self.backend.experts_met()
    }

    /// The weights as they lie in memory, as the plan says.
    pub(crate) fn weights(&self) -> &[u8] {
        &self.backend.host.arena().weights[..self.plan.weight_bytes]
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.backend.host.pool().threads()
    }

    /// Begins a sequence with room for the whole context; `None` when all are in use, or too few pages of the cache
    /// are free.
    pub fn open(&mut self) -> Option<usize> {
        self.open_for(self.plan.options.context)
    }

    /// The same with room for so many positions: it takes no more of the cache than these, up to whole pages.
    pub fn open_for(&mut self, positions: usize) -> Option<usize> {
        if positions > self.plan.options.context { None } else { self.sequences.open(positions) }
    }

    /// Ends a sequence. Its part of the cache is free again.
    pub fn close(&mut self, sequence: usize) {
        self.guests.close(sequence, &mut self.decoder);
        self.sequences.close(sequence);
    }

    /// Lets a sequence rest, which keeps what it holds and gives back what was reserved beyond. It is there until it is
    /// closed.
    pub fn rest(&mut self, sequence: usize) {
        // Whoever goes on there attaches its adapter again.
        self.guests.close(sequence, &mut self.decoder);
        self.sequences.rest(sequence);
    }

    /// Goes on with a resting sequence of which `length` tokens are wanted, with room for so many positions. Says how
    /// many it holds then, which may be fewer; `None`, and nothing has changed, where too few pages of the cache are
    /// free.
    pub fn resume(&mut self, sequence: usize, length: usize, positions: usize) -> Option<usize> {
        if positions > self.plan.options.context {
            None
        } else {
            self.sequences.resume(sequence, length, positions)
        }
    }

    /// [`Engine::open_for`] with up to `length` tokens of another sequence, in whole pages that both have from then on.
    /// With none of them where a sequence may have to be read again with other rotary tables.
    pub fn branch(&mut self, source: usize, length: usize, positions: usize) -> Option<usize> {
        match positions <= self.plan.options.context && self.borders().next().is_none() {
            true => self.sequences.branch(source, length, positions),
            false => self.open_for(positions),
        }
    }

    /// Positions in pages that no sequence has. Only whole pages are given out, of 64 positions each.
    pub fn free_positions(&self) -> usize {
        self.sequences.free_positions()
    }

    /// Positions in pages that only resting sequences have.
    pub fn resting_positions(&self) -> usize {
        self.sequences.resting_positions()
    }

    /// Tokens of a sequence so far.
    pub fn length(&self, sequence: usize) -> usize {
        self.sequences.length(sequence)
    }

    /// Forgets all tokens of an open sequence from `length` on.
    pub fn rewind(&mut self, sequence: usize, length: usize) {
        self.sequences.rewind(sequence, length);
    }

    /// Whether a sequence is to be read again from its start before it becomes `length` tokens long: where longer
    /// sequences have rotary tables of their own, what was stored for a shorter one does not fit.
    ///
    /// It concerns one sequence, whatever stands beside it in a step: others go on as they are. Who steps many asks
    /// before each token that is appended to a reply, and where it is so, rewinds that sequence to 0, announces its
    /// length ([`Engine::announce`]) and appends its history again in chunks, which may stand in steps with others.
    /// Of a prompt in several chunks the length is announced before the first: then no chunk needs it. A step that
    /// would pass a border without is refused ([`StepError::MustRestart`]).
    pub fn must_restart(&self, sequence: usize, length: usize) -> bool {
        self.sequences.is_across(sequence, length, self.borders())
    }

    /// Lengths beyond which a sequence has other rotary tables.
    fn borders(&self) -> impl Iterator<Item = usize> {
        let longer = self.decoder.spec.ropes.iter().filter_map(|rope| rope.longer.as_ref());
        longer.map(|(positions, _)| *positions)
    }

    /// Tells how long a sequence will be when all is read that is about to be read, in however many steps: its
    /// rotary tables are chosen by that. Refused where the sequence must restart for it.
    pub fn announce(&mut self, sequence: usize, length: usize) -> Result<(), StepError> {
        self.check_tables(sequence, length)?;
        self.sequences.announce(sequence, length)
    }

    fn check_tables(&self, sequence: usize, length: usize) -> Result<(), StepError> {
        match self.must_restart(sequence, self.sequences.reach(sequence, length)) {
            true => Err(StepError::MustRestart(sequence)),
            false => Ok(()),
        }
    }

    /// Appends tokens to sequences: one step over all of them together. Row `i` of the step is the `i`-th token, in
    /// the order of the chunks.
    pub fn step(&mut self, chunks: &[Chunk]) -> Result<(), StepError> {
        self.step_unless(chunks, &|| false).map(|_| ())
    }

    /// The same, but stops at the next layer when `is_stopped` says so: it was `false` then, and the sequences are as
    /// they were.
    pub fn step_unless(
        &mut self,
        chunks: &[Chunk],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, StepError> {
        self.admit(chunks)?;
        let set = self.guests.place(chunks)?;
        self.decoder.choose(set);
        self.feeds.clear();
        self.tokens.clear();
        self.rows_lost = None;
        for chunk in chunks {
            let length = self.length(chunk.sequence);
            let (first_row, rows) = (self.tokens.len(), chunk.tokens.len());
            let (end, sequence) = (length + rows, chunk.sequence);
            let reach = self.sequences.reach(sequence, end);
            self.feeds.push(Feed { first_row, rows, first_position: length, sequence, length: reach });
            self.tokens.extend_from_slice(chunk.tokens);
            self.sequences.set_length(sequence, end);
        }
        if self.tokens.is_empty() {
            return Ok(true);
        }
        let pages_per_sequence = self.plan.pages_per_sequence;
        let batch = Batch { feeds: &self.feeds, tables: self.sequences.tables(), pages_per_sequence };
        let (decoder, backend, tokens) = (&self.decoder, &mut self.backend, &self.tokens);
        let is_done = match &mut self.recorder {
            None => backend.forward(decoder, &batch, tokens, is_stopped),
            Some(recorder) => {
                let mut tapped = Tapped::at_routing(backend, recorder);
                let is_done = decoder.forward(&mut tapped, &batch, tokens, is_stopped);
                recorder.end(is_done);
                is_done
            }
        };
        if is_done {
            self.backend.end_step();
        }
        let sound = self.check();
        if !is_done || sound.is_err() {
            let feeds = self.feeds.iter();
            feeds.for_each(|feed| self.sequences.set_length(feed.sequence, feed.first_position));
        }
        sound.map(|()| is_done)
    }

    /// Fails once the weights are no longer those that were loaded: after that, nothing that is computed counts. Or
    /// when the card has failed: then open sequences must be read again, and the processor goes on.
    fn check(&mut self) -> Result<(), StepError> {
        if self.watch.as_ref().is_some_and(Watch::has_failed) {
            return Err(StepError::Fault);
        }
        if let Some(fault) = self.backend.lost() {
            self.placed = None;
            self.sequences.lose();
            self.rows_lost = Some(fault);
        }
        self.rows_lost.map_or(Ok(()), |fault| Err(StepError::Card(fault)))
    }

    fn admit(&self, chunks: &[Chunk]) -> Result<(), StepError> {
        let options = &self.plan.options;
        let asked = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        if asked > options.chunk {
            return Err(StepError::TooManyTokens { asked, most: options.chunk });
        }
        self.sequences.admit(chunks)?;
        let vocab = self.spec().vocab;
        for chunk in chunks {
            if let Some(&token) = chunk.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(StepError::UnknownToken { token, vocab });
            }
            self.check_tables(chunk.sequence, self.length(chunk.sequence) + chunk.tokens.len())?;
        }
        Ok(())
    }

    /// Appends any number of tokens to one sequence, chunk by chunk; `each` sees the engine after every chunk, with
    /// the chunk's first position and its size.
    pub fn prefill<E: From<StepError>>(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        mut each: impl FnMut(&mut Engine, usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.announce(sequence, self.length(sequence) + tokens.len())?;
        for tokens in tokens.chunks(self.plan.options.chunk) {
            let first = self.length(sequence);
            self.step(&[Chunk { sequence, tokens }])?;
            each(self, first, tokens.len())?;
            // Logits are computed from weights too.
            self.check()?;
        }
        Ok(())
    }

    /// The same without looking at chunks, but ended by `is_stopped` as a step is: then it is `false`, and the sequence
    /// holds the chunks that were done.
    pub fn prefill_unless(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, StepError> {
        self.announce(sequence, self.length(sequence) + tokens.len())?;
        for tokens in tokens.chunks(self.plan.options.chunk) {
            if !self.step_unless(&[Chunk { sequence, tokens }], is_stopped)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Logits of some rows of the last step, one after another; at most [`Options::logits_rows`] of them. They are the
    /// caller's to overwrite: the next call computes them anew. Zeros where a card has failed meanwhile.
    pub fn logits(&mut self, rows: &[usize]) -> &mut [f32] {
        self.check_rows(rows);
        let slot = self.backend.logits(&self.decoder, rows);
        self.backend.bring(slot);
        self.backend.host.arena_mut().floats_mut(slot)
    }

    /// The same, refused where they are none.
    pub fn try_logits(&mut self, rows: &[usize]) -> Result<&mut [f32], StepError> {
        self.rows_lost.map_or(Ok(()), |fault| Err(StepError::Card(fault)))?;
        self.check_rows(rows);
        let slot = self.backend.logits(&self.decoder, rows);
        self.backend.bring(slot);
        self.check()?;
        Ok(self.backend.host.arena_mut().floats_mut(slot))
    }

    /// Hidden states of some rows of the last step, after the final norm, one after another; as many as logits. Logits
    /// take their memory.
    pub fn hidden(&mut self, rows: &[usize]) -> &[f32] {
        self.check_rows(rows);
        let slot = self.decoder.hidden(&mut self.backend, rows);
        self.backend.bring(slot);
        self.backend.host.arena().floats(slot)
    }

    /// The same, refused where they are none.
    pub fn try_hidden(&mut self, rows: &[usize]) -> Result<&[f32], StepError> {
        self.rows_lost.map_or(Ok(()), |fault| Err(StepError::Card(fault)))?;
        self.check_rows(rows);
        let slot = self.decoder.hidden(&mut self.backend, rows);
        self.backend.bring(slot);
        self.check()?;
        Ok(self.backend.host.arena().floats(slot))
    }

    fn check_rows(&self, rows: &[usize]) {
        assert!(rows.len() <= self.plan.options.logits_rows, "more rows of logits than were planned");
        assert!(rows.iter().all(|&row| row < self.tokens.len()), "a row that the last step did not have");
    }

    /// Notes from now on which experts are chosen for every token, which takes memory as it goes; `false` where the
    /// model has none, or not as many in all layers.
    pub fn record_routing(&mut self) -> bool {
        self.recorder = Recorder::of(self.spec());
        self.backend.route_here();
        self.recorder.is_some()
    }

    /// What was noted.
    pub fn routing(&self) -> Option<&Trace> {
        self.recorder.as_ref().map(|recorder| &recorder.trace)
    }

    /// Fills memory with bytes that are NaN in every type of float: tests find reads of what nobody has written.
    #[doc(hidden)]
    pub fn poison(&mut self, region: Region) {
        let arena = self.backend.host.arena_mut();
        match region {
            Region::Weights => arena.weights.fill(0xff),
            Region::Cache => arena.cache.fill(0xff),
            Region::Work => arena.work.fill(0xff),
            Region::Adapters => arena.adapters.iter_mut().for_each(|bytes| bytes.fill(0xff)),
        }
    }

    /// Rows of the last step.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}

/// A card that a model is to stand on, with what it may take of it.
struct Asked<'a> {
    card: &'a dyn Cards,
    vram: Option<u64>,
    /// Less than all where all was refused.
    part: f64,
}

impl Asked<'_> {
    fn find(&self) -> Result<(Box<dyn Found>, usize), NoCard> {
        let found = self.card.find()?;
        let free = found.free_bytes()?;
        // A card's own bookkeeping needs some of what it calls free.
        let wanted = self.vram.map_or(free - free / 16, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let budget = (wanted.min(free) as f64 * self.part) as usize;
        Ok((found, budget))
    }
}

/// The plan of a model with all tensors of one type.
pub fn synthetic_plan(spec: &ModelSpec, dtype: Dtype, options: Options, cpu: Cpu) -> Result<Plan, PlanError> {
    Plan::new(spec, |_, shape| Some(Stored { dtype, shape: shape.to_vec() }), options, cpu)
}

fn system(what: &str, source: std::io::Error) -> LoadError {
    LoadError::System { what: what.to_owned(), source }
}

fn does_not_fit(plan: &Plan, available: u64) -> LoadError {
    let (line, bytes) = plan.largest().map_or(("", 0), |line| (line.name.as_str(), line.bytes));
    let advice = match line {
        "keys and values" if plan.options.kv == KvKind::Int8 => "a shorter --context",
        "keys and values" => "a shorter --context, or --kv int8",
        "adapters" => "less room for adapters (models.adapter_bytes)",
        _ if plan.options.quantization.is_some() => "close other programs, or take a smaller model",
        _ => "close other programs, or take a smaller model or --quantization int8",
    };
    LoadError::DoesNotFit { needed: plan.bytes(), available, line: line.to_owned(), bytes, advice }
}
