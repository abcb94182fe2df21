//! The model of a chat in a daemon, which renders, reads and writes; what was said stays here.

use std::collections::HashMap;
use std::future::Future;
use std::io::Write;
use std::time::{Duration, Instant};

use bantam_core::Cpu;
use bantam_daemon::carried;
use bantam_model::generate::Finish;
use bantam_model::generation::{EosSources, GenerationDefaults, GenerationFlags};
use bantam_model::reply::Reply;
use bantam_model::source::Source;
use bantam_model::template::Now;
use bantam_proto::v1;
use bantam_proto::v1::chat_response::Event;
use bantam_proto::v1::tokenize_request::Input;
use serde_json::Value;
use tonic::Code;

use super::Chat;
use super::screen::Screen;
use super::talk::{Answer, Ended, check_length};
use crate::conversation::{TemplateArgument, chat_template};
use crate::daemon::{Link, Step, Words, conversation_of, finish_of, generation_options, message_of, seconds};
use crate::failure::{Failure, refused};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::{chosen_model, run};

/// How soon Ctrl-C is noticed while nothing comes.
const GLANCE: Duration = Duration::from_millis(50);

/// A model in a daemon's memory.
pub(super) struct Far {
    link: Link,
    model: v1::Model,
    shown: String,
    /// The model's files, where they are ours as well.
    source: Option<Source>,
    arguments: HashMap<String, String>,
    /// The time stands still, as in a chat of this process.
    now: Option<String>,
}

/// An answer as it comes.
struct Coming {
    reply: Reply,
    words: Words,
    ended: Ended,
    started: v1::Started,
    new_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
}

impl Far {
    /// The model of a chat, loaded, where the daemon takes it.
    pub(super) fn open(link: Link, chat: &Chat) -> Result<Step<Self>, Failure> {
        let path = chat.model.path();
        let is_here = link.shares_files() && path.is_none_or(|path| chosen_model::found(path).exists());
        let source = is_here.then(|| chosen_model::open(path)).transpose()?;
        if let Some(source) = &source {
            // What would be refused without a daemon is refused in the same words.
            source.plan(
                chat.engine.options(
                    &source.spec,
                    || chat.device.has_card(),
                    chat.context.of(&source.spec),
                    1,
                    1,
                ),
                Cpu::detect(),
            )?;
            chat_template(source)?;
        }
        let shown = path.map_or(carried::LABEL.to_owned(), |path| path.display().to_string());
        let options = chat.engine.load_options(&chat.context);
        let model = match link.load(&link.model(path), &shown, options)? {
            Step::Done(model) => model,
            Step::Without => return Ok(Step::Without),
        };
        if let Some(source) = &source {
            let options = chat.engine.options(
                &source.spec,
                || chat.device.has_card(),
                chat.context.of(&source.spec),
                1,
                1,
            );
            run::warn_of_overlooked(source, &source.plan(options, Cpu::detect())?);
        }
        if !model.can_chat {
            return link.cannot(&format!("{shown} has no chat template there"));
        }
        let arguments = chat.template.template_arg.iter().map(TemplateArgument::told).collect();
        let now = chat.template.now.unwrap_or(Now::LOCAL).frozen().text();
        Ok(Step::Done(Far { link, model, shown, source, arguments, now }))
    }

    pub(super) fn name(&self) -> String {
        format!("{}, by a daemon", self.shown)
    }

    pub(super) fn context(&self) -> usize {
        self.model.options.as_ref().map_or(0, |options| options.context() as usize)
    }

    /// Tokens that the model knows, where that can be told.
    pub(super) fn most(&self) -> Option<usize> {
        self.source.as_ref().map(|source| source.spec.context)
    }

    /// Judges the flags over the model's own defaults, or over the program's where those are not known here.
    pub(super) fn judge(&self, flags: &GenerationFlags) -> Result<(), Failure> {
        let defaults = match &self.source {
            Some(source) => source.generation_defaults()?,
            None => GenerationDefaults::default(),
        };
        Ok(defaults.settings(flags, EosSources::default()).map(drop)?)
    }

    /// Tokens of a conversation, up to where the model is to answer.
    pub(super) fn tokens(&self, messages: &[Value]) -> Result<usize, Failure> {
        let mut conversation = conversation_of(messages, &[]).map_err(|found| untold(&found))?;
        conversation.template_arguments = self.arguments.clone();
        conversation.now.clone_from(&self.now);
        let request = v1::TokenizeRequest {
            model: self.model.id.clone(),
            input: Some(Input::Conversation(conversation)),
            ..v1::TokenizeRequest::default()
        };
        let mut client = self.link.generation();
        let told = self.link.wait(client.tokenize(self.link.request(request)));
        Ok(told.map_err(|status| self.link.failure(&status))?.into_inner().ids.len())
    }

