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
        let sequence = engine.open().ok_or(GenerateError::NoSequence(options.sequences))?;
        let read = engine.prefill::<StepError>(sequence, prompt, |_, _, _| Ok(()));
        if let Err(error) = read {
            engine.close(sequence);
            return Err(error.into());
        }
        history.extend_from_slice(prompt);
        // The context bounds what can be stored; the last token needs no place of its own.
        let room = options.context - prompt.len() + 1;
        let tokens_max = settings.new_tokens(prompt.len()).min(room);
        let mut logits = vec![0.0; vocab];
        logits.copy_from_slice(engine.logits(&[engine.rows() - 1]));
        let finish = None;
        let prompt_tokens = prompt.len();
        Ok(Generation {
            sequence,
            sampler,
            text,
            settings,
            history,
            prompt_tokens,
            tokens_max,
            logits,
            finish,
        })
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
