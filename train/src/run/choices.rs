//! What a run takes from the settings, as numbers; and which keys it cannot follow yet. Those are refused: nothing that
//! changes the result is passed over.

use std::path::PathBuf;

use bantam_model::formats::on_load::{OnLoad, way};

use super::{rates, report};
use crate::optimizer::schedule::Schedule;
use crate::optimizer::{AdamW, Group, Muon, Rule, Sgd, Variant, is_decayed, is_shortened};
use crate::settings::{Settings, SettingsError, flag};
use crate::step::parameters::{Parameter, Role};

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Method {
    /// All weights.
    Full,
    /// Some weights, the others staying as they are.
    Freeze(Freeze),
    /// An adapter that goes on from where it stands.
    Adapter(PathBuf),
    /// A new adapter.
    Lora(Lora),
}

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Freeze {
    /// So many layers: the last ones, or the first where it is negative.
    pub(super) layers: i64,
    /// Their modules.
    pub(super) modules: Vec<String>,
    /// Modules beside the layers.
    pub(super) extra: Vec<String>,
}

/// A new adapter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lora {
    pub(super) rank: usize,
    pub(super) alpha: usize,
    pub(super) targets: Vec<String>,
    /// Tensors of experts.
    pub(super) parameters: Vec<String>,
    /// Modules that are trained whole.
    pub(super) saved: Vec<String>,
    pub(super) rslora: bool,
    pub(super) dora: bool,
    pub(super) dropout: f64,
    pub(super) pissa: Option<Pissa>,
}

impl Lora {
    /// What its products are multiplied by.
    pub(super) fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha as f64 / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// An adapter that begins as the largest parts of the model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pissa {
    /// Powers of a matrix that these are found with; exactly without.
    pub(super) powers: Option<usize>,
    /// Whether the result is also written so that it fits the model as it is.
    pub(super) is_converted: bool,
}

/// How often something is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Every {
    Never,
    Epoch,
    Steps(u64),
}

/// When the model is measured, and what becomes of that.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measuring {
    /// Examples side by side.
    pub(super) batch: usize,
    /// Before the first step.
    pub(super) at_start: bool,
    /// When all is over.
    pub(super) at_end: bool,
    /// Not before so many steps, or epochs where it is by those.
    pub(super) delay: f64,
    /// What the best is the best by.
    pub(super) metric: &'static str,
    /// Whether the best is looked for, and if more is better.
    pub(super) best: Option<bool>,
    /// Whether it is what is left at the end.
    pub(super) takes_best: bool,
    /// After how many disappointments the run ends.
    pub(super) patience: Option<u64>,
}

/// How a run begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Start {
    /// From the last checkpoint where there is one, else anew.
    Found,
    /// From the last checkpoint, which is to be there.
    Last,
    /// Anew, whatever is there.
    Anew,
    /// From a checkpoint that somebody named.
    Named(PathBuf),
}

/// Whether a card takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Where there is one.
    MayBe,
    Never,
    /// Or there is no run.
    Must,
}

