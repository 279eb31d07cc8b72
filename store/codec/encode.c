/* encode.c - the encoding of a chunk as its plan says; where that saves nothing, the chunk is stored raw. */
#include "encode.h"
#include "quant.h"
#include "huffman.h"
#include "store/base/race_range.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

struct cws_encode_scratch {
    ZSTD_CCtx *zstd;
    uint8_t symbols[CWS_TILE_MAX];
    uint16_t scale_code[CWS_CHUNK_BYTES / 2 / CWS_QUANT_ROW_MIN + 2];
};

static const struct cws_variant *const encoders[] = {
#if defined(__x86_64__)
    &cws_encoder_avx512.variant,
    &cws_encoder_avx2.variant,
#endif
    &cws_encoder_portable.variant,
};
static struct cws_choice choice = {.all = encoders, .count = sizeof encoders / sizeof *encoders};

const struct cws_encoder_ops *cws_encoder(void)
{
    return (const struct cws_encoder_ops *)cws_choice_get(&choice); /* the variant is the first member */
}

const char *cws_encoder_name(unsigned i) { return cws_choice_name(&choice, i); }
int cws_encoder_force(const char *name) { return cws_choice_force(&choice, name); }

/* Where the sections of a chunk go; the sizes do not depend on the bits but for the last. */
struct layout {
    uint8_t *plane[7]; /* NULL: constant */
    uint8_t *scales, *first_word, *shortest, *excess, *streams;
};

struct coder {
    const struct cws_plan *plan;
    struct cws_encode_scratch *scratch;
    struct cws_coded_head head;
    struct layout at;
    struct cws_encode_table table;
};

static uint64_t directory_bytes(uint64_t tiles, bool wide) { return tiles * (6 + CWS_TILE_LANES * (wide ? 2 : 1)); }

size_t cws_chunk_bound(const struct cws_plan *p, size_t logical_bytes)
{
    size_t bound = logical_bytes;
    if (p->codec == CWS_CODEC_ZSTD) {
        bound = ZSTD_compressBound(logical_bytes);
    } else if (p->codec == CWS_CODEC_SPLIT || p->codec == CWS_CODEC_QUANT) {
        size_t elems = logical_bytes / p->elem_bytes, tiles = elems / (CWS_TILE_LANES * p->lane_symbols) + 1;
        size_t before = p->codec == CWS_CODEC_SPLIT ? (p->elem_bytes - 1) * (elems + 16)
                                                    : 2 * (elems / CWS_QUANT_ROW_MIN + 2);
        bound = sizeof(struct cws_coded_head) + before + directory_bytes(tiles, true) + elems * CWS_CODE_BITS_MAX / 8 +
                4 * tiles + CWS_STREAM_PAD + 128;
    }
    return (bound > logical_bytes ? bound : logical_bytes) + 64;
}

int cws_encode_scratch_create(struct cws_encode_scratch **out)
{
    struct cws_encode_scratch *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return -ENOMEM;
    s->zstd = ZSTD_createCCtx();
    if (!s->zstd) {
        free(s);
        return -ENOMEM;
    }
    *out = s;
    return 0;
}

void cws_encode_scratch_destroy(struct cws_encode_scratch *s)
{
    if (!s)
        return;
    ZSTD_freeCCtx(s->zstd);
    free(s);
}

static uint64_t load_elem(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    memcpy(&v, p, bytes);
    return v;
}

/* Top 16 bits rotated left by one: sign below, exponent in the highest byte. */
static uint64_t rotate(uint64_t e, unsigned bytes)
{
    if (bytes == 1)
        return e;
    unsigned low = 8 * bytes - 16;
    uint64_t top = e >> low & 0xffff, rest = e & ((UINT64_C(1) << low) - 1);
    return rest | ((top << 1 | top >> 15) & 0xffff) << low;
}

