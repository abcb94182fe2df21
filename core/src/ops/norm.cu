// Normalization of rows, see `norm.rs`. A block has a row.
#include "../cuda/kernel.cuh"

// Shared memory: a float for each warp. `out` may be `x`.
KERNEL norm(const float* x, float* out, const float* weight, const float* bias, unsigned width, float epsilon,
            float shift, unsigned centered) {
    float* room = SHARED(float);
    x += (size_t)blockIdx.x * width;
    out += (size_t)blockIdx.x * width;
    float mean = 0.0f;
    if (centered) {
        float sum = 0.0f;
        AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
        mean = block_sum(sum, room) / (float)width;
    }
    float squares = 0.0f;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float d = x[i] - mean;
        squares = fmaf(d, d, squares);
    }
    float variance = block_sum(squares, room) / (float)width;
    float scale = 1.0f / sqrtf(variance + epsilon);
    AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float y = (x[i] - mean) * scale * (weight[i] + shift);
        out[i] = bias ? y + bias[i] : y;
    }
}
EXPORT(norm)
