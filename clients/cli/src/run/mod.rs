//! `bantam run`: continues a prompt, and writes the text while it comes.

mod by_daemon;

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bantam_core::Cpu;
use bantam_model::checkpoint::writer;
use bantam_model::engine::{Engine, ExpertsMet, Placed};
use bantam_model::generate::{Finish, Generation};
use bantam_model::generation::{EosSources, GenerationSettings};
use bantam_model::inspect::Inspection;
use bantam_model::plan::Plan;
use bantam_model::reply::reader::Reader;
use bantam_model::source::{Source, Text};
use clap::Args;
use serde_json::{Value, json};

use crate::adapter_flag::AdapterFlag;
use crate::daemon::DaemonFlags;
use crate::device_flags::DeviceFlags;
use crate::engine_flags::{ContextFlag, EngineFlags};
use crate::failure::{Failure, refused, usage};
use crate::progress::Progress;
use crate::sampling_flags::SamplingFlags;
use crate::token_ids::{self, TokenIds};
use crate::{chosen_model, device_flags, output, style, written_file};

/// A prompt may be this long: more than any context holds, and little enough for the tokenizer to answer at once.
const PROMPT_BYTES_MAX: usize = 4 << 20;

/// Continues a prompt, and writes the text while it comes
#[derive(Args)]
#[command(
    override_usage = "bantam run [OPTIONS] [MODEL] PROMPT\n       bantam run [OPTIONS] [MODEL] --ids 1,2,3",
    after_help = "Examples:\n  bantam run \"Once upon a time\"\n  bantam run ./my-model \"Once upon a time\"\n  \
                  bantam run ./my-model - < prompt.txt"
)]
pub(crate) struct Run {
    /// MODEL, a folder in Hugging Face form (without it, the small model that bantam carries), and PROMPT, the text
    /// to continue (- reads it from standard input)
    #[arg(value_name = "MODEL] [PROMPT", num_args = 0..=2)]
    places: Vec<String>,
    /// MODEL by name
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// PROMPT by name
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids instead of a prompt, taken as they are
    #[arg(long, value_name = "IDS", conflicts_with = "prompt")]
    ids: Option<TokenIds>,
    /// Writes one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
    /// Says how fast it was, also where nobody watches
    #[arg(long, short)]
    verbose: bool,
    /// Writes down which experts were chosen, for `bantam plan --routing`; the model then runs in this process
    #[arg(long, value_name = "FILE")]
    record_routing: Option<PathBuf>,
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

/// What is to be continued.
#[derive(Debug, PartialEq, Eq)]
enum Prompt {
    Ids(Vec<u32>),
    Text(String),
    Piped,
}

impl Run {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let (model, prompt) = self.model_and_prompt()?;
        let link = match self.record_routing {
            Some(_) => None,
            None => self.device.find(&self.adapter, &self.daemon)?,
        };
        let (prompt, source) = match link {
            Some(link) => match self.by_daemon(&link, model.as_deref(), prompt)? {
                None => return Ok(()),
                Some(left) => left,
            },
            None => (prompt, None),
        };
        let source = source.map_or_else(|| chosen_model::open(model.as_deref()), Ok)?;
        let source = self.adapter.beside(source)?;
        let context = self.context.of(&source.spec);
        let options = self.engine.options(&source.spec, || self.device.has_card(), context, 1, 1);
        warn_of_overlooked(&source, &source.plan(options, Cpu::detect())?);
        let text = match &prompt {
            Prompt::Ids(_) if !self.sampling.has_stop_strings() => source.text_if_any()?,
            _ => Some(source.text()?),
        };
        let ids = ids(&source, text.as_ref(), prompt)?;
        token_ids::check(&source, &ids)?;
        check_length(&source, ids.len(), context)?;
        let settings = self.settings(&source, text.as_ref())?;
        self.check_recording(&source)?;
        let mut engine = self.engine.load(&source, options, &self.device)?;
        if self.record_routing.is_some() {
            engine.record_routing();
        }
        let mut story = Story::new(settings.sampling.seed, ids.len());
        self.generate(&mut engine, text.as_ref(), settings, &ids, &mut story)?;
        if let Some((file, trace)) = self.record_routing.as_ref().zip(engine.routing()) {
            writer::write_file(file, &trace.to_bytes())?;
        }
        if self.json {
            let (bytes, met) = (engine.memory_bytes() as u64, engine.experts_met());
            output::json(&story.json(bytes, engine.placed(), met))?;
        }
        self.sum_up(&story);
        Ok(())
    }

    /// Refuses to record what cannot be before the model is loaded.
    fn check_recording(&self, source: &Source) -> Result<(), Failure> {
        let Some(file) = &self.record_routing else { return Ok(()) };
        written_file::check(file, &source.checkpoint, Some(&source.files))?;
        match source.spec.layers.iter().any(|layer| layer.mlp.experts.is_some()) {
            true => Ok(()),
            false => {
                Err(usage("--record-routing: expected a model with experts, found one without: leave it out"))
            }
        }
    }

