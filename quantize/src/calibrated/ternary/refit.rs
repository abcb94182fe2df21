//! The scales of all groups of a row at once, by least squares: those that leave the smallest error with its trits.
//!
//! The products of each group's trits with the Hessian make the equations; times the scales that were found they also
//! make the pull. Here columns stand in their own order, in which a group is a stretch.

use std::ops::Range;

use bantam_core::ops::share::each_row;

use super::{Fit, Line, ROWS, Settings, trit};
use crate::calibrated::linear::Packed;

/// Bytes of the products of rows that are refitted together.
const PRODUCTS_BYTES: usize = 32 << 20;

impl Settings {
    /// The most bytes that products take of a matrix of this width.
    pub(in crate::calibrated) fn products_bytes(&self, width: usize) -> usize {
        let groups = width.div_ceil(self.group.unwrap_or(width).min(width));
        (2 * groups * width * 4 * ROWS).min(PRODUCTS_BYTES)
    }
}

/// A row, and where its results go.
struct Part<'p> {
    line: &'p mut Line,
    pull: &'p mut [f32],
}

impl Fit<'_> {
    fn columns_of(&self, group: usize) -> Range<usize> {
        group * self.group..((group + 1) * self.group).min(self.hessian.width)
    }

    /// By column, its place in the order of the Hessian.
    fn place_of(&self) -> Vec<usize> {
        let mut place_of = vec![0; self.hessian.width];
        self.hessian.order.iter().enumerate().for_each(|(place, &column)| place_of[column] = place);
        place_of
    }

    /// The rows of the Hessian that belong to each group.
    pub(super) fn by_group(&self) -> Vec<Packed> {
        let (width, place_of) = (self.hessian.width, self.place_of());
        let of_group = |group: usize| {
            let columns = self.columns_of(group);
            self.work.pack(width, columns.len(), |column, out| {
                let row = &self.hessian.values[place_of[column] * width..][..width];
                out.iter_mut().zip(&place_of[columns.clone()]).for_each(|(out, &place)| *out = row[place]);
            })
        };
        (0..self.places.len()).map(of_group).collect()
    }

    /// Finds scales, rounds them with `store`, and makes pulls of them. `aims` are the targets times the Hessian.
    pub(super) fn refit(
        &self,
        lines: &mut [Line],
        aims: &[f32],
        by_group: &[Packed],
        pulls: &mut [f32],
        store: fn(f32) -> f32,
    ) {
        let (width, place_of) = (self.hessian.width, self.place_of());
        let unknowns = self.places.len() * self.planes;
        let rows = (PRODUCTS_BYTES / (unknowns * width * 4)).clamp(8, ROWS);
        let parts = lines.chunks_mut(rows).zip(aims.chunks(rows * width)).zip(pulls.chunks_mut(rows * width));
        for ((lines, aims), pulls) in parts {
            let signs = self.signs(lines, &place_of);
            let products = self.products(&signs, by_group);
            let parts = lines.iter_mut().zip(pulls.chunks_exact_mut(width));
            let mut parts: Vec<Part> = parts.map(|(line, pull)| Part { line, pull }).collect();
            each_row(self.work.pool, &mut parts, 1, 2, |row, part| {
                let aim: Vec<f32> = place_of.iter().map(|&place| aims[row * width + place]).collect();
                let of_row = row * width..(row + 1) * width;
                let signs: Vec<&[f32]> = signs.iter().map(|all| &all[of_row.clone()]).collect();
                let products: Vec<&[f32]> = products.iter().map(|all| &all[of_row.clone()]).collect();
                let Part { line, pull } = &mut part[0];
                line.solve(self, &aim, &signs, &products, store);
                let mut left = aim;
                for (scale, product) in line.scales.iter().zip(products) {
                    left.iter_mut().zip(product).for_each(|(left, &product)| *left -= scale * product);
                }
                place_of.iter().zip(left).for_each(|(&place, left)| pull[place] = left);
                line.turn_positive(self);
            });
        }
    }

    /// By plane, the trits of rows.
    fn signs(&self, lines: &[Line], place_of: &[usize]) -> Vec<Vec<f32>> {
        let of_plane = |plane: usize| {
            let mut signs = vec![0.0; lines.len() * place_of.len()];
            each_row(self.work.pool, &mut signs, place_of.len(), 8, |row, out| {
                let codes = &lines[row].codes;
                out.iter_mut().zip(place_of).for_each(|(out, &place)| *out = trit(codes[place], plane));
            });
            signs
        };
        (0..self.planes).map(of_plane).collect()
    }

    /// By unknown, what its trits alone make with the Hessian.
    fn products(&self, signs: &[Vec<f32>], by_group: &[Packed]) -> Vec<Vec<f32>> {
        let width = self.hessian.width;
        let mut products = Vec::with_capacity(by_group.len() * signs.len());
        for (group, packed) in by_group.iter().enumerate() {
            for signs in signs {
                let columns = self.columns_of(group);
                let own: Vec<f32> =
                    signs.chunks_exact(width).flat_map(|row| &row[columns.clone()]).copied().collect();
                products.push(self.work.times_packed(&own, packed));
            }
        }
        products
    }
}

