//! One generation: a prompt goes in, tokens and text come out one by one, until something ends it.

use crate::engine::{Chunk, Engine, StepError};
use crate::generation::GenerationSettings;
use crate::likelihood::ALTERNATIVES_MAX;
use crate::reply::reader::Reader;
use crate::sampler::SamplerError;
use crate::stop::StopError;
pub use crate::turn::{Finish, Limits, Token, Turn};

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
    /// All sequences are in use, or the cache is.
    #[error("all {0} sequences are in use, or too little of the cache is free; end one")]
    NoSequence(usize),
    /// More alternatives to a token than are kept.
    #[error("expected at most {ALTERNATIVES_MAX} alternatives to a token, found {asked}; ask for fewer")]
    Alternatives {
        /// Asked for.
        asked: usize,
    },
    /// A turn that has ended was asked for another token.
    #[error("the reply is over, there is no token after its last one; begin another")]
    Over,
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
        let same = match engine.must_restart(self.sequence, prompt.len()) {
            true => 0,
            false => same.min(prompt.len() - 1),
        };
        engine.rewind(self.sequence, same);
        let read = engine.prefill_unless(self.sequence, &prompt[same..], is_stopped);
        self.tokens.clear();
        self.tokens.extend_from_slice(&prompt[..engine.length(self.sequence)]);
        match read? {
            true => Ok(same),
            false => Err(GenerateError::Stopped),
        }
    }
}

/// A generation under way: a turn and the sequence that it is read into. Allocates nothing once it has begun.
#[derive(Debug)]
pub struct Generation {
    turn: Turn,
    sequence: usize,
    reused_tokens: usize,
    logits: Vec<f32>,
}

impl Generation {
    /// Reads the prompt. `reader` is absent where there is no tokenizer: then there is no text, and no stop strings.
    pub fn begin(
        engine: &mut Engine,
        reader: Option<Reader>,
        settings: GenerationSettings,
        prompt: &[u32],
    ) -> Result<Self, GenerateError> {
        let sequences = engine.plan().options.sequences;
        let sequence = engine.open().ok_or(GenerateError::NoSequence(sequences))?;
        let mut held = Held { sequence, tokens: Vec::new() };
        let begun = Generation::begin_in(engine, &mut held, reader, settings, prompt, &|| false);
        if begun.is_err() {
            held.close(engine);
        }
        begun
    }

    /// The same in a sequence that may hold a part of the prompt. `is_stopped` is asked before every layer. At the
    /// end, [`Generation::leave`] gives the sequence back to `held`.
    pub fn begin_in(
        engine: &mut Engine,
        held: &mut Held,
        reader: Option<Reader>,
        settings: GenerationSettings,
        prompt: &[u32],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Self, GenerateError> {
        let turn = Turn::new(engine.limits(), reader, settings, prompt, None)?;
        let reused_tokens = held.read(engine, prompt, is_stopped)?;
        let mut logits = vec![0.0; engine.spec().vocab];
        logits.copy_from_slice(engine.try_logits(&[engine.rows() - 1])?);
        Ok(Generation { turn, sequence: held.sequence, reused_tokens, logits })
    }

    /// Tokens of the prompt that were there already.
    pub fn reused_tokens(&self) -> usize {
        self.reused_tokens
    }

    /// Tokens generated so far.
    pub fn ids(&self) -> &[u32] {
        self.turn.ids()
    }

    /// Generates one token; `None` after the last. The engine must be the one that the generation began with.
    pub fn next<'a>(&'a mut self, engine: &mut Engine) -> Result<Option<Token<'a>>, GenerateError> {
        if self.turn.is_over() {
            return Ok(None);
        }
        if !self.turn.ids().is_empty() {
            self.step(engine)?;
        }
        self.turn.choose(&mut self.logits).map(Some)
    }

    /// Logits after the last token.
    fn step(&mut self, engine: &mut Engine) -> Result<(), StepError> {
        let (sequence, history) = (self.sequence, self.turn.history());
        if engine.must_restart(sequence, history.len()) {
            engine.rewind(sequence, 0);
            engine.prefill::<StepError>(sequence, history, |_, _, _| Ok(()))?;
        } else {
            engine.step(&[Chunk { sequence, tokens: &history[history.len() - 1..] }])?;
        }
        self.logits.copy_from_slice(engine.try_logits(&[engine.rows() - 1])?);
        Ok(())
    }

    /// Ends it, and lets `held` know what the sequence holds now.
    pub fn leave(self, engine: &Engine, held: &mut Held) {
        held.tokens.clear();
        held.tokens.extend_from_slice(&self.turn.history()[..engine.length(self.sequence)]);
    }

    /// Gives the sequence back.
    pub fn end(self, engine: &mut Engine) {
        engine.close(self.sequence);
    }
}
