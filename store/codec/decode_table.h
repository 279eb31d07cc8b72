/* decode_table.h - the tables that the fast decoders look codes up in, built from the packed lengths by
 * cws_decode_table_init() (codec.h). Immutable afterwards. */
#ifndef CWS_DECODE_TABLE_H
#define CWS_DECODE_TABLE_H
#include "codec.h"

/* One of two forms. Several: entry w tells what the CWS_ENTRY_WINDOW bits w decode to, up to CWS_ENTRY_SYMBOLS whole
 * symbols; for codes whose average is below CWS_SINGLE_BITS_MIN and whose longest word fits the window. Single: one
 * symbol at a lookup of CWS_CODE_BITS_MAX bits; where words are long a second one seldom fits, and looking for it costs
 * more. */
#define CWS_ENTRY_WINDOW 11u
#define CWS_ENTRY_SYMBOLS 5
#define CWS_SINGLE_BITS_MIN 4.5

struct cws_decode_entry { /* 8 bytes, stored whole where the symbols go: the fast loops have loads to spare, not
                           * shifts */
    uint8_t symbol[CWS_ENTRY_SYMBOLS];
    uint8_t zero;
    uint8_t bits;  /* used by all of them */
    uint8_t count; /* how many there are, 1..5 */
};

struct cws_decode_single {
    uint8_t bits;
    uint8_t symbol;
};

/* For decoders that keep one window of 16 bits per lane in a vector, first bit on top, so that a window's rank tells
 * its word.
 *   direct  few words are longer than 6 bits, as with the exponents of weights: window w has index (w >> 10) +
 *           max((w >> shift) - cap, 0), below 128, which gives length and symbol
 *   else    the length is shortest + the number of `last` below w; the word + bias[length] is the index of its
 *           symbol */
#define CWS_VECTOR_LASTS 11
#define CWS_SHORT_BITS_MAX 6.25
struct cws_vector_table {
    uint8_t symbol[256]; /* first, and a multiple of 64 bytes each: loaded whole */
    uint8_t length[128];
    uint16_t bias[32];
    /* the greatest window of each length but the longest; behind them 0xffff */
    uint16_t last[CWS_VECTOR_LASTS];
    uint16_t shift, cap;
    uint8_t shortest, lasts;
    bool direct;
    bool short_words; /* eight words nearly always fit 57 bits; true if direct */
};

struct cws_decode_table {
    struct cws_vector_table vector __attribute__((aligned(64)));
    bool single; /* which form */
    union {
        struct {
            struct cws_decode_entry entry[1u << CWS_ENTRY_WINDOW];
            /* Bit b is set when a symbol ends after b bits, and bit 0: the k-th set bit tells how many bits k symbols
             * take. For the end of a lane, where an entry holds more symbols than are left. */
            uint16_t bounds[1u << CWS_ENTRY_WINDOW];
        };
        struct cws_decode_single one[1u << CWS_CODE_BITS_MAX];
    } __attribute__((aligned(64)));
};

#endif
