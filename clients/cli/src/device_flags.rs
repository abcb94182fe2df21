//! Flags that decide what computes a model, and the line that says so.

use bantam_daemon::cards::{Device, nth};
use bantam_model::card::{NoCard, Residency, Seen};
use bantam_model::engine::{Engine, Placed, Portion};
use bantam_model::plan::Plan;
use clap::Args;
use serde_json::{Value, json};

use crate::adapter_flag::AdapterFlag;
use crate::daemon::{DaemonFlags, Link};
use crate::failure::{Failure, refused, usage};
use crate::{models, output};

/// What computes.
#[derive(Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct DeviceFlags {
    /// What computes, in this process: cpu, cuda or cuda:N (a card, as far as the model fits there, and the processor
    /// for the rest), cuda:0,1 (several, as many as it takes), auto (the same where cards are found) [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<Device>,
    /// Memory of the card that the model may take, such as 4GiB, or 4GiB,8GiB of two [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = models::bytes, value_delimiter = ',')]
    vram: Vec<u64>,
    /// What of a model stands on a card that does not hold it: auto (shares of every layer, both compute), pinned (the
    /// same, and all else passes through the card for every token), lru (nothing, all passes) [default: auto]
    #[arg(long, value_name = "POLICY", value_parser = residency)]
    residency: Option<Residency>,
}

fn residency(text: &str) -> Result<Residency, String> {
    Residency::named(text).ok_or_else(|| format!("expected {}", Residency::EXPECTED))
}

fn device(text: &str) -> Result<Device, String> {
    Device::parse(text).ok_or_else(|| format!("expected {}", Device::EXPECTED))
}

impl DeviceFlags {
    fn is_given(&self) -> bool {
        self.device.is_some() || !self.vram.is_empty() || self.residency.is_some()
    }

    /// A daemon that can do it: where its models go is for its own settings to say.
    pub(crate) fn find(&self, adapter: &AdapterFlag, daemon: &DaemonFlags) -> Result<Option<Link>, Failure> {
        match adapter.find(daemon)? {
            Some(link) if self.is_given() => {
                link.cannot::<()>(
                    "where its models are computed is said by its settings models.device and residency",
                )?;
                Ok(None)
            }
            link => Ok(link),
        }
    }

    fn device(&self) -> Device {
        self.device.unwrap_or(Device::Auto)
    }

    /// Whether there is a card that would compute.
    pub(crate) fn has_card(&self) -> bool {
        self.device().is_there()
    }

    /// Refuses what cannot be on this machine, and with a plan what of it no card would compute: before any weight is
    /// read.
    pub(crate) fn check(&self, plan: Option<&Plan>) -> Result<(), Failure> {
        let device = self.device();
        if device == Device::Cpu && !self.vram.is_empty() {
            return Err(usage("--vram: --device cpu uses none; leave one of them out"));
        }
        if device == Device::Cpu && self.residency.is_some() {
            return Err(usage("--residency: --device cpu has no card; leave one of them out"));
        }
        if !self.is_given() {
            return Ok(());
        }
        let seen = match (device.check(&self.vram), device) {
            (Ok(seen), _) => seen,
            (Err(error @ NoCard::TooSmall(_)), _) => return Err(usage(format!("--vram: {error}"))),
            (Err(error), _) => return Err(usage(not_by(device, &error))),
        };
        match (plan, device) {
            (Some(plan), Device::Cuda(_)) => {
                let bytes =
                    |(at, seen): (usize, &Seen)| nth(&self.vram, at).unwrap_or(seen.bytes).min(seen.bytes);
                let bytes = |of| usize::try_from(bytes(of)).unwrap_or(usize::MAX);
                // One of them suffices.
                let mut checked =
                    seen.iter().enumerate().map(|of| Placed::check(plan, &of.1.name, bytes(of)));
                let first = checked.next().unwrap_or(Ok(()));
                let any = first.or_else(|error| checked.find(Result::is_ok).unwrap_or(Err(error)));
                any.map_err(|error| refused(not_by(device, &error)))
            }
            _ => Ok(()),
        }
    }

