//! The machine that a record is of: what stands above its tables.

use std::fs;

use bantam_core::Cpu;
use bantam_cuda::look;

use super::Problem;

/// What the stand-in for the driver calls its cards.
const STAND_IN: &str = "cusim";

/// A machine with a card.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// What the card calls itself.
    pub(crate) name: String,
    capability: (u32, u32),
    bytes: usize,
    driver: String,
    processor: String,
    pub(crate) threads: usize,
    /// How many cards there are.
    pub(crate) cards: usize,
}

impl Seen {
    /// Looks at the first card, and counts the others.
    pub(crate) fn look() -> Result<Seen, Problem> {
        let first = look(0)?;
        let cards = (1..).take_while(|&number| look(number).is_ok()).count() + 1;
        let version = format!("for CUDA {}.{}", first.driver / 1000, first.driver % 1000 / 10);
        let driver = match kernel_module() {
            Some(module) => format!("{module}, {version}"),
            None => version,
        };
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map_or("a processor", |name| name.trim_start_matches([' ', '\t', ':']));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Seen {
            processor: format!("{model}, {threads} cores, {}", Cpu::detect().name()),
            name: first.name,
            capability: first.capability,
            bytes: first.bytes,
            driver,
            threads,
            cards,
        })
    }

    /// Whether there is no card, but what stands in for one in tests.
    pub(crate) fn is_stand_in(&self) -> bool {
        self.name == STAND_IN
    }

    /// Its folder among the records, such as `h200-16-cores`.
    pub(crate) fn folder(&self) -> String {
        let name = self.name.to_lowercase().replace("nvidia", "").replace("geforce", "");
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let name = words.collect::<Vec<_>>().join("-");
        format!("{name}-{}-cores", self.threads)
    }

    /// The lines, each a word and what there is to it.
    pub(crate) fn lines(&self) -> Vec<[String; 2]> {
        let gib = self.bytes as f64 / f64::from(1 << 30);
        let (major, minor) = self.capability;
        let stands_in =
            if self.is_stand_in() { ", a stand-in for a driver: no figure here is a card's" } else { "" };
        let others = if self.cards > 1 { format!(", one of {}", self.cards) } else { String::new() };
        let card = format!("{}{others}, compute capability {major}.{minor}{stands_in}", self.name);
        let line = |name: &str, said: String| [name.to_owned(), said];
        vec![
            line("card", card),
            line("its memory", format!("{gib:.2} GiB")),
            line("driver", self.driver.clone()),
            line("processor", self.processor.clone()),
        ]
    }
}

/// The version of the driver's kernel module, where the system tells it.
fn kernel_module() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let mut words = text.lines().next()?.split_whitespace();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    words.find(is_version).map(str::to_owned)
}
