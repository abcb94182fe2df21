//! `bantam plan --machine this`: how fast this machine's memories are read, measured once and kept beside native files
//! until the processor, the cards or the program are others.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_daemon::cards::Device;
use bantam_model::checkpoint::writer::{left_of, write_file};
use bantam_model::memory;
use bantam_model::placement::{CardRates, Machine};
use bantam_model::pool::Threads;
use bantam_model::speed;
use serde_json::{Value, json};

use crate::failure::{Failure, refused};
use crate::progress::Progress;
use crate::{cache, hardware};

/// Memory that is read to measure it: more than the caches of any laptop.
const BLOCK_BYTES: usize = 256 << 20;

/// What was measured.
struct Rates {
    host: speed::Rates,
    card: Option<CardRates>,
}

/// This machine, whose card runs so many kernels for a layer; of its memories what is free.
pub(crate) fn machine(kernels: f64) -> Result<Machine, Failure> {
    let rates = rates()?;
    let card =
        Device::Auto.card().and_then(|card| card.find().ok()).and_then(|found| found.free_bytes().ok());
    let card = rates.card.zip(card).map(|(rates, free)| rates.card(free as u64, kernels));
    let ram = memory::available().unwrap_or(u64::MAX);
    Ok(Machine::measured(rates.host.read, rates.host.compute, ram, card))
}

/// As they were measured before, or now.
fn rates() -> Result<Rates, Failure> {
    let (key, path) = (key(), path());
    let kept = path.as_ref().and_then(|path| fs::read(path).ok());
    let kept: Option<Value> = kept.and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(rates) = kept.filter(|kept| kept["of"] == key).and_then(|kept| read(&kept)) {
        return Ok(rates);
    }
    let _progress = Progress::waiting("measuring this machine".to_owned());
    let host = speed::Machine::new(Cpu::detect(), Threads::available(), BLOCK_BYTES);
    let host = host.map_err(|error| refused(format!("memory to measure with: {error}")))?.rates();
    let rates = Rates { host, card: card()? };
    // Where it cannot be kept it is measured again.
    if let Some(path) = path {
        keep(&path, &told(&key, &rates));
    }
    Ok(rates)
}

const FILE: &str = "machine.json";

fn path() -> Option<PathBuf> {
    Some(cache::store()?.folder().join(FILE))
}

/// Writes what was measured; what a killed run left beside it goes.
fn keep(path: &Path, told: &Value) {
    let Some(folder) = path.parent() else { return };
    let _ = fs::create_dir_all(folder);
    let left = fs::read_dir(folder).into_iter().flatten().flatten();
    let left = left.filter(|entry| entry.file_name().to_str().and_then(left_of) == Some(FILE));
    left.for_each(|entry| drop(fs::remove_file(entry.path())));
    let _ = write_file(path, format!("{told:#}\n").as_bytes());
}

/// What the measurement is of.
fn key() -> Value {
    let cards = hardware::graphics_cards().unwrap_or_default();
    let cards = cards
        .into_iter()
        .filter_map(|card| card.found.ok().map(|found| json!([card.device, found.0, found.1])));
    json!({
        "program": env!("CARGO_PKG_VERSION"),
        "processor": hardware::processor(),
        "threads": Threads::available(),
        "cards": cards.collect::<Vec<_>>(),
    })
}

#[cfg(feature = "cuda")]
fn card() -> Result<Option<CardRates>, Failure> {
    let Some(number) = Device::Auto.number() else { return Ok(None) };
    let rates = bantam_cuda::rates(number);
    rates.map(Some).map_err(|error| refused(format!("the card cannot be measured: {error}")))
}

#[cfg(not(feature = "cuda"))]
fn card() -> Result<Option<CardRates>, Failure> {
    Ok(None)
}

fn told(key: &Value, rates: &Rates) -> Value {
    let card = rates.card.map(|card| {
        json!({
            "copy_bytes_per_s": card.copy,
            "read_bytes_per_s": card.read,
            "upload_bytes_per_s": card.upload,
            "exchange_s": card.exchange,
            "kernel_s": card.kernel,
            "operations_per_s_by_tokens": card.many,
        })
    });
    json!({
        "of": key,
        "read_bytes_per_s": rates.host.read,
        "operations_per_s": rates.host.compute,
        "card": card,
    })
}

/// What [`told`] wrote; nothing where it is not whole.
fn read(kept: &Value) -> Option<Rates> {
    let rate = |of: &Value| of.as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
    let host =
        speed::Rates { read: rate(&kept["read_bytes_per_s"])?, compute: rate(&kept["operations_per_s"])? };
    let card = &kept["card"];
    let many = |at: usize| {
        let pair = &card["operations_per_s_by_tokens"][at];
        Some((usize::try_from(pair[0].as_u64()?).ok().filter(|tokens| *tokens > 0)?, rate(&pair[1])?))
    };
    let of_card = || {
        let [few, most] = [many(0)?, many(1)?];
        Some(CardRates {
            copy: rate(&card["copy_bytes_per_s"])?,
            read: rate(&card["read_bytes_per_s"])?,
            upload: rate(&card["upload_bytes_per_s"])?,
            exchange: rate(&card["exchange_s"])?,
            kernel: rate(&card["kernel_s"])?,
            many: if few.0 < most.0 { [few, most] } else { return None },
        })
    };
    match card.is_null() {
        true => Some(Rates { host, card: None }),
        false => of_card().map(|card| Rates { host, card: Some(card) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes() {
        let folder = std::env::temp_dir().join(format!("bantam-machine-{}", std::process::id()));
        let path = folder.join(FILE);
        fs::create_dir_all(&folder).expect("a folder");
        let (left, other) = (folder.join(".machine.json.77.0.tmp"), folder.join(".other.json.77.0.tmp"));
        [&left, &other].into_iter().for_each(|path| fs::write(path, "{").expect("a file"));
        keep(&path, &json!({ "of": "here" }));
        let found = [&path, &left, &other].map(|path| path.exists());
        let text = fs::read(&path).expect("it was written");
        fs::remove_dir_all(&folder).expect("it is ours");
        assert_eq!(found, [true, false, true]);
        assert_eq!(serde_json::from_slice::<Value>(&text).expect("JSON"), json!({ "of": "here" }));
    }

    #[test]
    fn what_was_kept_is_read_or_measured_again() {
        let card = CardRates {
            copy: 3e12,
            read: 2.5e12,
            upload: 5e10,
            exchange: 1e-5,
            kernel: 2e-6,
            many: [(64, 1e13), (512, 5e13)],
        };
        for card in [None, Some(card)] {
            let rates = Rates { host: speed::Rates { read: 3e10, compute: 1e12 }, card };
            let kept = told(&json!("here"), &rates);
            let again: Value = serde_json::from_str(&kept.to_string()).unwrap_or_default();
            let found = read(&again).map(|found| (found.host.read, found.host.compute, found.card));
            assert_eq!(found, Some((3e10, 1e12, card)));
        }
        for broken in [
            json!({}),
            json!({ "read_bytes_per_s": 0.0, "operations_per_s": 1.0, "card": null }),
            json!({ "read_bytes_per_s": 1.0, "operations_per_s": 1.0, "card": { "copy_bytes_per_s": 1.0 } }),
        ] {
            assert!(read(&broken).is_none(), "{broken}");
        }
    }
}
