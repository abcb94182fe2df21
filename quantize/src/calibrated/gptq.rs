//! GPTQ: codes of few bits, rounded with feedback. The scale of a group is found when its first column is reached, from
//! values that already make good for all columns before; groups are never fixed beforehand (`static_groups` off).

use bantam_core::layouts::Shape;

use super::feedback::{Grid, Hessian, Order, Row, round};
use super::linear::Work;
use crate::matrix::Grouped;
use crate::nearest::gptq_scale;

/// How codes are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Of a code: 2, 3, 4 or 8.
    pub bits: usize,
    /// Columns of a group; `None` is all.
    pub group: Option<usize>,
    /// Columns with the largest inputs first.
    pub act_order: bool,
    /// Whether the zero is always the middle code.
    pub symmetric: bool,
    /// See [`Hessian::new`].
    pub damp: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { bits: 4, group: Some(128), act_order: false, symmetric: true, damp: 0.01 }
    }
}

impl Settings {
    /// The Hessian that these settings ask for.
    pub fn hessian(&self, work: Work, squares: &[f32], width: usize) -> Hessian {
        let order = if self.act_order { Order::LargestFirst } else { Order::Given };
        Hessian::new(work, squares, width, order, self.damp)
    }
}

/// Rows that are rounded together.
const ROWS: usize = 512;

/// Codes of a matrix.
pub fn quantize(work: Work, settings: Settings, hessian: &Hessian, shape: Shape, values: &[f32]) -> Grouped {
    let width = shape.columns;
    let group = settings.group.unwrap_or(width).min(width);
    let mut found = Grouped {
        shape,
        bits: settings.bits,
        group,
        codes: vec![0; values.len()],
        scales: Vec::new(),
        zeros: Vec::new(),
        group_of: None,
    };
    for (number, rows) in values.chunks(ROWS * width).enumerate() {
        let new = |row: &[f32]| Row::new(hessian.ordered(row), Codes::new(settings, width));
        let mut rows: Vec<_> = rows.chunks_exact(width).map(new).collect();
        round(work, hessian, group, &mut rows);
        for (at, row) in rows.into_iter().enumerate() {
            let codes = &mut found.codes[(number * ROWS + at) * width..][..width];
            hessian.order.iter().zip(row.grid.codes).for_each(|(&column, code)| codes[column] = code);
            found.scales.extend(row.grid.scales);
            found.zeros.extend(row.grid.zeros);
        }
    }
    if settings.act_order {
        let mut group_of = vec![0; width];
        hessian
            .order
            .iter()
            .enumerate()
            .for_each(|(place, &column)| group_of[column] = (place / group) as u32);
        found.group_of = Some(group_of);
    }
    found
}

/// A row's codes.
struct Codes {
    settings: Settings,
    scale: f32,
    zero: f32,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

impl Codes {
    fn new(settings: Settings, width: usize) -> Self {
        let codes = Vec::with_capacity(width);
        Codes { settings, scale: 1.0, zero: 0.0, codes, scales: Vec::new(), zeros: Vec::new() }
    }
}

impl Grid for Codes {
    fn begin(&mut self, _: usize, values: &[f32]) {
        let Settings { bits, symmetric, .. } = self.settings;
        let (scale, zero) = gptq_scale(values, bits, symmetric);
        (self.scale, self.zero) = (scale, f32::from(zero));
        self.scales.push(scale);
        self.zeros.push(zero);
    }

    fn take(&mut self, _: usize, value: f32) -> f32 {
        let most = ((1u32 << self.settings.bits) - 1) as f32;
        let code = ((value / self.scale).round_ties_even() + self.zero).clamp(0.0, most);
        self.codes.push(code as u8);
        self.scale * (code - self.zero)
    }
}