#[derive(Debug)]
pub(super) struct Choices<'a> {
    settings: &'a Settings,
    pub(super) output: PathBuf,
    pub(super) method: Method,
    /// Adapters that become part of the model before anything is trained.
    pub(super) merged: Vec<PathBuf>,
    /// How matrices of the model are quantized that are not yet.
    pub(super) quantization: Option<&'static OnLoad>,
    pub(super) start: Start,
    pub(super) batch: usize,
    pub(super) accumulation: usize,
    pub(super) seed: u64,
    pub(super) data_seed: u64,
    pub(super) clip: f64,
    pub(super) rate: f64,
    pub(super) save_limit: Option<usize>,
    pub(super) measuring: Measuring,
    /// Of the inputs of changes.
    pub(super) dropout: f32,
    /// On embeddings.
    pub(super) noise: f32,
    /// Of labels, what goes to all the vocabulary.
    pub(super) smoothing: f32,
    /// Bytes that the run may take.
    pub(super) ram: Option<u64>,
    /// Whether a card takes part, and bytes of it.
    pub(super) card: Wanted,
    pub(super) vram: Option<u64>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(settings: &'a Settings) -> Result<Self, SettingsError> {
        let complaints = complaints(settings);
        if !complaints.is_empty() {
            return Err(SettingsError::of(complaints));
        }
        let size = |key: &str| settings.count(key).and_then(|count| usize::try_from(count).ok());
        let seed = settings.count("seed").and_then(|seed| u64::try_from(seed).ok()).unwrap_or_default();
        let data_seed = settings.count("data_seed").and_then(|seed| u64::try_from(seed).ok());
        Ok(Choices {
            settings,
            output: settings.text("output_dir").unwrap_or_default().into(),
            method: method(settings),
            merged: adapters_given(settings).1,
            quantization: quantization(settings),
            start: start(settings),
            batch: size("per_device_train_batch_size").unwrap_or(1),
            accumulation: size("gradient_accumulation_steps").unwrap_or(1),
            seed,
            data_seed: data_seed.unwrap_or(seed),
            clip: settings.number("max_grad_norm").unwrap_or(0.0),
            rate: settings.number("learning_rate").unwrap_or_default(),
            save_limit: size("save_total_limit"),
            measuring: measuring(settings),
            dropout: settings.number("lora_dropout").unwrap_or_default() as f32,
            noise: settings.number("neftune_noise_alpha").unwrap_or_default() as f32,
            smoothing: settings.number("label_smoothing_factor").unwrap_or_default() as f32,
            ram: settings.text("ram_budget").as_deref().and_then(bytes),
            card: wanted(settings).unwrap_or(Wanted::Never),
            vram: vram(settings),
        })
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.settings.flag(key)
    }

    /// What all of this was taken from.
    pub(super) fn settings(&self) -> &Settings {
        self.settings
    }

    /// Whether bfloat16 is used where it may be.
    pub(super) fn is_half(&self) -> bool {
        self.flag("bf16") || self.flag("pure_bf16")
    }

    /// Whether gradients are kept in bfloat16: of all weights, where they are one batch's.
    pub(super) fn has_short_gradients(&self) -> bool {
        let is_of_weights = matches!(self.method, Method::Full | Method::Freeze(_));
        is_of_weights && self.is_half() && self.accumulation == 1
    }

    /// Batches and steps of an epoch, and steps of the run, as the Trainer counts them.
    pub(super) fn steps(&self, examples: usize) -> (u64, u64, u64) {
        let batches = match self.flag("dataloader_drop_last") {
            true => examples / self.batch,
            false => examples.div_ceil(self.batch),
        };
        let epoch = (batches.div_ceil(self.accumulation) as u64).max(1);
        let most = self.settings.count("max_steps").and_then(|steps| u64::try_from(steps).ok());
        let epochs = self.settings.number("num_train_epochs").unwrap_or_default();
        let steps = most.filter(|&steps| steps > 0).unwrap_or((epochs * epoch as f64).ceil() as u64);
        (batches as u64, epoch, steps)
    }

    /// How rates change over so many steps.
    pub(super) fn schedule(&self, steps: u64) -> Schedule {
        rates::schedule(self.settings, steps)
    }

    /// How often; shares below 1 are of all steps.
    pub(super) fn every(&self, what: Doing, steps: u64) -> Every {
        let number = interval(self.settings, what);
        let whole = if number < 1.0 { (steps as f64 * number).ceil() } else { number };
        match strategy(self.settings, what).as_str() {
            "no" => Every::Never,
            "epoch" => Every::Epoch,
            _ => Every::Steps((whole as u64).max(1)),
        }
    }

    /// How a parameter takes a step.
    pub(super) fn group(&self, parameter: &Parameter) -> Group {
        let number = |key: &str, otherwise: f64| self.settings.number(key).unwrap_or(otherwise);
        let betas = [number("adam_beta1", 0.9), number("adam_beta2", 0.999)];
        let is_muon = self.flag("use_muon");
        let is_short = self.settings.text("optim").is_some_and(|optim| optim.contains("8bit"));
        let is_sgd = self.settings.text("optim").as_deref() == Some("sgd");
        let rest = if is_muon { number("adamw_learning_rate", self.rate) } else { self.rate };
        let is_moonlight = is_muon && self.muon().variant == Variant::Moonlight;
        let is_turned = match parameter.role {
            Role::Embedding | Role::Head => false,
            // LLaMA-Factory's rule for Moonlight's: whatever has two dimensions, and nothing else.
            _ if is_moonlight => parameter.shape.len() == 2,
            role => is_muon && role == Role::Matrix,
        };
        let rate = match parameter.role {
            _ if is_turned => self.rate,
            Role::Embedding => rest * number("embedding_lr_ratio", 1.0),
            Role::Head => rest * number("head_lr_ratio", 1.0),
            Role::Up => rest * number("loraplus_lr_ratio", 1.0),
            _ => rest,
        };
        let rule = match parameter.role {
            _ if is_turned => Rule::Muon(self.muon()),
            _ if is_sgd && !is_muon => Rule::Sgd(Sgd { momentum: 0.0, nesterov: false }),
            _ => {
                let epsilon = number("adam_epsilon", 1e-8);
                let constants = AdamW { betas, epsilon, is_early: is_moonlight };
                match is_short && !is_muon && is_shortened(parameter) {
                    true => Rule::ShortAdamW(constants),
                    false if self.has_short_gradients() => Rule::HalfAdamW(constants),
                    false => Rule::AdamW(constants),
                }
            }
        };
        // Moonlight's own optimizer has one decay for all.
        let decay = if is_muon || is_decayed(parameter) { number("weight_decay", 0.0) } else { 0.0 };
        Group { rule, rate, decay }
    }

    /// How matrices are held in four bits, in transformers' words.
    pub(super) fn four_bits(&self) -> Option<serde_json::Value> {
        let way = self.quantization.filter(|way| way.name != EIGHT_BITS)?;
        Some(serde_json::json!({
            "bnb_4bit_quant_type": if way.name.ends_with("fp4") { "fp4" } else { "nf4" },
            "bnb_4bit_use_double_quant": way.name.starts_with("bnb"),
            "load_in_4bit": true,
            "quant_method": "bitsandbytes",
        }))
    }

    fn muon(&self) -> Muon {
        let variant = match self.settings.text("muon_variant").as_deref() {
            Some("keller-jordan") => Variant::KellerJordan,
            _ => Variant::Moonlight,
        };
        Muon { variant, momentum: 0.95, nesterov: true, iterations: 5 }
    }
}

