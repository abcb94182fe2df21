//! Everything that is not cargo.
fn main() {}