    fn request(&self, messages: &[Value], flags: GenerationFlags) -> Result<v1::ChatRequest, Failure> {
        let messages = messages.iter().map(message_of).collect::<Result<_, _>>();
        Ok(v1::ChatRequest {
            model: self.model.id.clone(),
            messages: messages.map_err(|found| untold(&found))?,
            max_new_tokens: flags.max_new_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            options: Some(generation_options(flags)),
            template_arguments: self.arguments.clone(),
            now: self.now.clone(),
            ..v1::ChatRequest::default()
        })
    }

    pub(super) fn answer(
        &mut self,
        messages: &[Value],
        flags: GenerationFlags,
        screen: &mut Screen<impl Write>,
        interrupt: &Interrupt,
    ) -> Result<Option<Answer>, Failure> {
        let seed = flags.seed.unwrap_or(0);
        let request = self.request(messages, flags)?;
        let mut coming = Coming::new();
        self.stream(request, &mut coming, screen, interrupt).or_else(|failed| match failed {
            // A conversation that is too long has its own words, with what helps.
            Trouble::Refused(status) if status.code() == Code::InvalidArgument => {
                check_length(self.tokens(messages)?, self.context(), self.most())?;
                Err(self.link.failure(&status))
            }
            Trouble::Refused(status) => Err(self.link.failure(&status)),
            Trouble::Here(failure) => Err(failure),
        })?;
        let is_empty = coming.reply.messages().iter().all(|message| message.text.is_empty());
        if coming.ended == Ended::Interrupted && is_empty {
            return Ok(None);
        }
        screen.end()?;
        Ok(Some(Answer {
            reply: coming.reply,
            ended: coming.ended,
            seed,
            prompt_tokens: coming.started.prompt_tokens as usize,
            reused_tokens: coming.started.cached_tokens as usize,
            new_tokens: coming.new_tokens,
            prefill_seconds: coming.prefill_seconds,
            decode_seconds: coming.decode_seconds,
        }))
    }

    /// Takes the answer while it comes. Dropping the stream, which Ctrl-C does, frees its place at once.
    fn stream(
        &self,
        request: v1::ChatRequest,
        coming: &mut Coming,
        screen: &mut Screen<impl Write>,
        interrupt: &Interrupt,
    ) -> Result<(), Trouble> {
        let (mut client, began) = (self.link.generation(), Instant::now());
        let mut waiting = Some(Progress::waiting("reading the conversation".to_owned()));
        let asked = self.link.wait(unless_asked(interrupt, client.chat(self.link.request(request))));
        let Some(answered) = asked else {
            coming.ended = Ended::Interrupted;
            return Ok(());
        };
        let mut stream = answered?.into_inner();
        let mut first = None;
        loop {
            let Some(message) = self.link.wait(unless_asked(interrupt, stream.message())) else {
                coming.ended = Ended::Interrupted;
                break;
            };
            match message?.map(|message| message.event) {
                Some(Some(Event::Started(started))) => coming.started = started,
                Some(Some(Event::Token(token))) => {
                    drop(waiting.take());
                    first.get_or_insert_with(Instant::now);
                    coming.new_tokens += 1;
                    let token = coming.words.token(&token);
                    coming.reply.push(&token);
                    screen.token(&token).map_err(|error| Trouble::Here(error.into()))?;
                }
                Some(Some(Event::Finished(finished))) => {
                    coming.finish(&finished);
                    return Ok(());
                }
                Some(None) => {}
                None => break,
            }
        }
        let first = first.unwrap_or_else(Instant::now);
        coming.prefill_seconds = (first - began).as_secs_f64();
        coming.decode_seconds = first.elapsed().as_secs_f64();
        Ok(())
    }
}

impl Coming {
    fn new() -> Self {
        Coming {
            reply: Reply::default(),
            words: Words::default(),
            ended: Ended::By(Finish::Length),
            started: v1::Started::default(),
            new_tokens: 0,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
        }
    }

    fn finish(&mut self, finished: &v1::Finished) {
        self.ended = Ended::By(finish_of(finished.reason()));
        let timings = finished.timings.unwrap_or_default();
        self.prefill_seconds = seconds(timings.prefill.as_ref());
        self.decode_seconds = seconds(timings.decode.as_ref());
    }
}

/// What can end an answer too early.
enum Trouble {
    Refused(tonic::Status),
    Here(Failure),
}

impl From<tonic::Status> for Trouble {
    fn from(status: tonic::Status) -> Self {
        Trouble::Refused(status)
    }
}

/// What comes of some work, or nothing where somebody presses Ctrl-C before.
async fn unless_asked<T>(interrupt: &Interrupt, work: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(work);
    // Before the work: where tokens come fast there is never a pause to look in.
    while !interrupt.is_asked() {
        tokio::select! {
            done = &mut work => return Some(done),
            () = tokio::time::sleep(GLANCE) => {}
        }
    }
    None
}

fn untold(found: &str) -> Failure {
    refused(format!("a daemon cannot be told {found}; begin the chat with --local"))
}
