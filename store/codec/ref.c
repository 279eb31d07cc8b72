/* ref.c - the reference decoder: one byte, one bit, one rule of docs/format.md at a time. Tests compare the fast
 * decoders with it; it shares no code with them. */
#include "codec.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

struct ref {
    const uint8_t *bytes;
    uint64_t size, at;
    struct cws_error *err;
};

static int bad(const struct ref *r, const char *what)
{
    return cws_fail(r->err, CWS_E_CORRUPT, "chunk: %s (near byte %llu of %llu)", what, (unsigned long long)r->at,
                    (unsigned long long)r->size);
}

/* The next section: on a 16-byte boundary, zeros before it, wholly inside the chunk. */
static int section(struct ref *r, uint64_t bytes, const uint8_t **out)
{
    while (r->at % 16 != 0) {
        if (r->at >= r->size)
            return bad(r, "ends inside padding");
        if (r->bytes[r->at] != 0)
            return bad(r, "padding is not zero");
        r->at++;
    }
    if (r->at > r->size || bytes > r->size - r->at)
        return bad(r, "a section ends past the chunk");
    *out = r->bytes + r->at;
    r->at += bytes;
    return 0;
}

static unsigned get_bit(const uint8_t *stream, uint64_t i) { return stream[i / 8] >> (i % 8) & 1; }

static uint64_t get_bits(const uint8_t *stream, uint64_t first, unsigned count)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < count; i++)
        v |= (uint64_t)get_bit(stream, first + i) << i;
    return v;
}

static uint64_t get_le(const uint8_t *p, unsigned bytes) { return get_bits(p, 0, 8 * bytes); }

struct ref_code {
    unsigned first[16], count[16]; /* codes of a length: first .. first + count - 1 */
    uint8_t symbol[16][256];
};

static int ref_code_init(struct ref_code *c, const uint8_t packed[128], struct ref *r)
{
    double kraft = 0;
    memset(c, 0, sizeof *c);
    for (unsigned s = 0; s < 256; s++) {
        unsigned len = packed[s / 2];
        len = s % 2 ? len / 16 : len % 16;
        if (len == 0)
            continue;
        if (len > CWS_CODE_BITS_MAX)
            return bad(r, "a code length is over the limit");
        c->symbol[len][c->count[len]++] = (uint8_t)s;
        kraft += ldexp(1, -(int)len);
    }
    if (kraft != 1.0)
        return bad(r, "the code is not complete");
    for (unsigned len = 1, code = 0; len <= CWS_CODE_BITS_MAX; len++) {
        c->first[len] = code;
        code = (code + c->count[len]) * 2;
    }
    return 0;
}

/* One symbol from bits [*at, end); false when the bits run out. */
static bool ref_symbol(const struct ref_code *c, const uint8_t *stream, uint64_t *at, uint64_t end, uint8_t *out)
{
    unsigned code = 0;
    for (unsigned len = 1; *at < end; len++) {
        code = code * 2 + get_bit(stream, (*at)++);
        if (c->count[len] && code >= c->first[len] && code - c->first[len] < c->count[len]) {
            *out = c->symbol[len][code - c->first[len]];
            return true;
        }
    }
    return false;
}

static int ref_streams(struct ref *r, const struct ref_code *code, const struct cws_coded_head *h, uint8_t *symbols)
{
    unsigned width = h->flags & CWS_CODED_WIDE ? 2 : 1;
    uint64_t tile_elems = (uint64_t)CWS_TILE_LANES * h->lane_symbols, word = 0;
    const uint8_t *directory, *stream;
    int rc = section(r, h->tile_count * (uint64_t)(4 + 2 + CWS_TILE_LANES * width), &directory);
    if (rc == 0)
        rc = section(r, 4 * (uint64_t)h->stream_words + CWS_STREAM_PAD, &stream);
    if (rc != 0)
        return rc;
    if (r->at != r->size)
        return bad(r, "is longer than its sections");
    const uint8_t *shortest = directory + 4 * (uint64_t)h->tile_count, *excess = shortest + 2 * (uint64_t)h->tile_count;

    for (uint64_t t = 0; t < h->tile_count; t++) {
        if (get_le(directory + 4 * t, 4) != word)
            return bad(r, "a tile does not start where the one before it ends");
        uint64_t bit = 32 * word, limit = 32 * (uint64_t)h->stream_words;
        for (unsigned l = 0; l < CWS_TILE_LANES; l++) {
            uint64_t end = bit + get_le(shortest + 2 * t, 2) + get_le(excess + (t * CWS_TILE_LANES + l) * width, width);
            if (end > limit)
                return bad(r, "a lane ends past the bit streams");
            for (uint64_t e = 0; e < tile_elems && t * tile_elems + e < h->elem_count; e++)
                if (e / 8 % 32 == l && !ref_symbol(code, stream, &bit, end, &symbols[t * tile_elems + e]))
                    return bad(r, "a lane holds too few symbols");
            if (bit != end)
                return bad(r, "a lane holds more bits than its symbols");
        }
        for (; bit % 32 != 0; bit++)
            if (get_bit(stream, bit) != 0)
                return bad(r, "bits behind a tile are not zero");
        word = bit / 32;
    }
    if (word != h->stream_words)
        return bad(r, "the last tile ends before the bit streams do");
    return get_le(stream + 4 * word, CWS_STREAM_PAD) == 0 ? 0 : bad(r, "bytes behind the bit streams are not zero");
}

