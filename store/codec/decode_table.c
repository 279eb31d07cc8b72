/* decode_table.c - the look-up tables of a prefix code, built from its code lengths. */
#include "decode_table.h"

#include "huffman.h"

#include <string.h>

#define SYMBOLS 256
#define LIMIT CWS_CODE_BITS_MAX

size_t cws_decode_table_bytes(void) { return sizeof(struct cws_decode_table); }

static void fill_entries(struct cws_decode_table *t, const uint8_t *symbol, const uint8_t lengths[SYMBOLS])
{
    for (unsigned w = 0; w < 1u << CWS_ENTRY_WINDOW; w++) {
        struct cws_decode_entry e = {{0}, 0, 0, 0};
        unsigned bounds = 1;
        while (e.count < CWS_ENTRY_SYMBOLS && e.bits < CWS_ENTRY_WINDOW) {
            /* the bits past the window read as 0: whole only if it ends inside */
            unsigned s = symbol[w >> e.bits];
            if (e.bits + lengths[s] > CWS_ENTRY_WINDOW)
                break;
            e.bits = (uint8_t)(e.bits + lengths[s]);
            e.symbol[e.count++] = (uint8_t)s;
            bounds |= 1u << e.bits;
        }
        t->entry[w] = e;
        t->bounds[w] = (uint16_t)bounds;
    }
}

static void fill_single(struct cws_decode_table *t, const uint8_t *symbol, const uint8_t lengths[SYMBOLS])
{
    for (unsigned w = 0; w < 1u << LIMIT; w++)
        t->one[w] = (struct cws_decode_single){lengths[symbol[w]], symbol[w]};
}

/* False: two windows with different words have the same index. */
static bool fill_direct(struct cws_vector_table *v, const uint8_t *symbol, const uint8_t lengths[SYMBOLS],
                        unsigned longest)
{
    unsigned bits = longest < 6 ? 6 : longest, reversed = 0;
    v->shift = (uint16_t)(16 - bits);
    v->cap = (uint16_t)((1u << bits) - 64);
    memset(v->length, 0, sizeof v->length);
    for (unsigned w = 0; w < 1u << LIMIT; w++) {
        unsigned window = w << (16 - LIMIT), deep = window >> v->shift;
        unsigned i = (window >> 10) + (deep > v->cap ? deep - v->cap : 0), s = symbol[reversed];
        if (v->length[i] != 0 && v->symbol[i] != s)
            return false;
        v->symbol[i] = (uint8_t)s;
        v->length[i] = lengths[s];
        unsigned carry = 1u << (LIMIT - 1); /* w + 1, reversed */
        for (; reversed & carry; carry >>= 1)
            reversed ^= carry;
        reversed ^= carry;
    }
    return true;
}

/* Symbols by rank; codes are canonical, so a word's rank follows from its value. */
static void fill_ranked(struct cws_vector_table *v, const uint8_t lengths[SYMBOLS], unsigned longest)
{
    unsigned rank = 0, word = 0;
    for (unsigned length = 1; length <= longest; length++, word *= 2) {
        v->bias[length] = (uint16_t)(rank - word);
        for (unsigned s = 0; s < SYMBOLS; s++)
            if (lengths[s] == length) {
                v->symbol[rank++] = (uint8_t)s;
                word++;
            }
        if (rank != 0 && v->shortest == 0)
            v->shortest = (uint8_t)length;
        if (rank != 0 && length < longest)
            v->last[v->lasts++] = (uint16_t)((word << (16 - length)) - 1);
    }
}

static void fill_vector(struct cws_vector_table *v, const uint8_t *symbol, const uint8_t lengths[SYMBOLS],
                        unsigned longest, double average)
{
    memset(v, 0, sizeof *v);
    memset(v->last, 0xff, sizeof v->last);
    v->short_words = average <= CWS_SHORT_BITS_MAX;
    v->direct = v->short_words && fill_direct(v, symbol, lengths, longest);
    if (!v->direct)
        fill_ranked(v, lengths, longest);
}

int cws_decode_table_init(struct cws_decode_table *t, const uint8_t packed[128], struct cws_error *err)
{
    uint8_t lengths[SYMBOLS];
    uint16_t codes[SYMBOLS];
    uint8_t symbol[1u << LIMIT]; /* the first symbol of each window */
    unsigned longest = 0;
    double average = 0; /* length, if symbols come as often as the code says */
    int rc = cws_huffman_unpack(packed, lengths, err);
    if (rc != 0)
        return rc;
    cws_huffman_codes(lengths, codes);
    for (unsigned s = 0; s < SYMBOLS; s++) {
        if (lengths[s] == 0)
            continue;
        longest = lengths[s] > longest ? lengths[s] : longest;
        average += (double)lengths[s] / (1u << lengths[s]);
        for (unsigned w = codes[s]; w < 1u << LIMIT; w += 1u << lengths[s])
            symbol[w] = (uint8_t)s;
    }
    fill_vector(&t->vector, symbol, lengths, longest, average);
    t->single = longest > CWS_ENTRY_WINDOW || average >= CWS_SINGLE_BITS_MIN;
    if (t->single)
        fill_single(t, symbol, lengths);
    else
        fill_entries(t, symbol, lengths);
    return 0;
}
