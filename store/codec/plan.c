/* plan.c - the choice of a tensor's codec, chunk size and code, from a sample and a count of its symbols. */
#include "encode.h"
#include "quant.h"
#include "huffman.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#define TRIAL_BYTES (256u << 10) /* of the sample, what is given to zstd to see */
#define SPLIT_BYTES (32u << 10)  /* of the sample, what the exponents' entropy is estimated from */
#define REPEAT_BYTES (4u << 10)  /* of the sample, what is searched for repeated words */
#define STEP_ELEMS (64u << 10)   /* of the sample, what the q6 step is searched on */
#define TARGET_BITS 6.0          /* of a q6 weight, everything counted */
#define TARGET_MARGIN 0.004      /* left free by the search, for what a sample does not show */
#define GAIN_MIN 0.01            /* a smaller gain is not worth decoding */
#define ROUNDS_MAX 12
#define PARTIAL_BYTES (4u << 20) /* of a tensor, above which a part of each chunk is counted */
#define RANGE_BYTES                                                                                                    \
    (64u << 10)            /* of a tensor of 2-byte floats, from which on the same, and the range of all is looked
                                  * up */
#define PARTIAL_SHARE 4u   /* how much is counted: one in so many bytes */
#define STRIPE_BYTES 1024u /* it is taken in pieces of this size */
#define UNSEEN_BELOW                                                                                                   \
    8u /* exponents below one that was counted that get a code: each is half as likely as the
                                  * next */
#define UNSEEN_ABOVE 2u
#define UNSEEN_MAX 12u /* codes within the range */
/* Elements from which on lanes are short. A GPU decodes a tile with one warp, so that short lanes keep more of them
 * busy: on an H200, 64 Mi weights, 1616 GB/s with 128 symbols a lane and 1428 with 256 (q8: 1296 and 1053). They cost
 * 0.04 bits per weight more (q8: 0.06 over 512), which small tensors, whose records weigh enough already, would gain
 * little from. Quantised tensors are packed for their size: there only the largest get short lanes, and with q6, where
 * bits are precision, 256 must do. */
#define LARGE_ELEMS (1u << 20)
#define HUGE_ELEMS (8u << 20)

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static void set_lossless(struct cws_plan *p)
{
    p->codec = cws_dtype_is_float(p->dtype) ? CWS_CODEC_SPLIT : CWS_CODEC_ZSTD;
    p->needs_count = p->codec == CWS_CODEC_SPLIT;
    p->counts_range = p->codec == CWS_CODEC_SPLIT && p->elem_bytes == 2 && p->elems >= RANGE_BYTES / 2 &&
                      p->elems <= PARTIAL_BYTES / 2;
    p->counts_part = p->needs_count && (p->counts_range || p->elems > PARTIAL_BYTES / p->elem_bytes);
    p->lane_symbols = p->elems < LARGE_ELEMS ? 256 : 128;
    p->chunk_bytes = CWS_CHUNK_BYTES;
    p->row_elems = 0;
    p->quant_bits = 0;
    p->q6_step = 0;
    p->typical_rms = 0;
    p->rounds = 0;
    p->stored_planes = p->elem_bytes - 1;
    p->scale_bits = 0;
}

static void set_raw(struct cws_plan *p)
{
    set_lossless(p);
    p->codec = CWS_CODEC_RAW;
    p->needs_count = false;
    p->counts_part = p->counts_range = false;
    p->symbol_entropy = 0;
}

/* Elements that share a scale, 0: not to be quantised. */
static uint64_t quant_row(const struct cws_plan *p, const uint64_t *shape, size_t ndim)
{
    uint64_t row = 1;
    if ((p->dtype != CWS_F16 && p->dtype != CWS_BF16 && p->dtype != CWS_F32) || p->elems < CWS_QUANT_ELEMS_MIN)
        return 0;
    for (size_t d = ndim; d-- > 1 && row < CWS_QUANT_ROW_MIN;)
        row *= shape[d];
    return row >= CWS_QUANT_ROW_MIN ? row : 0;
}

