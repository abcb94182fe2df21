//! Stage 1: the scale of every group, and the nearest trits.

use super::{Fit, Line};

impl Line {
    /// Stage 1: the scale of every group, and the nearest trits.
    pub(super) fn search(&mut self, fit: &Fit) {
        for places in &fit.places {
            let pairs: Vec<(f32, f32)> =
                places.iter().map(|&place| (self.target[place], fit.own[place])).collect();
            let finest = match fit.planes {
                1 => best_scale(pairs),
                _ => search_scale(&pairs, 4.0),
            };
            // Planes begin as digits: three times as large each.
            self.scales.extend((0..fit.planes).map(|plane| finest * 3f32.powi(plane as i32)));
        }
        let nearest = |(place, &value): (usize, &f32)| fit.levels(&self.scales, place).nearest(value);
        self.codes = self.target.iter().enumerate().map(nearest).collect();
    }
}

/// Scales that are tried.
const STEPS: usize = 48;

/// The scale of trits that suits weighted values best: what [`search_scale`] finds for one level to each side, by sums
/// over sorted values.
fn best_scale(mut pairs: Vec<(f32, f32)>) -> f32 {
    pairs.sort_unstable_by(|(a, _), (b, _)| b.abs().total_cmp(&a.abs()));
    let largest = pairs.first().map_or(0.0, |(value, _)| value.abs());
    let (mut along, mut square, mut best, mut found) = (0.0f64, 0.0f64, 0.0f64, 0.0);
    let mut rest = pairs.iter().peekable();
    for step in (1..=STEPS).rev() {
        let scale = largest * step as f32 / STEPS as f32;
        while let Some((value, weight)) = rest.next_if(|(value, _)| scale > 0.0 && value.abs() >= scale / 2.0)
        {
            along += f64::from(*weight) * f64::from(value.abs());
            square += f64::from(*weight);
        }
        // The best multiple of these trits takes so much off the loss.
        if square > 0.0 && along * along / square > best {
            (best, found) = (along * along / square, (along / square) as f32);
        }
    }
    found
}

/// The distance of neighbouring levels, `most` of them to each side, that suits weighted values best.
fn search_scale(pairs: &[(f32, f32)], most: f32) -> f32 {
    let largest = pairs.iter().fold(0.0f32, |largest, (value, _)| largest.max(value.abs()));
    let mut best = (f64::NEG_INFINITY, 0.0);
    for step in 1..=STEPS {
        let scale = largest * step as f32 / (STEPS as f32 * most);
        if scale <= 0.0 {
            continue;
        }
        let (mut along, mut square) = (0.0f64, 0.0f64);
        for &(value, weight) in pairs {
            let level = f64::from((value / scale).round().clamp(-most, most));
            along += f64::from(weight) * f64::from(value) * level;
            square += f64::from(weight) * level * level;
        }
        // The best multiple of these levels takes so much off the loss.
        if square > 0.0 && along * along / square > best.0 {
            best = (along * along / square, (along / square) as f32);
        }
    }
    best.1
}
