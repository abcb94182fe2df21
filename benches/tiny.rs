//! The kernel benches at tiny sizes, so that they cannot rot: every variant of a case computes the same. Nothing here
//! looks at a clock.

mod rival;

use std::collections::BTreeSet;
use std::time::Duration;

use bantam_benches::case::{Case, Effort, Filter, checksum, measure};
use bantam_benches::ceilings::Ceilings;
use bantam_benches::{attention, matrix, table};
use bantam_core::Cpu;
use bantam_core::layouts::LAYOUTS;

/// Of the root mean square: int8 activations are rounded by 1/254 of their peak, and the worst of some thousand
/// values counts.
const TOLERANCE: f64 = 0.05;

fn every_case(visit: &mut dyn FnMut(Case)) {
    let filter = Filter::default();
    let mut visit = |case: Case| {
        visit(case);
        Ok(())
    };
    matrix::visit(matrix::TINY, rival::RIVAL, &filter, &mut visit).expect("a few pages of memory");
    attention::visit(attention::TINY, &filter, &mut visit).expect("a few pages of memory");
}

#[test]
fn variants_of_a_case_agree() {
    let mut cases = 0;
    every_case(&mut |mut case: Case| {
        cases += 1;
        let mut outs = case.variants.iter_mut().map(|variant| {
            let mut out = vec![f32::NAN; case.outputs];
            (variant.run)(&mut out);
            (variant.name.clone(), out)
        });
        let outs: Vec<_> = outs.by_ref().collect();
        let (_, naive) = outs.iter().find(|(name, _)| name == "naive").expect("always");
        let size = naive.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / case.outputs as f64;
        let size = size.sqrt();
        assert!(size > 0.0, "{}: all zero", case.name);
        for (name, out) in &outs {
            for (i, (&y, &wanted)) in out.iter().zip(naive).enumerate() {
                let error = (f64::from(y) - f64::from(wanted)).abs();
                assert!(error <= TOLERANCE * size, "{}/{name}, value {i}: {y}, not {wanted}", case.name);
            }
            let error = (checksum(out) - checksum(naive)).abs();
            assert!(error <= TOLERANCE * size * case.outputs as f64, "{}/{name}", case.name);
        }
    });
    assert_eq!(cases, LAYOUTS.len() * matrix::TINY.shapes.len() * matrix::TINY.tokens.len() + 6);
}

#[test]
fn the_table_names_every_variant_once() {
    let ceilings = Ceilings::new(Cpu::detect()).expect("192 MiB of memory");
    let effort = Effort { each: Duration::ZERO, rounds_least: 1, rounds_most: 1 };
    let mut names = BTreeSet::new();
    every_case(&mut |mut case| {
        let rows = measure(&mut case, &ceilings, effort);
        assert_eq!(rows.len(), case.variants.len());
        assert_eq!(table::lines(&rows).lines().count(), rows.len());
        let fields = table::CSV_HEAD.split(',').count();
        for (line, row) in table::csv(&rows).lines().zip(&rows) {
            assert_eq!(line.split(',').count(), fields, "{line}");
            assert!(row.median > 0.0 && row.speed.is_finite() && row.share.is_finite() && row.ratio >= 1.0);
            assert!(names.insert(row.name.clone()), "{} twice", row.name);
        }
    });
}

#[test]
fn a_filter_keeps_names_that_hold_all_its_words() {
    let filter = Filter(vec!["matvec/".to_owned(), "naive".to_owned()]);
    let mut names = Vec::new();
    let mut visit = |case: Case| {
        names.extend(case.variants.iter().map(|variant| variant.name.clone()));
        Ok(())
    };
    matrix::visit(matrix::TINY, rival::RIVAL, &filter, &mut visit).expect("a few pages of memory");
    assert_eq!(names, vec!["naive"; LAYOUTS.len()]);
}