    fn sum_up(&self, story: &Story) {
        if self.verbose || (output::is_watched() && !self.json) {
            output::say(&style::on_stderr(style::FAINT, &story.summary()));
        }
    }

    /// Sorts out the two places, of which the first may be left out.
    fn model_and_prompt(&self) -> Result<(Option<PathBuf>, Prompt), Failure> {
        let given = match (&self.ids, &self.prompt) {
            (Some(ids), _) => Some(Prompt::Ids(ids.0.clone())),
            (None, Some(text)) => Some(prompt(text)),
            (None, None) => None,
        };
        let is_piped = !io::stdin().is_terminal();
        match (self.places.as_slice(), &self.model, given) {
            ([], model, Some(given)) => Ok((model.clone(), given)),
            ([model], None, Some(given)) => Ok((Some(model.into()), given)),
            ([text], Some(model), None) => Ok((Some(model.clone()), prompt(text))),
            ([model, text], None, None) => Ok((Some(model.into()), prompt(text))),
            ([], model, None) if is_piped => Ok((model.clone(), Prompt::Piped)),
            ([place], None, None) if is_a_model(place) => match is_piped {
                true => Ok((Some(place.into()), Prompt::Piped)),
                false => Err(usage(format!(
                    "PROMPT is missing: {place:?} is a model; write: bantam run {place:?} \"Once upon a time\""
                ))),
            },
            ([place], None, None) if is_a_path(place) => Err(usage(format!(
                "{place:?} looks like a model's path or name, and there is no model there: `bantam pull` fetches one \
                 by name; to use it as a prompt write --prompt {place:?}"
            ))),
            ([text], None, None) => Ok((None, prompt(text))),
            ([], _, None) => Err(usage("PROMPT is missing; write: bantam run [MODEL] \"Once upon a time\"")),
            _ => Err(usage(
                "expected one MODEL and one PROMPT, found more; give each once, by place or as --model, --prompt \
                 or --ids",
            )),
        }
    }

    fn settings(&self, source: &Source, text: Option<&Text>) -> Result<GenerationSettings, Failure> {
        let eos =
            EosSources { config: &source.spec.eos, tokenizer: text.and_then(|text| text.tokenizer.eos()) };
        let defaults = source.generation_defaults()?;
        Ok(defaults.settings(&self.sampling.flags(), eos)?)
    }

    /// Generates, and writes what there is to write as soon as it is certain.
    fn generate(
        &self,
        engine: &mut Engine,
        text: Option<&Text>,
        settings: GenerationSettings,
        prompt: &[u32],
        story: &mut Story,
    ) -> Result<(), Failure> {
        let reader = text.map(|text| Reader::plain(text.table.clone()));
        story.text = text.map(|_| String::new());
        let progress = Progress::waiting(format!("reading {} tokens", prompt.len()));
        let began = Instant::now();
        let mut generation = Generation::begin(engine, reader, settings, prompt)?;
        drop(progress);
        story.prefill_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let mut out = io::stdout().lock();
        let is_terminal = out.is_terminal();
        while let Some(token) = generation.next(engine)? {
            story.finish = token.finish.unwrap_or(story.finish);
            self.show(story, &mut out, is_terminal, token.id, token.text)?;
        }
        story.decode_seconds = began.elapsed().as_secs_f64();
        generation.end(engine);
        if !self.json {
            writeln!(out)?;
            out.flush()?;
        }
        Ok(())
    }
}

impl Run {
    /// Takes a token and writes what it made certain.
    fn show(
        &self,
        story: &mut Story,
        out: &mut impl Write,
        is_terminal: bool,
        id: u32,
        text: &str,
    ) -> io::Result<()> {
        story.ids.push(id);
        match &mut story.text {
            Some(all) if self.json => all.push_str(text),
            Some(_) if is_terminal => out.write_all(output::harmless(text).as_bytes())?,
            Some(_) => out.write_all(text.as_bytes())?,
            // Without a tokenizer there are only numbers to show.
            None if !self.json => write!(out, "{id} ")?,
            None => {}
        }
        match self.json {
            true => Ok(()),
            false => out.flush(),
        }
    }
}

/// Says so where a checkpoint holds more than its configuration makes use of: the text would be that of another model.
pub(crate) fn warn_of_overlooked(source: &Source, plan: &Plan) {
    let overlooked = Inspection::new(&source.checkpoint, plan).overlooked;
    if let Some(first) = overlooked.first() {
        output::warning(&format!(
            "{}: {} tensors look like weights and are not used, {first:?} among them: does config.json belong \
             to these weights? `bantam inspect --json` lists them",
            source.folder().display(),
            overlooked.len()
        ));
    }
}

