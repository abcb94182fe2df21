//! `bantam chat`: a conversation, at a terminal or line by line from a pipe.

mod by_daemon;
mod commands;
mod conversation;
mod here;
mod input;
mod screen;
mod talk;
mod template;

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use bantam_core::Cpu;
use bantam_model::generate::{Finish, Held};
use bantam_model::reply::reader::Reader;
use clap::Args;

use crate::adapter_flag::AdapterFlag;
use crate::chosen_model::ChosenModel;
use crate::daemon::{DaemonFlags, Step};
use crate::device_flags::DeviceFlags;
use crate::engine_flags::{ContextFlag, EngineFlags};
use crate::failure::{Failure, refused};
use crate::interrupt::Interrupt;
use crate::sampling_flags::SamplingFlags;
use crate::{output, run, style};

use by_daemon::Far;
use commands::{COMMANDS, Command};
use conversation::Conversation;
use here::Here;
use input::{Input, Typed};
use screen::{Manner, Screen};
use talk::{Answer, Ended, Model, Talk};
use template::{Template, TemplateFlags};

/// Talks with a model; every line is a message
#[derive(Args)]
#[command(
    after_help = "At the prompt: /help lists the commands; \\ at the end of a line goes on in the next; \"\"\" begins \
                  and ends a message of several lines; Ctrl-C stops an answer; Ctrl-D ends.\n\n\
                  From a pipe, every line is a message, and answers come without thinking, which --json tells.\n\n\
                  Examples:\n  bantam chat\n  bantam chat ./my-model --system \"Be brief.\"\n  \
                  bantam chat ./my-model --template-arg 'reasoning_effort=\"low\"'\n  \
                  echo \"What is a bantam?\" | bantam chat ./my-model --json"
)]
pub(crate) struct Chat {
    #[command(flatten)]
    model: ChosenModel,
    /// The system message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Goes on with a conversation: JSON messages, as /save writes them
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateFlags,
    /// Shows answers without the thinking before them
    #[arg(long)]
    hide_thinking: bool,
    /// Neither reads nor writes the file of what was typed in earlier chats
    #[arg(long)]
    no_history: bool,
    /// Writes one JSON object per answer
    #[arg(long)]
    json: bool,
    /// Says after every answer how fast it was
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    context: ContextFlag,
    #[command(flatten)]
    adapter: AdapterFlag,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

/// A conversation under way.
struct Session {
    talk: Talk,
    conversation: Conversation,
    last: Option<Answer>,
    interrupt: Interrupt,
    manner: Manner,
    /// At a terminal mistakes are told and the chat goes on; in a script they end it.
    is_interactive: bool,
    is_verbose: bool,
}

impl Chat {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
        let manner = match (self.json, is_interactive) {
            (true, _) => Manner::Silent,
            (false, true) => Manner::Terminal { hide_thinking: self.hide_thinking },
            (false, false) => Manner::Plain,
        };
        let with_history = !self.no_history;
        let is_verbose = self.verbose;
        let is_carried = self.model.path().is_none();
        let mut conversation = match &self.messages {
            Some(file) => Conversation::load(file)?,
            None => Conversation::default(),
        };
        if let Some(system) = &self.system {
            conversation.set_system(system);
        }
        let interrupt = Interrupt::install()
            .map_err(|error| refused(format!("Ctrl-C cannot be noticed on this system: {error}")))?;
        let talk = self.talk()?;
        let session =
            Session { talk, conversation, last: None, interrupt, manner, is_interactive, is_verbose };
        let input = match is_interactive {
            true => Input::terminal(with_history)?,
            false => Input::Lines,
        };
        session.greet(is_carried);
        session.run(input)
    }

    /// The model, in a daemon's memory where there is one, else in ours.
    fn talk(self) -> Result<Talk, Failure> {
        let far = match self.device.find(&self.adapter, &self.daemon)? {
            Some(link) => Far::open(link, &self)?,
            None => Step::Without,
        };
        let model = match far {
            Step::Done(far) => Model::Far(Box::new(far)),
            Step::Without => Model::Here(Box::new(self.here()?)),
        };
        let seed = self.sampling.seed();
        let talk = Talk { model, sampling: self.sampling, seed, answers: 0 };
        talk.flags()?;
        Ok(talk)
    }