/* Bit p: all elements have the same byte in plane p. */
static unsigned constant_planes(const uint8_t *elems, size_t count, unsigned bytes)
{
    uint64_t first = rotate(load_elem(elems, bytes), bytes), differ = 0;
    unsigned all = (1u << (bytes - 1)) - 1, constant = all;
    for (size_t i = 0; i < count && constant; i++) {
        differ |= rotate(load_elem(elems + i * bytes, bytes), bytes) ^ first;
        if (i % 64 == 63 || i + 1 == count)
            for (unsigned p = 0; p + 1 < bytes; p++)
                if (differ >> (8 * p) & 0xff)
                    constant &= ~(1u << p);
    }
    return constant;
}

static void split_symbols(const struct coder *c, const uint8_t *chunk, size_t first, size_t count, uint8_t *symbols)
{
    unsigned bytes = c->head.elem_bytes;
    const uint8_t *from = chunk + first * bytes;
    if (bytes == 1) {
        memcpy(symbols, from, count);
    } else if (bytes == 2 && c->at.plane[0]) {
        cws_encoder()->split2(from, count, c->at.plane[0] + first, symbols);
    } else {
        for (size_t i = 0; i < count; i++) {
            uint64_t v = rotate(load_elem(from + i * bytes, bytes), bytes);
            for (unsigned p = 0; p + 1 < bytes; p++)
                if (c->at.plane[p])
                    c->at.plane[p][first + i] = (uint8_t)(v >> (8 * p));
            symbols[i] = (uint8_t)(v >> (8 * (bytes - 1)));
        }
    }
}

static void quant_symbols(const struct coder *c, const uint8_t *chunk, uint64_t first_elem, size_t first, size_t count,
                          uint8_t *symbols)
{
    const struct cws_plan *p = c->plan;
    uint64_t first_row = first_elem / p->row_elems;
    for (size_t done = 0; done < count;) {
        uint64_t elem = first_elem + first + done, left = p->row_elems - elem % p->row_elems;
        size_t n = count - done < left ? count - done : (size_t)left;
        cws_quant_symbols(p->dtype, chunk + (first + done) * p->elem_bytes, n,
                          c->scratch->scale_code[elem / p->row_elems - first_row], symbols + done);
        done += n;
    }
}

/* Writes a tile's directory entry. False: its lanes differ by more than a narrow excess can tell. */
static bool put_lanes(struct coder *c, uint32_t tile, const uint32_t lane_bits[CWS_TILE_LANES])
{
    bool wide = c->head.flags & CWS_CODED_WIDE;
    uint32_t shortest = lane_bits[0], longest = lane_bits[0];
    for (unsigned l = 1; l < CWS_TILE_LANES; l++) {
        shortest = lane_bits[l] < shortest ? lane_bits[l] : shortest;
        longest = lane_bits[l] > longest ? lane_bits[l] : longest;
    }
    if (!wide && longest - shortest > 0xff)
        return false;
    uint16_t base = (uint16_t)shortest;
    memcpy(c->at.shortest + 2 * (size_t)tile, &base, 2);
    for (unsigned l = 0; l < CWS_TILE_LANES; l++) {
        size_t i = (size_t)tile * CWS_TILE_LANES + l;
        uint16_t excess = (uint16_t)(lane_bits[l] - shortest);
        if (wide)
            memcpy(c->at.excess + 2 * i, &excess, 2);
        else
            c->at.excess[i] = (uint8_t)excess;
    }
    return true;
}

/* Reserves the next section and clears the padding before it. */
static uint8_t *section(uint8_t **at, const uint8_t *base, size_t bytes)
{
    size_t pad = (size_t) - (*at - base) & 15;
    memset(*at, 0, pad);
    uint8_t *here = *at + pad;
    *at = here + bytes;
    return here;
}

