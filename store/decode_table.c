#include "decode_table.h"

#include "huffman.h"

#define SYMBOLS 256
#define LIMIT CWS_CODE_BITS_MAX

size_t cws_decode_table_bytes(void)
{
    return sizeof(struct cws_decode_table);
}

static void fill_entries(struct cws_decode_table *t, const uint8_t *symbol, const uint8_t lengths[SYMBOLS])
{
    for (unsigned w = 0; w < 1u << CWS_ENTRY_WINDOW; w++) {
        struct cws_decode_entry e = {{0}, 0, 0, 0};
        unsigned bounds = 1;
        while (e.count < CWS_ENTRY_SYMBOLS && e.bits < CWS_ENTRY_WINDOW) {
            unsigned s = symbol[w >> e.bits]; /* the bits past the window read as 0: whole only if it ends inside */
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
    t->single = longest > CWS_ENTRY_WINDOW || average >= CWS_SINGLE_BITS_MIN;
    if (t->single)
        fill_single(t, symbol, lengths);
    else
        fill_entries(t, symbol, lengths);
    return 0;
}
