/* encode.h - what the plan and the encoder must agree on, and the inner loops that have a faster form on some
 * machines. All forms give the same bytes. */
#ifndef CWS_CODEC_ENCODE_H
#define CWS_CODEC_ENCODE_H
#include "choice.h"
#include "codec.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CWS_ZSTD_LEVEL 3
#define CWS_QUANT_ROW_MIN 32u     /* shorter rows are not quantised */
#define CWS_QUANT_ELEMS_MIN 4096u /* nor tensors that the fixed costs would dominate */
#define CWS_TILE_ROW 256u         /* elements: 8 of each lane */
#define CWS_TILE_MAX (CWS_TILE_LANES * 1024u)
#define CWS_FAST_CODE_BITS 11u /* decode faster; only q6 needs the little that longer codes save */

#define CWS_CODE_ABSENT 0x80000000u
#define CWS_ENCODE_SLOTS 32u
struct cws_encode_table {
    uint32_t code[256]; /* code | bits << 16, or CWS_CODE_ABSENT */
    /* the same in bytes: code & 0xff, code >> 8 | bits << 4; 0, 0 when absent */
    uint8_t low[256], high[256];
    /* For encoders with a prepare(): pairs of symbols by their slots, first + CWS_ENCODE_SLOTS * second; code in the
     * highest bits | bits. Slot 0 is symbol 0, slot 1 symbol base. */
    /* but rare ones all coded symbols have a slot; else the rest is not set */
    bool paired;
    uint8_t base;
    uint8_t present[CWS_ENCODE_SLOTS]; /* 255: the slot's symbol has a code, 0: not */
    uint64_t pair[CWS_ENCODE_SLOTS * CWS_ENCODE_SLOTS];
};

struct cws_encoder_ops {
    struct cws_variant variant; /* first */
    /* Elements of 2 bytes to their symbols and plane 0. */
    void (*split2)(const uint8_t *elems, size_t count, uint8_t *plane, uint8_t *symbols);
    /* Adds the symbols of elements of 2 bytes to histogram. */
    void (*count2)(const uint8_t *elems, size_t count, uint64_t histogram[256]);
    /* The least symbol but 0 (255 if there is none) and the largest of elements of 2 bytes. */
    void (*range2)(const uint8_t *elems, size_t count, uint8_t *out_least, uint8_t *out_most);
    /* Fills in the rest of a table; NULL: there is none. */
    void (*prepare)(struct cws_encode_table *table);
    /* One tile's bits at `to`, zero bits up to a word; may write 64 bytes more. Returns the end of the last word, or
     * NULL if a symbol has no code. symbols: readable up to a multiple of CWS_TILE_ROW. */
    uint8_t *(*tile)(const struct cws_encode_table *table, const uint8_t *symbols, unsigned elems, uint8_t *to,
                     uint32_t lane_bits[CWS_TILE_LANES]);
};

extern const struct cws_encoder_ops cws_encoder_portable;
extern const struct cws_encoder_ops cws_encoder_avx2;
extern const struct cws_encoder_ops cws_encoder_avx512;

#define CWS_COMMON 12 /* neighbouring symbols that are counted in vectors */

/* The first of the CWS_COMMON neighbours that cover most of a probe of these elements of 2 bytes, or -1 when they do
 * not cover enough. */
int cws_common_base(const uint8_t *elems, size_t count);
#if defined(__x86_64__)
/* A table for shuffles: 1 at 2k and 16 at 2k + 1, so that it turns the one into the low half of a byte and the other
 * into the high one. */
static inline __m128i cws_common_pair(unsigned k)
{
    uint8_t ones[16] = {0};
    ones[2 * k] = 1;
    ones[2 * k + 1] = 16;
    return _mm_loadu_si128((const __m128i *)ones);
}
#endif

/* The one in use. */
const struct cws_encoder_ops *cws_encoder(void);

/* Appends bits to a stream, least significant first. */
struct cws_bits {
    uint8_t *to;
    uint64_t buffer;
    unsigned used; /* 0..7 between appends */
};

/* At most 56 bits, nothing set above them. Writes 8 bytes. */
static inline void cws_bits_append(struct cws_bits *b, uint64_t word, unsigned bits)
{
    b->buffer |= word << b->used;
    b->used += bits;
    memcpy(b->to, &b->buffer, 8);
    b->to += b->used >> 3;
    b->buffer >>= b->used & 0x38;
    b->used &= 7;
}

/* Ends a tile: zero bits up to the next word of the stream that began at `from`. */
static inline uint8_t *cws_bits_end(struct cws_bits *b, uint8_t *from)
{
    memcpy(b->to, &b->buffer, 8);
    size_t bytes = (size_t)(b->to - from) + (b->used != 0);
    return from + (bytes + 3) / 4 * 4;
}

#endif