/// `-` stands for standard input.
fn prompt(text: &str) -> Prompt {
    match text {
        "-" => Prompt::Piped,
        text => Prompt::Text(text.to_owned()),
    }
}

/// Whether one argument alone is rather a model than a prompt.
fn is_a_model(place: &str) -> bool {
    let path = chosen_model::found(Path::new(place));
    path.join("config.json").is_file() || (path.is_file() && place.ends_with(".safetensors"))
}

/// Whether one argument alone was rather meant as a path than as a prompt: a text with a slash has spaces as well.
fn is_a_path(place: &str) -> bool {
    let begins = [".", "..", "~"].iter().filter_map(|begin| place.strip_prefix(begin));
    let is_relative = begins.into_iter().any(|rest| rest.starts_with(std::path::is_separator));
    is_relative || (place.contains(std::path::is_separator) && !place.contains(char::is_whitespace))
}

/// The prompt as tokens.
fn ids(source: &Source, text: Option<&Text>, prompt: Prompt) -> Result<Vec<u32>, Failure> {
    let prompt = match prompt {
        Prompt::Ids(ids) => return Ok(ids),
        Prompt::Text(text) => text,
        Prompt::Piped => piped()?,
    };
    check_bytes(prompt.len())?;
    let text = text.expect("a text prompt has asked for the tokenizer");
    let ids = text.tokenizer.encode(&prompt, true);
    Ok(ids.map_err(|error| source.tokenizer_error(error))?)
}

/// A prompt from standard input, without the line break that ends it.
fn piped() -> Result<String, Failure> {
    let failed =
        |source| Failure::Read { path: "standard input".into(), expected: "a prompt in UTF-8", source };
    let mut bytes = Vec::new();
    // One byte above the limit, which tells a prompt that is too long from one that just fits.
    io::stdin().lock().take(PROMPT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    check_bytes(bytes.len())?;
    let text = String::from_utf8(bytes);
    let mut text = text.map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    match text.is_empty() {
        true => Err(usage(
            "PROMPT is missing, and standard input is empty; write: bantam run [MODEL] \"Once upon a time\"",
        )),
        false => Ok(text),
    }
}

/// Refuses a prompt that would keep the tokenizer busy only to be too long afterwards.
pub(crate) fn check_bytes(found: usize) -> Result<(), Failure> {
    match found <= PROMPT_BYTES_MAX {
        true => Ok(()),
        false => Err(refused(format!(
            "the prompt has {found} bytes or more, expected at most {PROMPT_BYTES_MAX}: shorten it"
        ))),
    }
}

/// Refuses a prompt that does not fit before the model is loaded.
fn check_length(source: &Source, tokens: usize, context: usize) -> Result<(), Failure> {
    if tokens <= context {
        return Ok(());
    }
    let most = source.spec.context;
    let advice = match tokens < most {
        true => format!("shorten it, or raise --context (this model knows up to {most})"),
        false => format!("shorten it: this model knows up to {most}"),
    };
    Err(refused(format!("the prompt has {tokens} tokens, the context has room for {context}: {advice}")))
}

/// What happened.
struct Story {
    ids: Vec<u32>,
    /// Kept only where it is to be told at the end.
    text: Option<String>,
    finish: Finish,
    seed: u64,
    prompt_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
}

impl Story {
    fn new(seed: u64, prompt_tokens: usize) -> Self {
        Story {
            ids: Vec::new(),
            text: None,
            finish: Finish::Length,
            seed,
            prompt_tokens,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
        }
    }

    fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill_seconds
    }

    /// The first token comes from the prompt's own logits: reading them is prefill.
    fn decode_rate(&self) -> f64 {
        self.ids.len().saturating_sub(1) as f64 / self.decode_seconds
    }

    fn json(&self, memory_bytes: u64, placed: Option<&Placed>, met: Option<ExpertsMet>) -> Value {
        let met = met.map(|ExpertsMet { places, on_card, moved }| {
            json!({ "places": places, "on_card": on_card, "moved": moved })
        });
        json!({
            "ids": self.ids,
            "text": self.text,
            "finish_reason": self.finish.name(),
            "prompt_tokens": self.prompt_tokens,
            "seed": self.seed,
            "memory_bytes": memory_bytes,
            "on_card": placed.map(device_flags::as_json),
            "experts_met": met,
            "timings": {
                "prefill_seconds": self.prefill_seconds,
                "decode_seconds": self.decode_seconds,
                "prefill_tokens_per_second": self.prefill_rate(),
                "decode_tokens_per_second": self.decode_rate(),
            },
        })
    }

    fn summary(&self) -> String {
        format!(
            "[tokens: {} read at {:.1} per second, {} written at {:.1} per second; ended by {}; seed {}]",
            self.prompt_tokens,
            self.prefill_rate(),
            self.ids.len(),
            self.decode_rate(),
            self.finish.name(),
            self.seed
        )
    }
}
