//! `bantam doctor`: what this machine is, how fast it was measured to be, and which models it can run.

use bantam_core::Cpu;
use bantam_model::card::CARDS_MOST;
use bantam_model::engine::synthetic_plan;
use bantam_model::families::SHAPES;
use bantam_model::formats::on_load::way;
use bantam_model::plan::Plan;
use bantam_model::pool::Threads;
use bantam_model::source::Source;
use bantam_model::spec::ModelSpec;
use bantam_model::speed::{Machine, Spread};
use bantam_model::{checkpoint::Dtype, memory};
use clap::Args;
use serde_json::{Value, json};

use crate::chosen_model::{self, ChosenModel};
use crate::failure::{Failure, refused};
use crate::hardware::{self, Cores, GraphicsCard};
use crate::progress::Progress;
use crate::{engine_flags, output, recommend, style};

/// Measurements of each kind.
const ROUNDS: usize = 5;
/// Memory that bandwidth is measured on, where so much is free: more than the caches of any laptop.
const BLOCK_BYTES: u64 = 1 << 30;
const BLOCK_BYTES_MIN: u64 = 16 << 20;
/// Characters beside a heading.
const WIDTH: usize = 60;

/// Where the carried model is not what a missing MODEL stands for.
const MODEL_HELP: &str =
    "Folder or .safetensors file in Hugging Face form; without it, published shapes are judged";

/// Shows what this machine is, how fast, and which models it can run
#[derive(Args)]
#[command(mut_arg("place", |model| model.help(MODEL_HELP)))]
#[command(after_help = "Examples:\n  bantam doctor\n  bantam doctor ./my-model\n  \
                        bantam doctor --recommend\n  bantam doctor --json")]
pub(crate) struct Doctor {
    #[command(flatten)]
    model: ChosenModel,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
    /// Shows the settings that suit the memory that is free, and measures nothing
    #[arg(long)]
    recommend: bool,
}

/// A model in one form, and what it would take here.
struct Candidate {
    name: String,
    form: &'static str,
    outcome: Result<Plan, String>,
}

/// What was read from the system and what was measured.
struct Report {
    cpu: Cpu,
    name: Option<String>,
    cores: Cores,
    threads: usize,
    total: Option<u64>,
    limit: Option<u64>,
    available: Option<u64>,
    /// Every card of the machine, or why there is none.
    cards: Result<Vec<GraphicsCard>, String>,
    read: Spread,
    float32: Spread,
    bfloat16: Option<Spread>,
    int8: Option<Spread>,
    candidates: Vec<Candidate>,
    /// Whether they are forms of one model that was named.
    is_named: bool,
}

impl Doctor {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let cpu = Cpu::detect();
        if self.recommend {
            let source = self.model.path().map(Source::open).transpose()?;
            return recommend::show(source.as_ref(), self.json);
        }
        // What is wrong with a model is said before anything takes time.
        let candidates = match self.model.path() {
            Some(path) => of_model(&chosen_model::open(Some(path))?, cpu)?,
            None => of_shapes(cpu),
        };
        let report = Report::new(cpu, candidates, self.model.path().is_some())?;
        match self.json {
            true => output::json(&report.as_json())?,
            false => output::line(&report.as_text())?,
        }
        Ok(())
    }
}

