//! What the planner asks of a machine, measured on this one.

use std::time::Instant;

use bantam_core::layouts::{INT8_ROWS, TILE_ROWS};
use bantam_core::{Backend, Cpu, Region, Slot};
use bantam_model::placement::{Card, MACHINES, Machine};
use bantam_model::speed::{self, Spread};

use super::desk::{Desk, Extent};
use super::record::Section;
use super::turns::threads;
use super::{Problem, Scale};

/// Medians.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Bytes per second that all threads read of main memory, and operations on int8.
    memory: f64,
    compute: f64,
    /// Bytes per second of a copy within the card, and of int8 weights that one token meets.
    copy: f64,
    read: f64,
    /// Bytes per second to it from pinned memory.
    upload: f64,
    /// Seconds until one side has what the other made.
    exchange: f64,
    /// Seconds of a kernel that does next to nothing, queued among such.
    kernel: f64,
    /// Operations per second of int8 weights, by tokens: 64 and 512, or as many as there are.
    many: [(usize, f64); 2],
}

const FULL: Extent =
    Extent { weights: 640 << 20, copied: 256 << 20, tokens: 512, columns: 4096, out: 512 * 16_384 };
const QUICK: Extent = Extent { weights: 1 << 16, copied: 1 << 14, tokens: 16, columns: 128, out: 1 << 13 };
/// Kernels in a row; times that something short is done.
const KERNELS: usize = 400;
const TIMES: usize = 50;
const ROUNDS: usize = 5;

impl Rates {
    pub(crate) fn measure(scale: Scale) -> Result<Rates, Problem> {
        let (extent, threads) = (if scale.quick { QUICK } else { FULL }, threads(scale));
        let times = if scale.quick { 2 } else { TIMES };
        let host_bytes = if scale.quick { 1 << 22 } else { 1 << 30 };
        let host = speed::Machine::new(Cpu::detect(), threads, host_bytes);
        let host = host.map_err(super::at("memory of this machine".as_ref()))?;
        let mut desk = Desk::new(extent)?;
        let rows = if scale.quick { 64 } else { 16_384 };
        let matrices = desk.matrices(INT8_ROWS, rows.max(TILE_ROWS));
        let weights = (rows * extent.columns) as f64;
        let sizes = [extent.tokens / 8, extent.tokens];
        let mut found: [Vec<f64>; 9] = Default::default();
        for round in 0..=if scale.quick { 1 } else { ROUNDS } {
            let one = desk.seconds(1, &matrices)? / matrices.len() as f64;
            let many = [0, 1].map(|at| desk.seconds(sizes[at], &matrices[..1]));
            let [few, many] = many;
            let values = [
                host.read_bandwidth(),
                host.int8().unwrap_or_else(|| host.float32()),
                desk.copy_rate()?,
                matrices[0].slot.bytes as f64 / one,
                extent.copied as f64 / desk.backend().upload_seconds(Region::Cache, extent.copied)?,
                exchange(&mut desk, times)?,
                kernel(&mut desk, if scale.quick { 10 } else { KERNELS })?,
                2.0 * weights * sizes[0] as f64 / few?,
                2.0 * weights * sizes[1] as f64 / many?,
            ];
            // The first round wakes both sides.
            if round > 0 {
                found.iter_mut().zip(values).for_each(|(found, value)| found.push(value));
            }
        }
        let [memory, compute, copy, read, upload, exchange, kernel, few, many] =
            found.map(|values| Spread::of(&values).median);
        let many = [(sizes[0], few), (sizes[1], many)];
        Ok(Rates { memory, compute, copy, read, upload, exchange, kernel, many })
    }

    pub(crate) fn tell(&self, section: &mut Section) {
        let giga = |rate: f64| format!("{:.1}", rate / 1e9);
        let tera = |rate: f64| format!("{:.2}", rate / 1e12);
        let micros = |seconds: f64| format!("{:.2}", 1e6 * seconds);
        let [(few, at_few), (many, at_many)] = self.many;
        let rows = [
            ["measured, medians".to_owned(), String::new()],
            ["main memory read by all threads, GB/s".to_owned(), giga(self.memory)],
            ["the processor's int8, TOP/s".to_owned(), tera(self.compute)],
            ["copies within the card, read and written, GB/s".to_owned(), giga(self.copy)],
            ["int8 weights read for one token, GB/s".to_owned(), giga(self.read)],
            ["to the card from pinned memory, GB/s".to_owned(), giga(self.upload)],
            ["one side has what the other made, us".to_owned(), micros(self.exchange)],
            ["a kernel among others, us".to_owned(), micros(self.kernel)],
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
        let [(few, at_few), (many, at_many)] = self.many;
        // Rates that rise with the rows r as r / (r + half): two of them tell half, and what they rise to.
        let (few, many, ratio) = (few as f64, many as f64, at_many / at_few);
        let least = 1.0 + 1e-6;
        let ratio = ratio.clamp(least, many / few - 1e-6);
        let half_rows = many * few * (ratio - 1.0) / (many - few * ratio);
        let card = Card {
            count: 1,
            vram_bytes,
            reserved_bytes: 0,
            read: self.read,
            upload: self.upload,
            exchange: self.exchange,
            launch: kernels * self.kernel,
            compute: at_many * (many + half_rows) / many,
            half_rows,
        };
        Machine {
            name: "measured",
            about: "this machine",
            ram_bytes: u64::MAX,
            reserved_bytes: 0,
            read: self.memory,
            compute: self.compute,
            card: Some(card),
            ..MACHINES[0]
        }
    }
}

/// Half of the seconds that floats take to the card, through a kernel and back.
fn exchange(desk: &mut Desk, times: usize) -> Result<f64, Problem> {
    const FLOATS: usize = 32;
    let slot = Slot { region: Region::Work, offset: 0, bytes: 4 * FLOATS };
    let values = [1.0f32; FLOATS];
    let start = Instant::now();
    for _ in 0..times {
        desk.backend().upload(Region::Work, 0, bytemuck::cast_slice(&values));
        desk.backend().cap(1.0, 1, FLOATS, slot);
        desk.backend().fetch(slot, &mut |_, values| {
            std::hint::black_box(values);
        });
    }
    desk.check()?;
    Ok(start.elapsed().as_secs_f64() / (2 * times) as f64)
}

fn kernel(desk: &mut Desk, count: usize) -> Result<f64, Problem> {
    let slot = Slot { region: Region::Work, offset: 0, bytes: 4 * 32 };
    let seconds = desk.backend().seconds(|card| (0..count).for_each(|_| card.cap(1.0, 1, 32, slot)))?;
    Ok(seconds / count as f64)
}
