#include "huffman.h"

#include <math.h>
#include <string.h>

#define SYMBOLS 256
#define LIMIT CWS_CODE_BITS_MAX

/* Heap sort would do; 256 items and determinism make insertion sort the simplest right choice. */
static unsigned sort_present(const uint64_t histogram[SYMBOLS], uint8_t order[SYMBOLS])
{
    unsigned n = 0;
    for (unsigned s = 0; s < SYMBOLS; s++) {
        if (histogram[s] == 0)
            continue;
        unsigned i = n++;
        for (; i > 0 && histogram[order[i - 1]] > histogram[s]; i--)
            order[i] = order[i - 1];
        order[i] = (uint8_t)s;
    }
    return n;
}

/* Package-merge. List k (k = 0: the deepest) merges the leaves with the pairs of list k - 1; the 2n - 2 cheapest items
 * of the last list are taken, and a taken package takes the two items it was made from. Taken items are
 * always a prefix of their list, so the number of leaves before each item is all that must be kept.
 * weight[n] is UINT64_MAX. No branches on weights: they are as good as random. */
static void package_merge(const uint64_t *weight, unsigned n, unsigned limit, unsigned *depth)
{
    uint16_t leaves[LIMIT][2 * SYMBOLS + 1]; /* among the first i items */
    uint64_t items[2][2 * SYMBOLS + 2], package = UINT64_MAX;
    unsigned previous_len = 0;

    for (unsigned k = 0; k < limit; k++) {
        const uint64_t *previous = items[k & 1];
        uint64_t *current = items[~k & 1];
        unsigned packages = previous_len / 2, l = 0, p = 0, len = n + packages;
        for (unsigned i = 0; i < len; i++) {
            package = p < packages ? previous[2 * p] + previous[2 * p + 1] : UINT64_MAX;
            bool take_leaf = l < n && weight[l] <= package; /* on a tie the leaf: flatter codes, and deterministic */
            leaves[k][i] = (uint16_t)l;
            current[i] = take_leaf ? weight[l] : package;
            l += take_leaf;
            p += !take_leaf;
        }
        leaves[k][len] = (uint16_t)l;
        previous_len = len;
    }
    unsigned take = 2 * n - 2;
    for (unsigned k = limit; k-- > 0 && take > 0;) {
        /* Every list was filled up to its length, and take is at most that. NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign) */
        unsigned taken = leaves[k][take];
        for (unsigned i = 0; i < taken; i++)
            depth[i]++;
        take = 2 * (take - taken);
    }
}

uint64_t cws_huffman_lengths(const uint64_t histogram[256], unsigned limit, uint8_t lengths[256])
{
    uint8_t order[SYMBOLS];
    memset(lengths, 0, SYMBOLS);
    unsigned n = sort_present(histogram, order);
    if (n < 2) {
        unsigned only = n ? order[0] : 0;
        lengths[only] = 1;
        lengths[only ? 0 : 1] = 1;
        return histogram[only];
    }
    uint64_t weight[SYMBOLS + 1];
    unsigned depth[SYMBOLS] = {0};
    for (unsigned i = 0; i < n; i++)
        weight[i] = histogram[order[i]];
    weight[n] = UINT64_MAX;
    package_merge(weight, n, limit, depth);
    uint64_t cost = 0;
    for (unsigned i = 0; i < n; i++) {
        lengths[order[i]] = (uint8_t)depth[i];
        cost += weight[i] * depth[i];
    }
    return cost;
}

double cws_entropy_bits(const uint64_t histogram[256])
{
    double total = 0, sum = 0;
    for (unsigned s = 0; s < SYMBOLS; s++)
        total += (double)histogram[s];
    for (unsigned s = 0; s < SYMBOLS; s++)
        if (histogram[s])
            sum += (double)histogram[s] * log2(total / (double)histogram[s]);
    return total > 0 ? sum / total : 0;
}

void cws_huffman_pack(const uint8_t lengths[256], uint8_t packed[128])
{
    for (unsigned i = 0; i < 128; i++)
        packed[i] = (uint8_t)(lengths[2 * i] | lengths[2 * i + 1] << 4);
}

int cws_huffman_unpack(const uint8_t packed[128], uint8_t lengths[256], struct cws_error *err)
{
    unsigned kraft = 0;
    for (unsigned s = 0; s < SYMBOLS; s++) {
        unsigned len = packed[s / 2] >> (s % 2 * 4) & 15;
        if (len > LIMIT)
            return cws_fail(err, CWS_E_CORRUPT, "code table: symbol %u has a code of %u bits, at most %u are allowed", s,
                            len, LIMIT);
        lengths[s] = (uint8_t)len;
        if (len)
            kraft += 1u << (LIMIT - len);
    }
    if (kraft != 1u << LIMIT)
        return cws_fail(err, CWS_E_CORRUPT, "code table: the code is not complete (Kraft sum %u of %u)", kraft, 1u << LIMIT);
    return 0;
}

static unsigned reverse(unsigned code, unsigned len)
{
    unsigned r = 0;
    for (unsigned i = 0; i < len; i++)
        r |= (code >> i & 1) << (len - 1 - i);
    return r;
}

void cws_huffman_codes(const uint8_t lengths[256], uint16_t codes[256])
{
    unsigned next[16] = {0}, count[16] = {0};
    for (unsigned s = 0; s < SYMBOLS; s++)
        count[lengths[s]]++;
    for (unsigned len = 2; len <= LIMIT; len++)
        next[len] = (next[len - 1] + count[len - 1]) << 1;
    for (unsigned s = 0; s < SYMBOLS; s++)
        codes[s] = lengths[s] ? (uint16_t)reverse(next[lengths[s]]++, lengths[s]) : 0;
}

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

static void fill_pairs(struct cws_decode_table *t, const uint8_t *symbol, const uint8_t lengths[SYMBOLS])
{
    for (uint32_t w = 0; w < 1u << LIMIT; w++) {
        uint32_t first = symbol[w], bits = lengths[first], second = symbol[w >> bits], both = bits + lengths[second];
        t->pair[w] = both <= LIMIT ? first | second << 8 | both << 16 | bits << 24 | 2u << 28
                                   : first | bits << 16 | bits << 24 | 1u << 28;
    }
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
    t->pairs = longest > CWS_ENTRY_WINDOW || (average >= CWS_PAIR_BITS_MIN && average < CWS_PAIR_BITS_MAX);
    if (t->pairs)
        fill_pairs(t, symbol, lengths);
    else
        fill_entries(t, symbol, lengths);
    return 0;
}
