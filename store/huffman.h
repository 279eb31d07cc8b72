/* huffman.h - the prefix code shared by SPLIT and QUANT: lengths, their packed form, canonical codes and the
 * decoding table. Pure functions, no allocation. cws_huffman_lengths() is declared in codec.h.
 *
 * Canonical code: symbols sorted by (length, symbol) get rising codes, as in RFC 1951; a code is written
 * from its most significant bit on into a stream that is filled from the least significant bit on, so codes
 * are kept bit-reversed. Codes are complete: every bit string decodes. */
#ifndef CWS_HUFFMAN_H
#define CWS_HUFFMAN_H
#include "codec.h"

/* Two four-bit lengths per byte, low nibble first. */
void cws_huffman_pack(const uint8_t lengths[256], uint8_t packed[128]);

/* 0, or CWS_E_CORRUPT when a length is over CWS_CODE_BITS_MAX or the code is not complete. */
CWS_MUST_CHECK int cws_huffman_unpack(const uint8_t packed[128], uint8_t lengths[256], struct cws_error *err);

/* Bit-reversed canonical codes; 0 for absent symbols. */
void cws_huffman_codes(const uint8_t lengths[256], uint16_t codes[256]);

/* Two forms: most codes are decoded up to five symbols at a lookup, those with an average from CWS_PAIR_BITS_MIN to
 * CWS_PAIR_BITS_MAX, or any word too long for the first form, up to two with a larger window.
 *
 * Entry w tells what the CWS_ENTRY_WINDOW bits w decode to: up to CWS_ENTRY_SYMBOLS whole symbols. */
#define CWS_ENTRY_WINDOW 11u
#define CWS_ENTRY_SYMBOLS 5
struct cws_decode_entry { /* 8 bytes, stored whole where the symbols go: the fast loops have loads to spare, not shifts */
    uint8_t symbol[CWS_ENTRY_SYMBOLS];
    uint8_t zero;
    uint8_t bits;  /* used by all of them */
    uint8_t count; /* how many there are, 1..5 */
};

/* A pair, of a window of CWS_CODE_BITS_MAX bits: first symbol | second << 8 | bits of all << 16 | bits of the first << 24 |
 * count (1 or 2) << 28. */
#define CWS_PAIR_BITS_MIN 4.5
#define CWS_PAIR_BITS_MAX 6.5 /* from here on two words seldom fit */

struct cws_decode_table {
    bool pairs; /* which form */
    union {
        struct {
            struct cws_decode_entry entry[1u << CWS_ENTRY_WINDOW];
            /* Bit b is set when a symbol ends after b bits, and bit 0: the k-th set bit tells how many bits k symbols take.
             * For the end of a lane, where an entry holds more symbols than are left. */
            uint16_t bounds[1u << CWS_ENTRY_WINDOW];
        };
        uint32_t pair[1u << CWS_CODE_BITS_MAX];
    } __attribute__((aligned(64)));
};

#endif
