// Rows and their experts, see `experts.rs`, which draws the memory that is filled here.
#include "../cuda/math.cuh"

#define CHOSEN_MAX 32u
#define NOT_A_NUMBER(x) ((x) != (x))

// The experts of the largest logits, ascending, and their shares; a thread has a row.
DEVICE void choose(const float* logits, unsigned experts, unsigned chosen, unsigned* places, float* shares) {
    unsigned picked[CHOSEN_MAX];
    AS_WRITTEN for (unsigned n = 0; n < chosen; ++n) {
        unsigned best = experts;
        AS_WRITTEN for (unsigned expert = 0; expert < experts; ++expert) {
            bool taken = false;
            AS_WRITTEN for (unsigned i = 0; i < n; ++i) taken = taken || picked[i] == expert;
            if (taken) continue;
            if (best == experts || logits[expert] > logits[best] || NOT_A_NUMBER(logits[best])) best = expert;
        }
        // Sorted as they come.
        unsigned at = n;
        for (; at > 0 && picked[at - 1] > best; --at) picked[at] = picked[at - 1];
        picked[at] = best;
    }
    float most = MINUS_INFINITY, total = 0.0f;
    AS_WRITTEN for (unsigned i = 0; i < chosen; ++i) most = fmaxf(most, logits[picked[i]]);
    AS_WRITTEN for (unsigned i = 0; i < chosen; ++i) {
        shares[i] = exp_of(logits[picked[i]] - most);
        total += shares[i];
    }
    AS_WRITTEN for (unsigned i = 0; i < chosen; ++i) {
        shares[i] /= total;
        places[i] = picked[i];
    }
}

// One block. Who goes where is counted by one thread per expert, row after row, so that it hangs on no order of
// threads. Shared memory: two words per expert.
KERNEL route(const float* logits, unsigned experts, unsigned chosen, unsigned rows, unsigned* memory) {
    unsigned *counts = SHARED(unsigned), *firsts = counts + experts;
    unsigned* segments = memory + 1 + experts;
    unsigned* row_of_place = segments + 3 * experts;
    unsigned* places = row_of_place + rows * chosen;
    float* shares = (float*)(places + rows * chosen);
    AS_WRITTEN for (unsigned row = threadIdx.x; row < rows; row += blockDim.x) {
        choose(logits + (size_t)row * experts, experts, chosen, places + row * chosen, shares + row * chosen);
    }
    __syncthreads();
    AS_WRITTEN for (unsigned expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        unsigned count = 0;
        AS_WRITTEN for (unsigned i = 0; i < rows * chosen; ++i) count += places[i] == expert;
        counts[expert] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned next = 0, used = 0;
        AS_WRITTEN for (unsigned expert = 0; expert < experts; ++expert) {
            firsts[expert] = next;
            memory[1 + expert] = next + counts[expert];
            if (counts[expert]) {
                segments[3 * used] = expert;
                segments[3 * used + 1] = next;
                segments[3 * used + 2] = counts[expert];
                ++used;
            }
            next += counts[expert];
        }
        memory[0] = used;
    }
    __syncthreads();
    AS_WRITTEN for (unsigned expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        unsigned next = firsts[expert];
        AS_WRITTEN for (unsigned i = 0; i < rows * chosen; ++i) {
            if (places[i] == expert) row_of_place[next++] = i / chosen;
        }
    }
    __syncthreads();
    // An expert has a row at most once, so a row's place is found by its row.
    AS_WRITTEN for (unsigned i = threadIdx.x; i < rows * chosen; i += blockDim.x) {
        unsigned expert = places[i], place = firsts[expert];
        while (row_of_place[place] != i / chosen) ++place;
        places[i] = place;
    }
}
EXPORT(route)

// Adds to a row, which a block has, what its places hold.
KERNEL combine(const unsigned* memory, unsigned experts, unsigned chosen, unsigned rows, unsigned width,
               const float* parts, float* out) {
    const unsigned* places = memory + 1 + 4 * experts + rows * chosen + blockIdx.x * chosen;
    const float* shares = (const float*)(places + rows * chosen);
    out += (size_t)blockIdx.x * width;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float total = 0.0f;
        AS_WRITTEN for (unsigned n = 0; n < chosen; ++n) {
            total = fmaf(parts[(size_t)places[n] * width + i], shares[n], total);
        }
        out[i] += total;
    }
}
EXPORT(combine)
