//! One generation: a prompt goes in, tokens and text come out one by one, until something ends it.

use crate::engine::{Chunk, Engine, StepError};
use crate::generation::GenerationSettings;
use crate::reply::part::{End, Part, Step};
use crate::reply::reader::Reader;
use crate::sampler::{Sampler, SamplerError};
use crate::stop::{STRING_BYTES_MAX, StopError, StopStrings};

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

/// What ended a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-text token or a stop string.
    Stop,
    /// The number of new tokens, or the end of the context.
    Length,
    /// A call: the reply goes on when the tool has answered.
    ToolCalls,
}

impl Finish {
    /// As clients know it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
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
    /// The message that the text belongs to: never more than one. Absent without a tokenizer and between messages.
    pub part: Option<Part<'a>>,
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
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let options = engine.plan().options;
        let vocab = engine.spec().vocab;
        let mut sampler = Sampler::new(settings.sampling.clone(), vocab)?;
        sampler.begin(prompt.len());
        let text = match reader {
            None => None,
            Some(reader) => Some(Text::new(reader, &settings.stop, prompt)?),
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
        if self.history.len() > self.prompt_tokens {
            self.step(engine)?;
        }
        let id = self.sampler.sample(&mut self.logits, &self.history)?;
        self.history.push(id);
        if self.is_end(id) {
            self.finish = Some(Finish::Stop);
        } else if self.ids().len() >= self.tokens_max {
            self.finish = Some(Finish::Length);
        }
        if let Some(text) = &mut self.text {
            self.finish = text.push(id, self.finish);
        }
        let (text, part) = self.text.as_ref().map_or(("", None), |text| (text.piece.as_str(), text.part()));
        Ok(Some(Token { id, text, part, finish: self.finish }))
    }

    /// Logits after the last token.
    fn step(&mut self, engine: &mut Engine) -> Result<(), StepError> {
        let (sequence, length) = (self.sequence, self.history.len());
        if engine.must_restart(sequence, length) {
            engine.rewind(sequence, 0);
            engine.prefill::<StepError>(sequence, &self.history, |_, _, _| Ok(()))?;
        } else {
            engine.step(&[Chunk { sequence, tokens: &self.history[length - 1..] }])?;
        }
        self.logits.copy_from_slice(engine.logits(&[engine.rows() - 1]));
        Ok(())
    }

