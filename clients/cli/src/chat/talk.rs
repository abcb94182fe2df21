//! A model in conversation: every answer renders the whole conversation, and reads what of it is new.

use std::io::Write;
use std::time::Instant;

use bantam_model::engine::Engine;
use bantam_model::generate::{Finish, GenerateError, Generation, Held};
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationSettings};
use bantam_model::reply::Reply;
use bantam_model::reply::reader::Reader;
use bantam_model::source::{Source, Text};
use serde_json::{Value, json};

use super::conversation::Conversation;
use super::screen::Screen;
use super::template::Template;
use crate::failure::{Failure, refused};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::run;
use crate::sampling_flags::SamplingFlags;

/// A model, loaded, and how it is to answer.
pub(super) struct Talk {
    pub(super) source: Source,
    pub(super) text: Text,
    pub(super) template: Template,
    pub(super) engine: Engine,
    pub(super) held: Held,
    pub(super) reader: Reader,
    pub(super) defaults: GenerationDefaults,
    pub(super) sampling: SamplingFlags,
    /// Of the first answer; those of the others follow from it.
    pub(super) seed: u64,
    /// Answers so far, which makes the next one's seed.
    pub(super) answers: u64,
}

/// What ended an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    By(Finish),
    /// Ctrl-C.
    Interrupted,
}

impl Ended {
    pub(super) fn name(self) -> &'static str {
        match self {
            Ended::By(finish) => finish.name(),
            Ended::Interrupted => "interrupted",
        }
    }
}

/// An answer and how it came.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) ended: Ended,
    seed: u64,
    prompt_tokens: usize,
    reused_tokens: usize,
    new_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
}

impl Talk {
    /// Tokens that the conversation takes, of how many.
    pub(super) fn room(&self, conversation: &Conversation) -> Result<(usize, usize), Failure> {
        let tokens = match conversation.messages() {
            [] => 0,
            _ => self.prompt(conversation)?.len(),
        };
        Ok((tokens, self.engine.plan().options.context))
    }

    /// The conversation as the model reads it, up to where it is to answer.
    fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>, Failure> {
        let rendered = self.template.render(&self.source, conversation.messages())?;
        run::check_bytes(rendered.len())?;
        let ids = self.text.tokenizer.encode(&rendered, false);
        Ok(ids.map_err(|error| self.source.tokenizer_error(error))?)
    }

    /// How the next answer is generated.
    pub(super) fn settings(&self) -> Result<GenerationSettings, Failure> {
        let (config, tokenizer) = (self.source.spec.eos.as_slice(), self.text.tokenizer.eos());
        let mut flags = self.sampling.flags();
        flags.seed = Some(seed_of(self.seed, self.answers));
        Ok(self.defaults.settings(&flags, EosSources { config, tokenizer })?)
    }

    /// A conversation is not cut behind the user's back: what the model no longer sees is the user's choice.
    fn check_length(&self, tokens: usize) -> Result<(), Failure> {
        let context = self.engine.plan().options.context;
        // One place at least for an answer.
        match tokens < context {
            true => Ok(()),
            false => Err(refused(format!(
                "the conversation has {tokens} tokens, the context has room for {context}, the answer included: {}",
                self.advice()
            ))),
        }
    }

    /// What helps where the context is full.
    pub(super) fn advice(&self) -> String {
        let (context, most) = (self.engine.plan().options.context, self.source.spec.context);
        let mut advice = "/clear begins anew, /undo takes the last message back".to_owned();
        if context < most {
            advice += &format!(", a larger --context makes room (this model knows up to {most})");
        }
        advice
    }

