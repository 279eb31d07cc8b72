/* decode.c - the decoding of a chunk, whole or in part: raw, zstd, or tile by tile with the fastest decoder that
 * this machine runs. */
#include "fast.h"
#include "store/base/race_range.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <zstd.h>

struct cws_decode_scratch {
    uint8_t lanes[2][CWS_LANES_BYTES];
    uint8_t linear[CWS_LINEAR_BYTES];
    uint8_t constant[7][CWS_TILE_ELEMS_MAX]; /* planes that are not stored */
    uint8_t tile[8 * CWS_TILE_ELEMS_MAX];    /* a tile that the range cuts */
    ZSTD_DCtx *zstd;
    uint8_t *whole; /* a zstd chunk that the range cuts; untouched, so unbacked, unless that happens */
};

static const struct cws_variant *const decoders[] = {
#if defined(__x86_64__)
    &cws_decoder_avx512.variant,
    &cws_decoder_avx2.variant,
#endif
    &cws_decoder_portable.variant,
};
static struct cws_choice choice = {.all = decoders, .count = sizeof decoders / sizeof *decoders};

static const struct cws_decoder_ops *decoder(void)
{
    return (const struct cws_decoder_ops *)cws_choice_get(&choice); /* the variant is the first member */
}

const char *cws_decoder_name(unsigned i) { return cws_choice_name(&choice, i); }
int cws_decoder_force(const char *name) { return cws_choice_force(&choice, name); }

int cws_decode_scratch_create(struct cws_decode_scratch **out)
{
    struct cws_decode_scratch *s = aligned_alloc(64, (sizeof *s + 63) & ~(size_t)63);
    *out = NULL;
    if (!s)
        return -ENOMEM;
    s->zstd = ZSTD_createDCtx();
    s->whole = malloc(CWS_CHUNK_BYTES_MAX);
    if (!s->zstd || !s->whole) {
        cws_decode_scratch_destroy(s);
        return -ENOMEM;
    }
    *out = s;
    return 0;
}

void cws_decode_scratch_destroy(struct cws_decode_scratch *s)
{
    if (!s)
        return;
    ZSTD_freeDCtx(s->zstd);
    free(s->whole);
    free(s);
}

static void tile_to_quant(const struct cws_decoder_ops *ops, const struct cws_chunk_context *ctx,
                          const struct cws_coded *c, const struct cws_tile *tile, uint64_t first, uint8_t *dst)
{
    uint64_t elem = ctx->first_elem + first, row_elems = ctx->row_elems;
    uint64_t row = elem / row_elems - ctx->first_elem / row_elems, left_in_row = row_elems - elem % row_elems;
    const uint8_t *symbols = ops->linear(tile);
    for (unsigned done = 0; done < tile->elems; row++, left_in_row = row_elems) {
        unsigned count = tile->elems - done;
        if (left_in_row < count)
            count = (unsigned)left_in_row;
        uint32_t bits = cws_coded_scale(c, row) << CWS_SCALE_SHIFT;
        float scale;
        memcpy(&scale, &bits, 4);
        ops->quant(symbols + done, count, scale, ctx->dtype, dst + (size_t)done * c->head.elem_bytes);
        done += count;
    }
}

struct job { /* a chunk being decoded */
    const struct cws_decoder_ops *ops;
    const struct cws_chunk_context *ctx;
    const struct cws_coded *coded;
    struct cws_decode_scratch *scratch;
};

static uint32_t tile_elems(const struct job *j) { return CWS_TILE_LANES * j->coded->head.lane_symbols; }

static void find_bits(const struct job *j, uint32_t t, struct cws_tile_bits *out)
{
    out->first_bit = 32 * (uint64_t)cws_load32(j->coded->first_word + 4 * (size_t)t);
    out->end_bit = out->first_bit + cws_coded_lanes(j->coded, t, out->lane);
}

/* The symbols of tile t, in lanes, become its elements at dst. */
static void merge_tile(const struct job *j, uint32_t t, unsigned elems, const uint8_t *lanes, uint8_t *dst)
{
    const struct cws_coded *c = j->coded;
    uint64_t first = (uint64_t)t * tile_elems(j);
    struct cws_tile tile = {
        .lanes = lanes,
        .stride = CWS_LANE_STRIDE(c->head.lane_symbols),
        .elems = elems,
        .linear = j->scratch->linear,
    };
    if (j->ctx->codec == CWS_CODEC_QUANT) {
        tile_to_quant(j->ops, j->ctx, c, &tile, first, dst);
        return;
    }
    for (unsigned p = 0; p + 1 < c->head.elem_bytes; p++)
        tile.plane[p] = c->planes[p] ? c->planes[p] + first : j->scratch->constant[p];
    j->ops->split(&tile, c->head.elem_bytes, dst);
}

static uint32_t elems_of(const struct job *j, uint32_t t)
{
    uint32_t left = j->coded->head.elem_count - t * tile_elems(j);
    return left < tile_elems(j) ? left : tile_elems(j);
}

/* Decodes tile t to its elements at dst. */
static int decode_tile(const struct job *j, uint32_t t, uint8_t *dst, struct cws_error *err)
{
    uint32_t elems = elems_of(j, t);
    uint8_t *lanes = j->scratch->lanes[0];
    struct cws_tile_bits bits;
    find_bits(j, t, &bits);
    if (!j->ops->lanes(j->ctx->table, j->coded->streams, &bits, elems, lanes,
                       CWS_LANE_STRIDE(j->coded->head.lane_symbols)))
        return cws_fail(err, CWS_E_CORRUPT, "chunk: tile %u: a lane does not hold exactly its symbols", t);
    merge_tile(j, t, elems, lanes, dst);
    return 0;
}