void cws_plan_begin(struct cws_plan *p, enum cws_mode mode, enum cws_dtype dtype, const uint64_t *shape, size_t ndim)
{
    memset(p, 0, sizeof *p);
    p->dtype = dtype;
    p->mode = mode;
    p->elem_bytes = cws_dtype_unit(dtype);
    uint64_t elems = 1, bytes;
    for (size_t d = 0; d < ndim; d++)
        elems *= shape[d];
    p->elems = cws_dtype_size(dtype, elems, &bytes) ? bytes / p->elem_bytes : 0;
    set_lossless(p);
    if (mode == CWS_MODE_LOSSLESS)
        return;
    uint64_t row = quant_row(p, shape, ndim);
    if (row == 0)
        return;
    uint64_t row_bytes = row * p->elem_bytes, unit = row_bytes / gcd(row_bytes, 16) * 16;
    p->codec = CWS_CODEC_QUANT;
    p->row_elems = row;
    p->quant_bits = mode == CWS_MODE_Q8 ? 8 : 6;
    if (p->elems < LARGE_ELEMS)
        p->lane_symbols = 1024;
    else if (p->elems < HUGE_ELEMS)
        p->lane_symbols = 512;
    else
        p->lane_symbols = mode == CWS_MODE_Q8 ? 128 : 256;
    p->needs_count = true;
    p->counts_part = p->counts_range = false;
    if (row_bytes <= CWS_CHUNK_BYTES && unit <= CWS_CHUNK_BYTES)
        p->chunk_bytes = (uint32_t)(CWS_CHUNK_BYTES / unit * unit);
}

void cws_plan_refuse_quant(struct cws_plan *p) { set_lossless(p); }

/* Four tables, so that a run of one symbol does not wait for its own counter. */
struct tally {
    uint32_t table[4][256];
};

static void tally_bytes(struct tally *t, const uint8_t *symbols, size_t count)
{
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (unsigned k = 0; k < 4; k++)
            t->table[k][symbols[i + k]]++;
    for (; i < count; i++)
        t->table[0][symbols[i]]++;
}

static void tally_add(const struct tally *t, uint64_t histogram[256])
{
    for (unsigned s = 0; s < 256; s++)
        histogram[s] += (uint64_t)t->table[0][s] + t->table[1][s] + t->table[2][s] + t->table[3][s];
}

static void count_split(unsigned elem_bytes, const uint8_t *elems, size_t count, uint64_t histogram[256])
{
    struct tally t = {{{0}}};
    if (elem_bytes == 2) {
        cws_encoder()->count2(elems, count, histogram);
        return;
    }
    if (elem_bytes == 1) {
        tally_bytes(&t, elems, count);
    } else {
        const uint8_t *top = elems + elem_bytes - 2;
        for (size_t i = 0; i < count; i++) {
            uint16_t v;
            memcpy(&v, top + i * elem_bytes, 2);
            t.table[i & 3][v >> 7 & 0xff]++;
        }
    }
    tally_add(&t, histogram);
}

/* The scale codes that occurred. */
struct codes {
    uint32_t least, most;
};

static void codes_add(struct codes *c, uint32_t code)
{
    if (code == 0) /* zeros: any scale does */
        return;
    c->least = c->most == 0 || code < c->least ? code : c->least;
    c->most = code > c->most ? code : c->most;
}

static unsigned codes_bits(const struct codes *c)
{
    unsigned bits = 0;
    for (uint32_t range = c->most - c->least; range; range >>= 1)
        bits++;
    return bits;
}

static int count_quant(const struct cws_plan *p, float step, const uint8_t *elems, size_t count, uint64_t first_elem,
                       uint64_t histogram[256], struct codes *codes)
{
    uint8_t symbols[4096];
    struct tally t = {{{0}}};
    for (size_t done = 0; done < count;) {
        uint64_t left = p->row_elems - (first_elem + done) % p->row_elems;
        size_t n = count - done < left ? count - done : (size_t)left;
        const uint8_t *row_elems = elems + done * p->elem_bytes;
        struct cws_quant_row row;
        if (cws_quant_measure(p->dtype, row_elems, n, &row) != 0)
            return 1;
        uint32_t code = cws_quant_scale_code(&row, step, p->typical_rms);
        codes_add(codes, code);
        for (size_t at = 0; at < n; at += sizeof symbols) {
            size_t part = n - at < sizeof symbols ? n - at : sizeof symbols;
            cws_quant_symbols(p->dtype, row_elems + at * p->elem_bytes, part, code, symbols);
            tally_bytes(&t, symbols, part);
        }
        done += n;
    }
    tally_add(&t, histogram);
    return 0;
}

/* Which of its parts a chunk shows changes from chunk to chunk, so that no column of a matrix always hides. */
static void count_part(const struct cws_plan *p, const uint8_t *chunk, size_t elems, uint64_t first_elem,
                       uint64_t histogram[256])
{
    uint64_t index = first_elem * p->elem_bytes / p->chunk_bytes;
    size_t each = elems / PARTIAL_SHARE, which = (size_t)((index ^ index >> 2 ^ index >> 4) % PARTIAL_SHARE);
    if (each > 0)
        count_split(p->elem_bytes, chunk + which * each * p->elem_bytes, each, histogram);
}

