//! Notes which experts a running model chooses.

use bantam_core::ops::experts::Routing;

use super::routing::{Routes, Trace};
use crate::block::{Seen, Tap};
use crate::spec::ModelSpec;

/// A trace that grows with every step. It allocates, which an engine otherwise does not.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) trace: Trace,
    /// The experts of a step, row by row, and how many layers have been through.
    step: Vec<u16>,
    layers: usize,
}

impl Recorder {
    /// For a model whose layers with experts are alike; `None` where there are none, or they differ.
    pub(crate) fn of(spec: &ModelSpec) -> Option<Recorder> {
        let mut choices =
            spec.layers.iter().filter_map(|layer| layer.mlp.experts).map(|experts| experts.choice);
        let (layers, first) = (choices.clone().count(), choices.next()?);
        let word = |number: usize| u16::try_from(number).ok();
        let routes =
            Routes { layers: word(layers)?, experts: word(first.experts)?, chosen: word(first.chosen)? };
        let trace = choices.all(|choice| choice == first).then(|| Trace::new(routes))?.ok()?;
        Some(Recorder { trace, step: Vec::new(), layers: 0 })
    }

    /// After a step: its tokens count where it was not stopped.
    pub(crate) fn end(&mut self, is_done: bool) {
        let Routes { layers, chosen, .. } = self.trace.routes;
        if is_done && self.layers == usize::from(layers) {
            for token in self.step.chunks_exact(usize::from(layers) * usize::from(chosen)) {
                self.trace.push(token).expect("rows are sent to experts that there are, to each once");
            }
        }
        self.step.clear();
        self.layers = 0;
    }
}

impl Tap for Recorder {
    fn wants(&self, _: usize) -> bool {
        false
    }
    fn see(&mut self, _: &Seen) {}
    fn wants_routing(&self) -> bool {
        true
    }
    fn routed(&mut self, rows: usize, routing: &Routing) {
        let Routes { layers, chosen, .. } = self.trace.routes;
        let (layers, chosen) = (usize::from(layers), usize::from(chosen));
        self.step.resize(rows * layers * chosen, 0);
        let mut found = vec![0; rows];
        for &[expert, first, count] in routing.segments() {
            for &row in &routing.rows()[first as usize..(first + count) as usize] {
                let row = row as usize;
                self.step[(row * layers + self.layers) * chosen + found[row]] = expert as u16;
                found[row] += 1;
            }
        }
        self.layers += 1;
    }
}
