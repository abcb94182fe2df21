//! How far a run is: what a checkpoint needs to go on as if nothing had happened, and what others read of it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::recipe::Recipe;

/// Of this form of the file.
const FORM: u64 = 1;

/// The best checkpoint so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) value: f64,
}

/// What a run that goes on must know of the card beside it, to get the same bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// What it calls itself.
    pub(super) name: String,
    /// Bytes that it might give.
    pub(super) budget: usize,
    /// Rows from which on it computed: with what stands there, with what passes. They were measured.
    pub(super) from: [usize; 2],
}

impl Known {
    fn to_json(&self) -> Value {
        json!({ "name": self.name, "budget": self.budget, "from": self.from })
    }

    fn of_json(json: &Value) -> Option<Known> {
        let number = |json: &Value| usize::try_from(json.as_u64()?).ok();
        let from = [number(&json["from"][0])?, number(&json["from"][1])?];
        Some(Known { name: json["name"].as_str()?.to_owned(), budget: number(&json["budget"])?, from })
    }
}

/// What a run knows besides weights and what its optimizer remembers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    /// When the run began that is gone on with: microseconds since 1970.
    pub(super) begun: u64,
    /// What makes it that run, where that is known.
    pub(super) recipe: Option<Recipe>,
    /// Steps taken.
    pub(super) step: u64,
    /// Of the whole run.
    pub(super) steps: u64,
    /// Steps of an epoch, its batches, and how many of these a step takes together.
    pub(super) epoch_steps: u64,
    pub(super) epoch_batches: u64,
    pub(super) together: u64,
    /// Sum of the losses of all steps, and of those that no log has told.
    pub(super) losses: f64,
    pub(super) untold: f64,
    /// How many the latter are.
    pub(super) untold_steps: u64,
    /// Tokens read.
    pub(super) tokens: u64,
    /// Seconds, those before a resumption included.
    pub(super) seconds: f64,
    /// Examples of a batch.
    pub(super) batch: usize,
    /// What was logged.
    pub(super) history: Vec<Value>,
    /// The last step after which the model was measured.
    pub(super) measured: Option<u64>,
    pub(super) best: Option<Best>,
    /// Where that is, once it is there.
    pub(super) best_folder: Option<String>,
    /// How often in a row measuring found nothing better.
    pub(super) disappointments: u64,
    /// The card beside the processor.
    pub(super) card: Option<Known>,
    /// How often is logged, measured and saved, in steps.
    pub(super) intervals: [u64; 3],
}

impl State {
    /// Of a run that begins now.
    pub(super) fn new() -> State {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        State { begun: since.as_micros() as u64, ..State::default() }
    }

    /// Nothing was measured yet that others could be better than.
    pub(super) fn forget_best(&mut self) {
        (self.best, self.best_folder, self.disappointments) = (None, None, 0);
    }

    /// Epochs, by batches: the last step of one may have fewer.
    pub(super) fn epoch(&self) -> f64 {
        let (whole, steps) = (self.step / self.epoch_steps.max(1), self.step % self.epoch_steps.max(1));
        whole as f64 + (steps * self.together) as f64 / self.epoch_batches.max(1) as f64
    }

    /// The loss since the last log.
    pub(super) fn tell(&mut self) -> f64 {
        let loss = self.untold / self.untold_steps.max(1) as f64;
        (self.untold, self.untold_steps) = (0.0, 0);
        loss
    }

    /// What was logged of one value, step by step.
    pub(super) fn told(&self, key: &str) -> Vec<(u64, f64)> {
        let told = |line: &Value| Some((line["step"].as_u64()?, line[key].as_f64()?));
        self.history.iter().filter_map(told).collect()
    }

    /// For ourselves: numbers by their bits, which decimals would not keep.
    pub(super) fn to_json(&self) -> String {
        let state = json!({
            "form": FORM,
            "begun": self.begun,
            "recipe": self.recipe.as_ref().map(Recipe::to_json),
            "step": self.step,
            "losses_bits": self.losses.to_bits(),
            "untold_bits": self.untold.to_bits(),
            "untold_steps": self.untold_steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "history": self.history,
            "measured": self.measured,
            "best_step": self.best.map(|best| best.step),
            "best_bits": self.best.map(|best| best.value.to_bits()),
            "best_folder": self.best_folder,
            "disappointments": self.disappointments,
            "card": self.card.as_ref().map(Known::to_json),
        });
        format!("{state:#}\n")
    }

    pub(super) fn of_json(text: &str) -> Option<State> {
        let json: Value = serde_json::from_str(text).ok()?;
        let count = |key: &str| json[key].as_u64();
        (count("form")? == FORM).then_some(())?;
        Some(State {
            begun: count("begun").unwrap_or(0),
            recipe: Recipe::of_json(&json["recipe"]),
            step: count("step")?,
            losses: f64::from_bits(count("losses_bits")?),
            untold: f64::from_bits(count("untold_bits")?),
            untold_steps: count("untold_steps")?,
            tokens: count("tokens")?,
            seconds: json["seconds"].as_f64()?,
            history: json["history"].as_array()?.clone(),
            // Runs that measure nothing say nothing of these.
            measured: count("measured"),
            best: count("best_step")
                .zip(count("best_bits"))
                .map(|(step, bits)| Best { step, value: f64::from_bits(bits) }),
            best_folder: json["best_folder"].as_str().map(str::to_owned),
            disappointments: count("disappointments").unwrap_or(0),
            card: Known::of_json(&json["card"]),
            ..State::default()
        })
    }

    /// As the Trainer of transformers writes it.
    pub(super) fn for_trainer(&self) -> String {
        let [logging, measuring, saving] = self.intervals;
        let state = json!({
            "best_global_step": self.best.map(|best| best.step),
            "best_metric": self.best.map(|best| best.value),
            "best_model_checkpoint": self.best_folder,
            "epoch": self.epoch(),
            "eval_steps": measuring,
            "global_step": self.step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": self.history,
            "logging_steps": logging,
            "max_steps": self.steps,
            "num_input_tokens_seen": self.tokens,
            "num_train_epochs": self.steps.div_ceil(self.epoch_steps.max(1)),
            "save_steps": saving,
            "stateful_callbacks": {},
            "total_flos": 0,
            "train_batch_size": self.batch,
            "trial_name": null,
            "trial_params": null,
        });
        format!("{state:#}\n")
    }
}