/* A stripe of each eight, which one as good as random, and once more the least and the largest symbol of all: what is
 * not counted lies between them. */
static void count_stripes(const uint8_t *chunk, size_t elems, uint64_t first_elem, uint64_t histogram[256])
{
    enum { STRIPE = STRIPE_BYTES / 2, SHARE = 8, BLOCK = STRIPE * SHARE, ROOM = 16 };
    uint16_t room[ROOM * STRIPE];
    uint8_t least, most;
    uint64_t block = first_elem / BLOCK;
    size_t at = 0, used = 0;
    cws_encoder()->range2(chunk, elems, &least, &most);
    for (; elems - at >= BLOCK; at += BLOCK, block++) {
        uint64_t which = block * UINT64_C(0x9e3779b97f4a7c15) >> 61;
        memcpy(room + used, chunk + 2 * (at + STRIPE * which), STRIPE_BYTES);
        used += STRIPE;
        if (used == ROOM * STRIPE) {
            cws_encoder()->count2((const uint8_t *)room, used, histogram);
            used = 0;
        }
    }
    cws_encoder()->count2((const uint8_t *)room, used, histogram);
    cws_encoder()->count2(chunk + 2 * at, (elems - at) / SHARE, histogram);
    histogram[most]++;
    if (least < 255)
        histogram[least]++;
}

int cws_plan_count(const struct cws_plan *p, const void *chunk, size_t bytes, uint64_t first_elem,
                   uint64_t histogram[256])
{
    struct codes codes = {0, 0};
    if (p->codec == CWS_CODEC_QUANT)
        return count_quant(p, p->q6_step, chunk, bytes / p->elem_bytes, first_elem, histogram, &codes);
    if (p->codec == CWS_CODEC_SPLIT && p->counts_range)
        count_stripes(chunk, bytes / 2, first_elem, histogram);
    else if (p->codec == CWS_CODEC_SPLIT && p->counts_part)
        count_part(p, chunk, bytes / p->elem_bytes, first_elem, histogram);
    else if (p->codec == CWS_CODEC_SPLIT)
        count_split(p->elem_bytes, chunk, bytes / p->elem_bytes, histogram);
    return 0;
}

/* Stored bits of the tensor but for its symbols: records, heads, directories, planes, scales, padding. */
static double overhead_bits(const struct cws_plan *p)
{
    double elems = (double)p->elems, tile = CWS_TILE_LANES * (double)p->lane_symbols;
    double chunks = ceil(elems * p->elem_bytes / p->chunk_bytes), tiles = ceil(elems / tile);
    /* Padding: half of the most there can be, but all of it once, for tensors of a single chunk. */
    double padding = (CWS_CHUNK_ALIGN + 2 * 16) / 2;
    double bytes = 128 + sizeof(struct cws_tensor_record) + padding;
    bytes += chunks * (sizeof(struct cws_chunk_record) + sizeof(struct cws_coded_head) + CWS_STREAM_PAD + padding);
    bytes += tiles * (4 + 2 + CWS_TILE_LANES + 2);
    if (p->codec == CWS_CODEC_SPLIT)
        bytes += elems * p->stored_planes;
    else
        bytes += elems / (double)p->row_elems * p->scale_bits / 8;
    return 8 * bytes;
}

/* Without memory there is no guess: the choice, and with it the file, would depend on the machine. */
static int zstd_trial(const uint8_t *sample, size_t bytes, double *out_bytes, struct cws_error *err)
{
    size_t n = bytes < TRIAL_BYTES ? bytes : TRIAL_BYTES, bound = ZSTD_compressBound(n), got = 0;
    void *out = malloc(bound);
    if (out)
        got = ZSTD_compress(out, bound, sample + (bytes - n) / 2, n, CWS_ZSTD_LEVEL);
    free(out);
    if (!out || (ZSTD_isError(got) && ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation))
        return cws_fail(err, -ENOMEM, "choosing a codec: not enough memory to try zstd on a sample");
    if (ZSTD_isError(got))
        return cws_fail(err, CWS_E_BUG, "choosing a codec: zstd: %s", ZSTD_getErrorName(got));
    *out_bytes = (double)(size_t)((double)got / (double)n * (double)bytes);
    return 0;
}

/* Do words of the size of an element (8 bytes for small ones) come back? Cheap, and no weights of a trained
 * model do; only then is zstd worth a trial on floats. */
