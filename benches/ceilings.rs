//! What one thread of this machine does at best, on its strongest instruction set, whichever variant is measured.

use std::cell::Cell;
use std::io;
use std::time::Instant;

use bantam_core::Cpu;
use bantam_core::layouts::panels::Form;
use bantam_core::ops::ceiling;
use bantam_model::memory;
use memmap2::MmapMut;

/// More than any laptop's caches hold.
const BLOCK_BYTES: usize = 192 << 20;
/// Read in one measurement: about a millisecond, as long as what is held against it. On a busy machine, long
/// measurements lose their core more often than short ones.
const PART_BYTES: usize = 32 << 20;
/// About a millisecond of arithmetic.
const ROUNDS: usize = 100_000;

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
    turn: Cell<usize>,
}

impl Ceilings {
    /// Takes and touches the memory.
    pub fn new(cpu: Cpu) -> io::Result<Self> {
        let mut block = memory::region(BLOCK_BYTES)?;
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let turn = Cell::new(0);
        Ok(Ceilings { cpu, block, turn })
    }

    /// Bytes per second for [`Unit::Read`], multiply-adds per second for the others. A processor without dot products
    /// of a kind is held against its float32.
    pub fn speed(&self, unit: Unit) -> f64 {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let at = turn % (BLOCK_BYTES / PART_BYTES) * PART_BYTES;
        let start = Instant::now();
        let operations = match unit {
            Unit::Read | Unit::Float => None,
            Unit::Bf16 => ceiling::dot_bf16(self.cpu, ROUNDS).map(|(check, count)| (f64::from(check), count)),
            Unit::Int8 => ceiling::dot_int8(self.cpu, ROUNDS).map(|(check, count)| (f64::from(check), count)),
        };
        let amount = match (unit, operations) {
            (Unit::Read, _) => {
                std::hint::black_box(ceiling::read(self.cpu, &self.block[at..][..PART_BYTES]));
                PART_BYTES as f64
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
