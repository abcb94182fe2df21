//! What one thread of this machine does at best, on its strongest instruction set, whichever variant is measured.

use std::io;
use std::time::Instant;

use bantam_core::Cpu;
use bantam_core::layouts::panels::Form;
use bantam_core::ops::ceiling;
use bantam_model::memory;
use memmap2::MmapMut;

/// More than any laptop's caches hold.
const BLOCK_BYTES: usize = 128 << 20;
/// About two milliseconds of arithmetic.
const ROUNDS: usize = 200_000;

/// What a variant is limited by at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Reading memory in order.
    Read,
    /// float32 multiply-adds.
    Float,
    /// Dot products of bfloat16 pairs.
    Bf16,
    /// Dot products of int8 quadruples.
    Int8,
}

impl Unit {
    /// The unit that a kernel uses on input of this form.
    pub fn of(form: Form) -> Self {
        match form {
            Form::Float => Unit::Float,
            Form::Bf16 => Unit::Bf16,
            Form::Int8 { .. } => Unit::Int8,
        }
    }

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Read => "read",
            Unit::Float => "f32",
            Unit::Bf16 => "bf16",
            Unit::Int8 => "int8",
        }
    }
}

/// A processor, and memory to read.
pub struct Ceilings {
    cpu: Cpu,
    block: MmapMut,
}

impl Ceilings {
    /// Takes and touches the memory.
    pub fn new(cpu: Cpu) -> io::Result<Self> {
        let mut block = memory::region(BLOCK_BYTES)?;
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        Ok(Ceilings { cpu, block })
    }

    /// Bytes per second for [`Unit::Read`], multiply-adds per second for the others. A processor without dot products
    /// of a kind is held against its float32.
    pub fn speed(&self, unit: Unit) -> f64 {
        let start = Instant::now();
        let operations = match unit {
            Unit::Read => None,
            Unit::Float => None,
            Unit::Bf16 => ceiling::dot_bf16(self.cpu, ROUNDS).map(|(check, count)| (f64::from(check), count)),
            Unit::Int8 => ceiling::dot_int8(self.cpu, ROUNDS).map(|(check, count)| (f64::from(check), count)),
        };
        let amount = match (unit, operations) {
            (Unit::Read, _) => {
                std::hint::black_box(ceiling::read(self.cpu, &self.block));
                self.block.len() as f64
            }
            (_, Some((check, count))) => {
                std::hint::black_box(check);
                count as f64 / 2.0
            }
            (_, None) => {
                let (check, count) = ceiling::multiply_add(self.cpu, ROUNDS);
                std::hint::black_box(check);
                count as f64 / 2.0
            }
        };
        amount / start.elapsed().as_secs_f64()
    }
}