    fn is_end(&self, id: u32) -> bool {
        let by_format = self.text.as_ref().is_some_and(|text| text.reader.ends_reply(id));
        !self.settings.ignore_eos && (by_format || self.settings.eos.contains(&id))
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

/// The text of a reply, message by message, up to a stop string. These hold within one message.
#[derive(Debug)]
struct Text {
    reader: Reader,
    stops: StopStrings,
    /// What the last token made certain, and where.
    piece: String,
    step: Option<Step>,
}

impl Text {
    fn new(mut reader: Reader, stop: &[String], prompt: &[u32]) -> Result<Self, StopError> {
        let stops = StopStrings::new(stop)?;
        // The last token may release what both stages held back.
        let piece = String::with_capacity(2 * reader.piece_bytes_max() + 2 * STRING_BYTES_MAX);
        reader.begin(prompt);
        Ok(Text { reader, stops, piece, step: None })
    }

    /// Takes a token, and where it is the last one, lets go of what was held back. Returns what ends the reply.
    fn push(&mut self, id: u32, finish: Option<Finish>) -> Option<Finish> {
        self.piece.clear();
        let step = self.reader.push(id);
        let (mut step, mut stopped) = self.pass(step);
        if finish.is_some() && !stopped {
            let end = if finish == Some(Finish::Stop) { End::Return } else { End::Cut };
            let last = self.reader.finish(end);
            let (last, stops) = self.pass(last);
            stopped = stops;
            step = match (step, last) {
                (Some(step), Some(last)) if step.message == last.message => {
                    Some(Step { begins: step.begins, ..last })
                }
                // A message that the last token opened has no text.
                (step, last) => step.or(last),
            };
        }
        self.step = step;
        match (finish, self.part()) {
            _ if stopped => Some(Finish::Stop),
            (Some(Finish::Stop), Some(part)) if part.tool().is_some() && part.ends == Some(End::Call) => {
                Some(Finish::ToolCalls)
            }
            (finish, _) => finish,
        }
    }

    /// Leads the reader's text past the stop strings. Says whether one came: that cuts the message.
    fn pass(&mut self, step: Option<Step>) -> (Option<Step>, bool) {
        let Some(mut step) = step else {
            return (None, false);
        };
        if step.begins {
            self.stops.reset();
        }
        let outcome = self.stops.push(self.reader.text());
        self.piece.push_str(outcome.text);
        let mut stopped = outcome.stopped;
        if step.ends.is_some() && !stopped {
            let outcome = self.stops.finish();
            self.piece.push_str(outcome.text);
            stopped = outcome.stopped;
        }
        if stopped {
            step.ends = Some(End::Cut);
        }
        (Some(step), stopped)
    }

    fn part(&self) -> Option<Part<'_>> {
        self.step.map(|step| self.reader.part(step))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::detokenizer::ByteTable;
    use crate::reply::Reply;
    use crate::reply::harmony::tests::{MARKS, tokenizer};
    use crate::tokenizer::Tokenizer;

    /// Ids that end a reply by the model's files: none, so that what ends is the format.
    fn said(tokenizer: &Tokenizer, stop: &[&str], prompt: &str, reply: &str) -> (Reply, Option<Finish>) {
        let table = Arc::new(ByteTable::new(tokenizer).unwrap());
        let stop: Vec<String> = stop.iter().map(|&text| text.to_owned()).collect();
        let prompt = tokenizer.encode(prompt, false).unwrap();
        let mut text = Text::new(Reader::for_chat(tokenizer, table), &stop, &prompt).unwrap();
        let mut said = Reply::default();
        let ids = tokenizer.encode(reply, false).unwrap();
        for (index, &id) in ids.iter().enumerate() {
            let last = if index + 1 == ids.len() { Some(Finish::Length) } else { None };
            let finish = text.push(id, if text.reader.ends_reply(id) { Some(Finish::Stop) } else { last });
            match text.part() {
                Some(part) => said.push_part(&part, &text.piece),
                None => assert_eq!(text.piece, ""),
            }
            if finish.is_some() {
                return (said, finish);
            }
        }
        (said, None)
    }

    fn texts(reply: &Reply) -> Vec<(&str, Option<End>)> {
        reply.messages().iter().map(|message| (message.text.as_str(), message.end)).collect()
    }

    #[test]
    fn stop_strings_hold_within_one_message() {
        let tokenizer = tokenizer(&MARKS, true);
        let said = |stop: &[&str], reply: &str| said(&tokenizer, stop, "<|start|>assistant", reply);
        // Across messages there is none; what was held back belongs to the first.
        let reply = "<|channel|>analysis<|message|>ab<|end|><|start|>assistant<|channel|>final<|message|>cd<|return|>";
        let (found, finish) = said(&["bc"], reply);
        assert_eq!(texts(&found), [("ab", Some(End::Closed)), ("cd", Some(End::Return))]);
        assert_eq!(finish, Some(Finish::Stop));
        let (found, finish) = said(&["d"], reply);
        assert_eq!(texts(&found), [("ab", Some(End::Closed)), ("c", Some(End::Cut))]);
        assert_eq!(finish, Some(Finish::Stop));
        let (found, _) = said(&["bcd", "a"], reply);
        assert_eq!(texts(&found), [("", Some(End::Cut))]);
        // Words of headers are no text.
        let (found, _) = said(&["analysis", "final", "assistant"], reply);
        assert_eq!(found.messages().len(), 2);
        // Text that comes of a header is.
        let (found, _) = said(&["stop"], "<|channel|>final a stop b<|message|>c<|return|>");
        assert_eq!(texts(&found), [("a ", Some(End::Cut))]);
    }

    #[test]
    fn a_reply_ends_as_its_last_message_does() {
        let tokenizer = tokenizer(&MARKS, true);
        let finish = |reply: &str| said(&tokenizer, &[], "<|start|>assistant", reply).1;
        assert_eq!(
            finish("<|channel|>commentary to=functions.x<|message|>{}<|call|>"),
            Some(Finish::ToolCalls)
        );
        assert_eq!(finish("<|channel|>commentary to=functions.x<|call|>"), Some(Finish::ToolCalls));
        assert_eq!(finish("<|channel|>commentary<|message|>{}<|call|>"), Some(Finish::Stop));
        assert_eq!(finish("<|channel|>commentary to=functions.x<|message|>{}"), Some(Finish::Length));
        assert_eq!(finish("<|channel|>final<|message|>A<|return|>"), Some(Finish::Stop));
        assert_eq!(finish("<|channel|>final<|message|>A<|endoftext|>"), Some(Finish::Stop));
        assert_eq!(finish("<|call|>"), Some(Finish::Stop));
        assert_eq!(Finish::ToolCalls.name(), "tool_calls");
    }

    #[test]
    fn the_last_token_releases_what_was_held_back() {
        let tokenizer = tokenizer(&MARKS, true);
        let said = |stop: &[&str], reply: &str| said(&tokenizer, stop, "<|start|>assistant", reply).0;
        let found = said(&["xyz"], "<|channel|>final<|message|>axy");
        assert_eq!(texts(&found), [("axy", Some(End::Cut))]);
        let found = said(&["xyz"], "<|channel|>final axy");
        assert_eq!(texts(&found), [("axy", Some(End::Cut))]);
        let found = said(&[], "<|channel|>final a b<|message|>");
        assert_eq!(texts(&found), [("a b", Some(End::Cut))]);
    }
}