/* Tiles t and t + 1, one after the other at dst. False: one of them is bad, or they are not decoded so. */
static bool decode_two_tiles(const struct job *j, uint32_t t, uint8_t *dst)
{
    unsigned elems[2] = {elems_of(j, t), elems_of(j, t + 1)};
    uint8_t *const lanes[2] = {j->scratch->lanes[0], j->scratch->lanes[1]};
    struct cws_tile_bits bits[2];
    for (unsigned k = 0; k < 2; k++)
        find_bits(j, t + k, &bits[k]);
    if (!j->ops->two(j->ctx->table, j->coded->streams, bits, elems, lanes))
        return false;
    merge_tile(j, t, elems[0], lanes[0], dst);
    merge_tile(j, t + 1, elems[1], lanes[1], dst + (size_t)elems[0] * j->coded->head.elem_bytes);
    return true;
}

static int decode_coded(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes,
                        size_t logical_bytes, size_t begin, size_t end, uint8_t *dst, struct cws_decode_scratch *s,
                        struct cws_error *err)
{
    struct cws_coded c;
    int rc = cws_coded_check(ctx, stored, stored_bytes, logical_bytes, &c, err);
    if (rc != 0)
        return rc;
    if (!ctx->table)
        return cws_fail(err, CWS_E_CORRUPT, "chunk: is coded but its tensor has no code table");
    for (unsigned p = 0; p + 1 < c.head.elem_bytes; p++)
        if (c.head.const_planes >> p & 1)
            memset(s->constant[p], c.head.const_value[p], CWS_TILE_LANES * c.head.lane_symbols);

    const struct job job = {decoder(), ctx, &c, s};
    size_t tile_bytes = (size_t)CWS_TILE_LANES * c.head.lane_symbols * c.head.elem_bytes;
    for (size_t at = begin; at < end;) {
        size_t t = at / tile_bytes, tile_begin = t * tile_bytes;
        size_t tile_end = tile_begin + tile_bytes < logical_bytes ? tile_begin + tile_bytes : logical_bytes;
        size_t stop = tile_end < end ? tile_end : end;
        bool whole = at == tile_begin && stop == tile_end;
        size_t next_end = tile_end + tile_bytes < logical_bytes ? tile_end + tile_bytes : logical_bytes;
        if (job.ops->two && whole && tile_end < next_end && next_end <= end &&
            decode_two_tiles(&job, (uint32_t)t, dst + (at - begin))) {
            at = next_end;
            continue;
        }
        rc = decode_tile(&job, (uint32_t)t, whole ? dst + (at - begin) : s->tile, err);
        if (rc != 0)
            return rc;
        if (!whole)
            memcpy(dst + (at - begin), s->tile + (at - tile_begin), stop - at);
        at = stop;
    }
    return 0;
}

static int decode_zstd(const void *stored, size_t stored_bytes, size_t logical_bytes, size_t begin, size_t end,
                       uint8_t *dst, struct cws_decode_scratch *s, struct cws_error *err)
{
    bool whole = begin == 0 && end == logical_bytes;
    if (ZSTD_findFrameCompressedSize(stored, stored_bytes) != stored_bytes || logical_bytes == 0 ||
        logical_bytes > CWS_CHUNK_BYTES_MAX || ZSTD_getFrameContentSize(stored, stored_bytes) != logical_bytes)
        return cws_fail(err, CWS_E_CORRUPT, "chunk: is not exactly one zstd frame of %zu bytes", logical_bytes);
    uint8_t *to = whole ? dst : s->whole;
    size_t got = ZSTD_decompressDCtx(s->zstd, to, logical_bytes, stored, stored_bytes);
    if (got != logical_bytes)
        return cws_fail(err, CWS_E_CORRUPT, "chunk: zstd: %s",
                        ZSTD_isError(got) ? ZSTD_getErrorName(got) : "short frame");
    if (!whole)
        memcpy(dst, to + begin, end - begin);
    return 0;
}

int cws_chunk_decode(const struct cws_chunk_context *ctx, const void *stored, size_t stored_bytes, size_t logical_bytes,
                     size_t begin, size_t end, void *dst, struct cws_decode_scratch *scratch, struct cws_error *err)
{
    if (begin > end || end > logical_bytes)
        return cws_fail(err, CWS_E_BUG, "chunk: range %zu..%zu of %zu bytes", begin, end, logical_bytes);
    cws_race_read(stored, stored_bytes);
    cws_race_write(dst, end - begin);
    switch (ctx->codec) {
    case CWS_CODEC_RAW:
        if (stored_bytes != logical_bytes)
            return cws_fail(err, CWS_E_CORRUPT, "chunk: raw, but %zu bytes stored for %zu", stored_bytes,
                            logical_bytes);
        if (end > begin)
            memcpy(dst, (const uint8_t *)stored + begin, end - begin);
        return 0;
    case CWS_CODEC_ZSTD: return decode_zstd(stored, stored_bytes, logical_bytes, begin, end, dst, scratch, err);
    case CWS_CODEC_SPLIT:
    case CWS_CODEC_QUANT: return decode_coded(ctx, stored, stored_bytes, logical_bytes, begin, end, dst, scratch, err);
    }
    return cws_fail(err, CWS_E_CORRUPT, "chunk: unknown codec %d", (int)ctx->codec);
}
