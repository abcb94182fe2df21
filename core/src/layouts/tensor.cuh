// Products of many tokens by tensor cores: a block of threads meets four tiles with up to 64 tokens of one matrix. What
// a layout holds is opened once for all of these, in shared memory, stage after stage: what the next one takes is
// loaded while one is multiplied. A warp has a tile and half of the tokens.
//
// A stage has two *slices* of up to 32 columns of bytes or 16 of bfloat16: eight words of each row and token, of which a
// lane takes two beside one another. Tensor cores take these for columns further apart; that is alike on both sides.
#pragma once
#include "tile.cuh"

#define AT_ONCE 64u
#define TILES 4u
#define SLICES 2u
#define SLICE_WORDS 8u
// Integers begin here, of which the bits are then those of 1.5 * 2^23 plus the integer in float32.
#define INTEGER_ZERO 0x4b400000
#define FLOAT_ZERO 12582912.0f

struct StageOfIntegers {
    uint2 weights[SLICES][TILES * LANES * SLICE_WORDS / 2];
    uint2 x[SLICES][AT_ONCE * SLICE_WORDS / 2];
    float scales[SLICES][TILES * LANES], zeros[SLICES][TILES * LANES];
    // What integers of a block begin with, and the sum of its activations' codes.
    int starts[SLICES][AT_ONCE];
    float sums[SLICES][AT_ONCE];
};

// Where the halves of a row's words lie, and the two words of them that a lane reads: every fourth row they change
// places, so that lanes that have a turn together meet different banks, writing and reading.
DEVICE uint4& half_of(uint2* slice, unsigned row, unsigned half) {
    return ((uint4*)slice)[2 * row + (half ^ (row >> 2 & 1))];
}
DEVICE unsigned two_words(unsigned row) { return 4 * row + ((lane() % 4) ^ (row >> 2 & 1) << 1); }

// What a thread has loaded for the stage after the next barrier: a slice of a row, half a slice of a token.
struct FreshIntegers {
    unsigned words[SLICE_WORDS];
    unsigned scales, trits;
    uint4 x;
    int sum;
};

// Tokens of a block, which meet one matrix.
struct Span {
    unsigned matrix, first, end;
};

// An expert's are as many as chose it, so there may be more blocks than spans.
DEVICE Span span_of(const Routed& routed, unsigned tokens) {
    unsigned group = blockIdx.x, first = group * AT_ONCE;
    if (!routed.memory) return {0, first, tokens - first < AT_ONCE ? tokens : first + AT_ONCE};
    const unsigned* segment = routed.memory + 1 + routed.experts;
    AS_WRITTEN for (unsigned left = routed.memory[0]; left > 0; --left, segment += 3) {
        unsigned groups = (segment[2] + AT_ONCE - 1) / AT_ONCE;
        if (group < groups) {
            unsigned past = segment[2] - group * AT_ONCE;
            first = segment[1] + group * AT_ONCE;
            return {segment[0], first, first + (past < AT_ONCE ? past : AT_ONCE)};
        }
        group -= groups;
    }
    return {0, 0, 0};
}

// A block's tokens, and the tile that a warp has of some matrix, if there is one left.
struct Meeting {
    const Parts& parts;
    const Routed& routed;
    Span span;
    const Part* part;
    const unsigned* tile;
    unsigned of_part;

    DEVICE void find_tile() {
        of_part = blockIdx.y * TILES + warp() / 2;
        for (unsigned i = 0; i < 3 && !part; ++i) {
            const Part& next = parts.list[i];
            if (of_part < next.stack.count) {
                part = &next;
            } else {
                of_part -= next.stack.count;
            }
        }
        if (!part) return;
        tile = part->stack.tiles + ((size_t)span.matrix * part->stack.count + of_part) * part->stack.tile_words;
    }

    // The row of the prepared input; a block's tokens are filled up with its last.
    DEVICE size_t row_of_token(unsigned token) const {
        unsigned at = span.first + token < span.end ? span.first + token : span.end - 1;
        return routed.memory && routed.by_token ? row_of(routed, at) : at;
    }

