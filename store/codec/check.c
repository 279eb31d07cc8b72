/* check.c - the checks of a coded chunk that need no decoding: head, sizes, scales, directory. */
#include "check.h"

#define FAIL(...) cws_fail(err, CWS_E_CORRUPT, "chunk: " __VA_ARGS__)

static int check_head(const struct cws_chunk_context *ctx, const struct cws_coded_head *h, size_t logical_bytes,
                      struct cws_error *err)
{
    uint32_t lane = h->lane_symbols;
    if (cws_load32(h->reserved) != 0 || h->reserved[4] != 0 || (h->flags & ~CWS_CODED_WIDE) != 0)
        return FAIL("reserved bits of the head are set (flags 0x%x)", h->flags);
    if (lane != 64 && lane != 128 && lane != 256 && lane != 512 && lane != 1024)
        return FAIL("%u symbols per lane; 64, 128, 256, 512 and 1024 are valid", lane);
    if (!cws_dtype_is_float(ctx->dtype) || h->elem_bytes != cws_dtype_unit(ctx->dtype))
        return FAIL("elements of %u bytes in a %s tensor", h->elem_bytes, cws_dtype_name(ctx->dtype));
    if (h->elem_count == 0 || logical_bytes > CWS_CHUNK_BYTES_MAX ||
        (uint64_t)h->elem_count * h->elem_bytes != logical_bytes)
        return FAIL("%u elements of %u bytes do not make %zu logical bytes", h->elem_count, h->elem_bytes,
                    logical_bytes);
    if (h->tile_count != (h->elem_count + (CWS_TILE_LANES * lane - 1)) / (CWS_TILE_LANES * lane))
        return FAIL("%u tiles do not fit %u elements", h->tile_count, h->elem_count);

    unsigned const_limit = 0; /* planes that may be constant */
    if (ctx->codec == CWS_CODEC_SPLIT) {
        const_limit = h->elem_bytes - 1u;
        if (h->scale_base != 0 || h->scale_bits != 0)
            return FAIL("a split chunk has scales");
    } else {
        if (ctx->dtype != CWS_F16 && ctx->dtype != CWS_BF16 && ctx->dtype != CWS_F32)
            return FAIL("a %s tensor cannot be quantised", cws_dtype_name(ctx->dtype));
        if (h->scale_bits > 13 || ctx->row_elems == 0 || ctx->first_elem > UINT64_MAX - h->elem_count)
            return FAIL("scale fields of %u bits, rows of %llu elements", h->scale_bits,
                        (unsigned long long)ctx->row_elems);
    }
    if (h->const_planes >> const_limit != 0)
        return FAIL("constant planes 0x%x of %u-byte elements", h->const_planes, h->elem_bytes);
    for (unsigned p = 0; p < 7; p++)
        if (!(h->const_planes >> p & 1) && h->const_value[p] != 0)
            return FAIL("plane %u has a constant and is stored", p);
    return 0;
}

/* Takes `bytes` at the next 16-byte boundary. Sizes are u64 sums of u32 products: they cannot overflow. */
static const uint8_t *take(const uint8_t *base, uint64_t size, uint64_t *at, uint64_t bytes, struct cws_error *err)
{
    uint64_t start = (*at + 15) & ~UINT64_C(15);
    if (start > size || bytes > size - start) {
        FAIL("a section of %llu bytes at %llu ends past the %llu stored", (unsigned long long)bytes,
             (unsigned long long)start, (unsigned long long)size);
        return NULL;
    }
    for (uint64_t i = *at; i < start; i++)
        if (base[i] != 0) {
            FAIL("padding byte %llu is not zero", (unsigned long long)i);
            return NULL;
        }
    *at = start + bytes;
    return base + start;
}

static int check_scales(const struct cws_coded *c, struct cws_error *err)
{
    uint64_t fields = c->head.scale_bits ? c->scale_fields : 1;
    for (uint64_t i = 0; i < fields; i++) {
        uint32_t code = cws_coded_scale(c, i);
        if (code < CWS_SCALE_MIN || code > CWS_SCALE_MAX)
            return FAIL("scale %llu has code 0x%x", (unsigned long long)i, code);
    }
    return 0;
}

