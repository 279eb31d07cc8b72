/* fast.h - what a fast decoder implements; decode.c drives it. Inputs have passed cws_coded_check(). */
#ifndef CWS_CODEC_FAST_H
#define CWS_CODEC_FAST_H
#include "choice.h"
#include "check.h"
#include "decode_table.h"

#define CWS_LANE_SYMBOLS_MAX 1024u
#define CWS_TILE_ELEMS_MAX (CWS_TILE_LANES * CWS_LANE_SYMBOLS_MAX)
#define CWS_TILE_ROW 256u /* elements: 8 of each lane */
/* Lanes are kept apart by more than a multi-symbol store can run over. */
#define CWS_LANE_STRIDE(lane_symbols) ((lane_symbols) + 16u)
#define CWS_LANES_BYTES (CWS_TILE_LANES * CWS_LANE_STRIDE(CWS_LANE_SYMBOLS_MAX) + 64u)
#define CWS_LINEAR_BYTES (CWS_TILE_ELEMS_MAX + 64u)

struct cws_tile {         /* one tile on its way from bits to elements */
    const uint8_t *lanes; /* as lanes() left them: lane l at l * stride, or in element order */
    unsigned stride;
    unsigned elems;
    uint8_t *linear;         /* room for the symbols in element order, CWS_LINEAR_BYTES */
    const uint8_t *plane[7]; /* elems bytes each */
};

struct cws_tile_bits { /* where a tile lies in the streams */
    uint64_t first_bit, end_bit;
    uint32_t lane[CWS_TILE_LANES]; /* how many bits each lane has */
};

struct cws_decoder_ops {
    struct cws_variant variant; /* first */
    /* Decodes the 32 lanes of a tile of `elems` elements to out, CWS_LANES_BYTES, for split() and linear() of the same
     * decoder; lane l starts where lane l - 1 ends, the first at first_bit, a multiple of 32. Reads at most 8 bytes
     * past end_bit. False: some lane does not hold exactly its symbols. */
    bool (*lanes)(const struct cws_decode_table *table, const uint8_t *streams, const struct cws_tile_bits *bits,
                  unsigned elems, uint8_t *out, unsigned stride);
    /* The same for two tiles, the second not the larger; NULL where it would not be faster. */
    bool (*two)(const struct cws_decode_table *table, const uint8_t *streams, const struct cws_tile_bits bits[2],
                const unsigned elems[2], uint8_t *const out[2]);
    /* SPLIT: symbols and planes to elements. dst: elems * elem_bytes bytes, any alignment. */
    void (*split)(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst);
    /* The tile's symbols in element order, in tile->linear or where they already lie. */
    const uint8_t *(*linear)(const struct cws_tile *tile);
    /* Symbols times scale to F16, BF16 or F32. */
    void (*quant)(const uint8_t *symbols, unsigned count, float scale, enum cws_dtype dtype, uint8_t *dst);
};

extern const struct cws_decoder_ops cws_decoder_portable;
extern const struct cws_decoder_ops cws_decoder_avx2;
extern const struct cws_decoder_ops cws_decoder_avx512;

#endif