static int ref_split(struct ref *r, const struct cws_coded_head *h, const struct ref_code *code, uint8_t *dst)
{
    const uint8_t *plane[8] = {0};
    unsigned size = h->elem_bytes;
    if (h->const_planes >> (size - 1) != 0 || h->scale_base != 0 || h->scale_bits != 0)
        return bad(r, "head of a split chunk is not valid");
    for (unsigned p = 0; p < 7; p++)
        if (!(h->const_planes >> p & 1) && h->const_value[p] != 0)
            return bad(r, "head names a constant for a plane that has none");
    for (unsigned p = 0; p + 1 < size; p++)
        if (!(h->const_planes >> p & 1)) {
            int rc = section(r, h->elem_count, &plane[p]);
            if (rc != 0)
                return rc;
        }
    uint8_t *symbols = malloc(h->elem_count);
    if (!symbols)
        return -ENOMEM;
    int rc = ref_streams(r, code, h, symbols);
    for (uint64_t i = 0; rc == 0 && i < h->elem_count; i++) {
        uint64_t e = (uint64_t)symbols[i] << (8 * (size - 1));
        for (unsigned p = 0; p + 1 < size; p++)
            e |= (uint64_t)(plane[p] ? plane[p][i] : h->const_value[p]) << (8 * p);
        if (size > 1) {
            unsigned low = 8 * size - 16;
            uint64_t top = e >> low;
            top = (top >> 1 | top << 15) & 0xffff;
            e = (e & ((UINT64_C(1) << low) - 1)) | top << low;
        }
        for (unsigned b = 0; b < size; b++)
            dst[i * size + b] = (uint8_t)(e >> (8 * b));
    }
    free(symbols);
    return rc;
}

/* Round to nearest even at the precision of a small float format: `mantissa` stored bits, exponents from `lowest`
 * on. */
static uint16_t ref_round(float value, int mantissa, int lowest, int bias)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double v = fabs((double)value);
    if (v == 0)
        return sign;
    uint32_t infinity = (uint32_t)(2 * bias + 1) << mantissa;
    if (isinf(v))
        return (uint16_t)(sign | infinity);
    int e = ilogb(v);
    if (e < lowest)
        e = lowest;
    double steps = nearbyint(ldexp(v, mantissa - e));
    /* the leading one adds 1 to the exponent */
    uint32_t bits = ((uint32_t)(e - lowest) << mantissa) + (uint32_t)steps;
    return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

static int ref_quant(struct ref *r, const struct cws_coded_head *h, const struct ref_code *code,
                     const struct cws_chunk_context *ctx, uint8_t *dst)
{
    if (h->const_planes != 0 || h->scale_bits > 13 || ctx->row_elems == 0 ||
        ctx->first_elem > UINT64_MAX - h->elem_count)
        return bad(r, "head of a quantised chunk is not valid");
    if (ctx->dtype != CWS_F16 && ctx->dtype != CWS_BF16 && ctx->dtype != CWS_F32)
        return bad(r, "this dtype cannot be quantised");
    for (unsigned p = 0; p < 7; p++)
        if (h->const_value[p] != 0)
            return bad(r, "head of a quantised chunk names constants");
    uint64_t first_row = ctx->first_elem / ctx->row_elems;
    uint64_t rows = (ctx->first_elem + h->elem_count - 1) / ctx->row_elems - first_row + 1;
    uint64_t bits = rows * h->scale_bits;
    const uint8_t *scales;
    int rc = section(r, (bits + 7) / 8, &scales);
    if (rc != 0)
        return rc;
    for (uint64_t i = 0; i < rows; i++) {
        uint64_t scale = h->scale_base + get_bits(scales, i * h->scale_bits, h->scale_bits);
        if (scale < CWS_SCALE_MIN || scale > CWS_SCALE_MAX)
            return bad(r, "a scale is not a normal number");
    }
    for (uint64_t i = bits; i < (bits + 7) / 8 * 8; i++)
        if (get_bit(scales, i))
            return bad(r, "bits behind the scales are not zero");
    uint8_t *symbols = malloc(h->elem_count);
    if (!symbols)
        return -ENOMEM;
    rc = ref_streams(r, code, h, symbols);
    for (uint64_t i = 0; rc == 0 && i < h->elem_count; i++) {
        uint64_t row = (ctx->first_elem + i) / ctx->row_elems - first_row;
        uint32_t scale_bits = (uint32_t)(h->scale_base + get_bits(scales, row * h->scale_bits, h->scale_bits))
                              << CWS_SCALE_SHIFT;
        float scale, value;
        memcpy(&scale, &scale_bits, 4);
        value = (float)(symbols[i] - 128) * scale;
        if (ctx->dtype == CWS_F32) {
            memcpy(dst + 4 * i, &value, 4);
        } else {
            uint16_t out = ctx->dtype == CWS_F16 ? ref_round(value, 10, -14, 15) : ref_round(value, 7, -126, 127);
            memcpy(dst + 2 * i, &out, 2);
        }
    }
    free(symbols);
    return rc;
}