static int check_directory(const struct cws_coded *c, struct cws_error *err)
{
    uint64_t word = 0;
    uint32_t lane_bits[CWS_TILE_LANES];
    for (uint32_t t = 0; t < c->head.tile_count; t++) {
        if (cws_load32(c->first_word + 4 * (size_t)t) != word)
            return FAIL("tile %u does not start where the one before it ends", t);
        uint32_t bits = cws_coded_lanes(c, t, lane_bits);
        uint32_t words = (bits + 31) / 32;
        if (words > c->head.stream_words - word)
            return FAIL("tile %u ends past the bit streams", t);
        word += words;
        if (bits % 32 != 0 && cws_load32(c->streams + 4 * word - 4) >> (bits % 32) != 0)
            return FAIL("bits behind tile %u are not zero", t);
    }
    if (word != c->head.stream_words)
        return FAIL("the tiles end at word %llu of %u", (unsigned long long)word, c->head.stream_words);
    if (cws_load64(c->streams + 4 * word) != 0)
        return FAIL("bytes behind the bit streams are not zero");
    return 0;
}

int cws_coded_layout(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes, size_t logical_bytes,
                     struct cws_coded *out, struct cws_error *err)
{
    const uint8_t *base = stored;
    struct cws_coded_head *h = &out->head;
    if (stored_bytes < sizeof *h)
        return FAIL("%zu bytes are too short for a head", stored_bytes);
    memset(out, 0, sizeof *out);
    memcpy(h, base, sizeof *h);
    int rc = check_head(ctx, h, logical_bytes, err);
    if (rc != 0)
        return rc;

    uint64_t at = sizeof *h;
    if (ctx->codec == CWS_CODEC_SPLIT) {
        for (unsigned p = 0; p + 1 < h->elem_bytes; p++)
            if (!(h->const_planes >> p & 1) && !(out->planes[p] = take(base, stored_bytes, &at, h->elem_count, err)))
                return CWS_E_CORRUPT;
    } else {
        uint64_t first_row = ctx->first_elem / ctx->row_elems;
        out->scale_fields = (ctx->first_elem + h->elem_count - 1) / ctx->row_elems - first_row + 1;
        out->scale_bytes = (size_t)((out->scale_fields * h->scale_bits + 7) / 8);
        out->scales = take(base, stored_bytes, &at, out->scale_bytes, err);
        if (!out->scales)
            return CWS_E_CORRUPT;
        unsigned used = (unsigned)(out->scale_fields * h->scale_bits % 8);
        if (used != 0 && out->scales[out->scale_bytes - 1] >> used != 0)
            return FAIL("bits behind the scales are not zero");
    }
    unsigned width = h->flags & CWS_CODED_WIDE ? 2 : 1;
    uint64_t tiles = h->tile_count;
    out->first_word = take(base, stored_bytes, &at, tiles * (6 + CWS_TILE_LANES * width), err);
    if (!out->first_word)
        return CWS_E_CORRUPT;
    out->shortest = out->first_word + 4 * tiles;
    out->excess = out->shortest + 2 * tiles;
    out->streams = take(base, stored_bytes, &at, 4 * (uint64_t)h->stream_words + CWS_STREAM_PAD, err);
    if (!out->streams)
        return CWS_E_CORRUPT;
    if (at != stored_bytes)
        return FAIL("%llu bytes follow its last section", (unsigned long long)(stored_bytes - at));
    return 0;
}

int cws_coded_check(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes, size_t logical_bytes,
                    struct cws_coded *out, struct cws_error *err)
{
    int rc = cws_coded_layout(ctx, stored, stored_bytes, logical_bytes, out, err);
    if (rc == 0)
        rc = check_directory(out, err);
    if (rc == 0 && ctx->codec == CWS_CODEC_QUANT)
        rc = check_scales(out, err);
    return rc;
}
