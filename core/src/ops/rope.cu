// Rotary positions, see `rope.rs`. A block has a token.
#include "../cuda/kernel.cuh"

KERNEL angles(const float* frequencies, const float* longer, unsigned border, const Row* rows, unsigned pairs,
              float scale, float* out) {
    Row row = rows[blockIdx.x];
    const float* of = longer && row.length > border ? longer : frequencies;
    out += (size_t)blockIdx.x * 2 * pairs;
    for (unsigned i = threadIdx.x; i < pairs; i += blockDim.x) {
        float angle = (float)row.position * of[i];
        out[i] = cosf(angle) * scale;
        out[pairs + i] = sinf(angle) * scale;
    }
}
EXPORT(angles)

KERNEL rotate(const float* angles, unsigned pairs, unsigned heads, unsigned width, float* x) {
    const float* cosines = angles + (size_t)blockIdx.x * 2 * pairs;
    x += (size_t)blockIdx.x * heads * width;
    for (unsigned i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
        unsigned pair = i % pairs;
        float* head = x + i / pairs * width;
        float a = head[pair], b = head[pair + pairs];
        float cosine = cosines[pair], sine = cosines[pairs + pair];
        head[pair] = a * cosine - b * sine;
        head[pair + pairs] = b * cosine + a * sine;
    }
}
EXPORT(rotate)
