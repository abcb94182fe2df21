//! A model in conversation: what every answer has in common, whoever computes it.

use std::io::Write;

use bantam_model::generate::Finish;
use bantam_model::generation::GenerationFlags;
use bantam_model::reply::Reply;
use serde_json::{Value, json};

use super::by_daemon::Far;
use super::conversation::Conversation;
use super::here::Here;
use super::screen::Screen;
use crate::failure::{Failure, refused};
use crate::interrupt::Interrupt;
use crate::sampling_flags::SamplingFlags;

/// Who computes.
pub(super) enum Model {
    /// This process.
    Here(Box<Here>),
    /// A daemon.
    Far(Box<Far>),
}

/// A model, loaded, and how it is to answer.
pub(super) struct Talk {
    pub(super) model: Model,
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
    pub(super) seed: u64,
    pub(super) prompt_tokens: usize,
    pub(super) reused_tokens: usize,
    pub(super) new_tokens: usize,
    pub(super) prefill_seconds: f64,
    pub(super) decode_seconds: f64,
}

impl Talk {
    /// What the model is called.
    pub(super) fn name(&self) -> String {
        match &self.model {
            Model::Here(here) => here.source.folder().display().to_string(),
            Model::Far(far) => far.name(),
        }
    }

    /// Tokens that conversation and answer may have.
    pub(super) fn context(&self) -> usize {
        match &self.model {
            Model::Here(here) => here.engine.plan().options.context,
            Model::Far(far) => far.context(),
        }
    }

    /// Tokens that the conversation takes, of how many.
    pub(super) fn room(&self, conversation: &Conversation) -> Result<(usize, usize), Failure> {
        let tokens = match (conversation.messages(), &self.model) {
            ([], _) => 0,
            (messages, Model::Here(here)) => here.prompt(messages)?.len(),
            (messages, Model::Far(far)) => far.tokens(messages)?,
        };
        Ok((tokens, self.context()))
    }

    /// How the next answer is generated; refused where that makes no sense.
    pub(super) fn flags(&self) -> Result<GenerationFlags, Failure> {
        let mut flags = self.sampling.flags();
        flags.seed = Some(seed_of(self.seed, self.answers));
        match &self.model {
            Model::Here(here) => drop(here.settings(&flags)?),
            Model::Far(far) => far.judge(&flags)?,
        }
        Ok(flags)
    }

    /// What helps where the context is full.
    pub(super) fn advice(&self) -> String {
        let most = match &self.model {
            Model::Here(here) => Some(here.source.spec.context),
            Model::Far(far) => far.most(),
        };
        advice(self.context(), most)
    }

    /// Answers the last message. `None` where Ctrl-C came before the answer's first word.
    pub(super) fn answer(
        &mut self,
        conversation: &Conversation,
        screen: &mut Screen<impl Write>,
        interrupt: &Interrupt,
    ) -> Result<Option<Answer>, Failure> {
        let flags = self.flags()?;
        let (messages, answers) = (conversation.messages(), self.answers);
        self.answers += 1;
        let answer = match &mut self.model {
            Model::Here(here) => here.answer(messages, &flags, screen, interrupt),
            Model::Far(far) => far.answer(messages, flags, screen, interrupt),
        };
        if answer.as_ref().is_err_and(|failure| !failure.is_closed_pipe()) {
            // What was refused before it began has used up no seed.
            self.answers = answers;
        }
        answer
    }
}

fn advice(context: usize, most: Option<usize>) -> String {
    let mut advice = "/clear begins anew, /undo takes the last message back".to_owned();
    if let Some(most) = most.filter(|most| context < *most) {
        advice += &format!(", a larger --context makes room (this model knows up to {most})");
    }
    advice
}

/// A conversation is not cut behind the user's back: what the model no longer sees is the user's choice.
pub(super) fn check_length(tokens: usize, context: usize, most: Option<usize>) -> Result<(), Failure> {
    // One place at least for an answer.
    match tokens < context {
        true => Ok(()),
        false => Err(refused(format!(
            "the conversation has {tokens} tokens, the context has room for {context}, the answer included: {}",
            advice(context, most)
        ))),
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
