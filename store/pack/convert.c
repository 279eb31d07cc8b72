/* convert.c - casts between float types. */
#include "convert.h"

#include <stdint.h>
#include <string.h>

/* A binary floating-point format of at most 64 bits. */
struct shape {
    unsigned bytes, exponent_bits, mantissa_bits;
};

static struct shape shape_of(enum cws_dtype dtype)
{
    switch (dtype) {
    case CWS_F16: return (struct shape){2, 5, 10};
    case CWS_BF16: return (struct shape){2, 8, 7};
    case CWS_F32: return (struct shape){4, 8, 23};
    default: return (struct shape){8, 11, 52};
    }
}

bool cws_convert_possible(enum cws_dtype from, enum cws_dtype to)
{
    return (from == CWS_F16 || from == CWS_BF16 || from == CWS_F32 || from == CWS_F64) &&
           (to == CWS_F16 || to == CWS_BF16 || to == CWS_F32) && from != to;
}

/* Drops `bits` low bits, rounding to nearest, ties to even. */
static uint64_t round_off(uint64_t value, int bits)
{
    if (bits <= 0)
        return value << -bits;
    if (bits > 63)
        return 0;
    uint64_t half = UINT64_C(1) << (bits - 1), rest = value & ((half << 1) - 1);
    value >>= bits;
    return value + (rest > half || (rest == half && (value & 1)));
}

/* Any format to any other. The value is mantissa * 2^(exponent - mantissa_bits), mantissa with its leading one made
 * explicit; adding what rounding carries to the packed number moves on to the next exponent, and to infinity, by
 * itself. */
static uint64_t cast(struct shape a, struct shape b, uint64_t bits)
{
    uint64_t sign = bits >> (a.bytes * 8 - 1);
    uint64_t mantissa = bits & ((UINT64_C(1) << a.mantissa_bits) - 1);
    uint64_t field = bits >> a.mantissa_bits & ((UINT64_C(1) << a.exponent_bits) - 1);
    uint64_t out_infinity = ((UINT64_C(1) << b.exponent_bits) - 1) << b.mantissa_bits;
    uint64_t out;
    int narrower = (int)a.mantissa_bits - (int)b.mantissa_bits;
    if (field == (UINT64_C(1) << a.exponent_bits) - 1) {
        out = out_infinity;
        if (mantissa) /* quiet, so that it cannot become infinity when the payload is cut */
            out |= UINT64_C(1) << (b.mantissa_bits - 1) | (narrower > 0 ? mantissa >> narrower : mantissa << -narrower);
    } else if (field == 0 && mantissa == 0) {
        out = 0;
    } else {
        int exponent = (int)field - ((1 << (a.exponent_bits - 1)) - 1);
        if (field == 0) {
            int shift = __builtin_clzll(mantissa) - (63 - (int)a.mantissa_bits);
            mantissa <<= shift;
            exponent += 1 - shift;
        } else {
            mantissa |= UINT64_C(1) << a.mantissa_bits;
        }
        int target = exponent + ((1 << (b.exponent_bits - 1)) - 1);
        if (target >= (1 << b.exponent_bits) - 1)
            out = out_infinity;
        else if (target <= 0)
            out = round_off(mantissa, narrower + 1 - target);
        else
            out = ((uint64_t)(target - 1) << b.mantissa_bits) + round_off(mantissa, narrower);
        if (out > out_infinity)
            out = out_infinity;
    }
    return sign << (b.bytes * 8 - 1) | out;
}

void cws_convert(enum cws_dtype from, enum cws_dtype to, const void *src, void *dst, size_t count)
{
    struct shape a = shape_of(from), b = shape_of(to);
    const uint8_t *in = src;
    uint8_t *out = dst;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        memcpy(&bits, in + i * a.bytes, a.bytes);
        bits = cast(a, b, bits);
        memcpy(out + i * b.bytes, &bits, b.bytes);
    }
}
