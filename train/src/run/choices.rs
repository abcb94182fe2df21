//! What a run takes from the settings, as numbers; and which keys it cannot follow yet. Those are refused: nothing that
//! changes the result is passed over.

use std::path::PathBuf;

use super::report;
use crate::optimizer::schedule::{Schedule, Shape};
use crate::optimizer::{AdamW, Group, Muon, Rule, Sgd, Variant, is_decayed};
use crate::settings::{Settings, SettingsError, Stage};
use crate::step::parameters::{Parameter, Role};

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Method {
    /// All weights.
    Full,
    /// An adapter that goes on from where it stands.
    Adapter(PathBuf),
    /// A new adapter.
    Lora(Lora),
}

/// A new adapter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lora {
    pub(super) rank: usize,
    pub(super) alpha: usize,
    pub(super) targets: Vec<String>,
    pub(super) rslora: bool,
    pub(super) dora: bool,
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
    /// Anew, whatever is there.
    Anew,
    /// From a checkpoint that somebody named.
    Named(PathBuf),
}

#[derive(Debug)]
pub(super) struct Choices<'a> {
    settings: &'a Settings,
    pub(super) output: PathBuf,
    pub(super) method: Method,
    pub(super) start: Start,
    pub(super) batch: usize,
    pub(super) accumulation: usize,
    pub(super) seed: u64,
    pub(super) data_seed: u64,
    pub(super) clip: f64,
    pub(super) rate: f64,
    pub(super) save_limit: Option<usize>,
    pub(super) measuring: Measuring,
}

/// Keys that must have their defaults, or one of some other words, and what to do instead.
const NOT_YET: &[(&str, &str)] = &[
    ("train_from_scratch", "write the first weights with transformers and train those"),
    (
        "quantization_bit",
        "make the base smaller beforehand (`bantam quantize MODEL --to nf4`) and train over that",
    ),
    ("freeze_extra_modules", "use finetuning_type: lora or full"),
    ("additional_target", "leave it out: whole tensors are trained in an adapter that has them already"),
    ("lora_dropout", "leave it out: nothing is dropped yet"),
    ("target_parameters", "leave it out: new adapters are for modules yet"),
    ("pissa_init", "leave it out: new adapters begin as PEFT's plain ones"),
    ("create_new_adapter", "merge the adapter first (`bantam merge`)"),
    ("pure_bf16", "use bf16: true, or leave it out: numbers are float32"),
    ("compute_accuracy", "leave it out"),
];

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
            start: start(settings),
            batch: size("per_device_train_batch_size").unwrap_or(1),
            accumulation: size("gradient_accumulation_steps").unwrap_or(1),
            seed,
            data_seed: data_seed.unwrap_or(seed),
            clip: settings.number("max_grad_norm").unwrap_or(0.0),
            rate: settings.number("learning_rate").unwrap_or_default(),
            save_limit: size("save_total_limit"),
            measuring: measuring(settings),
        })
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.settings.flag(key)
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
        let told = self.settings.count("warmup_steps").and_then(|steps| u64::try_from(steps).ok());
        let share = self.settings.number("warmup_ratio").unwrap_or_default();
        let warmup = told.filter(|&steps| steps > 0).unwrap_or((steps as f64 * share).ceil() as u64);
        let of = |shape, warmup| Schedule { shape, warmup, steps };
        match self.settings.text("lr_scheduler_type").as_deref() {
            Some("cosine") => of(Shape::Cosine, warmup),
            // By that name, transformers warms nothing up.
            Some("constant") => of(Shape::Constant, 0),
            Some("constant_with_warmup") => of(Shape::Constant, warmup),
            Some("warmup_stable_decay") => Schedule::warmup_stable_decay(warmup, steps),
            _ => of(Shape::Linear, warmup),
        }
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
        let is_sgd = self.settings.text("optim").as_deref() == Some("sgd");
        let rest = if is_muon { number("adamw_learning_rate", self.rate) } else { self.rate };
        let rate = match parameter.role {
            Role::Matrix if is_muon => self.rate,
            Role::Embedding => rest * number("embedding_lr_ratio", 1.0),
            Role::Head => rest * number("head_lr_ratio", 1.0),
            Role::Up => rest * number("loraplus_lr_ratio", 1.0),
            _ => rest,
        };
        let rule = match parameter.role {
            Role::Matrix if is_muon => Rule::Muon(self.muon()),
            _ if is_sgd && !is_muon => Rule::Sgd(Sgd { momentum: 0.0, nesterov: false }),
            _ => Rule::AdamW(AdamW { betas, epsilon: number("adam_epsilon", 1e-8) }),
        };
        // Moonlight's own optimizer has one decay for all.
        let decay = if is_muon || is_decayed(parameter) { number("weight_decay", 0.0) } else { 0.0 };
        Group { rule, rate, decay }
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
    Measuring {
        batch: size("per_device_eval_batch_size").unwrap_or(1),
        at_start: settings.flag("eval_on_start"),
        at_end: settings.flag("do_eval") || is_measured,
        delay: settings.number("eval_delay").unwrap_or(0.0),
        best: wants_best.then(|| settings.flag("greater_is_better")),
        takes_best,
        patience: size("early_stopping_steps").map(|steps| steps as u64),
    }
}