    /// Answers the last message. `None` where Ctrl-C came before the answer's first word.
    pub(super) fn answer(
        &mut self,
        conversation: &Conversation,
        screen: &mut Screen<impl Write>,
        interrupt: &Interrupt,
    ) -> Result<Option<Answer>, Failure> {
        let prompt = self.prompt(conversation)?;
        self.check_length(prompt.len())?;
        let settings = self.settings()?;
        let seed = settings.sampling.seed;
        self.answers += 1;
        let progress = Progress::waiting(format!("reading {} tokens", prompt.len()));
        let began = Instant::now();
        let (engine, held, reader) = (&mut self.engine, &mut self.held, Some(self.reader.clone()));
        let is_stopped = || interrupt.is_asked();
        let begun = Generation::begin_in(engine, held, reader, settings, &prompt, &is_stopped);
        drop(progress);
        let mut generation = match begun {
            Err(GenerateError::Stopped) => return Ok(None),
            begun => begun?,
        };
        let prefill_seconds = began.elapsed().as_secs_f64();
        let (began, mut reply, mut ended) = (Instant::now(), Reply::default(), Ended::By(Finish::Length));
        while let Some(token) = generation.next(&mut self.engine)? {
            reply.push(&token);
            screen.token(&token)?;
            if let Some(finish) = token.finish {
                ended = Ended::By(finish);
            } else if interrupt.is_asked() {
                ended = Ended::Interrupted;
                break;
            }
        }
        let (reused_tokens, new_tokens) = (generation.reused_tokens(), generation.ids().len());
        generation.leave(&self.engine, &mut self.held);
        let decode_seconds = began.elapsed().as_secs_f64();
        let is_empty = reply.messages().iter().all(|message| message.text.is_empty());
        if ended == Ended::Interrupted && is_empty {
            return Ok(None);
        }
        screen.end()?;
        let prompt_tokens = prompt.len();
        Ok(Some(Answer {
            reply,
            ended,
            seed,
            prompt_tokens,
            reused_tokens,
            new_tokens,
            prefill_seconds,
            decode_seconds,
        }))
    }
}

/// Every answer has a seed of its own, so that the same question is not answered in the same words; the first has the
/// one that was given.
fn seed_of(seed: u64, answers: u64) -> u64 {
    if answers == 0 {
        return seed;
    }
    // The finalizer of SplitMix64. It stays within what JSON carries exactly.
    let mut x = seed.wrapping_add(answers.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) >> 11
}

impl Answer {
    /// The message for the conversation; one that Ctrl-C cut off says so.
    pub(super) fn message(&self) -> Value {
        let mut message = self.reply.message();
        if self.ended == Ended::Interrupted {
            message["partial"] = json!(true);
        }
        message
    }

    /// Whether it ended because the context did.
    pub(super) fn has_filled(&self, context: usize) -> bool {
        self.ended == Ended::By(Finish::Length) && self.prompt_tokens + self.new_tokens > context
    }

    pub(super) fn new_tokens(&self) -> usize {
        self.new_tokens
    }

    fn read_tokens(&self) -> usize {
        self.prompt_tokens - self.reused_tokens
    }

    fn prefill_rate(&self) -> f64 {
        self.read_tokens() as f64 / self.prefill_seconds
    }

    /// The first token comes from the prompt's own logits: reading them is prefill.
    fn decode_rate(&self) -> f64 {
        self.new_tokens.saturating_sub(1) as f64 / self.decode_seconds
    }

    pub(super) fn json(&self) -> Value {
        let mut object = json!({
            "message": self.message(),
            "content": self.reply.content(),
            "finish_reason": self.ended.name(),
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "new_tokens": self.new_tokens,
            "seed": self.seed,
            "timings": {
                "prefill_seconds": self.prefill_seconds,
                "decode_seconds": self.decode_seconds,
                "prefill_tokens_per_second": self.prefill_rate(),
                "decode_tokens_per_second": self.decode_rate(),
            },
        });
        let thinking = self.reply.thinking();
        if !thinking.is_empty() {
            object["thinking"] = json!(thinking);
        }
        object
    }

    pub(super) fn summary(&self) -> String {
        format!(
            "[tokens: {} known, {} read at {:.1} per second, {} written at {:.1} per second; ended by {}; seed {}]",
            self.reused_tokens,
            self.read_tokens(),
            self.prefill_rate(),
            self.new_tokens,
            self.decode_rate(),
            self.ended.name(),
            self.seed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_has_the_seed_that_was_given_and_the_others_have_their_own() {
        let seeds: Vec<u64> = (0..4).map(|answer| seed_of(7, answer)).collect();
        assert_eq!(seeds[0], 7);
        assert!(seeds[1..].iter().all(|&seed| seed < 1 << 53));
        assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
