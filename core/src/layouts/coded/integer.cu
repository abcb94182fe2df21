// Codes times int8, see `integer.rs`: the same bits as on the processor.
//
// Integers are exact however they are divided among warps. What meets a scale is a *term*: warps compute terms beside
// one another and lay them down, and one warp per token adds them in the order of the columns while the others go on.
#include "coded.cuh"

template <unsigned BITS, bool TABLE, bool TRITS, unsigned SIDE, unsigned G> struct Product {
    static const unsigned WORDS = 64 / G;  // terms of a round

    const Coding& coding;
    Job job;
    Codes x;
    size_t rows[G];

    DEVICE unsigned side() const { return SIDE == FOURS ? coding.side : SIDE; }
    DEVICE unsigned block_words() const { return BITS == 2 ? 4 - (TRITS ? 1 : 0) : coding.block * BITS / 32; }
    // Rows of so many columns have integers that float32 holds, however they are grouped; `integer.rs` groups no wider.
    DEVICE bool is_narrow() const { return job.stack.columns <= 1u << 16; }
    // Blocks whose dot products are added as integers: they share a scale.
    DEVICE unsigned together() const { return SIDE == FOURS && coding.side == HALVES && is_narrow() ? 2 : 1; }

    DEVICE void add_word(unsigned bytes, unsigned at, int (&dots)[G]) const {
        for (unsigned g = 0; g < G; ++g) dots[g] = dot4(bytes, x.words[rows[g] * x.of_row + at], dots[g]);
    }

    DEVICE void add_codes(const Place& place, unsigned at, int (&dots)[G]) const {
        const unsigned* codes = place.codes + lane();
        AS_WRITTEN for (unsigned w = 0; w < block_words(); ++w) {
            unsigned word = codes[w * LANES];
            if (BITS == 8) {
                add_word(word, at + w, dots);
            } else if (BITS == 4) {
                unsigned low = word & 0x0f0f0f0fu, high = word >> 4 & 0x0f0f0f0fu;
                if (TABLE) choose(coding.bytes, word, low, high);
                add_word(low, at + 2 * w, dots);
                add_word(high, at + 2 * w + 1, dots);
            } else if (TRITS) {
                unsigned digits[DIGITS];
                digits_of(word, digits);
                for (unsigned k = 0; k < DIGITS; ++k) add_word(digits[k], at + DIGITS * w + k, dots);
            } else {
                for (unsigned k = 0; k < 4; ++k) add_word(word >> (2 * k) & 0x03030303u, at + 4 * w + k, dots);
            }
        }
        if (TRITS) {
            unsigned digits[DIGITS];
            digits_of(place.side[scale_words(side()) * LANES + lane()], digits);
            unsigned digit = digits[1];
            for (unsigned k = 2; k < DIGITS; ++k) digit = place.member + 1 == k ? digits[k] : digit;
            add_word(digit, at + 15, dots);
        }
    }

    // Adds the dot products of a block, counted from the book's zero.
    DEVICE Place add_block(unsigned block, int (&dots)[G]) const {
        Place place = place_of(job.tile, side(), block_words(), TRITS, block);
        add_codes(place, block * (coding.block / 4), dots);
        for (unsigned g = 0; g < G; ++g) dots[g] -= (int)coding.bias * x.sums[rows[g] * x.blocks + block];
        return place;
    }

    // A term of every token, laid down at `to`.
    DEVICE void lay_term(unsigned term, float* to) const {
        int dots[G] = {};
        unsigned block = term * together(), end = block + together() < x.blocks ? block + together() : x.blocks;
        Place place;
        for (; block < end; ++block) place = add_block(block, dots);
        float scale = scale_of(place, side()), zero = zero_of(place, side());
        for (unsigned g = 0; g < G; ++g) {
            float dot = (float)dots[g];
            if (SIDE == ZERO) dot = dot - zero * (float)x.sums[rows[g] * x.blocks + term];
            to[g * LANES + lane()] = dot * scale;
        }
    }

    DEVICE float in_terms(float* room) const {
        unsigned terms = (x.blocks + together() - 1) / together(), turn = 0;
        float sum = 0.0f;
        AS_WRITTEN for (unsigned first = 0; first < terms; first += WORDS, turn ^= 1) {
            unsigned count = terms - first < WORDS ? terms - first : WORDS;
            float* round = room + turn * WORDS * G * LANES;
            AS_WRITTEN for (unsigned i = warp(); i < count; i += WARPS) lay_term(first + i, round + i * G * LANES);
            __syncthreads();
            // The next round lies elsewhere, and the one after that is behind another barrier.
            if (warp() >= G) continue;
            AS_WRITTEN for (unsigned i = 0; i < count; ++i) sum = sum + round[(i * G + warp()) * LANES + lane()];
        }
        return sum;
    }

    // Rows with one scale: one term, of integers alone.
    DEVICE float in_one(int* room) const {
        int dots[G] = {};
        AS_WRITTEN for (unsigned block = warp(); block < x.blocks; block += WARPS) add_block(block, dots);
        return (float)gather_warps<int, G>(dots, room);
    }

    // Shared memory: 64 words of two rounds for every lane, or as `gather_warps` wants it, whichever is more.
    DEVICE void multiply(const Routed& routed) {
        for (unsigned g = 0; g < G; ++g) rows[g] = input_row(job, routed, job.first + g);
        bool is_one = SIDE == FOURS && coding.side == ROW && is_narrow();
        float sum = is_one ? in_one(SHARED(int)) : in_terms(SHARED(float));
        if (warp() >= G) return;
        unsigned token = job.first + warp();
        float multiple = multiple_of(job.stack, job.tile) * coding.unit;
        emit(job, token, sum * multiple * x.scales[input_row(job, routed, token)]);
    }
};