fn method(settings: &Settings) -> Method {
    if settings.text("finetuning_type").as_deref() == Some("full") {
        return Method::Full;
    }
    if let Some(adapter) = settings.names("adapter_name_or_path").and_then(|names| names.into_iter().next()) {
        return Method::Adapter(adapter.into());
    }
    let size = |key: &str| settings.count(key).and_then(|count| usize::try_from(count).ok());
    let rank = size("lora_rank").unwrap_or(8);
    Method::Lora(Lora {
        rank,
        alpha: size("lora_alpha").unwrap_or(2 * rank),
        targets: settings.names("lora_target").unwrap_or_default(),
        rslora: settings.flag("use_rslora"),
        dora: settings.flag("use_dora"),
    })
}

fn start(settings: &Settings) -> Start {
    match settings.text("resume_from_checkpoint").as_deref() {
        Some("false" | "False") | None if settings.flag("overwrite_output_dir") => Start::Anew,
        Some("true" | "True" | "false" | "False") | None => Start::Found,
        Some(folder) => Start::Named(folder.into()),
    }
}

/// Everything that a run cannot do yet.
fn complaints(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |key: &str, words: String| found.push(format!("{}: {key}: {words}", settings.place(key)));
    for (key, instead) in NOT_YET {
        if settings.differs(key) {
            say(key, format!("expected its default, which is all that is done yet; {instead}"));
        }
    }
    if settings.text("output_dir").is_none_or(|folder| folder.is_empty()) {
        say("output_dir", "expected output_dir, found none; name the folder for what is trained".to_owned());
    }
    let kind = settings.text("finetuning_type").unwrap_or_default();
    if !matches!(kind.as_str(), "lora" | "full") {
        let instead = match kind.as_str() {
            "qlora" => "`bantam quantize MODEL --to nf4`, then finetuning_type: lora over what that writes",
            _ => "use lora or full",
        };
        say("finetuning_type", format!("{kind} is not here yet; {instead}"));
    }
    if settings.names("adapter_name_or_path").is_some_and(|names| names.len() > 1) {
        let words = "expected one adapter, found several; merge all but the last (`bantam merge`)";
        say("adapter_name_or_path", words.to_owned());
    }
    if settings.text("optim").is_some_and(|optim| optim.contains("8bit")) {
        say("optim", "expected adamw_torch or sgd, found 8 bits, which are not here yet".to_owned());
    }
    if settings.flag("use_muon") && kind != "full" {
        say("use_muon", "expected finetuning_type: full beside it; leave it out for adapters".to_owned());
    }
    report::complaints(settings).into_iter().for_each(|(key, words)| say(key, words));
    measuring_complaints(settings, &mut say);
    let is_packed = settings.stage == Stage::Sft && settings.data.packing;
    if is_packed && !settings.data.neat_packing {
        let words = "conversations that see each other are not trained; set neat_packing: true beside it";
        say("packing", words.to_owned());
    }
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
    if !matches!(metric.as_str(), "loss" | "eval_loss") {
        say("metric_for_best_model", format!("expected loss, which is all that is measured, found {metric}"));
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

/// Keys that are executed later or otherwise, in words for the user.
pub(super) fn notes(settings: &Settings) -> Vec<String> {
    let mut notes = Vec::new();
    if settings.flag("bf16") {
        let full = settings.text("finetuning_type").as_deref() == Some("full");
        let files = if full { "; the model is written in bfloat16" } else { "" };
        notes.push(format!(
            "bf16: sums and activations are float32, which costs memory and no precision{files}"
        ));
    }
    notes
}
