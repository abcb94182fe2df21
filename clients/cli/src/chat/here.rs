//! The model of a chat in this process: every answer renders the whole conversation, and reads what of it is new.

use std::io::Write;
use std::time::Instant;

use bantam_model::engine::Engine;
use bantam_model::generate::{Finish, GenerateError, Generation, Held};
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags, GenerationSettings};
use bantam_model::reply::Reply;
use bantam_model::reply::reader::Reader;
use bantam_model::source::{Source, Text};
use serde_json::Value;

use super::screen::Screen;
use super::talk::{Answer, Ended, check_length};
use super::template::Template;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::run;

/// A model in memory.
pub(super) struct Here {
    pub(super) source: Source,
    pub(super) text: Text,
    pub(super) template: Template,
    pub(super) engine: Engine,
    pub(super) held: Held,
    pub(super) reader: Reader,
    pub(super) defaults: GenerationDefaults,
}

impl Here {
    /// The conversation as the model reads it, up to where it is to answer.
    pub(super) fn prompt(&self, messages: &[Value]) -> Result<Vec<u32>, Failure> {
        let tokenizer = &self.text.tokenizer;
        let prompt = self.template.prompt(&self.source, tokenizer, messages)?;
        run::check_bytes(prompt.text().len())?;
        let ids = prompt.ids(tokenizer);
        Ok(ids.map_err(|error| self.source.tokenizer_error(error))?)
    }

    /// The flags over the model's own defaults.
    pub(super) fn settings(&self, flags: &GenerationFlags) -> Result<GenerationSettings, Failure> {
        let (config, tokenizer) = (self.source.spec.eos.as_slice(), self.text.tokenizer.eos());
        Ok(self.defaults.settings(flags, EosSources { config, tokenizer })?)
    }

    pub(super) fn answer(
        &mut self,
        messages: &[Value],
        flags: &GenerationFlags,
        screen: &mut Screen<impl Write>,
        interrupt: &Interrupt,
    ) -> Result<Option<Answer>, Failure> {
        let prompt = self.prompt(messages)?;
        check_length(prompt.len(), self.engine.plan().options.context, Some(self.source.spec.context))?;
        let settings = self.settings(flags)?;
        let seed = settings.sampling.seed;
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