    /// Everything that can be refused is, before the model is loaded.
    fn here(&self) -> Result<Here, Failure> {
        let source = self.adapter.beside(self.model.open()?)?;
        let context = self.context.of(&source.spec);
        let options = self.engine.options(&source.spec, || self.device.has_card(), context, 1, 1);
        run::warn_of_overlooked(&source, &source.plan(options, Cpu::detect())?);
        let template = Template::of(&source, &self.template)?;
        let text = source.text()?;
        let reader = Reader::for_chat(&text.tokenizer, text.table.clone());
        let defaults = source.generation_defaults()?;
        let mut engine = self.engine.load(&source, options, &self.device)?;
        let held = Held::open(&mut engine)?;
        Ok(Here { source, text, template, engine, held, reader, defaults })
    }
}

impl Session {
    fn greet(&self, is_carried: bool) {
        if !self.is_interactive {
            return;
        }
        let (model, context) = (self.talk.name(), self.talk.context());
        let mut text = format!("{model}, context of {context} tokens; /help lists the commands, Ctrl-D ends");
        if is_carried {
            text +=
                "\nit is tiny and no good talker: it shows that chat works; real talk: bantam chat FOLDER";
        }
        output::say(&style::on_stderr(style::FAINT, &text));
    }

    fn run(mut self, mut input: Input) -> Result<(), Failure> {
        // A conversation from a file may end with a question.
        if self.conversation.messages().last().is_some_and(|message| message["role"] != "assistant")
            && self.conversation.messages().iter().any(|message| message["role"] == "user")
        {
            let answered = self.answer().map(|_| ());
            self.tell(answered)?;
        }
        loop {
            match self.is_interactive {
                true => self.interrupt.note(),
                false => self.interrupt.end_program(),
            }
            let message = match input.next()? {
                Typed::Message(message) => message,
                Typed::Nothing => continue,
                Typed::End => break,
            };
            let done = match commands::parse(&message) {
                _ if message.trim().is_empty() => continue,
                Some(Ok(Command::Exit)) => return Ok(()),
                Some(Ok(command)) => self.obey(command),
                Some(Err(wrong)) => Err(refused(wrong)),
                None => self.say(&message),
            };
            self.tell(done)?;
        }
        Ok(())
    }

    /// Tells what went wrong and goes on, where somebody is there to try again.
    fn tell(&self, done: Result<(), Failure>) -> Result<(), Failure> {
        match done {
            Err(failure) if self.is_interactive && !matches!(failure, Failure::Output(_)) => {
                output::error(&failure.to_string());
                Ok(())
            }
            // The program itself was called as it should be.
            Err(failure) if failure.exit_status() == 2 => Err(refused(failure.to_string())),
            done => done,
        }
    }

    /// Takes a message and answers it. One that cannot be answered is taken back.
    fn say(&mut self, message: &str) -> Result<(), Failure> {
        let before = self.conversation.clone();
        self.conversation.push_user(message);
        self.answer_or(before)
    }

    /// Answers, or goes back to how things were.
    fn answer_or(&mut self, before: Conversation) -> Result<(), Failure> {
        let answered = self.answer();
        if !matches!(answered, Ok(true)) {
            self.conversation = before;
        }
        answered.map(|_| ())
    }

