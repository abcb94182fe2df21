//! Stretches of a step that are kept as graphs: one call of the driver instead of one for every kernel. Kernels are
//! told addresses and sizes, which follow from the rows of a step alone; everything else is in the words of `steps.rs`,
//! which a graph sends first.
//!
//! What a driver takes of the card for a graph it does not tell, so what is free is read before and after. Somebody
//! else may take or give meanwhile: then a graph too many is let go, or one seems to cost less than it does.

use bantam_model::card::{KEPT_ROWS, Stretch};

use crate::backend::CudaBackend;
use crate::driver::Graph;
use crate::fault::Fault;

/// By their rows, from one on: layers, logits.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    graphs: [[Option<Graph>; KEPT_ROWS]; 2],
    /// Of the card, gone with them.
    bytes: usize,
    /// Whether what is asked now is to be kept.
    is_open: bool,
}

impl Kept {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Graph> {
        self.graphs.iter().flatten().flatten()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
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

    pub(crate) fn keep_stretch(&mut self, stretch: &Stretch, most: usize) -> Result<(), Fault> {
        // The driver is told that it is over in any case, and what went wrong meanwhile was not computed.
        let was_open = std::mem::take(&mut self.kept.is_open);
        let template = was_open.then(|| self.card.end_graph());
        let free = || self.card.memory().map(|(free, _)| free);
        let before = free();
        let graph = template.map(|template| template.and_then(|template| self.card.make_graph(template)));
        self.steps.forget();
        match (self.take_fault(), graph) {
            (Some(fault), graph) => {
                graph.into_iter().flatten().for_each(|graph| self.card.free_graph(&graph));
                Err(fault)
            }
            (None, graph) => {
                let graph = graph.transpose()?;
                let before = before?;
                if before.saturating_sub(free()?) > most {
                    graph.iter().for_each(|graph| self.card.free_graph(graph));
                    self.kept.bytes += before.saturating_sub(free()?);
                    return Err(Fault::Lost {
                        what: "a graph",
                        code: "it takes more of the card than was set aside",
                    });
                }
                self.kept.bytes += before.saturating_sub(free()?);
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
