// Cross-entropy of logits that come in chunks, see `loss.rs` here. A block has a row. What is known of a row are three
// floats: the largest logit, the sum of all exponentials below it, the label's own logit.
#include "../../cuda/math.cuh"

// Shared memory: a float for each warp. The first chunk begins at 0; a label beyond the vocabulary is none.
KERNEL entropy_see(const float* logits, unsigned width, unsigned first, const unsigned* labels, float* known) {
    float* room = SHARED(float);
    logits += (size_t)blockIdx.x * width;
    known += 3 * blockIdx.x;
    float before = first ? known[0] : MINUS_INFINITY, total = first ? known[1] : 0.0f, most = before;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) most = fmaxf(most, logits[i]);
    most = block_largest(most, room);
    float sum = 0.0f;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) sum += exp_of(logits[i] - most);
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) {
        unsigned own = labels[blockIdx.x] - first;
        known[0] = most;
        known[1] = (first ? total * exp_of(before - most) : 0.0f) + sum;
        if (own < width) known[2] = logits[own];
    }
}
EXPORT(entropy_see)

// A chunk's logits become the gradient of the loss times its row's scale.
KERNEL entropy_back(unsigned width, unsigned first, const unsigned* labels, const float* scales, const float* known,
                    float* logits) {
    logits += (size_t)blockIdx.x * width;
    known += 3 * blockIdx.x;
    float scale = scales[blockIdx.x], inverse = 1.0f / known[1];
    unsigned own = labels[blockIdx.x] - first;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float share = exp_of(logits[i] - known[0]) * inverse;
        logits[i] = scale * (share - (i == own ? 1.0f : 0.0f));
    }
}
EXPORT(entropy_back)
