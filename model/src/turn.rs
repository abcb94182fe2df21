//! One reply in the making, without the engine: takes logits, gives tokens and text, and knows when it is over. Whoever
//! steps the engine, for one sequence or for many, keeps one for each of them.

use crate::engine::StepError;
use crate::generate::GenerateError;
use crate::generation::GenerationSettings;
use crate::likelihood::{ALTERNATIVES_MAX, Alternatives, LogSoftmax};
use crate::reply::part::{End, Part, Step};
use crate::reply::reader::Reader;
use crate::sampler::Sampler;
use crate::stop::{STRING_BYTES_MAX, StopError, StopStrings};

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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token<'a> {
    /// Its id.
    pub id: u32,
    /// May be empty, and may hold more than this token's own text.
    pub text: &'a str,
    /// The message that the text belongs to: never more than one. Absent without a tokenizer and between messages.
    pub part: Option<Part<'a>>,
    /// Set on the last token.
    pub finish: Option<Finish>,
    /// The logarithm of its probability by the model's own distribution, where that was asked for.
    pub log_probability: Option<f32>,
}

/// What a model sets to a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Positions that its sequence may have.
    pub context: usize,
    /// Tokens of the vocabulary: as many logits come.
    pub vocab: usize,
}

/// What was asked for beside tokens: the model's own distribution.
#[derive(Debug)]
struct Likelihood {
    /// The sampler overwrites what it is given.
    logits: Vec<f32>,
    alternatives: Alternatives,
}

/// One reply: its history, what it is chosen by, and what has come of it. Allocates nothing once it is made.
#[derive(Debug)]
pub struct Turn {
    sampler: Sampler,
    text: Option<Text>,
    settings: GenerationSettings,
    /// Prompt and generated tokens.
    history: Vec<u32>,
    prompt_tokens: usize,
    tokens_max: usize,
    likelihood: Option<Likelihood>,
    finish: Option<Finish>,
}