static int ref_coded(struct ref *r, const struct cws_chunk_context *ctx, const uint8_t packed[128],
                     size_t logical_bytes, uint8_t *dst)
{
    struct cws_coded_head h;
    struct ref_code *code;
    if (r->size < sizeof h)
        return bad(r, "is shorter than its head");
    memcpy(&h, r->bytes, sizeof h);
    r->at = sizeof h;
    for (unsigned i = 0; i < sizeof h.reserved; i++)
        if (h.reserved[i] != 0)
            return bad(r, "head has reserved bytes set");
    if (h.flags & ~CWS_CODED_WIDE)
        return bad(r, "head has unknown flags");
    if (h.lane_symbols != 64 && h.lane_symbols != 128 && h.lane_symbols != 256 && h.lane_symbols != 512 &&
        h.lane_symbols != 1024)
        return bad(r, "lane_symbols is not valid");
    if (!cws_dtype_is_float(ctx->dtype) || h.elem_bytes != cws_dtype_unit(ctx->dtype))
        return bad(r, "element size is not the dtype's");
    if (h.elem_count == 0 || logical_bytes > CWS_CHUNK_BYTES_MAX ||
        (uint64_t)h.elem_count * h.elem_bytes != logical_bytes)
        return bad(r, "element count does not fit the chunk's size");
    uint64_t tile_elems = (uint64_t)CWS_TILE_LANES * h.lane_symbols;
    if (h.tile_count != (h.elem_count + tile_elems - 1) / tile_elems)
        return bad(r, "tile count does not fit the element count");
    if (!packed)
        return bad(r, "is coded but its tensor has no code table");
    code = malloc(sizeof *code);
    if (!code)
        return -ENOMEM;
    int rc = ref_code_init(code, packed, r);
    if (rc == 0)
        rc = ctx->codec == CWS_CODEC_SPLIT ? ref_split(r, &h, code, dst) : ref_quant(r, &h, code, ctx, dst);
    free(code);
    return rc;
}

int cws_chunk_decode_ref(const struct cws_chunk_context *ctx, const uint8_t packed_table[128], const void *stored,
                         size_t stored_bytes, size_t logical_bytes, void *dst, struct cws_error *err)
{
    struct ref r = {stored, stored_bytes, 0, err};
    switch (ctx->codec) {
    case CWS_CODEC_RAW:
        if (stored_bytes != logical_bytes)
            return bad(&r, "a raw chunk's stored and logical sizes differ");
        memcpy(dst, stored, logical_bytes);
        return 0;
    case CWS_CODEC_ZSTD:
        if (ZSTD_findFrameCompressedSize(stored, stored_bytes) != stored_bytes)
            return bad(&r, "is not exactly one zstd frame");
        if (logical_bytes == 0 || logical_bytes > CWS_CHUNK_BYTES_MAX ||
            ZSTD_getFrameContentSize(stored, stored_bytes) != logical_bytes)
            return bad(&r, "the zstd frame's content size is not the chunk's");
        if (ZSTD_decompress(dst, logical_bytes, stored, stored_bytes) != logical_bytes)
            return bad(&r, "zstd could not decode it");
        return 0;
    case CWS_CODEC_SPLIT:
    case CWS_CODEC_QUANT: return ref_coded(&r, ctx, packed_table, logical_bytes, dst);
    }
    return bad(&r, "unknown codec");
}