/// The published shapes, each in two forms.
fn of_shapes(cpu: Cpu) -> Vec<Candidate> {
    let forms = [("bf16", None), ("int8", way("int8")), ("nf4", way("nf4"))];
    let both = SHAPES.iter().flat_map(|shape| forms.map(|form| (shape, form)));
    both.map(|((name, config), (form, quantization))| {
        let outcome = match ModelSpec::parse(config.as_bytes()) {
            Ok(spec) => {
                synthetic_plan(&spec, Dtype::Bf16, engine_flags::usual_options(&spec, quantization), cpu)
                    .map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        Candidate { name: (*name).to_owned(), form, outcome }
    })
    .collect()
}

/// A model as it is, and in eight bits where it can be had so.
fn of_model(source: &Source, cpu: Cpu) -> Result<Vec<Candidate>, Failure> {
    let name = source.folder().display().to_string();
    let plain = source.plan(engine_flags::usual_options(&source.spec, None), cpu)?;
    let int8 = source
        .plan(engine_flags::usual_options(&source.spec, way("int8")), cpu)
        .map_err(|error| error.to_string());
    Ok(vec![
        Candidate { name: name.clone(), form: "as it is", outcome: Ok(plain) },
        Candidate { name, form: "int8", outcome: int8 },
    ])
}

impl Report {
    fn new(cpu: Cpu, candidates: Vec<Candidate>, is_named: bool) -> Result<Self, Failure> {
        let threads = Threads::available();
        let available = memory::available();
        let block = available.map_or(BLOCK_BYTES, |free| (free / 4).clamp(BLOCK_BYTES_MIN, BLOCK_BYTES));
        let progress = Progress::counting("measuring this machine".to_owned(), 4 * ROUNDS);
        let machine = Machine::new(cpu, threads, block as usize).map_err(|error| {
            let block = output::bytes(block);
            refused(format!(
                "measuring takes {block} of memory and {threads} threads: {error}; close other programs"
            ))
        })?;
        let mut done = 0;
        let mut spread = |measure: &dyn Fn() -> Option<f64>| {
            let found: Vec<f64> = (0..ROUNDS)
                .map_while(|_| {
                    done += 1;
                    progress.at(done);
                    measure()
                })
                .collect();
            (!found.is_empty()).then(|| Spread::of(&found))
        };
        let known = "these measurements exist on every machine";
        Ok(Report {
            read: spread(&|| Some(machine.read_bandwidth())).expect(known),
            float32: spread(&|| Some(machine.float32())).expect(known),
            bfloat16: spread(&|| machine.bfloat16()),
            int8: spread(&|| machine.int8()),
            cpu,
            name: hardware::processor(),
            cores: hardware::cores(),
            threads,
            total: memory::total(),
            limit: memory::limit(),
            available,
            cards: hardware::graphics_cards(),
            candidates,
            is_named,
        })
    }

    /// Tokens per second when nothing but memory's speed counts.
    fn rate(&self, plan: &Plan) -> f64 {
        self.read.median / plan.bytes_per_token as f64
    }

    fn fits(&self, plan: &Plan) -> Option<bool> {
        self.available.map(|available| plan.bytes() as u64 <= available)
    }

    fn as_json(&self) -> Value {
        let giga = |spread: Spread| {
            let [median, least, most] = [spread.median, spread.least, spread.most].map(|x| x / 1e9);
            json!({ "median": median, "least": least, "most": most })
        };
        let models = self.candidates.iter().map(|candidate| match &candidate.outcome {
            Err(error) => json!({ "name": candidate.name, "form": candidate.form, "error": error }),
            Ok(plan) => json!({
                "name": candidate.name,
                "form": candidate.form,
                "context": plan.options.context,
                "bytes": plan.bytes(),
                "weight_bytes": plan.weight_bytes,
                "bytes_per_token": plan.bytes_per_token,
                "fits": self.fits(plan),
                "largest_line": plan.largest().map(|line| json!({ "name": line.name, "bytes": line.bytes })),
                "expected_tokens_per_s_most": self.rate(plan),
            }),
        });
        json!({
            "processor": {
                "name": self.name,
                "cores_physical": self.cores.physical,
                "cores_logical": self.cores.logical,
                "features": self.cpu.features().as_slice(),
                "kernels": self.cpu.name(),
            },
            "memory": {
                "total_bytes": self.total,
                "limit_bytes": self.limit,
                "available_bytes": self.available,
            },
            "measured": {
                "threads": self.threads,
                "read_gb_per_s": giga(self.read),
                "f32_gflop_per_s": giga(self.float32),
                "bf16_gflop_per_s": self.bfloat16.map(giga),
                "int8_gop_per_s": self.int8.map(giga),
            },
            "gpu": match &self.cards {
                Ok(cards) => cards.first().map(card_as_json),
                Err(absent) => Some(json!({ "absent": absent })),
            },
            "gpus": self.cards.iter().flatten().map(card_as_json).collect::<Vec<_>>(),
            "models": models.collect::<Vec<_>>(),
        })
    }

    fn as_text(&self) -> String {
        let heading = |text: &str| style::on_stdout(style::HEADING, text);
        format!(
            "{}\n{}\n\n{}\n{}\n\n{}\n{}\n\n{}\n{}",
            heading("This machine"),
            output::table(&self.facts(), &[false, false]),
            heading(&format!("Measured just now, threads: {}", self.threads)),
            output::table(&self.measured(), &[false, true, false]),
            heading("What it can run"),
            self.models(),
            style::on_stdout(
                style::FAINT,
                "most tokens/s is measured memory read / bytes read per token: an upper"
            ),
            style::on_stdout(
                style::FAINT,
                "bound for one answer, expected and not measured; `bantam bench` measures it"
            ),
        )
    }

    fn facts(&self) -> Vec<Vec<String>> {
        let unknown = || "cannot be told on this system".to_owned();
        let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, output::bytes);
        let mut features = match self.cpu.features().as_slice() {
            [] => vec!["none that bantam has kernels for".to_owned()],
            features => lines_of(features),
        };
        let logical = self.cores.logical;
        let cores = match self.cores.physical {
            Some(physical) if logical < physical => {
                format!("{physical} physical, of which bantam may use {logical}")
            }
            Some(physical) => format!("{physical} physical, {logical} logical"),
            None => format!("{logical} logical"),
        };
        let mut rows = vec![
            ("processor", self.name.clone().unwrap_or_else(unknown)),
            ("cores", cores),
            ("instructions", features.remove(0)),
        ];
        rows.extend(features.into_iter().map(|line| ("", line)));
        rows.extend([
            ("kernels", self.cpu.name().to_owned()),
            ("memory", bytes(self.total)),
            ("available", bytes(self.available)),
        ]);
        if let Some(limit) = self.limit {
            rows.push(("limit", format!("{} for this process or its group", output::bytes(limit))));
        }
        let (heading, mut cards) = match &self.cards {
            Ok(cards) => ("graphics cards", cards.iter().enumerate().flat_map(card_as_text).collect()),
            Err(absent) => ("graphics card", broken(&format!("none used: {absent}"))),
        };
        if !cards.is_empty() {
            rows.push((heading, cards.remove(0)));
        }
        rows.extend(cards.into_iter().map(|line| ("", line)));
        rows.into_iter().map(|(name, value)| vec![format!("  {name}"), value]).collect()
    }

    fn measured(&self) -> Vec<Vec<String>> {
        let row = |(what, unit, spread): (&str, &str, Spread)| {
            let [median, least, most] =
                [spread.median, spread.least, spread.most].map(|x| format!("{:.1}", x / 1e9));
            vec![format!("  {what}"), median, format!("{unit} ({least} to {most})")]
        };
        let rows = [
            Some(("memory read", "GB/s", self.read)),
            Some(("float32", "Gflop/s", self.float32)),
            self.bfloat16.map(|spread| ("bfloat16 dots", "Gflop/s", spread)),
            self.int8.map(|spread| ("int8 dots", "Gop/s", spread)),
        ];
        rows.into_iter().flatten().map(row).collect()
    }

    fn models(&self) -> String {
        let titles = ["  model", "form", "context", "memory", "most tokens/s"];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        let mut verdicts = vec!["fits".to_owned()];
        for candidate in &self.candidates {
            let cells = match &candidate.outcome {
                Ok(plan) => [
                    plan.options.context.to_string(),
                    output::bytes(plan.bytes() as u64),
                    format!("{:.1}", self.rate(plan)),
                ],
                Err(_) => ["-"; 3].map(str::to_owned),
            };
            let name = format!("  {}", candidate.name);
            rows.push([vec![name, candidate.form.to_owned()], cells.to_vec()].concat());
            verdicts.push(self.verdict(candidate));
        }
        // Colours have no width, so the last column is put beside a table that is laid out without it.
        let table = output::table(&rows, &[false, false, true, true, true]);
        let lines = table.lines().zip(&verdicts).map(|(line, verdict)| format!("{line}  {verdict}"));
        lines.collect::<Vec<_>>().join("\n") + &self.largest()
    }

    fn verdict(&self, candidate: &Candidate) -> String {
        let plan = match &candidate.outcome {
            Ok(plan) => plan,
            Err(error) => return style::on_stdout(style::BAD, error),
        };
        match self.available {
            None => "cannot be told".to_owned(),
            Some(available) if plan.bytes() as u64 > available => {
                let lacking = output::bytes(plan.bytes() as u64 - available);
                format!("{}, {lacking} short", style::on_stdout(style::BAD, "no"))
            }
            Some(_) => style::on_stdout(style::GOOD, "yes"),
        }
    }

    /// What takes most of a model that was named and does not fit; published shapes would only fill the screen.
    fn largest(&self) -> String {
        let line = |candidate: &Candidate| {
            let plan = candidate.outcome.as_ref().ok()?;
            let line = plan.largest().filter(|_| self.is_named && self.fits(plan) == Some(false))?;
            let (form, bytes) = (candidate.form, output::bytes(line.bytes as u64));
            Some(format!("\n  {form}: most of it is {} ({bytes})", line.name))
        };
        self.candidates.iter().filter_map(line).collect()
    }
}

fn card_as_json(card: &GraphicsCard) -> Value {
    match &card.found {
        Ok((name, bytes)) => json!({ "device": card.device, "name": name, "bytes": bytes }),
        Err(why) => json!({ "device": card.device, "absent": why }),
    }
}

fn card_as_text((at, card): (usize, &GraphicsCard)) -> Vec<String> {
    // Whoever names none gets the first ones that one model may stand on.
    let unless = if at < CARDS_MOST { "" } else { ", used where it is named" };
    broken(&match &card.found {
        Ok((name, bytes)) => format!("{}: {name}, {}{unless}", card.device, output::bytes(*bytes)),
        Err(why) => format!("{}: not used: {why}", card.device),
    })
}

/// A text in lines that fit a terminal beside their heading.
fn broken(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the beginning");
        let is_first = line.is_empty();
        match is_first || line.chars().count() + 1 + word.chars().count() < WIDTH {
            true => *line += &format!("{}{word}", if is_first { "" } else { " " }),
            false => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Words between commas, in lines that fit a terminal beside their heading.
fn lines_of(words: &[&str]) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        let line = lines.last_mut().expect("there is one from the beginning");
        let comma = if line.is_empty() { "" } else { ", " };
        match line.len() + comma.len() + word.len() < WIDTH {
            true => *line += &format!("{comma}{word}"),
            false => {
                line.push(',');
                lines.push((*word).to_owned());
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_broken_between_words() {
        let words = ["a".repeat(40), "b".repeat(30), "c".to_owned()];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let expected = [format!("{},", words[0]), format!("{}, c", words[1])];
        assert_eq!(lines_of(&words), expected);
        let text = format!("cuda:0: {} {} end", "a".repeat(40), "b".repeat(30));
        assert_eq!(broken(&text), [format!("cuda:0: {}", words[0]), format!("{} end", "b".repeat(30))]);
        assert_eq!(broken(""), [""]);
    }
}