/// What is done again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Doing {
    Log,
    Measure,
    Save,
}

fn strategy(settings: &Settings, what: Doing) -> String {
    let word = |key: &str| settings.text(key).unwrap_or_default();
    match what {
        Doing::Log => word("logging_strategy"),
        // The older name means the same.
        Doing::Measure if settings.is_given("evaluation_strategy") => word("evaluation_strategy"),
        Doing::Measure => word("eval_strategy"),
        Doing::Save => word("save_strategy"),
    }
}

fn interval(settings: &Settings, what: Doing) -> f64 {
    let logging = settings.number("logging_steps");
    let number = match what {
        Doing::Log => logging,
        // As often as is logged, where nobody says anything.
        Doing::Measure => settings.number("eval_steps").filter(|&steps| steps > 0.0).or(logging),
        Doing::Save => settings.number("save_steps"),
    };
    number.unwrap_or(1.0)
}

fn measuring(settings: &Settings) -> Measuring {
    let size = |key: &str| settings.count(key).and_then(|count| usize::try_from(count).ok());
    let is_measured = strategy(settings, Doing::Measure) != "no";
    let takes_best = settings.flag("load_best_model_at_end");
    let wants_best = is_measured && (takes_best || settings.is_given("metric_for_best_model"));
    let metric = settings.text("metric_for_best_model").unwrap_or_default();
    let is_loss = !matches!(metric.as_str(), "accuracy" | "eval_accuracy");
    let more_is_better =
        if settings.is_given("greater_is_better") { settings.flag("greater_is_better") } else { !is_loss };
    Measuring {
        batch: size("per_device_eval_batch_size").unwrap_or(1),
        at_start: settings.flag("eval_on_start"),
        at_end: settings.flag("do_eval") || is_measured,
        delay: settings.number("eval_delay").unwrap_or(0.0),
        metric: if is_loss { "eval_loss" } else { "eval_accuracy" },
        best: wants_best.then_some(more_is_better),
        takes_best,
        patience: size("early_stopping_steps").map(|steps| steps as u64),
    }
}

/// The adapter that is trained on, the last that is named unless a new one is made; and those that are merged.
fn adapters_given(settings: &Settings) -> (Option<PathBuf>, Vec<PathBuf>) {
    let names = settings.names("adapter_name_or_path").unwrap_or_default();
    let mut adapters: Vec<PathBuf> = names.into_iter().map(PathBuf::from).collect();
    let last = if settings.flag("create_new_adapter") { None } else { adapters.pop() };
    (last, adapters)
}

