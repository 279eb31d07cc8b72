/* check.h - everything of a SPLIT or QUANT chunk that can be checked without decoding it: head, section sizes,
 * padding, scale codes, directory. The fast decoders run on the result only, so they need not doubt a pointer, a bit
 * position at the start of a lane, or a scale. What is left to them: that each lane's bits hold exactly its symbols.
 * Pure; no allocation; reads nothing outside stored[0 .. stored_bytes). */
#ifndef CWS_CODEC_CHECK_H
#define CWS_CODEC_CHECK_H
#include "codec.h"
#include <string.h>

struct cws_coded { /* points into the stored bytes, at any alignment */
    struct cws_coded_head head;
    const uint8_t *planes[7]; /* SPLIT; NULL: constant, see head.const_value */
    const uint8_t *scales;    /* QUANT */
    uint64_t scale_fields;    /* rows that have an element in the chunk */
    size_t scale_bytes;
    const uint8_t *first_word; /* u32 per tile */
    const uint8_t *shortest;   /* u16 per tile */
    const uint8_t *excess;     /* 32 per tile */
    const uint8_t *streams;    /* stream_words words and CWS_STREAM_PAD zero bytes */
};

/* The first half: head, sections, padding between and behind them; neither directory nor scale codes. All that a GPU
 * does not check itself. 0 or CWS_E_CORRUPT. */
CWS_MUST_CHECK int cws_coded_layout(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes,
                                    size_t logical_bytes, struct cws_coded *out, struct cws_error *err);

/* All of it. 0 or CWS_E_CORRUPT. */
CWS_MUST_CHECK int cws_coded_check(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes,
                                   size_t logical_bytes, struct cws_coded *out, struct cws_error *err);

static inline uint16_t cws_load16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t cws_load32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t cws_load64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Scale code of field i. Never reads outside the section: a field of at most 13 bits lies in at most 3 bytes. */
static inline uint32_t cws_coded_scale(const struct cws_coded *c, uint64_t i)
{
    uint64_t bit = i * c->head.scale_bits;
    size_t at = (size_t)(bit / 8);
    uint32_t v = 0;
    for (size_t b = 0; b < 3 && at + b < c->scale_bytes; b++)
        v |= (uint32_t)c->scales[at + b] << (8 * b);
    return c->head.scale_base + (v >> (bit % 8) & ((1u << c->head.scale_bits) - 1));
}

/* The 32 lane lengths of a tile; returns their sum. */
static inline uint32_t cws_coded_lanes(const struct cws_coded *c, uint32_t tile, uint32_t lane_bits[CWS_TILE_LANES])
{
    uint32_t base = cws_load16(c->shortest + 2 * (size_t)tile), sum = 0;
    if (c->head.flags & CWS_CODED_WIDE) {
        const uint8_t *p = c->excess + 2 * CWS_TILE_LANES * (size_t)tile;
        for (unsigned l = 0; l < CWS_TILE_LANES; l++)
            sum += lane_bits[l] = base + cws_load16(p + 2 * l);
    } else {
        const uint8_t *p = c->excess + CWS_TILE_LANES * (size_t)tile;
        for (unsigned l = 0; l < CWS_TILE_LANES; l++)
            sum += lane_bits[l] = base + p[l];
    }
    return sum;
}

#endif
