//! Measuring during a run, as the Trainer of transformers does it: the loss over data that is not learnt, which of the
//! checkpoints is the best by it, and when there is no use in going on.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::choices::Every;
use super::state::Best;
use super::{Run, RunError, Watch, object, picture};
use crate::data::{Batch, Example};

impl Run<'_> {
    /// Whether the model is to be measured after the step that was taken.
    pub(super) fn is_measuring_due(&self, every: Every) -> bool {
        let (step, delay) = (self.state.step, self.choices.measuring.delay);
        match every {
            Every::Never => false,
            Every::Epoch => self.is_due(every) && delay <= self.state.epoch(),
            // Unlike logs and checkpoints, not once more at the end.
            Every::Steps(count) => step.is_multiple_of(count) && delay <= step as f64,
        }
    }

    /// Measures the model and notes what comes of it; says whether somebody ended that.
    pub(super) fn measure(&mut self, watch: &mut dyn Watch) -> Result<bool, RunError> {
        let Some(measured) = self.measured(watch)? else { return Ok(true) };
        let loss = measured["eval_loss"].as_f64().unwrap_or(f64::NAN);
        self.state.measured = Some(self.state.step);
        self.note_metric(&measured);
        let mut entry = measured;
        entry.insert("step".to_owned(), self.state.step.into());
        self.tell(entry, &[("eval_loss", loss)])?;
        watch.measured(self.state.step, loss);
        Ok(false)
    }

    /// A figure that is not the best is a disappointment.
    fn note_metric(&mut self, measured: &Map<String, Value>) {
        let Some(more_is_better) = self.choices.measuring.best else { return };
        let value = measured[self.choices.measuring.metric].as_f64().unwrap_or(f64::NAN);
        let is_better = |best: Best| if more_is_better { value > best.value } else { value < best.value };
        match self.state.best.is_none_or(is_better) {
            true => {
                self.state.best = Some(Best { step: self.state.step, value });
                self.state.disappointments = 0;
            }
            false => self.state.disappointments += 1,
        }
    }

    /// Whether there is no use in going on.
    pub(super) fn is_given_up(&self) -> bool {
        self.choices.measuring.patience.is_some_and(|patience| self.state.disappointments >= patience)
    }

    /// The figures of the data for measuring; none where somebody ended the run meanwhile.
    fn measured(&mut self, watch: &mut dyn Watch) -> Result<Option<Map<String, Value>>, RunError> {
        let (begun, size) = (Instant::now(), self.choices.measuring.batch);
        let whole = self.eval.len() / size * size;
        let is_cut = self.choices.flag("dataloader_drop_last") && whole > 0;
        let eval = if is_cut { &self.eval[..whole] } else { self.eval };
        let (mut losses, mut shares, mut batches) = (0.0, 0.0, 0u64);
        for examples in eval.chunks(size) {
            if watch.is_ended() && self.state.step < self.state.steps {
                return Ok(None);
            }
            let examples: Vec<&Example> = examples.iter().collect();
            let rows = Batch::of(&examples, &self.collation);
            self.flat.fill(&rows);
            let batch = self.flat.batch();
            // The Trainer's mean: of batches, each counted by its rows.
            let mean = self.training.loss(&batch)? / batch.labelled().max(1) as f64;
            losses += mean * examples.len() as f64;
            // LLaMA-Factory's: of rows, each the share of its tokens.
            let mut hits = self.training.hits();
            for count in rows.learnt_by_row() {
                let right = hits.by_ref().take(count).filter(|is_hit| *is_hit).count();
                shares += right as f64 / count.max(1) as f64;
            }
            batches += 1;
        }
        let seconds = begun.elapsed();
        self.begun.set_aside(seconds);
        let (rows, seconds) = (eval.len() as f64, seconds.as_secs_f64().max(1e-9));
        let mut measured = object(json!({
            "epoch": self.state.epoch(),
            "eval_loss": losses / rows,
            "eval_runtime": seconds,
            "eval_samples_per_second": rows / seconds,
            "eval_steps_per_second": batches as f64 / seconds,
        }));
        if self.choices.flag("compute_accuracy") {
            measured.insert("eval_accuracy".to_owned(), (shares / rows).into());
        }
        Ok(Some(measured))
    }

    /// The last figures, of what is left of the run, beside those of the training.
    pub(super) fn measure_result(
        &mut self,
        watch: &mut dyn Watch,
        mut all: Map<String, Value>,
    ) -> Result<(), RunError> {
        let Some(mut measured) = self.measured(watch)? else { return Ok(()) };
        let loss = measured["eval_loss"].as_f64().unwrap_or(f64::NAN);
        if self.is_pretraining {
            measured.insert("eval_perplexity".to_owned(), loss.exp().into());
        }
        watch.measured(self.state.step, loss);
        self.reports.log(self.state.step, &measured)?;
        all.extend(measured.clone());
        self.output.results("eval", &measured.into(), &all.into())
    }

    /// Puts the best of the checkpoints in the place of the last weights.
    pub(super) fn take_best(&mut self, watch: &mut dyn Watch) -> Result<(), RunError> {
        let Some(best) = self.state.best.filter(|_| self.choices.measuring.takes_best) else { return Ok(()) };
        let folder = self.output.place(best.step);
        match folder.is_dir() {
            true if best.step == self.state.step => {}
            true => {
                self.output.restore(&folder, &mut self.training)?;
                watch.note(&format!("takes the best weights, of {}", folder.display()));
            }
            false => watch.note(&format!("{} is not there: the last weights stay", folder.display())),
        }
        Ok(())
    }

    /// Draws what was logged, as LLaMA-Factory names the pictures.
    pub(super) fn draw(&self) -> Result<(), RunError> {
        for key in ["loss", "eval_loss", "eval_accuracy"] {
            let told = self.state.told(key);
            if key == "loss" || !told.is_empty() {
                self.output.picture(&format!("training_{key}.png"), &picture::png(&told))?;
            }
        }
        Ok(())
    }
}