fn method(settings: &Settings) -> Method {
    let names = |key: &str| settings.names(key).unwrap_or_default();
    match settings.text("finetuning_type").as_deref() {
        Some("full") => return Method::Full,
        Some("freeze") => {
            return Method::Freeze(Freeze {
                layers: settings.count("freeze_trainable_layers").unwrap_or(2),
                modules: names("freeze_trainable_modules"),
                extra: names("freeze_extra_modules"),
            });
        }
        _ => {}
    }
    if let (Some(adapter), _) = adapters_given(settings) {
        return Method::Adapter(adapter);
    }
    let size = |key: &str| settings.count(key).and_then(|count| usize::try_from(count).ok());
    let rank = size("lora_rank").unwrap_or(8);
    Method::Lora(Lora {
        rank,
        alpha: size("lora_alpha").unwrap_or(2 * rank),
        targets: names("lora_target"),
        parameters: names("target_parameters"),
        saved: names("additional_target"),
        rslora: settings.flag("use_rslora"),
        dora: settings.flag("use_dora"),
        dropout: settings.number("lora_dropout").unwrap_or_default(),
        pissa: settings
            .flag("pissa_init")
            .then(|| Pissa { powers: size("pissa_iter"), is_converted: settings.flag("pissa_convert") }),
    })
}

/// The way that is not of four bits.
const EIGHT_BITS: &str = "int8";

/// bitsandbytes' ways, by its settings.
fn quantization(settings: &Settings) -> Option<&'static OnLoad> {
    let is_qlora = settings.text("finetuning_type").as_deref() == Some("qlora");
    let bits = settings.count("quantization_bit").or(is_qlora.then_some(4))?;
    let is_fp4 = settings.text("quantization_type").as_deref() == Some("fp4");
    way(match (bits, is_fp4, settings.flag("double_quantization")) {
        (8, ..) => EIGHT_BITS,
        (_, false, true) => "bnb-4bit",
        (_, false, false) => "nf4",
        (_, true, true) => "bnb-fp4",
        (_, true, false) => "fp4",
    })
}

/// Bytes, as people write them.
fn bytes(words: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((words.strip_suffix(name)?, unit)))?;
    let number: f64 = number.trim().parse().ok()?;
    let bytes = number * *unit as f64;
    (bytes.is_finite() && bytes >= 1.0).then_some(bytes as u64)
}

/// What `device` says; which card it is, is for whoever has cards.
fn wanted(settings: &Settings) -> Option<Wanted> {
    let device = settings.text("device");
    match device.as_deref().unwrap_or("auto") {
        "auto" => Some(Wanted::MayBe),
        "cpu" => Some(Wanted::Never),
        "cuda" => Some(Wanted::Must),
        named => named.strip_prefix("cuda:")?.parse::<u8>().ok().map(|_| Wanted::Must),
    }
}

fn start(settings: &Settings) -> Start {
    let words = settings.text("resume_from_checkpoint").unwrap_or_default();
    match (words.as_str(), flag(&words)) {
        ("", _) | (_, Some(false)) if settings.flag("overwrite_output_dir") => Start::Anew,
        ("", _) | (_, Some(false)) => Start::Found,
        (_, Some(true)) => Start::Last,
        (folder, None) => Start::Named(folder.into()),
    }
}

/// Bytes of a card that a run may take, where its settings say so.
pub fn vram(settings: &Settings) -> Option<u64> {
    settings.text("vram").as_deref().and_then(bytes)
}

/// Everything that a run cannot do yet.
fn complaints(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |key: &str, words: String| found.push(format!("{}: {key}: {words}", settings.place(key)));
    if settings.text("output_dir").is_none_or(|folder| folder.is_empty()) {
        say("output_dir", "expected output_dir, found none; name the folder for what is trained".to_owned());
    }
    for key in ["ram_budget", "vram"] {
        if let Some(budget) = settings.text(key).filter(|words| bytes(words).is_none()) {
            let budget = bantam_model::foreign::clipped(&budget);
            say(key, format!("expected bytes, found {budget}; write them like 20GiB"));
        }
    }
    match wanted(settings) {
        None => {
            let device = settings.text("device").unwrap_or_default();
            let found = bantam_model::foreign::clipped(&device);
            say("device", format!("expected auto, cpu, cuda or cuda:N with a card's number, found {found}"));
        }
        Some(Wanted::Never) if settings.text("vram").is_some() => {
            say("vram", "device: cpu uses none; leave one of them out".to_owned());
        }
        _ => {}
    }
    adapters(settings, &mut say);
    if settings.flag("train_from_scratch") && settings.text("finetuning_type").as_deref() != Some("full") {
        say("train_from_scratch", "expected finetuning_type: full beside it; set it".to_owned());
    }
    let kind = settings.text("finetuning_type").unwrap_or_default();
    if settings.flag("use_muon") && !matches!(kind.as_str(), "full" | "freeze") {
        let words = "expected finetuning_type: full or freeze beside it; leave it out for adapters";
        say("use_muon", words.to_owned());
    }
    rates::complaints(settings).into_iter().for_each(|(key, words)| say(key, words));
    report::complaints(settings).into_iter().for_each(|(key, words)| say(key, words));
    measuring_complaints(settings, &mut say);
    found
}

