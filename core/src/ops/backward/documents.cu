// Attention over whole documents and backwards, see `attention.rs` here: no matrix of scores is ever there, and sums
// run in one order, so that nothing hangs on who comes first.
#include "../../cuda/math.cuh"

struct Documents {
    const float *queries, *keys, *values, *sinks;
    // Of every row: the first of its document, and the one after its last.
    const unsigned *starts, *ends;
    unsigned heads, kv_heads, width, rows, window;
    float scale, softcap;
    unsigned none;
};

DEVICE unsigned first_seen(const Documents& of, unsigned row) {
    unsigned start = of.starts[row];
    return row - start < of.window ? start : row + 1 - of.window;
}

// A row of queries or results, and of keys or values.
DEVICE size_t query_at(const Documents& of, unsigned row, unsigned head) {
    return ((size_t)row * of.heads + head) * of.width;
}
DEVICE size_t key_at(const Documents& of, unsigned row, unsigned head) {
    return ((size_t)row * of.kv_heads + head / (of.heads / of.kv_heads)) * of.width;
}

DEVICE float dot(const float* a, const float* b, unsigned width) {
    float sum = 0.0f;
    AS_WRITTEN for (unsigned i = 0; i < width; ++i) sum = fmaf(a[i], b[i], sum);
    return sum;
}

DEVICE float score_of(const Documents& of, unsigned row, unsigned head, unsigned seen) {
    float score = dot(of.queries + query_at(of, row, head), of.keys + key_at(of, seen, head), of.width) * of.scale;
    return of.softcap > 0.0f ? of.softcap * tanh_of(score / of.softcap) : score;
}

DEVICE float slope_of(const Documents& of, float score) {
    float part = score / of.softcap;
    return (of.softcap > 0.0f ? 1.0f - part * part : 1.0f) * of.scale;
}

// A block has a row and a head. Shared memory: a float for each thread and each warp.
KERNEL documents(Documents of, float* out, float* logs) {
    float *shares = SHARED(float), *room = shares + blockDim.x;
    unsigned row = blockIdx.x, head = blockIdx.y, first = first_seen(of, row);
    float sink = of.sinks ? of.sinks[head] : MINUS_INFINITY, most = sink, total = 0.0f;
    AS_WRITTEN for (unsigned seen = first + threadIdx.x; seen <= row; seen += blockDim.x) {
        most = fmaxf(most, score_of(of, row, head, seen));
    }
    most = block_largest(most, room);
    AS_WRITTEN for (unsigned seen = first + threadIdx.x; seen <= row; seen += blockDim.x) {
        total += exp_of(score_of(of, row, head, seen) - most);
    }
    total = block_sum(total, room) + (of.sinks ? exp_of(sink - most) : 0.0f);
    if (threadIdx.x == 0) logs[(size_t)head * of.rows + row] = most + logf(total);
    out += query_at(of, row, head);
    AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) out[i] = 0.0f;
    AS_WRITTEN for (unsigned at = first; at <= row; at += blockDim.x) {
        unsigned seen = at + threadIdx.x, count = row + 1 - at < blockDim.x ? row + 1 - at : blockDim.x;
        if (seen <= row) shares[threadIdx.x] = exp_of(score_of(of, row, head, seen) - most) / total;
        __syncthreads();
        AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) {
            float sum = out[i];
            AS_WRITTEN for (unsigned n = 0; n < count; ++n) {
                sum = fmaf(shares[n], of.values[key_at(of, at + n, head) + i], sum);
            }
            out[i] = sum;
        }
        __syncthreads();
    }
}
EXPORT(documents)

