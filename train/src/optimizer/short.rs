//! AdamW that remembers eight bits of every mean: bitsandbytes' blocks of 256 codes under one scale, by its dynamic
//! maps. A step computes with the means in float32; what is kept of them for the next is rounded.

use bantam_model::formats::encode::{nearest, optimizer_maps};

use super::AdamW;

/// Codes under one scale.
const BLOCK: usize = 256;
/// Tensors of fewer numbers are remembered in float32, as bitsandbytes does it.
pub(super) const SMALLEST: usize = 4096;

/// The means of many tensors, one after another.
#[derive(Debug)]
pub(super) struct Means {
    /// Values of codes: of gradients, of their squares.
    maps: [[f32; 256]; 2],
    pub(super) codes: [Vec<u8>; 2],
    pub(super) scales: [Vec<f32>; 2],
}

/// Bytes of the means of so many numbers.
pub(super) fn bytes(count: usize) -> usize {
    2 * (count + 4 * count.div_ceil(BLOCK))
}

/// Where a tensor's means begin: codes, scales.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    code: usize,
    scale: usize,
}

impl Means {
    pub(super) fn new() -> Means {
        Means { maps: optimizer_maps(), codes: Default::default(), scales: Default::default() }
    }

    /// Room for a tensor, whose means are zero.
    pub(super) fn place(&mut self, count: usize) -> Place {
        let place = Place { code: self.codes[0].len(), scale: self.scales[0].len() };
        self.codes.iter_mut().for_each(|codes| codes.resize(place.code + count, 0));
        self.scales.iter_mut().for_each(|scales| scales.resize(place.scale + count.div_ceil(BLOCK), 0.0));
        place
    }

    /// Gives back what growing took too much.
    pub(super) fn fit(&mut self) {
        self.codes.iter_mut().for_each(Vec::shrink_to_fit);
        self.scales.iter_mut().for_each(Vec::shrink_to_fit);
    }

    /// One step; `steps` counts from 1.
    #[allow(clippy::too_many_arguments, reason = "a rule with its constants and its memory")]
    pub(super) fn step(
        &mut self,
        at: Place,
        constants: &AdamW,
        rate: f64,
        decay: f64,
        steps: u64,
        gradient: &[f32],
        values: &mut [f32],
    ) {
        let AdamW { betas: [one, two], epsilon, .. } = *constants;
        let power = i32::try_from(steps).unwrap_or(i32::MAX);
        let shrink = (1.0 - rate * decay) as f32;
        let ([keep, keep_square], [take, take_square]) =
            ([one as f32, two as f32], [(1.0 - one) as f32, (1.0 - two) as f32]);
        let root = (1.0 - two.powi(power)).sqrt() as f32;
        let (step, epsilon) = ((rate / (1.0 - one.powi(power))) as f32, epsilon as f32);
        let mut means = [[0.0f32; BLOCK]; 2];
        for (block, (gradient, values)) in gradient.chunks(BLOCK).zip(values.chunks_mut(BLOCK)).enumerate() {
            let codes = at.code + block * BLOCK..at.code + block * BLOCK + gradient.len();
            for (kind, means) in means.iter_mut().enumerate() {
                let (map, scale) = (&self.maps[kind], self.scales[kind][at.scale + block]);
                let codes = &self.codes[kind][codes.clone()];
                means.iter_mut().zip(codes).for_each(|(mean, code)| *mean = map[usize::from(*code)] * scale);
            }
            let [first, second] = &mut means;
            for (((value, gradient), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second)
            {
                *first = *first * keep + take * gradient;
                *second = *second * keep_square + take_square * gradient * gradient;
                *value = *value * shrink - step * (*first / (second.sqrt() / root + epsilon));
            }
            for (kind, means) in means.iter().enumerate() {
                let (map, means) = (&self.maps[kind], &means[..gradient.len()]);
                let most = means.iter().fold(0.0f32, |most, mean| most.max(mean.abs()));
                let scale = if most == 0.0 { 1.0 } else { most };
                self.scales[kind][at.scale + block] = scale;
                let codes = self.codes[kind][codes.clone()].iter_mut();
                codes.zip(means).for_each(|(code, mean)| *code = nearest(map, mean / scale));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of bitsandbytes 0.49.2 (its formula in PyTorch, on a CPU), one block without gradients for once.
    #[test]
    fn steps_are_those_of_bitsandbytes() {
        const COUNT: usize = 600;
        let mut means = Means::new();
        means.place(300);
        let place = means.place(COUNT);
        let mut values: Vec<f32> = (0..COUNT).map(|i| (i as f64 * 0.37).sin() as f32).collect();
        let constants = AdamW { betas: [0.9, 0.999], epsilon: 1e-8, is_early: false };
        for step in 1..=3 {
            let number = |i: usize| (i as f64 * 0.11 * step as f64).cos() * (-((i % 50) as f64) * 0.2).exp();
            let mut gradient: Vec<f32> = (0..COUNT).map(|i| number(i) as f32).collect();
            if step == 2 {
                gradient[256..512].fill(0.0);
            }
            means.step(place, &constants, 0.01, 0.1, step, &gradient, &mut values);
        }
        let [first, second] = &means.codes;
        assert_eq!(first[300..308], [255, 240, 225, 212, 202, 193, 173, 102]);
        assert_eq!(first[812..818], [249, 244, 236, 224, 214, 205]);
        assert_eq!(second[300..308], [255, 203, 163, 138, 117, 85, 74, 70]);
        assert_eq!(second[812..818], [69, 66, 63, 51, 41, 34]);
        let sum = |codes: &[u8]| -> u64 {
            codes.iter().zip(0u64..).map(|(code, at)| u64::from(*code) * (at % 97 + 1)).sum()
        };
        assert_eq!([sum(&first[300..]), sum(&second[300..])], [3_642_509, 801_496]);
        let near = |found: f32, wanted: f32| (found - wanted).abs() <= 1e-6 * wanted.abs();
        let wanted =
            [[0.270_999_98, 0.180_846_3, 0.022_783_292], [0.002_997_001_2, 0.001_994_870_4, 0.001_049_848]];
        for (found, wanted) in means.scales.iter().zip(wanted) {
            assert!(found[2..].iter().zip(wanted).all(|(found, wanted)| near(*found, wanted)), "{found:?}");
        }
        assert!(near(values[1], 0.330_570_58) && near(values[599], 1.002_604_1), "{values:?}");
        // Where a small square was rounded to zero and no gradient came, steps are long there as here.
        let sum: f64 = values.iter().map(|x| f64::from(*x)).sum();
        assert!((sum + 1_144.029_956).abs() < 1e-3, "{sum}");
    }

    #[test]
    fn maps_are_those_of_bitsandbytes() {
        let [signed, unsigned] = optimizer_maps();
        assert_eq!([signed[0], signed[127], signed[255]], [-0.992_968_74, 0.0, 1.0]);
        assert_eq!([unsigned[0], unsigned[1], unsigned[100]], [0.0, 3.250_000_3e-7, 0.062_734_38]);
        let sum: f64 = unsigned.iter().map(|x| f64::from(*x)).sum();
        assert!((sum - 75.105_263_243_386_9).abs() < 1e-12 && unsigned.is_sorted(), "{sum}");
    }
}
