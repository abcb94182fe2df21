// Gradients of products are products of float32 rows again, see `products.rs` here: of matrices in other layouts some
// rows are unpacked at a time.
#include "../../cuda/kernel.cuh"

#define SIDE 32u

struct FloatProduct {
    const float *a, *b;
    float* out;
    // Of the result; `depth` is what is summed over.
    unsigned rows, columns, depth;
    // From one row of `a` to the next; whether `a` is to be turned over.
    unsigned stride, turned;
    unsigned add;
};

// A block of 32 x 8 threads has 32 x 32 results. Shared memory: 2 x 32 x 33 floats.
KERNEL float_product(FloatProduct of) {
    float *a = SHARED(float), *b = a + SIDE * (SIDE + 1), sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    unsigned column = blockIdx.y * SIDE + lane(), row = blockIdx.x * SIDE;
    AS_WRITTEN for (unsigned first = 0; first < of.depth; first += SIDE) {
        for (unsigned n = warp(); n < SIDE; n += 8) {
            // Lanes go along memory: along the depth, or along the rows.
            unsigned i = of.turned ? lane() : n, k = of.turned ? n : lane();
            size_t at = of.turned ? (size_t)(first + k) * of.stride + row + i : (size_t)(row + i) * of.stride + first + k;
            bool is_there = row + i < of.rows && first + k < of.depth;
            a[i * (SIDE + 1) + k] = is_there ? of.a[at] : 0.0f;
            bool is_in_b = first + n < of.depth && column < of.columns;
            b[n * (SIDE + 1) + lane()] = is_in_b ? of.b[(size_t)(first + n) * of.columns + column] : 0.0f;
        }
        __syncthreads();
        AS_WRITTEN for (unsigned k = 0; k < SIDE; ++k) {
            float y = b[k * (SIDE + 1) + lane()];
            for (unsigned n = 0; n < 4; ++n) sums[n] = fmaf(a[(warp() + 8 * n) * (SIDE + 1) + k], y, sums[n]);
        }
        __syncthreads();
    }
    for (unsigned n = 0; n < 4; ++n) {
        unsigned i = row + warp() + 8 * n;
        if (i >= of.rows || column >= of.columns) continue;
        float* out = of.out + (size_t)i * of.columns + column;
        *out = of.add ? *out + sums[n] : sums[n];
    }
}
EXPORT(float_product)