static int quant_scales(struct coder *c, const uint8_t *chunk, size_t elems, uint64_t first_elem, uint64_t *out_rows)
{
    const struct cws_plan *p = c->plan;
    uint16_t *code = c->scratch->scale_code;
    uint64_t rows = 0;
    uint32_t least = CWS_SCALE_MAX, most = 0;
    for (size_t done = 0; done < elems; rows++) {
        uint64_t left = p->row_elems - (first_elem + done) % p->row_elems;
        size_t n = elems - done < left ? elems - done : (size_t)left;
        struct cws_quant_row row;
        if (cws_quant_measure(p->dtype, chunk + done * p->elem_bytes, n, &row) != 0)
            return CWS_E_BUG; /* the count would have refused it */
        code[rows] = (uint16_t)cws_quant_scale_code(&row, p->q6_step, p->typical_rms);
        if (code[rows] != 0) {
            least = code[rows] < least ? code[rows] : least;
            most = code[rows] > most ? code[rows] : most;
        }
        done += n;
    }
    c->head.scale_base = (uint16_t)least;
    c->head.scale_bits = 0;
    for (uint32_t range = most > least ? most - least : 0; range; range >>= 1)
        c->head.scale_bits++;
    *out_rows = rows;
    return 0;
}

static void put_scales(const struct coder *c, uint64_t rows, size_t bytes)
{
    memset(c->at.scales, 0, bytes);
    for (uint64_t i = 0; i < rows; i++) {
        /* zeros: any scale does */
        uint32_t code = c->scratch->scale_code[i], field = code ? code - c->head.scale_base : 0;
        uint64_t bit = i * c->head.scale_bits;
        field <<= bit % 8;
        for (size_t b = bit / 8; field; b++, field >>= 8)
            c->at.scales[b] |= (uint8_t)field;
    }
}

/* 0, 1 (wide excesses are needed) or CWS_E_BUG. */
static int encode_streams(struct coder *c, const uint8_t *chunk, uint64_t first_elem, uint8_t **end)
{
    size_t tile_elems = CWS_TILE_LANES * (size_t)c->head.lane_symbols;
    uint8_t *to = c->at.streams;
    for (uint32_t t = 0; t < c->head.tile_count; t++) {
        size_t first = t * tile_elems, count = c->head.elem_count - first;
        uint32_t lane_bits[CWS_TILE_LANES], word = (uint32_t)((to - c->at.streams) / 4);
        if (count > tile_elems)
            count = tile_elems;
        if (c->plan->codec == CWS_CODEC_SPLIT)
            split_symbols(c, chunk, first, count, c->scratch->symbols);
        else
            quant_symbols(c, chunk, first_elem, first, count, c->scratch->symbols);
        memcpy(c->at.first_word + 4 * (size_t)t, &word, 4);
        to = cws_encoder()->tile(&c->table, c->scratch->symbols, (unsigned)count, to, lane_bits);
        if (!to)
            return CWS_E_BUG;
        if (!put_lanes(c, t, lane_bits))
            return 1;
    }
    c->head.stream_words = (uint32_t)((to - c->at.streams) / 4);
    memset(to, 0, CWS_STREAM_PAD);
    *end = to + CWS_STREAM_PAD;
    return 0;
}

static int encode_coded(struct coder *c, const uint8_t *chunk, uint64_t first_elem, uint8_t *dst, size_t *out_bytes)
{
    struct cws_coded_head *h = &c->head;
    size_t elems = h->elem_count;
    uint8_t *at = dst + sizeof *h;
    uint64_t rows = 0;
    if (c->plan->codec == CWS_CODEC_SPLIT) {
        h->const_planes = (uint8_t)constant_planes(chunk, elems, h->elem_bytes);
        uint64_t first = rotate(load_elem(chunk, h->elem_bytes), h->elem_bytes);
        for (unsigned p = 0; p + 1 < h->elem_bytes; p++) {
            if (h->const_planes >> p & 1)
                h->const_value[p] = (uint8_t)(first >> (8 * p));
            else
                c->at.plane[p] = section(&at, dst, elems);
        }
    } else {
        int rc = quant_scales(c, chunk, elems, first_elem, &rows);
        if (rc != 0)
            return rc;
        size_t bytes = (size_t)((rows * h->scale_bits + 7) / 8);
        c->at.scales = section(&at, dst, bytes);
        put_scales(c, rows, bytes);
    }
    uint8_t *sections_end = at;
    for (;;) {
        at = sections_end;
        c->at.first_word = section(&at, dst, directory_bytes(h->tile_count, h->flags & CWS_CODED_WIDE));
        c->at.shortest = c->at.first_word + 4 * (size_t)h->tile_count;
        c->at.excess = c->at.shortest + 2 * (size_t)h->tile_count;
        c->at.streams = section(&at, dst, 0);
        int rc = encode_streams(c, chunk, first_elem, &at);
        if (rc == 1)
            h->flags |= CWS_CODED_WIDE;
        else if (rc != 0)
            return rc;
        else
            break;
    }
    memcpy(dst, h, sizeof *h);
    *out_bytes = (size_t)(at - dst);
    return 0;
}

