//! What the planner asks of a machine, measured on this one.

use bantam_core::Cpu;
use bantam_model::placement::{CardRates, MACHINES, Machine};
use bantam_model::speed::{self, Rates as HostRates};

use super::record::Section;
use super::turns::threads;
use super::{Problem, Scale};

/// Medians.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    host: HostRates,
    card: CardRates,
}

impl Rates {
    pub(crate) fn measure(scale: Scale) -> Result<Rates, Problem> {
        let bytes = if scale.quick { 1 << 22 } else { 1 << 30 };
        let host = speed::Machine::new(Cpu::detect(), threads(scale), bytes);
        let host = host.map_err(super::at("memory of this machine".as_ref()))?;
        Ok(Rates { host: host.rates(), card: bantam_cuda::rates(0)? })
    }

    pub(crate) fn tell(&self, section: &mut Section) {
        let Rates { host, card } = self;
        let giga = |rate: f64| format!("{:.1}", rate / 1e9);
        let tera = |rate: f64| format!("{:.2}", rate / 1e12);
        let micros = |seconds: f64| format!("{:.2}", 1e6 * seconds);
        let [(few, at_few), (many, at_many)] = card.many;
        let rows = [
            ["measured, medians".to_owned(), String::new()],
            ["main memory read by all threads, GB/s".to_owned(), giga(host.read)],
            ["the processor's int8, TOP/s".to_owned(), tera(host.compute)],
            ["copies within the card, read and written, GB/s".to_owned(), giga(card.copy)],
            ["int8 weights read for one token, GB/s".to_owned(), giga(card.read)],
            ["to the card from pinned memory, GB/s".to_owned(), giga(card.upload)],
            ["one side has what the other made, us".to_owned(), micros(card.exchange)],
            ["a kernel among others, us".to_owned(), micros(card.kernel)],
            [format!("int8 weights and {few} tokens, TOP/s"), tera(at_few)],
            [format!("int8 weights and {many} tokens, TOP/s"), tera(at_many)],
        ];
        section.table(&rows.map(Vec::from));
        section.line(&format!(
            "not measured: {} us of a layer for waking threads, as of machines that are described",
            micros(MACHINES[0].launch)
        ));
    }

    /// This machine, as the planner takes it, with so many bytes of the card and so many kernels for a layer.
    pub(crate) fn machine(&self, vram_bytes: u64, kernels: f64) -> Machine {
        let card = self.card.card(vram_bytes, kernels);
        Machine::measured(self.host.read, self.host.compute, u64::MAX, Some(card))
    }
}
