//! One generation: a prompt goes in, tokens and text come out one by one, until something ends it.

use std::sync::Arc;

use crate::detokenizer::{ByteTable, Detokenizer};
use crate::engine::{Chunk, Engine, StepError};
use crate::generation::GenerationSettings;
use crate::sampler::{Sampler, SamplerError};
use crate::stop::{StopError, StopStrings};

/// Why a generation cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model refused a step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// No token could be chosen.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Stop strings.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Nothing to continue.
    #[error(
        "the prompt has no tokens; give at least one (a model without a begin-of-text token needs some text)"
    )]
    EmptyPrompt,
    /// All sequences are in use.
    #[error("all {0} sequences are in use")]
    NoSequence(usize),
    /// Somebody asked for an end while the prompt was read.
    #[error("stopped while the prompt was read")]
    Stopped,
}

/// A sequence that outlives its generations, with the tokens that it holds: what a conversation keeps from turn to
/// turn, so that only what is new is read.
#[derive(Debug)]
pub struct Held {
    sequence: usize,
    tokens: Vec<u32>,
}

impl Held {
    /// Opens a sequence that holds nothing.
    pub fn open(engine: &mut Engine) -> Result<Self, GenerateError> {
        let options = engine.plan().options;
        let sequence = engine.open().ok_or(GenerateError::NoSequence(options.sequences))?;
        Ok(Held { sequence, tokens: Vec::with_capacity(options.context) })
    }

    /// Tokens that need not be read again where a prompt begins with them.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Gives the sequence back.
    pub fn close(self, engine: &mut Engine) {
        engine.close(self.sequence);
    }

    /// Makes the sequence hold the prompt: forgets what differs, reads the rest. At least one token is read, because
    /// its logits are needed. Says how many were there already.
    fn read(
        &mut self,
        engine: &mut Engine,
        prompt: &[u32],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<usize, GenerateError> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let same = same.min(prompt.len() - 1);
        engine.rewind(self.sequence, same);
        let read = engine.prefill(self.sequence, &prompt[same..], |_, _, _| match is_stopped() {
            true => Err(GenerateError::Stopped),
            false => Ok(()),
        });
        self.tokens.clear();
        self.tokens.extend_from_slice(&prompt[..engine.length(self.sequence)]);
        read.map(|()| same)
    }
}

/// What ended a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-text token or a stop string.
    Stop,
    /// The number of new tokens, or the end of the context.
    Length,
}

impl Finish {
    /// As clients know it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// One generated token and the text that it made certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// Its id.
    pub id: u32,
    /// May be empty, and may hold more than this token's own text.
    pub text: &'a str,
    /// Set on the last token.
    pub finish: Option<Finish>,
}

/// A generation under way. Allocates nothing once it has begun.
#[derive(Debug)]
pub struct Generation {
    sequence: usize,
    sampler: Sampler,
    text: Option<Text>,
    settings: GenerationSettings,
    /// Prompt and generated tokens.
    history: Vec<u32>,
    prompt_tokens: usize,
    reused_tokens: usize,
    tokens_max: usize,
    logits: Vec<f32>,
    finish: Option<Finish>,
}

#[derive(Debug)]
struct Text {
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// What the last token made certain.
    piece: String,
}

impl Generation {
    /// Reads the prompt. `table` is absent where there is no tokenizer: then there is no text, and no stop strings.
    pub fn begin(
        engine: &mut Engine,
        table: Option<Arc<ByteTable>>,
        settings: GenerationSettings,
        prompt: &[u32],
    ) -> Result<Self, GenerateError> {
        let sequences = engine.plan().options.sequences;
        let sequence = engine.open().ok_or(GenerateError::NoSequence(sequences))?;
        let mut held = Held { sequence, tokens: Vec::new() };
        let begun = Generation::begin_in(engine, &mut held, table, settings, prompt, &|| false);
        if begun.is_err() {
            held.close(engine);
        }
        begun
    }

