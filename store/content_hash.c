#include "content_hash.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the store's integers are used in place: only little-endian machines are supported"
#endif

/* Fractional parts of the square roots of 2 and 3: nothing up the sleeve. Part of the format. */
const uint64_t cws_content_key[2] = {UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b)};

#define KEY_STEP UINT64_C(0x9e3779b97f4a7c15)
#define KEY_MIX UINT64_C(0xd6e8feb86659fd93)

static inline uint64_t derive(uint64_t y)
{
    uint64_t z = (y ^ (y >> 32)) * KEY_MIX;
    return z ^ (z >> 29);
}

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline unsigned __int128 word(uint64_t lo, uint64_t hi, uint64_t y0, uint64_t y1)
{
    return (unsigned __int128)(uint64_t)(lo + derive(y0)) * (uint64_t)(hi + derive(y1));
}

void cws_content_hash_add(struct cws_hash128 *sum, const uint64_t key[2], const void *data, size_t bytes,
                          uint64_t first_byte)
{
    const uint8_t *p = data;
    uint64_t step = first_byte / 16 * KEY_STEP;
    uint64_t y0 = key[0] + step, y1 = key[1] + step;
    /* Two sums, so that the carries of one do not wait for the other's. */
    unsigned __int128 a = 0, b = 0;
    size_t pairs = bytes / 32;
    for (size_t i = 0; i < pairs; i++, p += 32) {
        a += word(load64(p), load64(p + 8), y0, y1);
        b += word(load64(p + 16), load64(p + 24), y0 + KEY_STEP, y1 + KEY_STEP);
        y0 += 2 * KEY_STEP;
        y1 += 2 * KEY_STEP;
    }
    size_t left = bytes - 32 * pairs;
    while (left > 0) {
        uint8_t last[16] = {0};
        size_t take = left < 16 ? left : 16;
        memcpy(last, p, take);
        a += word(load64(last), load64(last + 8), y0, y1);
        y0 += KEY_STEP;
        y1 += KEY_STEP;
        p += take;
        left -= take;
    }
    a += b;
    cws_hash128_add(sum, (struct cws_hash128){(uint64_t)a, (uint64_t)(a >> 64)});
}

void cws_hash128_add(struct cws_hash128 *sum, struct cws_hash128 part)
{
    uint64_t lo = sum->lo + part.lo;
    sum->hi += part.hi + (lo < part.lo);
    sum->lo = lo;
}