static void coder_init(struct coder *c, const struct cws_plan *p, size_t elems, struct cws_encode_scratch *scratch)
{
    uint16_t codes[256];
    size_t tile_elems = CWS_TILE_LANES * (size_t)p->lane_symbols;
    memset(c, 0, sizeof *c);
    c->plan = p;
    c->scratch = scratch;
    c->head.elem_count = (uint32_t)elems;
    c->head.lane_symbols = p->lane_symbols;
    c->head.elem_bytes = (uint8_t)p->elem_bytes;
    c->head.tile_count = (uint32_t)((elems + tile_elems - 1) / tile_elems);
    cws_huffman_codes(p->lengths, codes);
    for (unsigned s = 0; s < 256; s++) {
        uint32_t length = p->lengths[s];
        c->table.code[s] = length ? codes[s] | length << 16 : CWS_CODE_ABSENT;
        c->table.low[s] = (uint8_t)codes[s];
        c->table.high[s] = (uint8_t)(codes[s] >> 8 | length << 4);
    }
    if (cws_encoder()->prepare)
        cws_encoder()->prepare(&c->table);
}

int cws_chunk_encode(const struct cws_plan *p, const void *chunk, size_t bytes, uint64_t first_elem, void *dst,
                     size_t *out_stored_bytes, enum cws_codec_id *out_codec, struct cws_encode_scratch *scratch,
                     struct cws_error *err)
{
    size_t stored = bytes;
    *out_codec = p->codec;
    if (bytes > p->chunk_bytes || bytes % p->elem_bytes != 0)
        return cws_fail(err, CWS_E_BUG, "encoder: a chunk of %zu bytes does not fit its plan", bytes);
    cws_race_read(chunk, bytes);
    cws_race_write(dst, bytes);
    if (bytes > 0 && p->codec == CWS_CODEC_ZSTD) {
        stored = ZSTD_compressCCtx(scratch->zstd, dst, cws_chunk_bound(p, bytes), chunk, bytes, CWS_ZSTD_LEVEL);
        if (ZSTD_isError(stored))
            return ZSTD_getErrorCode(stored) == ZSTD_error_memory_allocation
                       ? -ENOMEM
                       : cws_fail(err, CWS_E_BUG, "encoder: zstd: %s", ZSTD_getErrorName(stored));
    } else if (bytes > 0 && p->codec != CWS_CODEC_RAW) {
        struct coder c;
        coder_init(&c, p, bytes / p->elem_bytes, scratch);
        int rc = encode_coded(&c, chunk, first_elem, dst, &stored);
        if (rc == CWS_E_BUG && p->counts_part)
            stored = bytes;
        else if (rc != 0)
            return cws_fail(err, rc, "encoder: the chunk at element %llu holds a value that was not counted",
                            (unsigned long long)first_elem);
    }
    if (stored >= bytes) {
        if (bytes > 0)
            memcpy(dst, chunk, bytes);
        stored = bytes;
        *out_codec = CWS_CODEC_RAW;
    }
    *out_stored_bytes = stored;
    return 0;
}
