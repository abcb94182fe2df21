// Norms backwards, see `norm.rs` here.
#include "../../cuda/kernel.cuh"

struct NormBack {
    const float *x, *dy, *weight;
    float *dx, *stats;
    unsigned width;
    float epsilon, shift;
    unsigned centered, add, none;
};

// A block has a row. `stats` gets its mean and what it is multiplied by. Shared memory: a float for each warp.
KERNEL norm_back(NormBack of) {
    float* room = SHARED(float);
    size_t at = (size_t)blockIdx.x * of.width;
    const float *x = of.x + at, *dy = of.dy + at;
    float mean = 0.0f, size = (float)of.width;
    if (of.centered) {
        float sum = 0.0f;
        AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) sum += x[i];
        mean = block_sum(sum, room) / size;
    }
    float squares = 0.0f;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) {
        squares = fmaf(x[i] - mean, x[i] - mean, squares);
    }
    float scale = 1.0f / sqrtf(block_sum(squares, room) / size + of.epsilon);
    float flat = 0.0f, along = 0.0f;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) {
        float d = dy[i] * (of.weight[i] + of.shift);
        flat += d;
        along = fmaf(d, (x[i] - mean) * scale, along);
    }
    flat = block_sum(flat, room) / size;
    along = block_sum(along, room) / size;
    if (!of.centered) flat = 0.0f;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) {
        float d = dy[i] * (of.weight[i] + of.shift);
        float step = scale * (d - flat - (x[i] - mean) * scale * along);
        of.dx[at + i] = of.add ? of.dx[at + i] + step : step;
    }
    if (threadIdx.x == 0) {
        of.stats[2 * blockIdx.x] = mean;
        of.stats[2 * blockIdx.x + 1] = scale;
    }
}
EXPORT(norm_back)

// Gradients of weight and bias, each where it is wanted, over all rows in their order: a thread has a channel.
KERNEL norm_back_weights(const float* x, const float* dy, const float* stats, unsigned rows, unsigned width,
                         float* dweight, float* dbias) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    float weight = 0.0f, bias = 0.0f;
    AS_WRITTEN for (unsigned row = 0; row < rows; ++row) {
        float d = dy[(size_t)row * width + i];
        weight = fmaf(d, (x[(size_t)row * width + i] - stats[2 * row]) * stats[2 * row + 1], weight);
        bias += d;
    }
    if (dweight) dweight[i] += weight;
    if (dbias) dbias[i] += bias;
}
EXPORT(norm_back_weights)
