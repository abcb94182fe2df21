//! The same by a daemon: what can be judged from the model's files is judged here and in the same words, the rest is
//! the daemon's.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use bantam_core::Cpu;
use bantam_daemon::carried;
use bantam_model::source::Source;
use bantam_proto::v1;
use bantam_proto::v1::generate_request::Input;
use bantam_proto::v1::generate_response::Event;

use super::{Prompt, Run, Story, check_bytes, check_length, piped, warn_of_overlooked};
use crate::daemon::{Link, Step, finish_of, generation_options, seconds};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{chosen_model, models, output, token_ids};

/// What is left to do without the daemon: the prompt, read by now, and the model, where it was opened.
type Left = (Prompt, Option<Source>);

impl Run {
    /// Does it all, or gives back what is left.
    pub(super) fn by_daemon(
        &self,
        link: &Link,
        model: Option<&Path>,
        prompt: Prompt,
    ) -> Result<Option<Left>, Failure> {
        // A name may be one that only the daemon knows.
        let is_here = link.shares_files() && model.is_none_or(|path| chosen_model::found(path).exists());
        let source = is_here.then(|| chosen_model::open(model)).transpose()?;
        let prompt = match prompt {
            Prompt::Piped => Prompt::Text(piped()?),
            prompt => prompt,
        };
        let has_text = self.judge(source.as_ref(), &prompt)?;
        let name = link.model(model);
        let shown = model.map_or(carried::LABEL.to_owned(), |path| path.display().to_string());
        let loaded = match link.load(&name, &shown, self.engine.load_options(&self.context))? {
            Step::Done(loaded) => loaded,
            Step::Without => return Ok(Some((prompt, source))),
        };
        if let Some(source) = &source {
            let options = self.engine.options(
                &source.spec,
                || self.device.has_card(),
                self.context.of(&source.spec),
                1,
                1,
            );
            warn_of_overlooked(source, &source.plan(options, Cpu::detect())?);
        }
        let request = self.request(&loaded.id, &prompt);
        let mut story = Story::new(request.options.as_ref().and_then(|options| options.seed).unwrap_or(0), 0);
        story.text = has_text.then(String::new);
        if let Step::Without = self.stream(link, request, &mut story)? {
            return Ok(Some((prompt, source)));
        }
        if self.json {
            let here = loaded.bytes.iter().filter(|of| of.device == models::RAM);
            let bytes = here.map(|of| of.weight_bytes + of.cache_bytes + of.work_bytes);
            output::json(&story.json(bytes.sum(), None, None))?;
        }
        self.sum_up(&story);
        Ok(None)
    }

    /// Refuses what would be refused without a daemon. Says whether there is text to expect.
    fn judge(&self, source: Option<&Source>, prompt: &Prompt) -> Result<bool, Failure> {
        if let Prompt::Text(text) = prompt {
            check_bytes(text.len())?;
        }
        let Some(source) = source else { return Ok(true) };
        let context = self.context.of(&source.spec);
        source.plan(
            self.engine.options(&source.spec, || self.device.has_card(), context, 1, 1),
            Cpu::detect(),
        )?;
        if let Prompt::Ids(ids) = prompt {
            token_ids::check(source, ids)?;
            check_length(source, ids.len(), context)?;
        }
        // The tokenizer itself is the daemon's business: opening a large one takes longer than a short answer.
        self.settings(source, None)?;
        let tokenizer = source.files.tokenizer().map_err(bantam_model::source::SourceError::from)?;
        if tokenizer.is_none() && (self.sampling.has_stop_strings() || matches!(prompt, Prompt::Text(_))) {
            source.text()?;
        }
        Ok(tokenizer.is_some())
    }

    fn request(&self, model: &str, prompt: &Prompt) -> v1::GenerateRequest {
        let flags = self.sampling.flags();
        let input = match prompt {
            Prompt::Ids(ids) => Input::PromptIds(v1::TokenIds { ids: ids.clone() }),
            Prompt::Text(text) => Input::Prompt(text.clone()),
            Prompt::Piped => unreachable!("it was read before"),
        };
        v1::GenerateRequest {
            model: model.to_owned(),
            max_new_tokens: flags.max_new_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            options: Some(generation_options(flags)),
            input: Some(input),
        }
    }

    /// Writes what comes as soon as it comes.
    fn stream(
        &self,
        link: &Link,
        request: v1::GenerateRequest,
        story: &mut Story,
    ) -> Result<Step<()>, Failure> {
        let waiting = Progress::waiting("reading the prompt".to_owned());
        let mut client = link.generation();
        let began = Instant::now();
        let answered = link.wait(client.generate(link.request(request)));
        let mut stream = match link.or_without(answered.map(tonic::Response::into_inner))? {
            Step::Done(stream) => stream,
            Step::Without => return Ok(Step::Without),
        };
        let mut waiting = Some(waiting);
        let mut out = io::stdout().lock();
        let is_terminal = out.is_terminal();
        while let Some(message) = link.next(&mut stream)? {
            match message.event {
                Some(Event::Started(started)) => {
                    story.prompt_tokens = started.prompt_tokens as usize;
                    story.seed = started.seed;
                }
                Some(Event::Token(token)) => {
                    if waiting.take().is_some() {
                        story.prefill_seconds = began.elapsed().as_secs_f64();
                    }
                    self.show(story, &mut out, is_terminal, token.id, &token.text)?;
                }
                Some(Event::Finished(finished)) => {
                    drop(waiting.take());
                    story.finish = finish_of(finished.reason());
                    let timings = finished.timings.unwrap_or_default();
                    story.prefill_seconds = seconds(timings.prefill.as_ref());
                    story.decode_seconds = seconds(timings.decode.as_ref());
                }
                None => {}
            }
        }
        if !self.json {
            writeln!(out)?;
            out.flush()?;
        }
        Ok(Step::Done(()))
    }
}
