// The choice of experts backwards, see `experts.rs` here; `ops/experts.rs` draws what lies at `memory`.
#include "../../cuda/kernel.cuh"

// A block has a row. Shared memory: a float for each warp, then two for each expert that a row chooses.
KERNEL combine_back(Routed routed, unsigned chosen, unsigned width, const float* parts, const float* dy, float* dparts,
                    float* dlogits) {
    float *room = SHARED(float), *alongs = room + warps(), mean = 0.0f;
    unsigned row = blockIdx.x;
    const unsigned* places = routed.memory + 1 + 4 * routed.experts + routed.places + row * chosen;
    const float* shares = (const float*)(places + routed.places);
    dy += (size_t)row * width;
    dlogits += (size_t)row * routed.experts;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < routed.experts; i += blockDim.x) dlogits[i] = 0.0f;
    AS_WRITTEN for (unsigned n = 0; n < chosen; ++n) {
        size_t at = (size_t)places[n] * width;
        float along = 0.0f;
        AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            along = fmaf(dy[i], parts[at + i], along);
            dparts[at + i] = shares[n] * dy[i];
        }
        along = block_sum(along, room);
        if (threadIdx.x == 0) alongs[n] = along;
        mean = fmaf(shares[n], along, mean);
    }
    __syncthreads();
    AS_WRITTEN for (unsigned n = threadIdx.x; n < chosen; n += blockDim.x) {
        dlogits[expert_of(routed, places[n])] = shares[n] * (alongs[n] - mean);
    }
}
EXPORT(combine_back)
