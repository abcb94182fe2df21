// The bend of a feed-forward block backwards, see `activation.rs` here. A thread has a value.
#include "../../cuda/math.cuh"

// Kinds are numbered as in `ops/activation.cu`.
DEVICE void bend_and_slope(unsigned kind, float x, float& y, float& slope) {
    switch (kind) {
        case 0: {
            float s = sigmoid_of(x);
            y = x * s, slope = s * (x * (1.0f - s) + 1.0f);
            return;
        }
        case 1: {
            float phi = 0.5f * (1.0f + erf_of(x * 0.70710678f));
            float density = exp_of(x * x * -0.5f) * 0.3989423f;
            y = x * phi, slope = fmaf(x, density, phi);
            return;
        }
        case 2: {
            float t = tanh_of(fmaf(x * x, 0.044715f, 1.0f) * x * 0.7978846f);
            float inner = fmaf(x * x, 0.134145f, 1.0f) * 0.7978846f, phi = 0.5f * (1.0f + t);
            y = x * phi, slope = fmaf(0.5f * x * (1.0f - t * t), inner, phi);
            return;
        }
        case 3: {
            y = fmaxf(x, 0.0f), slope = x > 0.0f ? 1.0f : 0.0f;
            return;
        }
        default: {
            float low = fminf(7.0f, x), s = sigmoid_of(low * 1.702f);
            y = low * s, slope = x > 7.0f ? 0.0f : s * fmaf(low * (1.0f - s), 1.702f, 1.0f);
        }
    }
}

// `d` is the gradient of the result, and becomes that of `gate`; that of `up` is written to `dup`.
KERNEL activate_back(unsigned kind, size_t count, const float* gate, const float* up, float* dup, float* d) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float y, slope, factor = 1.0f, dy = d[i];
    bend_and_slope(kind, gate[i], y, slope);
    if (up) {
        float x = up[i];
        bool is_clamped = kind == 4u && (x > 7.0f || x < -7.0f);
        dup[i] = is_clamped ? 0.0f : dy * y;
        factor = kind == 4u ? fminf(fmaxf(x, -7.0f), 7.0f) + 1.0f : x;
    }
    d[i] = dy * slope * factor;
}
EXPORT(activate_back)

// Given the result.
KERNEL cap_back(float limit, size_t count, const float* y, float* d) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) d[i] *= 1.0f - y[i] / limit * (y[i] / limit);
}
EXPORT(cap_back)