/// What cannot stand together where a run is measured.
fn measuring_complaints(settings: &Settings, say: &mut dyn FnMut(&str, String)) {
    let is_measured = strategy(settings, Doing::Measure) != "no";
    let has_data = !settings.data.eval_datasets.is_empty() || settings.data.val_size > 0.0;
    if settings.flag("eval_on_start") && !has_data {
        say(
            "eval_on_start",
            "expected data to measure with, found none; give val_size or eval_dataset".into(),
        );
    }
    let metric = settings.text("metric_for_best_model").unwrap_or_else(|| "loss".to_owned());
    let is_known = match metric.as_str() {
        "loss" | "eval_loss" => true,
        "accuracy" | "eval_accuracy" => settings.flag("compute_accuracy"),
        _ => false,
    };
    if !is_known {
        let found = bantam_model::foreign::clipped(&metric);
        let words = format!("expected loss, or accuracy with compute_accuracy: true, found {found}");
        say("metric_for_best_model", words);
    }
    for key in ["load_best_model_at_end", "early_stopping_steps"] {
        if settings.differs(key) && !is_measured {
            say(key, "expected the model to be measured during the run; set eval_strategy beside it".into());
        }
    }
    let knows_best = settings.flag("load_best_model_at_end") || settings.is_given("metric_for_best_model");
    if settings.is_given("early_stopping_steps") && is_measured && !knows_best {
        say("early_stopping_steps", "expected load_best_model_at_end: true beside it".to_owned());
    }
    if !settings.flag("load_best_model_at_end") || !is_measured {
        return;
    }
    let [measure, save] = [Doing::Measure, Doing::Save].map(|what| strategy(settings, what));
    let [every, kept] = [Doing::Measure, Doing::Save].map(|what| interval(settings, what));
    let times = kept / every;
    if measure != save {
        let words =
            format!("expected eval_strategy and save_strategy to be the same, found {measure} and {save}");
        say("load_best_model_at_end", words);
    } else if measure == "steps" && (times < 1.0 || (times - times.round()).abs() > 1e-6) {
        let words = format!("expected save_steps to be a multiple of eval_steps, found {kept} and {every}");
        say("load_best_model_at_end", words);
    }
}

/// What cannot stand together in adapters.
fn adapters(settings: &Settings, say: &mut dyn FnMut(&str, String)) {
    let is_given = |key: &str| settings.names(key).is_some_and(|names| !names.is_empty());
    if is_given("target_parameters") {
        for key in ["lora_dropout", "use_dora", "pissa_init"] {
            if settings.differs(key) {
                say(
                    key,
                    "expected none beside target_parameters, as in PEFT; leave one of both out".to_owned(),
                );
            }
        }
    }
    if is_given("adapter_name_or_path") && !settings.flag("create_new_adapter") {
        for key in ["pissa_init", "additional_target", "target_parameters"] {
            if settings.differs(key) {
                let words = "it is for a new adapter, found adapter_name_or_path; set create_new_adapter: \
                             true, or leave one of both out";
                say(key, words.to_owned());
            }
        }
    }
}

/// Keys that are executed later or otherwise, in words for the user.
pub(super) fn notes(settings: &Settings) -> Vec<String> {
    let mut notes = Vec::new();
    if settings.flag("pure_bf16") {
        let words =
            "pure_bf16: as bf16; while they are trained, weights and what optimizers keep stay float32";
        notes.push(words.to_owned());
    }
    if settings.flag("bf16") || settings.flag("pure_bf16") {
        let full = settings.text("finetuning_type").as_deref() == Some("full");
        let files = if full { "; the model is written in bfloat16" } else { "" };
        notes.push(format!(
            "bf16: what a layer hands to the next is kept in bfloat16, half of the memory; sums are float32{files}"
        ));
    }
    notes
}
