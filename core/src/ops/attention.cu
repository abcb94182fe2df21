// Attention over the cache's pages, see `attention.rs`, and `layouts/page.rs` for the pages. A block has one query
// head of one token and goes along its sequence by two pages at a time, so that what a token gets depends on its
// sequence alone.
#include "../cuda/math.cuh"

#define POSITIONS 64u
#define STEP 128u        // positions, and threads
#define WIDTH_MAX 512u
#define F32 0u
#define F16 1u
#define INT8 2u

// One layer's cache. `head_bytes` are those of a head's part of a page.
struct Cache {
    uint8_t* memory;
    const unsigned* tables;
    unsigned kind, heads, width, padded, head_bytes, value_offset;
};

template <unsigned KIND> DEVICE float code(const uint8_t* codes, size_t at) {
    if (KIND == F32) return ((const float*)codes)[at];
    if (KIND == F16) return half_value(((const uint16_t*)codes)[at]);
    return (float)((const int8_t*)codes)[at];
}

DEVICE uint8_t* page_of(const Cache& cache, const Row& row, unsigned position, unsigned head) {
    size_t page = cache.tables[row.table + position / POSITIONS];
    return cache.memory + (page * cache.heads + head) * cache.head_bytes;
}

// Keys lie channel by channel, values position by position.
DEVICE void put(unsigned kind, uint8_t* codes, size_t at, float x, float inverse) {
    if (kind == F32) {
        ((float*)codes)[at] = x;
    } else if (kind == F16) {
        ((uint16_t*)codes)[at] = half_bits(x);
    } else {
        ((int8_t*)codes)[at] = (int8_t)rintf(x * inverse);
    }
}

DEVICE void store_side(const Cache& cache, uint8_t* codes, uint8_t* scales, const float* x, unsigned position,
                       bool is_key, float* room) {
    float inverse = 0.0f;
    if (cache.kind == INT8) {
        float peak = 0.0f;
        AS_WRITTEN for (unsigned i = threadIdx.x; i < cache.width; i += blockDim.x) peak = fmaxf(peak, fabsf(x[i]));
        float scale = block_largest(peak, room) / 127.0f;
        if (scale > 0.0f) inverse = 1.0f / scale;
        if (threadIdx.x == 0) ((float*)scales)[position] = scale;
    }
    AS_WRITTEN for (unsigned i = threadIdx.x; i < cache.width; i += blockDim.x) {
        size_t at = is_key ? i * POSITIONS + position : (size_t)position * cache.padded + i;
        put(cache.kind, codes, at, x[i], inverse);
    }
}

// A block has a key head of a token. Shared memory: a float for each warp.
KERNEL store(Cache cache, const Row* rows, const float* keys, const float* values) {
    Row row = rows[blockIdx.y];
    unsigned head = blockIdx.x, position = row.position % POSITIONS;
    size_t x = ((size_t)blockIdx.y * cache.heads + head) * cache.width;
    uint8_t* page = page_of(cache, row, row.position, head);
    unsigned bytes = cache.kind == F32 ? 4 : cache.kind == F16 ? 2 : 1;
    float* room = SHARED(float);
    uint8_t* page_values = page + cache.value_offset;
    store_side(cache, page, page + (size_t)cache.width * POSITIONS * bytes, keys + x, position, true, room);
    store_side(cache, page_values, page_values + (size_t)cache.padded * POSITIONS * bytes, values + x, position, false,
               room);
}
EXPORT(store)

struct Attention {
    unsigned heads, window;
    float scale, softcap;
    const float* sinks;
};

// The score of one position, summed along the channels.
template <unsigned KIND>
DEVICE float score_of(const Attention& a, const Cache& cache, const uint8_t* page, unsigned position,
                      const float* query) {
    float sum = 0.0f;
    AS_WRITTEN for (unsigned c = 0; c < cache.width; ++c) {
        sum = fmaf(code<KIND>(page, c * POSITIONS + position), query[c], sum);
    }
    sum *= a.scale;
    if (KIND == INT8) sum *= ((const float*)(page + (size_t)cache.width * POSITIONS))[position];
    return a.softcap != 0.0f ? tanh_of(sum / a.softcap) * a.softcap : sum;
}