    /// Puts a model that was just loaded where it is to be.
    pub(crate) fn place(&self, engine: &mut Engine) -> Result<(), Failure> {
        let device = self.device();
        engine.set_manner(self.residency.unwrap_or_default().into());
        match (device.place(engine, &|card| nth(&self.vram, card)), device) {
            (Ok(None), _) => {}
            (Ok(Some(placed)), _) => {
                if self.is_given() || output::is_watched() {
                    output::say(&line(&placed));
                    for (label, error) in &placed.without {
                        output::say(&format!("without {label}: {error}"));
                    }
                }
            }
            (Err(error), Device::Cuda(_)) => return Err(refused(not_by(device, &error))),
            // Most machines have no card, and `bantam doctor` says why.
            (Err(NoCard::Absent(_)), _) if !self.is_given() => {}
            (Err(error), _) => output::say(&format!("{error}: the processor computes")),
        }
        Ok(())
    }
}

fn not_by(device: Device, error: &NoCard) -> String {
    format!("--device {device}: {error}; or compute with --device cpu")
}

/// What stands on a card, for people.
pub(crate) fn line(placed: &Placed) -> String {
    let on_card = placed.each.iter().map(|portion| portion_line(portion, placed.each.len() > 1));
    let on_card = on_card.collect::<Vec<_>>().join("; ");
    match placed.is_whole {
        true => {
            let not_kept = placed.not_kept.map(|fault| match placed.kept_rows {
                0 => format!(", kernel by kernel ({})", fault.code),
                rows => format!(", steps of more than {rows} replies kernel by kernel ({})", fault.code),
            });
            let who = if placed.each.len() > 1 { "they compute" } else { "it computes" };
            format!("{on_card}; {who} everything{}", not_kept.unwrap_or_default())
        }
        false => format!("{on_card}; {}; the processor computes the rest{}", shares(placed), passage(placed)),
    }
}

/// What one card has.
fn portion_line(portion: &Portion, is_one_of_several: bool) -> String {
    let Portion { card: [label, name], layers, .. } = portion;
    let bytes = |bytes: usize| output::bytes(bytes as u64);
    let layers = match is_one_of_several {
        true => format!(", layers {} to {}", layers.start + 1, layers.end),
        false => String::new(),
    };
    format!(
        "{label} ({name}): {} of it for {} of weights and {} of keys and values{layers}",
        bytes(portion.bytes),
        bytes(portion.weight_bytes),
        bytes(portion.cache_bytes)
    )
}

/// What is different where prompts are read.
fn passage(placed: &Placed) -> String {
    let bytes = |bytes: usize| output::bytes(bytes as u64);
    match (placed.passes_from, placed.ring_refused) {
        (Some(tokens), _) => {
            let since = match tokens {
                1 => "in every step".to_owned(),
                _ => format!("from {tokens} tokens at once on"),
            };
            let ring = bytes(placed.ring_bytes);
            format!("; {since}, its weights pass through {ring} of the card, which multiplies them")
        }
        (None, 0) => String::new(),
        (None, refused) => format!(
            "; of prompts too, since there are no {} here and on the card that weights could pass through",
            bytes(refused)
        ),
    }
}

/// What of a model a card computes.
pub(crate) fn shares(placed: &Placed) -> String {
    let [heads, of] = placed.attention;
    let [bytes, all] = placed.blocks;
    let percent = 100.0 * bytes as f64 / all.max(1) as f64;
    format!("attention of {heads} of {of} key heads, {percent:.0} % of feed-forward blocks")
}

/// What one card has, for scripts.
fn portion(portion: &Portion) -> Value {
    let Portion { card: [device, name], bytes, weight_bytes, cache_bytes, layers } = portion;
    json!({
        "device": device,
        "name": name,
        "bytes": bytes,
        "weight_bytes": weight_bytes,
        "cache_bytes": cache_bytes,
        "layers": [layers.start, layers.end],
    })
}

/// The same for scripts.
pub(crate) fn as_json(placed: &Placed) -> Value {
    json!({
        "device": placed.labels(),
        "name": placed.each.first().map(|portion| &portion.card[1]),
        "cards": placed.each.iter().map(portion).collect::<Vec<_>>(),
        "bytes": placed.bytes,
        "weight_bytes": placed.weight_bytes,
        "cache_bytes": placed.cache_bytes,
        "ring_bytes": placed.ring_bytes,
        "kept_bytes": placed.kept_bytes,
        "kept_rows": placed.kept_rows,
        "passes_from_tokens": placed.passes_from,
        "ring_refused_bytes": placed.ring_refused,
        "is_whole": placed.is_whole,
        "not_kept": placed.not_kept.map(|fault| fault.code),
        "attention_heads": placed.attention,
        "block_bytes": placed.blocks[0],
    })
}
