//! The choice of experts backwards. Which experts were chosen has no gradient; what each counts has.

use crate::ops::experts::{Choice, Routing};

/// Of rows that got back the sum of what their places hold, each by its share: from `dy`, the gradient of that sum, to
/// those of the parts and, through the softmax over the chosen, of the router's logits. All is written.
pub fn combine(
    routing: &Routing,
    choice: Choice,
    width: usize,
    parts: &[f32],
    dy: &[f32],
    dparts: &mut [f32],
    dlogits: &mut [f32],
) {
    let Choice { experts, chosen } = choice;
    dlogits.fill(0.0);
    for (row, (dy, dlogits)) in dy.chunks_exact(width).zip(dlogits.chunks_exact_mut(experts)).enumerate() {
        let places = &routing.places()[row * chosen..][..chosen];
        let shares = &routing.shares()[row * chosen..][..chosen];
        let mut mean = 0.0;
        for (&place, &share) in places.iter().zip(shares) {
            let range = place as usize * width..(place as usize + 1) * width;
            let part = &parts[range.clone()];
            let along: f64 = dy.iter().zip(part).map(|(dy, part)| f64::from(*dy) * f64::from(*part)).sum();
            dparts[range].iter_mut().zip(dy).for_each(|(dpart, dy)| *dpart = share * dy);
            // For the moment, the gradient of the share.
            dlogits[routing.expert_of(place)] = along as f32;
            mean += share * along as f32;
        }
        for (&place, &share) in places.iter().zip(shares) {
            let d = &mut dlogits[routing.expert_of(place)];
            *d = share * (*d - mean);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::cpu::Cpu;
    use crate::ops::backward::tests::{check, noise};
    use std::vec;

    #[test]
    fn gradients_of_shares_and_parts_are_differences() {
        for (experts, chosen, rows) in [(1, 1, 2), (4, 2, 3), (6, 4, 5)] {
            let (choice, width) = (Choice { experts, chosen }, 7);
            // Logits far enough apart that no step changes who is chosen.
            let logits: std::vec::Vec<f32> =
                (0..rows * experts).map(|at| (at * 5 % (rows * experts)) as f32 * 0.2).collect();
            let parts = noise(1, rows * chosen * width);
            let dy = noise(2, rows * width);
            let mut memory = vec![0.0; choice.bytes(rows).expect("small") / 4];
            let of = |logits: &[f32], parts: &[f32]| {
                let mut memory = vec![0.0; choice.bytes(rows).expect("small") / 4];
                let mut routing = Routing::over(choice, rows, &mut memory);
                routing.route(choice, logits);
                let mut out = vec![0.0; rows * width];
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    routing.combine(Cpu::detect(), chosen, row, parts, out);
                }
                out
            };
            let mut routing = Routing::over(choice, rows, &mut memory);
            routing.route(choice, &logits);
            let (mut dparts, mut dlogits) = (vec![0.0; parts.len()], vec![0.0; logits.len()]);
            combine(&routing, choice, width, &parts, &dy, &mut dparts, &mut dlogits);
            check("parts", &parts, &dy, &dparts, |parts| of(&logits, parts));
            check("logits", &logits, &dy, &dlogits, |logits| of(logits, &parts));
        }
    }
}