// Shared memory: a query, a weight for each position of a step, a float for each warp.
template <unsigned KIND>
DEVICE void attend(const Attention& a, const Cache& cache, const Row* rows, const float* queries, float* out) {
    float *query = SHARED(float), *weights = query + cache.width, *room = weights + STEP;
    Row row = rows[blockIdx.y];
    unsigned head = blockIdx.x, key_head = head / (a.heads / cache.heads);
    size_t at = ((size_t)blockIdx.y * a.heads + head) * cache.width;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < cache.width; i += STEP) query[i] = queries[at + i];
    __syncthreads();
    unsigned to = row.position + 1, from = a.window < to ? to - a.window : 0;
    float highest = MINUS_INFINITY, total = 0.0f, sums[WIDTH_MAX / STEP] = {};
    if (a.sinks) highest = a.sinks[head], total = 1.0f;
    AS_WRITTEN for (unsigned start = from / POSITIONS * POSITIONS; start < to; start += STEP) {
        unsigned position = start + threadIdx.x;
        bool is_seen = position >= from && position < to;
        float score = MINUS_INFINITY, value_scale = 1.0f;
        if (is_seen) {
            const uint8_t* page = page_of(cache, row, position, key_head);
            score = score_of<KIND>(a, cache, page, position % POSITIONS, query);
            const uint8_t* scales = page + cache.value_offset + (size_t)cache.padded * POSITIONS;
            if (KIND == INT8) value_scale = ((const float*)scales)[position % POSITIONS];
        }
        float peak = fmaxf(highest, block_largest(score, room));
        float correction = exp_of(highest - peak), weight = exp_of(score - peak);
        total = total * correction + block_sum(weight, room);
        highest = peak;
        weights[threadIdx.x] = weight * value_scale;
        __syncthreads();
        unsigned first = from > start ? from - start : 0, end = to - start < STEP ? to - start : STEP;
        for (unsigned n = 0; n < WIDTH_MAX / STEP; ++n) {
            unsigned channel = threadIdx.x + n * STEP;
            if (channel >= cache.width) break;
            float sum = sums[n] * correction;
            AS_WRITTEN for (unsigned i = first; i < end;) {
                const uint8_t* values = page_of(cache, row, start + i, key_head) + cache.value_offset;
                unsigned page_end = (i / POSITIONS + 1) * POSITIONS, stop = page_end < end ? page_end : end;
                AS_WRITTEN for (; i < stop; ++i) {
                    size_t at = (size_t)(i % POSITIONS) * cache.padded + channel;
                    sum = fmaf(code<KIND>(values, at), weights[i], sum);
                }
            }
            sums[n] = sum;
        }
        __syncthreads();
    }
    float inverse = 1.0f / total;
    for (unsigned n = 0; n < WIDTH_MAX / STEP; ++n) {
        unsigned channel = threadIdx.x + n * STEP;
        if (channel < cache.width) out[at + channel] = sums[n] * inverse;
    }
}

#define PARAMETERS (Attention a, Cache cache, const Row* rows, const float* queries, float* out)
KERNEL __launch_bounds__(STEP, 4) attend_f32 PARAMETERS { attend<F32>(a, cache, rows, queries, out); }
EXPORT(attend_f32)
KERNEL __launch_bounds__(STEP, 4) attend_f16 PARAMETERS { attend<F16>(a, cache, rows, queries, out); }
EXPORT(attend_f16)
KERNEL __launch_bounds__(STEP, 4) attend_int8 PARAMETERS { attend<INT8>(a, cache, rows, queries, out); }
EXPORT(attend_int8)