impl Line {
    /// Solves the equations of its scales; they stay where there is no solution.
    fn solve(
        &mut self,
        fit: &Fit,
        aim: &[f32],
        signs: &[&[f32]],
        products: &[&[f32]],
        store: fn(f32) -> f32,
    ) {
        let unknowns = products.len();
        let mut system = System { unknowns, squares: Vec::new(), along: Vec::new() };
        let each_unknown = |of: &mut Vec<f64>, values: &[f32]| {
            for group in 0..fit.places.len() {
                let columns = fit.columns_of(group);
                let dot = |signs: &&[f32]| dot(&signs[columns.clone()], &values[columns.clone()]);
                of.extend(signs.iter().map(dot));
            }
        };
        products.iter().for_each(|product| each_unknown(&mut system.squares, product));
        each_unknown(&mut system.along, aim);
        if let Some(found) = system.solve() {
            self.scales.iter_mut().zip(found).for_each(|(scale, found)| *scale = found as f32);
        }
        self.scales.iter_mut().for_each(|scale| *scale = store(*scale));
    }

    /// Least squares may find a negative scale: its trits change sides.
    fn turn_positive(&mut self, fit: &Fit) {
        for (group, places) in fit.places.iter().enumerate() {
            for plane in 0..fit.planes {
                let scale = &mut self.scales[group * fit.planes + plane];
                if *scale < 0.0 {
                    *scale = -*scale;
                    let digit = 3u8.pow(plane as u32);
                    places.iter().for_each(|&place| {
                        let code = &mut self.codes[place];
                        *code = *code + 2 * digit - *code / digit % 3 * 2 * digit;
                    });
                }
            }
        }
    }
}

/// The sum of products, in lanes that a compiler adds up side by side.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.into_iter().chain(rest).map(f64::from).sum()
}

/// The equations of a row's scales.
#[derive(Debug)]
struct System {
    unknowns: usize,
    squares: Vec<f64>,
    along: Vec<f64>,
}

impl System {
    /// Gauss's elimination of a symmetric positive system; groups of zeros alone keep zero.
    fn solve(mut self) -> Option<Vec<f64>> {
        let n = self.unknowns;
        let mean = (0..n).map(|at| self.squares[at * n + at]).sum::<f64>() / n as f64;
        if mean <= 0.0 {
            return None;
        }
        (0..n).for_each(|at| self.squares[at * n + at] += mean * 1e-7);
        for pivot in 0..n {
            let (above, below) = self.squares.split_at_mut((pivot + 1) * n);
            let top = &above[pivot * n..];
            if top[pivot] <= 0.0 {
                return None;
            }
            for (number, row) in below.chunks_exact_mut(n).enumerate() {
                let factor = row[pivot] / top[pivot];
                row[pivot..].iter_mut().zip(&top[pivot..]).for_each(|(value, top)| *value -= factor * top);
                self.along[pivot + 1 + number] -= factor * self.along[pivot];
            }
        }
        for row in (0..n).rev() {
            let known: f64 = (row + 1..n).map(|at| self.squares[row * n + at] * self.along[at]).sum();
            self.along[row] = (self.along[row] - known) / self.squares[row * n + row];
        }
        Some(self.along)
    }
}