template <unsigned BITS, bool TABLE, bool TRITS, unsigned SIDE, unsigned G>
DEVICE void multiply(const Coding& coding, const Parts& parts, const Routed& routed, unsigned tokens, unsigned inputs,
                     const unsigned* memory) {
    Codes x = codes_of(coding, inputs, memory);
    Product<BITS, TABLE, TRITS, SIDE, G> product = {coding, job_of(parts, routed, tokens, G), x, {}};
    product.multiply(routed);
}

#define PARAMETERS                                                                            \
    (const __grid_constant__ Coding coding, PARTS, Routed routed, unsigned tokens, unsigned inputs, \
     const unsigned* memory)
#define OF(BITS, TABLE, TRITS, SIDE, G) \
    multiply<BITS, TABLE, TRITS, SIDE, G>(coding, parts, routed, tokens, inputs, memory)
#define TABLE4_PAIR(G) OF(4, true, false, PAIR, G)
#define TABLE4_POWERS(G) OF(4, true, false, EXPONENTS, G)
#define COUNT4_PAIR(G) OF(4, false, false, PAIR, G)
#define COUNT4_ZERO(G) OF(4, false, false, ZERO, G)
#define COUNT2(G) OF(2, false, false, FOURS, G)
#define TRITS_FOURS(G) OF(2, false, true, FOURS, G)
#define COUNT8_PAIR(G) OF(8, false, false, PAIR, G)
#define COUNT8_ZERO(G) OF(8, false, false, ZERO, G)
FOR_TOKENS(table4_pair, PARAMETERS, TABLE4_PAIR)
FOR_TOKENS(table4_powers, PARAMETERS, TABLE4_POWERS)
FOR_TOKENS(count4_pair, PARAMETERS, COUNT4_PAIR)
FOR_TOKENS(count4_zero, PARAMETERS, COUNT4_ZERO)
FOR_TOKENS(count2, PARAMETERS, COUNT2)
FOR_TOKENS(trits, PARAMETERS, TRITS_FOURS)
FOR_TOKENS(count8_pair, PARAMETERS, COUNT8_PAIR)
FOR_TOKENS(count8_zero, PARAMETERS, COUNT8_ZERO)
