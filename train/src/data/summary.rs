//! How many rows there were, how many are used, and why the others are not.

use std::fmt;

/// How many places of one reason are named.
const PLACES_MAX: usize = 3;

/// Rows that were dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// What is wrong with the rows.
    pub reason: String,
    /// How many there are.
    pub count: usize,
    /// File and line of the first.
    pub places: Vec<String>,
}

/// What became of one data set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetSummary {
    /// Its name.
    pub name: String,
    /// Rows that were asked for.
    pub rows: usize,
    /// Rows that are used.
    pub kept: usize,
    /// Rows of which not all fits into `cutoff_len`.
    pub cut: usize,
    /// Why the others are not used.
    pub dropped: Vec<Dropped>,
}

impl SetSummary {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Counts a row that is not used.
    pub(super) fn drop_row(&mut self, reason: &str, place: String) {
        let known = self.dropped.iter().position(|dropped| dropped.reason == reason);
        let index = known.unwrap_or_else(|| {
            self.dropped.push(Dropped { reason: reason.to_owned(), count: 0, places: Vec::new() });
            self.dropped.len() - 1
        });
        let dropped = &mut self.dropped[index];
        dropped.count += 1;
        if dropped.places.len() < PLACES_MAX {
            dropped.places.push(place);
        }
    }

    /// How many rows are not used.
    pub fn dropped_rows(&self) -> usize {
        self.dropped.iter().map(|dropped| dropped.count).sum()
    }
}

/// What became of all data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The data sets in their order, those for evaluation last.
    pub sets: Vec<SetSummary>,
    /// What else is worth knowing, in sentences.
    pub notes: Vec<String>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for set in &self.sets {
            writeln!(f, "{}: {} of {} rows", set.name, set.kept, set.rows)?;
            if set.cut > 0 {
                writeln!(f, "  {} cut to cutoff_len", set.cut)?;
            }
            for dropped in &set.dropped {
                let more = if dropped.count > dropped.places.len() { ", …" } else { "" };
                let places = dropped.places.join(", ");
                writeln!(f, "  {} dropped: {} ({places}{more})", dropped.count, dropped.reason)?;
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}