static bool repeats(const struct cws_plan *p, const uint8_t *sample, size_t bytes)
{
    enum { SLOTS = 1024 };
    uint64_t last[SLOTS] = {0};
    size_t width = p->elem_bytes == 4 ? 4 : 8, n = (bytes < REPEAT_BYTES ? bytes : REPEAT_BYTES) / width, hits = 0;
    const uint8_t *from = sample + (bytes - n * width) / 2 / width * width;
    for (size_t i = 0; i < n; i++) {
        uint64_t v = 0;
        memcpy(&v, from + i * width, width);
        uint64_t *slot = &last[v * UINT64_C(0x9e3779b97f4a7c15) >> 54];
        hits += *slot == v;
        *slot = v;
    }
    return hits > n / 16;
}

static unsigned varying_planes(unsigned elem_bytes, const uint8_t *sample, size_t elems)
{
    uint64_t first = 0, differ = 0;
    memcpy(&first, sample, elem_bytes);
    unsigned low = 8 * elem_bytes - 16, planes = 0;
    for (size_t i = 1; i < elems && planes < elem_bytes - 1; i++) {
        uint64_t v = 0;
        memcpy(&v, sample + i * elem_bytes, elem_bytes);
        if (((v ^ first) & ~differ) == 0)
            continue;
        differ |= v ^ first;
        planes = (differ >> low & 0x807f) != 0; /* the plane with the sign */
        for (unsigned b = 0; b < low; b += 8)
            planes += (differ >> b & 0xff) != 0;
    }
    return planes;
}

static int sample_lossless(struct cws_plan *p, const uint8_t *sample, size_t bytes, struct cws_error *err)
{
    double raw = (double)bytes, zstd;
    int rc;
    if (p->codec == CWS_CODEC_ZSTD) {
        rc = zstd_trial(sample, bytes, &zstd, err);
        if (rc == 0 && zstd > raw * (1 - GAIN_MIN))
            set_raw(p);
        return rc;
    }
    size_t elems = bytes / p->elem_bytes;
    p->stored_planes = p->elem_bytes > 1 ? varying_planes(p->elem_bytes, sample, elems) : 0;
    if (!repeats(p, sample, bytes))
        return 0; /* the count will tell whether it gains */
    uint64_t histogram[256] = {0};
    size_t pieces = bytes > SPLIT_BYTES ? 4 : 1;
    size_t piece = pieces > 1 ? SPLIT_BYTES / 4 / p->elem_bytes : elems;
    for (size_t i = 0; i < pieces; i++)
        count_split(p->elem_bytes, sample + elems / pieces * i * p->elem_bytes, piece, histogram);
    double split = (double)elems * (cws_entropy_bits(histogram) / 8 + p->stored_planes);
    rc = zstd_trial(sample, bytes, &zstd, err);
    if (rc == 0 && zstd < 0.9 * split && zstd < raw * (1 - GAIN_MIN)) {
        p->codec = CWS_CODEC_ZSTD;
        p->needs_count = false;
        p->counts_part = p->counts_range = false;
    }
    return rc;
}

/* Bits per weight of the elements at this step, or -1 when they cannot be quantised. */
static double step_bits(struct cws_plan *p, float step, const uint8_t *sample, size_t elems)
{
    uint64_t histogram[256] = {0};
    uint8_t lengths[256];
    struct codes codes = {0, 0};
    if (count_quant(p, step, sample, elems, 0, histogram, &codes) != 0)
        return -1;
    p->scale_bits = codes_bits(&codes);
    return (double)cws_huffman_lengths(histogram, CWS_CODE_BITS_MAX, lengths) / (double)elems +
           overhead_bits(p) / (double)p->elems;
}

/* The least step, in units of a row's rms, that about meets the target. Twice the step is one bit less, so a few
 * corrections get there; the full count has the last word. */
static float search_step(struct cws_plan *p, const uint8_t *sample, size_t elems)
{
    const double target = TARGET_BITS - TARGET_MARGIN;
    float step = 0.07f, best = 0; /* weights near a normal distribution need 0.07 */
    if (step_bits(p, 0, sample, elems) <= target)
        return 0;
    for (unsigned i = 0; i < 6; i++) {
        double over = step_bits(p, step, sample, elems) - target;
        if (over <= 0 && (best == 0 || step < best))
            best = step;
        if (over <= 0 && over > -0.002)
            break;
        double factor = 1 + 0.7 * (over + 0.0005);
        step *= (float)(factor < 0.25 ? 0.25 : factor);
    }
    return best > 0 ? best : step;
}