// Gradients of queries. A block has a row and a head, of which `known` gets what its shares add up to, their mean of
// `dy` along the values, and what comes to the sink. Shared memory: as forward.
KERNEL documents_back_queries(Documents of, const float* logs, const float* dy, float* dqueries, float* known) {
    float *steps = SHARED(float), *room = steps + blockDim.x;
    unsigned row = blockIdx.x, head = blockIdx.y, first = first_seen(of, row);
    size_t at_log = (size_t)head * of.rows + row;
    float log = logs[at_log], total = 0.0f, mean = 0.0f;
    dy += query_at(of, row, head);
    dqueries += query_at(of, row, head);
    AS_WRITTEN for (unsigned seen = first + threadIdx.x; seen <= row; seen += blockDim.x) {
        float share = exp_of(score_of(of, row, head, seen) - log);
        total += share;
        mean = fmaf(share, dot(dy, of.values + key_at(of, seen, head), of.width), mean);
    }
    // Made to add up: the gradients of a row's scores then cancel, as they must.
    float sink = of.sinks ? exp_of(of.sinks[head] - log) : 0.0f;
    total = block_sum(total, room) + sink;
    mean = block_sum(mean, room) / total;
    if (threadIdx.x == 0) {
        known[3 * at_log] = total;
        known[3 * at_log + 1] = mean;
        known[3 * at_log + 2] = 0.0f - sink / total * mean;
    }
    AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) dqueries[i] = 0.0f;
    AS_WRITTEN for (unsigned at = first; at <= row; at += blockDim.x) {
        unsigned seen = at + threadIdx.x, count = row + 1 - at < blockDim.x ? row + 1 - at : blockDim.x;
        if (seen <= row) {
            float score = score_of(of, row, head, seen), share = exp_of(score - log) / total;
            float along = dot(dy, of.values + key_at(of, seen, head), of.width);
            steps[threadIdx.x] = share * (along - mean) * slope_of(of, score);
        }
        __syncthreads();
        AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) {
            float sum = dqueries[i];
            AS_WRITTEN for (unsigned n = 0; n < count; ++n) {
                sum = fmaf(steps[n], of.keys[key_at(of, at + n, head) + i], sum);
            }
            dqueries[i] = sum;
        }
        __syncthreads();
    }
}
EXPORT(documents_back_queries)

// Gradients of keys and values. A block has a row and one of their heads, and goes through all that see it. Shared
// memory: two floats for each thread.
KERNEL documents_back_keys(Documents of, const float* logs, const float* dy, const float* known, float* dkeys,
                           float* dvalues) {
    float *steps = SHARED(float), *shares = steps + blockDim.x;
    unsigned seen = blockIdx.x, group = of.heads / of.kv_heads, kv_head = blockIdx.y;
    unsigned end = of.ends[seen] - seen < of.window ? of.ends[seen] : seen + of.window;
    size_t own = ((size_t)seen * of.kv_heads + kv_head) * of.width;
    dkeys += own, dvalues += own;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) dkeys[i] = dvalues[i] = 0.0f;
    AS_WRITTEN for (unsigned head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        AS_WRITTEN for (unsigned at = seen; at < end; at += blockDim.x) {
            unsigned row = at + threadIdx.x, count = end - at < blockDim.x ? end - at : blockDim.x;
            if (row < end) {
                size_t at_log = (size_t)head * of.rows + row;
                float score = score_of(of, row, head, seen);
                float share = exp_of(score - logs[at_log]) / known[3 * at_log];
                float along = dot(dy + query_at(of, row, head), of.values + own, of.width);
                shares[threadIdx.x] = share;
                steps[threadIdx.x] = share * (along - known[3 * at_log + 1]) * slope_of(of, score);
            }
            __syncthreads();
            AS_WRITTEN for (unsigned i = threadIdx.x; i < of.width; i += blockDim.x) {
                float key = dkeys[i], value = dvalues[i];
                AS_WRITTEN for (unsigned n = 0; n < count; ++n) {
                    size_t from = query_at(of, at + n, head) + i;
                    key = fmaf(steps[n], of.queries[from], key);
                    value = fmaf(shares[n], dy[from], value);
                }
                dkeys[i] = key, dvalues[i] = value;
            }
            __syncthreads();
        }
    }
}
EXPORT(documents_back_keys)

// What comes to the sinks, added. A block has a head. Shared memory: a float for each warp.
KERNEL documents_back_sinks(const float* known, unsigned rows, float* dsinks) {
    float sum = 0.0f;
    known += (size_t)3 * rows * blockIdx.x;
    AS_WRITTEN for (unsigned row = threadIdx.x; row < rows; row += blockDim.x) sum += known[3 * row + 2];
    sum = block_sum(sum, SHARED(float));
    if (threadIdx.x == 0) dsinks[blockIdx.x] += sum;
}
EXPORT(documents_back_sinks)
