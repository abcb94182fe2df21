//! How an adapter is merged, by the memory that there is: a graphics card, whole tensors, rows by rows, or not at all.
//!
//! It decides by numbers that others have measured, and says every decision with them.

/// What was measured; `None` where it cannot be told.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Bytes of the graphics card, where there is one.
    pub card: Option<u64>,
    /// Free memory in bytes.
    pub memory: Option<u64>,
    /// Free bytes of the disk that is written to.
    pub disk: Option<u64>,
}

/// What the ways need, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Memory for whole tensors.
    pub whole: u64,
    /// Memory for some rows.
    pub rows: u64,
    /// The merged model's files.
    pub disk: u64,
}

/// How to merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Whole tensors, one after another.
    Whole,
    /// Some rows of a tensor at a time.
    Rows,
}

/// One step of the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What was considered.
    pub what: &'static str,
    /// Bytes that it needs.
    pub needed: Option<u64>,
    /// Bytes that there are.
    pub found: Option<u64>,
    /// What follows.
    pub verdict: &'static str,
}

/// Decides; no way where nothing fits. A way that was asked for is taken if it fits.
pub fn decide(measured: Measured, needs: Needs, asked: Option<Way>) -> (Vec<Decision>, Option<Way>) {
    let fits = |needed: u64, found: Option<u64>| found.is_none_or(|found| needed <= found);
    let verdict = |fits: bool, yes: &'static str, no: &'static str| if fits { yes } else { no };
    // Files bound a merge: a step of reading, a few products, a step of writing.
    let is_on_card = verdict(
        fits(needs.whole, measured.card),
        "skipped: it reads and writes files no faster there",
        "does not fit",
    );
    let mut steps = vec![Decision {
        what: "merge on a graphics card",
        needed: Some(needs.whole),
        found: measured.card,
        verdict: if measured.card.is_none() { "skipped: no card was found" } else { is_on_card },
    }];
    let mut step = |what, needed, found, verdict| {
        steps.push(Decision { what, needed: Some(needed), found, verdict });
    };
    let has_disk = fits(needs.disk, measured.disk);
    step("room on the disk", needs.disk, measured.disk, verdict(has_disk, "fits", "does not fit"));
    let mut way = None;
    if asked != Some(Way::Rows) {
        let is_whole = fits(needs.whole, measured.memory);
        let yes = verdict(has_disk, "fits: taken", "fits");
        step(
            "merge in memory, tensor by tensor",
            needs.whole,
            measured.memory,
            verdict(is_whole, yes, "does not fit"),
        );
        way = is_whole.then_some(Way::Whole);
    }
    if way.is_none() && asked != Some(Way::Whole) {
        let is_rows = fits(needs.rows, measured.memory);
        let yes = verdict(has_disk, "fits: taken", "fits");
        step(
            "merge streamed, rows by rows",
            needs.rows,
            measured.memory,
            verdict(is_rows, yes, "does not fit"),
        );
        way = is_rows.then_some(Way::Rows);
    }
    (steps, way.filter(|_| has_disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_way_that_fits_is_taken() {
        let needs = Needs { whole: 100, rows: 10, disk: 50 };
        let card = None;
        for (memory, disk, asked, expected) in [
            (Some(100), Some(50), None, Some(Way::Whole)),
            (Some(99), Some(50), None, Some(Way::Rows)),
            (Some(9), Some(50), None, None),
            (Some(100), Some(49), None, None),
            (None, None, None, Some(Way::Whole)),
            (Some(100), Some(50), Some(Way::Rows), Some(Way::Rows)),
            (Some(99), Some(50), Some(Way::Whole), None),
        ] {
            let (steps, way) = decide(Measured { card, memory, disk }, needs, asked);
            assert_eq!(way, expected, "{memory:?} {disk:?} {asked:?}");
            let taken = steps.iter().filter(|step| step.verdict.ends_with("taken")).count();
            assert_eq!(taken, usize::from(way.is_some()), "{steps:?}");
            assert_eq!((steps[0].needed, steps[0].verdict), (Some(100), "skipped: no card was found"));
        }
        for (card, word) in [(99, "does not fit"), (100, "no faster")] {
            let measured = Measured { card: Some(card), memory: Some(100), disk: None };
            let (steps, way) = decide(measured, needs, None);
            assert!(steps[0].verdict.contains(word) && way == Some(Way::Whole), "{steps:?}");
        }
    }
}
