// What is done value by value, see `activation.rs`; and sums, products and copies of rows. A thread has a value.
#include "../cuda/math.cuh"

#define SILU 0u
#define GELU 1u
#define GELU_TANH 2u
#define RELU 3u
#define CLAMPED_SWISH 4u

DEVICE float bend(unsigned kind, float x) {
    switch (kind) {
        case SILU: return x * sigmoid_of(x);
        case GELU: return x * 0.5f * (1.0f + erf_of(x * 0.70710678f));
        case GELU_TANH: {
            float cubed = fmaf(x * x, 0.044715f, 1.0f) * x;
            return x * 0.5f * (1.0f + tanh_of(cubed * 0.7978846f));
        }
        case RELU: return fmaxf(x, 0.0f);
        default: {
            x = fminf(7.0f, x);
            return x * sigmoid_of(x * 1.702f);
        }
    }
}

DEVICE size_t index() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

KERNEL activate(unsigned kind, size_t count, float* gate, const float* up) {
    size_t i = index();
    if (i >= count) return;
    float y = bend(kind, gate[i]);
    if (up && kind == CLAMPED_SWISH) {
        y *= fminf(fmaxf(up[i], -7.0f), 7.0f) + 1.0f;
    } else if (up) {
        y *= up[i];
    }
    gate[i] = y;
}
EXPORT(activate)

KERNEL cap(float limit, float inverse, size_t count, float* x) {
    size_t i = index();
    if (i < count) x[i] = tanh_of(x[i] * inverse) * limit;
}
EXPORT(cap)

KERNEL add(size_t count, const float* x, float* out) {
    size_t i = index();
    if (i < count) out[i] += x[i];
}
EXPORT(add)

// A block has a row: a token, or a place with its expert's factors.
KERNEL scale(Routed routed, unsigned width, const float* factors, const float* bias, float* x) {
    size_t of = routed.memory ? (size_t)expert_of(routed, blockIdx.x) * width : 0;
    x += (size_t)blockIdx.x * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float y = x[i] * factors[of + i];
        x[i] = bias ? y + bias[of + i] : y;
    }
}
EXPORT(scale)

// A block has a row.
KERNEL gather(const unsigned* rows, unsigned width, const float* x, float* out) {
    x += (size_t)rows[blockIdx.x] * width;
    out += (size_t)blockIdx.x * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) out[i] = x[i];
}
EXPORT(gather)

// The first of the largest values of a row, which a block has. Shared memory: two words for each thread.
KERNEL argmax(const float* x, unsigned width, unsigned* out) {
    float* values = SHARED(float);
    unsigned* places = SHARED(unsigned) + blockDim.x;
    x += (size_t)blockIdx.x * width;
    float best = MINUS_INFINITY;
    unsigned place = width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        if (x[i] > best) best = x[i], place = i;
    }
    values[threadIdx.x] = best;
    places[threadIdx.x] = place;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        float other = values[threadIdx.x + half];
        unsigned there = places[threadIdx.x + half];
        if (other > values[threadIdx.x] || (other == values[threadIdx.x] && there < places[threadIdx.x])) {
            values[threadIdx.x] = other;
            places[threadIdx.x] = there;
        }
    }
    // A row without any number above minus infinity has its first.
    if (threadIdx.x == 0) out[blockIdx.x] = places[0] < width ? places[0] : 0;
}
EXPORT(argmax)