    // The first of a warp's tokens.
    DEVICE unsigned first_token() const { return warp() % 2 * LANES; }

    // Where a lane lays the sums that it has by tensor cores, so that lanes have rows again; and where they find them.
    DEVICE float& sum_at(float* room, unsigned i, unsigned j, unsigned at) const {
        unsigned row = 16 * i + at / 2 * 8 + lane() / 4, token = 8 * j + lane() % 4 * 2 + at % 2;
        return room[(warp() * LANES + token) * LANES + (row ^ (lane() % 4) << 3)];
    }
    DEVICE float sum_of(const float* room, unsigned token) const {
        return room[(warp() * LANES + token) * LANES + (lane() ^ (token / 2 % 4) << 3)];
    }
};

// Shared memory: two stages, or a word for every row and token of the block, whichever is more.
template <class Many> DEVICE void run(Many& many) {
    many.find_tile();
    size_t row = many.row_of_token(threadIdx.x % (2 * AT_ONCE) / 2);
    bool has_any = many.part && many.span.first + many.first_token() < many.span.end;
    auto* stages = SHARED(typename Many::Stage);
    AS_WRITTEN for (unsigned first = 0, turn = 0;; first += SLICES, turn ^= 1) {
        bool is_more = first < many.slices();
        typename Many::Fresh fresh = {};
        if (is_more) fresh = many.load(first, row);
        if (first && has_any) many.multiply(stages[turn ^ 1], first - SLICES);
        if (!is_more) break;
        // All have multiplied the stage before that one, which lay here.
        many.lay(stages[turn], fresh, first);
        __syncthreads();
    }
    __syncthreads();
    if (has_any) many.emit_all(SHARED(float));
}

