//! Stretches of a step that are kept as graphs: one call of the driver instead of one for every kernel. Kernels are
//! told addresses and sizes, which follow from the rows of a step alone; everything else is in the words of `steps.rs`,
//! which a graph sends first.

use bantam_model::card::{KEPT_ROWS, Stretch};

use crate::backend::CudaBackend;
use crate::driver::Graph;
use crate::fault::Fault;

/// By their rows, from one on: layers, logits.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    graphs: [[Option<Graph>; KEPT_ROWS]; 2],
    /// Whether what is asked now is to be kept.
    is_open: bool,
}

impl Kept {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Graph> {
        self.graphs.iter().flatten().flatten()
    }

    fn place(&mut self, stretch: &Stretch) -> Option<&mut Option<Graph>> {
        let rows = stretch.rows().checked_sub(1)?;
        match stretch {
            Stretch::Layers { .. } => self.graphs[0].get_mut(rows),
            Stretch::Logits { .. } => self.graphs[1].get_mut(rows),
        }
    }
}

impl CudaBackend {
    pub(crate) fn begin_stretch(&mut self) {
        self.steps.forget();
        let begun = self.card.begin_graph();
        self.kept.is_open = begun.is_ok();
        self.note(begun);
    }

    pub(crate) fn keep_stretch(&mut self, stretch: &Stretch) -> Result<(), Fault> {
        // The driver is told that it is over in any case, and what went wrong meanwhile was not computed.
        let was_open = std::mem::take(&mut self.kept.is_open);
        let graph = if was_open { Some(self.card.end_graph()) } else { None };
        self.steps.forget();
        match (self.take_fault(), graph) {
            (Some(fault), graph) => {
                graph.into_iter().flatten().for_each(|graph| self.card.free_graph(&graph));
                Err(fault)
            }
            (None, graph) => {
                let graph = graph.transpose()?;
                let place = self.kept.place(stretch).expect("a stretch of as many rows as are kept");
                let before = std::mem::replace(place, graph);
                before.iter().for_each(|graph| self.card.free_graph(graph));
                Ok(())
            }
        }
    }

    /// What goes to the host or comes from it meanwhile would be done once and not again.
    pub(crate) fn refuse_to_keep(&self) {
        if self.kept.is_open {
            self.note(Err(Fault::Lost { what: "a graph", code: "a copy within it" }));
        }
    }

    pub(crate) fn queue_stretch(&mut self, stretch: &Stretch) -> bool {
        if !self.is_sound() || self.kept.place(stretch).is_none_or(|graph| graph.is_none()) {
            return false;
        }
        let told = match *stretch {
            Stretch::Layers { tokens, batch } => {
                let list = self.steps.set_list(&self.card, tokens.iter().copied());
                list.and_then(|()| self.steps.set_batch(&self.card, batch)).map(|_| ())
            }
            Stretch::Logits { rows } => self.steps.set_list(&self.card, rows.iter().map(|&row| row as u32)),
        };
        let Some(Some(graph)) = self.kept.place(stretch) else { return false };
        let done = told.and_then(|()| self.card.queue_graph(graph));
        self.note(done);
        true
    }
}
