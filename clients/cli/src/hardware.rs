//! What the system tells about the processor and the card. Nothing here measures, and nothing here decides how to
//! compute.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

/// Cores of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    /// Where it can be told.
    pub(crate) physical: Option<usize>,
    /// Those that this process may use.
    pub(crate) logical: usize,
}

/// A graphics card, used or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GraphicsCard {
    /// How it is spelled, such as `cuda:0`.
    pub(crate) device: String,
    /// Its name and bytes; where it cannot be used, why.
    pub(crate) found: Result<(String, u64), String>,
}

/// All cards that the driver knows, in its order; where there is none, why.
#[cfg(feature = "cuda")]
pub(crate) fn graphics_cards() -> Result<Vec<GraphicsCard>, String> {
    use bantam_cuda::{Absent, look};

    let mut cards = Vec::new();
    loop {
        let number = cards.len();
        let found = match look(number) {
            Ok(card) => Ok((card.name, card.bytes as u64)),
            Err(Absent::NoSuchDevice { .. }) => return Ok(cards),
            Err(old @ Absent::OldDevice { .. }) => Err(old.to_string()),
            Err(absent) if number == 0 => return Err(absent.to_string()),
            // It does not end with this one, but the driver may say the same for ever.
            Err(absent) => {
                cards.push(GraphicsCard { device: format!("cuda:{number}"), found: Err(absent.to_string()) });
                return Ok(cards);
            }
        };
        cards.push(GraphicsCard { device: format!("cuda:{number}"), found });
    }
}

/// All cards that the driver knows, in its order; where there is none, why.
#[cfg(not(feature = "cuda"))]
pub(crate) fn graphics_cards() -> Result<Vec<GraphicsCard>, String> {
    Err("this program was built without CUDA".to_owned())
}

/// Bytes of the first card that can be used.
pub(crate) fn card_bytes() -> Option<u64> {
    graphics_cards().ok()?.into_iter().find_map(|card| card.found.ok()).map(|(_, bytes)| bytes)
}

/// The processor's own name, where the system tells it.
pub(crate) fn processor() -> Option<String> {
    match cfg!(target_os = "macos") {
        true => sysctl("machdep.cpu.brand_string"),
        false => processor_of(&fs::read_to_string("/proc/cpuinfo").ok()?),
    }
}

fn processor_of(cpuinfo: &str) -> Option<String> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut fields = fields.map(|(key, value)| (key.trim(), value.trim()));
    let (_, name) = fields.find(|(key, _)| ["model name", "Model", "Hardware"].contains(key))?;
    // It is shown on a terminal.
    Some(name.chars().filter(|c| !c.is_control()).take(120).collect())
}

pub(crate) fn cores() -> Cores {
    let logical = thread::available_parallelism().map_or(1, usize::from);
    let physical = match cfg!(target_os = "macos") {
        true => sysctl("hw.physicalcpu").and_then(|count| count.parse().ok()),
        false => physical_of("/sys/devices/system/cpu"),
    };
    Cores { physical, logical }
}

/// Logical cores that share a core name the same siblings.
fn physical_of(folder: &str) -> Option<usize> {
    let siblings = |entry: fs::DirEntry| {
        let list = entry.path().join("topology/thread_siblings_list");
        fs::read_to_string(list).ok()
    };
    let cores: BTreeSet<String> = fs::read_dir(folder).ok()?.flatten().filter_map(siblings).collect();
    (!cores.is_empty()).then_some(cores.len())
}

fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let value = String::from_utf8(output.stdout).ok()?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_as_the_system_names_it() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: A \u{1b}[31mFast One\nflags\t: a b\n";
        assert_eq!(processor_of(cpuinfo).as_deref(), Some("A [31mFast One"));
        assert_eq!(processor_of("processor : 0"), None);
    }

    #[test]
    fn there_are_cores() {
        assert!(cores().logical > 0);
        assert_eq!(physical_of("/nowhere"), None);
    }
}
