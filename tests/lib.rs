//! Shared by the tests that cross crates: where the goldens lie and how they are read.
