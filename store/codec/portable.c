/* portable.c - the decoder in plain C, for every machine. */
#include "lanes.h"

static bool always(void) { return true; }

typedef uint8_t bytes __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(16)));

/* Symbols above plane bytes, rotated right by one. */
ALWAYS_INLINE void split2_eight(bytes interleaved, uint8_t *dst)
{
    halves v = (halves)interleaved;
    v = v >> 1 | v << 15;
    memcpy(dst, &v, sizeof v);
}

/* 16 elements: eight symbols of each of two lanes, in the vectors that every processor with 64 bits has. */
ALWAYS_INLINE void split2_pair(const uint8_t *lane0, const uint8_t *lane1, const uint8_t *plane, uint8_t *dst)
{
    uint64_t both[2] = {cws_load64(lane0), cws_load64(lane1)};
    bytes high, low;
    memcpy(&high, both, sizeof high);
    memcpy(&low, plane, sizeof low);
    split2_eight(__builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), dst);
    split2_eight(__builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
                 dst + 16);
}

static void split_portable(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst)
{
    tile_split_pairs(tile, elem_bytes, dst, split2_pair);
}

const struct cws_decoder_ops cws_decoder_portable = {
    .variant = {"portable", always},
    .lanes = decode_lanes,
    .split = split_portable,
    .linear = tile_linear,
    .quant = tile_quant,
};
