// Codes times int8 for many tokens, see `tensor.cuh`: the same bits as `integer.cu`, whatever the layout, which is told
// apart while it runs: it is opened once for 64 tokens.
#include "../tensor.cuh"
#include "coded.cuh"

// The digit with that number, see `digits_of`.
DEVICE unsigned digit_of(unsigned word, unsigned number) {
    word ^= 0x80808080u;
    unsigned even = word & 0x00ff00ffu, odd = word >> 8 & 0x00ff00ffu;
    AS_WRITTEN for (; number > 0; --number) even = even * 3 & 0x00ff00ffu, odd = odd * 3 & 0x00ff00ffu;
    return (even * 3 >> 8 & 0x00ff00ffu) | (odd * 3 & 0xff00ff00u);
}

struct SlicesOfCodes {
    const Coding& coding;
    Codes x;
    unsigned slices, of_block, together;
    int bias;
    bool is_one;

    // Blocks of 16 columns have a slice each, of which half is empty.
    DEVICE bool is_half() const { return coding.block < 4 * SLICE_WORDS; }
    // Code words of a slice; of trits two, of which the second slice of a block begins with the first one's last.
    DEVICE unsigned code_words() const { return coding.bits == 2 ? 2 : coding.bits * (is_half() ? 16 : 32) / 32; }
    DEVICE unsigned block_words() const { return coding.trits ? 3 : coding.block * coding.bits / 32; }
    DEVICE bool has_zeros() const { return coding.side == ZERO; }
    DEVICE bool is_first(unsigned slice) const { return (slice & (of_block - 1)) == 0; }
    DEVICE Place place(const unsigned* tile, unsigned slice) const {
        return place_of(tile, coding.side, block_words(), coding.trits, slice / of_block);
    }

    DEVICE void load(FreshIntegers& fresh, const unsigned* tile, unsigned slice) const {
        Place at = place(tile, slice);
        unsigned of_slice = slice % of_block, count = code_words();
        const unsigned* codes = at.codes + of_slice * (coding.trits ? 1 : count) * LANES + lane();
        UNROLLED for (unsigned w = 0; w < SLICE_WORDS; ++w) {
            if (w < count) fresh.words[w] = codes[w * LANES];
        }
        const unsigned* side = at.side + lane();
        if (coding.side != ROW) fresh.scales = side[scale_at(coding.side, at.member) * LANES];
        if (coding.trits && of_slice) fresh.trits = side[scale_words(coding.side) * LANES];
    }

    DEVICE void load_x(FreshIntegers& fresh, size_t row, unsigned slice, unsigned half) const {
        const unsigned* words = x.words + row * x.of_row + slice * (is_half() ? 4 : SLICE_WORDS);
        if (!(half && is_half())) fresh.x = ((const uint4*)words)[half];
        if (!half) fresh.sum = x.sums[row * x.blocks + slice / of_block];
    }

    DEVICE void open_trits(const FreshIntegers& fresh, unsigned slice, unsigned (&bytes)[SLICE_WORDS]) const {
        unsigned first[DIGITS], second[DIGITS], member = slice / of_block % 4;
        digits_of(fresh.words[0], first);
        digits_of(fresh.words[1], second);
        if (slice % of_block) {
            bytes[0] = first[3], bytes[1] = first[4];
            UNROLLED for (unsigned w = 2; w < 7; ++w) bytes[w] = second[w - 2];
            bytes[7] = digit_of(fresh.trits, member + 1);
        } else {
            UNROLLED for (unsigned w = 0; w < DIGITS; ++w) bytes[w] = first[w];
            UNROLLED for (unsigned w = DIGITS; w < SLICE_WORDS; ++w) bytes[w] = second[w - DIGITS];
        }
    }

    DEVICE void open(const FreshIntegers& fresh, unsigned slice, unsigned (&bytes)[SLICE_WORDS], float& scale,
                     float& zero) const {
        if (coding.trits) {
            open_trits(fresh, slice, bytes);
        } else if (coding.bits == 2) {
            UNROLLED for (unsigned w = 0; w < SLICE_WORDS; ++w) {
                bytes[w] = fresh.words[w / 4] >> w % 4 * 2 & 0x03030303u;
            }
        } else if (coding.bits == 4) {
            UNROLLED for (unsigned w = 0; w < SLICE_WORDS; w += 2) {
                unsigned word = fresh.words[w / 2];
                bytes[w] = word & 0x0f0f0f0fu, bytes[w + 1] = word >> 4 & 0x0f0f0f0fu;
                if (coding.table) choose(coding.bytes, word, bytes[w], bytes[w + 1]);
            }
        } else {
            UNROLLED for (unsigned w = 0; w < SLICE_WORDS; ++w) bytes[w] = fresh.words[w];
        }
        if (is_half()) bytes[4] = bytes[5] = bytes[6] = bytes[7] = 0;
        scale = scale_in(fresh.scales, coding.side, slice / of_block % unit_blocks(coding.side));
        zero = has_zeros() ? half_value(fresh.scales >> 16) : 0.0f;
    }

    DEVICE float multiple(const Stack& stack, const unsigned* tile) const {
        return multiple_of(stack, tile) * coding.unit;
    }
    DEVICE float scale_of_x(size_t row) const { return x.scales[row]; }
};

KERNEL __launch_bounds__(THREADS, 2)
coded_64(const __grid_constant__ Coding coding, PARTS, Routed routed, unsigned tokens, unsigned inputs,
         const unsigned* memory) {
    SlicesOfCodes weights = {coding, codes_of(coding, inputs, memory)};
    weights.of_block = coding.block <= 4 * SLICE_WORDS ? 1 : coding.block / (4 * SLICE_WORDS);
    weights.slices = coding.blocks * weights.of_block;
    weights.bias = (int)coding.bias;
    // As in `integer.cu`: integers that float32 holds, however they are grouped.
    bool is_narrow = parts.list[0].stack.columns <= 1u << 16;
    weights.is_one = coding.side == ROW && is_narrow;
    weights.together = weights.of_block * (coding.side == HALVES && is_narrow ? 2 : 1);
    if (weights.is_one) weights.together = weights.slices;
    multiply_many(weights, parts, routed, tokens);
}
EXPORT(coded_64)
