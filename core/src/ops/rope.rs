//! Rotary positions: pairs of channels are turned by an angle that grows with the position.
//!
//! Channel `i` is paired with `i + half`, where `half` is half the rotated width ("rotate half", the order in which
//! Hugging Face checkpoints store their projections).

/// Cosines and sines for one position: `out = [cos; half] ++ [sin; half]`, both times `scale`.
///
/// The angle is rounded to float32 before the cosine is taken, as the reference does; at a position of some thousands
/// that rounding is larger than any other error here.
pub fn angles(frequencies: &[f32], position: u32, scale: f32, out: &mut [f32]) {
    let half = frequencies.len();
    assert_eq!(out.len(), 2 * half, "one cosine and one sine per frequency");
    for (i, frequency) in frequencies.iter().enumerate() {
        let angle = position as f32 * frequency;
        out[i] = libm::cosf(angle) * scale;
        out[half + i] = libm::sinf(angle) * scale;
    }
}

/// Turns the first `angles.len()` channels of one head, in place; the rest pass through.
pub fn rotate(head: &mut [f32], angles: &[f32]) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (first, rest) = head.split_at_mut(half);
    for i in 0..half {
        let (a, b) = (first[i], rest[i]);
        first[i] = a * cos[i] - b * sin[i];
        rest[i] = b * cos[i] + a * sin[i];
    }
}

/// Undoes [`rotate`] up to the angles' scale: from the gradient of a turned head to that of the head, in place.
pub fn rotate_backward(head: &mut [f32], angles: &[f32]) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (first, rest) = head.split_at_mut(half);
    for i in 0..half {
        let (a, b) = (first[i], rest[i]);
        first[i] = a * cos[i] + b * sin[i];
        rest[i] = b * cos[i] - a * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_turned_heads_are_differences() {
        extern crate std;
        use crate::ops::backward::tests::{check, noise};
        for (width, turned) in [(2, 2), (8, 4), (64, 64)] {
            let (x, dy) = (noise(1, width), noise(2, width));
            let mut table = std::vec![0.0; turned];
            angles(&noise(3, turned / 2), 9, 1.25, &mut table);
            let mut dx = dy.clone();
            rotate_backward(&mut dx, &table);
            check("head", &x, &dy, &dx, |x| {
                let mut y = x.to_vec();
                rotate(&mut y, &table);
                y
            });
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_leaves_the_rest_alone() {
        let mut table = [0.0; 8];
        angles(&[1.0, 0.1, 0.01, 0.001], 17, 1.0, &mut table);
        let mut head = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        let before = head;
        rotate(&mut head, &table);
        for i in 0..4 {
            let length = |h: &[f32]| h[i] * h[i] + h[i + 4] * h[i + 4];
            assert!((length(&head) - length(&before)).abs() < 1e-4);
        }
        assert_eq!(head[8..], before[8..]);
        assert!((head[0] - (libm::cosf(17.0) - 5.0 * libm::sinf(17.0))).abs() < 1e-5);
    }

    #[test]
    fn angles_are_cosines_and_sines_of_position_times_frequency() {
        let frequencies = [1.0f32, 0.31, 0.0123, 1e-4];
        for position in [0u32, 1, 17, 4095, 131_071] {
            for scale in [1.0f32, 1.25] {
                let mut table = [9.0f32; 8];
                angles(&frequencies, position, scale, &mut table);
                for (i, frequency) in frequencies.iter().enumerate() {
                    // Rounded to float32 here, as the checkpoint's authors did.
                    let angle = f64::from(position as f32 * frequency);
                    let wanted = [libm::cos(angle), libm::sin(angle)].map(|x| x * f64::from(scale));
                    for (found, wanted) in [table[i], table[4 + i]].into_iter().zip(wanted) {
                        assert!(
                            (f64::from(found) - wanted).abs() < 3e-7,
                            "position {position}, frequency {frequency}: {found}, not {wanted}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn scores_depend_on_the_distance_of_positions_alone() {
        let turned = |x: &[f32; 8], position| {
            let (mut table, mut x) = ([0.0; 8], *x);
            angles(&[1.0, 0.3, 0.1, 0.01], position, 1.0, &mut table);
            rotate(&mut x, &table);
            x
        };
        let (a, b) =
            ([0.3, -1.0, 2.0, 0.1, 1.5, -0.7, 0.2, 1.0], [1.0, 0.4, -0.3, 2.0, -1.1, 0.9, 0.6, -0.2]);
        let score = |i, j| -> f32 { turned(&a, i).iter().zip(turned(&b, j)).map(|(x, y)| x * y).sum() };
        for (i, j) in [(0, 0), (5, 2), (60, 57)] {
            assert!((score(i, j) - score(i + 300, j + 300)).abs() < 1e-3, "{i} and {j}");
        }
        assert!((score(5, 2) - score(2, 5)).abs() > 1e-2, "the order of positions counts");
    }
}
