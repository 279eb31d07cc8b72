/* table.c - the decode table of a tensor in the form that the kernels read. */
#include "store/codec/huffman.h"
#include "decoder.h"

#include <string.h>

/* What a table of pairs must find two symbols for, of 4096 windows: below that one symbol a lookup is faster, for a
 * warp does the slow step whenever one of its lanes has to. */
#define PAIRS_MIN 3686u

/* Symbol that the low bits of w start with; *bits: its length. One exists, for the code is complete. */
static unsigned symbol_of(const uint16_t *by_window, const uint8_t lengths[256], uint32_t w, unsigned *bits)
{
    unsigned s = by_window[w];
    *bits = lengths[s];
    return s;
}

int cws_gpu_table_build(const uint8_t packed[128], struct cws_gpu_table *out, struct cws_error *err)
{
    const uint32_t windows = 1u << CWS_GPU_WINDOW;
    uint8_t lengths[256];
    uint16_t codes[256], by_window[1u << CWS_GPU_WINDOW];
    int rc = cws_huffman_unpack(packed, lengths, err);
    if (rc != 0)
        return rc;
    cws_huffman_codes(lengths, codes);
    memset(by_window, 0, sizeof by_window);
    for (unsigned s = 0; s < 256; s++)
        for (uint32_t w = codes[s]; lengths[s] && w < windows; w += 1u << lengths[s])
            by_window[w] = (uint16_t)s;

    memset(out, 0, sizeof *out);
    uint32_t pairs = 0;
    for (uint32_t w = 0; w < windows; w++) {
        unsigned first, second;
        symbol_of(by_window, lengths, w, &first);
        symbol_of(by_window, lengths, w >> first, &second);
        pairs += first + second <= CWS_GPU_WINDOW;
    }
    out->pairs = pairs >= PAIRS_MIN;
    for (uint32_t w = 0; w < windows; w++) {
        unsigned first, second;
        uint32_t a = symbol_of(by_window, lengths, w, &first), b = symbol_of(by_window, lengths, w >> first, &second);
        uint32_t e = a | first << CWS_GPU_ENTRY_FIRST;
        if (out->pairs && first + second <= CWS_GPU_WINDOW)
            e |= b << CWS_GPU_ENTRY_SECOND | (first + second) << CWS_GPU_ENTRY_BITS;
        else
            e |= first << CWS_GPU_ENTRY_BITS | (uint32_t)out->pairs << CWS_GPU_ENTRY_ALONE;
        out->entry[w] = e;
    }
    return 0;
}
