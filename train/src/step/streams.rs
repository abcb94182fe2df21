//! The inputs of layers, kept from forward to backward: as they are, or in bfloat16, which takes half the memory.

/// Inputs of layers, one after another, all of one size.
#[derive(Debug)]
pub(crate) enum Streams {
    /// As they are.
    Floats(Vec<f32>),
    /// Rounded; layers then see what was kept, so that they do the same when they are run once more.
    Halves(Vec<u16>),
}

impl Default for Streams {
    fn default() -> Self {
        Streams::Floats(Vec::new())
    }
}

impl Streams {
    /// Makes a stream what would be kept of it.
    pub(crate) fn round(&self, stream: &mut [f32]) {
        if matches!(self, Streams::Halves(_)) {
            stream.iter_mut().for_each(|x| *x = widened(rounded(*x)));
        }
    }

    /// Takes memory for so many numbers, and no more.
    pub(crate) fn make_room(&mut self, count: usize) {
        match self {
            Streams::Floats(all) => grow(all, count, 0.0),
            Streams::Halves(all) => grow(all, count, 0),
        }
    }

    /// Keeps a stream, which was rounded, where there is room for it.
    pub(crate) fn keep(&mut self, number: usize, stream: &[f32]) {
        let range = number * stream.len()..(number + 1) * stream.len();
        match self {
            Streams::Floats(all) => all[range].copy_from_slice(stream),
            Streams::Halves(all) => {
                all[range].iter_mut().zip(stream).for_each(|(kept, x)| *kept = rounded(*x));
            }
        }
    }

    /// What was kept.
    pub(crate) fn read(&self, number: usize, out: &mut [f32]) {
        let range = number * out.len()..(number + 1) * out.len();
        match self {
            Streams::Floats(all) => out.copy_from_slice(&all[range]),
            Streams::Halves(all) => {
                out.iter_mut().zip(&all[range]).for_each(|(out, kept)| *out = widened(*kept));
            }
        }
    }
}

fn grow<T: Clone>(all: &mut Vec<T>, count: usize, zero: T) {
    let more = count.saturating_sub(all.len());
    all.reserve_exact(more);
    all.resize(all.len() + more, zero);
}

pub(crate) fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16, ties to even.
pub(crate) fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    match value.is_nan() {
        true => (bits >> 16 | 0x40) as u16,
        false => (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_is_the_nearest() {
        for (value, bits) in [(1.0, 0x3f80), (1.003_906_3, 0x3f80), (1.011_718_8, 0x3f82), (-2.01, 0xc001)] {
            assert_eq!(rounded(value), bits, "{value}");
        }
        assert!(widened(rounded(f32::NAN)).is_nan());
    }

    #[test]
    fn what_is_kept_is_what_layers_see() {
        let stream = [1.0f32, -0.3, 7.123e-5, 1e30];
        for mut streams in [Streams::default(), Streams::Halves(Vec::new())] {
            let (mut seen, mut found) = (stream, [0.0; 4]);
            streams.round(&mut seen);
            streams.make_room(2 * stream.len());
            streams.keep(1, &seen);
            streams.read(1, &mut found);
            assert_eq!(seen, found);
            assert!(seen.iter().zip(&stream).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
        }
    }
}
