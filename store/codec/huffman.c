/* huffman.c - the prefix code: optimal lengths of limited size, their packed form, and the codes that follow from
 * them. */
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
            /* on a tie the leaf: flatter codes, and deterministic */
            bool take_leaf = l < n && weight[l] <= package;
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
        /* Every list was filled up to its length, and take is at most that.
         * NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign) */
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
            return cws_fail(err, CWS_E_CORRUPT, "code table: symbol %u has a code of %u bits, at most %u are allowed",
                            s, len, LIMIT);
        lengths[s] = (uint8_t)len;
        if (len)
            kraft += 1u << (LIMIT - len);
    }
    if (kraft != 1u << LIMIT)
        return cws_fail(err, CWS_E_CORRUPT, "code table: the code is not complete (Kraft sum %u of %u)", kraft,
                        1u << LIMIT);
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