impl Turn {
    /// A reply to a prompt. `reader` is absent where there is no tokenizer: then there is no text, and no stop strings.
    /// With `alternatives`, tokens come with their log-probability and as many others.
    pub fn new(
        limits: Limits,
        reader: Option<Reader>,
        settings: GenerationSettings,
        prompt: &[u32],
        alternatives: Option<usize>,
    ) -> Result<Self, GenerateError> {
        let Limits { context, vocab } = limits;
        let asked = prompt.len();
        if asked == 0 {
            return Err(GenerateError::EmptyPrompt);
        }
        // The context bounds what can be stored; the last token needs no place of its own.
        let room = (context + 1).checked_sub(asked).filter(|&room| room > 0);
        let room = room.ok_or(StepError::ContextFull { asked, context })?;
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(StepError::UnknownToken { token, vocab }.into());
        }
        if let Some(asked) = alternatives.filter(|&asked| asked > ALTERNATIVES_MAX) {
            return Err(GenerateError::Alternatives { asked });
        }
        let mut sampler = Sampler::new(settings.sampling.clone(), vocab)?;
        sampler.begin(prompt.len());
        let text = match reader {
            None => None,
            Some(reader) => Some(Text::new(reader, &settings.stop, prompt)?),
        };
        let tokens_max = settings.new_tokens(prompt.len()).min(room);
        let mut history = Vec::with_capacity(prompt.len() + tokens_max);
        history.extend_from_slice(prompt);
        let likelihood = alternatives.map(|most| Likelihood {
            logits: vec![0.0; vocab],
            alternatives: Alternatives::new(most.min(vocab)),
        });
        let finish = (tokens_max == 0).then_some(Finish::Length);
        let prompt_tokens = prompt.len();
        Ok(Turn { sampler, text, settings, history, prompt_tokens, tokens_max, likelihood, finish })
    }

    /// The prompt and the tokens that were chosen: what a sequence must hold before the next one is chosen.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens chosen so far.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.prompt_tokens..]
    }

    /// Tokens that will be chosen at most.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Positions that its sequence needs at most: the last token is never read.
    pub fn positions_max(&self) -> usize {
        self.prompt_tokens + self.tokens_max.saturating_sub(1)
    }

    /// What ended it; nothing while it goes on. A turn that may have no tokens is over before it begins.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Whether nothing more is to be chosen.
    pub fn is_over(&self) -> bool {
        self.finish.is_some()
    }

    /// The most probable tokens in place of the last one that was chosen, it among them: by falling probability, with
    /// its logarithm. Empty where they were not asked for.
    pub fn alternatives(&self) -> &[(u32, f32)] {
        self.likelihood.as_ref().map_or(&[], |likelihood| likelihood.alternatives.list())
    }

    /// Chooses a token by the logits after the last token of the history, which are overwritten.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<Token<'_>, GenerateError> {
        if self.is_over() {
            return Err(GenerateError::Over);
        }
        let softmax = match &mut self.likelihood {
            Some(likelihood) if likelihood.logits.len() == logits.len() => {
                likelihood.logits.copy_from_slice(logits);
                let softmax = LogSoftmax::of(logits);
                likelihood.alternatives.take(logits, &softmax);
                Some(softmax)
            }
            // Too many or too few: the sampler says so.
            _ => None,
        };
        let id = self.sampler.sample(logits, &self.history)?;
        let likelihood = softmax.zip(self.likelihood.as_ref());
        let log_probability = likelihood
            .map(|(softmax, likelihood)| softmax.log_probability(likelihood.logits[id as usize]) as f32);
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
        Ok(Token { id, text, part, finish: self.finish, log_probability })
    }

    fn is_end(&self, id: u32) -> bool {
        let by_format = self.text.as_ref().is_some_and(|text| text.reader.ends_reply(id));
        !self.settings.ignore_eos && (by_format || self.settings.eos.contains(&id))
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
    use crate::generation::{EosSources, GenerationDefaults, GenerationFlags};
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

    const LIMITS: Limits = Limits { context: 8, vocab: 4 };

    fn turn(
        prompt: &[u32],
        alternatives: Option<usize>,
        flags: GenerationFlags,
    ) -> Result<Turn, GenerateError> {
        let settings = GenerationDefaults::default().settings(&flags, EosSources::default()).unwrap();
        Turn::new(LIMITS, None, settings, prompt, alternatives)
    }

    fn greedy(tokens: usize) -> GenerationFlags {
        GenerationFlags {
            max_new_tokens: Some(tokens),
            temperature: Some(0.0),
            logit_bias: vec![(2, 100.0)],
            ..GenerationFlags::default()
        }
    }

    #[test]
    fn a_turn_keeps_to_the_context() {
        let at = |prompt: usize, tokens| turn(&vec![1; prompt], None, greedy(tokens)).unwrap();
        assert_eq!((at(3, 100).tokens_max(), at(3, 100).positions_max()), (6, 8));
        assert_eq!((at(8, 100).tokens_max(), at(8, 100).positions_max()), (1, 8));
        assert_eq!((at(3, 2).tokens_max(), at(3, 2).positions_max()), (2, 4));
        // A length that counts the prompt may leave nothing.
        let mut settings = at(3, 1).settings;
        settings.max_length = Some(2);
        let none = Turn::new(LIMITS, None, settings, &[1; 3], None).unwrap();
        assert_eq!((none.finish(), none.positions_max()), (Some(Finish::Length), 3));
        let full = turn(&[1; 9], None, greedy(1)).unwrap_err().to_string();
        assert!(full.contains("9 tokens long") && full.contains("context is 8"), "{full}");
        assert!(matches!(turn(&[], None, greedy(1)), Err(GenerateError::EmptyPrompt)));
        let unknown = turn(&[1, 4], None, greedy(1)).unwrap_err().to_string();
        assert!(unknown.contains("token 4"), "{unknown}");
    }

    #[test]
    fn log_probabilities_are_of_the_model_and_not_of_what_was_asked_for() {
        let mut turn = turn(&[1], Some(2), greedy(2)).unwrap();
        let logits = [2f32.ln(), 0.0, 0.0, 4f32.ln()];
        let token = turn.choose(&mut logits.clone()).unwrap();
        assert_eq!((token.id, token.finish), (2, None), "the bias wins");
        assert!((token.log_probability.unwrap() + 8f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = turn.alternatives().iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [3, 0]);
        assert!((turn.alternatives()[0].1 + 2f32.ln()).abs() < 1e-6);
        assert_eq!(turn.choose(&mut logits.clone()).unwrap().finish, Some(Finish::Length));
        assert_eq!((turn.history(), turn.ids(), turn.is_over()), (&[1, 2, 2][..], &[2, 2][..], true));
        assert!(matches!(turn.choose(&mut logits.clone()), Err(GenerateError::Over)));
    }

    #[test]
    fn what_was_not_asked_for_is_absent_and_too_much_is_refused() {
        let mut plain = turn(&[1], None, greedy(2)).unwrap();
        assert_eq!(plain.choose(&mut [0.0; 4]).unwrap().log_probability, None);
        assert!(plain.alternatives().is_empty());
        let mut alone = turn(&[1], Some(0), greedy(2)).unwrap();
        assert!(alone.choose(&mut [0.0; 4]).unwrap().log_probability.is_some());
        assert!(alone.alternatives().is_empty());
        let refused = turn(&[1], Some(65), greedy(2)).unwrap_err().to_string();
        assert!(refused.contains("at most 64") && refused.contains("65"), "{refused}");
        for wrong in [3, 5] {
            assert!(matches!(alone.choose(&mut vec![0.0; wrong]), Err(GenerateError::Sampler(_))));
        }
    }
}
