/* quant_body.h - the loops of quant.h, compiled once per instruction set. No contraction into FMA: the flags of
 * the including file must not allow it, or two machines would pack different bytes. Everything is static. */
#ifndef CWS_CODEC_QUANT_BODY_H
#define CWS_CODEC_QUANT_BODY_H
#include "quant.h"

#include <math.h>
#include <string.h>

#define BLOCK 1024 /* elements converted at a time; stays in the first-level cache */
#define SUMS 16    /* partial sums, in a fixed order whatever the vector width */

static float from_bits(uint32_t v)
{
    float f;
    memcpy(&f, &v, 4);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t v;
    memcpy(&v, &f, 4);
    return v;
}

static inline float from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
    uint32_t normal = (e + 112) << 23 | m << 13;
    uint32_t special = 0x7f800000 | m << 13;
    uint32_t small = to_bits((float)(int)m * 0x1p-24f);
    uint32_t v = e == 0 ? small : e == 31 ? special : normal;
    return from_bits(v | sign);
}

static void to_float(enum cws_dtype dtype, const uint8_t *elems, size_t count, float *out)
{
    if (dtype == CWS_F32) {
        memcpy(out, elems, 4 * count);
        return;
    }
    if (dtype == CWS_BF16) {
        for (size_t i = 0; i < count; i++) {
            uint16_t h;
            memcpy(&h, elems + 2 * i, 2);
            out[i] = from_bits((uint32_t)h << 16);
        }
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t h;
        memcpy(&h, elems + 2 * i, 2);
        out[i] = from_f16(h);
    }
}

static int measure(enum cws_dtype dtype, const uint8_t *elems, size_t count, struct cws_quant_row *out)
{
    float x[BLOCK];
    uint32_t largest = 0;
    double sum[SUMS] = {0};
    unsigned elem_bytes = cws_dtype_unit(dtype);
    for (size_t done = 0; done < count; done += BLOCK) {
        size_t n = count - done < BLOCK ? count - done : BLOCK, i = 0;
        to_float(dtype, elems + done * elem_bytes, n, x);
        for (size_t k = 0; k < n; k++) {
            uint32_t magnitude = to_bits(x[k]) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        for (; i + SUMS <= n; i += SUMS)
            for (unsigned k = 0; k < SUMS; k++)
                sum[k] += (double)x[i + k] * (double)x[i + k];
        for (unsigned k = 0; i < n; i++, k++)
            sum[k] += (double)x[i] * (double)x[i];
    }
    if (largest > (dtype == CWS_F16 ? to_bits(32752.0f) : 0x7effffffu))
        return 1;
    double total = 0;
    for (unsigned k = 0; k < SUMS; k++)
        total += sum[k];
    out->absmax = from_bits(largest);
    out->rms = count ? (float)sqrt(total / (double)count) : 0;
    return 0;
}

static void symbols_of(enum cws_dtype dtype, const uint8_t *elems, size_t count, uint32_t code, uint8_t *symbols)
{
    float x[BLOCK], scale = from_bits(code << CWS_SCALE_SHIFT);
    unsigned elem_bytes = cws_dtype_unit(dtype);
    if (code == 0) {
        memset(symbols, 128, count);
        return;
    }
    for (size_t done = 0; done < count; done += BLOCK) {
        size_t n = count - done < BLOCK ? count - done : BLOCK;
        to_float(dtype, elems + done * elem_bytes, n, x);
        for (size_t i = 0; i < n; i++) {
            /* Adding 1.5 * 2^23 leaves no fraction bits: the sum is rounded to the nearest integer, half to even. The
             * scale is at least absmax / 127, so the quotient is small; the clamp only takes what rounding may add. */
            int32_t q = (int32_t)(to_bits(x[i] / scale + 0x1.8p23f) - to_bits(0x1.8p23f));
            q = q < -127 ? -127 : q;
            q = q > 127 ? 127 : q;
            symbols[done + i] = (uint8_t)(q + 128);
        }
    }
}

#endif