// Integers: `Weights` says how slices of a layout are loaded and opened, how many there are (`slices`), in how many of
// them integers are added (`together`), and whether these are all (`is_one`).
template <class Weights> struct Integers : Meeting {
    typedef StageOfIntegers Stage;
    typedef FreshIntegers Fresh;

    Weights weights;
    // By sixteen rows, eight tokens, and as tensor cores have them.
    int dots[2][4][4];
    float sums[2][4][4];
    // Slices that are still to be added.
    unsigned left;

    DEVICE unsigned slices() const { return weights.slices; }

    DEVICE Fresh load(unsigned first, size_t row) const {
        Fresh fresh = {};
        unsigned slice = first + warp() % SLICES, of_token = first + threadIdx.x / (2 * AT_ONCE);
        if (part && slice < weights.slices) weights.load(fresh, tile, slice);
        if (of_token < weights.slices) weights.load_x(fresh, row, of_token, threadIdx.x % 2);
        return fresh;
    }

    DEVICE void lay(Stage& stage, const Fresh& fresh, unsigned first) const {
        unsigned s = warp() % SLICES, row = warp() / 2 * LANES + lane();
        if (part && first + s < weights.slices) {
            unsigned bytes[SLICE_WORDS];
            weights.open(fresh, first + s, bytes, stage.scales[s][row], stage.zeros[s][row]);
            half_of(stage.weights[s], row, 0) = {bytes[0], bytes[1], bytes[2], bytes[3]};
            half_of(stage.weights[s], row, 1) = {bytes[4], bytes[5], bytes[6], bytes[7]};
        }
        s = threadIdx.x / (2 * AT_ONCE);
        unsigned token = threadIdx.x % (2 * AT_ONCE) / 2, half = threadIdx.x % 2;
        half_of(stage.x[s], token, half) = fresh.x;
        if (half) return;
        stage.starts[s][token] = -weights.bias * fresh.sum;
        stage.sums[s][token] = (float)fresh.sum;
    }

    // A new term, or one more block of it.
    DEVICE void begin(const int* starts, unsigned slice) {
        bool is_new = left == 0;
        if (is_new) left = weights.slices - slice < weights.together ? weights.slices - slice : weights.together;
        int zero = weights.is_one ? 0 : INTEGER_ZERO;
        UNROLLED for (unsigned n = 0; n < 16; ++n) {
            int start = starts[n / 4 * 8 + lane() % 4 * 2 + n % 2];
            int &low = dots[0][n / 4][n % 4], &high = dots[1][n / 4][n % 4];
            low = start + (is_new ? zero : low);
            high = start + (is_new ? zero : high);
        }
    }

    DEVICE void add_dots(const uint2* rows, const uint2* tokens) {
        uint2 a[2][2];
        UNROLLED for (unsigned i = 0; i < 4; ++i) a[i / 2][i % 2] = rows[two_words(8 * i + lane() / 4)];
        UNROLLED for (unsigned j = 0; j < 4; ++j) {
            uint2 x = tokens[two_words(8 * j + lane() / 4)];
            UNROLLED for (unsigned i = 0; i < 2; ++i) {
                unsigned of_rows[4] = {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y}, of_tokens[2] = {x.x, x.y};
                multiply_bytes(dots[i][j], of_rows, of_tokens);
            }
        }
    }

    DEVICE void add_term(const float* scales, const float* zeros, const float* of_x) {
        UNROLLED for (unsigned i = 0; i < 4; ++i) {
            unsigned row = 8 * i + lane() / 4;
            float scale = scales[row], of_row[8];
            UNROLLED for (unsigned n = 0; n < 8; ++n) {
                of_row[n] = __uint_as_float((unsigned)dots[i / 2][n / 2][i % 2 * 2 + n % 2]) - FLOAT_ZERO;
            }
            if (weights.has_zeros()) {
                float zero = zeros[row];
                UNROLLED for (unsigned n = 0; n < 8; ++n) {
                    of_row[n] = of_row[n] - zero * of_x[n / 2 * 8 + lane() % 4 * 2 + n % 2];
                }
            }
            UNROLLED for (unsigned n = 0; n < 8; ++n) {
                float& sum = sums[i / 2][n / 2][i % 2 * 2 + n % 2];
                sum = sum + of_row[n] * scale;
            }
        }
    }

    DEVICE void multiply(const Stage& stage, unsigned first) {
        unsigned rows = warp() / 2 * LANES, tokens = first_token();
        AS_WRITTEN for (unsigned s = 0; s < SLICES && first + s < weights.slices; ++s) {
            if (weights.is_first(first + s)) begin(stage.starts[s] + tokens, first + s);
            add_dots(stage.weights[s] + rows * SLICE_WORDS / 2, stage.x[s] + tokens * SLICE_WORDS / 2);
            if (--left == 0 && !weights.is_one) {
                add_term(stage.scales[s] + rows, stage.zeros[s] + rows, stage.sums[s] + tokens);
            }
        }
    }

    DEVICE void emit_all(float* room) const {
        UNROLLED for (unsigned n = 0; n < 32; ++n) {
            unsigned i = n / 16, j = n / 4 % 4;
            sum_at(room, i, j, n % 4) = weights.is_one ? (float)dots[i][j][n % 4] : sums[i][j][n % 4];
        }
        __syncwarp();
        float multiple = weights.multiple(part->stack, tile);
        unsigned first = first_token(), end = span.end - span.first;
        AS_WRITTEN for (unsigned i = 0; i < LANES && first + i < end; ++i) {
            float scale = weights.scale_of_x(row_of_token(first + i));
            emit_row(*part, of_part, span.matrix, span.first + first + i, sum_of(room, i) * multiple * scale);
        }
    }
};

template <class Weights>
DEVICE void multiply_many(const Weights& weights, const Parts& parts, const Routed& routed, unsigned tokens) {
    Span span = span_of(routed, tokens);
    if (span.first == span.end) return;
    Integers<Weights> many = {{parts, routed, span}, weights};
    run(many);
}