    /// The same in a sequence that may hold a part of the prompt. `is_stopped` is asked after every chunk. At the
    /// end, [`Generation::leave`] gives the sequence back to `held`.
    pub fn begin_in(
        engine: &mut Engine,
        held: &mut Held,
        table: Option<Arc<ByteTable>>,
        settings: GenerationSettings,
        prompt: &[u32],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Self, GenerateError> {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let options = engine.plan().options;
        let vocab = engine.spec().vocab;
        let mut sampler = Sampler::new(settings.sampling.clone(), vocab)?;
        sampler.begin(prompt.len());
        let text = match table {
            None => None,
            Some(table) => {
                let stops = StopStrings::new(&settings.stop)?;
                // The last token may release what both stages held back.
                let piece =
                    String::with_capacity(2 * table.piece_bytes_max() + 2 * crate::stop::STRING_BYTES_MAX);
                Some(Text { detokenizer: Detokenizer::new(table, true), stops, piece })
            }
        };
        let mut history = Vec::with_capacity(options.context + 1);
        let reused_tokens = held.read(engine, prompt, is_stopped)?;
        history.extend_from_slice(prompt);
        // The context bounds what can be stored; the last token needs no place of its own.
        let room = options.context - prompt.len() + 1;
        let tokens_max = settings.new_tokens(prompt.len()).min(room);
        let mut logits = vec![0.0; vocab];
        logits.copy_from_slice(engine.logits(&[engine.rows() - 1]));
        Ok(Generation {
            sequence: held.sequence,
            sampler,
            text,
            settings,
            history,
            prompt_tokens: prompt.len(),
            reused_tokens,
            tokens_max,
            logits,
            finish: None,
        })
    }

    /// Tokens of the prompt that were there already.
    pub fn reused_tokens(&self) -> usize {
        self.reused_tokens
    }

    /// Tokens generated so far.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.prompt_tokens..]
    }

    /// Generates one token; `None` after the last. The engine must be the one that the generation began with.
    pub fn next<'a>(&'a mut self, engine: &mut Engine) -> Result<Option<Token<'a>>, GenerateError> {
        if self.finish.is_some() || self.tokens_max == 0 {
            return Ok(None);
        }
        let last = self.history[self.history.len() - 1];
        if self.history.len() > self.prompt_tokens {
            engine.step(&[Chunk { sequence: self.sequence, tokens: &[last] }])?;
            self.logits.copy_from_slice(engine.logits(&[0]));
        }
        let id = self.sampler.sample(&mut self.logits, &self.history)?;
        self.history.push(id);
        if self.settings.eos.contains(&id) {
            self.finish = Some(Finish::Stop);
        } else if self.ids().len() >= self.tokens_max {
            self.finish = Some(Finish::Length);
        }
        if let Some(text) = &mut self.text
            && text.push(id, self.finish.is_some())
        {
            self.finish = Some(Finish::Stop);
        }
        let text = self.text.as_ref().map_or("", |text| text.piece.as_str());
        Ok(Some(Token { id, text, finish: self.finish }))
    }

    /// Ends it, and lets `held` know what the sequence holds now.
    pub fn leave(self, engine: &Engine, held: &mut Held) {
        held.tokens.clear();
        held.tokens.extend_from_slice(&self.history[..engine.length(self.sequence)]);
    }

    /// Gives the sequence back.
    pub fn end(self, engine: &mut Engine) {
        engine.close(self.sequence);
    }
}

impl Text {
    /// Takes a token, and where it is the last one, lets go of what was held back. Says whether a stop string came.
    fn push(&mut self, id: u32, last: bool) -> bool {
        self.piece.clear();
        let outcome = self.stops.push(self.detokenizer.push(id));
        self.piece.push_str(outcome.text);
        let mut stopped = outcome.stopped;
        if last && !stopped {
            let outcome = self.stops.push(self.detokenizer.finish());
            self.piece.push_str(outcome.text);
            stopped = outcome.stopped;
            if !stopped {
                let outcome = self.stops.finish();
                self.piece.push_str(outcome.text);
                stopped = outcome.stopped;
            }
        }
        stopped
    }
}
