//! The outside rival: `ndarray`, whose product is that of the crate `matrixmultiply`. float32, on one thread.

use bantam_benches::matrix::Rival;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

pub(crate) const RIVAL: Rival = Rival {
    name: "ndarray",
    product: |shape, weights, x, out| {
        let (rows, columns) = (shape.rows, shape.columns);
        let tokens = x.len() / columns;
        let fits = "the lengths are products of the sizes";
        let weights = ArrayView2::from_shape((rows, columns), weights).expect(fits);
        let x = ArrayView2::from_shape((tokens, columns), x).expect(fits);
        let mut out = ArrayViewMut2::from_shape((tokens, rows), out).expect(fits);
        general_mat_mul(1.0, &x, &weights.t(), 0.0, &mut out);
    },
};
