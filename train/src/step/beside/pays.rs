//! From how many rows on a product is faster on the card: measured with the model's own matrices, there and back,
//! before the first step.

use std::time::Instant;

use bantam_core::layouts::Shape;

use super::super::linear::{Products, Scratch};
use super::{Beside, NOBODY};

/// What takes so long is measured once.
const LONG_SECONDS: f64 = 0.2;

impl Beside {
    /// Finds that out, of what stands there and of what passes.
    pub(crate) fn measure(&mut self, products: &Products) {
        let largest = |stands: bool| {
            let entries = self.plan.entries.iter().enumerate();
            let alike =
                entries.filter(|(_, entry)| if stands { entry.stands.is_some() } else { entry.passes });
            alike.max_by_key(|(_, entry)| entry.bytes()).map(|(at, _)| at)
        };
        let samples = [largest(true), largest(false)];
        let from = samples.map(|at| at.and_then(|at| self.fewest(products, at)).unwrap_or(usize::MAX));
        self.from = from;
        // What was measured says nothing of the order of a step.
        (self.last, self.after) = (None, vec![[NOBODY; 2]; self.plan.entries.len()]);
    }

    /// The fewest of 1, 2, 4 rows and so on for which a matrix is faster there.
    fn fewest(&mut self, products: &Products, at: usize) -> Option<usize> {
        let site = self.plan.entries[at].site;
        let Shape { rows: height, columns } = site.shape();
        let most = self.plan.rows;
        // Any numbers but zeros, which some processors are quick with.
        let mut x: Vec<f32> = (0..most * columns).map(|at| 0.5 - (at % 17) as f32 / 16.0).collect();
        let (mut y, mut scratch) = (vec![0.0; most * height], Scratch::default());
        let steps = (0..usize::BITS).map(|n| 1 << n).take_while(|&rows| rows < most).chain([most]);
        for (n, rows) in steps.enumerate() {
            let (x, y) = (&mut x[..rows * columns], &mut y[..rows * height]);
            let mut least = [f64::INFINITY; 2];
            // What is touched for the first time takes longer.
            for _ in 0..if n == 0 { 3 } else { 2 } {
                let here = seconds(|| {
                    products.base(&site, x, None, y, &mut scratch);
                    products.turned(&site, y, x, false, &mut scratch);
                });
                self.from = [0; 2];
                let there = seconds(|| {
                    self.forward(products.bare, &site, x, None, y);
                    self.backward(products.bare, &site, y, x, false);
                });
                self.fault.is_none().then_some(())?;
                least = [least[0].min(here), least[1].min(there)];
                // What takes long differs little from one time to the next.
                if n > 0 && least.iter().sum::<f64>() > LONG_SECONDS {
                    break;
                }
            }
            if least[1] < least[0] {
                return Some(rows);
            }
        }
        None
    }
}

/// How long it takes.
fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}