static int sample_quant(struct cws_plan *p, const uint8_t *sample, size_t bytes, struct cws_error *err)
{
    size_t elems = bytes / p->elem_bytes, rows = 0;
    struct codes codes = {0, 0};
    double rms = 0;
    for (size_t done = 0; done < elems; done += (size_t)p->row_elems) {
        size_t n = elems - done < p->row_elems ? elems - done : (size_t)p->row_elems;
        struct cws_quant_row row;
        if (cws_quant_measure(p->dtype, sample + done * p->elem_bytes, n, &row) != 0) {
            cws_plan_refuse_quant(p);
            return sample_lossless(p, sample, bytes, err);
        }
        codes_add(&codes, cws_quant_scale_code(&row, 0, 0));
        rms += (double)row.rms;
        rows += row.rms > 0;
    }
    p->scale_bits = codes_bits(&codes);
    p->typical_rms = rows ? (float)(rms / (double)rows) : 0;
    if (p->mode == CWS_MODE_Q6) {
        size_t take = elems;
        if (take > STEP_ELEMS)
            take = p->row_elems < STEP_ELEMS ? STEP_ELEMS / p->row_elems * p->row_elems : STEP_ELEMS;
        p->q6_step = search_step(p, sample, take);
    }
    return 0;
}

int cws_plan_sample(struct cws_plan *p, const void *sample, size_t sample_bytes, struct cws_error *err)
{
    if (sample_bytes < p->elem_bytes)
        set_raw(p);
    else if (p->codec == CWS_CODEC_QUANT)
        return sample_quant(p, sample, sample_bytes, err);
    else if (p->codec != CWS_CODEC_RAW)
        return sample_lossless(p, sample, sample_bytes, err);
    return 0;
}

static uint64_t sum(const uint64_t histogram[256])
{
    uint64_t total = 0;
    for (unsigned s = 0; s < 256; s++)
        total += histogram[s];
    return total;
}

/* Codes for all between the least and the largest symbol, which were looked up, and for zeros. False: those that were
 * not counted are so many that their codes would cost more than to count everything. */
static bool fill_range(uint64_t histogram[256])
{
    unsigned least = 1, most = 255, unseen = 0;
    while (least < 255 && histogram[least] == 0)
        least++;
    while (most > least && histogram[most] == 0)
        most--;
    for (unsigned s = least; s < most; s++) {
        unseen += histogram[s] == 0;
        histogram[s] += histogram[s] == 0;
    }
    histogram[0] += histogram[0] == 0;
    return unseen <= UNSEEN_MAX;
}

/* Codes for what the counted part may not have shown: the neighbours of what it did, and zeros. */
static void add_unseen(const uint64_t histogram[256], uint64_t out[256])
{
    for (unsigned s = 0; s < 256; s++) {
        unsigned from = s > UNSEEN_ABOVE ? s - UNSEEN_ABOVE : 0, to = s + UNSEEN_BELOW < 255 ? s + UNSEEN_BELOW : 255;
        out[s] = histogram[s];
        for (unsigned near = from; near <= to && out[s] == 0; near++)
            out[s] = histogram[near] != 0;
    }
    out[0] += out[0] == 0;
}

int cws_plan_finish(struct cws_plan *p, const uint64_t histogram[256])
{
    uint64_t all[256];
    if (p->codec != CWS_CODEC_SPLIT && p->codec != CWS_CODEC_QUANT)
        return 0;
    bool q6 = p->mode == CWS_MODE_Q6 && p->codec == CWS_CODEC_QUANT;
    double share = 1;
    memcpy(all, histogram, sizeof all);
    if (p->counts_range && !fill_range(all)) {
        p->counts_part = p->counts_range = false;
        return 1;
    }
    if (p->counts_part)
        share = (double)sum(histogram) / (double)p->elems;
    if (p->counts_part && !p->counts_range)
        add_unseen(histogram, all);
    double symbols = (double)cws_huffman_lengths(all, q6 ? CWS_CODE_BITS_MAX : CWS_FAST_CODE_BITS, p->lengths);
    double total = symbols / share + overhead_bits(p), per_weight = total / (double)p->elems;
    cws_huffman_pack(p->lengths, p->packed);
    p->symbol_entropy = cws_entropy_bits(histogram);
    if (q6 && per_weight > TARGET_BITS && p->rounds < ROUNDS_MAX) {
        /* A step twice as long costs one bit less. No exp2(): its last digit is not the same everywhere. */
        float base = p->q6_step > 0 ? p->q6_step : 0.02f;
        p->q6_step = base * (float)(1 + 0.75 * (per_weight - TARGET_BITS + TARGET_MARGIN * (1 + p->rounds)));
        p->rounds++;
        return 1;
    }
    if (total > 8.0 * p->elem_bytes * (double)p->elems * (1 - GAIN_MIN))
        set_raw(p);
    return 0;
}