    /// Answers the last message. `false` where Ctrl-C came before the first word.
    fn answer(&mut self) -> Result<bool, Failure> {
        self.interrupt.note();
        let mut screen = Screen::new(self.manner, style::is_stdout_coloured(), io::stdout());
        let Some(answer) = self.talk.answer(&self.conversation, &mut screen, &self.interrupt)? else {
            self.note("[stopped before the first word: as if nothing had been said]");
            return Ok(false);
        };
        self.conversation.push(answer.message());
        if self.manner == Manner::Silent {
            output::json(&answer.json())?;
        }
        let context = self.talk.context();
        match answer.ended {
            Ended::Interrupted => self.note("[stopped]"),
            _ if answer.has_filled(context) => {
                let advice = self.talk.advice();
                self.note(&format!("[cut off: the context of {context} tokens is full; {advice}]"));
            }
            Ended::By(Finish::Length) => self.note(&format!(
                "[cut off after {} tokens; to allow more: /set max_new_tokens N, or --max-new-tokens N]",
                answer.new_tokens()
            )),
            Ended::By(_) => {}
        }
        if self.is_verbose {
            output::say(&style::on_stderr(style::FAINT, &answer.summary()));
        }
        self.last = Some(answer);
        if self.is_interactive && self.manner != Manner::Silent {
            output::line("")?;
        }
        Ok(true)
    }

    /// Says something beside the conversation, to those who watch.
    fn note(&self, text: &str) {
        if self.is_interactive {
            output::say(&style::on_stderr(style::FAINT, text));
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            // Ended where it was read.
            Command::Exit => {}
            Command::Help => output::say(&help()),
            Command::Clear => {
                self.conversation.clear();
                self.note("[a new conversation]");
            }
            Command::Save { file, replace } => {
                self.conversation.save(&file, replace)?;
                self.note(&format!("[{} messages saved to {}]", self.count(), file.display()));
            }
            Command::Load(file) => {
                self.conversation = Conversation::load(&file)?;
                self.note(&format!("[{} messages from {}]", self.count(), file.display()));
            }
            Command::System(text) => {
                self.conversation.set_system(&text);
                self.note(if text.is_empty() { "[no system message]" } else { "[system message set]" });
            }
            Command::Undo => {
                self.undo(false)?;
                self.note("[the last message is forgotten]");
            }
            Command::Retry => {
                let before = self.conversation.clone();
                self.undo(true)?;
                return self.answer_or(before);
            }
            Command::Set { key, value } => {
                self.set(&key, value.as_deref())?;
                self.note(&format!("[{key} is set]"));
            }
            Command::Stats => self.stats()?,
        }
        Ok(())
    }

    fn count(&self) -> usize {
        self.conversation.messages().len()
    }

    fn undo(&mut self, keep_message: bool) -> Result<(), Failure> {
        match self.conversation.undo(keep_message) {
            true => Ok(()),
            false => Err(refused("nothing was said yet: type a message first")),
        }
    }

    /// Changes a sampling flag for the answers to come; a wrong one changes nothing.
    fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), Failure> {
        let changed = self.talk.sampling.with(key, value)?;
        let before = std::mem::replace(&mut self.talk.sampling, changed);
        let (seed, answers) = (self.talk.seed, self.talk.answers);
        if key == "seed" {
            (self.talk.seed, self.talk.answers) = (self.talk.sampling.seed(), 0);
        }
        let judged = self.talk.flags();
        if judged.is_err() {
            self.talk.sampling = before;
            (self.talk.seed, self.talk.answers) = (seed, answers);
        }
        judged.map(|_| ())
    }

    fn stats(&self) -> Result<(), Failure> {
        let (tokens, context) = self.talk.room(&self.conversation)?;
        output::say(&format!("{} messages, {tokens} of {context} tokens in use", self.count()));
        if let Some(answer) = &self.last {
            output::say(&answer.summary());
        }
        Ok(())
    }
}

fn help() -> String {
    let row = |(name, argument, about): &(&str, &str, &str)| {
        vec![format!("  {name} {argument}").trim_end().to_owned(), (*about).to_owned()]
    };
    let rows: Vec<_> = COMMANDS.iter().filter(|(.., about)| !about.is_empty()).map(row).collect();
    format!(
        "{}\n\n  \\ at the end of a line goes on in the next; \"\"\" begins and ends a message of several lines\n  \
         Ctrl-C stops an answer, what was said of it stays; once more before it has stopped ends the program\n  \
         Ctrl-D ends the chat",
        output::table(&rows, &[false, false])
    )
}
